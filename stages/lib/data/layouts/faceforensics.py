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
from stages.lib.data.layouts.image_set import (
    SET_NAMES,
    ImageSet,
    LeftOut,
    ListedImage,
    folders_in,
    sets_of,
)

ORIGINAL, MANIPULATED = "original_sequences", "manipulated_sequences"
KAGGLE_ORIGINAL = "original"
KAGGLE_METHODS = (
    "Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures", "DeepFakeDetection",
)  # fmt: skip
PREFERRED = "c23"
COMPRESSIONS = ("raw", "c0", "c23", "c40")


def is_faceforensics(root: Path) -> bool:
    """Return whether a folder has the two folders of this data set, or those of Kaggle."""
    if _is_as_unpacked(root):
        return True
    if not (root / KAGGLE_ORIGINAL).is_dir():
        return False
    for folder in (root / name for name in KAGGLE_METHODS):
        files = folder.iterdir() if folder.is_dir() else ()
        if any(re.fullmatch(r"\d{3}_\d{3}", path.stem) for path in files):
            return True
    return False


def _is_as_unpacked(root: Path) -> bool:
    return (root / ORIGINAL).is_dir() and (root / MANIPULATED).is_dir()


def faceforensics_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError for a list that is none of the authors'."""
    listed = _read_lists(root)
    clips = _find_clips(root, left_out)
    pairs = pairs_in(name for _, name, _ in clips)
    sets: dict[str, list[ListedImage]] = {name: [] for name in SET_NAMES}
    num_unlisted = 0
    for folder, name, images in clips:
        number = name.split("_")[0]
        if listed and number not in listed:
            num_unlisted += len(images)
            continue
        person = number if "__" in name else name  # `__`: DeepFakeDetection, by number of actor
        set_name, group = listed.get(number, ("train", pairs.get(name, person)))
        is_fake = folder.parent.name == MANIPULATED or folder.name in KAGGLE_METHODS
        column, target = ("family", FAKE) if is_fake else ("source", REAL)
        facts = {"target": target, column: folder.name, "given_group": group}
        sets[set_name] += [image | facts for image in images]
    if num_unlisted:
        left_out.notes.append(f"left out {num_unlisted} files that no list of the authors names")
    return sets_of(root, sets)


def _find_clips(root: Path, left_out: LeftOut) -> list[tuple[Path, str, list[ListedImage]]]:
    """Return the clips: the folder of a method or of reals, a name, and one video or its frames."""
    if _is_as_unpacked(root):
        folders = [*folders_in(root / ORIGINAL), *folders_in(root / MANIPULATED)]
        below = _compression(root, folders, left_out)
    else:
        names = (KAGGLE_ORIGINAL, *KAGGLE_METHODS)
        folders, below = [root / name for name in names if (root / name).is_dir()], ""
    clips = []
    for folder in folders:
        inside = (folder / below).relative_to(root).as_posix()
        for name, images in find_clips(root, inside, left_out).items():
            clips.append((folder, name, images))
    return clips


def _compression(root: Path, folders: list[Path], left_out: LeftOut) -> str:
    """Return the compression that counts, the same for all folders; notes which ones lack it."""
    names = {name for name in COMPRESSIONS if any((folder / name).is_dir() for folder in folders)}
    if PREFERRED not in names and len(names) != 1:
        raise UserError(
            f"{root}: has the compressions {short(', '.join(sorted(names))) or 'none'}; leave one, "
            f"such as {PREFERRED}: else compression tells real from fake"
        )
    compression = PREFERRED if PREFERRED in names else names.pop()
    lacking = [folder.name for folder in folders if not (folder / compression).is_dir()]
    if lacking:
        left_out.notes.append(f"left out {', '.join(lacking)}, without {compression}")
    return compression


def _read_lists(root: Path) -> dict[str, tuple[str, str]]:
    """Return the set and the group of each original video; empty where there are no lists."""
    videos = {}
    for name in SET_NAMES:
        file = root / f"{name}.json"
        if not file.is_file():
            file = root / f"splits/{name}.json"
        if not file.is_file():
            continue
        try:
            for one, other in json.loads(file.read_bytes()):
                group = "_".join(sorted((str(one), str(other))))
                videos |= {str(one): (name, group), str(other): (name, group)}
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}: not a list of pairs such as [['071', '054']]: {short(error)}"
            ) from None
    return videos
