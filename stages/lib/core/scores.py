"""Score files, and what they are of: views.json says it, and every reader compares it.

Scores of other weights, of other label tables or in another order would give figures of a detector
that nobody has.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json, sha256_of, write_json
from stages.lib.core.labels import read_labels
from stages.lib.core.tables import read_scores

REMEDY = "score again: `dvc repro --force predict`"


def write_views(folder: Path, weights_sha256: str, views: list[str]) -> None:
    """Write views.json beside the score files in a folder.

    It says whose scores they are, which views have this score as their mean, and the SHA-256 of
    each score file and of each label table that was scored.
    """
    content = {
        "weights_sha256": weights_sha256,
        "views": views,
        "scores": {file.stem: sha256_of(file) for file in sorted(folder.glob("*.csv"))},
        "labels": {file.stem: sha256_of(file) for file in sorted(paths.LABELS.glob("*.csv"))},
    }
    write_json(folder / paths.SCORED_VIEWS.name, content)


def scores_of(split: str) -> pd.DataFrame:
    """Return the scores of the present detector for a split, or for `robustness`.

    Raises UserError where the file is not what `predict` wrote with these weights.
    """
    return _checked_scores(split, _scored())


def _scored() -> dict[str, Any]:
    """Return what write_views wrote; raises UserError where it is of other weights."""
    known = read_json(paths.SCORED_VIEWS, "weights_sha256", "scores", "labels")
    if known["weights_sha256"] != _weights():
        raise UserError(f"{paths.SCORES}: the scores of other weights than {paths.MODEL}; {REMEDY}")
    return known


def _checked_scores(split: str, known: dict[str, Any]) -> pd.DataFrame:
    path = paths.SCORES / f"{split}.csv"
    if path.is_file() and known["scores"].get(split) != sha256_of(path):
        raise UserError(f"{path}: damaged, or not as `predict` wrote it; {REMEDY}")
    return read_scores(path)


def _weights() -> str:
    return read_json(paths.CONFIG, "weights_sha256")["weights_sha256"]


def read_evaluation() -> dict[str, Any]:
    """Return evaluation.json; raises UserError where it is damaged, or of other weights."""
    report = read_json(paths.EVALUATION, "weights", "val", "better_than_chance")
    if not _weights().startswith(report["weights"]):
        raise UserError(
            f"{paths.EVALUATION}: of other weights than {paths.MODEL}; evaluate again: `dvc repro "
            "--force evaluate`"
        )
    return report


def labels_and_scores(split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the label table of a split and its scores, row by row; raises UserError."""
    path = paths.LABELS / f"{split}.csv"
    labels, known = read_labels(path), _scored()
    scores = _checked_scores(split, known)
    if known["labels"].get(split) != sha256_of(path):
        raise UserError(f"{paths.SCORES / f'{split}.csv'}: not of the images of {path}; {REMEDY}")
    assert labels["img_name"].equals(scores["img_name"])
    return labels, scores
