"""Judge images: real, fake or unsure, and why.

Run: python -m stages.tools.detect PATH [PATH ...]
     python -m stages.tools.detect --verify RECORD [PATH ...]      repeat the verdicts of a record

PATH is a file, a folder, a glob, or - for a list of names on standard input, one a line.
Exit code: 0 all images were judged; 1 none was, for a mistake in the command or the model; 2 some
could not be judged, or --verify found a difference; 3 with --fail-on-fake, one of them is fake,
whatever else there is.
"""

import argparse
import csv
import glob
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import open_regular, write_text
from stages.lib.evaluation.verdict_rules import DOUBTS, REASONS, Thresholds
from stages.lib.images.decoding import SUFFIXES, UnusableImage
from stages.lib.images.ignored_files import is_dropping
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.load import load_examiner
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
from stages.tools.command_line import Parser, count, positive

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
    examiner = load_examiner(
        options.model, options.device, options.threads, options.crop, options.max_megapixels
    )
    sys.exit(verify(examiner, options) if options.verify else detect(examiner, options, earlier))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = Parser.of_tool("detect", __doc__)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="images")
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add("--no-crop", dest="crop", action="store_false",
        help="the images are faces that are cut out already: judge each one whole")  # fmt: skip
    add("--form", default="text", choices=PRINTERS, help="of the output: text, csv or json")
    add("--json", dest="form", action="store_const", const="json", help="one object a line")
    add("--csv", dest="form", action="store_const", const="csv", help="one row an image")
    add("--record", type=Path, metavar="FILE", help="add one JSON line per image to FILE")
    add("--resume", action="store_true", help="take verdicts that FILE has from there")
    add("--explain", type=Path, metavar="DIR", help="write a page for each image into DIR")
    add("--verify", type=Path, metavar="RECORD", help="repeat the verdicts of a record")
    add("--fail-on-fake", action="store_true", help=f"exit with {FOUND_FAKE} where one is fake")
    add("--max-megapixels", type=positive, default=100.0, help="of an image")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    add("--threads", type=count, default=2, help="of the CPU")
    end = arguments.index("--") if "--" in arguments else len(arguments)  # only paths come after it
    options = parser.parse_intermixed_args(arguments[:end])
    options.paths += arguments[end + 1 :]
    if not options.paths and not options.verify:
        parser.error("name one image or more")
    if options.resume and not options.record:
        parser.error("--resume needs --record FILE, which has what is done")
    return options


# ---------------------------------------------------------------------------------------------
# Files


def find_files(names: Sequence[str]) -> list[str]:
    """Return the files that the names stand for; raises UserError for a folder without images."""
    found = []
    for name in names:
        if name == "-":
            found += os.fsdecode(sys.stdin.buffer.read()).splitlines()
        elif Path(name).is_dir():
            found += images_in(Path(name))
        elif glob.has_magic(name) and not Path(name).exists():
            files = [file for file in glob.glob(name, recursive=True) if not Path(file).is_dir()]
            found += sorted(files) or [name]
        else:
            found.append(name)
    return found


def images_in(folder: Path) -> list[str]:
    """Return the images in a folder and say what is passed over; raises UserError for none."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    kept = [path for path in files if not is_dropping(path.relative_to(folder))]
    found = [str(path) for path in kept if path.suffix.lower() in SUFFIXES]
    numbers = {
        "passed over {} hidden files, thumbnails and the like": len(files) - len(kept),
        "left out {} files without the suffix of an image": len(kept) - len(found),
    }
    told = ", ".join(words.format(number) for words, number in numbers.items() if number)
    place = short(plain_name(str(folder)), 300)
    if not found:
        raise UserError(
            f"{place}: a folder without images{told and f' ({told})'}; name one that has some"
        )
    if told:
        print(f"{place}: {told}", file=sys.stderr)
    return found


def read_file(file: str) -> bytes:
    """Return the bytes of a file; raises UnusableImage."""
    try:
        with open_regular(Path(file)) as content:
            return content.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnusableImage(getattr(error, "strerror", None) or str(error)) from None
    except MemoryError:
        raise UnusableImage("too large for the memory of this machine") from None


def plain_name(file: str) -> str:
    """Return a file name in which bytes that are no UTF-8 are written as \\x.. ."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_named(plain: str) -> str:
    """Return the file whose name plain_name has written: these letters, or the bytes of \\x.. ."""
    if os.path.exists(plain):
        return plain
    escaped = re.compile(rb"\\x([89a-f][0-9a-f])")
    content = escaped.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(plain))
    return os.fsdecode(content)


def as_cell(text: str) -> str:
    """Return a text for a spreadsheet, which takes one that begins with = + - or @ for a formula.

    Marks that do not print, such as those that move a terminal's cursor, become \\x.. or \\u.... .
    """
    text = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# ---------------------------------------------------------------------------------------------
# Verdicts


def detect(examiner: Examiner, options: argparse.Namespace, earlier: list[Record]) -> int:
    """Judge the images and print their verdicts; return the exit code.

    earlier: the records that the file of --record has.
    """
    detector, counts = facts_of(examiner), Counter[str]()
    done = earlier if options.resume else []
    known = {one.sha256: one for one in done if same_detector(one.detector, detector)}
    files = find_files(options.paths)
    doubt = DOUBTS[examiner.rules.doubt] if examiner.rules.doubt else None
    printer = PRINTERS[options.form](detector, doubt)
    with progress_bar("detect", len(files), "images") as bar:
        for first in range(0, len(files), FILES_AT_A_TIME):
            batch = files[first : first + FILES_AT_A_TIME]
            for file, found, content in judge_files(
                examiner, batch, detector, known, options.record
            ):
                counts[found.verdict if isinstance(found, Record) else "error"] += 1
                printer.show(plain_name(file), found)
                if options.explain and isinstance(found, Record):
                    write_page(examiner, found, content, options.explain)
            bar.update(len(batch))
    told = [f"{counts[name]} {name}" for name in COLOURS if name != "error"]
    print(f"{', '.join(told)}, {counts['error']} not judged. {doubt or NO_PROOF} "
          f"{NO_PROVENANCE}", file=sys.stderr)  # fmt: skip
    if options.fail_on_fake and counts["fake"]:
        return FOUND_FAKE
    return SOME_FAILED if counts["error"] else 0


def judge_files(
    examiner: Examiner, files: Sequence[str], detector: DetectorFacts, known: dict[str, Record],
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
    verdicts = examiner.examine([contents[file] for file in new])
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


def write_page(examiner: Examiner, record: Record, content: bytes, folder: Path) -> None:
    """Write the page that explains a verdict into a folder."""
    from stages.lib.verdict.explanation import explain_image  # here, because it loads matplotlib

    stem = os.fsencode(Path(record.file).stem)[:100].decode("utf-8", "ignore")
    page = explain_image(examiner, record, content)
    write_text(folder / f"{stem}-{record.sha256[:12]}.html", page)


def verify(examiner: Examiner, options: argparse.Namespace) -> int:
    """Repeat the verdicts of a record and say which are the same; return the exit code.

    An image is looked for under its name in the record, and by its digest among the given paths.
    """
    (records, half), detector = read_records(options.verify), facts_of(examiner)
    elsewhere = {}
    for file in find_files(options.paths):
        try:
            elsewhere[hashlib.sha256(read_file(file)).hexdigest()] = file
        except UnusableImage as error:
            print(f"not read {short(plain_name(file), 300)}  {error}")
    counts, others = Counter[str](), Counter[str]()
    with progress_bar("verify", len(records), "images") as bar:
        for record in records:
            file = elsewhere.get(record.sha256) or file_named(record.file)
            problem = difference(examiner, detector, record, file)
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


def difference(examiner: Examiner, detector: DetectorFacts, record: Record, file: str) -> str:
    """Return in what a repeated verdict differs from the recorded one, or nothing."""
    if not same_detector(record.detector, detector):
        return f"judged by {short_facts(record.detector)}, not by {short_facts(detector)}"
    try:
        content = read_file(file)
    except UnusableImage as error:
        return f"{error}; name the folder where it is now"
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return "the file has other bytes now"
    (found,) = examiner.examine([content])
    if isinstance(found, UnusableImage):
        return str(found)
    repeated = make_record(record.file, found, detector, content)
    return "; ".join(differences(record, repeated))


def short_facts(detector: DetectorFacts) -> str:
    """Return the digests of a detector, and how it cuts images, in words."""
    digests = (detector.weights[:12], detector.config[:12], detector.rules[:12])
    kind = "int8, " if detector.quantised else ""
    return f"{'/'.join(digests)} ({kind}face_share {detector.face_share})"


# ---------------------------------------------------------------------------------------------
# Output


class TextPrinter:
    """One line an image, in colours on a terminal."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        words = doubt or limits_in_words(detector.thresholds)
        style = COLOURS["error"] if doubt else None
        self.console.print(f"{detector.model} {detector.weights[:12]}: {words}", style=style,
                           markup=False)  # fmt: skip

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the verdict of an image."""
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
    """One row an image, and a reason in place of a verdict where there is none."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        self.doubt = doubt
        self.writer = csv.DictWriter(sys.stdout, CSV_COLUMNS, lineterminator="\n")
        self.writer.writeheader()

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the row of an image."""
        if isinstance(found, UnusableImage):
            row = {"file": file, "verdict": "error", "why": str(found)}
        else:
            row = {
                "file": file, "doubt": self.doubt, "verdict": found.verdict,
                "num_faces": sum(face.box is not None for face in found.faces), "why": why(found),
                "provenance": str(found.provenance),
            } | probabilities(found)  # fmt: skip
        cells = {name: as_cell(one) if isinstance(one, str) else one for name, one in row.items()}
        self.writer.writerow(cells)


class JsonPrinter:
    """One object a line: the record of an image, or its name and error."""

    def __init__(self, detector: DetectorFacts, doubt: str | None) -> None:
        pass

    def show(self, file: str, found: Record | UnusableImage) -> None:
        """Print the object of an image."""
        print(as_json(file, found), flush=True)


PRINTERS = {"text": TextPrinter, "csv": CsvPrinter, "json": JsonPrinter}


def as_json(file: str, found: Record | UnusableImage) -> str:
    """Return the record of an image, or its name and error, as one line of JSON that prints."""
    if not isinstance(found, Record):
        return json.dumps({"file": file, "verdict": "error", "error": str(found)})
    line = found.model_dump_json()
    return "".join(mark if mark.isprintable() else json.dumps(mark)[1:-1] for mark in line)


def probabilities(record: Record) -> dict[str, object]:
    """Return the probability of an image and what it is compared with; nothing where withheld."""
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
    """Return from which probability an image is fake or real, and how often that is wrong."""
    return (
        f"fake from {limits.calibrated(limits.fake_from):.1%} ({limits.in_words('fake')}), real "
        f"below {limits.calibrated(limits.real_below):.1%} ({limits.in_words('real')})"
    )


def why(record: Record) -> str:
    """Return in words why a verdict is unsure, and which faces it does not count."""
    told = [REASONS[reason] for reason in record.reasons]
    return "; ".join([*told, record.not_searched] if record.not_searched else told)


def faces_in_words(record: Record) -> str:
    """Return the verdicts of several faces in words, such as `2 real, 1 fake`."""
    counts = Counter(face.verdict for face in record.faces)
    return "faces: " + ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    run_command(main)
