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


def read_set_scores(set_name: str) -> pd.DataFrame:
    """Return the scores of the present detector for a set, or for `robustness`.

    Raises UserError where the file is not what `predict` wrote with these weights.
    """
    return _read_scores(set_name, _read_views())


def read_labels_and_scores(set_name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the label table of a set and its scores, row by row; raises UserError."""
    path = paths.LABELS / f"{set_name}.csv"
    labels, views = read_labels(path), _read_views()
    scores = _read_scores(set_name, views)
    if views["labels"].get(set_name) != sha256_of(path):
        file = paths.SCORES / f"{set_name}.csv"
        raise UserError(f"{file}: not of the images of {path}; {REMEDY}")
    assert labels["img_name"].equals(scores["img_name"])
    return labels, scores


def read_evaluation() -> dict[str, Any]:
    """Return evaluation.json; raises UserError where it is damaged, or of other weights."""
    report = read_json(paths.EVALUATION, "weights", "val", "better_than_chance")
    if not _weights_sha256().startswith(report["weights"]):
        raise UserError(
            f"{paths.EVALUATION}: of other weights than {paths.MODEL}; evaluate again: `dvc repro "
            "--force evaluate`"
        )
    return report


def _read_views() -> dict[str, Any]:
    """Return what write_views wrote; raises UserError where it is of other weights."""
    views = read_json(paths.SCORED_VIEWS, "weights_sha256", "scores", "labels")
    if views["weights_sha256"] != _weights_sha256():
        raise UserError(f"{paths.SCORES}: the scores of other weights than {paths.MODEL}; {REMEDY}")
    return views


def _read_scores(set_name: str, views: dict[str, Any]) -> pd.DataFrame:
    """Return the scores of a set; raises UserError where they are not those that views.json has."""
    path = paths.SCORES / f"{set_name}.csv"
    if path.is_file() and views["scores"].get(set_name) != sha256_of(path):
        raise UserError(f"{path}: damaged, or not as `predict` wrote it; {REMEDY}")
    return read_scores(path)


def _weights_sha256() -> str:
    """Return the digest of the weights of the present detector."""
    return read_json(paths.CONFIG, "weights_sha256")["weights_sha256"]
