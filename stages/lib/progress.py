"""The progress of long work on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class LogLines:
    """Takes the place of tqdm where stderr is no terminal; prints nothing for short work.

    The rate counts from the first update, which is late where workers or kernels start first.
    """

    def __init__(self, desc: str, total: int, unit: str) -> None:
        self.desc, self.total, self.unit = desc, total, unit
        self.count = 0
        self.first_count = 0  # of the first update
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> "LogLines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Count finished work, and print a line if it is time."""
        now = time.monotonic()
        self.count += count
        if not self.first_count:
            self.start = now
            self.first_count = count
        elif now - self.printed >= SECONDS_BETWEEN_LINES:
            rate = (self.count - self.first_count) / (now - self.start)
            minutes = (self.total - self.count) / rate / 60
            print(
                f"{self.desc}: {self.count} of {self.total} {self.unit}, {rate:.1f} a second, "
                f"{minutes:.1f} minutes left",
                file=sys.stderr,
                flush=True,
            )
            self.printed = now


def progress_bar(desc: str, total: int, unit: str = "images") -> "tqdm | LogLines":
    """Return a context manager with `update(n)` that shows the rate and the time left."""
    if sys.stderr.isatty():
        return tqdm(desc=desc, total=total, unit=f" {unit}")
    return LogLines(desc, total, unit)
