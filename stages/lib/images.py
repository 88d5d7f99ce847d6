"""From encoded bytes to what a model sees; the same code in training, prediction and serving.

Decoding, resizing and flipping work on uint8; the conversion to float and the normalisation happen
in batches on the device, so that four times fewer bytes travel there.
"""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pydantic
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as tv

from stages.lib.packed import PackedImages

JPEG_MAGIC = b"\xff\xd8"


class Preprocessing(pydantic.BaseModel):
    """How an image becomes a model's input; travels with the model in its config.json."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    image_size: int  # pixels, both sides
    interpolation: Literal["bilinear", "bicubic"]
    mean: list[float]  # per channel of RGB, on a scale from 0 to 1
    std: list[float]
    reencode: list[int] | None = None  # lowest and highest JPEG quality
    scaled_decoding: bool = False


class Augmentation(pydantic.BaseModel):
    """Random changes of training images: the probabilities of mirroring them."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    horizontal_flip: Annotated[float, pydantic.Field(ge=0, le=1)]
    vertical_flip: Annotated[float, pydantic.Field(ge=0, le=1)]


def decode(content: bytes | memoryview, preprocessing: Preprocessing) -> torch.Tensor:
    """Decode an image file: uint8 (3, H, W), RGB; raises what the decoder raises on bad files.

    With `scaled_decoding` a JPEG that is at least twice as large as the model's input is decoded at
    a half, a quarter or an eighth of its size, which libjpeg does several times faster.
    """
    if content[:2] != JPEG_MAGIC:
        with Image.open(BytesIO(content)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    if preprocessing.scaled_decoding:
        import simplejpeg  # here, so that a machine without it can train as well

        height, width, colours, _ = simplejpeg.decode_jpeg_header(content, strict=False)
        factor = min(height, width) // preprocessing.image_size
        if factor >= 2 and colours in ("YCbCr", "Gray"):
            divisor = 2 ** min(3, factor.bit_length() - 1)
            smallest = {"min_height": -(-height // divisor), "min_width": -(-width // divisor)}
            pixels = simplejpeg.decode_jpeg(content, strict=False, **smallest)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_jpeg(encoded, mode=ImageReadMode.RGB)


def resize(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize uint8 (3, H, W) to the model's square input, not keeping the aspect ratio."""
    side = preprocessing.image_size
    mode = tv.InterpolationMode(preprocessing.interpolation)
    return tv.resize(image, [side, side], interpolation=mode, antialias=True)


def to_input(
    image: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> torch.Tensor:
    """Make a decoded image, uint8 (3, H, W), the model's input, uint8 (3, S, S).

    With `reencode` every image passes through one more JPEG compression at the size that the model
    sees, which covers the traces of earlier ones: of random quality where `random` is given, as in
    training, else of the middle one.
    """
    return reencode(resize(image, preprocessing), preprocessing, random)


def reencode(
    image: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None
) -> torch.Tensor:
    """Apply preprocessing.reencode, where there is one, to a resized image, uint8 (3, S, S)."""
    if preprocessing.reencode is None:
        return image
    low, high = preprocessing.reencode
    quality = int(random.integers(low, high + 1)) if random else (low + high) // 2
    return decode_jpeg(encode_jpeg(image, quality), mode=ImageReadMode.RGB)


class Normalize(torch.nn.Module):
    """uint8 (N, 3, H, W) to float32 of about zero mean and unit variance, on the device."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images * scale + shift."""
        return torch.addcmul(self.shift, images.float(), self.scale)


class LabelledImages(Dataset):
    """The images of a label table, decoded, resized and, in training, augmented.

    A key is (epoch, index): what happens to an image at random depends on the seed, the epoch and
    the image alone, so neither the number of workers nor of processes changes anything.
    """

    def __init__(
        self,
        labels: pd.DataFrame,
        packed: Path,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.targets = labels["target"].fillna(-1).to_numpy(dtype=np.int64)
        self.rows = labels["row"].to_numpy()
        self.sets = labels["set"].to_numpy(dtype=object)
        self.packs = {name: PackedImages(packed / name) for name in labels["set"].unique()}
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        self.decoded: PackedImages | None = None  # see stages/lib/decoded.py

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index); the target of an unlabelled image is -1."""
        epoch, index = key
        random = np.random.default_rng([self.seed, epoch, index]) if self.augmentation else None
        image = reencode(self._resized(index), self.preprocessing, random)
        if random:
            image = self._augment(image, random)
        return image, int(self.targets[index]), index

    def _resized(self, index: int) -> torch.Tensor:
        if self.decoded is not None:
            content = torch.frombuffer(bytearray(self.decoded[index]), dtype=torch.uint8)
            side = self.preprocessing.image_size
            return content.view(3, side, side)
        return resize(decode(self.content(index), self.preprocessing), self.preprocessing)

    def content(self, index: int) -> memoryview:
        """Return the bytes of an image's file."""
        return self.packs[self.sets[index]][self.rows[index]]

    def _augment(self, image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        if random.random() < self.augmentation.horizontal_flip:
            image = tv.horizontal_flip(image)
        if random.random() < self.augmentation.vertical_flip:
            image = tv.vertical_flip(image)
        return image


def make_loader(
    dataset: LabelledImages, batches: list[list[tuple[int, int]]], num_workers: int, pin: bool
) -> DataLoader:
    """Load the given batches of (epoch, index) keys, in their order.

    The workers stay for the next pass, which loads what the list `batches` holds by then.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=num_workers > 0,
    )


def sequential_batches(
    num_images: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[tuple[int, int]]]:
    """Cut one pass without augmentation into batches; each image goes to exactly one process."""
    keys = [(0, index) for index in range(rank, num_images, world_size)]
    return [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
