"""The Deepfake Detection Challenge as it is unpacked (Dolhansky et al. 2020).

    dfdc_train_part_0/metadata.json   {"a.mp4": {"label": "FAKE", "split": "train", "original": "b.mp4"}}
    dfdc_train_part_0/a.mp4           or frames/a/*.png beside it

The file may be in the folder itself. A real and all fakes made from it are one group. The test sets
have `is_fake` in place of `label`.
"""  # noqa: E501

import json
import re
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.clips import find_clips
from stages.lib.data.layouts.image_set import (
    SET_NAMES,
    VIDEO_SUFFIXES,
    ImageSet,
    LeftOut,
    ListedImage,
    folders_in,
    sets_of,
)
from stages.lib.data.layouts.words import SET_WORDS, set_of

FILE = "metadata.json"
# How the file begins: with the name of a video and what is said of it.
_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
BEGINNING = re.compile(rf'\s*{{\s*"[^"]+({_SUFFIXES})"\s*:\s*{{'.encode(), re.IGNORECASE)
LABELS = {"REAL": REAL, "FAKE": FAKE, "0": REAL, "1": FAKE}


def is_dfdc(root: Path) -> bool:
    """Return whether a folder, or one inside it, has a metadata.json with labels of videos."""
    for file in _files(root):
        start = _start(file)
        if BEGINNING.match(start) and (b'"is_fake"' in start or b'"label"' in start):
            return True
    return False


def dfdc_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError for a damaged file."""
    sets: dict[str, list[ListedImage]] = {name: [] for name in SET_NAMES}
    num_missing, num_unnamed = 0, 0
    for file in _files(root):
        folder = file.parent.relative_to(root).as_posix()
        clips = find_clips(root, folder, left_out)
        for name, facts in _read(file).items():
            target, set_name = _target_and_set(file, name, facts)
            images = clips.pop(Path(name).stem, [])
            num_missing += not images
            source = folder if target == REAL else None
            group = str(facts.get("original") or name)
            told = {"target": target, "source": source, "given_group": group}
            sets[set_name] += [image | told for image in images]
        num_unnamed += len(clips)
        left_out.suffixes.subtract({file.suffix: 1})  # which has just been read
    if num_missing or num_unnamed:
        left_out.notes.append(
            f"left out {num_missing} videos that a {FILE} names and that are not in its folder, "
            f"and {num_unnamed} that none names"
        )
    return sets_of(root, sets)


def _target_and_set(file: Path, name: str, facts: dict[str, str | int]) -> tuple[int, str]:
    """Return the target and the set of a video; raises UserError."""
    if "label" not in facts and "is_fake" not in facts:
        raise UserError(f"{file}: '{short(name)}' has neither label nor is_fake")
    target = LABELS.get(str(facts.get("label", facts.get("is_fake"))))
    of_folder = set_of(file.parent.name) or ("test" if "is_fake" in facts else "train")
    set_name = SET_WORDS.get(str(facts.get("split", of_folder)).lower())
    if target is None or set_name is None:
        raise UserError(f"{file}: '{short(name)}': {short(facts)}: label or split unknown")
    return target, set_name


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(100_000)


def _files(root: Path) -> list[Path]:
    places = [root, *folders_in(root)]
    return [place / FILE for place in places if (place / FILE).is_file()]


def _read(file: Path) -> dict[str, dict[str, str | int]]:
    """Return the facts of each video; raises UserError."""
    try:
        videos = json.loads(file.read_bytes())
        if isinstance(videos, dict) and all(isinstance(facts, dict) for facts in videos.values()):
            return videos
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {short(error)}; unpack it again") from None
    raise UserError(
        f"{file}: not one object for each video; unpack the data set again, or set data.layout "
        "if it is another one"
    )
