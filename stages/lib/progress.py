"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys

from tqdm import tqdm


def progress_bar(desc: str, total: int, unit: str = "images") -> tqdm:
    """Return a tqdm to `update(n)`, with the rate and the time left; close it or use `with`."""
    if sys.stderr.isatty():
        return tqdm(desc=desc, total=total, unit=unit)
    line = "{desc}: {n_fmt} of {total_fmt} {unit}, {remaining} left\n"
    return tqdm(
        desc=desc, total=total, unit=unit, bar_format=line, delay=20, mininterval=20, leave=False
    )
