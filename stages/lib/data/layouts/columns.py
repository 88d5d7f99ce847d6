"""Columns of a table as a layout needs them: text, labels with a meaning, and where a row is."""

from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE, REAL

PLAIN_LABELS = {"0": REAL, "1": FAKE}
TRUTHS = {"false": "0", "true": "1"}


def text_columns(table: pa.Table, wanted: Collection[str], file: Path) -> pd.DataFrame:
    """Return those of the wanted columns that a table has, as text, a missing cell empty.

    The index has the number of each row, from 1. Outer spaces of names and cells do not count.
    Raises UserError for a line break in a cell.
    """
    table = table.rename_columns([name.strip() for name in table.column_names])
    columns = [name for name in wanted if name in table.column_names]
    text = pd.DataFrame({name: _as_text(table[name]) for name in columns})
    text.index = pd.RangeIndex(1, len(table) + 1)
    for name in text:
        broken = text[name].str.contains("[\r\n]", regex=True)
        if broken.any():
            row = int(broken.idxmax())
            raise UserError(
                f"{where(file, row)}: '{short(text[name][row])}' has a line break in it; take it "
                f"out of the column {short(name)}"
            )
    return text.apply(lambda column: column.str.strip())


def _as_text(column: pa.ChunkedArray) -> pd.Series:
    """Return a column as text: whole numbers without a point, empty for a missing cell."""
    if pa.types.is_floating(column.type):
        values = column.to_pandas()
        if (values.dropna() % 1 == 0).all():
            column = pa.chunked_array([pa.array(values.astype("Int64"))])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.string()).fill_null("").to_pandas().astype("str")


def where(file: Path, row: int) -> str:
    """Return where the row of that number is, in a file with or without lines."""
    return f"{file}: row {row}" if file.suffix.lower() == ".parquet" else f"{file}:{row}"


def targets_of(
    words: pd.Series,
    labels: Mapping[str | int | bool, int],
    file: Path,
    class_of: Callable[[str], int | None] = lambda word: None,
) -> pd.Series:
    """Return 0, 1 or empty for each word; raises UserError with all words that have no meaning.

    A number means the same in every spelling: who says what 1 is also says what 1.0 and True are.
    class_of: the class of a word that `labels` does not have.
    """
    meanings: dict[str, int] = {}
    for word, label in labels.items():
        if meanings.setdefault(_plain(str(word)), label) != label:
            raise UserError(
                f"data.manifest.labels: '{short(word)}' is there twice, in two spellings, as 0 and "
                "as 1; remove one"
            )
    meanings = PLAIN_LABELS | meanings
    targets_by_word = {word: meanings.get(_plain(word), class_of(word)) for word in words.unique()}
    targets = words.map(targets_by_word).astype("Int8")
    unknown = sorted(words[targets.isna() & (words != "")].unique())
    if unknown:
        listed = ", ".join(repr(short(word, 30)) for word in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UserError(
            f"{file}: labels without a meaning: {listed}{more}; say in data.manifest.labels which "
            "are 0 (real) and which 1 (fake)"
        )
    return targets


def _plain(word: str) -> str:
    """Return a label in one spelling: no capitals, a number as short as it gets, 1 for true."""
    word = word.strip().casefold()
    try:
        number = Decimal(word.replace("_", "x"))  # Python would read 1_0 as 10
        return str(number.normalize() + 0) if number.is_finite() else word
    except ArithmeticError:
        return TRUTHS.get(word, word)


def optional(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column, missing where its cell is empty, or where there is no such column."""
    if column not in table:
        return pd.Series(None, index=table.index, dtype="str")
    return table[column].mask(table[column] == "")
