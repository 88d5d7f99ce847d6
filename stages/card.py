"""Write the model card: what the detector is, what it was measured to do, and its limits.

metrics/, data/model/config.json
  ->  metrics/model_card.md, data/card/model_card.html (the same with figures)
Run: python -m stages.card

Every sentence follows from a file of the pipeline; stages/lib/report/model_card.md.j2 has the text.
The headings follow Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from stages.lib import paths
from stages.lib.core.files import fresh_folder, read_json, write_text
from stages.lib.core.running import run_stage
from stages.lib.core.tables import read_tables
from stages.lib.report import html
from stages.lib.report.figures import draw_all

FIGURES = ("robustness", "roc", "calibration", "scores")
MOST_PARAMETERS = 200e6  # a rule of the competition
RESULTS = {"auc": "AUC", "tpr_at_fpr_1e-2": "TPR at FPR 1e-2", "tpr_at_fpr_1e-3": "TPR at FPR 1e-3",
           "eer": "EER", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss",
           "brier": "Brier score", "ece": "ECE",
           "ece_scaled": "ECE after temperature scaling"}  # fmt: skip
OTHER_DATA = r"in12k|in21k|in22k|inw21k|_ft_|laion|clip|jft|ig1b|yfcc|openai|webli|lvd|swag|seer"
Tables = dict[str, pd.DataFrame]


def main() -> None:
    """Write the card as Markdown and as HTML."""
    config, report, data = map(read_json, (paths.CONFIG, paths.EVALUATION, paths.DATA_REPORT))
    text = render(config, report, data, read_tables(paths.TABLES))
    write_text(paths.CARD, text)
    with fresh_folder(paths.CARD_PAGE.parent) as folder:
        write_text(folder / paths.CARD_PAGE.name, as_html(text))
    print(f"{paths.CARD}, {paths.CARD_PAGE}")


def render(
    config: dict[str, Any], report: dict[str, Any], data: dict[str, Any], tables: Tables
) -> str:
    """Return the card in Markdown; tables: those of metrics/tables by name."""
    environment = Environment(
        loader=FileSystemLoader(Path(html.__file__).parent),
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    whole = tables["intervals"][tables["intervals"]["slice"] == "all"]
    by_metric = whole.set_index(["metric", "set"]).sort_index()
    sets = list(whole["set"].unique())
    shared = data["duplicates"]["groups_across_splits"]
    return environment.get_template("model_card.md.j2").render(
        config=config,
        report=report,
        data=data,
        shared_groups=[f"{pair} {count}" for pair, count in shared.items() if count],
        set_titles=[
            f"{name} ({report[name]['num_real']} real, {report[name]['num_fake']} fake)"
            for name in sets
        ],
        results=[
            (title, [by_metric.loc[(metric, name)] for name in sets])
            for metric, title in RESULTS.items()
        ],
        slices=slices_of(tables["intervals"]),
        operating_points=tables["operating_points"].to_dict("records"),
        verdicts=tables["verdicts"][tables["verdicts"]["slice"] == "all"].to_dict("records"),
        cross=cross_of(tables["cross_auc"]),
        robustness=tables["robustness"].to_dict("records"),
        limits=limits_of(config, report, data, tables),
        rules=rules_of(config),
    )


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


def limits_of(
    config: dict[str, Any], report: dict[str, Any], data: dict[str, Any], tables: Tables
) -> list[str]:
    """Return the limits that the files show."""
    limits = ["The epoch was chosen on val, whose figures therefore flatter the detector a little."]
    for name, found in data["splits"].items():
        worst = found["shortcuts"].get("worst")
        if worst and found["shortcuts"][worst] > data["shortcut_auc"] and name != "calibration":
            limits.append(
                f"In {name}, {worst} alone tells real from fake with AUC "
                f"{found['shortcuts'][worst]:.3f}; a detector may have learnt it instead of the "
                "manipulation."
            )
    if config["preprocessing"]["reencode"] is None:
        limits.append("Traces of earlier compression reach the detector (`train.reencode` is off).")
    intervals = tables["intervals"]
    parts = intervals[(intervals["slice"] != "all") & (intervals["metric"] == "auc")]
    if len(parts):
        worst = parts.loc[parts["value"].idxmin()]
        limits.append(f"Weakest slice: {worst['slice']} of {worst['set']}, AUC {_interval(worst)}.")
    robustness = tables["robustness"]
    if len(robustness):
        worst = robustness.loc[robustness["auc"].idxmin()]
        limits.append(
            f"Weakest against {worst['perturbation']} at level {worst['level']:g}: AUC "
            f"{_interval(worst, 'auc')}."
        )
    if "cross" in report and report["cross"]["worst_auc"] < report["pooled"]["auc"]:
        limits.append(
            "Scores are not comparable from set to set: worst Cross-AUC "
            f"{report['cross']['worst_auc']:.4f}, {report['pooled']['auc']:.4f} pooled."
        )
    if "tpr_at_fpr_1e-4" not in report["val"]:
        limits.append("val has too few reals to measure a rate of one false alarm in ten thousand.")
    if data["generated_sample"]:
        limits.append("Drawn faces are not photographs: nothing here carries over to deepfakes.")
    return limits


def _interval(row: pd.Series, value: str = "value") -> str:
    return f"{row[value]:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def rules_of(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return each rule of the competition, whether it is kept, and how that is known."""
    few = "yes" if config["num_parameters"] <= MOST_PARAMETERS else "**no**"
    return [
        ("at most 200 M parameters", few, f"{config['num_parameters']:,}"),
        ("pretrained on ImageNet-1K only", *pretraining(config["initial_weights"])),
        ("one model", "yes", "a submission has the scores of this one"),
    ]


def pretraining(initial_weights: str) -> tuple[str, str]:
    """Return whether the first weights came from ImageNet-1K alone, and how that is known."""
    if initial_weights == "random":
        return "yes", "no pretraining"
    kind, _, tag = initial_weights.partition(":")
    if kind != "hub":
        return "not known", f"weights from a file, {initial_weights}"
    if re.search(OTHER_DATA, f"_{tag}"):
        return "**no**", f"timm's weights '{tag}' have seen other images"
    if re.search(r"in1k(_\d+)?$", tag):
        return "yes", f"timm's weights '{tag}'"
    return "not known", f"timm's weights '{tag}'"


def as_html(text: str) -> str:
    """Return the card as one HTML page, with figures."""
    figures = draw_all(read_tables(paths.PLOTS))
    pictures = [
        html.html_image(html.as_png(figures[name]), name) for name in FIGURES if name in figures
    ]
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return html.html_page("Model card", body + "<h2>Curves (val)</h2>\n" + "\n".join(pictures))


if __name__ == "__main__":
    run_stage(main)
