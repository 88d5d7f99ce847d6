"""From encoded bytes to the input of a detector: the same code in training and wherever it is used.

bytes -> decode -> crop_of -> resize -> reencode -> uint8 (3, S, S). All of it works on uint8. The
conversion to float and the normalisation happen in batches on the device, so that only a quarter of
the bytes travels there.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.schema import FrozenModel
from stages.lib.images.decoding import DecodedImage, decode_image
from stages.lib.images.faces import Face, crop_face, crop_largest_face


class Preprocessing(FrozenModel):
    """How an image becomes a detector's input; travels with the detector in its config.json."""

    image_size: int  # pixels, both sides
    interpolation: Literal["bilinear", "bicubic"]
    mean: list[float]  # per channel of RGB, on a scale from 0 to 1
    std: list[float]
    reencode: list[int] | None = None  # lowest and highest JPEG quality
    scaled_decoding: bool = False
    face_crop: float | None = None  # side of the square around the face, in sizes of the face


def decode(
    content: bytes | memoryview, preprocessing: Preprocessing, max_pixels: int | None = None
) -> DecodedImage:
    """Decode an image file; raises UnusableImage for a bad one or one of more than max_pixels.

    With `scaled_decoding` a JPEG that is at least twice as large as the input is decoded at a half,
    a quarter or an eighth of its size, which is faster.
    """
    at_least = preprocessing.image_size if preprocessing.scaled_decoding else None
    return decode_image(content, max_pixels, at_least)


def crop_of(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return what a detector sees of an image, uint8 (3, H, W): all, or with `face_crop` its face.

    An image without a face is seen whole.
    """
    share = preprocessing.face_crop
    return crop_largest_face(image, share) if share else image


def crops_of(
    image: torch.Tensor, faces: Sequence[Face], preprocessing: Preprocessing
) -> list[torch.Tensor]:
    """Return what a detector sees of each face in an image, as crop_of does of the largest one."""
    share = preprocessing.face_crop
    return [crop_face(image, face, share) for face in faces if share] or [image]


def input_of(crop: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Turn what crop_of returns, uint8 (3, H, W), into the input of a detector, uint8 (3, S, S)."""
    return reencode(resize(crop, preprocessing), preprocessing)


def resize(crop: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize uint8 (3, H, W) to the square of the input, (3, S, S), whatever its aspect ratio."""
    side = preprocessing.image_size
    mode = tv.InterpolationMode(preprocessing.interpolation)
    return tv.resize(crop, [side, side], interpolation=mode, antialias=True)


def reencode(
    image: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> torch.Tensor:
    """Pass a resized image, uint8 (3, S, S), through one more JPEG where `reencode` says so.

    It covers the traces of earlier compressions.
    """
    quality = quality_of(preprocessing, random)
    return image if quality is None else recompress(image, quality)


def quality_of(
    preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> int | None:
    """Return the JPEG quality for `reencode`; None where it does not say so.

    It is random where `random` is given, as in training, else it is the middle of the range.
    """
    if preprocessing.reencode is None:
        return None
    low, high = preprocessing.reencode
    return int(random.integers(low, high + 1)) if random else (low + high) // 2


def recompress(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Compress uint8 (3, H, W) as a JPEG of this quality and decode it again."""
    decoded = decode_jpeg(encode_jpeg(image, quality), mode=ImageReadMode.RGB)
    assert isinstance(decoded, torch.Tensor)  # torchvision returns a list for a list of files
    return decoded


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
