"""Reading a score file of any detector: which columns it has, and one checked number per row."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.data.csv_rows import read_rows

NAME_COLUMNS = ("img_name", "name", "path", "file", "filename", "image")
SCORE_COLUMNS = ("logit", "score", "prediction", "probability", "p_fake", "fake")
SET_COLUMN = "set"
SCALES = ("probability", "logit", "any")
SCALE_OF_COLUMN = {"logit": "logit", "probability": "probability", "p_fake": "probability",
                   "score": "probability"}  # fmt: skip
POLARITIES = ("fake", "real")  # which class has the higher numbers
BEYOND = 746.0  # the logit of a probability of 0 or 1: further out than that of any other number


@dataclass(frozen=True)
class Request:
    """What the command says of one score file; None: what the file shows."""

    path: Path
    name: str  # of the detector
    name_column: str | None = None
    score_column: str | None = None
    scale: str | None = None
    higher: str = "fake"
    more: tuple[str, ...] = ()  # further columns that it must have


class Row(NamedTuple):
    """One row of a score file."""

    line: int
    name: str
    set: str  # "" where the file does not say it
    value: float  # finite, higher for fakes; a logit, but for the scale `any`
    more: tuple[str, ...]  # what is in the further columns


@dataclass(frozen=True)
class ScoreFile:
    """A score file that was read."""

    request: Request
    columns: tuple[str, str]  # of the names and of the scores
    scale: str
    sha256: str
    rows: list[Row]


def shown(name: Path | str, most: int = 60) -> str:
    """Return a path or a name for a message: its end, where it is longer than that."""
    text = short(name, 1000)
    return text if len(text) <= most else f"... {text[4 - most :]}"


def read_score_file(request: Request) -> ScoreFile:
    """Read a file; raises UserError that names file, line and value."""
    path = request.path
    try:
        content = path.read_bytes()  # once, and as a whole: it may be a pipe
        lines = StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)}: not UTF-8; save it as CSV in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(path)}: {short(reason)}; name a CSV file with scores") from None
    table = read_rows(lines, shown(path))
    _, header = next(table, (1, []))
    columns, scale = _find_columns(header, request)
    rows = list(_rows(table, header, columns, scale, request))
    if not rows:
        raise UserError(f"{shown(path)}: has no row; write one row per image under the header")
    return ScoreFile(request, columns, scale, hashlib.sha256(content).hexdigest(), rows)


def _find_columns(header: list[str], request: Request) -> tuple[tuple[str, str], str]:
    """Return the columns of the names and the scores, and the scale."""
    file = shown(request.path)
    for column in request.more:
        if header.count(column) != 1:
            raise UserError(f"{file}: needs one column {column}, has {header.count(column)}; write "
                            "it with `python -m stages.tools.score`")  # fmt: skip
    if header.count(SET_COLUMN) > 1:
        raise UserError(f"{file}: the column {SET_COLUMN} is there twice; remove one")
    name = _find(header, request.name_column, NAME_COLUMNS, "--name-column", file)
    score = _find(header, request.score_column, SCORE_COLUMNS, "--score-column", file)
    if name == score:
        raise UserError(f"{file}: the column {short(name)} cannot have both names and scores; "
                        "give --name-column and --score-column")  # fmt: skip
    scale = request.scale or SCALE_OF_COLUMN.get(score.casefold())
    if scale is None:
        raise UserError(f"{file}: the column {short(score)} does not say what its numbers are; "
                        f"give --scale {', '.join(SCALES[:-1])} or {SCALES[-1]}")  # fmt: skip
    return (name, score), scale


def _find(
    header: list[str], wanted: str | None, known: Sequence[str], option: str, file: str
) -> str:
    """Return the one column that is meant, in the spelling of the file."""
    accepted = [wanted] if wanted else list(known)
    found = [column for column in header if column in accepted]
    if not found and not wanted:
        found = [column for column in header if column.casefold() in accepted]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{file}: {short(', '.join(found))} are columns for {option}; "
            + (f"remove one {short(wanted)}" if wanted else f"choose one with {option}")
        )
    hint = did_you_mean(wanted, header) if wanted else f"; name it with {option}"
    looked_for = short(wanted) if wanted else " or ".join([", ".join(known[:-1]), known[-1]])
    raise UserError(
        f"{file}: no column {looked_for} among {short(', '.join(header)) or 'none'}{short(hint)}"
    )


def _rows(
    table: Iterator[tuple[int, list[str]]], header: list[str], columns: tuple[str, str], scale: str,
    request: Request,
) -> Iterator[Row]:  # fmt: skip
    """Yield the rows of a file."""
    of_name, of_score = (header.index(column) for column in columns)
    of_set = header.index(SET_COLUMN) if SET_COLUMN in header else None
    of_more = [header.index(column) for column in request.more]
    for line, cells in table:
        at = f"{shown(request.path)}:{line}"
        name = cells[of_name]
        if not name:
            raise UserError(f"{at}: the cell {short(columns[0])} is empty; name an image")
        value = _number(cells[of_score], scale, f"{at}: {short(columns[1])}")
        value = _logit(value) if scale == "probability" else value
        yield Row(
            line, name,
            set=cells[of_set] if of_set is not None else "",
            value=value if request.higher == "fake" else -value,
            more=tuple(cells[place] for place in of_more),
        )  # fmt: skip


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
    if scale == "probability" and not 0 <= value <= 1:
        raise UserError(f"{at} = {short(cell)}: not a probability, 0 to 1; give --scale logit or "
                        "any, which percentages are too")  # fmt: skip
    return value
