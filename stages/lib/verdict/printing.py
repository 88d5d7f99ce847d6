"""Printing verdicts: as text for people, as CSV for spreadsheets, as JSON for programs."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from stages.lib.core.errors import short
from stages.lib.evaluation.verdict_rules import REASONS, Thresholds
from stages.lib.images.decoding import UnusableImage
from stages.lib.verdict.record import AnyRecord, DetectorIdentity, VideoRecord, parse_record
from stages.lib.verdict.results import PersonVerdict

Result = tuple[str, AnyRecord | UnusableImage]  # a file name, and its record or why it has none
NO_PROOF = "A verdict is a reason to look closer. It does not prove that an image is real or fake."
MOST_NAMED = 4  # persons, in a line
COLOURS = {"real": "green", "fake": "bold red", "unsure": "yellow", "error": "magenta"}
CSV_COLUMNS = (
    "file",
    "doubt",
    "verdict",
    "probability",
    "fake_from",
    "real_below",
    "false_alarms",
    "num_faces",
    "num_persons",
    "num_frames",
    "persons",
    "why",
    "provenance",
)


def print_text(
    results: Iterable[Result], detector: DetectorIdentity, doubt: str | None, learnt_from: str
) -> None:
    """Print the detector on two lines, then one line a file, in colours on a terminal.

    doubt: the sentence why the detector cannot be believed. learnt_from: in words.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{detector.model} {detector.weights[:12]}, {learnt_from}", markup=False)
    words = doubt or limits_in_words(detector.thresholds)
    console.print(words, style=COLOURS["error"] if doubt else None, markup=False)
    for file, result in results:
        console.print(text_line(short(file, 300), result))


def text_line(name: str, result: AnyRecord | UnusableImage) -> Text:
    """Return the line of a file in colours."""
    if isinstance(result, UnusableImage):
        return Text(f"{'error':<7}        {name}  ", COLOURS["error"]).append(str(result))
    probability = "-" if result.probability is None else f"{result.probability:.1%}"
    line = Text(f"{result.verdict:<7}", COLOURS[result.verdict])
    line.append(f" {probability:>6} ", "default").append(name, "bold")
    for words in (parts_in_words(result), result.doubt, why(result), str(result.provenance)):
        if words:
            line.append(f"  [{words}]", "dim")
    return line


def print_csv(
    results: Iterable[Result], detector: DetectorIdentity, doubt: str | None, learnt_from: str
) -> None:
    """Print one row a file, and a reason in place of a verdict where there is none."""
    write_csv(sys.stdout, results, doubt)


def write_csv(output: TextIO, results: Iterable[Result], doubt: str | None) -> None:
    """Write what print_csv prints."""
    writer = csv.DictWriter(output, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for file, result in results:
        row = csv_row(file, result, doubt)
        writer.writerow({name: safe_cell(str(value)) for name, value in row.items()})


def csv_row(file: str, result: AnyRecord | UnusableImage, doubt: str | None) -> dict[str, object]:
    """Return the row of a file, without the cells that stay empty."""
    if isinstance(result, UnusableImage):
        return {"file": file, "verdict": "error", "why": result}
    row: dict[str, object] = {
        "file": file,
        "doubt": doubt or "",
        "verdict": result.verdict,
        "why": why(result),
        "provenance": result.provenance,
    }
    if isinstance(result, VideoRecord):
        row |= {"num_persons": len(result.persons), "num_frames": result.frames_judged}
        row["persons"] = parts_in_words(result)
    else:
        row["num_faces"] = sum(face.box is not None for face in result.faces)
    if result.probability is None:  # withheld, and so is what it is compared with
        return row
    limits = result.detector.thresholds
    return row | {
        "probability": f"{result.probability:.6f}",
        "fake_from": f"{limits.calibrated(limits.fake_from):.6f}",
        "real_below": f"{limits.calibrated(limits.real_below):.6f}",
        "false_alarms": limits.false_alarms,
    }


def safe_cell(text: str) -> str:
    """Return a text for a spreadsheet, which takes one that begins with = + - or @ for a formula.

    Characters that do not print, such as those that move a terminal's cursor, become \\x.. .
    """
    text = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_json(
    results: Iterable[Result], detector: DetectorIdentity, doubt: str | None, learnt_from: str
) -> None:
    """Print one object a line: the record of a file, or its name and error."""
    for file, result in results:
        print(json_line(file, result), flush=True)


def json_line(file: str, result: AnyRecord | UnusableImage) -> str:
    """Return the object of a file in one line; characters that do not print are escaped."""
    if isinstance(result, UnusableImage):
        return json.dumps({"file": file, "verdict": "error", "error": str(result)})
    line = result.model_dump_json()
    return "".join(mark if mark.isprintable() else json.dumps(mark)[1:-1] for mark in line)


def parse_result(line: bytes) -> Result:
    """Return what json_line has written; raises ValueError or KeyError for anything else."""
    content = json.loads(line)
    if isinstance(content, dict) and content.get("verdict") == "error":
        return content["file"], UnusableImage(content["error"])
    record = parse_record(line)
    return record.file, record


def limits_in_words(limits: Thresholds) -> str:
    """Return from which probability an image is fake or real, and how often that is wrong."""
    return (
        f"fake from {limits.calibrated(limits.fake_from):.1%} ({limits.in_words('fake')}), real "
        f"below {limits.calibrated(limits.real_below):.1%} ({limits.in_words('real')})"
    )


def why(record: AnyRecord) -> str:
    """Return in words why a verdict is unsure, what a real one means, and what does not count."""
    words = [REASONS[reason] for reason in record.reasons]
    if record.no_sign_of and not record.doubt:
        words.append(f"no sign of {short(record.no_sign_of, 300)}")
    if record.not_searched:
        words.append(record.not_searched)
    if isinstance(record, VideoRecord) and not record.doubt:
        words += thresholds_in_words(record)
    return "; ".join(words)


def thresholds_in_words(record: VideoRecord) -> list[str]:
    """Return that the thresholds are those of images, where they are."""
    return (
        ["thresholds of images, as videos were too few"] if record.thresholds_of == "images" else []
    )


def parts_in_words(record: AnyRecord) -> str:
    """Return what was judged, and of a video which persons decide, and when they are seen."""
    words = [judged_in_words(record)]
    if isinstance(record, VideoRecord) and len(record.persons) > 1:
        words += [
            person_in_words(number, person)
            for number, person in enumerate(record.persons, 1)
            if person.verdict == record.verdict != "real"
        ][:MOST_NAMED]
    return "; ".join(words)


def judged_in_words(record: AnyRecord) -> str:
    """Return the verdicts of several faces or persons, such as `faces: 2 real, 1 fake`."""
    if not isinstance(record, VideoRecord):
        return f"faces: {_counts(record)}" if len(record.faces) > 1 else ""
    frames = f"{record.frames_judged} of {record.num_frames} frames"
    if is_whole(record):
        return f"{frames}, examined whole"
    if len(record.persons) == 1:
        return f"1 person in {frames}{same_side_in_words(record.persons[0])}"
    return f"persons in {frames}: {_counts(record)}"


def is_whole(record: VideoRecord) -> bool:
    """Return whether frames were examined whole: as wanted, or because none has a face."""
    return record.detector.face_share is None or record.persons[0].face_size == 0


def same_side_in_words(person: PersonVerdict) -> str:
    """Return how much the frames of a person agree, or nothing where a doubt withholds figures."""
    return "" if person.probability is None else f", {person.same_side:.0%} on the same side"


def person_in_words(number: int, person: PersonVerdict) -> str:
    """Return which person has which verdict, and when it is seen."""
    first, last = person.frames[0].seconds, person.frames[-1].seconds
    return (
        f"person {number} {person.verdict}, {len(person.frames)} frames from {first:.1f} s to "
        f"{last:.1f} s{same_side_in_words(person)}"
    )


def _counts(record: AnyRecord) -> str:
    counts = Counter(part.verdict for part in record.parts)
    return ", ".join(f"{count} {name}" for name, count in counts.items())
