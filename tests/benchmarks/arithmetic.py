"""Race portable arithmetic with native fp32 and native bf16, in training; compare their scores.

Run: python -m tests.benchmarks.arithmetic [--images 320] [--repeats 3]   (from the root)

Each contestant trains on images in memory in a new process, because the kernels are chosen when
PyTorch is imported. Portable is the baseline. Without a CPU that computes bf16 itself, bf16 falls
back to fp32. Where the pipeline has run, the last line says how much P(fake) of its validation
images differs between fp32 and bf16, which is why scores are never computed in bf16.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from stages.lib import paths
from stages.lib.core.arithmetic import PINNED_ALWAYS, PINNED_IF_PORTABLE
from stages.lib.core.labels import read_labels
from stages.lib.core.params import load_params
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.model import (
    Detector,
    create_model,
    fake_logit,
    load_detector,
    resolve_preprocessing,
)
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from tests.benchmarks.race import Rates, run_races
from tests.benchmarks.sharing import images_per_second, in_memory

NETWORKS = {"resnet18": 64, "tf_efficientnet_lite0": 128}
WAYS = {"baseline": (True, False), "native fp32": (False, False), "native bf16": (False, True)}


def compare(network: str) -> Callable[[Path, int, int], Rates]:
    """Return the race of one network."""

    def race(folder: Path, num_images: int, repeats: int) -> Rates:
        rates: Rates = {name: [] for name in WAYS}
        for _ in range(repeats):
            for name in WAYS:
                rates[name].append(_run(name, network, num_images))
        return rates

    return race


def _run(way: str, network: str, num_images: int) -> float:
    is_portable, bf16 = WAYS[way]
    pins = PINNED_ALWAYS | (PINNED_IF_PORTABLE if is_portable else {})
    code = (
        f"import os, tests.benchmarks; os.environ |= {pins}\n"
        "from tests.benchmarks.arithmetic import measure\n"
        f"measure({network!r}, {bf16}, {num_images})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(network: str, bf16: bool, num_images: int) -> None:
    """Train on so many images and print how many a second."""
    params = load_params("train", TrainParams)
    params = params.model_copy(update={"num_threads": os.cpu_count(), "accumulate": 1})
    hardware = set_up_hardware("cpu", os.cpu_count() or 1, bf16)
    side = NETWORKS[network]
    torch.manual_seed(0)
    model = create_model(network, {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=side)
    detector = Detector(model, preprocessing).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (params.batch_size, 3, side, side), dtype=torch.uint8)
    loop = TrainingLoop(params, detector, in_memory(preprocessing, num_images), hardware)
    print(images_per_second(loop, pixels, num_images))


def compare_scores() -> None:
    """Print how much P(fake) of the validation images differs between fp32 and bf16."""
    detector, config = load_detector(paths.MODEL)
    detector = detector.to(memory_format=torch.channels_last)
    labels = read_labels(paths.LABELS / "val.csv")
    images = LabelledImages(labels, paths.PACKED, config.preprocessing)
    inputs = torch.stack([images[0, index][0] for index in range(len(images))])
    scores = []
    for bf16 in (False, True):
        hardware = set_up_hardware("cpu", os.cpu_count() or 1, bf16)
        with torch.inference_mode(), hardware.autocast():
            logits = [fake_logit(detector(part)).double() for part in inputs.split(64)]
        scores.append(torch.cat(logits).sigmoid())
    largest = (scores[0] - scores[1]).abs().max()
    print(f"P(fake) of {len(images)} images in fp32 and in bf16 differs by at most {largest:.1e}")


if __name__ == "__main__":
    run_races(__doc__, 320, {name: compare(name) for name in NETWORKS})
    if paths.WEIGHTS.is_file():
        compare_scores()
