"""The layout of the competition on disk: where each image set and its list are, what a list says.

    phase1/trainset/*.jpg        phase1/trainset_label.txt           img_name,target
    phase1/valset/*.jpg          phase1/valset_label.txt             img_name,target
    phase2/testset1_seen/*.jpg   phase2/testset1_seen_nolabel.txt    img_name

The phase folders are optional, `train_label.txt` and `val_label.txt` are read as well, and only the
training set must be there. A list may have two more columns: `family` (the method of a fake) and
`source` (the collection that an image is from).
"""

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL

SET_NAMES = ("train", "val", "test")
OPTIONAL_COLUMNS = ("family", "source")

_PHASES = {"train": "phase1", "val": "phase1", "test": "phase2"}
_FOLDERS = {"train": ["trainset"], "val": ["valset"], "test": ["testset1_seen", "testset"]}
_LISTS = {
    "train": ["trainset_label.txt", "train_label.txt"],
    "val": ["valset_label.txt", "val_label.txt"],
    "test": [
        f"{folder}_{kind}.txt" for folder in _FOLDERS["test"] for kind in ("nolabel", "label")
    ],
}


@dataclass(frozen=True)
class ImageSet:
    """One image folder with the list that names its images."""

    name: str
    folder: Path
    list_file: Path


def file_of(folder: Path, name: str) -> Path:
    """Return the path of a listed image.

    Letters with accents have two forms in Unicode, and a list may have one (NFC) where the file
    system has the other (NFD, as macOS writes it).
    """
    if name.isascii():  # has one form, so nothing needs to be looked up
        return folder / name
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)


def find_sets(
    root: Path, required: str = "train", parameter: str = "data.root"
) -> dict[str, ImageSet]:
    """Find the sets under root; only the required one must be there.

    Raises UserError where root (named by `parameter`), the required set or the list of a set is
    missing, or where a set is there twice.
    """
    if not root.is_dir():
        raise UserError(
            f"{parameter} = '{root}' is not a folder; give the folder with the data set"
        )
    sets = {}
    for name in SET_NAMES:
        places = [root, root / _PHASES[name]]
        folders = [at / folder for at in places for folder in _FOLDERS[name]]
        lists = [at / file for at in places for file in _LISTS[name]]
        folder = _only_one([path for path in folders if path.is_dir()], name, "image folder")
        list_file = _only_one([path for path in lists if path.is_file()], name, "list")
        if folder and list_file:
            sets[name] = ImageSet(name, folder, list_file)
        elif folder or list_file or name == required:
            wanted = folders if list_file else lists if folder else [*folders, *lists]
            raise UserError(
                f"{root}: the {name} set has no {'image folder' if list_file else 'list'}; "
                f"expected one of {', '.join(str(path.relative_to(root)) for path in wanted)}"
            )
    return sets


def _only_one(found: list[Path], name: str, what: str) -> Path | None:
    if len(found) > 1:
        raise UserError(f"{found[0]}: the {name} set has a second {what}, {found[1]}; remove one")
    return found[0] if found else None


def read_list(image_set: ImageSet) -> pd.DataFrame:
    """Read and check the list of a set: img_name, target (0, 1, <NA>), family and source (or <NA>).

    Raises UserError naming file and line for broken quotes, a wrong header, a target that is
    neither 0 nor 1, a name that is not a plain file name, or a name that is there twice.
    """
    path = image_set.list_file
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            _check_header(header, image_set)
            rows = list(_checked_rows(reader, header, path))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not a CSV text file in UTF-8: {short(error)}") from None
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV: {short(error)}") from None
    if not rows:
        raise UserError(f"{path}: lists no image")
    columns = {"img_name": "str", "target": "Int8"} | dict.fromkeys(OPTIONAL_COLUMNS, "str")
    table = pd.DataFrame(rows, columns=list(columns))
    return table.astype(columns)


def _check_header(header: list[str], image_set: ImageSet) -> None:
    required = ["img_name"] if image_set.name == "test" else ["img_name", "target"]
    allowed = {"img_name", "target", *OPTIONAL_COLUMNS}
    if (
        header[: len(required)] != required
        or not allowed.issuperset(header)
        or len(set(header)) < len(header)
    ):
        more = "[,target][,family][,source]" if image_set.name == "test" else "[,family][,source]"
        raise UserError(
            f"{image_set.list_file}:1: header '{short(','.join(header))}', expected "
            f"'{','.join(required)}{more}'"
        )


def _checked_rows(
    reader: Any, header: list[str], path: Path
) -> Iterator[tuple[str | int | None, ...]]:
    """Yield (img_name, target, family, source) of each row of a csv.reader."""
    first_seen: dict[str, tuple[int, str | None]] = {}
    for row in reader:
        if not row:
            continue
        where = f"{path}:{reader.line_num}"
        if len(row) != len(header):
            raise UserError(
                f"{where}: {len(row)} fields, the header has {len(header)}: {short(row)}"
            )
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        name, target = cells["img_name"], cells.get("target")
        if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0", ":")):
            raise UserError(f"{where}: img_name '{short(name)}' is not a plain file name")
        if target not in (None, str(REAL), str(FAKE)):
            raise UserError(f"{where}: target '{short(target)}', expected 0 (real) or 1 (fake)")
        if name in first_seen:
            line, other = first_seen[name]
            how = "the same" if target == other else "another"
            raise UserError(
                f"{where}: '{short(name)}' is listed before, line {line}, with {how} target"
            )
        first_seen[name] = (reader.line_num, target)
        more = (cells.get(column) or None for column in OPTIONAL_COLUMNS)
        yield name, None if target is None else int(target), *more
