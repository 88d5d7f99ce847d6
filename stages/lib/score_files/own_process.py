"""Running a command in a process of its own, which foreign code may end at any moment."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from typing import NoReturn

from stages.lib.running import run_command

FAILED = 1


def run_in_own_process(main: Callable[[], None]) -> NoReturn:
    """Run the main of a command and exit as it does, but never with 0 before it has returned.

    Foreign code can end its process without an error, as os._exit(0) and the exit() of C do.
    """
    context = multiprocessing.get_context()
    is_done = context.Value("b", 0, lock=False)
    process = context.Process(target=_run, args=(main, is_done))
    is_terminated = False

    def forward(*_: object) -> None:
        nonlocal is_terminated
        is_terminated = True
        if process.pid:
            process.terminate()

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the command says so
    process.start()
    if is_terminated:  # before there was a process to forward it to
        process.terminate()
    process.join()
    code = process.exitcode or 0
    if code < 0:
        print(f"error: ended by signal {-code}", file=sys.stderr)
        sys.exit(128 - code)
    if not code and not is_done.value:
        print(
            "error: the detector's code ended the program (as os._exit(0) does) before all was "
            "scored; remove that",
            file=sys.stderr,
        )
        sys.exit(FAILED)
    sys.exit(code)


def _run(main: Callable[[], None], is_done: "Synchronized[int]") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_command(main)
    is_done.value = 1
