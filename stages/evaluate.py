"""Turn scores into metrics, curves and pictures.

params.yaml: evaluate; data/scores, data/labels, data/model/history.csv
  ->  metrics/{evaluation.json, intervals.csv, operating_points.csv, cross_auc.csv, robustness.csv,
      plots/*.csv}, and figures in MLflow
Run: python -m stages.evaluate

The thresholds and the temperature are chosen on the calibration split alone, which took no part in
training or in choosing the epoch, and hold for every set. The epoch was chosen on val: its figures
flatter the model a little. `pooled` is all labelled sets together. evaluation.json has the figures,
intervals.csv their 95 % intervals, also by slices; operating_points.csv what a low rate of false
alarms costs; cross_auc.csv the reals of one set against the fakes of another; robustness.csv what
is left where the pictures are perturbed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, Field

from stages.lib.breakdown import (
    REALS_FOR_1E_4,
    arrays,
    counts,
    cross_rows,
    operating_rows,
    set_rows,
    slice_rows,
)
from stages.lib.competition import CLASS_NAMES
from stages.lib.curves import make_curves, severities
from stages.lib.errors import UserError, run_stage
from stages.lib.figures import draw_all
from stages.lib.files import fresh_folder, sha256_of, write_json
from stages.lib.labels import read_labels, write_table
from stages.lib.metrics import (
    METRICS,
    choose_threshold,
    confusion,
    fit_temperature,
)
from stages.lib.params import StageParams, load_params
from stages.lib.registry import register
from stages.lib.robustness import robustness_table, summarise
from stages.lib.tracking import tracker_of

LABELS = Path("data/labels")
SCORES = Path("data/scores")
MODEL = Path("data/model")
METRICS_FOLDER = Path("metrics")
REPORT = METRICS_FOLDER / "evaluation.json"
PLOTS = METRICS_FOLDER / "plots"
INTERVAL_COLUMNS = ["set", "slice", "metric", "value", "low", "high", "num_real", "num_fake"]
CROSS_COLUMNS = ["reals_of", "fakes_of", "auc", "low", "high", "num_real", "num_fake"]
SHOWN = ("auc", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "ece", "balanced_accuracy")
WEIGHTS_DIGITS = 12  # of the weights' SHA-256; they lead from DVC's tables to the MLflow run


def _rising(bands: list[int]) -> list[int]:
    if sorted(set(bands)) != bands:
        raise ValueError("give the ends of the bands in rising order")
    return bands


Bands = Annotated[list[int], Field(min_length=1), AfterValidator(_rising)]


class EvaluateParams(StageParams):
    """Section `evaluate`."""

    threshold: Literal["balanced_accuracy", "accuracy"]
    champion_metric: Literal[tuple(METRICS)]
    size_bands: Bands
    quality_bands: Bands


def main() -> None:
    """Write all of metrics/ but data.json, and mirror it in MLflow."""
    params = load_params("evaluate", EvaluateParams)
    calibration = labelled_scores("calibration")
    threshold = choose_threshold(*arrays(calibration), params.threshold)
    temperature = fit_temperature(arrays(calibration)[0], calibration["logit"].to_numpy())
    report: dict[str, Any] = {
        "weights": sha256_of(MODEL / "weights.safetensors")[:WEIGHTS_DIGITS],
        "threshold": threshold,
        "temperature": temperature,
        "num_calibration": len(calibration),
    }
    sets = labelled_sets()
    pool = {"pooled": pd.concat(sets.values(), ignore_index=True)} if len(sets) > 1 else {}
    rows = []
    for name, table in (sets | pool).items():
        found = set_rows(table, threshold, temperature)
        found += slice_rows(table, threshold, params.size_bands, params.quality_bands)
        report[name] = evaluate(table, found, threshold)
        rows += [{"set": name} | row for row in found]
    if params.champion_metric not in report["val"]:
        raise UserError(
            f"evaluate.champion_metric = {params.champion_metric} needs {REALS_FOR_1E_4:,} "
            f"validation reals, not {report['val']['num_real']}; choose another metric"
        )
    perturbed = perturbed_scores(sets["val"])
    tables = {
        "intervals": pd.DataFrame(rows, columns=INTERVAL_COLUMNS),
        "operating_points": pd.DataFrame(operating_rows(calibration, sets | pool)),
        "cross_auc": pd.DataFrame(cross_rows(sets) if pool else [], columns=CROSS_COLUMNS),
        "robustness": robustness_table(perturbed, threshold),
    }
    curves = make_curves(sets["val"], threshold)
    if pool:
        report["cross"] = summarise_cross(tables["cross_auc"])
    if len(tables["robustness"]):
        report["robustness"] = summarise(perturbed, tables["robustness"])
        curves["robustness"] = severities(tables["robustness"])
    with fresh_folder(PLOTS) as folder:
        for name, curve in curves.items():
            write_table(curve, folder / f"{name}.csv")
    for name, table in tables.items():
        rounded = table.round({column: 6 for column in table if column != "threshold"})
        write_table(rounded, METRICS_FOLDER / f"{name}.csv")
    write_json(REPORT, report)
    _say(report, tables["intervals"], tables["robustness"])
    mirror(report, list(tables), curves, sets["val"], params.champion_metric)


def mirror(
    report: dict[str, Any],
    tables: list[str],
    curves: dict[str, pd.DataFrame],
    val: pd.DataFrame,
    metric: str,
) -> None:
    """Put metrics, figures and scores into the model's MLflow run, and the run's model forward."""
    tracker = tracker_of(MODEL)
    tracker.log_metrics(flatten(report))
    tracker.log_file(REPORT)
    for name in tables:
        tracker.log_file(METRICS_FOLDER / f"{name}.csv")
    tracker.log_file(SCORES / "val.csv", "scores")
    history = pd.read_csv(MODEL / "history.csv")
    for name, figure in draw_all(curves | {"history": history}).items():
        tracker.log_figure(figure, f"figures/{name}.png")
    tracker.attempt(lambda client, run: register(client, run, val, metric, report["val"][metric]))


def labelled_sets() -> dict[str, pd.DataFrame]:
    """Return the scored sets to judge on: val, the test set where labelled, and further ones."""
    sets = {name: labelled_scores(name) for name in ("val", "test")}
    more = labelled_scores("evaluation")
    sets |= {Path(name).name: part for name, part in more.groupby("set", sort=False)}
    return {k: part for k, part in sets.items() if part["target"].nunique() == len(CLASS_NAMES)}


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


def perturbed_scores(val: pd.DataFrame) -> pd.DataFrame:
    """Return the perturbed images' scores with the target and group of the image."""
    scores = pd.read_csv(SCORES / "robustness.csv", dtype={"img_name": "str"})
    return scores.merge(val[["img_name", "target", "group"]], on="img_name", validate="many_to_one")


def evaluate(table: pd.DataFrame, rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Return a set's figures: those of its rows of the intervals, and counts."""
    families = {
        row["slice"].removeprefix("family="): {"auc": row["value"]}
        for row in rows
        if row["slice"].startswith("family=") and row["metric"] == "auc"
    }
    return (
        counts(table)
        | {row["metric"]: row["value"] for row in rows if row["slice"] == "all"}
        | confusion(*arrays(table), threshold)
        | ({"families": families} if families else {})
    )


def summarise_cross(table: pd.DataFrame) -> dict[str, float]:
    """Return mean and worst Cross-AUC, of reals and fakes that are not of the same set."""
    across = table.loc[table["reals_of"] != table["fakes_of"], "auc"]
    return {"mean_auc": float(across.mean()), "worst_auc": float(across.min())}


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
    shown = intervals[(intervals["slice"] == "all") & intervals["metric"].isin(SHOWN)]
    for row in shown.itertuples():
        print(f"{row.set}: {row.metric} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], "
              f"{row.num_real} real, {row.num_fake} fake")  # fmt: skip
    for name in shown["set"].unique():
        if "tpr_at_fpr_1e-4" not in report[name]:
            print(f"{name}: too few reals for TPR at FPR 1e-4, which needs {REALS_FOR_1E_4:,}")
    if len(perturbed):
        found, worst = report["robustness"], perturbed.loc[perturbed["auc"].idxmin()]
        print(f"perturbed: mean AUC {found['mean_auc']:.4f} [{found['mean_auc_low']:.4f}, "
              f"{found['mean_auc_high']:.4f}], {found['plain_auc']:.4f} as they are, "
              f"worst {worst.auc:.4f} at {worst.perturbation} {worst.level:g}, "
              f"{worst.num_real} real, {worst.num_fake} fake")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
