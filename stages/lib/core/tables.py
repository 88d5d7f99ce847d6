"""Reading and writing the CSV tables that stages hand on."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib import paths
from stages.lib.core.digests import check_digest, checked_tables
from stages.lib.core.errors import UserError, short

REMEDY = "run `dvc repro` to write it again"
SCORE_TYPES = {"img_name": "str", "logit": "float64", "score": "float64"}


def read_table(
    path: Path, types: dict[str, str] | None = None, remedy: str = REMEDY
) -> pd.DataFrame:
    """Read a CSV that write_table wrote; types: dtypes by column, guessed where not given.

    Only an empty cell is a missing value. By default pandas also reads words as missing that may be
    the name of an image, a family or a source, such as NA, None and null. Raises UserError, with
    the remedy, where the file is missing or damaged, lacks a column of `types`, or has a value of
    another type.
    """
    try:
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: damaged: {short(error, 100)}; {remedy}") from None
    for column in types or ():
        if column not in table:
            raise UserError(f"{path}: no column {column}; {remedy}")
    for column in table.select_dtypes(["str", "object"]):
        broken = table[column].str.contains("[\r\n]", regex=True, na=False)
        if broken.any():  # a stray quote makes one cell of all rows up to the next one
            line = int(broken.to_numpy().argmax()) + 2
            raise UserError(f"{path}:{line}: damaged: {column} has a line break in it; {remedy}")
    return table


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the tables that `evaluate` wrote into a folder, by the names of their files.

    Raises UserError where one is missing or damaged.
    """
    return {path.stem: read_table(path) for path in checked_tables(folder, "evaluate")}


def read_history() -> pd.DataFrame:
    """Read the epochs of the training; raises UserError where they are missing or damaged."""
    check_digest(paths.HISTORY, "train")
    return read_table(paths.HISTORY)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a score table: img_name, logit and score, float64, and the columns of robustness.csv.

    Raises UserError as read_table does, and for a score that is not a number in [0, 1].
    """
    table = read_table(path, SCORE_TYPES)
    wrong = table["img_name"][~(table["score"].between(0, 1) & np.isfinite(table["logit"]))]
    if len(wrong):
        raise UserError(
            f"{path}: {wrong.iloc[0]} has a score that is not a number in [0, 1] ({len(wrong)} "
            "such images); run `dvc repro --force predict`"
        )
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV with the same bytes on every system."""
    table.to_csv(path, index=False, lineterminator="\n")
