"""Reading and writing the tables that stages hand on: labels and scores."""

from pathlib import Path

import pandas as pd

LABEL_TYPES = {
    "img_name": "str",
    "target": "Int8",  # 0 real, 1 fake, empty unknown
    "family": "str",
    "source": "str",
    "width": "int64",  # pixels
    "height": "int64",
    "jpeg_quality": "Int8",  # 1 to 100, empty for other formats
    "set": "str",  # where the image lies: data/packed/SET, row ROW
    "row": "int64",
    "group": "int64",  # near-duplicates share one
}


def read_labels(path: Path) -> pd.DataFrame:
    """Read a label table written by stages.prepare."""
    return pd.read_csv(path, dtype=LABEL_TYPES)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV, the same bytes on every system."""
    table.to_csv(path, index=False, lineterminator="\n")
