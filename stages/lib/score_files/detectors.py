"""Detectors to be judged: the labelled sets of the pipeline with scores of a file, or our own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import read_json
from stages.lib.core.labels import FAKE, has_both_classes, read_labels
from stages.lib.evaluation.report import (
    CHANCE,
    labelled_scores,
    labelled_sets,
    perturbed_scores,
)
from stages.lib.score_files.matching import ImageIndex, Matches, match
from stages.lib.score_files.perturbed import read_perturbed
from stages.lib.score_files.reading import (
    ANY,
    LOGIT,
    POLARITIES,
    ScoreFile,
    ScoreRow,
    shown,
)
from stages.lib.score_files.scaling import IDENTITY, VALUE, Scaling, fit_platt, with_scores

OWN = "own"  # the name of the detector of this pipeline
CALIBRATION = "calibration"
REFUSE, WRONG, LEAVE_OUT = MISSING = ("refuse", "wrong", "leave_out")
MOST_NAMED = 2  # sets that a message names
MOST_LETTERS = 40  # of an image that a message names
Sets = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class ScoredDetector:
    """Scores of the labelled sets, and what is to be said about them."""

    name: str
    sets: Sets
    calibration: pd.DataFrame
    facts: dict[str, Any]  # for evaluation.json
    notes: list[str]  # for people: what was not judged as the file has it
    perturbed: pd.DataFrame | None = None  # as evaluation.tables.robustness_table says


def own_detector() -> ScoredDetector:
    """Return the detector of this pipeline, with the scores of `predict`."""
    sets, calibration = labelled_sets(), labelled_scores(CALIBRATION)
    tables = {CALIBRATION: calibration} | sets
    facts = {
        "weights_sha256": read_json(paths.CONFIG, "weights_sha256")["weights_sha256"],
        "scale": LOGIT,
        "higher": POLARITIES[0],
        "missing": REFUSE,
        "coverage": {name: _coverage(table["logit"]) for name, table in tables.items()},
    }
    perturbed = perturbed_scores(sets["val"])
    return ScoredDetector(OWN, sets, calibration, facts, [], perturbed if len(perturbed) else None)


def foreign_detector(scores: ScoreFile, index: ImageIndex, missing: str) -> ScoredDetector:
    """Return the detector of a score file; missing: one of MISSING.

    Raises UserError where scores are missing and must not be, and where val or calibration has
    none.
    """
    request, matches = scores.request, match(scores, index)
    tables = {CALIBRATION: _table_with_values(CALIBRATION, matches)}
    tables |= labelled_sets(lambda table_name: _table_with_values(table_name, matches))
    judged = _judged_tables(tables, scores, matches, missing)
    scaling = _scaling_of(scores, judged[CALIBRATION])
    scored = {name: with_scores(table, scaling) for name, table in judged.items()}
    facts = {
        "sha256": scores.sha256,
        "scale": scores.scale,
        "higher": request.higher,
        "missing": missing,
        "num_rows": len(scores.rows),
        "num_extra": len(matches.extra),
        "coverage": {name: _coverage(table[VALUE]) for name, table in tables.items()},
    }
    if scores.scale == ANY:
        facts["platt"] = scaling._asdict()
    perturbed = None
    if request.perturbed:
        perturbed = read_perturbed(request.perturbed, scores, index, scaling, scored["val"])
    return ScoredDetector(
        request.name,
        {name: table for name, table in scored.items() if name != CALIBRATION},
        scored[CALIBRATION],
        facts,
        _notes(matches, scored, [name for name in tables if name not in judged]),
        perturbed,
    )


# ---------------------------------------------------------------------------------------------
# Values of images, and images without one


def _table_with_values(table_name: str, matches: Matches) -> pd.DataFrame:
    """Return the labelled images of a label table with their values."""
    labels = read_labels(paths.LABELS / f"{table_name}.csv").dropna(subset=["target"])
    images = zip(labels["set"], labels["row"], strict=True)
    values = [matches.values.get(image, np.nan) for image in images]
    return labels.assign(**{VALUE: np.array(values, dtype=float)})


def _coverage(values: pd.Series) -> dict[str, int]:
    return {"num_images": len(values), "num_scored": int(values.notna().sum())}


def _judged_tables(tables: Sets, scores: ScoreFile, matches: Matches, missing: str) -> Sets:
    """Return the tables of both classes in which every image has a value; raises UserError.

    `wrong` gives a real without a score the highest value of the file, and a fake the lowest one.
    In calibration such images are left out, because no threshold can come from them.
    """
    file = shown(scores.request.path)
    if missing == REFUSE:
        _check_nothing_is_missing(tables, matches, file)
    judged = {}
    for name, table in tables.items():
        if missing == WRONG and name != CALIBRATION:
            table = _with_wrong_values(table, scores.rows)
        table = table.dropna(subset=[VALUE])
        if has_both_classes(table):
            judged[name] = table
    for name in (CALIBRATION, "val"):
        if name not in judged:
            raise UserError(
                f"{file}: no scores for both classes of {name}, which every figure needs; add the "
                "images of the validation set"
            )
    return judged


def _check_nothing_is_missing(tables: Sets, matches: Matches, file: str) -> None:
    """Raise UserError where a score is missing."""
    extra = matches.extra
    if extra and not matches.values:
        our_image = tables[CALIBRATION]["img_name"].iloc[0]
        raise UserError(
            f"{file}: none of its rows names an image of the pipeline: it has "
            f"{shown(extra[0].name, MOST_LETTERS)}, and the pipeline "
            f"{shown(our_image, MOST_LETTERS)}; write names or paths as in data/labels"
        )
    missing_images, numbers = [], []
    for name, table in tables.items():
        names = table["img_name"][table[VALUE].isna()].tolist()
        if names:
            missing_images += names
            numbers.append(f"{len(names)} of {len(table)} images of {short(name, 16)}")
    if not missing_images:
        return
    named = ", ".join(numbers[:MOST_NAMED])
    if len(numbers) > MOST_NAMED:
        named += " and more"
    unknown = f"; {len(extra)} rows name no image, first in line {extra[0].line}" if extra else ""
    raise UserError(
        f"{file}: no score for {named}, first "
        f"{shown(missing_images[0], MOST_LETTERS)}{unknown}; add them, or choose --missing "
        f"{WRONG} or {LEAVE_OUT}"
    )


def _with_wrong_values(table: pd.DataFrame, rows: list[ScoreRow]) -> pd.DataFrame:
    """Return a table in which an image without a value has the most wrong one of the file."""
    values = [row.value for row in rows]
    wrong = np.where(table["target"] == FAKE, min(values), max(values))
    return table.assign(**{VALUE: table[VALUE].where(table[VALUE].notna(), wrong)})


# ---------------------------------------------------------------------------------------------
# Scores


def _scaling_of(scores: ScoreFile, calibration: pd.DataFrame) -> Scaling:
    """Return how the numbers of a file become logits; raises UserError as fit_platt does."""
    if scores.scale != ANY:
        return IDENTITY
    targets, values = calibration["target"].to_numpy(dtype=int), calibration[VALUE].to_numpy()
    return fit_platt(targets, values, shown(scores.request.path))


def _notes(matches: Matches, scored: Sets, left_out: list[str]) -> list[str]:
    """Return a line for each thing that the figures do not show."""
    notes = []
    if matches.extra:
        first = matches.extra[0]
        name = short(first.name).replace("`", "'")
        notes.append(
            f"Rows that name no image of the pipeline: {len(matches.extra)}, first `{name}` in "
            f"line {first.line}."
        )
    if left_out:
        notes.append(f"Not judged, for lack of scores of both classes: {', '.join(left_out)}.")
    calibration = scored[CALIBRATION]
    auc = roc_auc_score(calibration["target"].astype(int), calibration["logit"])
    if auc < CHANCE:
        notes.append(
            f"The scores of calibration fall from real to fake (AUC {auc:.4f}): are they higher "
            "for reals (`--higher real`)?"
        )
    everything = pd.concat(scored.values())
    num_tied = everything[VALUE].nunique() - everything["score"].nunique()
    if num_tied > 0:
        notes.append(
            f"Scores that differ in the file, but lie so close to 0 or 1 that no threshold comes "
            f"between them: {num_tied}."
        )
    return notes
