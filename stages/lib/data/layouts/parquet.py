"""Parquet files with the images in them, as hubs share data sets.

    data/train-00000-of-00007.parquet    data/test-00000-of-00001.parquet    train/0000.parquet

A column has the bytes of each image, alone or as the field `bytes` of a struct, as the library
`datasets` of Hugging Face writes it. That library also keeps the names of the classes in the
metadata of the schema. The columns of `data.manifest` hold here too. An image is called FILE#ROW,
with rows from 0. The files are read one row group after the other, so memory does not grow with
their number.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from stages.lib.core.errors import UserError, short
from stages.lib.data.csv_rows import refuse_twice
from stages.lib.data.layouts.columns import optional, targets_of, text_columns, where
from stages.lib.data.layouts.hub_files import (
    all_files,
    nearby_files,
    sets_of_files,
    sets_of_tables,
)
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.layouts.manifest import ManifestParams, refuse_unlabelled, rows_of
from stages.lib.data.layouts.words import class_of
from stages.lib.images.decoding import UnusableImage

SUFFIX = ".parquet"
LEAST_GROUPS = 2  # row groups that are kept: threads may be in two at once
MOST_BYTES = 64 * 2**20  # of more row groups
UNKNOWN = -1  # what the library `datasets` writes for a class that is not known


def has_images(root: Path) -> bool:
    """Return whether the first Parquet file of a folder has a column of images."""
    files = nearby_files(root, SUFFIX)
    try:
        return bool(files) and bool(_image_columns(parquet.read_schema(files[0])))
    except (pa.ArrowException, OSError):
        return False


def parquet_sets(root: Path, params: ManifestParams) -> dict[str, ImageSet]:
    """Return the sets in Parquet files; raises UserError for what they do not explain."""
    tables: list[tuple[str, pd.DataFrame]] = []
    columns = {}  # of images, by file
    for file, name in sets_of_files(root, all_files(root, SUFFIX)).items():
        try:
            schema = parquet.read_schema(file)
            columns[file.relative_to(root).as_posix()] = image_column(schema, params, file)
            tables.append((name, _read_rows(file, root, schema, params, name)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: cannot be read as Parquet: {short(error, 120)}") from None
    return sets_of_tables(root, tables, RowGroups(root, columns))


def image_column(schema: pa.Schema, params: ManifestParams, file: Path) -> str:
    """Return the path of the column with the bytes of images, such as image.bytes."""
    found = _image_columns(schema)
    if params.image in found:
        return found[params.image]
    if len(found) == 1:
        return next(iter(found.values()))
    told = f"several columns have images: {', '.join(found)}" if found else "no column has images"
    raise UserError(f"{file}: {told}; name one in data.manifest.image = '{params.image}'")


def _image_columns(schema: pa.Schema) -> dict[str, str]:
    """Return by their names the columns that may have images, and the paths of their bytes."""
    found = {}
    for field in schema:
        if _is_binary(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            if inner >= 0 and _is_binary(field.type.field(inner).type):
                found[field.name] = f"{field.name}.bytes"
    return found


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_rows(
    file: Path, root: Path, schema: pa.Schema, params: ManifestParams, set_name: str
) -> pd.DataFrame:
    """Return the rows of one file, with the columns of ROW_TYPES."""
    classes = _class_names(schema)
    label = _label_column(schema, classes, params, file, set_name)
    wanted = sorted({label, params.family, params.source, params.group, params.video})
    refuse_twice(schema.names, wanted, str(file))
    present = [name for name in schema.names if name.strip() in wanted]
    text = text_columns(parquet.read_table(file, columns=present), wanted, file)
    words = optional(text, label).fillna("")
    if label in classes:
        names = {str(number): name for number, name in enumerate(classes[label])}
        words = words.map(names | {str(UNKNOWN): "", "": ""})
        if words.isna().any():
            row = int(words.isna().idxmax())
            raise UserError(
                f"{where(file, row)}: class {short(text[label][row])}, which has no name there"
            )
    targets = targets_of(words, params.labels, file, class_of)
    name = file.relative_to(root).as_posix()
    rows = rows_of([f"{name}#{row}" for row in range(len(text))], targets, text, params)
    refuse_unlabelled(rows, pd.Series(set_name, index=rows.index), file)
    return rows


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return by their names the columns of classes, and the names of the classes in order."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        features = metadata["info"]["features"]
        return {
            name: [str(word) for word in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):  # of another writer, who says nothing of classes
        return {}


def _label_column(
    schema: pa.Schema,
    classes: dict[str, list[str]],
    params: ManifestParams,
    file: Path,
    set_name: str,
) -> str:
    """Return the column of labels; "" where a test set has none."""
    if params.label in schema.names:
        return params.label
    if len(classes) == 1:
        return next(iter(classes))
    if set_name == "test":
        return ""
    raise UserError(
        f"{file}: has no column '{params.label}' (data.manifest.label); it has "
        f"{short(', '.join(schema.names))}"
    )


class RowGroups:
    """Reads images by name; the row groups that were read last stay in memory."""

    def __init__(self, root: Path, columns: dict[str, str]) -> None:
        """columns: the path of the column with the bytes, by file."""
        self.root, self.columns = root, columns
        self.lock = Lock()
        self.groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self.num_bytes = 0  # of those
        self.file = ""  # the one that is open
        self.reader: Any = None
        self.ends: list[int] = []  # of its row groups, in rows

    def file_of(self, name: str) -> str:
        """Return the file of an image."""
        return name.rpartition("#")[0]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; raises UnusableImage where its cell has none."""
        file, _, row = name.rpartition("#")
        with self.lock:
            try:
                cells, place = self._cells(file, int(row))
            except (pa.ArrowException, OSError) as error:
                raise UnusableImage(f"damaged Parquet file: {short(error, 80)}") from None
        content = cells[place].as_py()
        if not content:
            raise UnusableImage("its cell has no bytes of an image")
        return content

    def _cells(self, file: str, row: int) -> tuple[pa.ChunkedArray, int]:
        """Return the images of the row group of a row, and the place of the row in it."""
        if file != self.file:
            self.reader = parquet.ParquetFile(self.root / file)
            metadata = self.reader.metadata
            sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            self.file, self.ends = file, list(accumulate(sizes))
        number = bisect_right(self.ends, row)
        first = self.ends[number - 1] if number else 0
        key = (file, number)
        if key not in self.groups:
            self.groups[key] = self._read_group(file, number)
            self.num_bytes += self.groups[key].nbytes
        while len(self.groups) > LEAST_GROUPS and self.num_bytes > MOST_BYTES:
            _, oldest = self.groups.popitem(last=False)
            self.num_bytes -= oldest.nbytes
        return self.groups[key], row - first

    def _read_group(self, file: str, number: int) -> pa.ChunkedArray:
        cells = self.reader.read_row_group(number, columns=[self.columns[file]]).column(0)
        if pa.types.is_struct(cells.type):
            cells = pa.chunked_array([one.field("bytes") for one in cells.chunks])
        return cells
