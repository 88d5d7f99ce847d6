"""Time training as the baseline did it against ours, in one run on the same images.

Run: python -m tests.benchmarks.training [--images 160] [--repeats 5]   (from the repository's root)

--images is a multiple of 40, the batch size.

Both train resnet18 at 256 px with batch 40 on generated 512 px JPEG photographs, in turn, and the
ratio of images per second is printed with its spread. The baseline is the loop that the public
notebooks share: one file per image, Pillow, torchvision's transforms per image, fp32, Adam, the
loss fetched at every step. Ours is stages.train's own loop.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from stages.lib.hardware import set_up_hardware
from stages.lib.images import LabelledImages
from stages.lib.model import Detector, create_model, resolve_preprocessing
from stages.lib.params import load_params
from stages.train import TrainingLoop, TrainParams
from tests.benchmarks import notebook
from tests.benchmarks.notebook import BATCH_SIZE, IMAGE_SIZE, draw_photographs, pack
from tests.benchmarks.race import Rates, arguments_of, race, run_race


def ours(folder: Path, table: pd.DataFrame) -> Callable[[], None]:
    """Return stages.train's epoch, with its parameters but for the model's input size."""
    params = load_params("train", TrainParams)
    workers = {"num_workers": os.cpu_count() or 2, "num_threads": torch.get_num_threads()}
    changed = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "model": "resnet18", **workers}
    params = TrainParams.model_validate(params.model_dump() | changed)
    hardware = set_up_hardware(params.device, params.precision, params.num_threads)
    labels = pack(folder, table)
    model = create_model("resnet18", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=IMAGE_SIZE)
    images = LabelledImages(labels, folder / "packed", preprocessing, params.augmentation)
    detector = Detector(model, preprocessing).to(hardware.device)
    detector = detector.to(memory_format=torch.channels_last)
    loop = TrainingLoop(params, detector, images, hardware)
    print(f"ours: {hardware}")
    return lambda: loop.train_epoch(0) and None


def compare(folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition: {"baseline": [...], "ours": [...]}."""
    table = draw_photographs(folder / "photographs", num_images)
    run_ours = ours(folder, table)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run_baseline = notebook.training(folder / "photographs", table, device)
    return race({"baseline": run_baseline, "ours": run_ours}, num_images, repeats)


def main() -> None:
    """Print both rates and their ratio."""
    given = arguments_of(__doc__, num_images=160)
    run_race("training", lambda folder: compare(folder, given.images, given.repeats))


if __name__ == "__main__":
    main()
