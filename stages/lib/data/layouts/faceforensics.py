"""FaceForensics++ as its script unpacks it (Roessler et al. 2019).

    original_sequences/youtube/c23/videos/033.mp4
    manipulated_sequences/Deepfakes/c23/videos/033_097.mp4    and the other methods
    train.json, val.json, test.json                           here or in splits/

or as Kaggle has its videos of one compression: `original/033.mp4`, `Deepfakes/033_097.mp4` ...
`frames/033/*.png` or `images/033/*.png` may stand beside or in place of `videos`. The lists are
those of the authors: pairs of numbers. Both videos of a pair and all fakes made from them are one
group. Without lists all clips are of the training set, and the names of fakes tell the pairs. Of
several compressions c23 counts.
"""

import json
import re
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.clips import find_clips, pairs_in
from stages.lib.data.layouts.image_set import SET_NAMES, ImageSet, LeftOut, Row, folders_in, sets_of

ORIGINAL, MANIPULATED = "original_sequences", "manipulated_sequences"
KAGGLE_ORIGINAL = "original"
KAGGLE_METHODS = ("Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures",
                  "DeepFakeDetection")  # fmt: skip
PREFERRED = "c23"
COMPRESSIONS = ("raw", "c0", "c23", "c40")


def is_faceforensics(root: Path) -> bool:
    """Return whether a folder has the two folders of this data set, or those of Kaggle."""
    return _is_as_unpacked(root) or any(
        re.fullmatch(r"\d{3}_\d{3}", path.stem)
        for method in KAGGLE_METHODS
        if (root / KAGGLE_ORIGINAL).is_dir() and (root / method).is_dir()
        for path in (root / method).iterdir()
    )


def _is_as_unpacked(root: Path) -> bool:
    return (root / ORIGINAL).is_dir() and (root / MANIPULATED).is_dir()


def faceforensics_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError for a list that is none of the authors'."""
    pairs = _pairs(root)
    if _is_as_unpacked(root):
        methods = [path for kind in (ORIGINAL, MANIPULATED) for path in folders_in(root / kind)]
        below = f"/{_compression(root, methods)}"
    else:
        names = (KAGGLE_ORIGINAL, *KAGGLE_METHODS)
        methods, below = [root / name for name in names if (root / name).is_dir()], ""
    clips = [
        (method, clip, found) for method in methods for clip, found in
        find_clips(root, f"{method.relative_to(root).as_posix()}{below}", left_out).items()
    ]  # fmt: skip
    by_name = pairs_in(clip for _, clip, _ in clips)
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    num_unlisted = 0
    for method, clip, found in clips:
        number = clip.split("_")[0]
        if pairs and number not in pairs:
            num_unlisted += len(found)
            continue
        own = number if "__" in clip else clip  # of the DeepFakeDetection part: the actor
        set_name, group = pairs.get(number, ("train", by_name.get(clip, own)))
        is_fake = method.parent.name == MANIPULATED or method.name in KAGGLE_METHODS
        more = {"target": FAKE if is_fake else REAL, "given_group": group,
                "family" if is_fake else "source": method.name}  # fmt: skip
        rows[set_name] += [row | more for row in found]
    if num_unlisted:
        print(
            f"{root}: left out {num_unlisted} files that no list of the authors names", flush=True
        )
    return sets_of(root, rows)


def _compression(root: Path, methods: list[Path]) -> str:
    """Return the compression that counts, the same for all methods; says which methods lack it."""
    found = {method: {name for name in COMPRESSIONS if (method / name).is_dir()}
             for method in methods}  # fmt: skip
    names = set().union(*found.values())
    if PREFERRED not in names and len(names) != 1:
        raise UserError(
            f"{root}: has the compressions {short(', '.join(sorted(names))) or 'none'}; leave one, "
            f"such as {PREFERRED}: else compression tells real from fake"
        )
    compression = PREFERRED if PREFERRED in names else names.pop()
    lacking = [method.name for method, own in found.items() if compression not in own]
    if lacking:
        print(f"{root}: left out {', '.join(lacking)}, without {compression}", flush=True)
    return compression


def _pairs(root: Path) -> dict[str, tuple[str, str]]:
    """Return the set and the group of each original video; empty where there are no lists."""
    found = {}
    for name in SET_NAMES:
        file = next((at for at in (root / f"{name}.json", root / f"splits/{name}.json")
                     if at.is_file()), None)  # fmt: skip
        if not file:
            continue
        try:
            for one, other in json.loads(file.read_bytes()):
                group = "_".join(sorted((str(one), str(other))))
                found |= {str(one): (name, group), str(other): (name, group)}
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}: not a list of pairs such as [['071', '054']]: {short(error)}"
            ) from None
    return found
