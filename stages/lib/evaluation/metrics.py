"""Metrics of a detector: pure functions of targets (0 real, 1 fake) and scores P(fake).

A metric is computed from weighted images: a resample of the data is a weight per image, and the
scores are sorted only once. The metrics of scikit-learn sort in every call, which takes minutes for
the intervals of 100,000 scores. The tests compare all metrics with those of scikit-learn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn import metrics as sk

from stages.lib.core.labels import FAKE, REAL

ECE_BINS = 15  # as in Guo et al. 2017
MOST_CERTAIN = float(logit(1 - np.finfo(float).eps))  # a score of 1 has no logit


def equal_bins(scores: np.ndarray, count: int) -> np.ndarray:
    """Return which of `count` equally wide bins each score in [0, 1] falls into, int (N,)."""
    return np.minimum((scores * count).astype(int), count - 1)


class RankedScores:
    """Targets and scores in descending order of the scores, ready for any weights of the images."""

    def __init__(
        self,
        targets: np.ndarray,
        scores: np.ndarray,
        threshold: float = 0.5,
        logits: np.ndarray | None = None,
    ) -> None:
        """Sort; targets: int (N,), 0 real or 1 fake; scores: float (N,) in [0, 1].

        logits: finite, float (N,), what the scores come from. Then they rank the images: above 37
        all scores are 1.
        """
        ranks = scores if logits is None else logits
        self.order = np.argsort(-ranks, kind="stable")
        self.scores = scores[self.order].astype(float)
        self.is_fake = targets[self.order] == FAKE
        last_of_tie = np.flatnonzero(np.append(np.diff(ranks[self.order]) != 0, True))
        tiny = np.finfo(float).eps
        certainty = np.where(self.is_fake, self.scores, 1 - self.scores)
        self.losses = -np.log(np.clip(certainty, tiny, 1 - tiny))
        self.squared_errors = (self.scores - self.is_fake) ** 2
        self.bins = equal_bins(self.scores, ECE_BINS)
        self.ends = np.concatenate(([0], last_of_tie + 1))
        self.num_called = int((self.scores >= threshold).sum())

    def metrics(self, weights: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Return the named METRICS, NaN where a class is absent.

        weights: float (N,), how often each image counts, in the order of the ranking.
        """
        sample = self._weighted(weights)
        if not 0 < sample.tp[-1] < sample.total:
            return dict.fromkeys(names, float("nan"))
        return {name: float(METRICS[name](sample)) for name in names}

    def _weighted(self, weights: np.ndarray) -> "Sample":
        # At each threshold the images above it are called fake: sums over the ranking's beginning.
        # Thresholds lie between different scores only, so tied images are called together.
        called = np.concatenate(([0.0], np.cumsum(weights)))
        fakes_called = np.concatenate(([0.0], np.cumsum(weights * self.is_fake)))
        reals_called = called - fakes_called
        return Sample(
            ranked=self,
            weights=weights,
            total=called[-1],
            tp=fakes_called[self.ends],
            fp=reals_called[self.ends],
            tp_called=fakes_called[self.num_called],
            fp_called=reals_called[self.num_called],
        )


@dataclass(frozen=True)
class Sample:
    """One weighting of the images: fakes and reals that are called fake at every threshold."""

    ranked: RankedScores
    weights: np.ndarray
    total: float
    tp: np.ndarray  # fakes called fake, from calling none to calling all
    fp: np.ndarray  # reals called fake at the same thresholds
    tp_called: float  # both at the given threshold
    fp_called: float


def _auc(s: Sample) -> float:
    return np.trapezoid(s.tp, s.fp) / (s.tp[-1] * s.fp[-1])


def _average_precision(s: Sample) -> float:
    called = s.tp[1:] + s.fp[1:]
    precision = s.tp[1:] / np.where(called > 0, called, 1)  # none called: 0 of 0 counts as 0
    return np.diff(s.tp) @ precision / s.tp[-1]


def _tpr_at(max_fpr: float) -> Callable[[Sample], float]:
    def tpr(s: Sample) -> float:
        allowed = max_fpr * s.fp[-1] * (1 + 1e-12)  # against rounding: 1e-3 of 3,000 is 3
        return s.tp[np.searchsorted(s.fp, allowed, side="right") - 1] / s.tp[-1]

    return tpr


def _eer(s: Sample) -> float:
    fpr = s.fp / s.fp[-1]
    gap = 1 - s.tp / s.tp[-1] - fpr  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    weight = gap[after - 1] / (gap[after - 1] - gap[after])
    return fpr[after - 1] + weight * (fpr[after] - fpr[after - 1])


def _accuracy(s: Sample) -> float:
    return (s.tp_called + s.fp[-1] - s.fp_called) / s.total


def _balanced_accuracy(s: Sample) -> float:
    return (s.tp_called / s.tp[-1] + 1 - s.fp_called / s.fp[-1]) / 2


def _expected_calibration_error(s: Sample) -> float:
    gaps = s.weights * (s.ranked.is_fake - s.ranked.scores)
    return np.abs(np.bincount(s.ranked.bins, gaps)).sum() / s.total


METRICS: dict[str, Callable[[Sample], float]] = {
    "auc": _auc,
    "average_precision": _average_precision,
    "eer": _eer,
    "tpr_at_fpr_1e-2": _tpr_at(1e-2),
    "tpr_at_fpr_1e-3": _tpr_at(1e-3),
    "tpr_at_fpr_1e-4": _tpr_at(1e-4),
    "log_loss": lambda s: float(s.weights @ s.ranked.losses) / s.total,
    "brier": lambda s: float(s.weights @ s.ranked.squared_errors) / s.total,
    "ece": _expected_calibration_error,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
}
LOWER_IS_BETTER = {"eer", "log_loss", "brier", "ece"}


def confusion(targets: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, int]:
    """Count right and wrong verdicts where a score >= threshold is called fake."""
    called = (scores >= threshold).astype(int)
    (tn, fp), (fn, tp) = sk.confusion_matrix(targets, called, labels=[REAL, FAKE])
    counts = {"true_real": tn, "false_fake": fp, "false_real": fn, "true_fake": tp}
    return {name: int(count) for name, count in counts.items()}


def choose_threshold(targets: np.ndarray, scores: np.ndarray, metric: str) -> float:
    """Return the threshold with the best "accuracy" or "balanced_accuracy" (Youden 1950).

    It is half-way between two scores, so that rounding changes no verdict.
    """
    fpr, tpr, thresholds = sk.roc_curve(targets, scores, drop_intermediate=False)
    share = {"balanced_accuracy": 0.5, "accuracy": float(np.mean(targets == FAKE))}[metric]
    correct = share * tpr + (1 - share) * (1 - fpr)
    best = 1 + int(np.argmax(correct[1:]))  # the first point is "call nothing fake"
    below = scores[scores < thresholds[best]]
    return _between(below.max(), thresholds[best]) if len(below) else 0.0


def threshold_at_fpr(targets: np.ndarray, scores: np.ndarray, max_fpr: float) -> float:
    """Return the lowest threshold at which at most max_fpr of the reals are called fake.

    It is half-way between the scores of two reals. Where no real may be called fake, it is half-way
    between the highest of them and the next score above, or 1.
    """
    reals = np.sort(scores[targets == REAL])[::-1]
    allowed = int(max_fpr * len(reals) * (1 + 1e-12))  # against rounding, as in _tpr_at
    below = reals[allowed]
    above = reals[reals > below]  # tied scores go together
    if not len(above):
        above = np.append(scores[scores > below], 1.0)
    return _between(below, above.min()) if above.min() > below else float(np.nextafter(below, 2))


def _between(low: float, high: float) -> float:
    """Return a threshold above low and at most high: half-way, where there is a number between."""
    middle = (low + high) / 2
    return float(middle if middle > low else high)


def fit_temperature(targets: np.ndarray, logits: np.ndarray) -> float:
    """Return the T for which sigmoid(logits / T) has the least log loss (Guo et al. 2017).

    targets: int (N,); logits: float (N,), log(P(fake) / P(real)). T is in [0.05, 20]. Above 1, the
    detector was overconfident. Logits that give a score of 0 or 1 count as the nearest other one.
    """
    logits = np.clip(logits, -MOST_CERTAIN, MOST_CERTAIN)

    def loss(log_temperature: float) -> float:
        scores = expit(logits / np.exp(log_temperature))
        return sk.log_loss(targets, scores, labels=[REAL, FAKE])

    optimum = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return round(float(np.exp(optimum.x)), 6)  # the search is no more exact
