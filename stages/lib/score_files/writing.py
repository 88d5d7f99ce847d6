"""What is written of judged detectors: figures, cards and the comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.files import write_text
from stages.lib.core.tables import write_table
from stages.lib.evaluation.report import (
    DIGITS,
    EvaluateParams,
    add_robustness,
    evaluate_detector,
    summary,
    write_report,
    write_tables,
)
from stages.lib.report.card import Tables, figures_of, fill, groups_in_training, limits_of
from stages.lib.score_files.comparison import LEVEL, Comparison, words
from stages.lib.score_files.delong import FEWEST_GROUPS
from stages.lib.score_files.detectors import LEAVE_OUT, OWN, REFUSE, WRONG, ScoredDetector
from stages.lib.score_files.reading import ANY, LOGIT, PROBABILITY

CARD, EVALUATION, TABLES = "card.md", "evaluation.json", "tables"
FILES = {CARD, EVALUATION, TABLES}  # in the folder of a detector
COMPARISON = "comparison"
DIGITS_OF_DIGEST = 12
SCALE_WORDS = {
    PROBABILITY: "probabilities",
    LOGIT: "logits, log(P(fake) / P(real))",
    ANY: "any numbers, mapped to logits by Platt scaling on calibration",
}
MISSING_WORDS = {
    REFUSE: "none is missing",
    WRONG: "judged wrongly: a real has the highest score of the file, a fake the lowest; left "
    "out of calibration",
    LEAVE_OUT: "left out",
}


def opening(detector: ScoredDetector) -> list[str]:
    """Return the lines that say what of a detector is judged."""
    coverage = [
        f"{name} {numbers['num_scored']} of {numbers['num_images']}"
        for name, numbers in detector.facts["coverage"].items()
    ]
    lines = [f"scores: {', '.join(coverage)}", *detector.notes]
    return [f"{detector.name}: {line}" for line in lines]


def write_detector(
    detector: ScoredDetector, params: EvaluateParams, data: dict[str, Any], folder: Path
) -> list[str]:
    """Evaluate a detector and write its files into a folder; return the lines that sum it up.

    data: what metrics/data.json says.
    """
    report, tables = evaluate_detector(detector.sets, detector.calibration, params)
    if detector.perturbed is not None:
        add_robustness(report, tables, detector.perturbed)
    (folder / TABLES).mkdir(parents=True)
    write_tables(tables, folder / TABLES)
    write_report({"judged": detector.facts} | report, folder / EVALUATION)
    write_text(folder / CARD, card(detector, report, tables, data))
    return [f"{detector.name}: {line}" for line in summary(report, tables)]


def card(
    detector: ScoredDetector, report: dict[str, Any], tables: Tables, data: dict[str, Any]
) -> str:
    """Return the card of a detector in Markdown."""
    facts = detector.facts
    coverage = facts["coverage"].values()
    is_complete = all(numbers["num_scored"] == numbers["num_images"] for numbers in coverage)
    limits = [*detector.notes]
    if detector.perturbed is None:
        limits.append("What perturbed images do to the scores is not known (--perturbed).")
    limits.append("Scores alone do not show which verdicts are unsure.")
    if facts["scale"] == ANY:
        limits.append("Log loss, Brier score and ECE are those of the scores after Platt scaling.")
    return fill(
        "judged_card.md.j2",
        **figures_of(report, tables),
        name=detector.name,
        facts=facts,
        robustness=tables["robustness"].to_dict("records") if "robustness" in tables else [],
        judged=_what(facts),
        scale=f"{SCALE_WORDS[facts['scale']]}; higher for {facts['higher']}",
        missing=MISSING_WORDS[REFUSE if is_complete else facts["missing"]],
        generated_sample=data["generated_sample"],
        limits=limits + limits_of(report, data, tables, is_own=detector.name == OWN),
    )


def _what(facts: dict[str, Any]) -> str:
    """Say which scores were judged."""
    if "weights_sha256" in facts:
        digits = facts["weights_sha256"][:DIGITS_OF_DIGEST]
        return f"the scores of this pipeline, of weights with SHA-256 {digits}"
    digits = facts["sha256"][:DIGITS_OF_DIGEST]
    return f"a file of {facts['num_rows']} scores with SHA-256 {digits}"


def write_comparison(comparisons: Sequence[Comparison], data: dict[str, Any], folder: Path) -> str:
    """Write the pairs of all sets and what they mean; return that.

    data: what metrics/data.json says.
    """
    pairs = pd.concat([comparison.pairs for comparison in comparisons])
    rounded = pairs.round({name: DIGITS for name in pairs if not name.startswith("p_")})
    write_table(rounded, folder / f"{COMPARISON}.csv")
    sentences = {}
    for comparison in comparisons:
        sentences[comparison.name] = [words(pair) for _, pair in comparison.pairs.iterrows()]
    text = fill(
        "comparison.md.j2",
        comparisons=comparisons,
        sentences=sentences,
        level=LEVEL,
        fewest=FEWEST_GROUPS,
        own=OWN,
        seen=groups_in_training(data),
    )
    write_text(folder / f"{COMPARISON}.md", text)
    return text
