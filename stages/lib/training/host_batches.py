"""What the CPU (the host) makes of training images; the device does the rest, in batches."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from stages.lib.detector.dataset import LabelledImages, ResizedImages
from stages.lib.training.augmentation import Change, changed
from stages.lib.training.batched_augmentation import BatchChanges, grouped, split
from stages.lib.training.batches import PLAIN, Draw
from stages.lib.training.images import DevicePixels, TrainingImages


class HostImage(NamedTuple):
    """An image as the CPU hands it over."""

    pixels: np.ndarray | None  # uint8 (3, S, S), maybe read-only; None: the device has them
    target: int
    index: int
    changes: list[Change]  # that are left to the device


class HostBatch(NamedTuple):
    """A micro-batch of N images as the CPU hands it over, M of them with their pixels."""

    pixels: torch.Tensor  # uint8 (M, 3, S, S)
    on_device: torch.Tensor | None  # uint8 (N - M, 3, S, S) of the others; None: there are none
    order: torch.Tensor  # int64 (N,): where each image is, in those on the device and then `pixels`
    targets: torch.Tensor  # int64 (N,)
    indices: torch.Tensor  # int64 (N,), in the label table
    changes: BatchChanges  # that are left


def host_image(images: TrainingImages, draw: Draw, device: DevicePixels | None = None) -> HostImage:
    """Load an image, unless the device has it, and make the changes that the CPU has to make.

    What the CPU has to change it loads in any case.
    """
    index = draw.index
    if draw.role != PLAIN:  # a pair is changed at the pixels of the file
        pixels, target, _ = images[draw]
        return HostImage(pixels.numpy(), target, index, [])
    on_cpu, left = split(images.changes_of(draw))
    loaded = None
    if on_cpu:
        loaded = changed(images.resized(index), on_cpu).numpy()
    elif not (device and device.has(index)):
        loaded = images.resized_view(index)
    return HostImage(loaded, int(images.targets[index]), index, left)


def unchanged_image(images: LabelledImages, index: int) -> HostImage:
    """Load the input of an image that is not changed at random."""
    pixels, target, _ = images[index]
    return HostImage(pixels.numpy(), target, index, [])


def host_batch(
    images: list[HostImage], device: DevicePixels | None = None, pin: bool = False
) -> HostBatch:
    """Return the batch of some images; pin: in page-locked memory, so that copies do not wait."""
    loaded = [image.pixels for image in images if image.pixels is not None]
    indices = np.array([image.index for image in images])
    is_loaded = np.array([image.pixels is not None for image in images])
    order = torch.from_numpy(np.argsort(np.argsort(is_loaded, kind="stable")))
    targets = torch.tensor([image.target for image in images])
    changes = grouped([image.changes for image in images])
    on_device = None
    if device and len(loaded) < len(images):
        on_device = device.pixels_of(indices[~is_loaded])
    parts = _stacked(loaded, pin), on_device, order, targets, torch.from_numpy(indices), changes
    return pin_memory(HostBatch(*parts)) if pin else HostBatch(*parts)


def pin_memory(batch: HostBatch) -> HostBatch:
    """Return the batch in page-locked memory, as the workers of a DataLoader hand it over."""
    groups, *flat = batch.changes
    return batch._replace(
        order=batch.order.pin_memory(),
        targets=batch.targets.pin_memory(),
        indices=batch.indices.pin_memory(),
        changes=BatchChanges(groups, *(one.pin_memory() for one in flat)),
    )


def _stacked(images: list[np.ndarray], pin: bool) -> torch.Tensor:
    """Return copies of images as one tensor, uint8 (M, 3, S, S)."""
    if get_worker_info():  # then PyTorch stacks them where the process that waits can read them
        return default_collate(
            [torch.from_numpy(np.require(one, requirements="W")) for one in images]
        )
    side = images[0].shape[-1] if images else 0
    stacked = torch.empty((len(images), 3, side, side), dtype=torch.uint8, pin_memory=pin)
    for place, image in zip(stacked.numpy(), images, strict=True):
        place[...] = image  # NumPy copies without the lock of the interpreter
    return stacked


class HostImages(ResizedImages):
    """The images of a TrainingImages as host_image returns them, for workers of a DataLoader."""

    def __getitem__(self, draw: Draw) -> HostImage:  # pyrefly: ignore[bad-override]
        """Return the image of a draw."""
        return host_image(self.images, draw)  # pyrefly: ignore[bad-argument-type]
