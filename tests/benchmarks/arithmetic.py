"""Race portable arithmetic with native fp32 and native bf16, in training.

Run: python -m tests.benchmarks.arithmetic [--images 320] [--repeats 3]   (from the root)

Each contestant trains on images in memory in a new process, because the kernels are chosen when
PyTorch is imported. Portable is the baseline. Without a CPU that computes bf16 itself, bf16 falls
back to fp32. The last lines say how much P(fake) depends on the size of the batch, which is why
scores are never computed in bf16.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from stages.lib.core.arithmetic import PINNED_ALWAYS, PINNED_IF_PORTABLE
from stages.lib.core.params import load_params
from stages.lib.detector.model import Detector, create_model, fake_logit, resolve_preprocessing
from stages.lib.detector.runtime import set_up_hardware
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from tests.benchmarks.race import Rates, run_races
from tests.benchmarks.sharing import images_per_second, in_memory

NETWORKS = {"resnet18": 64, "tf_efficientnet_lite0": 128, "vit_tiny_patch16_224": 224}
WAYS = {"baseline": (True, False), "native fp32": (False, False), "native bf16": (False, True)}


def compare(network: str) -> Callable[[Path, int, int], Rates]:
    """Return the race of one network."""

    def race(folder: Path, num_images: int, repeats: int) -> Rates:
        rates: Rates = {name: [] for name in WAYS}
        for _ in range(repeats):
            for name in WAYS:
                rates[name].append(_run(name, network, num_images)["rate"])
        for name in WAYS:
            print(f"{network}, {name}: P(fake) in batches of 1 and of 32 differs by at most "
                  f"{_run(name, network, 0)['difference']:.1e}")  # fmt: skip
        return rates

    return race


def _run(way: str, network: str, num_images: int) -> dict[str, float]:
    is_portable, bf16 = WAYS[way]
    pins = PINNED_ALWAYS | (PINNED_IF_PORTABLE if is_portable else {})
    code = (
        f"import os, tests.benchmarks; os.environ |= {pins}\n"
        "from tests.benchmarks.arithmetic import measure\n"
        f"measure({network!r}, {bf16}, {num_images})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(network: str, bf16: bool, num_images: int) -> None:
    """Train on so many images; without any, compare the scores of small and large batches."""
    params = load_params("train", TrainParams)
    params = params.model_copy(update={"num_threads": os.cpu_count(), "accumulate": 1})
    hardware = set_up_hardware("cpu", os.cpu_count() or 1, bf16)
    side = NETWORKS[network]
    torch.manual_seed(0)
    model = create_model(network, {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=side)
    detector = Detector(model, preprocessing).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (params.batch_size, 3, side, side), dtype=torch.uint8)
    if num_images:
        loop = TrainingLoop(params, detector, in_memory(preprocessing, num_images), hardware)
        rate = images_per_second(loop, pixels, num_images)
        print(json.dumps({"rate": rate}))
        return
    with torch.inference_mode(), hardware.autocast():
        detector.eval()
        together = fake_logit(detector(pixels)).double().sigmoid()
        alone = torch.cat([fake_logit(detector(one)) for one in pixels.split(1)]).double().sigmoid()
    print(json.dumps({"difference": float((together - alone).abs().max())}))


if __name__ == "__main__":
    run_races(__doc__, 320, {name: compare(name) for name in NETWORKS})
