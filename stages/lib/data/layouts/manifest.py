"""A manifest: one table with a row for each image or video, in a file in the data set's folder.

CSV, TSV, JSON lines or Parquet, with the columns that `data.manifest` names. Paths start at the
folder, or are absolute. Tables need about 1 kB of memory for each row.
"""

import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
from pyarrow import json, parquet

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.params import StageParams
from stages.lib.data.csv_rows import read_csv, refuse_twice
from stages.lib.data.layouts.columns import optional, targets_of, text_columns, where
from stages.lib.data.layouts.image_set import ROW_TYPES, ImageSet, sets_by_name
from stages.lib.data.layouts.words import SET_WORDS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class ManifestParams(StageParams):
    """Section `data.manifest`."""

    file: str | None
    path: str
    image: str
    label: str
    split: str
    family: str
    source: str
    group: str
    video: str
    labels: dict[str | int | bool, Literal[0, 1]]

    @property
    def columns(self) -> list[str]:
        """Those of the file that are read; no two with one name."""
        named = self.model_dump(exclude={"file", "image", "labels"})
        return list(dict.fromkeys(named.values()))


def manifest_sets(root: Path, params: ManifestParams) -> dict[str, ImageSet]:
    """Return the sets that a manifest lists; raises UserError for what it does not explain."""
    file = root / (params.file or "")
    if not file.is_file():
        raise UserError(f"data.manifest.file = '{params.file}': {file}: no such file")
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"data.manifest.file = '{params.file}': {file} is not a {', '.join(SUFFIXES)} file"
        )
    columns, table = read_columns(file, params.columns)
    for name, column in (("path", params.path), ("label", params.label)):
        if column not in table:
            hint = did_you_mean(column, columns) or f"; it has {short(', '.join(columns))}"
            raise UserError(f"{file}: has no column '{column}' (data.manifest.{name}){hint}")
    names = names_of(table[params.path], root, file)
    rows = rows_of(names, targets_of(table[params.label], params.labels, file), table, params)
    sets = sets_of_words(optional(table, params.split), file)
    refuse_unlabelled(rows, sets, file)
    return sets_by_name(root, rows, sets)


def rows_of(
    names: Sequence[str] | pd.Series,
    targets: pd.Series,
    table: pd.DataFrame,
    params: ManifestParams,
) -> pd.DataFrame:
    """Return rows with the columns of ROW_TYPES; table: their other columns as text, or none."""
    rows = {
        "img_name": names,
        "target": targets,
        "family": optional(table, params.family),
        "source": optional(table, params.source),
        "given_group": optional(table, params.group),
        "video": optional(table, params.video),
    }
    return pd.DataFrame(rows).astype(ROW_TYPES)


def read_columns(file: Path, wanted: Collection[str]) -> tuple[list[str], pd.DataFrame]:
    """Return the names of all columns, and the wanted ones as text, a missing cell empty.

    The index has the number of each row: of its line, where the file has lines. Raises UserError
    for a file that cannot be read, a line break in a cell, and a wanted column that is there twice.
    """
    kind = file.suffix.lower()
    try:
        if kind in SEPARATORS:
            columns, table = _read_lines(file, wanted, SEPARATORS[kind])
        else:
            columns, table = _read_typed(file, wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as {kind}: {short(error, 120)}") from None
    if not len(table):
        raise UserError(f"{file}: lists no image")
    return columns, table


def _read_lines(
    file: Path, wanted: Collection[str], separator: str
) -> tuple[list[str], pd.DataFrame]:
    """Return the names of all columns of a CSV, and the wanted ones."""
    columns, rows = read_csv(file.read_bytes(), str(file), separator)
    refuse_twice(columns, wanted, str(file))
    present = [column for column in wanted if column in columns]
    lines = [(line, *[cells[column] for column in present]) for line, cells in rows]
    table = pd.DataFrame(lines, columns=["line", *present]).set_index("line")
    return columns, table.astype("str")


def _read_typed(file: Path, wanted: Collection[str]) -> tuple[list[str], pd.DataFrame]:
    """Return the names of all columns of JSON lines or a Parquet file, and the wanted ones."""
    if file.suffix.lower() == ".parquet":
        columns = parquet.read_schema(file).names
        table = parquet.read_table(file, columns=[one for one in columns if one.strip() in wanted])
    else:
        table = json.read_json(file)
        columns = table.column_names
    columns = [name.strip() for name in columns]
    refuse_twice(columns, wanted, str(file))
    return columns, text_columns(table, wanted, file)


def names_of(paths: pd.Series, root: Path, file: Path) -> pd.Series:
    """Return paths as they start at the folder, with /."""
    names = paths.str.replace("\\", "/", regex=False)
    start = root.resolve().as_posix() + "/"
    names = names.map(lambda name: posixpath.normpath(name) if name else "")
    names = names.str.removeprefix(start)
    bad = (names == "") | names.str.contains("\0", regex=False)
    if bad.any():
        raise UserError(f"{where(file, int(bad.idxmax()))}: no path of an image")
    twice = names.duplicated()
    if twice.any():
        row = int(twice.idxmax())
        first = where(Path(file.name), int((names == names[row]).idxmax()))
        raise UserError(
            f"{where(file, row)}: '{short(names[row])}' is listed before, {first}; remove one"
        )
    return names


def sets_of_words(words: pd.Series, file: Path) -> pd.Series:
    """Return train, val or test for each row; train where there is no such column."""
    if words.isna().all():
        return pd.Series("train", index=words.index)
    sets = words.str.casefold().map(SET_WORDS)
    unknown = words.fillna("")[sets.isna()]
    if len(unknown):
        raise UserError(
            f"{where(file, int(unknown.index[0]))}: split '{short(unknown.iloc[0])}', expected "
            f"one of {', '.join(SET_WORDS)}"
        )
    return sets


def refuse_unlabelled(rows: pd.DataFrame, sets: pd.Series, file: Path) -> None:
    """Raise UserError for an image without a label that is not of the test set."""
    unlabelled = rows["target"].isna() & (sets != "test")
    if unlabelled.any():
        row = int(unlabelled.idxmax())
        raise UserError(
            f"{where(file, row)}: no label, and the {sets[row]} set needs one; give each image "
            "0 or 1, or put it into the test set"
        )
