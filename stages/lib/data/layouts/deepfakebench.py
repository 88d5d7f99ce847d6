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
from typing import Any

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.clips import pairs_in
from stages.lib.data.layouts.image_set import SET_NAMES, ImageSet, Row, sets_of
from stages.lib.data.layouts.words import SET_WORDS, class_of_label

PREFERRED = "c23"
LARGEST = 500_000_000  # bytes of a list


def lists_of(root: Path) -> list[Path]:
    """Return the lists in a folder."""
    return [file for file in sorted(root.glob("*.json")) if _looks_right(file)]


def deepfakebench_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets that the list in a folder names; raises UserError where it is damaged.

    The makers' lists have some clips in several sets. Such a clip stays in test, or else in val.
    """
    lists = lists_of(root)
    if len(lists) != 1:
        names = ", ".join(file.name for file in lists) or "none"
        raise UserError(f"{root}: needs one list of DeepfakeBench, has {short(names)}")
    found = json.loads(lists[0].read_bytes())
    pairs = pairs_in(
        clip for labels in found.values() for splits in labels.values()
        for part in splits.values() for clip, _ in _clips(part)
    )  # fmt: skip
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    for data_set, labels in found.items():
        for label, splits in labels.items():
            target = _target(label, lists[0])
            for split, part in splits.items():
                for clip, frames in _clips(part):
                    group = pairs.get(clip) or _person(clip)
                    more = {"target": target, "video": f"{data_set}/{label}/{clip}",
                            "source" if target == REAL else "family": label,
                            "given_group": f"{data_set}/{group}"}  # fmt: skip
                    rows[SET_WORDS[split.lower()]] += [
                        {"img_name": frame.replace("\\", "/")} | more for frame in frames
                    ]
    _take_out(rows, root)
    return sets_of(root, rows)


def _target(label: str, file: Path) -> int:
    """Return the class of a label; raises UserError where it may be either."""
    try:
        found = class_of_label(label)
    except ValueError:
        raise UserError(
            f"{file}: the label '{short(label)}' does not say whether it is that of reals or fakes;"
            " write it with _Real or _Fake at its end"
        ) from None
    return FAKE if found is None else found


def _take_out(rows: dict[str, list[Row]], root: Path) -> None:
    """Leave each clip in one set alone, and say how many were in several."""
    taken: set[object] = set()
    for name in reversed(SET_NAMES):
        clips = {row["video"] for row in rows[name]}
        if twice := clips & taken:
            rows[name] = [row for row in rows[name] if row["video"] not in twice]
            print(f"{root}: left out {len(twice)} clips of {name}, which the list has in another "
                  "set as well", flush=True)  # fmt: skip
        taken |= clips


def _clips(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each clip with its frames, of one compression where the list has several."""
    if not any(_frames(facts) for facts in found.values()) and found:
        inner = {name: facts for name, facts in found.items() if isinstance(facts, dict)}
        found = inner.get(PREFERRED) or next(iter(inner.values()), {})
    for clip, facts in found.items():
        if frames := _frames(facts):
            yield clip, frames


def _frames(facts: object) -> list[str]:
    """Return the frames of a clip; nothing where there are none, or it is no clip."""
    frames = facts.get("frames") if isinstance(facts, dict) else None
    return [str(frame) for frame in frames] if isinstance(frames, list) else []


def _person(clip: str) -> str:
    """Return who a clip of Celeb-DF shows, such as id3 for id3_id5_0002; else the clip itself."""
    found = re.match(r"id\d+(?=_)", clip)
    return found.group() if found else clip


def _looks_right(file: Path) -> bool:
    """Return whether a file is an object of objects of objects with the names of sets."""
    if file.stat().st_size > LARGEST:
        return False
    try:
        found = json.loads(file.read_bytes())
        labels = [splits for data_set in found.values() for splits in data_set.values()]
        parts = [part for splits in labels for part in splits.values()]
        names = {split.lower() for splits in labels for split in splits}
    except (ValueError, AttributeError, RecursionError):
        return False
    is_nested = all(isinstance(part, dict) for part in parts)
    return bool(names) and names <= set(SET_WORDS) and is_nested
