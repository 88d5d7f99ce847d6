"""The tables behind the plots, small enough for Git."""

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from stages.lib.core.labels import CLASS_NAMES
from stages.lib.evaluation.intervals import targets_and_scores
from stages.lib.evaluation.metrics import confusion, equal_bins

CURVE_POINTS = 500  # enough for the eye
HISTOGRAM_BINS = 40
RELIABILITY_BINS = 10


def make_curves(table: pd.DataFrame, threshold: float) -> dict[str, pd.DataFrame]:
    """Return the tables behind the plots: roc, precision_recall, scores, confusion, calibration."""
    targets, scores = targets_and_scores(table)
    fpr, tpr, _ = sk.roc_curve(targets, scores)
    precision, recall, _ = sk.precision_recall_curve(targets, scores, drop_intermediate=True)
    return {
        "roc": _thinned(pd.DataFrame({"fpr": fpr, "tpr": tpr})),
        "precision_recall": _thinned(pd.DataFrame({"recall": recall, "precision": precision})),
        "scores": _histograms(targets, scores),
        "confusion": _confusion(targets, scores, threshold),
        "calibration": _calibration(targets, scores),
    }


def _histograms(targets: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Return the share of each class in equally wide bins of scores."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    columns = {"score": edges[:-1] + 0.5 / HISTOGRAM_BINS}
    for target, name in enumerate(CLASS_NAMES):
        of_class = scores[targets == target]
        columns[name] = np.histogram(of_class, edges)[0] / max(len(of_class), 1)
    return pd.DataFrame(columns).round(6)


def _confusion(targets: np.ndarray, scores: np.ndarray, threshold: float) -> pd.DataFrame:
    """Return how often each class is called each class."""
    numbers = confusion(targets, scores, threshold)
    rows = [
        ("real", "real", numbers["true_real"]),
        ("real", "fake", numbers["false_fake"]),
        ("fake", "real", numbers["false_real"]),
        ("fake", "fake", numbers["true_fake"]),
    ]
    return pd.DataFrame(rows, columns=["actual", "predicted", "count"])


def _calibration(targets: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Return mean score, share of fakes and number of images per equally wide bin of scores."""
    bins = equal_bins(scores, RELIABILITY_BINS)
    rows = pd.DataFrame({"bin": bins, "mean_score": scores, "fake_share": targets, "count": 1})
    kinds = {"mean_score": "mean", "fake_share": "mean", "count": "sum"}
    return rows.groupby("bin").agg(kinds).reset_index(drop=True)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """Keep at most CURVE_POINTS rows, the first and the last among them."""
    if len(curve) <= CURVE_POINTS:
        return curve
    return curve.iloc[np.linspace(0, len(curve) - 1, CURVE_POINTS).round().astype(int)]


def severities(table: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC per severity (rows, 0 is unperturbed) and perturbation (columns)."""
    is_plain = table["perturbation"] == "none"
    plain_auc = table.loc[is_plain, "auc"].iloc[0]
    columns = {}
    for kind, rows in table[~is_plain].groupby("perturbation", sort=False):
        columns[kind] = pd.Series([plain_auc, *rows["auc"]])
    return pd.DataFrame(columns).rename_axis("severity").reset_index()
