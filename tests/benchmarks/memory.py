"""Race training on the CPU with memory that is given back after each use, and that is kept.

Run: python -m tests.benchmarks.memory [--images 320] [--repeats 5]   (from the repository's root)

Giving back is what glibc does with large blocks by default (the baseline). The stages keep them
(`keep_freed_memory` in stages/lib/detector/hardware.py). Each contestant trains on images in memory
in a new process, in turn.
"""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from stages.lib.detector import hardware as runtime
from stages.lib.detector.model import create_model
from tests.benchmarks.race import Rates, run_races

NETWORKS = {"tf_efficientnet_lite0": 224, "resnet18": 256}  # their image size
BATCH_SIZE = 32


def compare(network: str, folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition."""
    rates: Rates = {"baseline": [], "kept": []}
    code = "from tests.benchmarks.memory import train; train({!r}, {}, {})"
    for _ in range(repeats):
        for name, found in rates.items():
            done = subprocess.run(
                [sys.executable, "-c", code.format(network, num_images, name == "kept")],
                env=os.environ | {"GOMP_SPINCOUNT": "5000"}, check=True, capture_output=True,
                text=True,
            )  # fmt: skip
            found.append(float(done.stdout.split()[-1]))
    return rates


def train(network: str, num_images: int, keeps: bool) -> None:
    """Train after a warm-up, and print images per second."""
    if not keeps:
        runtime.keep_freed_memory = lambda: None
    runtime.set_up_hardware("cpu", os.cpu_count() or 2)
    model = create_model(network, {}, "random").to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    side = NETWORKS[network]
    images = torch.randn(BATCH_SIZE, 3, side, side).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH_SIZE) % 2
    start = 0.0
    for step in range(3 + num_images // BATCH_SIZE):
        if step == 3:
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    print(num_images / (time.perf_counter() - start))


if __name__ == "__main__":
    run_races(__doc__, 320, {f"{network}, {NETWORKS[network]} px": partial(compare, network)
                             for network in NETWORKS})  # fmt: skip
