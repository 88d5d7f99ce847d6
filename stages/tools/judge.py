"""Judge any detector from its score files, by the evaluation of this pipeline.

Run: python -m stages.tools.judge SCORES [SCORES ...] [--out metrics/judged]

SCORES is a CSV file with a column of image names or paths and one of scores, for the images of the
labelled sets and of calibration; each file is one detector. The word `own` stands for the scores of
this pipeline (data/scores). Options that may differ between files take one value for all, or one
for each file with commas between: --scale logit,any.

  SCORES, data/labels, metrics/data.json, params.yaml: evaluate
    ->  OUT/NAME/{evaluation.json, card.md, tables/*.csv}, and for several detectors
        OUT/comparison.{csv,md}

metrics/README.md explains all of it. Exit code: 0, or 1 for a mistake in the command or a file.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.lib import paths
from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.files import atomic_folder, read_json
from stages.lib.core.params import load_params
from stages.lib.evaluation.report import EvaluateParams
from stages.lib.running import run_command
from stages.lib.score_files.comparison import compare
from stages.lib.score_files.detectors import MISSING, OWN, foreign_detector, own_detector
from stages.lib.score_files.matching import index_images
from stages.lib.score_files.reading import POLARITIES, SCALES, Request, read_score_file
from stages.lib.score_files.writing import (
    COMPARISON,
    FILES,
    opening,
    write_comparison,
    write_detector,
)
from stages.tools.command_line import parser_of

OUT = Path("metrics/judged")
# Of score files: for each of them its own value, one value for each or for all, one value for all.
OF_EACH = ("names", "perturbed")
OF_EACH_OR_ALL = ("name_column", "score_column", "scale", "higher")
OF_ALL = ("missing",)
CHOICES = {"scale": SCALES, "higher": POLARITIES}
NAME = re.compile(r"\w[\w.-]{0,79}")  # of a detector, which is that of a folder too


def main() -> None:
    """Judge what the command line names, and write the folder or nothing."""
    options = parse(sys.argv[1:])
    requests = requests_of(options)
    check_target(options.out)
    params = load_params("evaluate", EvaluateParams)
    data = read_json(paths.DATA_REPORT, "generated_sample", "duplicates")
    index = index_images()
    detectors = []
    for request in requests:
        if request is None:
            detectors.append(own_detector())
        else:
            scores = read_score_file(request)
            detectors.append(foreign_detector(scores, index, options.missing or MISSING[0]))
    comparisons = list(compare(detectors)) if len(detectors) > 1 else []
    if len(detectors) > 1 and not comparisons:
        raise UserError(
            "the detectors have no scores for the same images of both classes; judge each one alone"
        )
    lines = []
    for detector in detectors:
        lines += opening(detector)
    with atomic_folder(options.out.resolve()) as folder:
        for detector in detectors:
            lines += write_detector(detector, params, data, folder / detector.name)
        if comparisons:
            lines.append(write_comparison(comparisons, data, folder))
    print(*lines, options.out, sep="\n")  # at the end: whoever reads may stop to


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = parser_of(__doc__, "stages.tools.judge")
    add = parser.add_argument
    add("scores", nargs="+", metavar="SCORES", help=f"CSV files, or the word {OWN}")
    add("--names", help="of the detectors, A,B; else the names of the files without their ends")
    add("--name-column", help="column of the image names or paths")
    add("--score-column", help="column of the scores")
    add(
        "--scale",
        help=f"of the scores: {', '.join(SCALES)}; known for columns called logit, probability, "
        "p_fake and score (a probability)",
    )
    add("--higher", help=f"which class has the higher scores: {' or '.join(POLARITIES)}")
    add("--missing", choices=MISSING, help=f"what an image without a score is, else {MISSING[0]}")
    add("--perturbed", help="files with scores of perturbed images, A,B; - for none")
    add("--out", type=Path, default=OUT, metavar="FOLDER", help=f"else {OUT}")
    return parser.parse_intermixed_args(arguments)


def requests_of(options: argparse.Namespace) -> list[Request | None]:
    """Return what is asked for in the given order, None for our own; raises UserError."""
    files = [Path(text) for text in options.scores if text != OWN]
    if len(options.scores) - len(files) > 1:
        raise UserError(f"{OWN}: named twice; name it once")
    if not files:
        check_unused(options)
    values = {name: values_of(name, options, len(files)) for name in OF_EACH + OF_EACH_OR_ALL}
    requests: list[Request | None] = []
    names = []
    for number, file in enumerate(files):
        given = {name: of_files[number] for name, of_files in values.items() if of_files}
        names.append(given.pop("names", file.stem))
        perturbed = given.pop("perturbed", "-")
        perturbed_file = None if perturbed == "-" else Path(perturbed)
        requests.append(Request(file, names[-1], perturbed_file, **given))
    check_names(names)
    if OWN in options.scores:
        requests.insert(options.scores.index(OWN), None)
    return requests


def check_unused(options: argparse.Namespace) -> None:
    """Raise UserError for an option of score files, where there is none."""
    for name in OF_EACH + OF_EACH_OR_ALL + OF_ALL:
        if getattr(options, name) is not None:
            raise UserError(f"{_flag(name)}: is for score files, and {OWN} is none; remove it")


def values_of(name: str, options: argparse.Namespace, num_files: int) -> list[str]:
    """Return the value of an option for each file; nothing where it is not given."""
    text, flag = getattr(options, name), _flag(name)
    if text is None:
        return []
    values = [value.strip() for value in text.split(",")]
    if len(values) == 1 and name in OF_EACH_OR_ALL:
        values *= num_files
    if len(values) != num_files:
        each = "one for each file" if name in OF_EACH else "one, or one for each file"
        raise UserError(
            f"{flag} {short(text)}: {len(values)} values for {num_files} files; give {each}, with "
            "commas between"
        )
    for value in values:
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(
                f"{flag} {short(value)}: choose {' or '.join(CHOICES[name])}"
                f"{did_you_mean(value, CHOICES[name])}"
            )
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for names of detectors that are no names of folders, or there twice."""
    taken = {OWN}
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(
                f"detector {short(name)}: not a plain name of at most 80 letters, digits, points "
                "and dashes; give --names"
            )
        if name.casefold() in taken or name.casefold().startswith(f"{COMPARISON}."):
            raise UserError(f"detector {short(name)}: the name is taken; give others by --names")
        taken.add(name.casefold())


def check_target(out: Path) -> None:
    """Raise UserError for a folder with other things in it, which would be gone."""
    folder = out.resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    is_new = existing != folder
    if existing.is_dir() and (is_new or all(map(_is_ours, folder.iterdir()))):
        return
    raise UserError(
        f"--out {short(out, 100)}: exists with other things than judged detectors; name a new "
        "folder"
    )


def _is_ours(path: Path) -> bool:
    """Return whether this command has written what is in its folder."""
    if not path.is_dir():
        return path.name in (f"{COMPARISON}.csv", f"{COMPARISON}.md")
    return {file.name for file in path.iterdir()} == FILES


if __name__ == "__main__":
    run_command(main)
