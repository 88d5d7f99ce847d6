"""Reading a score file of any detector: which columns it has, and one checked number per row."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.files import sha256_of

NAME_COLUMNS = ("img_name", "name", "path", "file", "filename", "image")
SCORE_COLUMNS = ("logit", "score", "prediction", "probability", "p_fake", "fake")
SET_COLUMN = "set"
SCALES = ("probability", "logit", "any")
SCALE_OF_COLUMN = {"logit": "logit", "probability": "probability", "p_fake": "probability",
                   "score": "probability"}  # fmt: skip
POLARITIES = ("fake", "real")  # which class has the higher numbers


@dataclass(frozen=True)
class Request:
    """What the command says of one score file; None: what the file shows."""

    path: Path
    name: str  # of the detector
    name_column: str | None = None
    score_column: str | None = None
    scale: str | None = None
    higher: str = "fake"


class Row(NamedTuple):
    """One row of a score file. The value is higher for fakes, whatever the file has."""

    line: int
    name: str
    set: str  # "" where the file does not say it
    value: float


@dataclass(frozen=True)
class ScoreFile:
    """A score file that was read."""

    request: Request
    columns: tuple[str, str]  # of the names and of the scores
    scale: str
    sha256: str
    rows: list[Row]


def shown(path: Path) -> str:
    """Return a path for a message: its end, where it is long."""
    text = short(path, 1000)
    return text if len(text) <= 60 else f"... {text[-56:]}"


def read_score_file(request: Request) -> ScoreFile:
    """Read a file; raises UserError that names file, line and value."""
    path = request.path
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = [cell.strip() for cell in next(reader, [])]
                columns, scale = _find_columns(header, request)
                rows = list(_rows(reader, header, columns, scale, request))
            except csv.Error as error:
                raise UserError(
                    f"{shown(path)}:{reader.line_num}: not valid CSV: {short(error)}; write one "
                    "row per image, with commas"
                ) from None
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)}: not UTF-8; save it as CSV in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(path)}: {short(reason)}; name a CSV file with scores") from None
    if not rows:
        raise UserError(f"{shown(path)}: has no row; write one row per image under the header")
    return ScoreFile(request, columns, scale, sha256_of(path), rows)


def _find_columns(header: list[str], request: Request) -> tuple[tuple[str, str], str]:
    """Return the columns of the names and the scores, and the scale."""
    file = shown(request.path)
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
    reader: Iterator[list[str]], header: list[str], columns: tuple[str, str], scale: str,
    request: Request,
) -> Iterator[Row]:  # fmt: skip
    """Yield the rows of a file; blank lines are passed over."""
    of_name, of_score = (header.index(column) for column in columns)
    of_set = header.index(SET_COLUMN) if SET_COLUMN in header else None
    for cells in reader:
        if not cells:
            continue
        line: int = reader.line_num  # pyrefly: ignore[missing-attribute]
        at = f"{shown(request.path)}:{line}"
        if len(cells) != len(header):
            raise UserError(f"{at}: {len(cells)} cells, and the header has {len(header)}; "
                            "give each row one cell per column")  # fmt: skip
        name = cells[of_name].strip()
        if not name:
            raise UserError(f"{at}: the cell {short(columns[0])} is empty; name an image")
        value = _number(cells[of_score], scale, f"{at}: {short(columns[1])}")
        value = value if request.higher == "fake" else 1 - value if scale == SCALES[0] else -value
        yield Row(line, name, cells[of_set].strip() if of_set is not None else "", value)


def _number(cell: str, scale: str, at: str) -> float:
    """Return the number in a cell; raises UserError that begins with `at`."""
    if not cell.strip():
        raise UserError(f"{at} is empty; remove the row where there is no score (see --missing)")
    try:
        value = math.nan if "_" in cell else float(cell)  # Python would read 1_0 as 10
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{at} = {short(cell)}: not a finite number; correct or remove the row")
    if scale == "probability" and not 0 <= value <= 1:
        raise UserError(f"{at} = {short(cell)}: not a probability, 0 to 1; "
                        "give --scale logit or any")  # fmt: skip
    return value
