"""Reading and writing the CSV tables that stages hand on."""

from pathlib import Path

import pandas as pd

SCORE_TYPES = {"img_name": "str", "logit": "float64", "score": "float64"}


def read_table(path: Path, types: dict[str, str] | None = None) -> pd.DataFrame:
    """Read a CSV that write_table wrote; types: dtypes by column, guessed where not given.

    Only an empty cell is a missing value. By default pandas also reads words as missing that may be
    the name of an image, a family or a source, such as NA, None and null.
    """
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read all tables of a folder by the names of their files."""
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}


def read_scores(path: Path) -> pd.DataFrame:
    """Read a score table: img_name, logit and score, float64, and the columns of robustness.csv."""
    return read_table(path, SCORE_TYPES)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV with the same bytes on every system."""
    table.to_csv(path, index=False, lineterminator="\n")
