"""Folders whose names say what is in them: any tree with a folder for each class.

    train/real/*.jpg    train/fake/swap/*.jpg    val/0_real/*.png    training_fake/*.jpg

A folder below that of the class names the family of fakes, or the source of reals; one between set
and class names the source of both. Where a class has more than MOST_FAMILIES such folders, they are
persons or videos: each one is a group, and a video where its files have numbers for names. Without
folders for sets, all images are of the training set.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE
from stages.lib.data.layouts.image_set import (
    SET_NAMES,
    ImageSet,
    LeftOut,
    Row,
    media_files,
    sets_of,
)
from stages.lib.data.layouts.words import class_of, has_set_word, is_digit, set_of

MOST_FAMILIES = 30
FRAME = re.compile(r"(frame|img|image)?[ _-]?\d+", re.IGNORECASE)
EXPECTED = (
    "a folder named real, 0 or original and one named fake, 1 or manipulated, in folders named "
    "train, val and test or in none"
)


def folder_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError where the names of folders do not tell."""
    paths = list(media_files(root, left_out))
    used = {path.rpartition("/")[0] for path in paths}
    classes = _classes(used, root)
    has_sets = any(set_of(name) for folder in used for name in folder.split("/"))
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    unclear: list[str] = []
    below: dict[tuple[str, int], list[tuple[Row, list[str]]]] = defaultdict(list)
    for path in paths:
        folders = path.split("/")[:-1]
        class_at = classes.get("/".join(folders))
        set_name = _set_name(folders, class_at, has_sets)
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


def _classes(folders: Collection[str], root: Path) -> dict[str, int | None]:
    """Return which part of the path of a folder says the class; None: two say different ones.

    folders: those with files; the result lacks those of which no part says a class. Words go before
    digits: the `1` in `real/1` is a number where `fake` is there too. Raises UserError where words
    tell one class alone, and digits both.
    """
    words, digits = (_told(folders, kind) for kind in (False, True))
    by_words, by_digits = ({class_of(folder.split("/")[at]) for folder, at in found.items()
                            if at is not None} for found in (words, digits))  # fmt: skip
    if len(by_words) == 1 and len(by_digits) == 2:
        raise UserError(
            f"{root}: words in the names of its folders tell one class alone, and the folders 0 "
            "and 1 both; give the folder with 0 and 1 in it, or name those real and fake"
        )
    return digits | words


def _told(folders: Collection[str], in_digits: bool) -> dict[str, int | None]:
    """Return what _classes does, of digits alone or of words alone.

    A folder with folders of both classes in it says nothing by its own name.
    """
    found: dict[str, list[tuple[int, str, int]]] = {}
    inside: dict[str, set[int]] = defaultdict(set)
    for folder in folders:
        names = folder.split("/")
        classes = [(at, class_of(name)) for at, name in enumerate(names)
                   if is_digit(name) == in_digits]  # fmt: skip
        found[folder] = [(at, "/".join(names[: at + 1]), target) for at, target in classes
                         if target is not None]  # fmt: skip
        for number, (_, outer, _) in enumerate(found[folder]):
            inside[outer] |= {target for _, _, target in found[folder][number + 1 :]}
    result: dict[str, int | None] = {}
    for folder, places in found.items():
        clear = [(at, target) for at, outer, target in places if len(inside[outer]) < 2]
        if clear:
            same = len({target for _, target in clear}) == 1
            result[folder] = clear[0][0] if same else None
    return result


def _set_name(folders: Sequence[str], class_at: int | None, has_sets: bool) -> str | None:
    """Return the set that folders say, train where none does; None: it is not clear.

    Only folders down to the one below that of the class count. It is not clear where two say
    different sets, or where a name such as `val_2` has the word of a set among others, and other
    files are in folders of clear sets.
    """
    end = len(folders) if class_at is None else class_at + 2
    found = {name for folder in folders[:end] if (name := set_of(folder))}
    if not found and has_sets and any(map(has_set_word, folders[:class_at])):
        return None
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
