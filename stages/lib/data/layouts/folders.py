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
from typing import NamedTuple

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE
from stages.lib.data.layouts.image_set import (
    SET_NAMES,
    ImageSet,
    LeftOut,
    ListedImage,
    media_files,
    sets_of,
)
from stages.lib.data.layouts.words import class_of, has_set_word, is_digit, set_of

MOST_FAMILIES = 30
FRAME = re.compile(r"(frame|img|image)?[ _-]?\d+", re.IGNORECASE)
Member = tuple[ListedImage, list[str]]  # with the names of the folders below that of its class
EXPECTED = (
    "a folder named real, 0 or original and one named fake, 1 or manipulated, in folders named "
    "train, val and test or in none"
)


class Meaning(NamedTuple):
    """What the path of a folder says of the files in it."""

    set_name: str | None  # None: it is not clear
    target: int | None  # None: it is not clear, or not said
    source: str | None  # the folders between those of set and class
    class_folder: str  # path of the folder that says the class
    inner: list[str]  # names of the folders below that one


def folder_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError where the names of folders do not tell."""
    paths = list(media_files(root, left_out))
    meanings = _meanings({path.rpartition("/")[0] for path in paths}, root)
    sets: dict[str, list[ListedImage]] = {name: [] for name in SET_NAMES}
    members: dict[tuple[str, int], list[Member]] = defaultdict(list)
    unclear: list[str] = []
    for path in paths:
        meaning = meanings[path.rpartition("/")[0]]
        if meaning.set_name is None or (meaning.target is None and meaning.set_name != "test"):
            unclear.append(path)
            continue
        of_folder = {"target": meaning.target, "source": meaning.source}
        image: ListedImage = {"img_name": path} | of_folder
        sets[meaning.set_name].append(image)
        if meaning.target is not None:
            members[meaning.class_folder, meaning.target].append((image, meaning.inner))
    if unclear:
        raise UserError(
            f"{root}: no layout fits: looked for {EXPECTED}; found {len(unclear)} of {len(paths)} "
            f"files of no clear set or class, the first: {short(unclear[0], 60)}; see data.layout"
        )
    for (_, target), images in members.items():
        _name_families(target, images)
    return sets_of(root, sets)


def _meanings(folders: Collection[str], root: Path) -> dict[str, Meaning]:
    """Return what the paths of folders with files say; raises UserError as _class_places does."""
    class_places = _class_places(folders, root)
    has_sets = any(set_of(name) for folder in folders for name in folder.split("/"))
    meanings = {}
    for folder in folders:
        names, class_at = folder.split("/"), class_places.get(folder)
        set_name = _set_name(names, class_at, has_sets)
        if class_at is None:
            meanings[folder] = Meaning(set_name, None, None, "", [])
            continue
        set_places = [at for at in range(class_at) if set_of(names[at])]
        between = names[set_places[-1] + 1 : class_at] if set_places else []
        meanings[folder] = Meaning(
            set_name,
            target=class_of(names[class_at]),
            source="/".join(between) or None,
            class_folder=_beginning(folder, class_at),
            inner=[name for name in names[class_at + 1 :] if not set_of(name)],
        )
    return meanings


def _class_places(folders: Collection[str], root: Path) -> dict[str, int | None]:
    """Return which part of the path of a folder says the class; None: two say different ones.

    folders: those with files. The result has only folders whose path says a class. Words win over
    digits: the `1` in `real/1` is a number if there is a `fake` too. Raises UserError if words name
    only one class, and digits both.
    """
    words, digits = _clear_places(folders, in_digits=False), _clear_places(folders, in_digits=True)
    if len(_classes(words)) == 1 and len(_classes(digits)) == 2:
        raise UserError(
            f"{root}: words in the names of its folders name only one class, and the folders 0 "
            "and 1 both; give the folder with 0 and 1 in it, or name those real and fake"
        )
    return digits | words


def _classes(places: dict[str, int | None]) -> set[int | None]:
    """Return the classes that these parts of the paths of folders say."""
    return {class_of(folder.split("/")[at]) for folder, at in places.items() if at is not None}


def _clear_places(folders: Collection[str], in_digits: bool) -> dict[str, int | None]:
    """Do what _class_places does, with digits only or with words only.

    A folder with folders of both classes in it says nothing by its own name.
    """
    said: dict[str, list[tuple[int, int]]] = {}  # of each folder: part of its path, and class
    inside: dict[str, set[int]] = defaultdict(set)  # classes that folders in a folder say
    for folder in folders:
        said[folder] = []
        for at, name in enumerate(folder.split("/")):
            target = class_of(name)
            if target is None or is_digit(name) != in_digits:
                continue
            for outer, _ in said[folder]:
                inside[_beginning(folder, outer)].add(target)
            said[folder].append((at, target))
    places: dict[str, int | None] = {}
    for folder, parts in said.items():
        clear = [(at, target) for at, target in parts if len(inside[_beginning(folder, at)]) < 2]
        if clear:
            is_one_class = len({target for _, target in clear}) == 1
            places[folder] = clear[0][0] if is_one_class else None
    return places


def _beginning(folder: str, at: int) -> str:
    """Return a path up to its part of that number."""
    return "/".join(folder.split("/")[: at + 1])


def _set_name(names: Sequence[str], class_at: int | None, has_sets: bool) -> str | None:
    """Return the set that folders say, train where none does; None: it is not clear.

    Only folders down to the one below that of the class count. It is not clear where two say
    different sets, or where a name such as `val_2` has the word of a set among others, and other
    files are in folders of clear sets.
    """
    end = len(names) if class_at is None else class_at + 2
    sets = {set_of(name) for name in names[:end]} - {None}
    if len(sets) == 1:
        return sets.pop()
    if sets or (has_sets and any(map(has_set_word, names[:class_at]))):
        return None
    return "train"


def _name_families(target: int, members: Sequence[Member]) -> None:
    """Fill in family, source, group and video of the images of one folder of a class."""
    depth = max(len(inner) for _, inner in members)
    unit_at = depth  # which of the inner folders are persons or videos
    for at in range(depth):
        if len({tuple(inner[: at + 1]) for _, inner in members}) > MOST_FAMILIES:
            unit_at = at
            break
    for image, inner in members:
        if inner and unit_at > 0:
            image["family" if target == FAKE else "source"] = inner[0]
        if len(inner) > unit_at:
            *folders, file = str(image["img_name"]).split("/")
            num_below = len(inner) - unit_at - 1  # folders in that of the person or video
            unit = "/".join(folders[: len(folders) - num_below])
            image["given_group"] = unit
            if FRAME.fullmatch(Path(file).stem):
                image["video"] = unit
