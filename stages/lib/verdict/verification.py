"""Repeating the verdicts of a record, and what may differ: rounding, the device and versions."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.lib.core.errors import short
from stages.lib.images.decoding import UnusableImage
from stages.lib.progress import progress_bar
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.files import (
    digest_of,
    examine_image_files,
    examine_video_file,
    file_of_name,
    find_files,
    printable_name,
)
from stages.lib.verdict.record import (
    AnyRecord,
    DetectorIdentity,
    VideoRecord,
    identity_of,
    read_records,
    same_detector,
)

SCORE_TOLERANCE = 1e-4  # of a score that is repeated in another batch or on another CPU
# Fields of the detector in which a repeated verdict may differ.
CIRCUMSTANCES = {"device", "arithmetic", "runtime", "versions"}
NOT_VERIFIED = (
    "the time of a verdict, the name that its file had, and the device, arithmetic and versions "
    "that have computed it"
)


def verify(examiner: Examiner, record_file: Path, paths: Sequence[str]) -> bool:
    """Repeat the verdicts of a record and print which are the same; return whether all are.

    A file is looked for among the files of `paths`, by its digest, and under its name in the
    record.
    """
    records, half_line = read_records(record_file)
    detector = identity_of(examiner)
    moved = files_by_digest(paths)
    num_different = 0
    circumstances = Counter[str]()
    with progress_bar("verify", len(records)) as bar:
        for record in records:
            file = moved.get(record.sha256) or file_of_name(record.file)
            problem = compare(examiner, detector, record, file)
            num_different += bool(problem)
            circumstances[other_circumstances(record.detector, detector)] += 1
            print(f"{'DIFFERS' if problem else 'same':<8} {short(record.file, 300)}  {problem}")
            bar.update()
    for words, number in circumstances.items():
        if words:
            print(f"{number} records were made elsewhere; here: {words}", file=sys.stderr)
    if half_line:
        print(half_line, file=sys.stderr)
    print(
        f"{len(records) - num_different} verdicts are the same, {num_different} differ. What "
        f"cannot be verified: {NOT_VERIFIED}",
        file=sys.stderr,
    )
    return not num_different and not half_line


def files_by_digest(paths: Sequence[str]) -> dict[str, str]:
    """Return the files of paths by their SHA-256; print which cannot be read."""
    files = {}
    for file in find_files(paths):
        try:
            files[digest_of(file)] = file
        except UnusableImage as error:
            print(f"not read {short(printable_name(file), 300)}  {error}")
    return files


def compare(examiner: Examiner, detector: DetectorIdentity, record: AnyRecord, file: str) -> str:
    """Return in words how the verdict of a file differs from the recorded one, or ""."""
    if not same_detector(record.detector, detector):
        return f"made by {digests_in_words(record.detector)}, not by {digests_in_words(detector)}"
    try:
        digest = digest_of(file)
    except UnusableImage as error:
        return f"{error}; name the folder where it is now"
    if digest != record.sha256:
        return "the file has other bytes now"
    if isinstance(record, VideoRecord):
        repeated = examine_video_file(examiner, detector, file, record.frames_wanted)
    else:
        (repeated,) = examine_image_files(examiner, detector, [file]).values()
    if isinstance(repeated, UnusableImage):
        return str(repeated)
    return "; ".join(differences(record, repeated))


def digests_in_words(detector: DetectorIdentity) -> str:
    """Return the digests of a detector and how it cuts images, in words."""
    digests = f"{detector.weights[:12]}/{detector.config[:12]}/{detector.rules[:12]}"
    kind = "int8, " if detector.quantised else ""
    return f"{digests} ({kind}face_share {detector.face_share})"


def other_circumstances(recorded: DetectorIdentity, now: DetectorIdentity) -> str:
    """Return in words on what else a repeated verdict was computed, or ""."""
    old, new = circumstances_of(recorded), circumstances_of(now)
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {new.get(name)}, not {old.get(name)}" for name in names)


def circumstances_of(detector: DetectorIdentity) -> dict[str, str]:
    """Return on what a detector computes, with the versions of all packages."""
    names = ("device", "arithmetic", "runtime", "network")
    return {name: getattr(detector, name) for name in names} | detector.versions


def differences(recorded: AnyRecord, repeated: AnyRecord) -> list[str]:
    """Return in words how a repeated verdict differs from the recorded one.

    Scores may differ by SCORE_TOLERANCE, numbers above 1 by this share of them. All else must be
    equal, but for NOT_VERIFIED. The exported network may be another one where it ran in another
    runtime.
    """
    left_out = CIRCUMSTANCES
    if recorded.detector.runtime != repeated.detector.runtime:
        left_out = CIRCUMSTANCES | {"network"}
    exclude = {"time": True, "file": True, "detector": left_out}
    old, new = recorded.model_dump(exclude=exclude), repeated.model_dump(exclude=exclude)
    of_detector = _differences("detector", old.pop("detector"), new.pop("detector"), tolerance=0)
    return _differences("", old, new, SCORE_TOLERANCE) + of_detector


def _differences(place: str, old: Any, new: Any, tolerance: float) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts = [(name, old[name], new[name]) for name in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = list(zip(range(1, len(old) + 1), old, new, strict=True))
    else:
        are_numbers = isinstance(old, float) and isinstance(new, float)
        is_same = abs(old - new) <= tolerance * max(1, abs(old)) if are_numbers else old == new
        return [] if is_same else [f"{place.strip()}: {short(new)}, not {short(old)}"]
    words = []
    for name, old_part, new_part in parts:
        words += _differences(f"{place} {name}", old_part, new_part, tolerance)
    return words
