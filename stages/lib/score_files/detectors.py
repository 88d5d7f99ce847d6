"""Detectors to be judged: the labelled sets of the pipeline with scores of a file, or our own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import read_json
from stages.lib.core.labels import CLASS_NAMES, FAKE, read_labels
from stages.lib.evaluation.scored_sets import labelled_scores, labelled_sets, perturbed_scores
from stages.lib.score_files.matching import KnownImages, Matched, match
from stages.lib.score_files.reading import ScoreFile, read_score_file, shown
from stages.lib.score_files.scaling import Scale, fit_scale

OWN = "own"  # the name of the detector of this pipeline
CALIBRATION = "calibration"
MISSING = ("refuse", "wrong", "leave_out")
MOST_NAMED = 2  # sets that a message names
VALUE = "value"  # the column of the numbers of a file, NaN where an image has none
Sets = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Detector:
    """Scores of the labelled sets, and what is to be said about them."""

    name: str
    sets: Sets
    calibration: pd.DataFrame
    facts: dict[str, Any]  # for evaluation.json
    notes: list[str]  # for people: what was not judged as the file has it
    perturbed: pd.DataFrame | None = None  # as stages/lib/evaluation/robustness.py says


def own_detector() -> Detector:
    """Return the detector of this pipeline, with the scores of `predict`."""
    sets, calibration = labelled_sets(), labelled_scores(CALIBRATION)
    everything = {CALIBRATION: calibration} | sets
    facts = {
        "weights_sha256": read_json(paths.CONFIG)["weights_sha256"],
        "scale": "logit", "higher": "fake", "missing": "refuse",
        "coverage": {name: _coverage(table["logit"]) for name, table in everything.items()},
    }  # fmt: skip
    perturbed = perturbed_scores(sets["val"])
    return Detector(OWN, sets, calibration, facts, [], perturbed if len(perturbed) else None)


def detector_of(
    scores: ScoreFile, known: KnownImages, missing: str, perturbed: Path | None = None
) -> Detector:
    """Return the detector of a score file; missing: one of MISSING; perturbed: its second file.

    `wrong` gives a real without a score the highest value of the file, and a fake the lowest one.
    In calibration such images are left out, because no threshold can come from them. Raises
    UserError where scores are missing and must not be, and where val or calibration has none.
    """
    file, matched = shown(scores.request.path), match(scores, known)
    sets = labelled_sets(lambda split: _values_of(split, matched))
    everything = {CALIBRATION: _values_of(CALIBRATION, matched)} | sets
    coverage = {name: _coverage(table[VALUE]) for name, table in everything.items()}
    if missing == "refuse":
        _refuse(everything, matched, file)
    judged = everything
    if missing == "wrong":
        judged = {name: _filled(table, scores) for name, table in sets.items()}
        judged[CALIBRATION] = everything[CALIBRATION]
    judged = {name: table.dropna(subset=[VALUE]) for name, table in judged.items()}
    judged = {name: table for name, table in judged.items() if _has_both(table)}
    for name in (CALIBRATION, "val"):
        if name not in judged:
            raise UserError(
                f"{file}: no scores for both classes of {name}, which every figure needs; add the "
                "images of the validation set"
            )
    calibration = judged[CALIBRATION]
    targets = calibration["target"].to_numpy(dtype=int)
    scale = fit_scale(scores.scale, targets, calibration[VALUE].to_numpy(), file)
    scored = {name: _scored(table, scale) for name, table in judged.items()}
    facts = {
        "sha256": scores.sha256, "scale": scores.scale, "higher": scores.request.higher,
        "missing": missing, "num_rows": len(scores.rows), "num_extra": len(matched.extra),
        "coverage": coverage,
    }  # fmt: skip
    if scores.scale == "any":
        facts |= {"platt": {"slope": scale.slope, "offset": scale.offset}}
    return Detector(
        scores.request.name,
        {name: table for name, table in scored.items() if name != CALIBRATION},
        scored[CALIBRATION],
        facts,
        _notes(matched, scored, [name for name in everything if name not in judged]),
        _perturbed(perturbed, scores, scale, scored["val"]) if perturbed else None,
    )


def _perturbed(path: Path, scores: ScoreFile, scale: Scale, val: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of perturbed images; raises UserError where some are missing.

    The file has img_name, perturbation and level, and the column of scores that the other one has.
    """
    name_column, score_column = scores.columns
    request = replace(scores.request, path=path, name_column=name_column,
                      score_column=score_column, scale=scores.scale)  # fmt: skip
    rows = read_score_file(request).rows
    table = pd.read_csv(path, usecols=["perturbation", "level"]).assign(
        img_name=[row.name for row in rows],
        score=scale.scores(np.array([row.value for row in rows])),
    )
    counts = table.groupby(["perturbation", "level"])["img_name"].nunique()
    if "none" not in counts.index.get_level_values(0) or counts.nunique() > 1:
        raise UserError(
            f"{shown(path)}: needs the same images for each perturbation and level, and once as "
            "they are (perturbation none); write it with `python -m stages.tools.score`"
        )
    known = val[["img_name", "target", "group"]]
    found = table.merge(known, on="img_name", how="left", validate="many_to_one")
    if found["target"].isna().any():
        first = found["img_name"][found["target"].isna()].iloc[0]
        raise UserError(f"{shown(path)}: {short(first)} is no judged image of val; remove its rows")
    return found


def _values_of(split: str, matched: Matched) -> pd.DataFrame:
    """Return the labelled images of a split with their values."""
    labels = read_labels(paths.LABELS / f"{split}.csv").dropna(subset=["target"])
    keys = zip(labels["set"], labels["row"], strict=True)
    values = [matched.values.get(key, np.nan) for key in keys]
    return labels.assign(**{VALUE: np.array(values, dtype=float)})


def _coverage(values: pd.Series) -> dict[str, int]:
    return {"num_images": len(values), "num_scored": int(values.notna().sum())}


def _has_both(table: pd.DataFrame) -> bool:
    return table["target"].nunique() == len(CLASS_NAMES)


def _refuse(tables: Sets, matched: Matched, file: str) -> None:
    """Raise UserError where a score is missing."""
    lacking = {name: table[table[VALUE].isna()] for name, table in tables.items()}
    lacking = {name: table for name, table in lacking.items() if len(table)}
    if not lacking:
        return
    named = [
        f"{len(table)} of {len(tables[name])} images of {short(name, 16)}"
        for name, table in list(lacking.items())[:MOST_NAMED]
    ]
    more = " and more" if len(lacking) > MOST_NAMED else ""
    extra = matched.extra
    unknown = f"; {len(extra)} rows name no image, first in line {extra[0].line}" if extra else ""
    first = next(iter(lacking.values()))["img_name"].iloc[0]
    raise UserError(
        f"{file}: no score for {', '.join(named)}{more}, first {short(first, 24)}{unknown}; "
        "add them, or choose --missing wrong or leave_out"
    )


def _filled(table: pd.DataFrame, scores: ScoreFile) -> pd.DataFrame:
    """Return a table in which an image without a value has the most wrong one of the file."""
    values = [row.value for row in scores.rows]
    wrong = np.where(table["target"] == FAKE, min(values), max(values))
    return table.assign(**{VALUE: table[VALUE].where(table[VALUE].notna(), wrong)})


def _scored(table: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    values = table[VALUE].to_numpy()
    return table.assign(logit=scale.logits(values), score=scale.scores(values))


def _notes(matched: Matched, scored: Sets, left_out: list[str]) -> list[str]:
    """Return a line for each thing that the figures do not show."""
    notes = []
    if matched.extra:
        first = matched.extra[0]
        name = short(first.name).replace("`", "'")
        notes.append(
            f"Rows that name no image of the pipeline: {len(matched.extra)}, first `{name}` in "
            f"line {first.line}."
        )
    if left_out:
        notes.append(f"Not judged, for lack of scores of both classes: {', '.join(left_out)}.")
    whole = pd.concat(scored.values())
    num_tied = whole[VALUE].nunique() - whole["score"].nunique()
    if num_tied > 0:
        notes.append(
            f"Scores that differ in the file and are tied as probabilities, too close to 0 or 1: "
            f"{num_tied}."
        )
    return notes
