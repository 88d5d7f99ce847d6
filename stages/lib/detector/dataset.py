"""The images of a label table as inputs of the model, and loaders that read them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from stages.lib.core.packed_images import PackedImages
from stages.lib.detector.preprocessing import Preprocessing, decode, reencode, resize

Key = tuple[int, ...]  # (epoch, index) and more


class LabelledImages(Dataset):
    """The images of a label table, decoded and resized. A key is (epoch, index)."""

    def __init__(self, labels: pd.DataFrame, packed: Path, preprocessing: Preprocessing) -> None:
        self.targets = labels["target"].fillna(-1).to_numpy(dtype=np.int64)
        self.rows = labels["row"].to_numpy()
        self.sets = labels["set"].to_numpy(dtype=object)
        self.packs = {name: PackedImages(packed / name) for name in labels["set"].unique()}
        self.preprocessing = preprocessing
        self.decoded: PackedImages | None = None  # see stages/lib/training/decode_cache.py

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(  # pyrefly: ignore[bad-override-param-name]
        self, key: Key
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index); the target of an unlabelled image is -1."""
        index = key[1]
        image = reencode(self.resized(index), self.preprocessing, None)
        return image, int(self.targets[index]), index

    def resized(self, index: int) -> torch.Tensor:
        """Return an image at the size of the model's input, uint8 (3, S, S)."""
        if self.decoded is not None:
            content = torch.frombuffer(bytearray(self.decoded[index]), dtype=torch.uint8)
            side = self.preprocessing.image_size
            return content.view(3, side, side)
        return resize(decode(self.content(index), self.preprocessing), self.preprocessing)

    def content(self, index: int) -> memoryview:
        """Return the bytes of the file of an image."""
        return self.packs[self.sets[index]][self.rows[index]]


class ResizedImages(Dataset):
    """The images of a LabelledImages as its method `resized` returns them."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(  # pyrefly: ignore[bad-override-param-name]
        self, key: Key
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index)."""
        return self.images.resized(key[1]), int(self.images.targets[key[1]]), key[1]


def make_loader(
    dataset: Dataset, batches: Sequence[Sequence[Key]], num_workers: int, pin: bool
) -> DataLoader:
    """Load the given batches of keys, in their order.

    The workers stay for the next pass, which loads what the list `batches` contains by then.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # pyrefly: ignore[bad-argument-type]
        num_workers=num_workers,
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its own, so that loading draws nothing from the global one
    )


def sequential_batches(
    num_images: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """Cut one pass without augmentation into batches; each image goes to exactly one process."""
    keys: list[Key] = [(0, index) for index in range(rank, num_images, world_size)]
    return [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
