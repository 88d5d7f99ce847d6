"""Reading the command lines of the tools for verdicts."""

import argparse
import math
from typing import NoReturn

from stages.lib.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reports a wrong command as this project does: one line, exit code 1."""

    @classmethod
    def of_tool(cls, name: str, text: str | None) -> "Parser":
        """Return the parser of a tool whose --help shows the whole text of its module."""
        return cls(
            prog=f"python -m stages.tools.{name}", description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see --help")


def positive(text: str) -> float:
    """Return a number above 0; raises ValueError, of which argparse makes a message."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def port(text: str) -> int:
    """Return a port, 0 for a free one; raises ValueError, of which argparse makes a message."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError
    return number


def count(text: str) -> int:
    """Return a whole number above 0; raises ValueError, of which argparse makes a message."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
