"""Metrics of a detector: pure functions of targets (0 real, 1 fake) and scores P(fake)."""

import numpy as np
from sklearn import metrics as sk

from stages.lib.competition import FAKE, REAL


def ranking_metrics(targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the metrics that need no threshold.

    targets: int (N,), both classes present; scores: float (N,) in [0, 1].
    """
    return {
        "auc": float(sk.roc_auc_score(targets, scores)),
        "average_precision": float(sk.average_precision_score(targets, scores)),
        "eer": equal_error_rate(targets, scores),
        "tpr_at_fpr_1e-2": tpr_at_fpr(targets, scores, 1e-2),
        "tpr_at_fpr_1e-3": tpr_at_fpr(targets, scores, 1e-3),
        "log_loss": float(sk.log_loss(targets, scores, labels=[REAL, FAKE])),
    }


def threshold_metrics(
    targets: np.ndarray, scores: np.ndarray, threshold: float
) -> dict[str, float | int]:
    """Return the metrics of calling an image fake where its score >= threshold."""
    called = (scores >= threshold).astype(int)
    (tn, fp), (fn, tp) = sk.confusion_matrix(targets, called, labels=[REAL, FAKE])
    return {
        "accuracy": float(sk.accuracy_score(targets, called)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(targets, called)),
        "true_real": int(tn),
        "false_fake": int(fp),
        "false_real": int(fn),
        "true_fake": int(tp),
    }


def tpr_at_fpr(targets: np.ndarray, scores: np.ndarray, max_fpr: float) -> float:
    """Return the largest share of fakes found with at most max_fpr of the reals called fake."""
    fpr, tpr, _ = sk.roc_curve(targets, scores, drop_intermediate=False)
    return float(tpr[fpr <= max_fpr].max())


def equal_error_rate(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the error rate where misses are as frequent as false alarms, interpolated."""
    fpr, tpr, _ = sk.roc_curve(targets, scores, drop_intermediate=False)
    gap = (1 - tpr) - fpr  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    before = after - 1
    weight = gap[before] / (gap[before] - gap[after])
    return float(fpr[before] + weight * (fpr[after] - fpr[before]))


def choose_threshold(targets: np.ndarray, scores: np.ndarray, metric: str) -> float:
    """Return the threshold with the best "accuracy" or "balanced_accuracy" (Youden 1950).

    It lies half-way between two scores, so that rounding cannot tip an image over.
    """
    fpr, tpr, thresholds = sk.roc_curve(targets, scores, drop_intermediate=False)
    share = {"balanced_accuracy": 0.5, "accuracy": float(np.mean(targets == FAKE))}[metric]
    correct = share * tpr + (1 - share) * (1 - fpr)
    best = 1 + int(np.argmax(correct[1:]))  # the first point is "call nothing fake"
    below = scores[scores < thresholds[best]]
    return float((thresholds[best] + below.max()) / 2) if len(below) else 0.0
