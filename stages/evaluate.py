"""Turn scores into metrics and curves.

params.yaml: evaluate; data/scores, data/labels, data/model/{config.json, history.csv}
  ->  metrics/evaluation.json, metrics/tables/*.csv, metrics/plots/*.csv, data/verdict_rules.json
Run: python -m stages.evaluate

The thresholds and the temperature are chosen on the calibration split alone, which had no part in
training or in choosing the epoch, and are the same for every set. The epoch was chosen on val,
whose metrics therefore flatter the model a little. `held_out` is the reals of val and the fakes of
prepare.hold_out_families. `pooled` is all labelled images together.
metrics/README.md explains the tables.
"""

from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, Field

from stages.lib import paths
from stages.lib.core.files import fresh_folder, read_json, write_json, write_text
from stages.lib.core.params import StageParams, load_params
from stages.lib.core.running import run_stage
from stages.lib.core.tables import read_table, write_table
from stages.lib.evaluation.cross_sets import CROSS_COLUMNS, cross_rows, summarise_cross
from stages.lib.evaluation.curves import make_curves, severities
from stages.lib.evaluation.metrics import choose_threshold, confusion, fit_temperature
from stages.lib.evaluation.operating_points import operating_rows
from stages.lib.evaluation.robustness import robustness_table, summarise_robustness
from stages.lib.evaluation.rows import Row, arrays, counts
from stages.lib.evaluation.scored_sets import (
    HELD_OUT,
    labelled_scores,
    labelled_sets,
    perturbed_scores,
)
from stages.lib.evaluation.slices import REALS_FOR_1E_4, set_rows, slice_rows
from stages.lib.evaluation.verdicts import (
    SHARES,
    VERDICT_COLUMNS,
    VerdictParams,
    choose_thresholds,
    verdict_rows,
)
from stages.lib.verdict.rules import Rules

INTERVAL_COLUMNS = ["set", "slice", "metric", "value", "low", "high", "num_real", "num_fake"]
SHOWN = ("auc", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "ece", "balanced_accuracy")
CHANCE = 0.5  # AUC
WEIGHTS_DIGITS = 12  # of the SHA-256 of the weights, which lead from DVC's tables to the MLflow run


def _rising(bands: list[int]) -> list[int]:
    if sorted(set(bands)) != bands:
        raise ValueError("give the ends of the bands in rising order")
    return bands


Bands = Annotated[list[int], Field(min_length=1), AfterValidator(_rising)]


class EvaluateParams(StageParams):
    """Section `evaluate`."""

    threshold: Literal["balanced_accuracy", "accuracy"]
    size_bands: Bands
    quality_bands: Bands
    verdicts: VerdictParams


def main() -> None:
    """Write metrics/, except what prepare and card write."""
    params = load_params("evaluate", EvaluateParams)
    sets = labelled_sets()
    calibration = labelled_scores("calibration")
    report, tables = judge(sets, calibration, params)
    rules = make_rules(calibration, report, params)
    tables["verdicts"] = verdict_table(sets, rules, params)
    report["verdicts"] = summarise_verdicts(tables["verdicts"])
    curves = make_curves(sets["val"], report["threshold"])
    curves["history"] = read_table(paths.HISTORY)
    perturbed = perturbed_scores(sets["val"])
    tables["robustness"] = robustness_table(perturbed, report["threshold"])
    if len(perturbed):
        report["robustness"] = summarise_robustness(perturbed, tables["robustness"])
        curves["robustness"] = severities(tables["robustness"])
    with fresh_folder(paths.PLOTS) as folder:
        for name, curve in curves.items():
            write_table(curve, folder / f"{name}.csv")
    with fresh_folder(paths.TABLES) as folder:
        for name, table in tables.items():
            rounded = table.round({column: 6 for column in table if column != "threshold"})
            write_table(rounded, folder / f"{name}.csv")
    write_text(paths.VERDICT_RULES, rules.model_dump_json(indent=2) + "\n")
    write_json(paths.EVALUATION, report)
    _print_summary(report, tables["intervals"], tables["robustness"])


def judge(
    sets: dict[str, pd.DataFrame], calibration: pd.DataFrame, params: EvaluateParams
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return the report and the tables (intervals, operating_points, cross_auc) of scored sets."""
    threshold = choose_threshold(*arrays(calibration), params.threshold)
    temperature = fit_temperature(arrays(calibration)[0], calibration["logit"].to_numpy())
    report: dict[str, Any] = {
        "weights": read_json(paths.CONFIG)["weights_sha256"][:WEIGHTS_DIGITS],
        "better_than_chance": 0,  # whether the interval of the AUC on val is above CHANCE
        "threshold": threshold,
        "temperature": temperature,
        "num_calibration": len(calibration),
    }
    everything = pd.concat(sets.values(), ignore_index=True).drop_duplicates(["set", "row"])
    pool = {"pooled": everything} if len(sets) > 1 else {}
    with_own_reals = {name: table for name, table in sets.items() if name != HELD_OUT}
    cross = cross_rows(with_own_reals) if len(with_own_reals) > 1 else []
    intervals = []
    for name, table in (sets | pool).items():
        rows = set_rows(table, threshold, temperature)
        rows += slice_rows(table, threshold, params.size_bands, params.quality_bands)
        report[name] = report_of_set(table, rows, threshold)
        intervals += [{"set": name} | row for row in rows]
    of_val = (row for row in intervals if row["set"] == "val" and row["metric"] == "auc")
    report["better_than_chance"] = int(next(of_val)["low"] > CHANCE)
    tables = {
        "intervals": pd.DataFrame(intervals, columns=INTERVAL_COLUMNS),
        "operating_points": pd.DataFrame(operating_rows(calibration, sets | pool)),
        "cross_auc": pd.DataFrame(cross, columns=CROSS_COLUMNS),
    }
    if cross:
        report["cross"] = summarise_cross(tables["cross_auc"])
    return report, tables


def make_rules(calibration: pd.DataFrame, report: dict[str, Any], params: EvaluateParams) -> Rules:
    """Return the rules by which a score becomes a verdict."""
    config = read_json(paths.CONFIG)
    return Rules(
        weights_sha256=config["weights_sha256"],
        views=read_json(paths.SCORED_VIEWS)["views"],
        thresholds=choose_thresholds(
            calibration, params.verdicts, report["threshold"], report["temperature"]
        ),
        stability=bool(calibration["low"].notna().all()),
        trained_on=config["trained_on"],
    )


def verdict_table(
    sets: dict[str, pd.DataFrame], rules: Rules, params: EvaluateParams
) -> pd.DataFrame:
    """Return one row per set and slice: shares of unsure and of wrong verdicts, and reasons."""
    rows = [
        {"set": name} | row
        for name, table in sets.items()
        for row in verdict_rows(table, rules, params.size_bands, params.quality_bands)
    ]
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def summarise_verdicts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the shares of each set."""
    whole = table[table["slice"] == "all"].set_index("set")
    shares = whole[list(SHARES)]
    return {str(name): row.dropna().to_dict() for name, row in shares.iterrows()}


def report_of_set(table: pd.DataFrame, rows: list[Row], threshold: float) -> dict[str, Any]:
    """Return the counts of a set, its metrics from the rows of its intervals, and its families."""
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


def _print_summary(
    report: dict[str, Any], intervals: pd.DataFrame, robustness: pd.DataFrame
) -> None:
    if not report["better_than_chance"]:
        print(
            f"WARNING: this model is useless: its AUC on val is {report['val']['auc']:.4f}, and "
            f"the 95 % interval does not rule out {CHANCE}, which is chance"
        )
    print(f"threshold {report['threshold']:.4f}, temperature {report['temperature']:.3f}, "
          f"from {report['num_calibration']} images")  # fmt: skip
    shown = intervals[(intervals["slice"] == "all") & intervals["metric"].isin(SHOWN)]
    for row in shown.itertuples():
        print(f"{row.set}: {row.metric} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], "
              f"{row.num_real} real, {row.num_fake} fake")  # fmt: skip
    for name in shown["set"].unique():
        if "tpr_at_fpr_1e-4" not in report[name]:
            print(f"{name}: too few reals for TPR at FPR 1e-4, which needs {REALS_FOR_1E_4:,}")
    if len(robustness):
        found, worst = report["robustness"], robustness.loc[robustness["auc"].idxmin()]
        print(f"perturbed: mean AUC {found['mean_auc']:.4f} [{found['mean_auc_low']:.4f}, "
              f"{found['mean_auc_high']:.4f}], {found['plain_auc']:.4f} unperturbed, "
              f"worst {worst.auc:.4f} at {worst.perturbation} {worst.level:g}, "
              f"{worst.num_real} real, {worst.num_fake} fake")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
