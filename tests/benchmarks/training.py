"""Time training as the baseline did it against ours, in one run on the same images.

Run: python -m tests.benchmarks.training [--images 160] [--repeats 5]   (from the repository's root)

Both train resnet18 at 256 px on generated 512 px JPEG photographs, in turn, and the ratio of images
per second is printed with its spread. The baseline is the loop that the public notebooks share: one
file per image, Pillow, torchvision's transforms per image, fp32, Adam, the loss fetched at every
step. Ours is stages.train's own loop, with the section `train` of params.yaml: decoding in every
epoch, with images decoded ahead, and with nothing to load, which tells how hungry the device is.
--images is a multiple of the batch size, 40, on a GPU 256; there take --images 10240.
"""

import os
from pathlib import Path

import pandas as pd
import torch

from stages.lib.core.params import load_params
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.model import (
    Detector,
    DetectorConfig,
    create_model,
    resolve_preprocessing,
)
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.images import TrainingImages
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from stages.lib.training.speed import Batch
from stages.train import make_detector
from tests.benchmarks import notebook
from tests.benchmarks.notebook import BATCH_SIZE, IMAGE_SIZE, draw_photographs, pack, pack_set
from tests.benchmarks.race import Rates, race, run_races


def loop_of(folder: Path, labels: pd.DataFrame) -> TrainingLoop:
    """Return stages.train's loop, with its parameters but for the model's input size."""
    params = load_params("train", TrainParams)
    workers = {"num_workers": os.cpu_count() or 2, "num_threads": torch.get_num_threads()}
    changed = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "model": "resnet18", **workers}
    params = TrainParams.model_validate(params.model_dump() | changed)
    hardware = set_up_hardware(params.device, params.num_threads, bf16=True)
    model = create_model("resnet18", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=IMAGE_SIZE)
    images = TrainingImages(labels, folder / "packed", preprocessing, params)
    detector = Detector(model, preprocessing).to(hardware.device)
    detector = detector.to(memory_format=torch.channels_last)
    print(f"ours: {hardware}")
    return TrainingLoop(params, detector, images, hardware)


def packed_loop(
    params: TrainParams, sets: dict[str, ImageSet], folder: Path
) -> tuple[TrainingLoop, LabelledImages, DetectorConfig]:
    """Pack the sets train and val into folder; return stages.train's loop, the images of val."""
    labels = {name: pack_set(folder, one) for name, one in sets.items()}
    hardware = set_up_hardware(params.device, params.num_threads, bf16=True)
    detector, config = make_detector(params, hardware)
    images = TrainingImages(labels["train"], folder / "packed", config.preprocessing, params)
    val = LabelledImages(labels["val"], folder / "packed", config.preprocessing)
    return TrainingLoop(params, detector, images, hardware), val, config


def on_the_device(loop: TrainingLoop) -> list[Batch]:
    """Return an epoch's batches that are on the device already: nothing is loaded."""
    device, size = loop.hardware.device, loop.params.batch_size
    side = loop.images.preprocessing.image_size
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
    targets = torch.arange(size) % 2
    batch = images.to(device), targets.to(device), targets
    return [batch] * loop.steps_per_epoch


def compare(folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition; "nothing to load" is what ours could reach."""
    table = draw_photographs(folder / "photographs", num_images)
    labels = pack(folder, table)
    loop, ahead = loop_of(folder, labels), loop_of(folder, labels)
    batches = on_the_device(loop)
    decode_ahead({"train": ahead.images}, limit_gb=50, num_workers=0)
    baseline = notebook.training(folder / "photographs", table, loop.hardware.device)
    runs = {
        "baseline": baseline,
        "ours": lambda: loop.train_epoch(0) and None,
        "ours, decoded_gb": lambda: ahead.train_epoch(0) and None,
        "ours, nothing to load": lambda: loop.train_on(batches, 0) and None,
    }
    return race(runs, num_images, repeats)


if __name__ == "__main__":
    run_races(__doc__, 160, {"training": compare})
