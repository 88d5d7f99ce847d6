"""Printing verdicts: as text for people, as CSV for spreadsheets, as JSON for programs."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from stages.lib.core.errors import short
from stages.lib.evaluation.verdict_rules import REASONS, Thresholds
from stages.lib.images.decoding import UnusableImage
from stages.lib.verdict.record import DetectorIdentity, Record

Result = tuple[str, Record | UnusableImage]  # a file name, and its record or why it has none
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
    "why",
    "provenance",
)


def print_text(results: Iterable[Result], detector: DetectorIdentity, doubt: str | None) -> None:
    """Print the detector, then one line an image, in colours on a terminal.

    doubt: the sentence why the detector cannot be believed.
    """
    console = Console(highlight=False, soft_wrap=True)
    words = doubt or limits_in_words(detector.thresholds)
    style = COLOURS["error"] if doubt else None
    console.print(f"{detector.model} {detector.weights[:12]}: {words}", style=style, markup=False)
    for file, result in results:
        console.print(text_line(short(file, 300), result))


def text_line(name: str, result: Record | UnusableImage) -> Text:
    """Return the line of an image in colours."""
    if isinstance(result, UnusableImage):
        return Text(f"{'error':<7}        {name}  ", COLOURS["error"]).append(str(result))
    probability = "-" if result.probability is None else f"{result.probability:.1%}"
    line = Text(f"{result.verdict:<7}", COLOURS[result.verdict])
    line.append(f" {probability:>6} ", "default").append(name, "bold")
    faces = faces_in_words(result) if len(result.faces) > 1 else ""
    for words in (faces, result.doubt, why(result), str(result.provenance)):
        if words:
            line.append(f"  [{words}]", "dim")
    return line


def print_csv(results: Iterable[Result], detector: DetectorIdentity, doubt: str | None) -> None:
    """Print one row an image, and a reason in place of a verdict where there is none."""
    writer = csv.DictWriter(sys.stdout, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for file, result in results:
        row = csv_row(file, result, doubt)
        writer.writerow({name: safe_cell(str(value)) for name, value in row.items()})


def csv_row(file: str, result: Record | UnusableImage, doubt: str | None) -> dict[str, object]:
    """Return the row of an image, without the cells that stay empty."""
    if isinstance(result, UnusableImage):
        return {"file": file, "verdict": "error", "why": result}
    row: dict[str, object] = {
        "file": file,
        "doubt": doubt or "",
        "verdict": result.verdict,
        "num_faces": sum(face.box is not None for face in result.faces),
        "why": why(result),
        "provenance": result.provenance,
    }
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


def print_json(results: Iterable[Result], detector: DetectorIdentity, doubt: str | None) -> None:
    """Print one object a line: the record of an image, or its name and error."""
    for file, result in results:
        print(json_line(file, result), flush=True)


def json_line(file: str, result: Record | UnusableImage) -> str:
    """Return the object of an image in one line; characters that do not print are escaped."""
    if isinstance(result, UnusableImage):
        return json.dumps({"file": file, "verdict": "error", "error": str(result)})
    line = result.model_dump_json()
    return "".join(mark if mark.isprintable() else json.dumps(mark)[1:-1] for mark in line)


def limits_in_words(limits: Thresholds) -> str:
    """Return from which probability an image is fake or real, and how often that is wrong."""
    return (
        f"fake from {limits.calibrated(limits.fake_from):.1%} ({limits.in_words('fake')}), real "
        f"below {limits.calibrated(limits.real_below):.1%} ({limits.in_words('real')})"
    )


def why(record: Record) -> str:
    """Return in words why a verdict is unsure, what a real one means, and what does not count."""
    words = [REASONS[reason] for reason in record.reasons]
    if record.no_sign_of and not record.doubt:
        words.append(f"no sign of {short(record.no_sign_of, 300)}")
    if record.not_searched:
        words.append(record.not_searched)
    return "; ".join(words)


def faces_in_words(record: Record) -> str:
    """Return the verdicts of several faces in words, such as `2 real, 1 fake`."""
    counts = Counter(face.verdict for face in record.faces)
    return "faces: " + ", ".join(f"{count} {name}" for name, count in counts.items())
