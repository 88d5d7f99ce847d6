"""How certain a metric is: bootstrap intervals that respect near-duplicates.

Images of one near-duplicate group are not independent, so whole groups are drawn with replacement
(cluster bootstrap: Davison & Hinkley 1997, 3.8) and the interval is the percentile interval (Efron
1979).

The functions in the second part take a table with one row per image and the columns target (0 real,
1 fake), logit, score (P(fake)) and group (near-duplicates share one).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.labels import FAKE, REAL
from stages.lib.evaluation.metrics import LOWER_IS_BETTER, RankedScores

NUM_RESAMPLES = 1000
COVERAGE = 0.95
TableRow = dict[str, Any]  # one row of a table in metrics/tables, by column


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; ends that are not known are NaN."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def cluster_weights(
    groups: np.ndarray, count: int = NUM_RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield `count` resamples: how often each image is drawn, float (N,), groups drawn whole."""
    random = np.random.default_rng(seed)
    names, member_of = np.unique(groups, return_inverse=True)
    for _ in range(count):
        drawn = random.integers(0, len(names), len(names))
        yield np.bincount(drawn, minlength=len(names))[member_of].astype(float)


def percentile_interval(value: float, resampled: Sequence[float] | np.ndarray) -> Interval:
    """Return the value with the percentile interval of the resamples that are not NaN.

    Without resamples the ends are not known.
    """
    if not len(resampled):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanquantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high))


def metric_intervals(
    ranked: RankedScores, groups: np.ndarray, names: Sequence[str]
) -> dict[str, Interval]:
    """Return the named METRICS with intervals; groups: int (N,), near-duplicates share one.

    Where all images of a class are in one group, the ends are not known.
    """
    values = ranked.metrics(np.ones(len(groups)), names)
    resamples = resampled_metrics(ranked, groups, names)
    return {
        name: percentile_interval(values[name], [resample[name] for resample in resamples])
        for name in names
    }


def resampled_metrics(
    ranked: RankedScores, groups: np.ndarray, names: Sequence[str]
) -> list[dict[str, float]]:
    """Return the named METRICS of each resample; the same groups give the same resamples.

    It is empty where all images of a class are in one group: then nothing varies.
    """
    ranked_groups = groups[ranked.order]
    if not both_vary(ranked.is_fake, ranked_groups):
        return []
    return [ranked.metrics(weights, names) for weights in cluster_weights(ranked_groups)]


def both_vary(targets: np.ndarray, groups: np.ndarray) -> bool:
    """Return whether both classes have images of several groups."""
    return all(len(np.unique(groups[targets == target])) > 1 for target in (REAL, FAKE))


def share_interval(hits: np.ndarray, groups: np.ndarray) -> Interval:
    """Return the share of hits with its interval; hits: bool (N,), N > 0; groups: int (N,).

    Where the share is 0 or 1 no resample differs. The other end is then what n groups cannot rule
    out: 1 - 0.025 ** (1 / n), the exact binomial bound (Clopper & Pearson 1934).
    """
    share = float(hits.mean())
    if share in (0, 1):
        bound = 1 - ((1 - COVERAGE) / 2) ** (1 / len(np.unique(groups)))
        return Interval(share, max(0.0, share - bound), min(1.0, share + bound))
    resampled = [float(weights @ hits / weights.sum()) for weights in cluster_weights(groups)]
    return percentile_interval(share, resampled)


def paired_improvement(
    metric: str, targets: np.ndarray, new: np.ndarray, old: np.ndarray, groups: np.ndarray
) -> Interval:
    """Return by how much the new scores are better than the old ones on the same images.

    Both are measured on the same resamples, so an image that is hard for both cancels out. Where
    all images of a class are in one group, the ends are not known.
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    new_ranked, old_ranked = RankedScores(targets, new), RankedScores(targets, old)
    once = np.ones(len(targets))
    value = new_ranked.metrics(once, [metric])[metric] - old_ranked.metrics(once, [metric])[metric]
    differences = []
    for of_new, of_old in zip(
        resampled_metrics(new_ranked, groups, [metric]),
        resampled_metrics(old_ranked, groups, [metric]),
        strict=True,
    ):
        differences.append(sign * (of_new[metric] - of_old[metric]))
    return percentile_interval(sign * value, differences)


# ---------------------------------------------------------------------------------------------
# Of tables of scored images, for rows of metrics/tables


def targets_and_scores(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return targets, int (N,), and scores, float (N,)."""
    return table["target"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)


def rank_table(table: pd.DataFrame, threshold: float = 0.5) -> RankedScores:
    """Return the scores of a table, ranked by their logits."""
    return RankedScores(*targets_and_scores(table), threshold, table["logit"].to_numpy(dtype=float))


def intervals_of(
    table: pd.DataFrame, names: Sequence[str], threshold: float = 0.5
) -> dict[str, Interval]:
    """Return the named METRICS with their intervals."""
    return metric_intervals(rank_table(table, threshold), table["group"].to_numpy(), names)


def shares_called_fake(table: pd.DataFrame, threshold: float) -> dict[str, Interval]:
    """Return tpr and fpr, the shares of fakes and of reals called fake, where there are any."""
    called = (table["score"] >= threshold).to_numpy()
    groups, targets = table["group"].to_numpy(), table["target"].to_numpy(dtype=int)
    shares = {}
    for name, target in (("tpr", FAKE), ("fpr", REAL)):
        members = targets == target
        if members.any():
            shares[name] = share_interval(called[members], groups[members])
    return shares


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of reals and fakes."""
    return {
        "num_real": int((table["target"] == REAL).sum()),
        "num_fake": int((table["target"] == FAKE).sum()),
    }


def columns_of(name: str, interval: Interval, prefix: str = "") -> dict[str, float]:
    """Return the interval as columns: its value by name, and low and high."""
    return {name: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
