"""Mistakes that the user can fix."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in the data, the parameters or the environment that the user can fix.

    The message is one line. It names the file, row or dotted parameter, the value and the remedy.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean A, B?" for the known names that are closest to name, or ""."""
    matches = get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def short(words: object, length: int = 60) -> str:
    """Return the words in one line of at most `length` characters, for a message."""
    line = "".join(mark if mark.isprintable() else " " for mark in str(words))
    line = " ".join(line.split())
    return line if len(line) <= length else f"{line[: length - 4]} ..."
