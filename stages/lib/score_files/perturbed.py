"""The scores of perturbed images of val, which are a second file of a detector."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import has_both_classes
from stages.lib.score_files.matching import ImageIndex
from stages.lib.score_files.reading import ScoreFile, ScoreRow, read_score_file, shown
from stages.lib.score_files.scaling import VALUE, Scaling, with_scores

COLUMNS = ("perturbation", "level")
UNPERTURBED = ("none", 0.0)
# Of each perturbation and level: the row of each image, by its place in val.
RowsOfVariants = dict[tuple[str, float], dict[int, ScoreRow]]


def read_perturbed(
    path: Path, scores: ScoreFile, index: ImageIndex, scaling: Scaling, val: pd.DataFrame
) -> pd.DataFrame:
    """Return the scores of perturbed images, in the order of the unperturbed ones.

    scores and scaling: of the first file of the detector. Raises UserError where an image is none
    of val, or where an image of a perturbation is missing or is there twice.
    """
    return _perturbed_table(path, _rows_of_variants(path, scores, index, val), scaling, val)


def _rows_of_variants(
    path: Path, scores: ScoreFile, index: ImageIndex, val: pd.DataFrame
) -> RowsOfVariants:
    """Return the rows of a file of perturbed images; raises UserError where it names one twice.

    It has the columns of the other file, perturbation and level.
    """
    name_column, score_column = scores.columns
    request = replace(
        scores.request,
        path=path,
        name_column=name_column,
        score_column=score_column,
        scale=scores.scale,
    )
    images = zip(val["set"], val["row"], strict=True)
    places = {image: place for place, image in enumerate(images)}
    rows_of_variants: RowsOfVariants = {}
    for row in read_score_file(request, COLUMNS).rows:
        at = f"{shown(path)}:{row.line}"
        image = index.find(row, shown(path))
        if image not in places:
            raise UserError(f"{at}: {short(row.name)} is no judged image of val; remove its rows")
        kind, level = row.more_cells
        rows = rows_of_variants.setdefault((kind, _level(level, at)), {})
        place = places[image]
        if place in rows:
            raise UserError(
                f"{at}: {short(row.name)} has a score for {short(f'{kind} {level}')} in line "
                f"{rows[place].line} already; remove one"
            )
        rows[place] = row
    return rows_of_variants


def _perturbed_table(
    path: Path, rows_of_variants: RowsOfVariants, scaling: Scaling, val: pd.DataFrame
) -> pd.DataFrame:
    """Return the scores of perturbed images, in the order of the unperturbed ones.

    Raises UserError where an image of a perturbation is missing.
    """
    places = list(rows_of_variants.get(UNPERTURBED, {}))
    chosen = val.iloc[places]
    are_same = all(rows.keys() == set(places) for rows in rows_of_variants.values())
    if not are_same or not has_both_classes(chosen) or len(rows_of_variants) < 2:
        raise UserError(
            f"{shown(path)}: needs the same images of both classes for each perturbation and level "
            "and once as they are (none, level 0); write it with `python -m stages.tools.score`"
        )
    tables = []
    for (kind, level), rows in rows_of_variants.items():
        values = [rows[place].value for place in places]
        table = chosen[["img_name", "target", "group"]]
        tables.append(table.assign(perturbation=kind, level=level, **{VALUE: values}))
    return with_scores(pd.concat(tables, ignore_index=True), scaling)


def _level(cell: str, at: str) -> float:
    """Return the level of a perturbation; raises UserError that begins with `at`."""
    try:
        return float(cell)
    except ValueError:
        raise UserError(
            f"{at}: level = {short(cell)}: not a number; write the file with `python -m "
            "stages.tools.score`"
        ) from None
