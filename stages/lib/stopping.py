"""Stopping a stage in order: on SIGTERM, on Ctrl-C, and after the death of its parent."""

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

SECONDS_BETWEEN_CHECKS = 1


class Stop:
    """A signal handler that raises KeyboardInterrupt for Ctrl-C and SystemExit for SIGTERM.

    An interrupted SQLite transaction keeps its store locked. So a signal that arrives inside
    `after_write` waits for the end of the write.
    """

    def __init__(self) -> None:
        self.is_writing = False
        self.pending: int | None = None  # a signal that waits

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal, now or after the write."""
        if self.is_writing:
            self.pending = number
            return
        self.pending = None
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    @contextmanager
    def after_write(self) -> Iterator[None]:
        """Delay signals until the body is done."""
        is_nested = self.is_writing
        self.is_writing = True
        try:
            yield
        finally:
            self.is_writing = is_nested
        if self.pending is not None and not is_nested:
            self(self.pending)


stop = Stop()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise in the body, so that it can clean up."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_watch() -> None:
    """Start a thread that sends SIGTERM to this process when DVC or torchrun, its parent, has died.

    `dvc queue kill --force` and the out-of-memory killer of the kernel end DVC and leave its stage
    running, even in a workspace that another stage is about to use. Until `stoppable` handles the
    signal, it ends the process at once; nothing has been written by then.
    """
    threading.Thread(target=_stop_with_parents, daemon=True).start()


def _stop_with_parents() -> None:
    import psutil

    own = psutil.Process()
    parents = []
    if "DVC_STAGE" in os.environ:
        parents.append(_dvc_of(own))
    if "RANK" in os.environ:
        parents.append(own.parent())
    while all(parent and _is_alive(parent) for parent in parents):
        time.sleep(SECONDS_BETWEEN_CHECKS)
    os.kill(os.getpid(), signal.SIGTERM)


def _dvc_of(stage: "psutil.Process") -> "psutil.Process | None":
    """Return the process of DVC that started a stage, or None where it has died already.

    It is the parent of the outermost process that has the variable that DVC sets for its stages.
    It is called dvc, or it is a Python program that uses DVC's API. When it dies, the system gives
    its children to another parent: a program of another kind, or of another session.
    """
    import psutil

    top = stage
    while True:
        try:
            parent = top.parent()
            if parent is None:
                return None
            if "DVC_STAGE" in parent.environ():
                top = parent
                continue
            words = _first_words(parent)
            if "dvc" in words:
                return parent
            is_python = bool(words) and words[0].startswith("python")
            is_same_session = os.getsid(parent.pid) == os.getsid(top.pid)
            return parent if is_python and is_same_session else None
        except psutil.AccessDenied:  # of another user, who has not started this stage
            return None
        except (psutil.Error, OSError):  # a process has just ended: try again
            time.sleep(0.1)
            top = stage


def _first_words(process: "psutil.Process") -> list[str]:
    """Return the file names in the first words of a command line, as in `python -m dvc repro`."""
    return [Path(word).name for word in process.cmdline()[:4]]


def _is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has just ended
        return False
