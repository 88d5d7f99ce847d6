"""Reading a CSV list that a person or another program wrote: lists of data sets, manifests, scores.

One row is one line. Otherwise a quote that opens and does not close makes one cell of the rows that
follow, and nobody misses them.
"""

import csv
from collections.abc import Collection, Iterator
from io import StringIO

from stages.lib.core.errors import UserError, short

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
Rows = Iterator[tuple[int, dict[str, str]]]  # the number of each line, and its cells by column


def read_csv(content: bytes, name: str, separator: str = ",") -> tuple[list[str], Rows]:
    """Return the columns of a CSV file in UTF-8 and its rows; no name or cell has outer spaces.

    Rows of empty cells, and empty cells beyond the header, mean nothing: Excel writes both. Of two
    columns with one name the last one counts; see `refuse_twice`. name: of the file, for messages.
    Raises UserError for another encoding and another separator, and the rows raise it for broken
    quotes, a line break in a cell, and a row that is not as long as the header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8; save it as CSV in UTF-8") from None
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    columns = _columns(_next_row(reader, name) or [], name, separator)
    return columns, _rows(reader, columns, name)


def refuse_twice(columns: list[str], wanted: Collection[str], name: str) -> None:
    """Raise UserError where one of the wanted columns of a file is there twice."""
    for column in wanted:
        if columns.count(column) > 1:
            raise UserError(f"{name}: the column '{short(column)}' is there twice; remove one")


def _rows(reader: "csv.Reader", columns: list[str], name: str) -> Rows:
    """Yield the rows below the header."""
    while (cells := _next_row(reader, name)) is not None:
        if not any(cells):
            continue
        if len(cells) > len(columns) and not any(cells[len(columns) :]):
            cells = cells[: len(columns)]
        if len(cells) != len(columns):
            raise UserError(
                f"{name}:{reader.line_num}: {len(cells)} cells, and the header has {len(columns)}: "
                f"{short(cells)}; give each row one cell per column"
            )
        yield reader.line_num, dict(zip(columns, cells, strict=True))


def _next_row(reader: "csv.Reader", name: str) -> list[str] | None:
    """Return the cells of the next line, none for a blank line; None at the end."""
    line, row, problem = reader.line_num + 1, None, ""
    try:
        row = next(reader, None)
    except csv.Error as error:
        problem = short(error)
    if reader.line_num > line or problem == "unexpected end of data":
        problem = "a quote opens in this line and is not closed in it; close or remove it"
    if problem:
        raise UserError(f"{name}:{line}: not valid CSV: {problem}")
    return None if row is None else [cell.strip() for cell in row]


def _columns(cells: list[str], name: str, separator: str) -> list[str]:
    """Return the names of the columns up to the last one; raises UserError where there is none."""
    while cells and not cells[-1]:
        cells = cells[:-1]
    if not cells:
        raise UserError(
            f"{name}: is empty or begins with an empty line; begin it with the names of the columns"
        )
    for mark, words in SEPARATORS.items():
        if len(cells) == 1 and mark in cells[0] and mark != separator:
            wanted = SEPARATORS[separator]
            raise UserError(f"{name}: its cells are separated by {words}; write {wanted}")
    return cells
