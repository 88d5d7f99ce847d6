"""Running a stage or a command: alone on its outputs, and with one line for a user's mistake."""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

from filelock import FileLock, Timeout

from stages.lib.core.errors import UserError, short
from stages.lib.stopping import stoppable

LOCKS = Path(".dvc/tmp/stages")
STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
SECONDS_TO_WAIT = 30  # a stage whose DVC was killed stops within a few seconds
SECONDS_FOR_FIRST = 2  # torchrun ends the other processes soon after the first one has failed
SECONDS_FOR_OTHERS = 15  # to print why they ended; on one machine, torchrun then ends this one
AFTER_A_KILL = (
    "where memory ran out, lower num_workers or batch_size; then run the same command again"
)
DEAD_WORKER = re.compile(r"DataLoader worker .* (is killed|exited unexpectedly)")
LOST_PROCESS = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited")


def run_stage(main: Callable[[], None], *parts: str) -> None:
    """Run a stage's main; a UserError becomes one line on stderr and exit code 1.

    parts: names that distinguish processes of one stage that write different outputs.
    """
    with _errors_in_one_line(), _only_writer("-".join([Path(sys.argv[0]).stem, *parts])):
        main()


def run_command(main: Callable[[], object]) -> None:
    """Run the main of a command that writes no outputs of a stage; errors as in run_stage."""
    with _errors_in_one_line():
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the output has ended, as `| head` does
            # Python flushes stdout at exit, and would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        with stoppable():
            yield
    except UserError as error:
        # A worker of a DataLoader puts its own traceback before the message.
        _exit(str(error).rpartition("UserError: ")[2].strip())
    except (EOFError, ConnectionError) as error:
        # The connection to a killed worker breaks a moment before PyTorch can see its death.
        files = [Path(frame.filename).name for frame in extract_tb(error.__traceback__)]
        if "dataloader.py" not in files:
            raise
        _exit(f"DataLoader worker died; {AFTER_A_KILL}")
    except OSError as error:
        if error.errno not in STORAGE_FAULTS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        remedy = "make room or give the right to write there, and run the same command again"
        _exit(f"{place}{error.strerror}; {remedy}")
    except RuntimeError as error:
        if DEAD_WORKER.search(str(error)):
            _exit(f"{short(error, 150).rstrip(' .')}; {AFTER_A_KILL}")
        if "RANK" in os.environ and LOST_PROCESS.search(str(error)):
            time.sleep(SECONDS_FOR_OTHERS)
            _exit(
                "the connection to another process was lost; look at the other machines, then run "
                "the same command again"
            )
        raise
    except KeyboardInterrupt:
        if _is_first_process():
            print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


def _exit(message: str) -> NoReturn:
    """Print one line of error and exit; of several processes with one error, the first prints."""
    if not _is_first_process():
        time.sleep(SECONDS_FOR_FIRST + int(os.environ.get("LOCAL_RANK", 0)))
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


@contextmanager
def _only_writer(stage: str) -> Iterator[None]:
    """Hold the lock of a stage, so that no two processes write the same outputs.

    DVC has a lock of its own, but a stage can outlive a DVC that was killed. Raises UserError where
    another process keeps the lock.
    """
    if not _is_first_process():  # under torchrun, the first process writes
        yield
        return
    LOCKS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCKS / f"{stage.replace(os.sep, '_')}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process runs stage {stage} in this folder: waiting for its end", flush=True)
        try:
            lock.acquire(timeout=SECONDS_TO_WAIT)
        except Timeout:
            raise UserError(
                f"stage {stage}: another process still runs it in {Path.cwd()}; wait for its end, "
                f"or find it with `pgrep -f stages.{stage.split('-')[0]}` and stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
