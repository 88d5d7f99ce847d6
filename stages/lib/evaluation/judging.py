"""Judge a detector from the scores of all labelled sets: its metrics, slices and operating points.

The tables of scored images have the columns of data/labels, and logit and score.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, Field

from stages.lib.core.files import write_json
from stages.lib.core.params import StageParams
from stages.lib.core.tables import write_table
from stages.lib.evaluation.cross_sets import CROSS_COLUMNS, cross_rows, summarise_cross
from stages.lib.evaluation.metrics import choose_threshold, confusion, fit_temperature
from stages.lib.evaluation.operating_points import operating_rows
from stages.lib.evaluation.robustness import robustness_table, summarise_robustness
from stages.lib.evaluation.rows import Row, arrays, counts
from stages.lib.evaluation.scored_sets import HELD_OUT
from stages.lib.evaluation.slices import REALS_FOR_1E_4, set_rows, slice_rows
from stages.lib.evaluation.verdicts import VerdictParams

INTERVAL_COLUMNS = ["set", "slice", "metric", "value", "low", "high", "num_real", "num_fake"]
SHOWN = ("auc", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "ece", "balanced_accuracy")
CHANCE = 0.5  # AUC
DIGITS = 6  # of the tables, after the point
# Of reports and curves: libraries on two machines agree on at least so many.
SIGNIFICANT_DIGITS = 9
Tables = dict[str, pd.DataFrame]


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


def judge(
    sets: Tables, calibration: pd.DataFrame, params: EvaluateParams
) -> tuple[dict[str, Any], Tables]:
    """Return the report and the tables (intervals, operating_points, cross_auc) of scored sets."""
    threshold = choose_threshold(*arrays(calibration), params.threshold)
    temperature = fit_temperature(arrays(calibration)[0], calibration["logit"].to_numpy())
    report: dict[str, Any] = {
        "better_than_chance": 0,  # whether the interval of the AUC on val is above CHANCE
        "threshold": threshold,
        "temperature": temperature,
        "num_calibration": len(calibration),
    }
    judged = with_pooled(sets)
    with_own_reals = {name: table for name, table in sets.items() if name != HELD_OUT}
    cross = cross_rows(with_own_reals) if len(with_own_reals) > 1 else []
    intervals = []
    for name, table in judged.items():
        rows = set_rows(table, threshold, temperature)
        rows += slice_rows(table, threshold, params.size_bands, params.quality_bands)
        report[name] = report_of_set(table, rows, threshold)
        intervals += [{"set": name} | row for row in rows]
    of_val = (row for row in intervals if row["set"] == "val" and row["metric"] == "auc")
    report["better_than_chance"] = int(next(of_val)["low"] > CHANCE)
    tables = {
        "intervals": pd.DataFrame(intervals, columns=INTERVAL_COLUMNS),
        "operating_points": pd.DataFrame(operating_rows(calibration, judged)),
        "cross_auc": pd.DataFrame(cross, columns=CROSS_COLUMNS),
    }
    if cross:
        report["cross"] = summarise_cross(tables["cross_auc"])
    return report, tables


def add_robustness(report: dict[str, Any], tables: Tables, perturbed: pd.DataFrame) -> None:
    """Add what perturbed images show; perturbed: as robustness_table says, empty for none."""
    tables["robustness"] = robustness_table(perturbed, report["threshold"])
    if len(perturbed):
        report["robustness"] = summarise_robustness(perturbed, tables["robustness"])


def with_pooled(sets: Tables) -> Tables:
    """Return the sets and, where there are several, `pooled`: each of their images once."""
    everything = pd.concat(sets.values(), ignore_index=True).drop_duplicates(["set", "row"])
    return sets | ({"pooled": everything} if len(sets) > 1 else {})


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


def write_tables(tables: Tables, folder: Path) -> None:
    """Write each table as a CSV of its name; all but thresholds are rounded to DIGITS."""
    for name, table in tables.items():
        rounded = table.round({column: DIGITS for column in table if column != "threshold"})
        write_table(rounded, folder / f"{name}.csv")


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, each number with SIGNIFICANT_DIGITS."""
    write_json(path, _rounded(report))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def summary(report: dict[str, Any], intervals: pd.DataFrame) -> Iterator[str]:
    """Yield the lines that sum up what judge returns."""
    if not report["better_than_chance"]:
        yield (
            f"WARNING: this model is useless: its AUC on val is {report['val']['auc']:.4f}, and "
            f"its 95 % interval is not above {CHANCE}, which is chance"
        )
    yield (
        f"threshold {report['threshold']:.4f}, temperature {report['temperature']:.3f}, "
        f"from {report['num_calibration']} images"
    )
    shown = intervals[(intervals["slice"] == "all") & intervals["metric"].isin(SHOWN)]
    for row in shown.itertuples():
        yield (
            f"{row.set}: {row.metric} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], "
            f"{row.num_real} real, {row.num_fake} fake"
        )
    for name in shown["set"].unique():
        if "tpr_at_fpr_1e-4" not in report[name]:
            yield f"{name}: too few reals for TPR at FPR 1e-4, which needs {REALS_FOR_1E_4:,}"
