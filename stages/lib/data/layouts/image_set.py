"""An image set as every layout gives it: a folder, and one row for each image or video in it."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.images.decoding import SUFFIXES
from stages.lib.images.ignored_files import is_ignored

SET_NAMES = ("train", "val", "test")
ROW_TYPES = {
    "img_name": "str",  # path of the file in the folder, with /, and # and the place in it; unique
    "target": "Int8",  # 0 real, 1 fake, empty: unknown
    "family": "str",  # the manipulation method of a fake, empty: unknown
    "source": "str",  # the collection that an image is from, empty: unknown
    "given_group": "str",  # images of one person or source share it, empty: not said
    "video": "str",  # frames of one video share it, empty: a single image, or a whole video
}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".webm", ".mkv", ".m4v"}
MEDIA_SUFFIXES = SUFFIXES | VIDEO_SUFFIXES
MOST_SUFFIXES = 8  # that are named
ListedImage = dict[str, str | int | None]  # a row of such a table; what it does not have is empty


class Containers(Protocol):
    """Files with many images each, in the folder of an image set. Threads use it together."""

    def file_of(self, name: str) -> str:
        """Return the path, in the folder, of the file that has an image; name: its img_name."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; raises UnusableImage or OSError."""


@dataclass(frozen=True)
class ImageSet:
    """The images of one set and where they are."""

    name: str  # one of SET_NAMES; `NAME.set` of an evaluation set
    folder: Path
    rows: pd.DataFrame  # with the columns of ROW_TYPES
    containers: Containers | None = None  # None: each image is a file

    def file_of(self, name: str) -> Path:
        """Return the path of the file that an image is, or is in; name: its img_name."""
        return file_of(self.folder, self.containers.file_of(name) if self.containers else name)


@dataclass
class LeftOut:
    """What is not taken from a data set."""

    notes: list[str] = field(default_factory=list)  # what the layout itself has to say
    suffixes: Counter[str] = field(default_factory=Counter)  # of files of other kinds
    num_ignored: int = 0  # files and folders, without what is in those
    num_elsewhere: int = 0  # images and videos in folders in which the layout has none

    def lines(self) -> list[str]:
        """Return what to say of it, such as `left out 2 files ...: 1 .mpg, 1 without a suffix`."""
        lines = list(self.notes)
        if total := self.suffixes.total():
            common = self.suffixes.most_common(MOST_SUFFIXES)
            parts = [f"{count} {suffix or 'without a suffix'}" for suffix, count in common]
            if more := total - sum(count for _, count in common):
                parts.append(f"{more} others")
            kinds = ", ".join(parts)
            lines.append(f"left out {total} files that are neither images nor videos: {kinds}")
        if self.num_elsewhere:
            lines.append(
                f"left out {self.num_elsewhere} images and videos in folders in which this layout "
                "has none, such as masks"
            )
        if self.num_ignored:
            lines.append(
                f"passed over {self.num_ignored} hidden files and folders, thumbnails and the like"
            )
        return lines


def table_of(images: Sequence[ListedImage]) -> pd.DataFrame:
    """Return a table with the columns of ROW_TYPES."""
    return pd.DataFrame(images, columns=list(ROW_TYPES)).astype(ROW_TYPES)


def sets_of(root: Path, images: Mapping[str, Sequence[ListedImage]]) -> dict[str, ImageSet]:
    """Return the sets that have images, whose names start at root; images: by the set's name."""
    return {name: ImageSet(name, root, table_of(of)) for name, of in images.items() if of}


def sets_by_name(
    root: Path, rows: pd.DataFrame, sets: pd.Series, containers: Containers | None = None
) -> dict[str, ImageSet]:
    """Return the sets that have images; sets: the name of the set of each row."""
    return {
        name: ImageSet(name, root, rows[sets == name].reset_index(drop=True), containers)
        for name in SET_NAMES
        if (sets == name).any()
    }


def is_video(name: str) -> bool:
    """Return whether a file name is that of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def media_files(root: Path, left_out: LeftOut) -> Iterator[str]:
    """Yield the paths of all images and videos below root, relative to it, with /, in order.

    left_out counts what it ignores (is_ignored), and files of other kinds by suffix. Linked folders
    are followed, each place once. Raises UserError for what cannot be read or named.
    """
    visited = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make the folder readable")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        place = os.path.realpath(folder)
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        wanted = sorted(name for name in folders if not is_ignored(PurePath(name)))
        left_out.num_ignored += len(folders) - len(wanted)
        folders[:] = wanted
        inside = Path(folder).relative_to(root)
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if is_ignored(PurePath(name)):
                left_out.num_ignored += 1
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
    """Return the folders in a folder, in order, without those that a search ignores."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    return [folder for folder in folders if not is_ignored(folder.relative_to(root))]


def file_of(folder: Path, name: str) -> Path:
    """Return the path of a listed image.

    Letters with accents have two forms in Unicode, and a list may have one (NFC) where the file
    system has the other (NFD, as macOS writes it).
    """
    if name.isascii():  # has one form, so nothing needs to be looked up
        return folder / name
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)
