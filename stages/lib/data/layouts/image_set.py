"""An image set as every layout gives it: a folder, and one row for each image or video in it."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.images.decoding import SUFFIXES
from stages.lib.images.ignored_files import is_dropping

SET_NAMES = ("train", "val", "test")
ROW_TYPES = {
    "img_name": "str",  # path of the file in the folder, with /; unique
    "target": "Int8",  # 0 real, 1 fake, empty: unknown
    "family": "str",  # the method of a fake, empty: unknown
    "source": "str",  # the collection that an image is from, empty: unknown
    "given_group": "str",  # images of one person or source share it, empty: not said
    "video": "str",  # frames of one video share it, empty: a single image, or a whole video
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".webm", ".mkv", ".m4v"}
MEDIA_SUFFIXES = SUFFIXES | VIDEO_SUFFIXES
MOST_SUFFIXES = 8  # that are named


Row = dict[str, str | int | None]  # a row of such a table; what it does not have is empty


@dataclass(frozen=True)
class ImageSet:
    """Images of one set. rows: a table with the columns of ROW_TYPES."""

    name: str  # one of SET_NAMES; `sets/NAME` of an evaluation set
    folder: Path
    rows: pd.DataFrame


@dataclass
class LeftOut:
    """What a search for images and videos has not taken."""

    suffixes: Counter[str] = field(default_factory=Counter)  # of files of other kinds
    num_droppings: int = 0  # files and folders, without what is in those
    num_elsewhere: int = 0  # images and videos in folders in which the layout has none

    def lines(self) -> list[str]:
        """Return what to say of it, such as `left out 2 files ...: 1 .mpg, 1 without a suffix`."""
        lines = []
        if total := self.suffixes.total():
            common = self.suffixes.most_common(MOST_SUFFIXES)
            parts = [f"{count} {suffix or 'without a suffix'}" for suffix, count in common]
            if more := total - sum(count for _, count in common):
                parts.append(f"{more} others")
            lines.append(f"left out {total} files that are neither images nor videos: "
                         + ", ".join(parts))  # fmt: skip
        if self.num_elsewhere:
            lines.append(f"left out {self.num_elsewhere} images and videos in folders in which "
                         "this layout has none, such as masks")  # fmt: skip
        if self.num_droppings:
            lines.append(f"passed over {self.num_droppings} hidden files and folders, thumbnails "
                         "and the like")  # fmt: skip
        return lines


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a table with the columns of ROW_TYPES."""
    return pd.DataFrame(rows, columns=list(ROW_TYPES)).astype(ROW_TYPES)


def sets_of(root: Path, rows: Mapping[str, Sequence[Row]]) -> dict[str, ImageSet]:
    """Return the sets that have rows, whose names start at root; rows: by the name of the set."""
    return {name: ImageSet(name, root, table_of(found)) for name, found in rows.items() if found}


def is_video(name: str) -> bool:
    """Return whether a file name is that of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def media_files(root: Path, left_out: LeftOut) -> Iterator[str]:
    """Yield the paths of all images and videos below root, relative to it, with /, in order.

    Thumbnails and the like (is_dropping) are passed over; left_out counts them, and other files by
    suffix. Linked folders are followed, each place once. Raises UserError for what cannot be read
    or named.
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
        wanted = sorted(name for name in folders if not is_dropping(PurePath(name)))
        left_out.num_droppings += len(folders) - len(wanted)
        folders[:] = wanted
        inside = Path(folder).relative_to(root)
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if is_dropping(PurePath(name)):
                left_out.num_droppings += 1
            elif suffix in MEDIA_SUFFIXES:
                path = (inside / name).as_posix()
                if not path.isprintable() and any("\ud800" <= mark <= "\udfff" for mark in path):
                    raise UserError(
                        f"{short(folder)}: the name {os.fsencode(name)!r} is not UTF-8; rename it"
                    )
                yield path
            else:
                left_out.suffixes[short(suffix, 20)] += 1


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, in order, without those that a search passes over."""
    return [path for path in sorted(root.iterdir())
            if path.is_dir() and not is_dropping(path.relative_to(root))]  # fmt: skip


def file_of(folder: Path, name: str) -> Path:
    """Return the path of a listed image.

    Letters with accents have two forms in Unicode, and a list may have one (NFC) where the file
    system has the other (NFD, as macOS writes it).
    """
    if name.isascii():  # has one form, so nothing needs to be looked up
        return folder / name
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)
