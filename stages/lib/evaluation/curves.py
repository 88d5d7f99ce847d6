"""The tables behind the plots, small enough for Git."""

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from stages.lib.core.labels import CLASS_NAMES
from stages.lib.evaluation.metrics import confusion, equal_bins

CURVE_POINTS = 500  # enough for the eye
HISTOGRAM_BINS = 40
RELIABILITY_BINS = 10


def make_curves(table: pd.DataFrame, threshold: float) -> dict[str, pd.DataFrame]:
    """Return the tables behind the plots: roc, precision_recall, scores, confusion, calibration."""
    targets = table["target"].to_numpy(dtype=int)
    scores = table["score"].to_numpy(dtype=float)
    fpr, tpr, _ = sk.roc_curve(targets, scores)
    precision, recall, _ = sk.precision_recall_curve(targets, scores, drop_intermediate=True)
    found = confusion(targets, scores, threshold)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    histograms = {
        name: np.histogram(scores[targets == target], edges)[0] / max((targets == target).sum(), 1)
        for target, name in enumerate(CLASS_NAMES)
    }
    kinds = [("real", "real", "true_real"), ("real", "fake", "false_fake"),
             ("fake", "real", "false_real"), ("fake", "fake", "true_fake")]  # fmt: skip
    return {
        "roc": _thinned(pd.DataFrame({"fpr": fpr, "tpr": tpr})),
        "precision_recall": _thinned(pd.DataFrame({"recall": recall, "precision": precision})),
        "scores": pd.DataFrame({"score": edges[:-1] + 0.5 / HISTOGRAM_BINS} | histograms).round(6),
        "confusion": pd.DataFrame(
            [(actual, predicted, found[key]) for actual, predicted, key in kinds],
            columns=["actual", "predicted", "count"],
        ),
        "calibration": _calibration(targets, scores),
    }


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
    plain = table.loc[table["perturbation"] == "none", "auc"].iloc[0]
    kinds = table.loc[table["perturbation"] != "none", "perturbation"].unique()
    columns = {kind: [plain, *table.loc[table["perturbation"] == kind, "auc"]] for kind in kinds}
    wide = pd.DataFrame({kind: pd.Series(values) for kind, values in columns.items()})
    return wide.rename_axis("severity").reset_index()
