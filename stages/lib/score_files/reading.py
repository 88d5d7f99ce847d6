"""Reading a score file of any detector: which columns it has, and one checked number per row."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.data.csv_rows import read_csv, refuse_twice

NAME_COLUMNS = ("img_name", "name", "path", "file", "filename", "image")
SCORE_COLUMNS = ("logit", "score", "prediction", "probability", "p_fake", "fake")
SET_COLUMN = "set"
PROBABILITY, LOGIT, ANY = SCALES = ("probability", "logit", "any")
SCALE_OF_COLUMN = {
    "logit": LOGIT,
    "probability": PROBABILITY,
    "p_fake": PROBABILITY,
    "score": PROBABILITY,
}
POLARITIES = ("fake", "real")  # which class has the higher numbers
BEYOND = 746.0  # the logit of a probability of 0 or 1: further out than that of any other number


@dataclass(frozen=True)
class Request:
    """What the command says of one score file; None: the file itself shows it."""

    path: Path
    name: str  # of the detector
    perturbed: Path | None = None  # the file with scores of perturbed images
    name_column: str | None = None
    score_column: str | None = None
    scale: str | None = None
    higher: str = POLARITIES[0]


class ScoreRow(NamedTuple):
    """One row of a score file."""

    line: int
    name: str
    set: str  # "" where the file does not say it
    value: float  # finite, higher for fakes; a logit, but for the scale `any`
    more_cells: tuple[str, ...]  # of the further columns that were asked for


@dataclass(frozen=True)
class ScoreFile:
    """A score file that was read."""

    request: Request
    columns: tuple[str, str]  # of the names and of the scores
    scale: str
    sha256: str
    rows: list[ScoreRow]


def shown(name: Path | str, most: int = 60) -> str:
    """Return a path or a name for a message: its end, where it is longer than that."""
    text = short(name, 1000)
    return text if len(text) <= most else f"... {text[4 - most :]}"


def read_score_file(request: Request, more_columns: Sequence[str] = ()) -> ScoreFile:
    """Read a file; raises UserError that names file, line and value.

    more_columns: which the file must have as well.
    """
    file = shown(request.path)
    try:
        content = request.path.read_bytes()  # once, and as a whole: it may be a pipe
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: {short(reason)}; name a CSV file with scores") from None
    header, numbered_rows = read_csv(content, file)
    columns = _find_columns(header, request, more_columns)
    scale = request.scale or SCALE_OF_COLUMN.get(columns[1].casefold())
    if scale is None:
        raise UserError(
            f"{file}: the column {short(columns[1])} does not say what its numbers are; give "
            f"--scale {PROBABILITY}, {LOGIT} or {ANY}"
        )
    rows = []
    for line, cells in numbered_rows:
        name, value = _name_and_value(cells, columns, scale, f"{file}:{line}")
        if request.higher == "real":
            value = -value
        more_cells = tuple(cells[column] for column in more_columns)
        rows.append(ScoreRow(line, name, cells.get(SET_COLUMN, ""), value, more_cells))
    if not rows:
        raise UserError(f"{file}: has no row; write one row per image under the header")
    return ScoreFile(request, columns, scale, hashlib.sha256(content).hexdigest(), rows)


def _find_columns(
    header: list[str], request: Request, more_columns: Sequence[str]
) -> tuple[str, str]:
    """Return the columns of the names and of the scores, in the spelling of the file."""
    file = shown(request.path)
    for column in more_columns:
        if header.count(column) != 1:
            raise UserError(
                f"{file}: needs one column {column}, has {header.count(column)}; write it with "
                "`python -m stages.tools.score`"
            )
    refuse_twice(header, [SET_COLUMN], file)
    name = _find_column(header, request.name_column, NAME_COLUMNS, "--name-column", file)
    score = _find_column(header, request.score_column, SCORE_COLUMNS, "--score-column", file)
    if name == score:
        raise UserError(
            f"{file}: the column {short(name)} cannot have both names and scores; give "
            "--name-column and --score-column"
        )
    return name, score


def _find_column(
    header: list[str], wanted: str | None, usual: Sequence[str], option: str, file: str
) -> str:
    """Return the one column that is meant, in the spelling of the file."""
    accepted = [wanted] if wanted else list(usual)
    columns = [column for column in header if column in accepted]
    if not columns and not wanted:
        columns = [column for column in header if column.casefold() in accepted]
    if len(columns) == 1:
        return columns[0]
    if columns:
        remedy = f"remove one {short(wanted)}" if wanted else f"choose one with {option}"
        raise UserError(f"{file}: {short(', '.join(columns))} are columns for {option}; {remedy}")
    present = short(", ".join(header))
    if wanted:
        hint = short(did_you_mean(wanted, header))
        raise UserError(f"{file}: no column {short(wanted)} among {present}{hint}")
    raise UserError(
        f"{file}: no column {', '.join(usual[:-1])} or {usual[-1]} among {present}; name it with "
        f"{option}"
    )


def _name_and_value(
    cells: dict[str, str], columns: tuple[str, str], scale: str, at: str
) -> tuple[str, float]:
    """Return the name and the number of a row, a logit where the scale is not `any`.

    Raises UserError that begins with `at`.
    """
    name_column, score_column = columns
    name = cells[name_column]
    if not name:
        raise UserError(f"{at}: the cell {short(name_column)} is empty; name an image")
    value = _number(cells[score_column], scale, f"{at}: {short(score_column)}")
    return name, _logit(value) if scale == PROBABILITY else value


def _logit(probability: float) -> float:
    """Return the finite logit of a probability, 0 to 1."""
    if probability in (0, 1):
        return BEYOND if probability else -BEYOND
    return math.log(probability) - math.log1p(-probability)


def _number(cell: str, scale: str, at: str) -> float:
    """Return the number in a cell; raises UserError that begins with `at`."""
    if not cell:
        raise UserError(f"{at} is empty; remove the row where there is no score (see --missing)")
    try:
        value = math.nan if "_" in cell else float(cell)  # Python would read 1_0 as 10
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{at} = {short(cell)}: not a finite number; correct or remove the row")
    if scale == PROBABILITY and not 0 <= value <= 1:
        raise UserError(
            f"{at} = {short(cell)}: not a probability, 0 to 1; give --scale logit, or any, which "
            "suits percentages too"
        )
    return value
