"""The layout of the competition on disk: where each image set and its list are, what a list says.

    phase1/trainset/*.jpg        phase1/trainset_label.txt           img_name,target
    phase1/valset/*.jpg          phase1/valset_label.txt             img_name,target
    phase2/testset1_seen/*.jpg   phase2/testset1_seen_nolabel.txt    img_name

The phase folders are optional, `train_label.txt` and `val_label.txt` are read as well, and only the
training set must be there. A list may have more columns: `family` (the method of a fake), `source`
(the collection that an image is from), `group` (images of one person, video or source share it).
"""

from collections.abc import Iterator
from pathlib import Path, PurePath

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.csv_rows import read_rows
from stages.lib.data.layouts.image_set import SET_NAMES, ImageSet, Row, table_of
from stages.lib.images.ignored_files import is_dropping

OPTIONAL_COLUMNS = ("family", "source", "group")

_PHASES = {"train": "phase1", "val": "phase1", "test": "phase2"}
_PLACES = set(_PHASES.values())
_FOLDERS = {"train": ["trainset"], "val": ["valset"], "test": ["testset1_seen", "testset"]}
_LISTS = {
    "train": ["trainset_label.txt", "train_label.txt"],
    "val": ["valset_label.txt", "val_label.txt"],
    "test": [
        f"{folder}_{kind}.txt" for folder in _FOLDERS["test"] for kind in ("nolabel", "label")
    ],
}


def is_competition(root: Path) -> bool:
    """Return whether a folder has a list of this layout, or an image folder with files in it."""
    lists, folders = ([name for names in table.values() for name in names]
                      for table in (_LISTS, _FOLDERS))  # fmt: skip
    places = [root / place for place in (".", *sorted(_PLACES))]
    return any((at / name).is_file() for at in places for name in lists) or any(
        (at / name).is_dir() and any(map(_is_image_file, (at / name).iterdir()))
        for at in places
        for name in folders
    )


def _is_image_file(path: Path) -> bool:
    return path.is_file() and not is_dropping(PurePath(path.name))


def competition_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets under root.

    Raises UserError where the folder or the list of a set is missing, or there twice, and for
    mistakes in lists.
    """
    sets = {}
    for name in SET_NAMES:
        places = [root, root / _PHASES[name]]
        folders = [at / folder for at in places for folder in _FOLDERS[name]]
        lists = [at / file for at in places for file in _LISTS[name]]
        folder = _only_one([path for path in folders if path.is_dir()], name, "image folder")
        list_file = _only_one([path for path in lists if path.is_file()], name, "list")
        if folder and list_file:
            sets[name] = ImageSet(name, folder, read_list(list_file, name))
        elif folder or list_file:
            wanted = folders if list_file else lists
            raise UserError(
                f"{root}: the {name} set has no {'image folder' if list_file else 'list'}; "
                f"expected one of {', '.join(str(path.relative_to(root)) for path in wanted)}; set "
                "data.layout if this is another data set"
            )
    return sets


def _only_one(found: list[Path], name: str, what: str) -> Path | None:
    if len(found) > 1:
        raise UserError(f"{found[0]}: the {name} set has a second {what}, {found[1]}; remove one")
    return found[0] if found else None


def read_list(path: Path, name: str) -> pd.DataFrame:
    """Read and check the list of a set; return the columns of ROW_TYPES. name: of the set.

    Raises UserError as read_rows does, and with the line for a wrong header, a target that is
    neither 0 nor 1, a name that is not a plain file name, or a name that is there twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = read_rows(file, str(path))
            _, header = next(table, (1, []))
            _check_header(header, path, name)
            rows = list(_checked_rows(table, header, path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a CSV text file in UTF-8: {short(error)}") from None
    if not rows:
        raise UserError(f"{path}: lists no image")
    return table_of(rows)


def _check_header(header: list[str], path: Path, name: str) -> None:
    required = ["img_name"] if name == "test" else ["img_name", "target"]
    allowed = {"img_name", "target", *OPTIONAL_COLUMNS}
    if (
        header[: len(required)] != required
        or not allowed.issuperset(header)
        or len(set(header)) < len(header)
    ):
        optional = (["target"] if name == "test" else []) + list(OPTIONAL_COLUMNS)
        more = "".join(f"[,{column}]" for column in optional)
        raise UserError(
            f"{path}:1: header '{short(','.join(header))}', expected '{','.join(required)}{more}'"
        )


def _checked_rows(
    table: Iterator[tuple[int, list[str]]], header: list[str], path: Path
) -> Iterator[Row]:
    """Yield the columns of ROW_TYPES for each row of a list."""
    first_seen: dict[str, tuple[int, str | None]] = {}
    for number, row in table:
        where = f"{path}:{number}"
        cells = dict(zip(header, row, strict=True))
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
        first_seen[name] = (number, target)
        yield {
            "img_name": name,
            "target": None if target is None else int(target),
            "family": cells.get("family") or None,
            "source": cells.get("source") or None,
            "given_group": cells.get("group") or None,
        }
