"""A manifest: one table with a row for each image or video, in a file in the data set's folder.

CSV, TSV, JSON lines or Parquet, with the columns that `data.manifest` names. Paths start at the
folder, or are absolute. Tables are read by pyarrow, column by column, and need about 1 kB of
memory for each row.
"""

import posixpath
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
from pyarrow import csv, json, parquet

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.core.params import StageParams
from stages.lib.layouts.image_set import ROW_TYPES, SET_NAMES, ImageSet
from stages.lib.layouts.words import SET_WORDS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PLAIN_LABELS = {"0": REAL, "1": FAKE, "0.0": REAL, "1.0": FAKE, "false": REAL, "true": FAKE}


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


def manifest_sets(root: Path, params: ManifestParams) -> dict[str, ImageSet]:
    """Return the sets that a manifest lists; raises UserError for what it does not explain."""
    file = root / (params.file or "")
    if not file.is_file():
        raise UserError(f"data.manifest.file = '{params.file}': {file}: no such file")
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"data.manifest.file = '{params.file}': {file} is not a {', '.join(SUFFIXES)} file"
        )
    columns = (params.path, params.label, params.split, params.family, params.source,
               params.group, params.video)  # fmt: skip
    table = _read(file, columns)
    names = table.attrs["names"]
    for name, column in (("path", params.path), ("label", params.label)):
        if column not in table:
            raise UserError(
                f"{file}: has no column '{column}' (data.manifest.{name})"
                f"{did_you_mean(column, names) or '; it has ' + short(', '.join(names))}"
            )
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


def _read(file: Path, wanted: Collection[str]) -> pd.DataFrame:
    """Return the wanted columns as text, a missing cell empty; attrs["names"] has all names.

    Raises UserError for a file that cannot be read, and for a wanted column that is there twice.
    """
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            names = parquet.read_schema(file).names
            table = parquet.read_table(file, columns=[one for one in names if one in wanted])
        elif kind in (".csv", ".tsv"):
            options = {"parse_options": csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",",
                                                         newlines_in_values=True)}  # fmt: skip
            with csv.open_csv(file, **options) as reader:
                names = reader.schema.names
            table = csv.read_csv(file, **options, convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False,
            ))  # fmt: skip
        else:
            table = json.read_json(file)
            names = table.column_names
        names = [name.strip() for name in names]
        table = table.rename_columns([name.strip() for name in table.column_names])
        twice = {name for name in wanted if names.count(name) > 1}
        if twice:
            raise UserError(f"{file}: the column '{short(twice.pop())}' is there twice; remove one")
        found = {name: _as_text(table[name]) for name in wanted if name in names}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as {kind}: {short(error, 120)}") from None
    if not len(table):
        raise UserError(f"{file}: lists no image")
    result = pd.DataFrame(found)
    result.attrs["names"] = names
    return result


def _as_text(column: pa.ChunkedArray) -> pd.Series:
    """Return a column as text: whole numbers without a point, empty for a missing cell."""
    if pa.types.is_floating(column.type):
        values = column.to_pandas()
        if (values.dropna() % 1 == 0).all():
            column = pa.chunked_array([pa.array(values.astype("Int64"))])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.string()).fill_null("").to_pandas().str.strip()


def _where(file: Path, row: int) -> str:
    """Return where the row of that number, from 0, is: its line, where the file has lines."""
    header = {".parquet": 0, ".jsonl": 1, ".ndjson": 1}.get(file.suffix.lower(), 2)
    return f"{file}:{row + header}" if header else f"{file}: row {row + 1}"


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
        first = int((names == names[row]).idxmax())
        raise UserError(
            f"{_where(file, row)}: '{short(names[row])}' is listed before, in row {first + 1} of "
            "the table; remove one"
        )
    return names


def _targets(words: pd.Series, labels: Mapping[str | int | bool, int], file: Path) -> pd.Series:
    """Return 0, 1 or empty for each word; raises UserError with all words that have no meaning."""
    meaning = PLAIN_LABELS | {str(word).strip().casefold(): label for word, label in labels.items()}
    plain = words.str.casefold()
    targets = plain.map(meaning).astype("Int8")
    unknown = sorted(words[targets.isna() & (words != "")].unique())
    if unknown:
        listed = ", ".join(repr(short(word, 30)) for word in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"{file}: labels without a meaning: {listed}{more}; say in data.manifest.labels which "
            "are 0 (real) and which 1 (fake)"
        )
    return targets


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
            "0 or 1, or make it part of the split test"
        )
