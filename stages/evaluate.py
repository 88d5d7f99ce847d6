"""Turn scores into metrics, curves and pictures.

params.yaml: evaluate; data/scores, data/labels, data/model/history.csv
  ->  metrics/{evaluation.json, intervals.csv, robustness.csv, plots/*.csv}, and figures in MLflow
Run: python -m stages.evaluate

The threshold and the temperature are chosen on the calibration split alone, which took no part in
training or in choosing the epoch. The epoch was chosen on val: its figures flatter the model a
little. evaluation.json has the figures, intervals.csv their 95 % intervals, robustness.csv what is
left of them where the pictures are perturbed.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit

from stages.lib.competition import CLASS_NAMES, FAKE, REAL
from stages.lib.curves import make_curves, severities
from stages.lib.errors import UserError, run_stage
from stages.lib.figures import draw_all
from stages.lib.files import fresh_folder, sha256_of, write_json
from stages.lib.labels import read_labels, write_table
from stages.lib.metrics import (
    METRICS,
    RankedScores,
    choose_threshold,
    confusion,
    fit_temperature,
    plain_metrics,
)
from stages.lib.params import StageParams, load_params
from stages.lib.registry import register
from stages.lib.resampling import Interval, metric_intervals
from stages.lib.tracking import tracker_of

LABELS = Path("data/labels")
SCORES = Path("data/scores")
MODEL = Path("data/model")
REPORT = Path("metrics/evaluation.json")
INTERVALS = Path("metrics/intervals.csv")
ROBUSTNESS = Path("metrics/robustness.csv")
PLOTS = Path("metrics/plots")
CALIBRATED = ("ece", "log_loss", "brier")  # reported before and after temperature scaling
SHOWN = ("auc", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "ece", "balanced_accuracy")
REALS_FOR_1E_4 = 10_000  # fewer reals cannot show a false alarm in ten thousand
WEIGHTS_DIGITS = 12  # of the weights' SHA-256; they lead from DVC's tables to the MLflow run


class EvaluateParams(StageParams):
    """Section `evaluate`."""

    threshold: Literal["balanced_accuracy", "accuracy"]
    champion_metric: Literal[tuple(METRICS)]


def main() -> None:
    """Write metrics/evaluation.json, intervals.csv and plots, and mirror them in MLflow."""
    params = load_params("evaluate", EvaluateParams)
    splits = {name: labelled_scores(name) for name in ("val", "calibration", "test")}
    calibration = splits.pop("calibration")
    threshold = choose_threshold(*_arrays(calibration), params.threshold)
    temperature = fit_temperature(_arrays(calibration)[0], calibration["logit"].to_numpy())
    report: dict[str, Any] = {
        "weights": sha256_of(MODEL / "weights.safetensors")[:WEIGHTS_DIGITS],
        "threshold": threshold,
        "temperature": temperature,
        "num_calibration": len(calibration),
    }
    intervals = []
    for name, table in splits.items():
        if table["target"].nunique() == len(CLASS_NAMES):
            report[name] = evaluate(table, threshold, temperature)
            intervals += interval_rows(name, table, threshold)
    if params.champion_metric not in report["val"]:
        raise UserError(
            f"evaluate.champion_metric = {params.champion_metric} needs {REALS_FOR_1E_4:,} "
            f"validation reals, not {report['val']['num_real']}; choose another metric"
        )
    curves = make_curves(splits["val"], threshold)
    perturbed = robustness_table(perturbed_scores(splits["val"]), threshold)
    if len(perturbed):
        report["robustness"] = summarise(perturbed)
        curves["robustness"] = severities(perturbed)
    curves["history"] = pd.read_csv(MODEL / "history.csv")
    with fresh_folder(PLOTS) as folder:
        for name, curve in curves.items():
            if name != "history":  # it lies beside the weights already
                write_table(curve, folder / f"{name}.csv")
    table = pd.DataFrame(intervals)
    write_table(table, INTERVALS)
    write_table(perturbed, ROBUSTNESS)
    write_json(REPORT, report)
    _say(report, table, perturbed)
    mirror(report, curves, splits["val"], params.champion_metric)


def mirror(
    report: dict[str, Any], curves: dict[str, pd.DataFrame], val: pd.DataFrame, metric: str
) -> None:
    """Put metrics, figures and scores into the model's MLflow run, and the run's model forward."""
    tracker = tracker_of(MODEL)
    tracker.log_metrics(flatten(report))
    tracker.log_file(REPORT)
    tracker.log_file(INTERVALS)
    tracker.log_file(ROBUSTNESS)
    tracker.log_file(SCORES / "val.csv", "scores")
    for name, figure in draw_all(curves).items():
        tracker.log_figure(figure, f"figures/{name}.png")
    tracker.attempt(lambda client, run: register(client, run, val, metric, report["val"][metric]))


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
    scored = labels.assign(logit=scores["logit"], score=scores["score"])
    return scored.dropna(subset=["target"])


def evaluate(table: pd.DataFrame, threshold: float, temperature: float) -> dict[str, Any]:
    """Return all metrics of a labelled split (columns target, logit, score, family)."""
    targets, scores = _arrays(table)
    scaled = expit(table["logit"].to_numpy() / temperature)
    families = {
        family: plain_metrics(*_arrays(part), ["auc"]) for family, part in _families(table).items()
    }
    return (
        _counts(table)
        | plain_metrics(targets, scores, _reported(table), threshold)
        | {f"{k}_scaled": v for k, v in plain_metrics(targets, scaled, CALIBRATED).items()}
        | confusion(targets, scores, threshold)
        | ({"families": families} if families else {})
    )


def interval_rows(name: str, table: pd.DataFrame, threshold: float) -> list[dict[str, Any]]:
    """Return one row per metric of a split and per family's AUC, with its 95 % interval and n."""
    parts = {"all": (table, _reported(table))}
    parts |= {family: (part, ["auc"]) for family, part in _families(table).items()}
    rows = []
    for family, (part, names) in parts.items():
        ranked = RankedScores(*_arrays(part), threshold)
        found = metric_intervals(ranked, part["group"].to_numpy(), names)
        start = {"set": name, "family": family}
        rows += [start | _row(metric, one) | _counts(part) for metric, one in found.items()]
    return rows


def _row(metric: str, found: Interval) -> dict[str, Any]:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {"metric": metric} | {key: round(value, 6) for key, value in numbers.items()}


# ---------------------------------------------------------------------------------------------
# Robustness


def perturbed_scores(val: pd.DataFrame) -> pd.DataFrame:
    """Return the perturbed images' scores with the target and group of the image."""
    scores = pd.read_csv(SCORES / "robustness.csv", dtype={"img_name": "str"})
    return scores.merge(val[["img_name", "target", "group"]], on="img_name", validate="many_to_one")


def robustness_table(perturbed: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return AUC with its interval, flip rate and n for every perturbation and level, in order.

    An image flips where its verdict at the threshold is not that on the unperturbed image.
    """
    plain = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["score"]
    rows = []
    for (kind, level), part in perturbed.groupby(["perturbation", "level"], sort=False):
        groups = part["group"].to_numpy()
        found = metric_intervals(RankedScores(*_arrays(part)), groups, ["auc"])["auc"]
        before = part["img_name"].map(plain) >= threshold
        flips = float(((part["score"] >= threshold) != before).mean())
        numbers = {"auc": found.value, "low": found.low, "high": found.high, "flip_rate": flips}
        rounded = {name: round(number, 6) for name, number in numbers.items()}
        rows.append({"perturbation": kind, "level": level} | rounded | _counts(part))
    columns = ["perturbation", "level", "auc", "low", "high", "flip_rate", "num_real", "num_fake"]
    return pd.DataFrame(rows, columns=columns)


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """Return the one number to compare detectors by, mean_auc over all perturbations, and more."""
    plain, others = table["perturbation"] == "none", table["perturbation"] != "none"
    by_kind = table[others].groupby("perturbation")[["auc", "flip_rate"]].mean()
    return {
        "plain_auc": float(table.loc[plain, "auc"].iloc[0]),
        "mean_auc": float(by_kind["auc"].mean()),  # every kind counts the same
        "worst_auc": float(table.loc[others, "auc"].min()),
        "mean_flip_rate": float(by_kind["flip_rate"].mean()),
    }


def _families(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each family's fakes, with all the reals."""
    reals = table[table["target"] == REAL]
    return {
        family: pd.concat([reals, table[table["family"] == family]])
        for family in sorted(table["family"].dropna().unique())
        if (table.loc[table["family"] == family, "target"] == FAKE).any()
    }


def _reported(table: pd.DataFrame) -> list[str]:
    """Return the metrics that the split is large enough for."""
    enough = (table["target"] == REAL).sum() >= REALS_FOR_1E_4
    return [name for name in METRICS if enough or name != "tpr_at_fpr_1e-4"]


def _counts(table: pd.DataFrame) -> dict[str, int]:
    return {
        "num_real": int((table["target"] == REAL).sum()),
        "num_fake": int((table["target"] == FAKE).sum()),
    }


def _arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["target"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Turn nested numbers into {"val.auc": ...}, as `dvc metrics show` names them."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, str):
            flat[f"{prefix}{name}"] = value
    return flat


def _say(report: dict[str, Any], intervals: pd.DataFrame, perturbed: pd.DataFrame) -> None:
    print(f"threshold {report['threshold']:.4f}, temperature {report['temperature']:.3f}, "
          f"from {report['num_calibration']} images")  # fmt: skip
    shown = intervals[(intervals["family"] == "all") & intervals["metric"].isin(SHOWN)]
    for row in shown.itertuples():
        print(f"{row.set}: {row.metric} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], "
              f"{row.num_real} real, {row.num_fake} fake")  # fmt: skip
    for name in shown["set"].unique():
        if "tpr_at_fpr_1e-4" not in report[name]:
            print(f"{name}: too few reals for TPR at FPR 1e-4, which needs {REALS_FOR_1E_4:,}")
    if len(perturbed):
        found, worst = report["robustness"], perturbed.loc[perturbed["auc"].idxmin()]
        print(f"perturbed: mean AUC {found['mean_auc']:.4f}, {found['plain_auc']:.4f} as they are, "
              f"worst {worst.auc:.4f} at {worst.perturbation} {worst.level:g}, "
              f"{worst.num_real} real, {worst.num_fake} fake")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
