"""Pixels of training images that the device has or makes itself, so that none travel there."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from stages.lib.core.errors import UserError, short
from stages.lib.detector.dataset import LabelledImages, sequential_batches
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.preprocessing import resize
from stages.lib.images.decoding import is_plain_jpeg
from stages.lib.progress import progress_bar
from stages.lib.training.images import TrainingImages

IMAGES_PER_COPY = 512
DECODED_AT_ONCE = 16  # images; the device has no more of them at their full size
NAMED_FAILURES = 5


def kept_bytes(images: LabelledImages, limit_gb: float) -> int:
    """Return how much memory of the device the images will take: 0 where limit_gb is less."""
    return all_bytes(images) if all_bytes(images) <= limit_gb * 1e9 else 0


def all_bytes(images: LabelledImages) -> int:
    """Return the size of the pixels of all images, resized."""
    return len(images) * images.item_bytes


class OneStream:
    """A stream of the device that threads use in turn, so that its memory is used in order."""

    def __init__(self, device: torch.device) -> None:
        self.lock = threading.Lock()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Compute on the stream, and wait for it at the end."""
        with self.lock:
            if self.stream is None:
                yield
                return
            with torch.cuda.stream(self.stream):
                yield
            self.stream.synchronize()


class KeptPixels:
    """All images of a data set in the memory of the device, resized: uint8 (N, 3, S, S)."""

    def __init__(self, images: LabelledImages, device: torch.device) -> None:
        side, self.device, self.stream = images.preprocessing.image_size, device, OneStream(device)
        self.pixels = torch.empty((len(images), 3, side, side), dtype=torch.uint8, device=device)
        with progress_bar("copy to the GPU", len(images)) as bar:
            for indices in sequential_batches(len(images), IMAGES_PER_COPY):
                part = np.stack([images.resized_view(index) for index in indices])
                self.pixels[indices[0] : indices[-1] + 1] = torch.from_numpy(part)
                bar.update(len(indices))

    def has(self, index: int) -> bool:
        """Return True."""
        return True

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Return a copy of the pixels of images, uint8 (N, 3, S, S)."""
        with self.stream.turn():
            return self.pixels[torch.from_numpy(indices).to(self.device)]


class DecodedPixels:
    """JPEG files, decoded, cropped and resized by the device: on a GPU by nvJPEG.

    It rounds in another way than the decoder of the CPU, so pixels differ by a few levels here and
    there. The CPU decodes what nvJPEG may see otherwise than a viewer does: files that are not RGB,
    not upright or not JPEGs, and those that it fails on.
    """

    def __init__(self, images: TrainingImages, device: torch.device) -> None:
        self.images, self.device, self.stream = images, device, OneStream(device)
        self.known: dict[int, bool] = {}  # what `has` has found
        self.num_failures = 0

    def has(self, index: int) -> bool:
        """Return whether the device can decode an image, by the header of its file."""
        if index not in self.known:
            self.known[index] = is_plain_jpeg(self.images.content(index))
        return self.known[index]

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Decode, crop and resize images, uint8 (N, 3, S, S)."""
        files = [np.frombuffer(self.images.content(index), np.uint8).copy() for index in indices]
        parts = []
        with self.stream.turn():
            for first in range(0, len(files), DECODED_AT_ONCE):
                part = slice(first, first + DECODED_AT_ONCE)
                parts.append(self._pixels_of(files[part], indices[part].tolist()))
            return torch.cat(parts)

    def _pixels_of(self, files: list[np.ndarray], indices: list[int]) -> torch.Tensor:
        try:
            decoded = decode_on(self.device, files)
        except RuntimeError as error:
            if not is_of_a_file(error):
                raise
            if len(files) > 1:  # it does not say which one
                alone = zip(files, indices, strict=True)
                return torch.cat([self._pixels_of([file], [index]) for file, index in alone])
            self._count_failure(indices[0], error)
            # Crop and resizing are the CPU's, too, as they will be in the next epoch.
            return self.images.resized(indices[0])[None].to(self.device)
        crops = [self.images.crop(*pair) for pair in zip(decoded, indices, strict=True)]
        by_size = sorted(range(len(crops)), key=lambda place: crops[place].shape)
        parts = []
        for _, places in groupby(by_size, key=lambda place: crops[place].shape):
            stacked = torch.stack([crops[place] for place in places])
            parts.append(resize(stacked, self.images.preprocessing))
        return torch.cat(parts)[torch.from_numpy(np.argsort(by_size)).to(self.device)]

    def _count_failure(self, index: int, error: RuntimeError) -> None:
        self.known[index] = False
        self.num_failures += 1
        if self.num_failures > NAMED_FAILURES:
            return
        name, last = self.images.names[index], ""
        if self.num_failures == NAMED_FAILURES:
            last = "; of more of them nothing is said"
        print(
            f"train.gpu_decoding: {name}: {short(error, 100)}; the CPU decodes it{last}",
            flush=True,
        )


def decode_on(device: torch.device, files: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Decode JPEG files, each uint8 (B,), to uint8 (3, H, W); raises RuntimeError."""
    encoded = [torch.from_numpy(file) for file in files]
    decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    assert isinstance(decoded, list)
    return decoded


def is_of_a_file(error: RuntimeError) -> bool:
    """Return whether an error of decode_on is of a file, and not of the device."""
    reason = str(error).lower()
    return "out of memory" not in reason and "cuda error" not in reason


def check_decoder(device: torch.device) -> None:
    """Raise UserError where this torchvision cannot decode a JPEG on a device."""
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    try:
        decode_on(device, [np.frombuffer(buffer.getvalue(), np.uint8).copy()])
    except RuntimeError as error:
        raise UserError(
            f"train.gpu_decoding = True: {device.type} cannot decode here: {short(error, 100)}; "
            "set it to false"
        ) from error


def keep_on_device(images: TrainingImages, limit_gb: float, hardware: Hardware) -> None:
    """Keep the images, decoded ahead, in the memory of the device, where they fit into limit_gb."""
    if kept_bytes(images, limit_gb):
        images.on_device = KeptPixels(images, hardware.device)
    elif hardware.rank == 0:
        print(
            f"train.gpu_images_gb = {limit_gb} is too small for {all_bytes(images) / 1e9:.3g} GB: "
            "copying each batch",
            flush=True,
        )


def check_gpu_memory(images: LabelledImages, limit_gb: float, device: torch.device) -> None:
    """Raise UserError where what keep_on_device keeps is more than a GPU has left."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    if kept_bytes(images, limit_gb) > free:
        raise UserError(
            f"train.gpu_images_gb = {limit_gb}: the images take {all_bytes(images) / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB of the GPU are free; set it to 0"
        )
