"""Evaluate a detector: from the scores of all labelled sets to its report and its tables.

The tables of scored images have the columns of data/labels, and logit and score.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field
from scipy.special import expit

from stages.lib.core.files import write_json
from stages.lib.core.labels import REAL, has_both_classes, whole_sources
from stages.lib.core.params import StageParams
from stages.lib.core.scores import read_labels_and_scores, read_set_scores
from stages.lib.core.tables import write_table
from stages.lib.evaluation.intervals import TableRow, counts, targets_and_scores
from stages.lib.evaluation.metrics import choose_threshold, confusion, fit_temperature
from stages.lib.evaluation.tables import (
    CROSS_COLUMNS,
    REALS_FOR_1E_4,
    cross_rows,
    operating_rows,
    robustness_table,
    set_rows,
    slice_rows,
    summarise_cross,
    summarise_robustness,
)
from stages.lib.evaluation.verdicts import VerdictParams

HELD_OUT = "held_out"
INTERVAL_COLUMNS = ["set", "slice", "metric", "value", "low", "high", "num_real", "num_fake"]
PRINTED = ("auc", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "ece", "balanced_accuracy")
CHANCE = 0.5  # AUC
DIGITS = 6  # of the tables, after the point
# Of reports and curves: libraries on two machines agree on at least this number.
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


# ---------------------------------------------------------------------------------------------
# Scored sets


def labelled_scores(set_name: str) -> pd.DataFrame:
    """Join the labels and scores of a set; rows without a target are left out.

    Raises UserError where the scores are not those of the present detector for these images.
    """
    labels, scores = read_labels_and_scores(set_name)
    columns = ("logit", "low", "high", "distance")
    scored = labels.assign(**{name: scores[name] for name in columns})
    # From the logit, as for any detector: the score of the file may differ in its last digit.
    return scored.assign(score=expit(scores["logit"])).dropna(subset=["target"])


def labelled_sets(read: Callable[[str], pd.DataFrame] = labelled_scores) -> Tables:
    """Return the scored sets with both classes: val, the test set if labelled, and further sets.

    held_out has the reals of val and the fakes of the families that were held out, and each source
    that was held out is a set. read: returns the labelled rows of a label table, with scores.
    """
    val = read("val")
    reals = val[val["target"] == REAL]
    sets = {
        "val": val,
        "test": read("test"),
        HELD_OUT: pd.concat([reals, read(HELD_OUT)], ignore_index=True),
    }
    held_out_sources = read("held_out_sources")
    for name, table in held_out_sources.groupby(held_out_sources["source"].map(held_out_set)):
        sets[name] = table
    for name, table in read("evaluation").groupby("set", sort=False):
        sets[Path(name).stem] = table
    return {name: table for name, table in sets.items() if has_both_classes(table)}


def held_out_set(source: str) -> str:
    """Return the name of the set of a held-out source; sources that differ in marks share one."""
    return f"{HELD_OUT}_" + re.sub(r"[^\w-]", "_", source)


def trained_sources(val: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the sources with both classes in val, and how many images the two sets have of each.

    A training that leaves such a source out is evaluated on exactly these images.
    """
    images = pd.concat([val, calibration])
    return {name: counts(images[images["source"] == name]) for name in whole_sources(val)}


def with_pooled(sets: Tables) -> Tables:
    """Return the sets and, where there are several, `pooled`: each of their images once."""
    if len(sets) == 1:
        return sets
    everything = pd.concat(sets.values(), ignore_index=True)
    return sets | {"pooled": everything.drop_duplicates(["set", "row"])}


def perturbed_scores(val: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of perturbed images with the target and the group of each image."""
    scores = read_set_scores("robustness")
    return scores.merge(val[["img_name", "target", "group"]], on="img_name", validate="many_to_one")


# ---------------------------------------------------------------------------------------------
# Evaluation


def evaluate_detector(
    sets: Tables, calibration: pd.DataFrame, params: EvaluateParams
) -> tuple[dict[str, Any], Tables]:
    """Return the report and the tables (intervals, operating_points, cross_auc) of scored sets."""
    targets, scores = targets_and_scores(calibration)
    threshold = choose_threshold(targets, scores, params.threshold)
    temperature = fit_temperature(targets, calibration["logit"].to_numpy())
    report: dict[str, Any] = {
        "better_than_chance": 0,  # whether the interval of the AUC on val is above CHANCE
        "threshold": threshold,
        "temperature": temperature,
        "num_calibration": len(calibration),
    }
    sets_and_pooled = with_pooled(sets)
    intervals = []
    for name, table in sets_and_pooled.items():
        rows = set_rows(table, threshold, temperature)
        rows += slice_rows(table, threshold, params.size_bands, params.quality_bands)
        report[name] = report_of_set(table, rows, threshold)
        intervals += [{"set": name} | row for row in rows]
        if name == "val":
            auc = next(row for row in rows if row["metric"] == "auc")
            report["better_than_chance"] = int(auc["low"] > CHANCE)
    tables = {
        "intervals": pd.DataFrame(intervals, columns=INTERVAL_COLUMNS),
        "operating_points": pd.DataFrame(operating_rows(calibration, sets_and_pooled)),
        "cross_auc": pd.DataFrame(columns=CROSS_COLUMNS),
    }
    with_own_reals = {name: table for name, table in sets.items() if name != HELD_OUT}
    if len(with_own_reals) > 1:
        tables["cross_auc"] = pd.DataFrame(cross_rows(with_own_reals), columns=CROSS_COLUMNS)
        report["cross"] = summarise_cross(tables["cross_auc"])
    return report, tables


def report_of_set(table: pd.DataFrame, rows: list[TableRow], threshold: float) -> dict[str, Any]:
    """Return the counts of a set, its metrics from the rows of its intervals, and those of parts.

    Parts are its families, and its sources with both classes where there are several.
    """
    report: dict[str, Any] = counts(table)
    report |= {row["metric"]: row["value"] for row in rows if row["slice"] == "all"}
    report |= confusion(*targets_and_scores(table), threshold)
    aucs = {row["slice"]: row["value"] for row in rows if row["metric"] == "auc"}
    families = {
        name.removeprefix("family="): {"auc": auc}
        for name, auc in aucs.items()
        if name.startswith("family=")
    }
    if families:
        report["families"] = families
    sources = whole_sources(table)
    if len(sources) > 1:
        of_sources = [aucs[f"source={name}"] for name in sources]
        report["sources"] = {
            name: {"auc": auc} for name, auc in zip(sources, of_sources, strict=True)
        }
        report["source_mean_auc"] = float(np.mean(of_sources))
        report["source_worst_auc"] = min(of_sources)
    return report


def add_robustness(report: dict[str, Any], tables: Tables, perturbed: pd.DataFrame) -> None:
    """Add what perturbed images show; perturbed: as robustness_table says, empty for none."""
    tables["robustness"] = robustness_table(perturbed, report["threshold"])
    if len(perturbed):
        report["robustness"] = summarise_robustness(perturbed, tables["robustness"])


# ---------------------------------------------------------------------------------------------
# Files and the summary


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


def summary(report: dict[str, Any], tables: Tables) -> Iterator[str]:
    """Yield the lines that sum up what evaluate_detector returns."""
    if not report["better_than_chance"]:
        yield (
            f"WARNING: this model is useless: its AUC on val is {report['val']['auc']:.4f}, and "
            f"its 95 % interval is not above {CHANCE}, which is chance"
        )
    yield (
        f"threshold {report['threshold']:.4f}, temperature {report['temperature']:.3f}, "
        f"from {report['num_calibration']} images"
    )
    intervals = tables["intervals"]
    printed = intervals[(intervals["slice"] == "all") & intervals["metric"].isin(PRINTED)]
    for row in printed.itertuples():
        yield (
            f"{row.set}: {row.metric} {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], "
            f"{row.num_real} real, {row.num_fake} fake"
        )
    for name in printed["set"].unique():
        if "tpr_at_fpr_1e-4" not in report[name]:
            yield f"{name}: too few reals for TPR at FPR 1e-4, which needs {REALS_FOR_1E_4:,}"
    if "robustness" in report:
        yield _summary_of_robustness(report["robustness"], tables["robustness"])


def _summary_of_robustness(report: dict[str, float], table: pd.DataFrame) -> str:
    interval = "not known"
    if "mean_auc_low" in report:
        interval = f"{report['mean_auc_low']:.4f}, {report['mean_auc_high']:.4f}"
    worst = table.loc[table["auc"].idxmin()]
    return (
        f"perturbed: mean AUC {report['mean_auc']:.4f} [{interval}], {report['plain_auc']:.4f} "
        f"unperturbed, worst {worst.auc:.4f} at {worst.perturbation} {worst.level:g}, "
        f"{worst.num_real} real, {worst.num_fake} fake"
    )
