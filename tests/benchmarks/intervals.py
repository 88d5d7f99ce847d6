"""How long the 95 % intervals of all metrics take for a validation set of the competition's size.

Run: python -m tests.benchmarks.intervals [--scores 147000] [--repeats 3]
"""

import argparse
import time

import numpy as np

from stages.lib.evaluation.intervals import NUM_RESAMPLES, metric_intervals
from stages.lib.evaluation.metrics import METRICS, RankedScores


def main() -> None:
    """Print seconds per repetition."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scores", type=int, default=147_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    targets = (random.random(arguments.scores) < 0.6).astype(int)
    scores = 1 / (1 + np.exp(-random.normal(2 * targets, 1)))
    groups = random.integers(0, arguments.scores // 2, arguments.scores)
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        found = metric_intervals(RankedScores(targets, scores), groups, list(METRICS))
        print(
            f"{len(METRICS)} metrics, {NUM_RESAMPLES} resamples of {arguments.scores} scores: "
            f"{time.perf_counter() - start:.1f} s; AUC {found['auc']}"
        )


if __name__ == "__main__":
    main()
