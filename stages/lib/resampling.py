"""How sure a metric is: bootstrap intervals that respect near-duplicates.

Images of one near-duplicate group are not independent, so whole groups are drawn with replacement
(cluster bootstrap: Davison & Hinkley 1997, 3.8) and the interval is the percentile interval (Efron
1979). scikit-learn's metrics sort the scores anew for every resample, minutes for 100,000 scores;
here they are sorted once, and a resample is a weight per image. Tests compare both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.lib.competition import FAKE

NUM_RESAMPLES = 1000
COVERAGE = 0.95


class RankedScores:
    """Targets and scores in the order of falling scores, ready for any weighting of the images."""

    def __init__(self, targets: np.ndarray, scores: np.ndarray) -> None:
        """Sort; targets: int (N,), 0 real or 1 fake; scores: float (N,) in [0, 1]."""
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        self.is_fake = targets[self.order] == FAKE
        self.last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
        tiny = np.finfo(ranked.dtype).eps
        certainty = np.where(self.is_fake, ranked, 1 - ranked)
        self.losses = -np.log(np.clip(certainty, tiny, 1 - tiny))

    def metric(self, name: str, weights: np.ndarray) -> float:
        """Return one of METRICS where image i counts weights[i] times; NaN if a class is absent."""
        weights = weights[self.order]
        called = np.cumsum(weights)[self.last_of_tie]
        tp = np.cumsum(weights * self.is_fake)[self.last_of_tie]
        if not 0 < tp[-1] < called[-1]:
            return float("nan")
        if name == "log_loss":
            return float(weights @ self.losses / called[-1])
        tp = np.concatenate(([0.0], tp))
        fp = np.concatenate(([0.0], called)) - tp
        return float(METRICS[name](tp, fp))


def _auc(tp: np.ndarray, fp: np.ndarray) -> float:
    return np.trapezoid(tp, fp) / (tp[-1] * fp[-1])


def _average_precision(tp: np.ndarray, fp: np.ndarray) -> float:
    return np.diff(tp) @ (tp[1:] / np.maximum(tp[1:] + fp[1:], 1)) / tp[-1]


def _tpr_at(max_fpr: float) -> Callable[[np.ndarray, np.ndarray], float]:
    def share_found(tp: np.ndarray, fp: np.ndarray) -> float:
        return tp[np.searchsorted(fp / fp[-1], max_fpr, side="right") - 1] / tp[-1]

    return share_found


def _eer(tp: np.ndarray, fp: np.ndarray) -> float:
    fpr, gap = fp / fp[-1], 1 - tp / tp[-1] - fp / fp[-1]  # the gap falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    weight = gap[after - 1] / (gap[after - 1] - gap[after])
    return fpr[after - 1] + weight * (fpr[after] - fpr[after - 1])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float] | None] = {
    "auc": _auc,
    "average_precision": _average_precision,
    "eer": _eer,
    "tpr_at_fpr_1e-2": _tpr_at(1e-2),
    "tpr_at_fpr_1e-3": _tpr_at(1e-3),
    "log_loss": None,  # needs no ranking
}
LOWER_IS_BETTER = {"eer", "log_loss"}


def cluster_weights(groups: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` resamples: how often each image is drawn, float (N,), groups drawn whole."""
    random = np.random.default_rng(seed)
    names, member_of = np.unique(groups, return_inverse=True)
    for _ in range(count):
        drawn = random.integers(0, len(names), len(names))
        yield np.bincount(drawn, minlength=len(names))[member_of].astype(float)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_improvement(
    metric: str, targets: np.ndarray, new: np.ndarray, old: np.ndarray, groups: np.ndarray
) -> Interval:
    """Return by how much the new scores are better than the old ones on the same images.

    Both are judged on the same resamples, so what makes an image hard for both cancels out.
    """
    ranked_new, ranked_old = RankedScores(targets, new), RankedScores(targets, old)
    sign = -1 if metric in LOWER_IS_BETTER else 1

    def improvement(weights: np.ndarray) -> float:
        return sign * (ranked_new.metric(metric, weights) - ranked_old.metric(metric, weights))

    resamples = cluster_weights(groups, NUM_RESAMPLES, seed=0)
    found = [improvement(weights) for weights in resamples]
    low, high = np.nanquantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(improvement(np.ones(len(targets))), float(low), float(high))
