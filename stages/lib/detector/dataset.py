"""The images of a label table as inputs of the model, and loaders that read them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from stages.lib.core.packed_images import PackedImages
from stages.lib.detector.preprocessing import Preprocessing, decode, reencode, resize

# A random change of a training image, uint8 (3, S, S) to the same, drawn from the generator alone.
Augment = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


class LabelledImages(Dataset):
    """The images of a label table, decoded, resized and, in training, augmented.

    A key is (epoch, index). What happens to an image at random depends on the seed, the epoch and
    the image alone, so the numbers of workers and processes change nothing.
    """

    def __init__(
        self,
        labels: pd.DataFrame,
        packed: Path,
        preprocessing: Preprocessing,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.targets = labels["target"].fillna(-1).to_numpy(dtype=np.int64)
        self.rows = labels["row"].to_numpy()
        self.sets = labels["set"].to_numpy(dtype=object)
        self.packs = {name: PackedImages(packed / name) for name in labels["set"].unique()}
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self.decoded: PackedImages | None = None  # see stages/lib/training/decode_cache.py

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(  # pyrefly: ignore[bad-override-param-name]
        self, key: tuple[int, int]
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index); the target of an unlabelled image is -1."""
        epoch, index = key
        random = np.random.default_rng([self.seed, epoch, index]) if self.augment else None
        image = reencode(self._resized(index), self.preprocessing, random)
        if self.augment and random:
            image = self.augment(image, random)
        return image, int(self.targets[index]), index

    def _resized(self, index: int) -> torch.Tensor:
        if self.decoded is not None:
            content = torch.frombuffer(bytearray(self.decoded[index]), dtype=torch.uint8)
            side = self.preprocessing.image_size
            return content.view(3, side, side)
        return resize(decode(self.content(index), self.preprocessing), self.preprocessing)

    def content(self, index: int) -> memoryview:
        """Return the bytes of the file of an image."""
        return self.packs[self.sets[index]][self.rows[index]]


def make_loader(
    dataset: LabelledImages, batches: list[list[tuple[int, int]]], num_workers: int, pin: bool
) -> DataLoader:
    """Load the given batches of (epoch, index) keys, in their order.

    The workers stay for the next pass, which loads what the list `batches` contains by then.
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
