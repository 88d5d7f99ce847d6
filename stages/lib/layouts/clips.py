"""Videos as public data sets hold them: a file each, or a folder of frames that were cut out."""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath

from stages.lib.core.errors import UserError, short
from stages.lib.layouts.image_set import Row, is_video, media_files


def find_clips(root: Path, folder: str) -> dict[str, list[Row]]:
    """Return the rows of each clip in a folder, by the clip's name: one video, or its frames.

    A clip is `[videos/]NAME.mp4`, or the images in `frames/NAME/`; frames count where both are
    there. folder: relative to root, from which the names of the rows start.
    """
    videos: dict[str, list[Row]] = {}
    frames: dict[str, list[Row]] = defaultdict(list)
    for path in media_files(root / folder) if (root / folder).is_dir() else ():
        *inside, file = path.split("/")
        name = (PurePosixPath(folder) / path).as_posix()
        if is_video(file) and inside in ([], ["videos"]):
            stem = Path(file).stem
            if stem in videos:
                raise UserError(f"{root / folder}: has two videos named {short(stem)}; remove one")
            videos[stem] = [{"img_name": name}]
        elif not is_video(file) and inside[:1] == ["frames"] and len(inside) == 2:
            video = (PurePosixPath(folder) / "frames" / inside[1]).as_posix()
            frames[inside[1]].append({"img_name": name, "video": video})
    return videos | frames


def pairs_in(clips: Iterable[str]) -> dict[str, str]:
    """Return the pair of each clip of FaceForensics++, such as 033_097 for 033 and 097_033."""
    pairs = {}
    for clip in clips:
        if re.fullmatch(r"\d+_\d+", clip):
            numbers = sorted(clip.split("_"))
            pairs |= dict.fromkeys([clip, *numbers], "_".join(numbers))
    return pairs


@cache
def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Return at most `wanted` numbers below count, evenly spread."""
    wanted = min(count, wanted)
    return tuple(int((part + 0.5) * count / wanted) for part in range(wanted))
