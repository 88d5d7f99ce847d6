"""How fast an epoch was, and what it waited for."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Protocol

import torch

from stages.lib.progress import progress_bar

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # uint8 (N, 3, S, S), targets, indices


class Batches(Protocol):
    """The micro-batches of a pass, as a DataLoader or DeviceBatches has them."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


class Clock:
    """Measures an epoch: its seconds, and those spent waiting for the next batch."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waiting = 0.0

    def speed(self, num_images: int) -> dict[str, float]:
        """Return images per second, the share of time spent waiting for data, peak memory."""
        seconds = time.perf_counter() - self.start
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "images_per_second": num_images / seconds,
            "waiting_share": self.waiting / seconds,
            "peak_memory_gb": memory / 1e9,
        }


def timed(batches: Batches, clock: Clock, desc: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images, targets) and add the time spent waiting for them to the clock."""
    with progress_bar(desc, len(batches), unit="batches") as bar:
        before = time.perf_counter()
        for images, targets, _ in batches:
            clock.waiting += time.perf_counter() - before
            yield images, targets
            bar.update()
            before = time.perf_counter()
