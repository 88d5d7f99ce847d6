"""Celeb-DF v1 and v2 as they are unpacked (Li et al. 2020).

    Celeb-real/id0_0000.mp4    YouTube-real/00000.mp4    Celeb-synthesis/id0_id1_0000.mp4
    List_of_testing_videos.txt    `1 YouTube-real/00170.mp4`; 1 means real there

`Celeb-real/frames/id0_0000/*.png`, or the same without `frames`, may stand beside or in place of
the videos. All videos of a person, and the fakes that show this person's head with another face,
are one group. What the list does not name is for training.
"""

from pathlib import Path, PurePosixPath

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.clips import find_clips
from stages.lib.data.layouts.image_set import ImageSet, LeftOut, ListedImage, sets_of

FOLDERS = {"Celeb-real": REAL, "YouTube-real": REAL, "Celeb-synthesis": FAKE}
LIST = "List_of_testing_videos.txt"


def is_celeb_df(root: Path) -> bool:
    """Return whether a folder has the folders of fakes and of reals of this data set."""
    return all((root / name).is_dir() for name in ("Celeb-real", "Celeb-synthesis"))


def celeb_df_sets(root: Path, left_out: LeftOut) -> dict[str, ImageSet]:
    """Return the sets train and test; raises UserError for a damaged list."""
    for_testing = _read_list(root / LIST)
    missing = set(for_testing)
    sets: dict[str, list[ListedImage]] = {"train": [], "test": []}
    for folder, target in FOLDERS.items():
        column = "family" if target == FAKE else "source"
        for clip, images in find_clips(root, folder, left_out).items():
            person = clip.split("_")[0] if clip.startswith("id") else clip
            facts = {"target": target, column: folder, "given_group": f"{folder[:5]}/{person}"}
            set_name = "test" if f"{folder}/{clip}" in for_testing else "train"
            sets[set_name] += [image | facts for image in images]
            missing.discard(f"{folder}/{clip}")
    if missing:
        count = f"{len(missing)} of the {len(for_testing)}"
        left_out.notes.append(f"{count} videos for testing are missing")
    return sets_of(root, sets)


def _read_list(file: Path) -> set[str]:
    """Return the clips for testing, without suffixes; raises UserError."""
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; it came with the videos and lists those for testing"
        )
    clips = set()
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        label, _, path = line.strip().partition(" ")
        if label not in ("0", "1") or "/" not in path:
            raise UserError(f"{file}:{number}: '{short(line)}', expected `1 Folder/video.mp4`")
        clips.add(PurePosixPath(path.strip()).with_suffix("").as_posix())
    return clips
