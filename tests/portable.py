"""Portable digests: what must be the same bytes on every x86-64 CPU with AVX2.

Run: python -m tests.portable      writes tests/portable.json; a change of it needs a reason

They were written by one kind of CPU (benchmarks/RESULTS.md names those that agree). Another one on
which the tests run confirms them or shows what is not portable.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.audit.shortcuts import shortcuts
from stages.lib.core.files import read_json, write_json
from stages.lib.core.params import load_params
from stages.lib.data.image_facts import IMAGE_CUES, image_facts
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.distance import early_features
from stages.lib.detector.hardware import Hardware, set_up_hardware
from stages.lib.detector.model import (
    Detector,
    create_model,
    fake_logit,
    input_size_args,
    resolve_preprocessing,
)
from stages.lib.evaluation.intervals import metric_intervals
from stages.lib.evaluation.metrics import METRICS, RankedScores, fit_temperature
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from stages.lib.training.training_distance import whiten
from tests.golden import draw

FILE = Path(__file__).with_suffix(".json")
# Convolutions, depthwise ones, and a transformer with layer norms and attention.
NETWORKS = {"resnet18": 64, "tf_efficientnet_lite0": 64, "test_vit": 160}
STEPS, BATCH = 2, 16


def main() -> None:
    """Write the file."""
    write_json(FILE, compute())


def compute() -> dict[str, Any]:
    """Return a digest of each thing that the stages compute."""
    hardware = set_up_hardware("cpu", 2)
    return {
        "versions": {"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
        "training": {name: train(name, side, hardware) for name, side in NETWORKS.items()},
        "distance": {name: distance(name, side) for name, side in NETWORKS.items()},
        "facts": _digest(*(image_facts(draw(i, "jpeg")).values() for i in range(3))),
        "figures": figures(),
    }


def train(name: str, side: int, hardware: Hardware) -> str:
    """Train for STEPS steps; return a digest of the weights and of the scores of the images."""
    params = load_params("train", TrainParams, Path(__file__).parents[1] / paths.PARAMS)
    params = params.model_copy(update={"batch_size": BATCH, "num_workers": 0})
    torch.manual_seed(0)
    model = create_model(name, input_size_args(name, side), "random")
    preprocessing = resolve_preprocessing(model, image_size=side)
    detector = Detector(model, preprocessing).to(memory_format=torch.channels_last)
    names = {"img_name": "x.jpg", "row": range(STEPS * BATCH), "set": "train", "sha256": ""}
    labels = pd.DataFrame(names | {"target": [0, 1] * (STEPS * BATCH // 2)})
    images = LabelledImages(labels, Path("nowhere"), preprocessing)
    loop = TrainingLoop(params, detector, images, hardware)
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (STEPS, BATCH, 3, side, side), generator=random)
    targets = torch.tensor([0, 1] * (BATCH // 2))
    loop.train_on([(part.byte(), targets, targets) for part in pixels], 0)
    with torch.inference_mode():
        logits = fake_logit(detector.eval()(pixels[0].byte())).double()
    state = detector.model.state_dict().values()
    return _digest(*(tensor.numpy().tobytes() for tensor in state), logits.numpy().tobytes())


def distance(name: str, side: int) -> str:
    """Fit the distance to the training images of an untrained network; return its digest."""
    torch.manual_seed(0)
    model = create_model(name, input_size_args(name, side), "random")
    detector = Detector(model, resolve_preprocessing(model, image_size=side)).eval()
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (BATCH, 3, side, side), generator=random).byte()
    with torch.inference_mode():
        features = early_features(detector.to(memory_format=torch.channels_last), pixels)
        fitted = whiten(features.double().numpy())
        distances = fitted(features.flip(1))
    state = fitted.state_dict().values()
    return _digest(*(tensor.numpy().tobytes() for tensor in state), distances.numpy().tobytes())


def figures() -> dict[str, str]:
    """Return digests of an audit, of metrics with their intervals, and of a temperature."""
    random = np.random.default_rng(0)
    targets, groups = random.integers(0, 2, 400), random.integers(0, 120, 400)
    logits = random.normal(targets * 2 - 1, 2)
    ranked = RankedScores(targets, 1 / (1 + np.exp(-logits)), 0.4, logits)
    rows = pd.DataFrame({cue: random.normal(targets, 3) for cue in IMAGE_CUES})
    rows = rows.assign(
        target=targets,
        group=groups,
        num_bytes=groups,
        width=64,
        height=64,
        jpeg_quality=groups % 9,
        jpeg_tables=(groups % 9).astype(str),
    )
    return {
        "audit": _digest(shortcuts(rows, 0)),
        "intervals": _digest(metric_intervals(ranked, groups, list(METRICS))),
        "temperature": _digest(fit_temperature(targets, logits)),
    }


def read() -> dict[str, Any]:
    """Return what the file has."""
    return read_json(FILE)


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
