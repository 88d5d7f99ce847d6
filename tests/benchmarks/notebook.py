"""What the public notebooks share, to race against: files, Pillow, transforms per image, fp32."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stages.lib.data.layouts.image_set import ROW_TYPES, ImageSet
from tests import packed

IMAGE_SIZE = 256
BATCH_SIZE = 256 if torch.cuda.is_available() else 40
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def draw_photographs(folder: Path, count: int, side: int = 512) -> pd.DataFrame:
    """Write noisy JPEG files, twice as large as FFDI's at 512 px; returns their list."""
    folder.mkdir()
    names = [f"{index:032x}.jpg" for index in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_draw, range(count), [folder / name for name in names], [side] * count))
    rows = {"img_name": names, "target": np.arange(count) % 2}
    return pd.DataFrame(rows, columns=list(ROW_TYPES)).astype(ROW_TYPES)


def _draw(index: int, path: Path, side: int) -> None:
    random = np.random.default_rng(index)
    coarse = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=float) + random.normal(0, 5, (side, side, 1))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def pack(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Pack folder/photographs into folder/packed/train, for ours; returns their labels."""
    return pack_set(folder, ImageSet("train", folder / "photographs", table))


def pack_set(folder: Path, image_set: ImageSet) -> pd.DataFrame:
    """Pack the images of a set into folder/packed/NAME; returns their labels."""
    os.environ["DVC_ROOT"] = str(folder)  # where packing remembers what it has read
    return packed.pack_set(folder, image_set)


class FileImages(Dataset):
    """The notebooks' data set; float (3, 256, 256), normalised, flipped at random."""

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


def training(folder: Path, table: pd.DataFrame, device: torch.device) -> Callable[[], None]:
    """Return the notebooks' epoch, of resnet18 from random weights."""
    images = FileImages(folder, table)
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=os.cpu_count() or 2)
    return epoch_of(timm.create_model("resnet18", num_classes=2).to(device), loader, device)


def epoch_of(
    model: torch.nn.Module, loader: DataLoader, device: torch.device
) -> Callable[[], None]:
    """Return the notebooks' epoch: Adam, the loss fetched at every step."""
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


def inference(
    folder: Path, table: pd.DataFrame, model: torch.nn.Module, device: torch.device
) -> Callable[[], None]:
    """Return the notebooks' pass over the test images, the scores fetched after every batch."""
    loader = DataLoader(FileImages(folder, table), BATCH_SIZE, num_workers=os.cpu_count() or 2)
    model = model.to(device).eval()

    @torch.no_grad()
    def whole_pass() -> None:
        scores = []
        for batch, _ in loader:
            outputs = torch.softmax(model(batch.to(device)), dim=1)
            scores += outputs[:, 1].cpu().tolist()

    return whole_pass
