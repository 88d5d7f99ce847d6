"""Progress of long work on stderr: a bar on a terminal, a plain line now and then in a log."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class LogLines:
    """Takes the place of tqdm where nobody watches: a line now and then, none for short work.

    The rate is that after the first update, which comes late where workers or kernels start first.
    """

    def __init__(self, desc: str, total: int, unit: str) -> None:
        self.desc, self.total, self.unit = desc, total, unit
        self.count = self.first = 0
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> "LogLines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Count work that is done."""
        now = time.monotonic()
        self.count += count
        if not self.first:
            self.start, self.first = now, count
        elif now - self.printed >= SECONDS_BETWEEN_LINES:
            rate = (self.count - self.first) / (now - self.start)
            print(
                f"{self.desc}: {self.count} of {self.total} {self.unit}, {rate:.1f} a second, "
                f"{(self.total - self.count) / rate / 60:.1f} minutes left",
                file=sys.stderr,
                flush=True,
            )
            self.printed = now


def progress_bar(desc: str, total: int, unit: str = "images") -> "tqdm | LogLines":
    """Return a context manager with `update(n)` that shows the rate and the time left."""
    if sys.stderr.isatty():
        return tqdm(desc=desc, total=total, unit=f" {unit}")
    return LogLines(desc, total, unit)
