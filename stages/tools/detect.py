"""Examine images: real, fake or unsure, and why.

Run: python -m stages.tools.detect PATH [PATH ...]
     python -m stages.tools.detect --verify RECORD [PATH ...]      repeat the verdicts of a record

PATH is a file, a folder, a glob, or - for a list of names on standard input, one a line.
Exit code: 0 every image has a verdict; 1 the command or the model is wrong, and no image has one; 2
some images have none, or --verify found a difference; 3 with --fail-on-fake, an image is fake,
whatever else there is.
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.lib import paths
from stages.lib.core.files import write_text
from stages.lib.evaluation.verdict_rules import DOUBTS
from stages.lib.images.decoding import UnusableImage
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.image_files import find_files, printable_name, read_file
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.printing import Result, print_csv, print_json, print_text
from stages.lib.verdict.record import (
    DetectorIdentity,
    Record,
    append_records,
    identity_of,
    make_record,
    open_record,
    same_detector,
)
from stages.lib.verdict.verification import verify
from stages.tools.command_line import add_device_and_threads, parser_of, positive

FILES_AT_A_TIME = 16
SOME_FAILED, ONE_IS_FAKE = 2, 3
PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}
NO_PROOF = "A verdict is a reason to look closer. It does not prove that an image is real or fake."
NO_PROVENANCE = "Missing provenance (C2PA, IPTC, EXIF) means nothing."


def main() -> None:
    """Examine what the command line names; the exit code is that of the module's text."""
    options = parse(sys.argv[1:])
    recorded = []
    if options.record:
        recorded, half_line = open_record(options.record)
        if half_line:
            print(f"{half_line}; it is replaced", file=sys.stderr)
    examiner = load_examiner(
        options.model, options.device, options.threads, options.crop, options.max_megapixels
    )
    if options.verify:
        all_same = verify(examiner, options.verify, options.paths)
        sys.exit(0 if all_same else SOME_FAILED)
    sys.exit(detect(examiner, options, recorded))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = parser_of(__doc__, "stages.tools.detect")
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="images")
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add(
        "--no-crop",
        dest="crop",
        action="store_false",
        help="the images are faces that are cut out already: examine each one whole",
    )
    add("--form", default="text", choices=PRINTERS, help="of the output: text, csv or json")
    add("--json", dest="form", action="store_const", const="json", help="one object a line")
    add("--csv", dest="form", action="store_const", const="csv", help="one row an image")
    add("--record", type=Path, metavar="FILE", help="add one JSON line per image to FILE")
    add("--resume", action="store_true", help="examine no image that FILE has already")
    add("--explain", type=Path, metavar="DIR", help="write a page for each image into DIR")
    add("--verify", type=Path, metavar="RECORD", help="repeat the verdicts of a record")
    add("--fail-on-fake", action="store_true", help=f"exit with {ONE_IS_FAKE} where one is fake")
    add("--max-megapixels", type=positive, default=100.0, help="of an image")
    add_device_and_threads(parser)
    end = arguments.index("--") if "--" in arguments else len(arguments)  # only paths come after it
    options = parser.parse_intermixed_args(arguments[:end])
    options.paths += arguments[end + 1 :]
    if not options.paths and not options.verify:
        parser.error("name one image or more")
    if options.resume and not options.record:
        parser.error("--resume needs --record FILE, the record to continue")
    return options


def detect(examiner: Examiner, options: argparse.Namespace, recorded: list[Record]) -> int:
    """Examine the images and print their verdicts; return the exit code.

    recorded: the records that the file of --record has.
    """
    files = find_files(options.paths)
    detector = identity_of(examiner)
    doubt = DOUBTS[examiner.rules.doubt] if examiner.rules.doubt else None
    done = []
    if options.resume:
        done = [record for record in recorded if same_detector(record.detector, detector)]
    counts = Counter[str]()
    results = examine_all(examiner, detector, files, options, done, counts)
    PRINTERS[options.form](results, detector, doubt)
    print(
        f"{counts['real']} real, {counts['fake']} fake, {counts['unsure']} unsure, "
        f"{counts['error']} not examined. {doubt or NO_PROOF} {NO_PROVENANCE}",
        file=sys.stderr,
    )
    if options.fail_on_fake and counts["fake"]:
        return ONE_IS_FAKE
    return SOME_FAILED if counts["error"] else 0


def examine_all(
    examiner: Examiner,
    detector: DetectorIdentity,
    files: Sequence[str],
    options: argparse.Namespace,
    done: list[Record],
    counts: Counter[str],
) -> Iterator[Result]:
    """Yield the result of each file, a batch at a time; write its record and its page.

    done: records to take as they are. counts: how often each verdict, or an error, occurs.
    """
    record_of = {record.sha256: record for record in done}
    names = {(record.sha256, record.file) for record in done}
    with progress_bar("detect", len(files)) as bar:
        for first in range(0, len(files), FILES_AT_A_TIME):
            batch = files[first : first + FILES_AT_A_TIME]
            results, contents = examine_files(examiner, detector, batch, record_of)
            if options.record:
                records = [result for result in results.values() if isinstance(result, Record)]
                new = [record for record in records if (record.sha256, record.file) not in names]
                append_records(options.record, new)
            for file in batch:
                result = results[file]
                counts[result.verdict if isinstance(result, Record) else "error"] += 1
                yield printable_name(file), result
                if options.explain and isinstance(result, Record):
                    write_page(examiner, result, contents[file], options.explain)
            bar.update(len(batch))


def examine_files(
    examiner: Examiner,
    detector: DetectorIdentity,
    files: Sequence[str],
    record_of: dict[str, Record],
) -> tuple[dict[str, Record | UnusableImage], dict[str, bytes]]:
    """Return by its name the record of each file, or why it has none; and the bytes of all files.

    record_of: records by the SHA-256 of their images, which are not examined again.
    """
    results: dict[str, Record | UnusableImage] = {}
    contents: dict[str, bytes] = {}
    for file in files:
        try:
            contents[file] = read_file(file)
        except UnusableImage as error:
            results[file] = error
    new = []
    for file, content in contents.items():
        # The examiner computes the digest itself; without --resume nothing is looked up by it.
        record = record_of.get(hashlib.sha256(content).hexdigest()) if record_of else None
        if record:
            results[file] = record.model_copy(update={"file": printable_name(file)})
        else:
            new.append(file)
    verdicts = examiner.examine([contents[file] for file in new])
    for file, verdict in zip(new, verdicts, strict=True):
        if isinstance(verdict, UnusableImage):
            results[file] = verdict
        else:
            results[file] = make_record(printable_name(file), verdict, detector, contents[file])
    return results, contents


def write_page(examiner: Examiner, record: Record, content: bytes, folder: Path) -> None:
    """Write the page that explains a verdict into a folder; content: the bytes of the image."""
    from stages.lib.verdict.explanation import explain_image  # here, because it loads matplotlib

    stem = os.fsencode(Path(record.file).stem)[:100].decode("utf-8", "ignore")
    page = explain_image(examiner, record, content)
    write_text(folder / f"{stem}-{record.sha256[:12]}.html", page)


if __name__ == "__main__":
    run_command(main)
