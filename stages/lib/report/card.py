"""What the cards of detectors have in common: how pages are filled, their figures and limits."""

import re
from dataclasses import is_dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

RESULTS = {
    "auc": "AUC",
    "video_auc": "AUC of whole videos",
    "tpr_at_fpr_1e-2": "TPR at FPR 1e-2",
    "tpr_at_fpr_1e-3": "TPR at FPR 1e-3",
    "eer": "EER",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_scaled": "ECE after temperature scaling",
}
# Characters that Markdown does not show unchanged. Brackets do no harm unless they make a link, and
# neither does an underscore inside a word.
MARKS = re.compile(r"[\\`*|~$]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")
Tables = dict[str, pd.DataFrame]


def fill(template: str, **content: Any) -> str:
    """Return a page in Markdown; template: the name of a file beside this one.

    All text in the content is plain: a name in the data that looks like Markdown or HTML is shown
    unchanged. Only the templates have Markdown.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(_plain(content))


def _plain(content: Any) -> Any:
    """Return the content of a page with every text in it, also keys, by plain_markdown."""
    if isinstance(content, str):
        return plain_markdown(content)
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, dict):
        return {_plain(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content


def plain_markdown(text: str) -> str:
    """Return Markdown that shows the text unchanged, in one line, also in a cell of a table."""
    return escape(MARKS.sub(r"\\\g<0>", " ".join(text.split())), quote=False)


def figures_of(report: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """Return what card_results.md.j2 and card_across.md.j2 show.

    report: that of metrics/evaluation.json; tables: those of metrics/tables by name.
    """
    intervals = tables["intervals"]
    sets = list(intervals.loc[intervals["slice"] == "all", "set"].unique())
    slices = slices_of(intervals)
    sources = sources_of(report, slices)
    in_sources = [part for one in sources for part in one["slices"]]
    return {
        "report": report,
        "set_titles": [
            f"{name} ({report[name]['num_real']} real, {report[name]['num_fake']} fake)"
            for name in sets
        ],
        "results": results_of(intervals, sets),
        "sources": sources,
        "slices": [part for part in slices if part not in in_sources],
        "operating_points": tables["operating_points"].to_dict("records"),
        "cross": cross_of(tables["cross_auc"]),
    }


def results_of(
    intervals: pd.DataFrame, sets: list[str]
) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Return the title of each metric and its row of each set, None where a set has none."""
    rows = {}
    for row in intervals[intervals["slice"] == "all"].to_dict("records"):
        rows[row["metric"], row["set"]] = row
    results = []
    for metric, title in RESULTS.items():
        cells = [rows.get((metric, name)) for name in sets]
        if any(cells):
            results.append((title, cells))
    return results


def slices_of(intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each slice with the rows of its metrics: {"set", "name", "auc", ...}."""
    slices = []
    parts = intervals[intervals["slice"] != "all"].groupby(["set", "slice"], sort=False)
    for (set_name, slice_name), part in parts:
        rows = {row["metric"]: row for row in part.to_dict("records")}
        slices.append({"set": set_name, "name": slice_name} | rows)
    return slices


def sources_of(report: dict[str, Any], slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each set but pooled with several sources: {"set", "slices", "mean", "worst"}.

    Its slices, from what slices_of returns, are the sources with both classes; mean and worst are
    those of their AUC.
    """
    sets = []
    for set_name, figures in report.items():
        if set_name == "pooled" or not isinstance(figures, dict) or "sources" not in figures:
            continue
        names = [(set_name, f"source={source}") for source in figures["sources"]]
        sets.append(
            {
                "set": set_name,
                "slices": [part for part in slices if (part["set"], part["name"]) in names],
                "mean": figures["source_mean_auc"],
                "worst": figures["source_worst_auc"],
            }
        )
    return sets


def cross_of(cross: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return, for the reals of each set, the rows of Cross-AUC in the order of the sets."""
    parts = cross.groupby("reals_of", sort=False)
    return {set_name: rows.to_dict("records") for set_name, rows in parts}


# ---------------------------------------------------------------------------------------------
# Limits


def limits_of(
    report: dict[str, Any], data: dict[str, Any], tables: Tables, is_own: bool
) -> list[str]:
    """Return the limits of a detector that its figures and metrics/data.json (data) show.

    is_own: it is the detector of this pipeline, whose training is known.
    """
    limits = ["Whether the detector was trained or chosen on these images is not known."]
    if is_own:
        limits = limits_of_training(data)
    limits += limits_of_data(data)
    limits += weakest_spots(tables)
    limits += limits_of_sets(report)
    if data["generated_sample"]:
        limits.append("Drawn faces are not photographs: nothing here carries over to deepfakes.")
    return limits


def groups_in_training(data: dict[str, Any]) -> dict[str, int]:
    """Return, by set, how many of its groups are in the training set too, where any are."""
    groups = {}
    for pair, count in data["duplicates"]["groups_across_sets"].items():
        first, _, second = pair.partition("/")
        if first == "train" and count:
            groups[second] = count
    return groups


def limits_of_training(data: dict[str, Any]) -> list[str]:
    """Return what training and the choice of the epoch mean for the figures of each set."""
    limits = [
        f"{count} groups of {name} are in the training set too; the figures of {name} flatter the "
        "detector."
        for name, count in groups_in_training(data).items()
        if name != "calibration"
    ]
    limits.append("The epoch was chosen on val, so the figures of val flatter the detector a bit.")
    return limits


def limits_of_data(data: dict[str, Any]) -> list[str]:
    """Return the shortcuts of the data set that a detector may have learnt."""
    limits = []
    for name, audit in data["sets"].items():
        shortcuts = audit["shortcuts"]
        worst = shortcuts.get("worst")
        if worst and shortcuts[worst] > data["shortcut_auc"] and name != "calibration":
            limits.append(
                f"In {name}, {worst} alone tells real from fake with AUC {shortcuts[worst]:.3f}; a "
                "detector may have learnt it instead of the manipulation."
            )
    return limits


def weakest_spots(tables: Tables) -> list[str]:
    """Return the slice and the perturbation with the lowest AUC, where there are any."""
    limits, intervals = [], tables["intervals"]
    slices = intervals[(intervals["slice"] != "all") & (intervals["metric"] == "auc")]
    if len(slices):
        worst = slices.loc[slices["value"].idxmin()]
        limits.append(
            f"The slice with the lowest AUC is {worst['slice']} of {worst['set']}: "
            f"{interval_of(worst, 'value')}."
        )
    perturbed = tables.get("robustness", pd.DataFrame())
    if len(perturbed):
        worst = perturbed.loc[perturbed["auc"].idxmin()]
        limits.append(
            f"The perturbation with the lowest AUC is {worst['perturbation']} at level "
            f"{worst['level']:g}: {interval_of(worst, 'auc')}."
        )
    return limits


def limits_of_sets(report: dict[str, Any]) -> list[str]:
    """Return what the sets together show, and what they are too small to show."""
    limits = []
    if "cross" in report and report["cross"]["worst_auc"] < report["pooled"]["auc"]:
        limits.append(
            "Scores are not comparable between sets: with the reals of one set and the fakes of "
            f"another, the AUC falls to {report['cross']['worst_auc']:.4f}; it is "
            f"{report['pooled']['auc']:.4f} over all sets together."
        )
    if "tpr_at_fpr_1e-4" not in report["val"]:
        limits.append("val has too few reals to measure a rate of one false alarm in ten thousand.")
    return limits


def interval_of(row: pd.Series, value: str) -> str:
    """Return a figure with the ends of its interval."""
    return f"{row[value]:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
