"""Ending a stage in order: on SIGTERM, on Ctrl-C, and when the DVC that started it is gone."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

SECONDS_BETWEEN_LOOKS = 2


class Stop:
    """A signal handler that raises: KeyboardInterrupt for Ctrl-C, SystemExit for SIGTERM.

    An interrupted SQLite transaction would keep its store locked, so a signal that arrives inside
    `after_write` waits for its end.
    """

    def __init__(self) -> None:
        self.writing = False
        self.pending: int | None = None

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal, now or after the write."""
        if self.writing:
            self.pending = number
            return
        self.pending = None
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    @contextmanager
    def after_write(self) -> Iterator[None]:
        """Put signals off until the body is done."""
        outer, self.writing = self.writing, True
        try:
            yield
        finally:
            self.writing = outer
        if self.pending is not None and not outer:
            self(self.pending)


stop = Stop()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM, Ctrl-C and the end of DVC raise in the body, so that it can clean up."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_stop_with_dvc, daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_with_dvc() -> None:
    """Send SIGTERM to this process once DVC is dead.

    `dvc queue kill --force` and the kernel's out-of-memory killer end DVC and leave its stage
    computing for nobody, even in a workspace that another one is about to use.
    """
    import psutil

    starters = [one for one in psutil.Process().parents() if "dvc" in _words(one)]
    while starters and starters[0].is_running() and starters[0].status() != psutil.STATUS_ZOMBIE:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if starters:
        os.kill(os.getpid(), signal.SIGTERM)


def _words(process: "psutil.Process") -> list[str]:
    """Return the file names in the first words of a command line, as in `python -m dvc repro`."""
    return [Path(word).name for word in process.cmdline()[:4]]
