"""The lists of DeepfakeBench (Yan et al. 2023): one JSON file for a data set, with its frames.

    FaceForensics++.json    {"FaceForensics++": {"FF-DF": {"train": {"c23": {"071_054":
                                {"label": "FF-DF", "frames": ["FaceForensics++/.../000.png"]}}}}}}

A list lies in the folder that the paths of the frames start from. The compression is there for
FaceForensics++ alone, of which c23 counts. A label with `real` in it is that of reals; any other
one is the family of fakes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.layouts.clips import Row, pairs_in
from stages.lib.layouts.image_set import SET_NAMES, ImageSet, table_of
from stages.lib.layouts.words import SET_WORDS

PREFERRED = "c23"
LARGEST = 500_000_000  # bytes of a list


def list_of(root: Path) -> Path | None:
    """Return the one list in a folder, or nothing."""
    found = [file for file in sorted(root.glob("*.json")) if _looks_right(file)]
    return found[0] if len(found) == 1 else None


def deepfakebench_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets that the list in a folder names; raises UserError where it is damaged."""
    file = list_of(root)
    if not file:
        raise UserError(f"{root}: has no list of DeepfakeBench, or several; leave one in it")
    found = json.loads(file.read_bytes())
    pairs = pairs_in(
        clip for labels in found.values() for splits in labels.values()
        for part in splits.values() for clip, _ in _clips(part)
    )  # fmt: skip
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    for data_set, labels in found.items():
        for label, splits in labels.items():
            target = REAL if "real" in label.lower() else FAKE
            for split, clips in splits.items():
                set_name = SET_WORDS.get(split.lower())
                if not set_name:
                    raise UserError(f"{file}: split '{short(split)}' is none of train, val, test")
                for clip, frames in _clips(clips):
                    if not frames:
                        continue
                    group = pairs.get(clip) or _person(clip)
                    more = {"target": target, "video": f"{data_set}/{label}/{clip}",
                            "source" if target == REAL else "family": label,
                            "given_group": f"{data_set}/{group}"}  # fmt: skip
                    rows[set_name] += [{"img_name": frame.replace("\\", "/")} | more
                                       for frame in frames]  # fmt: skip
    return {name: ImageSet(name, root, table_of(of_set)) for name, of_set in rows.items() if of_set}


def _clips(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each clip with its frames; skips the compression folder where there is one."""
    if PREFERRED in found and "frames" not in found[PREFERRED]:
        found = found[PREFERRED]
    for clip, facts in found.items():
        yield clip, [str(frame) for frame in facts.get("frames", [])]


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
        names = {split.lower() for splits in labels for split in splits}
    except (ValueError, AttributeError):
        return False
    return bool(names) and names <= set(SET_WORDS)
