"""Finding, reading and examining the images and videos that a command line names."""

import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.lib.core.errors import UserError, short
from stages.lib.core.files import open_regular
from stages.lib.data.layouts.image_set import MEDIA_SUFFIXES, is_video
from stages.lib.images.decoding import UnusableImage
from stages.lib.images.ignored_files import is_ignored
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.record import (
    AnyRecord,
    DetectorIdentity,
    VideoRecord,
    make_record,
    make_video_record,
)
from stages.lib.verdict.videos import examine_video, sha256_of_open

ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")  # that is no ASCII


def find_files(paths: Sequence[str]) -> list[str]:
    """Return the files that paths stand for; raises UserError for a folder without any.

    A path is a file, a folder, a glob, or - for a list of files on standard input.
    """
    files = []
    for path in paths:
        if path == "-":
            files += os.fsdecode(sys.stdin.buffer.read()).splitlines()
        elif Path(path).is_dir():
            files += media_in(Path(path))
        elif glob.has_magic(path) and not Path(path).exists():
            matches = glob.glob(path, recursive=True)
            files += sorted(match for match in matches if not Path(match).is_dir()) or [path]
        else:
            files.append(path)
    return files


def media_in(folder: Path) -> list[str]:
    """Return the images and videos in a folder and print what is left out.

    Raises UserError where there are none.
    """
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    kept = [path for path in files if not is_ignored(path.relative_to(folder))]
    media = [str(path) for path in kept if path.suffix.lower() in MEDIA_SUFFIXES]
    left_out = []
    if len(kept) < len(files):
        num_dropped = len(files) - len(kept)
        left_out.append(f"passed over {num_dropped} hidden files, thumbnails and the like")
    if len(media) < len(kept):
        num_others = len(kept) - len(media)
        left_out.append(f"left out {num_others} files without the suffix of an image or a video")
    words = ", ".join(left_out)
    name = short(printable_name(str(folder)), 300)
    if not media:
        reason = f" ({words})" if words else ""
        raise UserError(
            f"{name}: a folder without images and videos{reason}; name one that has some"
        )
    if words:
        print(f"{name}: {words}", file=sys.stderr)
    return media


def read_file(file: str) -> bytes:
    """Return the bytes of a file; raises UnusableImage."""
    with opened(file) as content:
        return content.read()


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Yield a file that is open to read.

    Raises UnusableImage where it cannot be opened or read, or is too large for the memory.
    """
    try:
        content = open_regular(Path(file))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnusableImage(getattr(error, "strerror", None) or str(error)) from None
    with content:
        try:
            yield content
        except OSError as error:
            raise UnusableImage(error.strerror or str(error)) from None
        except MemoryError:
            raise UnusableImage("too large for the memory of this machine") from None


def digest_of(file: str) -> str:
    """Return the SHA-256 of a file; raises UnusableImage."""
    with opened(file) as content:
        return sha256_of_open(content)


def examine_files(
    examiner: Examiner, detector: DetectorIdentity, files: Sequence[str], frames: int
) -> dict[str, AnyRecord | UnusableImage]:
    """Return by its name the record of each file, or why it has none.

    frames: of a video that are judged.
    """
    videos = [file for file in files if is_video(file)]
    images = [file for file in files if not is_video(file)]
    of_videos = {file: examine_video_file(examiner, detector, file, frames) for file in videos}
    return examine_image_files(examiner, detector, images) | of_videos


def examine_image_files(
    examiner: Examiner, detector: DetectorIdentity, files: Sequence[str]
) -> dict[str, AnyRecord | UnusableImage]:
    """Return what examine_files does of images, which are examined together."""
    results: dict[str, AnyRecord | UnusableImage] = {}
    contents: dict[str, bytes] = {}
    for file in files:
        try:
            contents[file] = read_file(file)
        except UnusableImage as error:
            results[file] = error
    verdicts = examiner.examine(list(contents.values()))
    for (file, content), verdict in zip(contents.items(), verdicts, strict=True):
        if isinstance(verdict, UnusableImage):
            results[file] = verdict
        else:
            results[file] = make_record(printable_name(file), verdict, detector, content)
    return results


def examine_video_file(
    examiner: Examiner, detector: DetectorIdentity, file: str, frames: int
) -> VideoRecord | UnusableImage:
    """Return the record of a video, or why it has none."""
    try:
        with opened(file) as content:
            verdict = examine_video(examiner, content, frames)
            name = printable_name(file)
            return make_video_record(name, verdict, detector, examiner.rules, content)
    except UnusableImage as error:
        return error


def printable_name(file: str) -> str:
    """Return a file name in which bytes that are no UTF-8 are written as \\x.. ."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_of_name(name: str) -> str:
    """Return the file whose name printable_name has written."""
    if os.path.exists(name):  # these letters are its name
        return name
    content = ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name))
    return os.fsdecode(content)
