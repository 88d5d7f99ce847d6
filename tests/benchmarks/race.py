"""Contestants take turns in one run, so that whatever else the machine does slows them alike."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Rates = dict[str, list[float]]  # each contestant's images per second, repeat by repeat


def run_races(
    description: str, num_images: int, compares: dict[str, Callable[[Path, int, int], Rates]]
) -> None:
    """Run each `compare(folder, images, repeats)` with the numbers that the command line names."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--images", type=int, default=num_images)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for what, compare in compares.items():
        run_race(what, lambda folder, compare=compare: compare(folder, given.images, given.repeats))


def run_race(what: str, compare: Callable[[Path], Rates]) -> Rates:
    """Run `compare` in a temporary folder, print the rates and return them."""
    with tempfile.TemporaryDirectory() as folder:
        rates = compare(Path(folder))
    report(what, rates)
    return rates


def race(contestants: Mapping[str, Callable[[], object]], num_images: int, repeats: int) -> Rates:
    """Let them run in turn; a first round is a warm-up."""
    rates: Rates = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                rates[name].append(num_images / (time.perf_counter() - start))
    return rates


def ratios(rates: Rates, name: str) -> list[float]:
    """Return how many times faster than the baseline a contestant was, repeat by repeat."""
    return [b / a for a, b in zip(rates["baseline"], rates[name], strict=True)]


def report(what: str, rates: Rates) -> None:
    """Print medians and, against the baseline, ratios with their spread."""
    for name, values in rates.items():
        line = f"{what}: {name}: median {statistics.median(values):.1f} images/s"
        if name != "baseline":
            times = ratios(rates, name)
            line += (
                f", {statistics.median(times):.2f} times the baseline "
                f"({min(times):.2f} to {max(times):.2f}, n = {len(times)})"
            )
        print(line, flush=True)
