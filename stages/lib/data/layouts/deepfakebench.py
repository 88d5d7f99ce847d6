"""The lists of DeepfakeBench (Yan et al. 2023): one JSON file for a data set, with its frames.

    FaceForensics++.json    {"FaceForensics++": {"FF-DF": {"train": {"c23": {"071_054":
                                {"label": "FF-DF", "frames": ["FaceForensics++/.../000.png"]}}}}}}

A list lies in the folder that the paths of the frames start from. The compression is there for
FaceForensics++ alone; c23 counts, or else the first. A label with the word `real` is that of reals;
any other one is the family of fakes, also `whichisreal_Fake`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.clips import pairs_in
from stages.lib.data.layouts.image_set import SET_NAMES, ImageSet, LeftOut, ListedImage, sets_of
from stages.lib.data.layouts.words import SET_WORDS, class_of_label

PREFERRED = "c23"
LARGEST = 500_000_000  # bytes of a list


def lists_of(root: Path) -> list[Path]:
    """Return the lists in a folder."""
    return [file for file in sorted(root.glob("*.json")) if _looks_right(file)]


class Clip(NamedTuple):
    """One clip of a list."""

    data_set: str
    label: str
    set_name: str
    name: str
    frames: list[str]


def deepfakebench_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets that the list in a folder names; raises UserError where it is damaged.

    The authors' lists have some clips in several sets. Such a clip stays in test, or else in val.
    """
    lists = lists_of(root)
    if len(lists) != 1:
        names = ", ".join(file.name for file in lists) or "none"
        raise UserError(f"{root}: needs one list of DeepfakeBench, has {short(names)}")
    clips = list(_clips(json.loads(lists[0].read_bytes())))
    pairs = pairs_in(clip.name for clip in clips)
    sets: dict[str, list[ListedImage]] = {name: [] for name in SET_NAMES}
    for clip in clips:
        target = _target(clip.label, lists[0])
        group = pairs.get(clip.name) or _person(clip.name)
        facts: ListedImage = {
            "target": target,
            "source" if target == REAL else "family": clip.label,
            "given_group": f"{clip.data_set}/{group}",
            "video": f"{clip.data_set}/{clip.label}/{clip.name}",
        }
        names = [frame.replace("\\", "/") for frame in clip.frames]
        sets[clip.set_name] += [facts | {"img_name": name} for name in names]
    _leave_in_one_set(sets, left_out)
    return sets_of(root, sets)


def _clips(content: dict[str, Any]) -> Iterator[Clip]:
    """Yield the clips of a list that have frames."""
    for data_set, labels in content.items():
        for label, parts in labels.items():
            for word, part in parts.items():
                for name, facts in _of_one_compression(part).items():
                    if frames := _frames(facts):
                        yield Clip(data_set, label, SET_WORDS[word.lower()], name, frames)


def _of_one_compression(part: dict[str, Any]) -> dict[str, Any]:
    """Return the clips of a part of a list, of one compression where it has several."""
    if not part or any(_frames(facts) for facts in part.values()):
        return part
    compressions = {name: clips for name, clips in part.items() if isinstance(clips, dict)}
    return compressions.get(PREFERRED) or next(iter(compressions.values()), {})


def _frames(facts: object) -> list[str]:
    """Return the frames of a clip; nothing where there are none, or it is no clip."""
    frames = facts.get("frames") if isinstance(facts, dict) else None
    return [str(frame) for frame in frames] if isinstance(frames, list) else []


def _target(label: str, file: Path) -> int:
    """Return the class of a label; raises UserError where it may be either."""
    try:
        target = class_of_label(label)
    except ValueError:
        raise UserError(
            f"{file}: the label '{short(label)}' does not say whether it is that of reals or fakes;"
            " write it with _Real or _Fake at its end"
        ) from None
    return FAKE if target is None else target


def _leave_in_one_set(sets: dict[str, list[ListedImage]], left_out: LeftOut) -> None:
    """Keep each clip in only one set, and note how many were in several."""
    taken: set[object] = set()
    for name in reversed(SET_NAMES):
        clips = {image["video"] for image in sets[name]}
        if twice := clips & taken:
            sets[name] = [image for image in sets[name] if image["video"] not in twice]
            which = f"{len(twice)} clips of {name}"
            left_out.notes.append(f"left out {which}, which the list has in another set as well")
        taken |= clips


def _person(clip: str) -> str:
    """Return who a clip of Celeb-DF shows, such as id3 for id3_id5_0002; else the clip itself."""
    person = re.match(r"id\d+(?=_)", clip)
    return person.group() if person else clip


def _looks_right(file: Path) -> bool:
    """Return whether a file is an object of objects of objects with the names of sets."""
    if file.stat().st_size > LARGEST:
        return False
    words: set[str] = set()
    try:
        for labels in json.loads(file.read_bytes()).values():
            for parts in labels.values():
                if not all(isinstance(part, dict) for part in parts.values()):
                    return False
                words |= {word.lower() for word in parts}
    except (ValueError, AttributeError, RecursionError):
        return False
    return bool(words) and words <= set(SET_WORDS)
