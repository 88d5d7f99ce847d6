"""Image folders with metadata, as hubs share data sets.

    metadata.csv    train/metadata.jsonl    test/metadata.parquet

A file of metadata lies beside its images or above them, one for all or one for each set. Its column
`file_name` has the path of each image from there; `data.manifest` names the others. Without a
column of labels, the folders of an image say its class.
"""

from pathlib import Path

import pandas as pd

from stages.lib.core.errors import UserError
from stages.lib.data.layouts.columns import optional, targets_of
from stages.lib.data.layouts.image_set import ImageSet, folders_in, sets_by_name
from stages.lib.data.layouts.manifest import (
    ManifestParams,
    names_of,
    read_columns,
    rows_of,
    sets_of_words,
)
from stages.lib.data.layouts.words import class_of, class_of_folders, set_of

FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAME_COLUMN = "file_name"


def metadata_files(root: Path) -> list[Path]:
    """Return the files of metadata in a folder, or else those in the folders in it."""
    for folders in ([root], folders_in(root)):
        files = [folder / name for folder in folders for name in FILES]
        if files := [file for file in files if file.is_file()]:
            return files
    return []


def has_metadata(root: Path) -> bool:
    """Return whether a folder has metadata of images."""
    return any(_names_files(file) for file in metadata_files(root))


def _names_files(file: Path) -> bool:
    try:
        return NAME_COLUMN in read_columns(file, [NAME_COLUMN])[0]
    except UserError:
        return False


def imagefolder_sets(root: Path, params: ManifestParams) -> dict[str, ImageSet]:
    """Return the sets that metadata lists; raises UserError for what it does not explain."""
    parts = []
    for file in metadata_files(root):
        parts.append(_rows_of(file, root, params))
    if not parts:
        raise UserError(f"{root}: has none of {', '.join(FILES)}")
    rows, sets = (pd.concat(columns, ignore_index=True) for columns in zip(*parts, strict=True))
    return sets_by_name(root, rows, sets)


def _rows_of(file: Path, root: Path, params: ManifestParams) -> tuple[pd.DataFrame, pd.Series]:
    """Return the rows of one file of metadata, and the set of each."""
    _, table = read_columns(file, [NAME_COLUMN, *params.columns])
    if NAME_COLUMN not in table:
        raise UserError(f"{file}: has no column '{NAME_COLUMN}'; give each image its path there")
    folder = file.parent.relative_to(root).as_posix()
    names = names_of(table[NAME_COLUMN], file.parent, file)
    names = names if folder == "." else f"{folder}/" + names
    if params.label in table:
        targets = targets_of(table[params.label], params.labels, file, class_of)
    else:
        targets = names.map(class_of_folders).astype("Int8")
    sets = sets_of_words(optional(table, params.split), file)
    if params.split not in table and (name := set_of(folder)):
        sets = pd.Series(name, index=table.index)
    unlabelled = targets.isna() & (sets != "test")
    if unlabelled.any():
        name = names[unlabelled].iloc[0]
        raise UserError(f"{file}: {name} has no label, and its set needs one")
    return rows_of(names, targets, table, params), sets
