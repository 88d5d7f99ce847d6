"""Files of many images, as hubs share data sets: which there are, and of which set each is."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.lib.core.errors import UserError
from stages.lib.data.layouts.image_set import (
    SET_NAMES,
    Containers,
    ImageSet,
    folders_in,
    sets_by_name,
)
from stages.lib.data.layouts.words import SET_WORDS, words_of
from stages.lib.images.ignored_files import is_ignored


def nearby_files(root: Path, suffix: str) -> list[Path]:
    """Return the files with this suffix in a folder and in the folders in it, but not below."""
    folders = [root, *folders_in(root)]
    return [file for folder in folders for file in sorted(folder.glob(f"*{suffix}"))]


def all_files(root: Path, suffix: str) -> list[Path]:
    """Return all files with this suffix below a folder, in order, without what is ignored."""
    files = sorted(root.rglob(f"*{suffix}"))
    return [file for file in files if not is_ignored(file.relative_to(root))]


def sets_of_files(root: Path, files: Iterable[Path]) -> dict[Path, str]:
    """Return of each file train, val or test, as its name or else a folder above it says.

    So `data/train-00000-of-00007.parquet` is of train, and `test/0000.parquet` of test. Where no
    name says a set, all files are of train. Raises UserError where only some names say one, or one
    name says two.
    """
    sets = {file: _set_of(file.relative_to(root).as_posix(), file) for file in files}
    unclear = [file for file, name in sets.items() if name is None]
    if unclear and len(unclear) < len(sets):
        raise UserError(
            f"{unclear[0]}: its name says no set, and those of other files do; put one of "
            f"{', '.join(SET_NAMES)} into its name"
        )
    return {file: name or "train" for file, name in sets.items()}


def sets_of_tables(
    root: Path, tables: Iterable[tuple[str, pd.DataFrame]], containers: Containers
) -> dict[str, ImageSet]:
    """Return the sets of the rows of many files; tables: with the name of their set."""
    named = {number: rows.assign(set=name) for number, (name, rows) in enumerate(tables)}
    if not named:
        return {}
    rows = pd.concat(named, ignore_index=True)
    return sets_by_name(root, rows.drop(columns="set"), rows["set"], containers)


def _set_of(path: str, file: Path) -> str | None:
    for name in reversed(PurePosixPath(path).with_suffix("").parts):
        sets = _sets_in(name)
        if len(sets) > 1:
            raise UserError(f"{file}: '{name}' says two sets, {' and '.join(sorted(sets))}")
        if sets:
            return sets.pop()
    return None


def _sets_in(name: str) -> set[str]:
    """Return the sets that words in a name say; numbers and digests are no words."""
    return {SET_WORDS[word] for word in words_of(re.sub(r"\d+", " ", name)) if word in SET_WORDS}
