"""Judge pictures: real, fake or unsure, and why.

Run: python -m stages.tools.detect PATH [PATH ...]
     python -m stages.tools.detect --verify RECORD [PATH ...]      repeat the verdicts of a record

PATH is a file, a folder, a glob, or - for a list of names on standard input, one a line.
Exit code: 0 all pictures were judged; 1 none was, for a mistake in the command or the model; 2 some
could not be judged, or --verify found a difference; 3 with --fail-on-fake, one of them is fake,
whatever else there is.
"""

import argparse
import csv
import glob
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import write_text
from stages.lib.core.pictures import SUFFIXES, UnusableImage
from stages.lib.core.progress import progress_bar
from stages.lib.core.running import run_command
from stages.lib.verdict.command import Parser, count, positive
from stages.lib.verdict.judge import Judge
from stages.lib.verdict.load import load_judge
from stages.lib.verdict.record import (
    NOT_VERIFIED,
    DetectorFacts,
    Record,
    append_records,
    differences,
    facts_of,
    make_record,
    open_record,
    other_circumstances,
    read_records,
    same_detector,
)
from stages.lib.verdict.rules import DOUBTS, REASONS, Thresholds

FILES_AT_A_TIME = 16
SOME_FAILED, FOUND_FAKE = 2, 3
COLOURS = {"real": "green", "fake": "bold red", "unsure": "yellow", "error": "magenta"}
CSV_COLUMNS = ("file", "doubt", "verdict", "probability", "fake_from", "real_below", "false_alarms",
               "num_faces", "why", "provenance")  # fmt: skip
NO_PROOF = "A verdict is a reason to look closer, and no proof."
NO_PROVENANCE = "A file without provenance (C2PA, IPTC, EXIF) says nothing by that."


def main() -> None:
    """Judge what the command line names; the exit code is that of the module's text."""
    options = parse(sys.argv[1:])
    earlier, half = open_record(options.record) if options.record else ([], "")
    if half:
        print(f"{half}; it is written over", file=sys.stderr)
    judge = load_judge(
        options.model, options.device, options.threads, options.crop, options.max_megapixels
    )
    sys.exit(verify(judge, options) if options.verify else detect(judge, options, earlier))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = Parser.of_tool("detect", __doc__)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="pictures")
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add("--no-crop", dest="crop", action="store_false",
        help="the pictures are faces that are cut out already: judge each one whole")  # fmt: skip
    add("--form", default="text", choices=PRINTERS, help="of the output: text, csv or json")
    add("--json", dest="form", action="store_const", const="json", help="one object a line")
    add("--csv", dest="form", action="store_const", const="csv", help="one row a picture")
    add("--record", type=Path, metavar="FILE", help="add one JSON line per picture to FILE")
    add("--resume", action="store_true", help="take verdicts that FILE has from there")
    add("--explain", type=Path, metavar="DIR", help="write a page for each picture into DIR")
    add("--verify", type=Path, metavar="RECORD", help="repeat the verdicts of a record")
    add("--fail-on-fake", action="store_true", help=f"exit with {FOUND_FAKE} where one is fake")
    add("--max-megapixels", type=positive, default=100.0, help="of a picture")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    add("--threads", type=count, default=2, help="of the CPU")
    options = parser.parse_intermixed_args(arguments)
    if not options.paths and not options.verify:
        parser.error("name one picture or more")
    if options.resume and not options.record:
        parser.error("--resume needs --record FILE, which has what is done")
    return options


# ---------------------------------------------------------------------------------------------
# Files


def find_files(names: Sequence[str]) -> list[str]:
    """Return the files that the names stand for; raises UserError for a folder without pictures."""
    found = []
    for name in names:
        if name == "-":
            found += os.fsdecode(sys.stdin.buffer.read()).splitlines()
        elif Path(name).is_dir():
            inside = [
                str(path)
                for path in sorted(Path(name).rglob("*"))
                if path.suffix.lower() in SUFFIXES and not path.is_dir()
            ]
            if not inside:
                raise UserError(f"{name}: a folder without pictures; name one that has some")
            found += inside
        elif glob.has_magic(name) and not Path(name).exists():
            files = [file for file in glob.glob(name, recursive=True) if not Path(file).is_dir()]
            found += sorted(files) or [name]
        else:
            found.append(name)
    return found


def read_file(file: str) -> bytes:
    """Return the bytes of a file; raises UnusableImage."""
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnusableImage(getattr(error, "strerror", None) or str(error)) from None


def plain_name(file: str) -> str:
    """Return a file name in which bytes that are no UTF-8 are written as \\x.. ."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------------------------------------
# Verdicts


def detect(judge: Judge, options: argparse.Namespace, earlier: list[Record]) -> int:
    """Judge the pictures and print their verdicts; return the exit code.

    earlier: the records that the file of --record has.
    """
    detector, counts = facts_of(judge), Counter[str]()
    done = earlier if options.resume else []
    known = {one.sha256: one for one in done if same_detector(one.detector, detector)}
    files = find_files(options.paths)
    doubt = DOUBTS[judge.rules.doubt] if judge.rules.doubt else None
    printer = PRINTERS[options.form](detector, doubt)
    with progress_bar("detect", len(files), "pictures") as bar:
        for first in range(0, len(files), FILES_AT_A_TIME):
            batch = files[first : first + FILES_AT_A_TIME]
            for file, found, content in judge_files(judge, batch, detector, known, options.record):
                counts[found.verdict if isinstance(found, Record) else "error"] += 1
                printer.show(plain_name(file), found)
                if options.explain and isinstance(found, Record):
                    write_page(judge, found, content, options.explain)
            bar.update(len(batch))
    told = [f"{counts[name]} {name}" for name in COLOURS if name != "error"]
    print(f"{', '.join(told)}, {counts['error']} not judged. {doubt or NO_PROOF} "
          f"{NO_PROVENANCE}", file=sys.stderr)  # fmt: skip
    if options.fail_on_fake and counts["fake"]:
        return FOUND_FAKE
    return SOME_FAILED if counts["error"] else 0


def judge_files(
    judge: Judge, files: Sequence[str], detector: DetectorFacts, known: dict[str, Record],
    record: Path | None,
) -> Iterator[tuple[str, Record | UnusableImage, bytes]]:  # fmt: skip
    """Yield for each file its record, or why it cannot be judged, and its bytes.

    known: records by the SHA-256 of their file, which are taken as they are. record: where to add
    the new ones.
    """
    contents, found, new = {}, {}, []
    for file in files:
        try:
            contents[file] = read_file(file)
        except UnusableImage as error:
            found[file], contents[file] = error, b""
            continue
        earlier = known.get(hashlib.sha256(contents[file]).hexdigest()) if known else None
        if earlier:
            found[file] = earlier.model_copy(update={"file": plain_name(file)})
        else:
            new.append(file)
    verdicts = judge.judge([contents[file] for file in new])
    for file, verdict in zip(new, verdicts, strict=True):
        if isinstance(verdict, UnusableImage):
            found[file] = verdict
        else:
            found[file] = make_record(plain_name(file), verdict, detector, contents[file])
    if record:
        taken = {(one.sha256, one.file) for one in known.values()}
        records = [one for one in found.values() if isinstance(one, Record)]
        append_records(record, [one for one in records if (one.sha256, one.file) not in taken])
    for file in files:
        yield file, found[file], contents[file]


def write_page(judge: Judge, record: Record, content: bytes, folder: Path) -> None:
    """Write the page that explains a verdict into a folder."""
    from stages.lib.verdict.explanation import explain_picture  # here, because it loads matplotlib

    stem = os.fsencode(Path(record.file).stem)[:100].decode("utf-8", "ignore")
    page = explain_picture(judge, record, content)
    write_text(folder / f"{stem}-{record.sha256[:12]}.html", page)


def verify(judge: Judge, options: argparse.Namespace) -> int:
    """Repeat the verdicts of a record and say which are the same; return the exit code.

    A picture is looked for under its name in the record, and by its digest among the given paths.
    """
    (records, half), detector = read_records(options.verify), facts_of(judge)
    elsewhere = {}
    for file in find_files(options.paths):
        try:
            elsewhere[hashlib.sha256(read_file(file)).hexdigest()] = file
        except UnusableImage as error:
            print(f"not read {short(plain_name(file), 300)}  {error}")
    counts, others = Counter[str](), Counter[str]()
    with progress_bar("verify", len(records), "pictures") as bar:
        for record in records:
            problem = difference(judge, detector, record, elsewhere.get(record.sha256, record.file))
            counts["other" if problem else "same"] += 1
            others[other_circumstances(record.detector, detector)] += 1
            print(f"{'DIFFERS' if problem else 'same':<8} {short(record.file, 300)}  {problem}")
            bar.update()
    for words, number in others.items():
        if words:
            print(f"{number} records were made elsewhere; here: {words}", file=sys.stderr)
    if half:
        print(half, file=sys.stderr)
    print(f"{counts['same']} verdicts are the same, {counts['other']} differ. What cannot be "
          f"verified: {NOT_VERIFIED}", file=sys.stderr)  # fmt: skip
    return SOME_FAILED if counts["other"] or half else 0


def difference(judge: Judge, detector: DetectorFacts, record: Record, file: str) -> str:
    """Return in what a repeated verdict differs from the recorded one, or nothing."""
    if not same_detector(record.detector, detector):
        return f"judged by {short_facts(record.detector)}, not by {short_facts(detector)}"
    try:
        content = read_file(file)
    except UnusableImage as error:
        return f"{error}; name the folder where it is now"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return "the file has other bytes now"
    (found,) = judge.judge([content])
    if isinstance(found, UnusableImage):
        return str(found)
    repeated = make_record(record.file, found, detector, content)
    return "; ".join(differences(record, repeated))


def short_facts(detector: DetectorFacts) -> str:
    """Return the digests of a detector, and how it cuts pictures, in words."""
    digests = (detector.weights[:12], detector.config[:12], detector.rules[:12])
    kind = "int8, " if detector.quantised else ""
    return f"{'/'.join(digests)} ({kind}face_share {detector.face_share})"


# ---------------------------------------------------------------------------------------------
# Output


class TextPrinter:
    """One line a picture, in colours on a terminal."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        words = doubt or limits_in_words(detector.thresholds)
        style = COLOURS["error"] if doubt else None
        self.console.print(f"{detector.model} {detector.weights[:12]}: {words}", style=style,
                           markup=False)  # fmt: skip

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the verdict of a picture."""
        name = short(file, 300)
        if isinstance(found, UnusableImage):
            line = Text(f"{'error':<7}        {name}  ", COLOURS["error"]).append(str(found))
            self.console.print(line)
            return
        line = Text(f"{found.verdict:<7}", COLOURS[found.verdict])
        probability = "-" if found.probability is None else f"{found.probability:.1%}"
        line.append(f" {probability:>6} ", "default").append(name, "bold")
        words = [found.doubt, why(found), str(found.provenance)]
        if len(found.faces) > 1:
            words.insert(0, faces_in_words(found))
        line.append("".join(f"  [{one}]" for one in words if one), "dim")
        self.console.print(line)


class CsvPrinter:
    """One row a picture, and a reason in place of a verdict where there is none."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        self.doubt = doubt
        self.writer = csv.DictWriter(sys.stdout, CSV_COLUMNS, lineterminator="\n")
        self.writer.writeheader()

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the row of a picture."""
        if isinstance(found, UnusableImage):
            row = {"file": file, "verdict": "error", "why": str(found)}
        else:
            row = {
                "file": file, "doubt": self.doubt, "verdict": found.verdict,
                "num_faces": sum(face.box is not None for face in found.faces), "why": why(found),
                "provenance": str(found.provenance),
            } | probabilities(found)  # fmt: skip
        self.writer.writerow(row)


class JsonPrinter:
    """One object a line: the record of a picture, or its name and error."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        pass

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the object of a picture."""
        print(as_json(file, found), flush=True)


PRINTERS = {"text": TextPrinter, "csv": CsvPrinter, "json": JsonPrinter}


def as_json(file: str, found: Record | UnusableImage) -> str:
    """Return the record of a picture, or its name and error, as one line of JSON."""
    if isinstance(found, Record):
        return found.model_dump_json()
    return json.dumps({"file": file, "verdict": "error", "error": str(found)})


def probabilities(record: Record) -> dict[str, object]:
    """Return the probability of a picture and what it is compared with; nothing where withheld."""
    if record.probability is None:
        return {}
    limits = record.detector.thresholds
    return {
        "probability": f"{record.probability:.6f}",
        "fake_from": f"{limits.calibrated(limits.fake_from):.6f}",
        "real_below": f"{limits.calibrated(limits.real_below):.6f}",
        "false_alarms": limits.false_alarms,
    }


def limits_in_words(limits: Thresholds) -> str:
    """Return from which probability a picture is fake or real, and how often that is wrong."""
    return (
        f"fake from {limits.calibrated(limits.fake_from):.1%} ({limits.in_words('fake')}), real "
        f"below {limits.calibrated(limits.real_below):.1%} ({limits.in_words('real')})"
    )


def why(record: Record) -> str:
    """Return in words why a verdict is unsure."""
    return "; ".join(REASONS[reason] for reason in record.reasons)


def faces_in_words(record: Record) -> str:
    """Return the verdicts of several faces in words, such as `2 real, 1 fake`."""
    counts = Counter(face.verdict for face in record.faces)
    return "faces: " + ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    run_command(main)
