"""Examine images and videos: real, fake or unsure, and why.

Run: python -m stages.tools.detect PATH [PATH ...]
     python -m stages.tools.detect --verify RECORD [PATH ...]      repeat the verdicts of a record

PATH is a file, a folder, a glob, or - for a list of names on standard input, one a line.
Exit code: 0 every file has a verdict; 1 the command or the model is wrong, and no file has one; 2
some files have none, or --verify found a difference; 3 with --fail-on-fake, a file is fake,
whatever else there is.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from stages.lib import paths
from stages.lib.core.files import write_text
from stages.lib.data.layouts.image_set import is_video
from stages.lib.evaluation.verdict_rules import DOUBTS, learnt_from
from stages.lib.images.decoding import UnusableImage
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.files import digest_of, examine_files, find_files, opened, printable_name
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.printing import NO_PROOF, Result, print_csv, print_json, print_text
from stages.lib.verdict.record import (
    AnyRecord,
    DetectorIdentity,
    append_records,
    frames_wanted,
    identity_of,
    open_record,
    same_detector,
)
from stages.lib.verdict.verification import verify
from stages.lib.verdict.videos import FRAMES, sha256_of_open
from stages.tools.command_line import add_device_and_threads, count, parser_of, positive

FILES_AT_A_TIME = 16
SOME_FAILED, ONE_IS_FAKE = 2, 3
PRINTERS = {"text": print_text, "csv": print_csv, "json": print_json}
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
    add("paths", nargs="*", metavar="PATH", help="images and videos")
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add(
        "--no-crop",
        dest="crop",
        action="store_false",
        help="the images are faces that are cut out already: examine each one whole",
    )
    add("--form", default="text", choices=PRINTERS, help="of the output: text, csv or json")
    add("--json", dest="form", action="store_const", const="json", help="one object a line")
    add("--csv", dest="form", action="store_const", const="csv", help="one row a file")
    add("--record", type=Path, metavar="FILE", help="add one JSON line per file to FILE")
    add("--resume", action="store_true", help="examine no file that FILE has already")
    add("--explain", type=Path, metavar="DIR", help="write a page for each file into DIR")
    add("--verify", type=Path, metavar="RECORD", help="repeat the verdicts of a record")
    add("--fail-on-fake", action="store_true", help=f"exit with {ONE_IS_FAKE} where one is fake")
    add("--frames", type=count, default=FRAMES, help="of a video, evenly spread, that are judged")
    add("--max-megapixels", type=positive, default=100.0, help="of an image or a frame")
    add_device_and_threads(parser)
    end = arguments.index("--") if "--" in arguments else len(arguments)  # only paths come after it
    options = parser.parse_intermixed_args(arguments[:end])
    options.paths += arguments[end + 1 :]
    if not options.paths and not options.verify:
        parser.error("name one image or video, or more")
    if options.resume and not options.record:
        parser.error("--resume needs --record FILE, the record to continue")
    return options


def detect(examiner: Examiner, options: argparse.Namespace, recorded: list[AnyRecord]) -> int:
    """Examine the files and print their verdicts; return the exit code.

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
    PRINTERS[options.form](results, detector, doubt, learnt_from(examiner.rules.trained_on))
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
    done: list[AnyRecord],
    counts: Counter[str],
) -> Iterator[Result]:
    """Yield the result of each file, a batch at a time; write its record and its page.

    done: records to take as they are. counts: how often each verdict, or an error, occurs.
    """
    record_of = {(record.sha256, frames_wanted(record)): record for record in done}
    names = {named(record) for record in done}
    with progress_bar("detect", len(files)) as bar:
        for batch in in_batches(files):
            results = examine_batch(examiner, detector, batch, record_of, options.frames)
            if options.record:
                records = [one for one in results.values() if not isinstance(one, UnusableImage)]
                new = [record for record in records if named(record) not in names]
                append_records(options.record, new)
            for file in batch:
                result = results[file]
                counts["error" if isinstance(result, UnusableImage) else result.verdict] += 1
                yield printable_name(file), result
                if options.explain and not isinstance(result, UnusableImage):
                    try:
                        write_page(examiner, result, file, options.explain)
                    except UnusableImage as error:
                        print(f"no page of {printable_name(file)}: {error}", file=sys.stderr)
            bar.update(len(batch))


def named(record: AnyRecord) -> tuple[str, str, int | None]:
    """Return what a record file has once: of which file it is, and from how many frames."""
    return record.sha256, record.file, frames_wanted(record)


def in_batches(files: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the files in their order: a few images at a time, or one video."""
    for are_videos, group in groupby(files, is_video):
        size, members = 1 if are_videos else FILES_AT_A_TIME, list(group)
        for first in range(0, len(members), size):
            yield members[first : first + size]


def examine_batch(
    examiner: Examiner,
    detector: DetectorIdentity,
    files: Sequence[str],
    record_of: dict[tuple[str, int | None], AnyRecord],
    frames: int,
) -> dict[str, AnyRecord | UnusableImage]:
    """Return by its name the record of each file, or why it has none.

    files: images or videos. record_of: records by the SHA-256 of their files and the frames that
    were wanted, which are not examined again. frames: of a video that are judged.
    """
    results: dict[str, AnyRecord | UnusableImage] = {}
    new = []
    for file in files:
        wanted = frames if is_video(file) else None
        try:
            # The examiner computes the digest itself; without --resume nothing is looked up by it.
            record = record_of.get((digest_of(file), wanted)) if record_of else None
        except UnusableImage as error:
            results[file] = error
            continue
        if record:
            results[file] = record.model_copy(update={"file": printable_name(file)})
        else:
            new.append(file)
    return results | examine_files(examiner, detector, new, frames)


def write_page(examiner: Examiner, record: AnyRecord, file: str, folder: Path) -> None:
    """Write the page that explains a verdict into a folder; raises UnusableImage."""
    from stages.lib.verdict import explanation  # here, because it loads matplotlib

    stem = os.fsencode(Path(record.file).stem)[:100].decode("utf-8", "ignore")
    with opened(file) as content:
        if sha256_of_open(content) != record.sha256:
            raise UnusableImage("the file has other bytes now")
        content.seek(0)
        page = explanation.explain(examiner, record, content)
    write_text(folder / f"{stem}-{record.sha256[:12]}.html", page)


if __name__ == "__main__":
    run_command(main)
