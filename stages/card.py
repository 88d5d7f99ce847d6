"""Write the model card: what the detector is, what it was measured to do, and what not to expect.

params.yaml: data.root; metrics/, data/model
  ->  metrics/model_card.md, data/card/model_card.html (the same with figures), and in MLflow
Run: python -m stages.card

Every sentence follows from a file of the pipeline; nothing is written by hand (the headings follow
Mitchell et al. 2019, "Model Cards for Model Reporting").
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from stages.lib.errors import run_stage
from stages.lib.figures import draw_all
from stages.lib.files import fresh_folder, write_text
from stages.lib.pages import as_png, html_image, html_page
from stages.lib.params import SAMPLE_ROOT, DataParams, load_params
from stages.lib.tracking import tracker_of

METRICS = Path("metrics")
PLOTS = METRICS / "plots"
MODEL = Path("data/model")
CARD = METRICS / "model_card.md"
HTML = Path("data/card")
FIGURES = ("robustness", "roc", "calibration", "scores")
MOST_PARAMETERS = 200e6  # the competition's rule
RESULTS = {"auc": "AUC", "tpr_at_fpr_1e-2": "TPR at FPR 1e-2", "tpr_at_fpr_1e-3": "TPR at FPR 1e-3",
           "eer": "EER", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss",
           "brier": "Brier score", "ece": "ECE",
           "ece_scaled": "ECE after temperature scaling"}  # fmt: skip
OTHER_DATA = r"in12k|in21k|in22k|inw21k|_ft_|laion|clip|jft|ig1b|yfcc|openai|webli|lvd|swag|seer"


def main() -> None:
    """Write the card as Markdown and as HTML."""
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    report = json.loads((METRICS / "evaluation.json").read_text(encoding="utf-8"))
    data = json.loads((METRICS / "data.json").read_text(encoding="utf-8"))
    names = ("intervals", "operating_points", "cross_auc", "robustness")
    tables = {name: pd.read_csv(METRICS / f"{name}.csv") for name in names}
    drawn = load_params("data", DataParams).root == str(SAMPLE_ROOT)
    text = "\n\n".join(
        [
            head(config, report, drawn),
            data_section(data),
            results_section(tables["intervals"], report),
            slices_section(tables["intervals"]),
            operating_section(tables["operating_points"]),
            cross_section(tables["cross_auc"]),
            robustness_section(tables["robustness"], report),
            limits_section(config, report, data, tables, drawn),
            rules_section(config),
        ]
    )
    write_text(CARD, text + "\n")
    with fresh_folder(HTML) as folder:
        write_text(folder / "model_card.html", as_html(text))
    print(f"{CARD}, {HTML / 'model_card.html'}")
    tracker = tracker_of(MODEL)
    tracker.log_file(CARD)
    tracker.log_file(HTML / "model_card.html")


def head(config: dict[str, Any], report: dict[str, Any], drawn: bool) -> str:
    """Say what the detector is and what it is for."""
    side, reencode = (config["preprocessing"][name] for name in ("image_size", "reencode"))
    again = f", re-encoded as JPEG of quality {reencode[0]} to {reencode[1]}" if reencode else ""
    millions = config["num_parameters"] / 1e6
    facts = [
        ("architecture", f"{config['model']} (timm), {millions:.1f} M parameters"),
        ("weights", f"SHA-256 {report['weights']}..., epoch {config['best_epoch']}"),
        ("trained from", config["initial_weights"]),
        ("input", f"RGB, {side} x {side} pixels{again}"),
        ("output", "P(fake), 0 to 1; real = 0, fake = 1"),
        ("threshold", f"{report['threshold']:.4f}, from {report['num_calibration']} images that "
                      "took no part in training or in choosing the epoch"),
        ("temperature", f"{report['temperature']:.3f}, from the same images"),
    ]  # fmt: skip
    warning = [
        "> **Learnt from the embedded generated sample, drawn faces.** Nothing on this page "
        "measures how well deepfakes are detected."
    ]
    return "\n\n".join(
        [
            f"# Model card: {config['model']}, real or fake",
            *(warning if drawn else []),
            "Written by `python -m stages.card` from the pipeline's files. Intervals are 95 % "
            "bootstrap intervals in which near-duplicates are drawn together.",
            markdown_table(["", ""], facts),
            "**Use.** To rank photographs of faces for a person's attention. A score is no proof, "
            "and the figures below hold for pictures like those they were measured on.",
        ]
    )


def data_section(data: dict[str, Any]) -> str:
    """Say what the splits hold and how they are kept apart."""
    rows = [
        [name, found["real"], found["fake"], found["unlabelled"], found["num_groups"],
         ", ".join(f"{kind} {count}" for kind, count in found["families"].items())]
        for name, found in data["splits"].items()
    ]  # fmt: skip
    header = ["split", "real", "fake", "unlabelled", "near-duplicate groups", "families of fakes"]
    shared = {k: v for k, v in data["duplicates"]["groups_across_splits"].items() if v}
    across = ", ".join(f"{pair} {count}" for pair, count in shared.items()) or "none"
    return "\n\n".join(
        [
            "## Data",
            markdown_table(header, rows),
            "train teaches, val chooses the epoch, calibration (a part of val, cut by "
            "near-duplicate groups) sets threshold and temperature; nothing else was seen before "
            f"evaluation. Near-duplicate groups found in two splits: {across}. Images left out as "
            f"unreadable: {data['bad_images']['count']}.",
        ]
    )


def results_section(intervals: pd.DataFrame, report: dict[str, Any]) -> str:
    """List every labelled set's figures."""
    whole = intervals[intervals["slice"] == "all"].set_index(["set", "metric"])
    sets = whole.index.get_level_values("set").unique()
    rows = []
    for metric, title in RESULTS.items():
        rows.append([title, *(_interval(whole.loc[(name, metric)]) for name in sets)])
    counts = [f"{name} ({report[name]['num_real']} real, {report[name]['num_fake']} fake)"
              for name in sets]  # fmt: skip
    return "\n\n".join(["## Results", markdown_table(["", *counts], rows)])


def slices_section(intervals: pd.DataFrame) -> str:
    """List the slices of every set."""
    parts = intervals[intervals["slice"] != "all"]
    rows = []
    for (name, part), found in parts.groupby(["set", "slice"], sort=False):
        by_metric = found.set_index("metric")
        cells = [
            _interval(by_metric.loc[metric]) if metric in by_metric.index else ""
            for metric in ("auc", "tpr", "fpr")
        ]
        counted = by_metric.loc["auc"]
        rows.append([name, part, *cells, f"{counted.num_real}, {counted.num_fake}"])
    header = ["set", "slice", "AUC", "fakes found", "reals called fake", "reals, fakes (AUC)"]
    explanation = (
        "Found and called at the one threshold above. A slice without reals (or fakes) of its own "
        "has its AUC against all of the set's."
    )
    return "\n\n".join(["## Slices", explanation, markdown_table(header, rows)])


def operating_section(points: pd.DataFrame) -> str:
    """List what a low rate of false alarms costs."""
    rows = [
        [f"{row.wanted_fpr:g}", f"{row.threshold:.4f}", row.set,
         f"{row.tpr:.4f} [{row.tpr_low:.4f}, {row.tpr_high:.4f}]",
         f"{row.false_alarms_per_million:,} [{1e6 * row.fpr_low:,.0f}, {1e6 * row.fpr_high:,.0f}]",
         f"{row.num_real}, {row.num_fake}"]
        for row in points.itertuples()
    ]  # fmt: skip
    header = ["wanted FPR", "threshold", "set", "fakes found",
              "false alarms per million reals", "reals, fakes"]  # fmt: skip
    notes = [
        f"The thresholds were set on {points['calibration_reals'].iloc[0]} calibration reals, and "
        "the figures measured on the sets."
    ]
    few = points.loc[~points["enough_reals"], "wanted_fpr"].unique()
    notes += [
        f"**For {wanted:g} those are too few**: the threshold lies just above the highest of their "
        f"scores; {1 / wanted:,.0f} and more are needed."
        for wanted in few
    ]
    return "\n\n".join(["## Points of operation", " ".join(notes), markdown_table(header, rows)])


def cross_section(cross: pd.DataFrame) -> str:
    """List the AUC of each set's reals against each set's fakes."""
    if cross.empty:
        text = (
            "One labelled set only, so nothing says how scores compare from one source of pictures "
            "to another (`data.evaluation_sets`)."
        )
        return f"## Across sets\n\n{text}"
    sets = cross["reals_of"].unique()
    cells = cross.set_index(["reals_of", "fakes_of"])
    rows = [[of, *(_interval(cells.loc[(of, other)], "auc") for other in sets)] for of in sets]
    header = ["AUC: reals of", *(f"fakes of {name}" for name in sets)]
    return "\n\n".join(["## Across sets", markdown_table(header, rows)])


def robustness_section(table: pd.DataFrame, report: dict[str, Any]) -> str:
    """List what is left where the pictures are perturbed."""
    if table.empty:
        return "## Robustness\n\nNot measured (`predict.robustness_images` is 0)."
    rows = [
        [row.perturbation, f"{row.level:g}", _interval(row, "auc"), f"{row.flip_rate:.1%}"]
        for row in table.itertuples()
    ]
    first = table.iloc[0]
    header = ["perturbation", "level", "AUC", "verdicts that flip"]
    found = report["robustness"]
    about = (
        f"{first.num_real} real and {first.num_fake} fake validation images, perturbed alike. Mean "
        f"AUC over the perturbations: {found['mean_auc']:.4f} [{found['mean_auc_low']:.4f}, "
        f"{found['mean_auc_high']:.4f}]."
    )
    return "\n\n".join(["## Robustness", about, markdown_table(header, rows)])


def limits_section(
    config: dict[str, Any],
    report: dict[str, Any],
    data: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    drawn: bool,
) -> str:
    """List the limits that the files show."""
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
        limits.append(f"Weakest slice: {worst.slice} of {worst.set}, AUC {_interval(worst)}.")
    perturbed = tables["robustness"]
    if len(perturbed):
        worst = perturbed.loc[perturbed["auc"].idxmin()]
        limits.append(
            f"Weakest against {worst.perturbation} at level {worst.level:g}: AUC "
            f"{_interval(worst, 'auc')}."
        )
    if "cross" in report and report["cross"]["worst_auc"] < report["pooled"]["auc"]:
        limits.append(
            f"Scores are not comparable from set to set: worst Cross-AUC "
            f"{report['cross']['worst_auc']:.4f}, {report['pooled']['auc']:.4f} pooled."
        )
    if "tpr_at_fpr_1e-4" not in report["val"]:
        limits.append("val has too few reals to say anything of one false alarm in ten thousand.")
    if drawn:
        limits.append("Drawn faces are not photographs: nothing here carries over to deepfakes.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


def rules_section(config: dict[str, Any]) -> str:
    """Say whether the competition's rules are kept, as far as the files tell."""
    verdict = "yes" if config["num_parameters"] <= MOST_PARAMETERS else "**no**"
    rows = [
        ["at most 200 M parameters", verdict, f"{config['num_parameters']:,}"],
        ["pretrained on ImageNet-1K only", *pretraining(config["initial_weights"])],
        ["one model", "yes", "a submission holds the scores of this one"],
    ]
    return "\n\n".join(["## The competition's rules", markdown_table(["rule", "kept", ""], rows)])


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


# ---------------------------------------------------------------------------------------------
# Text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _interval(row: Any, value: str = "value") -> str:
    return f"{getattr(row, value):.4f} [{row.low:.4f}, {row.high:.4f}]"


def as_html(text: str) -> str:
    """Return the card as one HTML page, with figures."""
    curves = {path.stem: pd.read_csv(path) for path in sorted(PLOTS.glob("*.csv"))}
    figures = draw_all(curves | {"history": pd.read_csv(MODEL / "history.csv")})
    pictures = []
    for name in FIGURES:
        if name in figures:
            pictures.append(html_image(as_png(figures[name]), name))
    body = MarkdownIt("commonmark").enable("table").render(text)
    return html_page("Model card", body + "<h2>Curves (val)</h2>\n" + "\n".join(pictures))


if __name__ == "__main__":
    run_stage(main)
