"""The images of a label table as inputs of the model, and loaders that read them."""

import os
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.lib.core.errors import UserError
from stages.lib.detector.preprocessing import (
    Preprocessing,
    crop_of,
    decode,
    reencode,
    resize,
)
from stages.lib.images.decoding import UnusableImage
from stages.lib.images.packed_images import PackedImages

CHECKSUM_BYTES = 4  # CRC-32, of decoded images: a SHA-256 would take twice as long
MOST_AHEAD = 4  # batches that each worker prepares


class LabelledImages(Dataset):
    """The images of a label table, decoded and resized."""

    num_inputs = 1  # of each image; more in subclasses that return uint8 (V, 3, S, S)

    def __init__(self, labels: pd.DataFrame, packed: Path, preprocessing: Preprocessing) -> None:
        self.labels = labels
        self.names = labels["img_name"].to_numpy(dtype=object)
        self.targets = labels["target"].fillna(-1).to_numpy(dtype=np.int64)
        self.rows = labels["row"].to_numpy()
        self.sets = labels["set"].to_numpy(dtype=object)
        self.digests = labels["sha256"].to_numpy(dtype=object)
        self.packs = {name: PackedImages(packed / name) for name in labels["set"].unique()}
        self.preprocessing = preprocessing
        self.decoded: PackedImages | None = None  # see stages/lib/training/decode_cache.py
        self.checked = np.zeros(len(labels), dtype=bool)  # of `decoded`, in this process

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def item_bytes(self) -> int:
        """Size of the pixels of one item."""
        return self.num_inputs * 3 * self.preprocessing.image_size**2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index); the target of an unlabelled image is -1."""
        return self.inputs(index), int(self.targets[index]), index

    def inputs(self, index: int) -> torch.Tensor:
        """Return the input of an image, uint8 (3, S, S)."""
        return reencode(self.resized(index), self.preprocessing)

    def resized(self, index: int) -> torch.Tensor:
        """Return an image at the size of the model's input, uint8 (3, S, S)."""
        if self.decoded is not None:
            return torch.from_numpy(self._cached(index, self.decoded).copy())
        return resize(self.crop(self.decoded_file(index), index), self.preprocessing)

    def crop(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return what a detector sees of a decoded image, uint8 (3, H, W)."""
        return crop_of(image, self.preprocessing)

    def resized_view(self, index: int) -> np.ndarray:
        """Return what resized does, uint8 (3, S, S), read-only where images are decoded ahead."""
        if self.decoded is not None:
            return self._cached(index, self.decoded)
        return self.resized(index).numpy()

    def _cached(self, index: int, cache: PackedImages) -> np.ndarray:
        """Return the pixels of an image in a cache, uint8 (3, S, S); raises UserError.

        The first time that this process reads it, they are compared with their checksum: each time
        would take longer than the rest of the reading.
        """
        content, side = cache[index], self.preprocessing.image_size
        pixels = content[:-CHECKSUM_BYTES]
        if not self.checked[index]:
            if zlib.crc32(pixels) != int.from_bytes(content[-CHECKSUM_BYTES:]):
                raise UserError(
                    f"{cache.folder}: {self.names[index]} is damaged; remove this folder, and run "
                    "`dvc repro` to decode again"
                )
            self.checked[index] = True
        return np.frombuffer(pixels, np.uint8).reshape(3, side, side)

    def decoded_file(self, index: int) -> torch.Tensor:
        """Return an image as it is in its file, uint8 (3, H, W); raises UserError."""
        try:
            return decode(self.content(index), self.preprocessing).tensor
        except UnusableImage as error:  # pack has accepted it, so the packed file has changed since
            raise UserError(
                f"{self.packs[self.sets[index]].folder}: {self.names[index]}: {error}; pack it "
                "again: dvc repro --force pack"
            ) from error

    def content(self, index: int) -> memoryview:
        """Return the bytes of the file of an image; raises UserError."""
        pack = self.packs[self.sets[index]]
        return pack.labelled(self.rows[index], self.names[index], self.digests[index])


def sealed(pixels: bytes) -> bytes:
    """Return the pixels of an image with a checksum at their end, as a decode cache keeps them."""
    return pixels + zlib.crc32(pixels).to_bytes(CHECKSUM_BYTES)


class ResizedImages(Dataset):
    """The images of a LabelledImages as its method `resized` returns them."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def item_bytes(self) -> int:
        """Size of the pixels of one item."""
        return self.images.item_bytes

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index)."""
        return self.images.resized(index), int(self.images.targets[index]), index


class Loader(Protocol):
    """What loads batches of a data set: their images, targets and indices, as a DataLoader does."""

    dataset: Any
    batch_sampler: Any  # the keys of each batch

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class QuietLoader(DataLoader):
    """A DataLoader without PyTorch's handler of SIGCHLD.

    That handler raises the death of a worker wherever the program is, even where the error is lost,
    as in the destructor of an object. Without it, whoever waits for a batch looks every five
    seconds whether the workers are alive, and raises then.
    """

    def __iter__(self) -> Any:
        """Return an iterator over the batches."""
        batches = super().__iter__()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGCHLD"):  # Windows has no such signal
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


def make_loader(
    dataset: LabelledImages | ResizedImages,
    batches: Sequence[list[int]] | Sampler[list[Any]],
    num_workers: int,
    pin: bool,
    largest: int | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Load batches of the dataset, in their order, with workers that stay for the next pass.

    batches: the keys of each batch, or a sampler of such batches. largest: the size of the largest
    batch, which a sampler need not know yet. collate: makes a batch of its items; by default the
    tensors of a batch. Raises UserError where the workers have no room to hand over batches.
    """
    if largest is None:
        largest = max(map(len, batches), default=1)
    return QuietLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=_batches_ahead(largest * dataset.item_bytes, num_workers),
        persistent_workers=num_workers > 0,
        worker_init_fn=silence_lost_connections,
        generator=torch.Generator(),  # its own, so that loading draws nothing from the global one
    )


def silence_lost_connections(_: int) -> None:
    """Keep a worker from printing a traceback where the process that it loads for has ended.

    In a worker only the thread that hands over tensors reports through sys.excepthook, and the
    process that receives them reports what has happened.
    """
    sys.excepthook = lambda *_: None


def _batches_ahead(batch_bytes: int, num_workers: int) -> int | None:
    """Return how many batches each worker prepares ahead: as many as fit, at most MOST_AHEAD.

    Workers hand over batches in /dev/shm. A Docker container has 64 MB of it.
    """
    shared_memory = Path("/dev/shm")
    if not num_workers:
        return None
    if not shared_memory.is_dir():
        return MOST_AHEAD
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    free = shutil.disk_usage(shared_memory).free // processes
    fitting = free // (batch_bytes * num_workers) - 1  # one more is in use
    if fitting < 1:
        raise UserError(
            f"{shared_memory}: {free / 1e6:.0f} MB are free, {num_workers} workers need "
            f"{2 * batch_bytes * num_workers / 1e6:.0f} MB; lower num_workers (0 needs none) or "
            "batch_size, or give the container more: docker run --shm-size=1g"
        )
    return min(MOST_AHEAD, fitting)


def sequential_batches(
    num_images: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """Cut one pass over the images into batches; each image goes to exactly one process."""
    mine = list(range(rank, num_images, world_size))
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
