"""Videos as public data sets hold them: a file each, or a folder of frames that were cut out."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.image_set import LeftOut, ListedImage, is_video, media_files

FRAME_FOLDERS = ("frames", "images")
NO_CLIPS = ("videos", "masks", "landmarks")
PLACES = ("img_name", "video")  # where a clip may be named
PAIR = r"\b\d{3}_\d{3}\b"


def find_clips(root: Path, folder: str, left_out: LeftOut) -> dict[str, list[ListedImage]]:
    """Return the images of each clip in a folder, by the clip's name: one video, or its frames.

    A clip is `[videos/]NAME.mp4`, or the images in `[frames/ or images/]NAME/`; frames count where
    both are there. folder: relative to root, from which the names of the images start. left_out
    counts other files. Raises UserError where a clip is there twice.
    """
    videos: dict[str, list[ListedImage]] = {}
    frames: dict[str, list[ListedImage]] = defaultdict(list)
    for path in media_files(root / folder, left_out) if (root / folder).is_dir() else ():
        *inside, file = path.split("/")
        name = (PurePosixPath(folder) / path).as_posix()
        if is_video(file) and inside in ([], ["videos"]):
            stem = Path(file).stem
            if stem in videos:
                raise UserError(f"{root / folder}: has two videos named {short(stem)}; remove one")
            videos[stem] = [{"img_name": name}]
        elif not is_video(file) and _is_clip(inside):
            video = (PurePosixPath(folder) / "/".join(inside)).as_posix()
            frames[inside[-1]].append({"img_name": name, "video": video})
        else:
            left_out.num_elsewhere += 1
    for clip, images in frames.items():
        places = sorted({str(image["video"]) for image in images})
        if len(places) > 1:
            raise UserError(
                f"{root}: has the frames of {short(clip)} twice, in "
                f"{short(' and '.join(places), 200)}; remove one"
            )
    return videos | frames


def _is_clip(inside: Sequence[str]) -> bool:
    """Return whether the folders between that of the clips and an image are those of a clip."""
    if len(inside) == 2 and inside[0] in FRAME_FOLDERS:
        return True
    return len(inside) == 1 and inside[0] not in (*FRAME_FOLDERS, *NO_CLIPS)


def pairs_in(clips: Iterable[str]) -> dict[str, str]:
    """Return the pair of each clip of FaceForensics++, such as 033_097 for 033 and 097_033."""
    pairs = {}
    for clip in clips:
        if re.fullmatch(r"\d+_\d+", clip):
            numbers = sorted(clip.split("_"))
            pairs |= dict.fromkeys([clip, *numbers], "_".join(numbers))
    return pairs


def pair_groups(rows: pd.DataFrame) -> pd.Series:
    """Return the pair of each row whose file is named as in FaceForensics++, else nothing.

    A fake 033_097 and the reals 033 and 097 are of the pair 033_097.
    """
    with_pair = [rows[column].str.contains(PAIR, regex=True, na=False).any() for column in PLACES]
    if not any(with_pair):  # a look at each of millions of names takes time
        return pd.Series(None, rows.index, dtype="str")
    clips = pd.Series(map(_clip_name, rows["img_name"], rows["video"]), rows.index, dtype="str")
    reals = set(clips[rows["target"] == REAL].dropna())
    fakes = clips[rows["target"] == FAKE].dropna().unique()
    pairs = pairs_in(clip for clip in fakes if "_" in clip and reals & set(clip.split("_")))
    return clips.map(pairs).astype("str")


def _clip_name(name: str, video: object) -> str | None:
    """Return the name of a clip as FaceForensics++ has it: three digits, or two times three.

    The name of a frame is a number too, so that of its folder or video comes first.
    """
    places = [PurePosixPath(name).parent.name]
    if isinstance(video, str):
        places += [PurePosixPath(video).name, PurePosixPath(video).stem]
    else:
        places += [PurePosixPath(name).stem]
    return next((place for place in places if re.fullmatch(r"\d{3}(_\d{3})?", place)), None)


@cache
def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Return at most `wanted` numbers below count, evenly spread."""
    wanted = min(count, wanted)
    return tuple(int((part + 0.5) * count / wanted) for part in range(wanted))
