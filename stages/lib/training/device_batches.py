"""The micro-batches of training and validation on their device, one ahead of the network.

On a GPU the CPU does little to an image: it reads or decodes it, and makes the changes that no
library makes well on a GPU (stages/lib/training/batched_augmentation.py). The rest is done on the
device for whole batches, and while one batch is copied there and changed, the network computes the
one before. On the CPU this would gain nothing: there the workers of a DataLoader do all of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from stages.lib.core.errors import UserError
from stages.lib.detector.dataset import LabelledImages, Loader, make_loader
from stages.lib.detector.hardware import Hardware
from stages.lib.training.batched_augmentation import change_batch
from stages.lib.training.device_pixels import DecodedPixels, check_decoder
from stages.lib.training.host_batches import (
    HostBatch,
    HostImages,
    host_batch,
    host_image,
    unchanged_image,
)
from stages.lib.training.images import TrainingImages
from stages.lib.training.params import TrainParams
from stages.lib.training.speed import Batch
from stages.lib.training.thread_loader import ThreadLoader


def training_loader(
    images: LabelledImages,
    sampler: Sampler[list[Any]] | Sequence[list[Any]],
    params: TrainParams,
    hardware: Hardware,
) -> Loader:
    """Return a loader of the micro-batches of a training, of which the sampler has the draws."""
    size = params.micro_batch_size(hardware.world_size)
    if not params.augments_in_batches(hardware.device.type):
        pin = hardware.device.type == "cuda"
        return make_loader(images, sampler, params.num_workers, pin, largest=size)
    assert isinstance(images, TrainingImages)
    return _batches_to_change(images, sampler, size, params, hardware.device)


def _batches_to_change(
    images: TrainingImages,
    sampler: Sampler[list[Any]] | Sequence[list[Any]],
    size: int,
    params: TrainParams,
    device: torch.device,
) -> "DeviceBatches":
    pin = device.type == "cuda"
    if not loads_in_threads(images, params):
        host_images = HostImages(images)
        loader = make_loader(host_images, sampler, params.num_workers, pin, size, host_batch)
        return DeviceBatches(loader, device)
    source = DecodedPixels(images, device) if params.gpu_decoding else images.on_device

    def load(draws: list[Any]) -> HostBatch:
        return host_batch([host_image(images, draw, source) for draw in draws], source, pin)

    loader = ThreadLoader(images, sampler, params.num_workers, load, device)
    return DeviceBatches(loader, device)


def loads_in_threads(images: LabelledImages, params: TrainParams) -> bool:
    """Return whether threads of this process load images, and not workers.

    Threads only read what is decoded already, or leave the decoding to the device. To decode and to
    make pairs takes Python, in which one thread at a time computes.
    """
    is_decoded = images.decoded is not None or params.gpu_decoding
    return is_decoded and not params.pseudo_fakes.are_wanted


def unchanged_loader(
    images: LabelledImages, batches: list[list[int]], params: TrainParams, hardware: Hardware
) -> Loader:
    """Return a loader of batches of images that are not changed, by their indices.

    The CPU decodes them, as in every other stage.
    """
    device = hardware.device
    pin = device.type == "cuda"
    if images.decoded is None or not params.augments_in_batches(device.type):
        return make_loader(images, batches, params.num_workers, pin)

    def load(indices: list[int]) -> HostBatch:
        return host_batch([unchanged_image(images, index) for index in indices], None, pin)

    return DeviceBatches(ThreadLoader(images, batches, params.num_workers, load, device), device)


def check_gpu_images(params: TrainParams, hardware: Hardware) -> None:
    """Raise UserError where a parameter needs a device that there is not."""
    device = hardware.device
    if params.augment_on == "device" and device.type == "mps":
        raise UserError("train.augment_on = device: not on mps; set it to cpu")
    for name in ("gpu_decoding", "gpu_images_gb"):
        value = getattr(params, name)
        if value and not params.augments_in_batches(device.type):
            raise UserError(
                f"train.{name} = {value}: images are changed on the CPU here; set it to "
                f"{type(value)(0)}, or train.augment_on to device"
            )
    if params.gpu_decoding:
        check_decoder(device)


class DeviceBatches:
    """Copies the batches of a loader to the device and completes them there, one ahead."""

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.dataset, self.batch_sampler = loader.dataset, loader.batch_sampler
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield images, targets and indices, all on the device."""
        ahead = None
        for batch in self.loader:
            following = self._start(batch)
            if ahead:
                yield self._ready(*ahead)
            ahead = following
        if ahead:
            yield self._ready(*ahead)

    def _start(self, batch: HostBatch) -> tuple[Batch, Any]:
        """Copy and complete a batch; returns an event where a GPU is at it meanwhile."""
        if self.stream is None:
            return self._complete(batch), None
        with torch.cuda.stream(self.stream):
            if batch.on_device is not None:  # a thread has made it on a stream of its own
                batch.on_device.record_stream(self.stream)
            return self._complete(batch), self.stream.record_event()

    def _complete(self, batch: HostBatch) -> Batch:
        images, order, targets, indices = (
            one.to(self.device, non_blocking=True)
            for one in (batch.pixels, batch.order, batch.targets, batch.indices)
        )
        changes = batch.changes.to(self.device)
        if batch.on_device is not None:
            parts = [batch.on_device, images] if len(images) else [batch.on_device]
            images = torch.cat(parts)[order]
        return change_batch(images, changes), targets, indices

    def _ready(self, batch: Batch, event: Any) -> Batch:
        """Let the network's stream wait for a batch, and keep its memory until that is done."""
        if event:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in batch:
                tensor.record_stream(stream)
        return batch
