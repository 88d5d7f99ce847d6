"""Detectors to be judged: the labelled sets of the pipeline with scores of a file, or our own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import read_json
from stages.lib.core.labels import CLASS_NAMES, FAKE, read_labels
from stages.lib.evaluation.judging import CHANCE
from stages.lib.evaluation.scored_sets import labelled_scores, labelled_sets, perturbed_scores
from stages.lib.score_files.matching import KnownImages, Matched, match
from stages.lib.score_files.reading import Row, ScoreFile, read_score_file, shown
from stages.lib.score_files.scaling import fit_platt

OWN = "own"  # the name of the detector of this pipeline
CALIBRATION = "calibration"
MISSING = ("refuse", "wrong", "leave_out")
MOST_NAMED = 2  # sets that a message names
MOST_LETTERS = 40  # of an image that a message names
PERTURBED_COLUMNS = ("perturbation", "level")
UNPERTURBED = ("none", 0.0)
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
        "weights_sha256": read_json(paths.CONFIG, "weights_sha256")["weights_sha256"],
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
    is_any = scores.scale == "any"
    scale = fit_platt(targets, calibration[VALUE].to_numpy(), file) if is_any else (1.0, 0.0)
    scored = {name: _scored(table, scale) for name, table in judged.items()}
    facts = {
        "sha256": scores.sha256, "scale": scores.scale, "higher": scores.request.higher,
        "missing": missing, "num_rows": len(scores.rows), "num_extra": len(matched.extra),
        "coverage": coverage,
    }  # fmt: skip
    if is_any:
        facts |= {"platt": {"slope": scale[0], "offset": scale[1]}}
    return Detector(
        scores.request.name,
        {name: table for name, table in scored.items() if name != CALIBRATION},
        scored[CALIBRATION],
        facts,
        _notes(matched, scored, [name for name in everything if name not in judged]),
        _perturbed(perturbed, scores, known, scale, scored["val"]) if perturbed else None,
    )


def _perturbed(
    path: Path, scores: ScoreFile, known: KnownImages, scale: tuple[float, float], val: pd.DataFrame
) -> pd.DataFrame:
    """Return the scores of perturbed images, in the order of the unperturbed ones.

    The file has the columns of the other one, perturbation and level. Raises UserError where an
    image is none of val, or where a perturbation lacks an image or has it twice.
    """
    name_column, score_column = scores.columns
    request = replace(scores.request, path=path, name_column=name_column, more=PERTURBED_COLUMNS,
                      score_column=score_column, scale=scores.scale)  # fmt: skip
    images = {key: number for number, key in enumerate(zip(val["set"], val["row"], strict=True))}
    found: dict[tuple[str, float], dict[int, Row]] = {}
    for row in read_score_file(request).rows:
        at = f"{shown(path)}:{row.line}"
        image = images.get(known.find(row, shown(path)) or ("", -1))
        if image is None:
            raise UserError(f"{at}: {short(row.name)} is no judged image of val; remove its rows")
        variant = found.setdefault((row.more[0], _level(row, at)), {})
        if image in variant:
            what = short(" ".join(row.more))
            raise UserError(f"{at}: {short(row.name)} has a score for {what} in line "
                            f"{variant[image].line} already; remove one")  # fmt: skip
        variant[image] = row
    plain = found.get(UNPERTURBED, {})
    chosen = val.iloc[list(plain)]
    if not _has_both(chosen) or len(found) < 2 or any(
        one.keys() != plain.keys() for one in found.values()
    ):  # fmt: skip
        raise UserError(
            f"{shown(path)}: needs the same images of both classes for each perturbation and level "
            "and once as they are (none, level 0); write it with `python -m stages.tools.score`"
        )
    tables = [
        chosen[["img_name", "target", "group"]].assign(
            perturbation=kind, level=level, **{VALUE: [variant[image].value for image in plain]}
        )
        for (kind, level), variant in found.items()
    ]
    return _scored(pd.concat(tables, ignore_index=True), scale)


def _level(row: Row, at: str) -> float:
    """Return the level of a row; raises UserError that begins with `at`."""
    try:
        return float(row.more[1])
    except ValueError:
        raise UserError(f"{at}: level = {short(row.more[1])}: not a number; write the file with "
                        "`python -m stages.tools.score`") from None  # fmt: skip


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
    if not matched.values and matched.extra:
        ours = next(iter(tables.values()))["img_name"].iloc[0]
        raise UserError(
            f"{file}: none of its rows names an image of the pipeline: it has "
            f"{shown(matched.extra[0].name, MOST_LETTERS)}, and the pipeline "
            f"{shown(ours, MOST_LETTERS)}; write names or paths as in data/labels"
        )
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
        f"{file}: no score for {', '.join(named)}{more}, first {shown(first, MOST_LETTERS)}"
        f"{unknown}; "
        "add them, or choose --missing wrong or leave_out"
    )


def _filled(table: pd.DataFrame, scores: ScoreFile) -> pd.DataFrame:
    """Return a table in which an image without a value has the most wrong one of the file."""
    values = [row.value for row in scores.rows]
    wrong = np.where(table["target"] == FAKE, min(values), max(values))
    return table.assign(**{VALUE: table[VALUE].where(table[VALUE].notna(), wrong)})


def _scored(table: pd.DataFrame, scale: tuple[float, float]) -> pd.DataFrame:
    """Return a table with logits and scores; scale: slope and offset of the logits."""
    logits = scale[0] * table[VALUE] + scale[1]
    return table.assign(logit=logits, score=expit(logits))


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
    calibration = scored[CALIBRATION]
    auc = roc_auc_score(calibration["target"].astype(int), calibration["logit"])
    if auc < CHANCE:
        notes.append(
            f"The scores of calibration fall from real to fake (AUC {auc:.4f}): are they higher "
            "for reals (`--higher real`)?"
        )
    whole = pd.concat(scored.values())
    num_tied = whole[VALUE].nunique() - whole["score"].nunique()
    if num_tied > 0:
        notes.append(
            f"Scores that differ in the file, but lie so close to 0 or 1 that no threshold comes "
            f"between them: {num_tied}."
        )
    return notes
