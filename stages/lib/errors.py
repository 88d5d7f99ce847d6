"""How a stage ends when its user made a mistake: one clear line and exit code 1."""

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from stages.lib.signals import stoppable


class UserError(Exception):
    """A mistake in the data, the parameters or the environment that the user can mend.

    The message is one line that names the file, row or dotted parameter, the value and the remedy.
    """


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's main; a UserError becomes one line on stderr and exit code 1."""
    try:
        with stoppable():
            main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun only the first process speaks
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean A, B?" for the known names nearest to name, or ""."""
    matches = get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(matches)}?" if matches else ""
