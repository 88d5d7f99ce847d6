"""Pixels of training images that the device has or makes itself, so that none travel there."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from stages.lib.core.errors import short
from stages.lib.detector.dataset import LabelledImages, sequential_batches
from stages.lib.detector.preprocessing import resize
from stages.lib.images.decoding import formats_of, turn_of
from stages.lib.images.faces import crop_face
from stages.lib.progress import progress_bar
from stages.lib.training.marked_image import face_in

IMAGES_PER_COPY = 512
OF_THREAD = threading.local()


class DevicePixels(Protocol):
    """Where the device has pixels from. Threads may call both methods at the same time."""

    def has(self, index: int) -> bool:
        """Return whether the device has the pixels of an image."""
        ...

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Return the pixels of such images, uint8 (N, 3, S, S), resized, ready on the device."""
        ...


def kept_bytes(images: LabelledImages, limit_gb: float) -> int:
    """Return the memory for the pixels of all images, resized, or 0 where limit_gb is less."""
    num_bytes = len(images) * images.item_bytes
    return num_bytes if num_bytes <= limit_gb * 1e9 else 0


class KeptPixels:
    """All images of a data set in the memory of the device, resized: uint8 (N, 3, S, S)."""

    def __init__(self, images: LabelledImages, device: torch.device) -> None:
        side, self.device = images.preprocessing.image_size, device
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
        with own_stream(self.device):
            return self.pixels[torch.from_numpy(indices).to(self.device)]


class DecodedPixels:
    """JPEG files, decoded, cropped and resized by the device: on a GPU by nvJPEG.

    It rounds in another way than the decoder of the CPU, so pixels differ by a few levels here and
    there. The CPU decodes what nvJPEG may see otherwise than a viewer does: files that are not RGB,
    not upright or not JPEGs, and those that it fails on.

    faces: of each image, float32 (N, NUM_FACE_NUMBERS), where images are cropped to their faces.
    """

    def __init__(
        self, images: LabelledImages, device: torch.device, faces: np.ndarray | None = None
    ) -> None:
        self.images, self.device, self.faces = images, device, faces
        self.failures: dict[int, str] = {}

    def has(self, index: int) -> bool:
        """Return whether the device can decode an image, by the header of its file."""
        if index in self.failures:
            return False
        content = self.images.content(index)
        with Image.open(BytesIO(content), formats=formats_of(content)) as image:
            return (
                image.format in ("JPEG", "MPO")
                and image.mode == "RGB"
                and image.info.get("adobe_transform", 1) == 1
                and turn_of(image) is None
            )

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Decode, crop and resize images, uint8 (N, 3, S, S)."""
        files = [np.frombuffer(self.images.content(index), np.uint8).copy() for index in indices]
        with own_stream(self.device):
            try:
                decoded = self._decode(files)
            except RuntimeError:  # it does not say which one
                decoded = [self._decode_one(*pair) for pair in zip(files, indices, strict=True)]
            return self._resized([self._crop(*pair) for pair in zip(decoded, indices, strict=True)])

    def _decode(self, files: Sequence[np.ndarray]) -> list[torch.Tensor]:
        encoded = [torch.from_numpy(file) for file in files]
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        assert isinstance(decoded, list)
        return decoded

    def _decode_one(self, file: np.ndarray, index: int) -> torch.Tensor:
        try:
            return self._decode([file])[0]
        except RuntimeError as error:
            if not self.failures:
                name = self.images.names[index]
                print(
                    f"train.gpu_decoding: {name}: {short(error, 100)}; the CPU decodes such files",
                    flush=True,
                )
            self.failures[int(index)] = str(error)
            return self.images.decoded_file(index).to(self.device)

    def _crop(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return what crop_of does of an image, from its face that has been found before."""
        share = self.images.preprocessing.face_crop
        if not share:
            return image
        assert self.faces is not None
        face = face_in(self.faces[index])
        return crop_face(image, face, share) if face else image

    def _resized(self, decoded: list[torch.Tensor]) -> torch.Tensor:
        """Resize images, those of one size together; uint8 (N, 3, S, S)."""
        by_size = sorted(range(len(decoded)), key=lambda place: decoded[place].shape)
        parts = []
        for _, places in groupby(by_size, key=lambda place: decoded[place].shape):
            stacked = torch.stack([decoded[place] for place in places])
            parts.append(resize(stacked, self.images.preprocessing))
        return torch.cat(parts)[torch.from_numpy(np.argsort(by_size)).to(self.device)]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Compute on a stream of this thread, and wait for it at the end."""
    if device.type != "cuda":
        yield
        return
    if not hasattr(OF_THREAD, "stream"):
        OF_THREAD.stream = torch.cuda.Stream(device)
    with torch.cuda.stream(OF_THREAD.stream):
        yield
    OF_THREAD.stream.synchronize()
