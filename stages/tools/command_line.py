"""The command line of all commands (stages/tools) and chores (stages/chores).

--help shows the whole text of the module. Exit code 0 means that the work is done. 1 means that
the command, a file or a parameter is wrong, and one line on stderr says what and how to mend it.
Where a command has further exit codes, its text lists them.
"""

import argparse
import math
from typing import NoReturn

from stages.lib.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong command, where argparse would exit with code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see --help")


def parser_of(text: str | None, module: str) -> Parser:
    """Return the parser of a command; text: the docstring of its module."""
    return Parser(
        prog=f"python -m {module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_device_and_threads(parser: Parser) -> None:
    """Add the options --device and --threads."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    add_threads(parser)


def add_threads(parser: Parser, text: str = "of the CPU") -> None:
    """Add the option --threads."""
    parser.add_argument("--threads", type=count, default=2, help=text)


# argparse calls these for the text of an option. It turns a ValueError into a message.


def positive(text: str) -> float:
    """Return a finite number above 0; raises ValueError."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def port(text: str) -> int:
    """Return the number of a port, 0 for any free one; raises ValueError."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError
    return number


def count(text: str) -> int:
    """Return a whole number above 0; raises ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
