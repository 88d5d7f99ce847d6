"""What a label is, and the label tables of the sets, which stages.prepare writes."""

import re
from pathlib import Path

import pandas as pd

from stages.lib.core.digests import check_digest, write_digest
from stages.lib.core.tables import read_table, write_table

REAL, FAKE = 0, 1  # a score is P(fake)
CLASS_NAMES = ("real", "fake")

LABEL_TYPES = {
    "img_name": "str",
    "target": "Int8",  # 0 real, 1 fake, empty: unknown
    "family": "str",  # the manipulation method of a fake, empty: unknown
    "source": "str",  # the collection that an image is from, empty: unknown
    "width": "int64",  # pixels
    "height": "int64",
    "jpeg_quality": "Int8",  # 1 to 100, empty for other formats
    "face": "Float64",  # size of the largest face in pixels, 0: no face, empty: not looked for
    "set": "str",  # the image is row `row` of data/packed/`set`
    "row": "int64",
    "sha256": "str",  # of the bytes of the image
    "group": "int64",  # near-duplicates share one, and images of one person, video or source
    "video": "str",  # frames of one video share it, empty: a single image
}


def name_of_place(place: str) -> str:
    """Return a set of the column `set` as a user names it: train, dfdc/val, celebrities, test."""
    return re.sub(r"^training/|\.set(?=/|$)", "", place)


def has_both_classes(table: pd.DataFrame) -> bool:
    """Return whether a table has reals and fakes."""
    return table["target"].nunique() == len(CLASS_NAMES)


def whole_sources(table: pd.DataFrame) -> list[str]:
    """Return the sources of which a table has both classes, in order of their names."""
    num_classes = table.groupby("source")["target"].nunique()
    return list(num_classes.index[num_classes == len(CLASS_NAMES)])


def write_labels(table: pd.DataFrame, path: Path) -> None:
    """Write the label table of a set, in types that do not depend on the values."""
    write_table(table[list(LABEL_TYPES)].astype(LABEL_TYPES), path)
    write_digest(path)


def read_labels(path: Path) -> pd.DataFrame:
    """Read what write_labels wrote; raises UserError where it is another table or damaged."""
    check_digest(path, "prepare")
    return read_table(path, LABEL_TYPES)
