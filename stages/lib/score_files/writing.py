"""Writing what was found of judged detectors: figures, cards and the comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.files import write_text
from stages.lib.core.tables import write_table
from stages.lib.evaluation.delong import FEWEST_GROUPS
from stages.lib.evaluation.judging import (
    DIGITS,
    EvaluateParams,
    add_robustness,
    judge,
    summary,
    write_report,
    write_tables,
)
from stages.lib.report.card import (
    Tables,
    figures_of,
    fill,
    limits_of_data,
    limits_of_sets,
    limits_of_training,
    seen_in_training,
    weakest_slice,
)
from stages.lib.score_files.comparison import LEVEL, Comparison, words
from stages.lib.score_files.detectors import OWN, Detector

CARD, EVALUATION, TABLES = "card.md", "evaluation.json", "tables"
OURS = {CARD, EVALUATION, TABLES}  # in the folder of a detector
COMPARISON = "comparison"
DIGITS_OF_DIGEST = 12
SCALE_WORDS = {
    "probability": "probabilities",
    "logit": "logits, log(P(fake) / P(real))",
    "any": "any numbers, mapped to logits by Platt scaling on calibration",
}
MISSING_WORDS = {
    "refuse": "none is missing",
    "wrong": "judged wrongly: a real has the highest score of the file, a fake the lowest; left "
             "out of calibration",
    "leave_out": "left out",
}  # fmt: skip


def opening(detector: Detector) -> list[str]:
    """Return the lines that say what of a detector is judged."""
    covered = [
        f"{name} {found['num_scored']} of {found['num_images']}"
        for name, found in detector.facts["coverage"].items()
    ]
    lines = [f"scores: {', '.join(covered)}", *detector.notes]
    return [f"{detector.name}: {line}" for line in lines]


def write_detector(
    detector: Detector, params: EvaluateParams, data: dict[str, Any], folder: Path
) -> list[str]:
    """Judge a detector and write its files into a folder; return the lines that sum it up.

    data: what metrics/data.json says.
    """
    report, tables = judge(detector.sets, detector.calibration, params)
    if detector.perturbed is not None:
        add_robustness(report, tables, detector.perturbed)
    (folder / TABLES).mkdir(parents=True)
    write_tables(tables, folder / TABLES)
    write_report({"judged": detector.facts} | report, folder / EVALUATION)
    write_text(folder / CARD, card(detector, report, tables, data))
    return [f"{detector.name}: {line}" for line in summary(report, tables["intervals"])]


def card(detector: Detector, report: dict[str, Any], tables: Tables, data: dict[str, Any]) -> str:
    """Return the card of a detector in Markdown."""
    facts = detector.facts
    is_complete = all(one["num_scored"] == one["num_images"] for one in facts["coverage"].values())
    return fill(
        "judged_card.md.j2",
        **figures_of(report, tables),
        name=detector.name,
        facts=facts,
        robustness=tables["robustness"].to_dict("records") if "robustness" in tables else [],
        judged=_what(facts),
        scale=f"{SCALE_WORDS[facts['scale']]}; higher for {facts['higher']}",
        missing=MISSING_WORDS["refuse" if is_complete else facts["missing"]],
        generated_sample=data["generated_sample"],
        limits=limits_of(detector, report, tables, data),
    )


def _what(facts: dict[str, Any]) -> str:
    """Say which scores were judged."""
    if "weights_sha256" in facts:
        digits = facts["weights_sha256"][:DIGITS_OF_DIGEST]
        return f"the scores of this pipeline, of weights with SHA-256 {digits}"
    digits = facts["sha256"][:DIGITS_OF_DIGEST]
    return f"a file of {facts['num_rows']} scores with SHA-256 {digits}"


def limits_of(
    detector: Detector, report: dict[str, Any], tables: Tables, data: dict[str, Any]
) -> list[str]:
    """Return the limits that the scores and the files of the pipeline show."""
    limits = [*detector.notes]
    if detector.name == OWN:
        limits += limits_of_training(data)
        limits.append("The epoch was chosen on val, whose figures flatter the detector a little.")
    else:
        limits.append("Whether the detector was trained or chosen on these images is not known.")
    if detector.perturbed is None:
        limits.append("What perturbed images do to the scores is not known (--perturbed).")
    limits.append("Scores alone do not show verdicts that are unsure.")
    if detector.facts["scale"] == "any":
        limits.append("Log loss, Brier score and ECE are those of the scores after Platt scaling.")
    limits += limits_of_data(data) + weakest_slice(tables["intervals"]) + limits_of_sets(report)
    if data["generated_sample"]:
        limits.append("Drawn faces are not photographs: nothing here carries over to deepfakes.")
    return limits


def write_comparison(comparisons: Sequence[Comparison], data: dict[str, Any], folder: Path) -> str:
    """Write the pairs of all sets and what they mean; return that.

    data: what metrics/data.json says.
    """
    sentences = {one.name: [words(pair) for _, pair in one.pairs.iterrows()] for one in comparisons}
    pairs = pd.concat([one.pairs for one in comparisons])
    rounded = pairs.round({name: DIGITS for name in pairs if not name.startswith("p_")})
    write_table(rounded, folder / f"{COMPARISON}.csv")
    text = fill("comparison.md.j2", comparisons=comparisons, sentences=sentences, level=LEVEL,
                fewest=FEWEST_GROUPS, own=OWN, seen=seen_in_training(data))  # fmt: skip
    write_text(folder / f"{COMPARISON}.md", text)
    return text
