"""Time training as the baseline did it against ours, in one run on the same images.

Run: python -m tests.benchmarks.training [--images 160] [--repeats 5]   (from the repository's root)

Both train resnet18 at 256 px with batch 40 on generated 512 px JPEG photographs, in turn, and the
ratio of images per second is printed with its spread. The baseline is the loop that the public
notebooks share: one file per image, Pillow, torchvision's transforms per image, fp32, Adam, the
loss fetched at every step. Ours is stages.train's own loop.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stages.lib.competition import ImageSet
from stages.lib.hardware import set_up_hardware
from stages.lib.images import LabelledImages
from stages.lib.model import Detector, create_model, resolve_preprocessing
from stages.lib.packing import PackParams, pack_images
from stages.lib.params import load_params
from stages.train import TrainingLoop, TrainParams

IMAGE_SIZE, PHOTO_SIZE, BATCH_SIZE = 256, 512, 40
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def draw_photographs(folder: Path, count: int) -> pd.DataFrame:
    """Write noisy 512 px JPEG files of about FFDI's size; returns their list."""
    folder.mkdir()
    names = []
    for index in range(count):
        random = np.random.default_rng(index)
        coarse = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=float) + random.normal(0, 5, (PHOTO_SIZE, PHOTO_SIZE, 1))
        names.append(f"{index:032x}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=85)
    rows = {"img_name": names, "target": np.arange(count) % 2, "family": None}
    return pd.DataFrame(rows)


class FileImages(Dataset):
    """The baseline's data set."""

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self.paths = [folder / name for name in table["img_name"]]
        self.targets = table["target"].tolist()
        self.transform = T.Compose(
            [
                T.Resize((IMAGE_SIZE, IMAGE_SIZE)),
                T.RandomHorizontalFlip(),
                T.RandomVerticalFlip(),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.targets[index]


def baseline(folder: Path, table: pd.DataFrame, device: torch.device) -> Callable[[], None]:
    """Return the baseline's epoch."""
    images = FileImages(folder, table)
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=os.cpu_count() or 2)
    model = timm.create_model("resnet18", num_classes=2).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    loss_function = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        for batch, targets in loader:
            loss = loss_function(model(batch.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def ours(folder: Path, table: pd.DataFrame) -> Callable[[], None]:
    """Return stages.train's epoch, with its parameters but for the model's input size."""
    params = load_params("train", TrainParams)
    workers = {"num_workers": os.cpu_count() or 2, "num_threads": torch.get_num_threads()}
    changed = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "model": "resnet18", **workers}
    params = TrainParams.model_validate(params.model_dump() | changed)
    hardware = set_up_hardware(params.device, params.precision, params.num_threads)
    os.environ["DVC_ROOT"] = str(folder.parent)  # where packing remembers what it has read
    packed = folder.with_name("packed") / "train"
    packed.mkdir(parents=True)
    image_set = ImageSet("train", folder, folder)
    pack_images(image_set, table, packed, PackParams(shard_mb=512, num_threads=2))
    labels = table.assign(row=np.arange(len(table)), set="train")
    model = create_model("resnet18", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=IMAGE_SIZE)
    images = LabelledImages(labels, packed.parent, preprocessing, params.augmentation)
    detector = Detector(model, preprocessing).to(hardware.device)
    detector = detector.to(memory_format=torch.channels_last)
    loop = TrainingLoop(params, detector, images, hardware)
    print(f"ours: {hardware}")
    return lambda: loop.train_epoch(0) and None


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160, help="per epoch, a multiple of 40")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photographs"
        table = draw_photographs(folder, arguments.images)
        run_ours = ours(folder, table)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        epochs = {"baseline": baseline(folder, table, device), "ours": run_ours}
        rates: dict[str, list[float]] = {name: [] for name in epochs}
        for repeat in range(arguments.repeats + 1):  # the first is a warm-up
            for name, epoch in epochs.items():
                start = time.perf_counter()
                epoch()
                rate = arguments.images / (time.perf_counter() - start)
                if repeat:
                    rates[name].append(rate)
                    print(f"{repeat}: {name:8s} {rate:8.1f} images/s", flush=True)
    ratios = [b / a for a, b in zip(rates["baseline"], rates["ours"], strict=True)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {device}")
    print(
        f"ours / baseline: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)}"
    )


if __name__ == "__main__":
    main()
