"""Turn scores into metrics, curves and pictures.

params.yaml: evaluate; data/scores, data/labels, data/model/history.csv
  ->  metrics/evaluation.json, metrics/plots/*.csv, and figures in the model's MLflow run
Run: python -m stages.evaluate

The threshold is chosen on the calibration split alone, which took no part in training or in
choosing the epoch. The epoch was chosen on val: its figures flatter the model a little.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from stages.lib.competition import CLASS_NAMES, FAKE, REAL
from stages.lib.errors import UserError, run_stage
from stages.lib.figures import draw_all
from stages.lib.files import fresh_folder, sha256_of, write_json
from stages.lib.labels import read_labels, write_table
from stages.lib.metrics import choose_threshold, ranking_metrics, threshold_metrics
from stages.lib.params import StageParams, load_params
from stages.lib.registry import register
from stages.lib.resampling import METRICS as RANKING_METRICS
from stages.lib.tracking import tracker_of

LABELS = Path("data/labels")
SCORES = Path("data/scores")
MODEL = Path("data/model")
METRICS = Path("metrics/evaluation.json")
PLOTS = Path("metrics/plots")
CURVE_POINTS = 500  # enough for the eye, few enough for Git
HISTOGRAM_BINS = 40
CALIBRATION_BINS = 10
WEIGHTS_DIGITS = 12  # of the weights' SHA-256; they lead from DVC's tables to the MLflow run


class EvaluateParams(StageParams):
    """Section `evaluate`."""

    threshold: Literal["balanced_accuracy", "accuracy"]
    champion_metric: Literal[tuple(RANKING_METRICS)]


def main() -> None:
    """Write metrics/evaluation.json and metrics/plots, and mirror them in MLflow."""
    params = load_params("evaluate", EvaluateParams)
    splits = {name: labelled_scores(name) for name in ("val", "calibration", "test")}
    calibration = splits.pop("calibration")
    threshold = choose_threshold(*_arrays(calibration), params.threshold)
    metrics: dict[str, Any] = {
        "weights": sha256_of(MODEL / "weights.safetensors")[:WEIGHTS_DIGITS],
        "threshold": threshold,
        "num_calibration": len(calibration),
    }
    for name, table in splits.items():
        if table["target"].nunique() == len(CLASS_NAMES):
            metrics[name] = evaluate(table, threshold)
    curves = make_curves(splits["val"], threshold)
    curves["history"] = pd.read_csv(MODEL / "history.csv")
    with fresh_folder(PLOTS) as folder:
        for name, curve in curves.items():
            if name != "history":  # it lies beside the weights already
                write_table(curve, folder / f"{name}.csv")
    write_json(METRICS, metrics)
    _say(metrics)
    mirror(metrics, curves, splits["val"], params.champion_metric)


def mirror(
    metrics: dict[str, Any], curves: dict[str, pd.DataFrame], val: pd.DataFrame, metric: str
) -> None:
    """Put metrics, figures and scores into the model's MLflow run, and the run's model forward."""
    tracker = tracker_of(MODEL)
    tracker.log_metrics(flatten(metrics))
    tracker.log_file(METRICS)
    tracker.log_file(SCORES / "val.csv", "scores")
    for name, figure in draw_all(curves).items():
        tracker.log_figure(figure, f"figures/{name}.png")
    tracker.attempt(lambda client, run: register(client, run, val, metric, metrics["val"][metric]))


def labelled_scores(split: str) -> pd.DataFrame:
    """Join a split's labels and scores; rows without a target are left out.

    Raises UserError where the two do not name the same images in the same order.
    """
    labels = read_labels(LABELS / f"{split}.csv")
    scores = pd.read_csv(SCORES / f"{split}.csv", dtype={"img_name": "str"})
    if not labels["img_name"].equals(scores["img_name"]):
        raise UserError(
            f"{SCORES / split}.csv and {LABELS / split}.csv do not list the same images; "
            "run `dvc repro predict`"
        )
    return labels.assign(score=scores["score"]).dropna(subset=["target"])


def evaluate(table: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Return all metrics of a labelled split (columns target, score, family)."""
    targets, scores = _arrays(table)
    counts = {"num_real": int((targets == REAL).sum()), "num_fake": int((targets == FAKE).sum())}
    families = {}
    for family in sorted(table["family"].dropna().unique()):
        part = table[(table["target"] == REAL) | (table["family"] == family)]
        if part["target"].nunique() == len(CLASS_NAMES):
            families[family] = {"auc": float(sk.roc_auc_score(*_arrays(part)))}
    return (
        counts
        | ranking_metrics(targets, scores)
        | threshold_metrics(targets, scores, threshold)
        | ({"families": families} if families else {})
    )


def _arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["target"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)


def make_curves(table: pd.DataFrame, threshold: float) -> dict[str, pd.DataFrame]:
    """Return the tables behind the plots: roc, precision_recall, scores, confusion, calibration."""
    targets, scores = _arrays(table)
    fpr, tpr, _ = sk.roc_curve(targets, scores)
    precision, recall, _ = sk.precision_recall_curve(targets, scores, drop_intermediate=True)
    found = threshold_metrics(targets, scores, threshold)
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
    bins = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    rows = pd.DataFrame({"bin": bins, "mean_score": scores, "fake_share": targets, "count": 1})
    kinds = {"mean_score": "mean", "fake_share": "mean", "count": "sum"}
    return rows.groupby("bin").agg(kinds).reset_index(drop=True)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """Keep at most CURVE_POINTS rows, the first and the last among them."""
    if len(curve) <= CURVE_POINTS:
        return curve
    return curve.iloc[np.linspace(0, len(curve) - 1, CURVE_POINTS).round().astype(int)]


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Turn nested numbers into {"val.auc": ...}, as `dvc metrics show` names them."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, str):
            flat[f"{prefix}{name}"] = value
    return flat


def _say(metrics: dict[str, Any]) -> None:
    print(f"threshold {metrics['threshold']:.4f}, from {metrics['num_calibration']} images")
    for name, found in metrics.items():
        if isinstance(found, dict):
            print(
                f"{name}: AUC {found['auc']:.4f}, TPR at FPR 1e-3 {found['tpr_at_fpr_1e-3']:.4f}, "
                f"accuracy {found['accuracy']:.4f}, balanced {found['balanced_accuracy']:.4f} "
                f"({found['num_real']} real, {found['num_fake']} fake)"
            )


if __name__ == "__main__":
    run_stage(main)
