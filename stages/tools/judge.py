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
from stages.lib.evaluation.judging import EvaluateParams
from stages.lib.running import run_command
from stages.lib.score_files.comparison import Comparison, compare
from stages.lib.score_files.detectors import MISSING, OWN, Detector, detector_of, own_detector
from stages.lib.score_files.matching import known_images
from stages.lib.score_files.reading import POLARITIES, SCALES, Request, read_score_file
from stages.lib.score_files.writing import (
    COMPARISON,
    OURS,
    opening,
    write_comparison,
    write_detector,
)
from stages.tools.command_line import Parser

OUT = Path("metrics/judged")
OF_FILES = ("names", "name-column", "score-column", "scale", "higher", "missing", "perturbed")
DEFAULTS = {"higher": POLARITIES[0], "missing": MISSING[0]}
NAME = re.compile(r"\w[\w.-]{0,79}")  # of a detector, which is that of a folder too


def main() -> None:
    """Judge what the command line names, and write the folder or nothing."""
    options = parse(sys.argv[1:])
    requests = requests_of(options)
    check_target(options.out)
    params = load_params("evaluate", EvaluateParams)
    data = read_json(paths.DATA_REPORT, "generated_sample", "duplicates")
    known = known_images()
    detectors = [
        detector_of(read_score_file(one), known, options.missing, more) if one else own_detector()
        for one, more in zip(requests, perturbed_of(options), strict=True)
    ]
    lines = [line for one in detectors for line in opening(one)]
    comparisons = compare_all(detectors)
    with atomic_folder(options.out.resolve()) as folder:
        for one in detectors:
            lines += write_detector(one, params, data, folder / one.name)
        if comparisons:
            lines.append(write_comparison(comparisons, data, folder))
    print(*lines, options.out, sep="\n")  # at the end: whoever reads may stop to


def compare_all(detectors: Sequence[Detector]) -> list[Comparison]:
    """Return the comparisons on all sets; nothing for one detector. Raises UserError."""
    comparisons = list(compare(detectors)) if len(detectors) > 1 else []
    if len(detectors) > 1 and not comparisons:
        raise UserError(
            "the detectors have no scores for the same images of both classes; judge each one alone"
        )
    return comparisons


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = Parser.of_tool("judge", __doc__)
    add = parser.add_argument
    add("scores", nargs="+", metavar="SCORES", help=f"CSV files, or the word {OWN}")
    add("--names", help="of the detectors, A,B; else the names of the files without their ends")
    add("--name-column", help="column of the image names or paths")
    add("--score-column", help="column of the scores")
    add("--scale", help=f"of the scores: {', '.join(SCALES)}; known for columns called logit, "
        "probability, p_fake and score (a probability)")  # fmt: skip
    add(
        "--higher",
        default=DEFAULTS["higher"],
        help="which class has the higher scores: fake or real",
    )
    add(
        "--missing",
        default=DEFAULTS["missing"],
        choices=MISSING,
        help="what an image without a score is",
    )
    add("--perturbed", help="files with scores of perturbed images, A,B; - for none")
    add("--out", type=Path, default=OUT, metavar="FOLDER", help=f"else {OUT}")
    return parser.parse_intermixed_args(arguments)


def requests_of(options: argparse.Namespace) -> list[Request | None]:
    """Return what is asked for in the given order, None for our own; raises UserError."""
    files = [Path(text) for text in options.scores if text != OWN]
    if len(options.scores) - len(files) > 1:
        raise UserError(f"{OWN}: named twice; name it once")
    names = _one_each("--names", options.names, files) or [file.stem for file in files]
    scales = _one_each("--scale", options.scale, files, SCALES)
    polarities = _one_each("--higher", options.higher, files, POLARITIES)
    name_columns = _one_each("--name-column", options.name_column, files)
    score_columns = _one_each("--score-column", options.score_column, files)
    check_names(names)
    if not files:
        check_unused(options)
    requests = iter(
        Request(
            path=file,
            name=names[number],
            name_column=name_columns[number] if name_columns else None,
            score_column=score_columns[number] if score_columns else None,
            scale=scales[number] if scales else None,
            higher=polarities[number] if polarities else POLARITIES[0],
        )
        for number, file in enumerate(files)
    )
    return [None if text == OWN else next(requests) for text in options.scores]


def check_unused(options: argparse.Namespace) -> None:
    """Raise UserError for an option of score files, where there is none."""
    for name in OF_FILES:
        if getattr(options, name.replace("-", "_")) != DEFAULTS.get(name):
            raise UserError(f"--{name}: is for score files, and {OWN} is none; remove it")


def perturbed_of(options: argparse.Namespace) -> list[Path | None]:
    """Return the file of perturbed images of each detector; None: it has none, or is our own."""
    files = [Path(text) for text in options.scores if text != OWN]
    given = iter(_one_each("--perturbed", options.perturbed, files) or ["-"] * len(files))
    found = ["-" if text == OWN else next(given) for text in options.scores]
    return [None if text == "-" else Path(text) for text in found]


def _one_each(
    option: str, text: str | None, files: Sequence[Path], known: Sequence[str] = ()
) -> list[str]:
    """Return the value of an option for each file; nothing where it is not given."""
    if text is None:
        return []
    values = [value.strip() for value in text.split(",")]
    is_own = option in ("--names", "--perturbed")  # no two files share it
    if len(values) == 1 and not is_own:
        values *= max(1, len(files))
    if len(values) != len(files) and files:
        each = "one for each file" if is_own else "one, or one for each file"
        raise UserError(f"{option} {short(text)}: {len(values)} values for {len(files)} files; "
                        f"give {each}, with commas between")  # fmt: skip
    for value in values:
        if known and value not in known:
            raise UserError(f"{option} {short(value)}: choose {' or '.join(known)}"
                            f"{did_you_mean(value, known)}")  # fmt: skip
    return values


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for names of detectors that are no names of folders, or there twice."""
    taken = {OWN}
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(f"detector {short(name)}: not a plain name of at most 80 letters, "
                            "digits, points and dashes; give --names")  # fmt: skip
        if name.casefold() in taken or name.casefold().startswith(f"{COMPARISON}."):
            raise UserError(f"detector {short(name)}: the name is taken; give others by --names")
        taken.add(name.casefold())


def check_target(out: Path) -> None:
    """Raise UserError for a folder with other things in it, which would be gone."""
    at = out.resolve()
    existing = next(one for one in (at, *at.parents) if one.exists())
    is_ours = existing.is_dir() and (existing != at or all(map(_is_ours, at.iterdir())))
    if not is_ours:
        raise UserError(f"--out {short(out, 100)}: exists with other things than judged detectors; "
                        "name a new folder")  # fmt: skip


def _is_ours(path: Path) -> bool:
    """Return whether this command has written what is in its folder."""
    if not path.is_dir():
        return path.name in (f"{COMPARISON}.csv", f"{COMPARISON}.md")
    return {one.name for one in path.iterdir()} == OURS


if __name__ == "__main__":
    run_command(main)
