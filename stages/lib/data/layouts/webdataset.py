"""Tar archives of samples, as the library webdataset writes them.

    train-000000.tar: KEY.jpg, KEY.cls; KEY.png, KEY.json

Files with one key are a sample: an image, and its label in `.cls` (a number or a word) or in
`.json`, whose names are those of the columns of `data.manifest`. Without both, a folder in the key
says the class. An image is called FILE#MEMBER. Listing reads the heads of the members and the
labels; packing reads each image once, from its place in the archive. Nothing is unpacked.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.data.layouts.columns import targets_of
from stages.lib.data.layouts.hub_files import (
    all_files,
    nearby_files,
    sets_of_files,
    sets_of_tables,
)
from stages.lib.data.layouts.image_set import ImageSet, LeftOut
from stages.lib.data.layouts.manifest import ManifestParams, rows_of
from stages.lib.data.layouts.words import class_of, class_of_folders
from stages.lib.images.decoding import SUFFIXES, UnusableImage
from stages.lib.images.ignored_files import is_ignored

SUFFIX = ".tar"
LABELS = (".cls", ".json")
MOST_LABEL_BYTES = 2**20
Place = tuple[int, int]  # of an image in its archive: offset and size in bytes


def has_archives(root: Path) -> bool:
    """Return whether a folder has tar archives."""
    return bool(nearby_files(root, SUFFIX))


def webdataset_sets(root: Path, params: ManifestParams, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets in tar archives; raises UserError for what they do not explain."""
    tables: list[tuple[str, pd.DataFrame]] = []
    places: dict[str, Place] = {}
    for file, set_name in sets_of_files(root, all_files(root, SUFFIX)).items():
        samples = list(_samples(file, left_out))
        if not samples:
            continue
        names = [f"{file.relative_to(root).as_posix()}#{member}" for member, _, _ in samples]
        places |= zip(names, (place for _, place, _ in samples), strict=True)
        facts = [facts for _, _, facts in samples]
        tables.append((set_name, _rows(file, names, facts, params, set_name)))
    return sets_of_tables(root, tables, Archives(root, places))


def _rows(
    file: Path, names: list[str], facts: list[dict[str, Any]], params: ManifestParams, set_name: str
) -> pd.DataFrame:
    """Return the rows of an archive, with the columns of ROW_TYPES; facts: of each image."""

    def text(*keys: str) -> pd.Series:
        values = [next((one[key] for key in keys if one.get(key) is not None), "") for one in facts]
        return pd.Series([str(value).strip() for value in values], dtype="str")

    members = pd.Series(names, dtype="str").str.partition(f"{SUFFIX}#")[2]
    targets = targets_of(text(params.label, "cls"), params.labels, file, class_of)
    targets = targets.fillna(members.map(class_of_folders).astype("Int8"))
    if set_name != "test" and targets.isna().any():
        member = short(members[targets.isna()].iloc[0])
        raise UserError(f"{file}: {member}: no label, and the {set_name} set needs one")
    table = pd.DataFrame({column: text(column) for column in params.columns})
    return rows_of(names, targets, table, params)


def _samples(file: Path, left_out: LeftOut) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Yield the images of an archive: name of the member, place, and what its labels say."""
    images: dict[str, tuple[str, Place]] = {}  # by key
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if not member.isreg() or is_ignored(Path(member.name)):
                    continue
                key, suffix = _key_and_suffix(member.name)
                if suffix in SUFFIXES:
                    if key in images:
                        raise UserError(f"{file}: {short(member.name)}: a second image of its key")
                    images[key] = member.name, (member.offset_data, member.size)
                elif suffix in LABELS:
                    opened: Any = archive.extractfile(member)  # None of a link, which none is here
                    said = _facts(
                        opened.read(MOST_LABEL_BYTES), suffix, f"{file}: {short(member.name)}"
                    )
                    facts.setdefault(key, {}).update(said)
                else:
                    left_out.suffixes[short(suffix, 20)] += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{file}: cannot be read as an uncompressed tar archive: {short(error, 100)}"
        ) from None
    for key, (name, place) in images.items():
        yield name, place, facts.get(key, {})


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split the name of a member at the first point of its last part, as webdataset does."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}/{stem}", f".{suffix.lower()}"


def _facts(content: bytes, suffix: str, place: str) -> dict[str, Any]:
    """Return what a file of labels says."""
    try:
        text = content.decode()
        facts = json.loads(text) if suffix == ".json" else {"cls": text.strip()}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{place}: not valid {suffix}: {short(error, 80)}") from None
    if not isinstance(facts, dict):
        raise UserError(f"{place}: expected names with values, such as a label")
    return facts


class Archives:
    """Reads images by name, each from its place in its archive."""

    def __init__(self, root: Path, places: dict[str, Place]) -> None:
        self.root, self.places = root, places

    def file_of(self, name: str) -> str:
        """Return the archive of an image."""
        file, end, _ = name.partition(f"{SUFFIX}#")
        return file + end[:-1]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; raises UnusableImage where the archive ends before."""
        offset, size = self.places[name]
        with (self.root / self.file_of(name)).open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise UnusableImage("its archive is cut off")
        return content
