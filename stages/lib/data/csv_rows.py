"""Reading a CSV list that a person or another program wrote: lists of data sets, manifests, scores.

One row is one line. Otherwise a quote that opens and does not close makes one cell of the rows that
follow, and nobody misses them.
"""

import csv
from collections.abc import Iterable, Iterator

from stages.lib.core.errors import UserError, short

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_rows(
    lines: Iterable[str], name: str, separator: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of the header and of each row, without outer spaces.

    Rows of empty cells, and empty cells beyond the header, mean nothing: Excel writes both. lines:
    with their own ends. name: of the file, for messages. Raises UserError for broken quotes, a line
    break in a cell, another separator, and a row that is not as long as the header.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    while row := _next_row(reader, name):
        cells, line = [cell.strip() for cell in row], reader.line_num
        if header is None:
            header = _header(cells, name, separator)
            yield line, header
        elif any(cells):
            if len(cells) > len(header) and not any(cells[len(header) :]):
                cells = cells[: len(header)]
            if len(cells) != len(header):
                raise UserError(
                    f"{name}:{line}: {len(cells)} cells, and the header has {len(header)}: "
                    f"{short(cells)}; give each row one cell per column"
                )
            yield line, cells
    if header is None:
        _header([], name, separator)


def _next_row(reader: "csv.Reader", name: str) -> list[str]:
    """Return the next row, [""] for a blank line, nothing at the end."""
    line, problem = reader.line_num + 1, ""
    try:
        row = next(reader, None)
    except csv.Error as error:
        row, problem = [], short(error)
    if reader.line_num > line or problem == "unexpected end of data":
        problem = "a quote opens in this line and is not closed in it; close or remove it"
    if problem:
        raise UserError(f"{name}:{line}: not valid CSV: {problem}")
    return [] if row is None else row or [""]


def _header(cells: list[str], name: str, separator: str) -> list[str]:
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
