"""What the cards of detectors have in common: their parts, and limits that the figures show."""

import re
from dataclasses import is_dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

RESULTS = {"auc": "AUC", "video_auc": "AUC of whole videos", "tpr_at_fpr_1e-2": "TPR at FPR 1e-2",
           "tpr_at_fpr_1e-3": "TPR at FPR 1e-3", "eer": "EER",
           "balanced_accuracy": "balanced accuracy", "log_loss": "log loss",
           "brier": "Brier score", "ece": "ECE",
           "ece_scaled": "ECE after temperature scaling"}  # fmt: skip
# What Markdown does not show as it is. Brackets do no harm, unless they make a link; nor does the
# underscore in a word.
MARKS = re.compile(r"[\\`*|~$]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")
Tables = dict[str, pd.DataFrame]


def fill(template: str, **content: Any) -> str:
    """Return a page in Markdown; template: the name of a file beside this one.

    All text in the content is plain: a name of the data that looks like Markdown or HTML is shown
    as it is written. What is Markdown stands in the templates.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(_plain(content))


def _plain(content: Any) -> Any:
    """Return the content of a page with every text in it, also keys, by plain_markdown."""
    if isinstance(content, str):
        return plain_markdown(content)
    if isinstance(content, pd.Series):
        content = content.to_dict()
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, dict):
        return {_plain(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content


def plain_markdown(text: str) -> str:
    """Return Markdown that shows the text as it is, in one line, also in a cell of a table."""
    return escape(MARKS.sub(r"\\\g<0>", " ".join(text.split())), quote=False)


def figures_of(report: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """Return what card_results.md.j2 and card_across.md.j2 show.

    report: that of metrics/evaluation.json; tables: those of metrics/tables by name.
    """
    whole = tables["intervals"][tables["intervals"]["slice"] == "all"]
    by_metric = whole.set_index(["metric", "set"]).sort_index()
    sets = list(whole["set"].unique())
    return {
        "report": report,
        "set_titles": [
            f"{name} ({report[name]['num_real']} real, {report[name]['num_fake']} fake)"
            for name in sets
        ],
        "results": [
            (
                title,
                [
                    by_metric.loc[(metric, name)] if (metric, name) in by_metric.index else None
                    for name in sets
                ],
            )
            for metric, title in RESULTS.items()
            if metric in by_metric.index.get_level_values("metric")
        ],
        "slices": slices_of(tables["intervals"]),
        "operating_points": tables["operating_points"].to_dict("records"),
        "cross": cross_of(tables["cross_auc"]),
    }


def slices_of(intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each slice with the rows of its metrics: {"set", "name", "auc", ...}."""
    parts = intervals[intervals["slice"] != "all"].groupby(["set", "slice"], sort=False)
    return [
        {"set": of, "name": name} | {row["metric"]: row for row in rows.to_dict("records")}
        for (of, name), rows in parts
    ]


def cross_of(cross: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return, for the reals of each set, the rows of Cross-AUC in the order of the sets."""
    parts = cross.groupby("reals_of", sort=False)
    return {of: rows.to_dict("records") for of, rows in parts}


def limits_of_data(data: dict[str, Any]) -> list[str]:
    """Return the shortcuts of the data set that a detector may have learnt."""
    limits = []
    for name, found in data["sets"].items():
        worst = found["shortcuts"].get("worst")
        if worst and found["shortcuts"][worst] > data["shortcut_auc"] and name != "calibration":
            limits.append(
                f"In {name}, {worst} alone tells real from fake with AUC "
                f"{found['shortcuts'][worst]:.3f}; a detector may have learnt it instead of the "
                "manipulation."
            )
    return limits


def weakest_slice(intervals: pd.DataFrame) -> list[str]:
    """Return the slice with the lowest AUC, where there are slices."""
    parts = intervals[(intervals["slice"] != "all") & (intervals["metric"] == "auc")]
    if not len(parts):
        return []
    worst = parts.loc[parts["value"].idxmin()]
    return [f"Weakest slice: {worst['slice']} of {worst['set']}, AUC {interval_of(worst)}."]


def seen_in_training(data: dict[str, Any]) -> dict[str, int]:
    """Return, by set, how many of its groups are in the training set too, where any are.

    data: what metrics/data.json says.
    """
    shared = data["duplicates"]["groups_across_sets"]
    pairs = {pair.partition("/"): count for pair, count in shared.items() if count}
    return {name: count for (first, _, name), count in pairs.items() if first == "train"}


def limits_of_training(data: dict[str, Any]) -> list[str]:
    """Return a limit for each set of which the detector of the pipeline has seen groups."""
    return [
        f"{count} groups of {name} are in the training set too; the figures of {name} flatter the "
        "detector."
        for name, count in seen_in_training(data).items()
        if name != "calibration"
    ]


def limits_of_sets(report: dict[str, Any]) -> list[str]:
    """Return what the sets together show, and what they are too small to show."""
    limits = []
    if "cross" in report and report["cross"]["worst_auc"] < report["pooled"]["auc"]:
        limits.append(
            "Scores are not comparable from set to set: worst Cross-AUC "
            f"{report['cross']['worst_auc']:.4f}, {report['pooled']['auc']:.4f} pooled."
        )
    if "tpr_at_fpr_1e-4" not in report["val"]:
        limits.append("val has too few reals to measure a rate of one false alarm in ten thousand.")
    return limits


def interval_of(row: pd.Series, value: str = "value") -> str:
    """Return a figure with the ends of its interval."""
    return f"{row[value]:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
