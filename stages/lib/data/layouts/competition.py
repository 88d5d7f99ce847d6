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
from stages.lib.data.csv_rows import Rows, read_csv
from stages.lib.data.layouts.image_set import SET_NAMES, ImageSet, ListedImage, table_of
from stages.lib.images.ignored_files import is_ignored

OPTIONAL_COLUMNS = ("family", "source", "group")

_PHASES = {"train": "phase1", "val": "phase1", "test": "phase2"}
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
    for name in SET_NAMES:
        for place in (root, root / _PHASES[name]):
            if any((place / file).is_file() for file in _LISTS[name]):
                return True
            if any(_has_files(place / folder) for folder in _FOLDERS[name]):
                return True
    return False


def _has_files(folder: Path) -> bool:
    """Return whether there is such a folder, with a file in it that no search ignores."""
    if not folder.is_dir():
        return False
    return any(path.is_file() and not is_ignored(PurePath(path.name)) for path in folder.iterdir())


def competition_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets under root.

    Raises UserError where the folder or the list of a set is missing, or there twice, and for
    mistakes in lists.
    """
    sets = {}
    for name in SET_NAMES:
        places = (root, root / _PHASES[name])
        folders = [place / folder for place in places for folder in _FOLDERS[name]]
        lists = [place / file for place in places for file in _LISTS[name]]
        folder = _only_one([path for path in folders if path.is_dir()], name, "image folder")
        list_file = _only_one([path for path in lists if path.is_file()], name, "list")
        if folder and list_file:
            sets[name] = ImageSet(name, folder, read_list(list_file, name))
        elif folder or list_file:
            missing, places = ("image folder", folders) if list_file else ("list", lists)
            wanted = ", ".join(str(path.relative_to(root)) for path in places)
            raise UserError(
                f"{root}: the {name} set has no {missing}; expected one of {wanted}; set "
                "data.layout if this is another data set"
            )
    return sets


def _only_one(paths: list[Path], name: str, kind: str) -> Path | None:
    if len(paths) > 1:
        raise UserError(f"{paths[0]}: the {name} set has a second {kind}, {paths[1]}; remove one")
    return paths[0] if paths else None


def read_list(path: Path, name: str) -> pd.DataFrame:
    """Read and check the list of a set; return the columns of ROW_TYPES. name: of the set.

    Raises UserError as read_csv does, and with the line for a wrong header, a target that is
    neither 0 nor 1, a name that is not a plain file name, or a name that is there twice.
    """
    columns, rows = read_csv(path.read_bytes(), str(path))
    _check_columns(columns, path, name)
    images = list(_checked_images(rows, path))
    if not images:
        raise UserError(f"{path}: lists no image")
    return table_of(images)


def _check_columns(columns: list[str], path: Path, name: str) -> None:
    required = ["img_name"] if name == "test" else ["img_name", "target"]
    optional = ["target", *OPTIONAL_COLUMNS] if name == "test" else OPTIONAL_COLUMNS
    begins_right = columns[: len(required)] == required
    has_twice = len(set(columns)) < len(columns)
    if not begins_right or has_twice or not set(columns) <= {*required, *optional}:
        more = "".join(f"[,{column}]" for column in optional)
        raise UserError(
            f"{path}:1: header '{short(','.join(columns))}', expected '{','.join(required)}{more}'"
        )


def _checked_images(rows: Rows, path: Path) -> Iterator[ListedImage]:
    """Yield the image of each row of a list."""
    listed: dict[str, tuple[int, str | None]] = {}  # the line and the target of each name
    for number, cells in rows:
        where = f"{path}:{number}"
        name, target = cells["img_name"], cells.get("target")
        if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0", ":")):
            raise UserError(f"{where}: img_name '{short(name)}' is not a plain file name")
        if target not in (None, str(REAL), str(FAKE)):
            raise UserError(f"{where}: target '{short(target)}', expected 0 (real) or 1 (fake)")
        if name in listed:
            line, other = listed[name]
            which = "the same" if target == other else "another"
            raise UserError(
                f"{where}: '{short(name)}' is listed before, line {line}, with {which} target"
            )
        listed[name] = (number, target)
        yield {
            "img_name": name,
            "target": None if target is None else int(target),
            "family": cells.get("family") or None,
            "source": cells.get("source") or None,
            "given_group": cells.get("group") or None,
        }
