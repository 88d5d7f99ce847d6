"""Folders whose names say what is in them: any tree with a folder for each class.

    train/real/*.jpg    train/fake/swap/*.jpg    val/0_real/*.png    training_fake/*.jpg

A folder below that of the class names the family of fakes, or the source of reals; one between set
and class names the source of both. Where a class has more than MOST_FAMILIES such folders, they are
persons or videos: each one is a group, and a video where its files have numbers for names. Without
folders for sets, all images are of the training set.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.layouts.image_set import SET_NAMES, ImageSet, Row, media_files, sets_of
from stages.lib.layouts.words import class_of, is_digit, set_of

MOST_FAMILIES = 30
FRAME = re.compile(r"(frame|img|image)?[ _-]?\d+", re.IGNORECASE)
EXPECTED = (
    "a folder named real, 0 or original and one named fake, 1 or manipulated, in folders named "
    "train, val and test or in none"
)


def folder_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError where the names of folders do not tell."""
    paths = list(media_files(root))
    wrappers = _wrappers(paths)
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    unclear: list[str] = []
    below: dict[tuple[str, int], list[tuple[Row, list[str]]]] = defaultdict(list)
    for path in paths:
        folders = path.split("/")[:-1]
        class_at = _class_at(folders, wrappers)
        set_name = _set_name(folders, class_at)
        target = None if class_at is None else class_of(folders[class_at])
        row: Row = {"img_name": path, "target": target}
        if set_name is None or (target is None and set_name != "test"):
            unclear.append(path)
            continue
        rows[set_name].append(row)
        if class_at is not None and target is not None:
            sets = [at for at in range(class_at) if set_of(folders[at])]
            between = folders[sets[-1] + 1 : class_at] if sets else []
            row["source"] = "/".join(between) or None
            inner = [name for name in folders[class_at + 1 :] if not set_of(name)]
            below["/".join(folders[: class_at + 1]), target].append((row, inner))
    if unclear:
        raise UserError(
            f"{root}: no layout fits: looked for {EXPECTED}; found {len(unclear)} of {len(paths)} "
            f"files of no clear set or class, the first: {short(unclear[0], 60)}; see data.layout"
        )
    for (_, target), members in below.items():
        _name_families(target, members)
    return sets_of(root, rows)


def _wrappers(paths: Sequence[str]) -> set[str]:
    """Return folders with folders of both classes in them: their own names say nothing."""
    inside: dict[str, set[int]] = defaultdict(set)
    for folder in {path.rpartition("/")[0] for path in paths}:
        names = folder.split("/")
        for at, name in enumerate(names):
            target = class_of(name)
            if target is not None:
                for end in range(1, at + 1):
                    inside["/".join(names[:end])].add(target)
    return {folder for folder, found in inside.items() if found == {REAL, FAKE}}


def _class_at(folders: Sequence[str], wrappers: set[str]) -> int | None:
    """Return which of the folders says the class; None: none does, or two say different ones."""
    found = [
        at for at, name in enumerate(folders)
        if class_of(name) is not None and "/".join(folders[: at + 1]) not in wrappers
    ]  # fmt: skip
    found = [at for at in found if not is_digit(folders[at])] or found
    same = len({class_of(folders[at]) for at in found}) == 1
    return found[0] if same else None


def _set_name(folders: Sequence[str], class_at: int | None) -> str | None:
    """Return the set that folders say, train where none does; None: two say different ones.

    Only folders down to the one below that of the class count.
    """
    end = len(folders) if class_at is None else class_at + 2
    found = {name for folder in folders[:end] if (name := set_of(folder))}
    return found.pop() if len(found) == 1 else None if found else "train"


def _name_families(target: int, members: Sequence[tuple[Row, list[str]]]) -> None:
    """Fill in family, source, group and video of the images of one folder of a class.

    members: their rows, and the folders below that of the class.
    """
    depth = max(len(inner) for _, inner in members)
    counts = [len({tuple(inner[: at + 1]) for _, inner in members}) for at in range(depth)]
    unit_at = next((at for at, count in enumerate(counts) if count > MOST_FAMILIES), depth)
    for row, inner in members:
        if inner and unit_at > 0:
            row["family" if target == FAKE else "source"] = inner[0]
        if len(inner) > unit_at:
            folders, _, file = str(row["img_name"]).rpartition("/")
            unit = "/".join(folders.split("/")[: -(len(inner) - unit_at - 1) or None])
            row["given_group"] = unit
            if FRAME.fullmatch(Path(file).stem):
                row["video"] = unit
