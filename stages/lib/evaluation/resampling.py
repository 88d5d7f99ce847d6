"""How certain a metric is: bootstrap intervals that respect near-duplicates.

Images of one near-duplicate group are not independent, so whole groups are drawn with replacement
(cluster bootstrap: Davison & Hinkley 1997, 3.8) and the interval is the percentile interval (Efron
1979).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.lib.core.labels import FAKE, REAL
from stages.lib.evaluation.metrics import LOWER_IS_BETTER, RankedScores

NUM_RESAMPLES = 1000
COVERAGE = 0.95


def cluster_weights(
    groups: np.ndarray, count: int = NUM_RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
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


def interval(value: float, resampled: Sequence[float] | np.ndarray) -> Interval:
    """Return the value with the percentile interval of the resamples that are not NaN.

    Without resamples the ends are NaN: unknown.
    """
    if not len(resampled):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanquantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high))


def metric_intervals(
    ranked: RankedScores, groups: np.ndarray, names: Sequence[str]
) -> dict[str, Interval]:
    """Return the named METRICS with intervals; groups: int (N,), near-duplicates share one.

    Where all images of a class are in one group, the ends are NaN: unknown.
    """
    values = ranked.metrics(np.ones(len(groups)), names)
    resampled = resamples_of(ranked, groups, names)
    return {name: interval(values[name], [one[name] for one in resampled]) for name in names}


def resamples_of(
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
        unseen = 1 - ((1 - COVERAGE) / 2) ** (1 / len(np.unique(groups)))
        return Interval(share, max(0.0, share - unseen), min(1.0, share + unseen))
    resampled = [float(weights @ hits / weights.sum()) for weights in cluster_weights(groups)]
    return interval(share, resampled)


def paired_improvement(
    metric: str, targets: np.ndarray, new: np.ndarray, old: np.ndarray, groups: np.ndarray
) -> Interval:
    """Return by how much the new scores are better than the old ones on the same images.

    Both are judged on the same resamples, so an image that is hard for both cancels out. Where all
    images of a class are in one group, the ends are NaN: unknown.
    """
    new_ranked, old_ranked = RankedScores(targets, new), RankedScores(targets, old)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    once = np.ones(len(targets))
    value = new_ranked.metrics(once, [metric])[metric] - old_ranked.metrics(once, [metric])[metric]
    pairs = zip(*(resamples_of(one, groups, [metric]) for one in (new_ranked, old_ranked)),
                strict=True)  # fmt: skip
    return interval(
        sign * value, [sign * (ours[metric] - theirs[metric]) for ours, theirs in pairs]
    )
