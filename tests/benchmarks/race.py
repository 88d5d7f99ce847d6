"""Contestants take turns in one run, so that whatever else the machine does slows them alike."""

import statistics
import time
from collections.abc import Callable

import torch


def race(
    contestants: dict[str, Callable[[], None]], num_images: int, repeats: int
) -> dict[str, list[float]]:
    """Return each contestant's images per second, repeat by repeat; a first round is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                rates[name].append(num_images / (time.perf_counter() - start))
    return rates


def ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    """Return how many times faster than the baseline a contestant was, repeat by repeat."""
    return [b / a for a, b in zip(rates["baseline"], rates[name], strict=True)]


def report(what: str, rates: dict[str, list[float]]) -> None:
    """Print medians and, against the baseline, ratios with their spread."""
    for name, found in rates.items():
        line = f"{what}: {name}: median {statistics.median(found):.1f} images/s"
        if name != "baseline":
            times = ratios(rates, name)
            line += (
                f", {statistics.median(times):.2f} times the baseline "
                f"({min(times):.2f} to {max(times):.2f}, n = {len(times)})"
            )
        print(line, flush=True)
