"""A manifest: one table with a row for each image or video, in a file in the data set's folder.

CSV, TSV, JSON lines or Parquet, with the columns that `data.manifest` names. Paths start at the
folder, or are absolute. Tables need about 1 kB of memory for each row.
"""

import posixpath
from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
from pyarrow import json, parquet

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.core.params import StageParams
from stages.lib.data.csv_rows import read_csv, refuse_twice
from stages.lib.data.layouts.image_set import ROW_TYPES, SET_NAMES, ImageSet
from stages.lib.data.layouts.words import SET_WORDS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
PLAIN_LABELS = {"0": REAL, "1": FAKE}
TRUTHS = {"false": "0", "true": "1"}


class ManifestParams(StageParams):
    """Section `data.manifest`."""

    file: str | None
    path: str
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
        named = self.model_dump(exclude={"file", "labels"})
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
    columns, table = _read(file, params.columns)
    for name, column in (("path", params.path), ("label", params.label)):
        if column not in table:
            hint = did_you_mean(column, columns) or f"; it has {short(', '.join(columns))}"
            raise UserError(f"{file}: has no column '{column}' (data.manifest.{name}){hint}")
    rows = pd.DataFrame(
        {
            "img_name": _names(table[params.path], root, file),
            "target": _targets(table[params.label], params.labels, file),
            "family": _optional(table, params.family),
            "source": _optional(table, params.source),
            "given_group": _optional(table, params.group),
            "video": _optional(table, params.video),
        }
    ).astype(ROW_TYPES)
    sets = _sets(_optional(table, params.split), file)
    _check(rows, sets, file)
    return {
        name: ImageSet(name, root, rows[sets == name].reset_index(drop=True))
        for name in SET_NAMES
        if (sets == name).any()
    }


def _read(file: Path, wanted: Collection[str]) -> tuple[list[str], pd.DataFrame]:
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
        read = [name for name in columns if name.strip() in wanted]
        table = parquet.read_table(file, columns=read)
    else:
        table = json.read_json(file)
        columns = table.column_names
    columns = [name.strip() for name in columns]
    refuse_twice(columns, wanted, str(file))
    table = table.rename_columns([name.strip() for name in table.column_names])
    text = pd.DataFrame({name: _as_text(table[name]) for name in wanted if name in columns})
    text.index = pd.RangeIndex(1, len(table) + 1)
    for name in text:
        broken = text[name].str.contains("[\r\n]", regex=True)
        if broken.any():
            row = int(broken.idxmax())
            raise UserError(
                f"{_where(file, row)}: '{short(text[name][row])}' has a line break in it; take it "
                f"out of the column {short(name)}"
            )
    return columns, text.apply(lambda column: column.str.strip())


def _as_text(column: pa.ChunkedArray) -> pd.Series:
    """Return a column as text: whole numbers without a point, empty for a missing cell."""
    if pa.types.is_floating(column.type):
        values = column.to_pandas()
        if (values.dropna() % 1 == 0).all():
            column = pa.chunked_array([pa.array(values.astype("Int64"))])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.string()).fill_null("").to_pandas().astype("str")


def _where(file: Path, row: int) -> str:
    """Return where the row of that number is, in a file with or without lines."""
    return f"{file}: row {row}" if file.suffix.lower() == ".parquet" else f"{file}:{row}"


def _names(paths: pd.Series, root: Path, file: Path) -> pd.Series:
    """Return paths as they start at the folder, with /."""
    names = paths.str.replace("\\", "/", regex=False)
    start = root.resolve().as_posix() + "/"
    names = names.map(lambda name: posixpath.normpath(name) if name else "")
    names = names.str.removeprefix(start)
    bad = (names == "") | names.str.contains("\0", regex=False)
    if bad.any():
        raise UserError(f"{_where(file, int(bad.idxmax()))}: no path of an image")
    twice = names.duplicated()
    if twice.any():
        row = int(twice.idxmax())
        first = _where(Path(file.name), int((names == names[row]).idxmax()))
        raise UserError(
            f"{_where(file, row)}: '{short(names[row])}' is listed before, {first}; remove one"
        )
    return names


def _targets(words: pd.Series, labels: Mapping[str | int | bool, int], file: Path) -> pd.Series:
    """Return 0, 1 or empty for each word; raises UserError with all words that have no meaning.

    A number means the same in every spelling: who says what 1 is also says what 1.0 and True are.
    """
    meanings: dict[str, int] = {}
    for word, label in labels.items():
        if meanings.setdefault(_plain(str(word)), label) != label:
            raise UserError(
                f"data.manifest.labels: '{short(word)}' is there twice, in two spellings, as 0 and "
                "as 1; remove one"
            )
    plain = {word: _plain(word) for word in words.unique()}
    targets = words.map(plain).map(PLAIN_LABELS | meanings).astype("Int8")
    unknown = sorted(words[targets.isna() & (words != "")].unique())
    if unknown:
        listed = ", ".join(repr(short(word, 30)) for word in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"{file}: labels without a meaning: {listed}{more}; say in data.manifest.labels which "
            "are 0 (real) and which 1 (fake)"
        )
    return targets


def _plain(word: str) -> str:
    """Return a label in one spelling: no capitals, a number as short as it gets, 1 for true."""
    word = word.strip().casefold()
    try:
        number = Decimal(word.replace("_", "x"))  # Python would read 1_0 as 10
        return str(number.normalize() + 0) if number.is_finite() else word
    except ArithmeticError:
        return TRUTHS.get(word, word)


def _sets(words: pd.Series, file: Path) -> pd.Series:
    """Return train, val or test for each row; train where there is no such column."""
    if words.isna().all():
        return pd.Series("train", index=words.index)
    sets = words.str.casefold().map(SET_WORDS)
    unknown = words.fillna("")[sets.isna()]
    if len(unknown):
        raise UserError(
            f"{_where(file, int(unknown.index[0]))}: split '{short(unknown.iloc[0])}', expected "
            f"one of {', '.join(SET_WORDS)}"
        )
    return sets


def _optional(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column, missing where its cell is empty, or where there is no such column."""
    if column not in table:
        return pd.Series(None, index=table.index, dtype="str")
    return table[column].mask(table[column] == "")


def _check(rows: pd.DataFrame, sets: pd.Series, file: Path) -> None:
    """Raise UserError for an image without a label that is not of the test set."""
    unlabelled = rows["target"].isna() & (sets != "test")
    if unlabelled.any():
        row = int(unlabelled.idxmax())
        raise UserError(
            f"{_where(file, row)}: no label, and the {sets[row]} set needs one; give each image "
            "0 or 1, or put it into the test set"
        )
