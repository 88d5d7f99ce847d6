"""An image set as every layout gives it: a folder, and one row for each image or video in it."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.core.pictures import SUFFIXES

SET_NAMES = ("train", "val", "test")
ROW_TYPES = {
    "img_name": "str",  # path of the file in the folder, with /; unique
    "target": "Int8",  # 0 real, 1 fake, empty: unknown
    "family": "str",  # the method of a fake, empty: unknown
    "source": "str",  # the collection that an image is from, empty: unknown
    "given_group": "str",  # images of one person or source share it, empty: not said
    "video": "str",  # frames of one video share it, empty: a single picture, or a whole video
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".webm", ".mkv", ".m4v"}
MEDIA_SUFFIXES = SUFFIXES | VIDEO_SUFFIXES


Row = dict[str, str | int | None]  # a row of such a table; what it does not have is empty


@dataclass(frozen=True)
class ImageSet:
    """Images of one set. rows: a table with the columns of ROW_TYPES."""

    name: str  # one of SET_NAMES; `sets/NAME` of an evaluation set
    folder: Path
    rows: pd.DataFrame


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a table with the columns of ROW_TYPES."""
    return pd.DataFrame(rows, columns=list(ROW_TYPES)).astype(ROW_TYPES)


def sets_of(root: Path, rows: Mapping[str, Sequence[Row]]) -> dict[str, ImageSet]:
    """Return the sets that have rows, whose names start at root; rows: by the name of the set."""
    return {name: ImageSet(name, root, table_of(found)) for name, found in rows.items() if found}


def is_video(name: str) -> bool:
    """Return whether a file name is that of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def media_files(root: Path) -> Iterator[str]:
    """Yield the paths of all images and videos below root, relative to it, with /, in order.

    Hidden folders and files are left out: file managers keep thumbnails there. Linked folders are
    followed, each place once. Raises UserError for what cannot be read or named.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make the folder readable")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and suffix in MEDIA_SUFFIXES:
                path = (inside / name).as_posix()
                if not path.isprintable() and any("\ud800" <= mark <= "\udfff" for mark in path):
                    raise UserError(
                        f"{short(folder)}: the name {os.fsencode(name)!r} is not UTF-8; rename it"
                    )
                yield path


def file_of(folder: Path, name: str) -> Path:
    """Return the path of a listed image.

    Letters with accents have two forms in Unicode, and a list may have one (NFC) where the file
    system has the other (NFD, as macOS writes it).
    """
    if name.isascii():  # has one form, so nothing needs to be looked up
        return folder / name
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)
