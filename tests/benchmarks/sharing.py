"""Race ways of OpenMP's threads to wait for each other, on an idle and on a shared machine.

Run: python -m tests.benchmarks.sharing [--images 960] [--repeats 5]   (from the repository root)

By default they spin for long (the baseline). OMP_WAIT_POLICY=PASSIVE lets them sleep at once, and
GOMP_SPINCOUNT spin so many times before that. Each contestant trains resnet18 at 64 px on images in
memory, in a new process, because the variables are read when torch is imported: on an idle machine,
and beside one program that computes all the time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from stages.lib.core.params import load_params
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.model import Detector, create_model, resolve_preprocessing
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from tests.benchmarks.race import Rates, run_races

SETTINGS = {
    "baseline": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=5000": {"GOMP_SPINCOUNT": "5000"},
}


def compare_alone(folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition on an idle machine."""
    rates: Rates = {name: [] for name in SETTINGS}
    for _ in range(repeats):
        for name, variables in SETTINGS.items():
            rates[name].append(_measure(variables, num_images))
    return rates


def compare_beside(folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition beside one busy program."""
    with _busy_program():
        return compare_alone(folder, num_images, repeats)


@contextmanager
def _busy_program() -> Iterator[None]:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def _measure(variables: dict[str, str], num_images: int) -> float:
    """Train in a new process with these variables; return its images per second."""
    own = {name for one in SETTINGS.values() for name in one}
    env = {name: value for name, value in os.environ.items() if name not in own}
    code = f"from tests.benchmarks.sharing import train; train({num_images})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | variables,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def train(num_images: int) -> None:
    """Train on batches in memory, after a warm-up, and print images per second."""
    params = load_params("train", TrainParams)
    params = params.model_copy(update={"num_threads": os.cpu_count(), "accumulate": 1})
    hardware = set_up_hardware(params.device, params.num_threads)
    model = create_model("resnet18", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=64)
    images = in_memory(preprocessing, num_images)
    loop = TrainingLoop(params, Detector(model, preprocessing), images, hardware)
    pixels = torch.randint(0, 256, (params.batch_size, 3, 64, 64), dtype=torch.uint8)
    print(images_per_second(loop, pixels, num_images))


def in_memory(preprocessing: Preprocessing, num_images: int) -> LabelledImages:
    """Return images that are nowhere on disk, for a loop that is fed from memory."""
    two = {"img_name": ["a", "b"], "target": [0, 1], "row": [0, 1], "set": "train", "sha256": ""}
    labels = pd.concat([pd.DataFrame(two)] * num_images, ignore_index=True)
    return LabelledImages(labels, Path("nowhere"), preprocessing)


def images_per_second(loop: TrainingLoop, pixels: torch.Tensor, num_images: int) -> float:
    """Train on the same batch, uint8 (N, 3, S, S), again and again, after a warm-up."""
    targets = torch.arange(len(pixels)) % 2
    loop.train_on([(pixels, targets, targets)] * 3, epoch=0)
    batches = [(pixels, targets, targets)] * (num_images // len(pixels))
    start = time.perf_counter()
    loop.train_on(batches, epoch=0)
    return len(batches) * len(pixels) / (time.perf_counter() - start)


if __name__ == "__main__":
    run_races(__doc__, 960, {"alone": compare_alone, "beside a busy program": compare_beside})
