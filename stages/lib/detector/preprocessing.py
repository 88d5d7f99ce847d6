"""From encoded bytes to what a model sees: the same code in training, prediction and serving.

Decoding and resizing work on uint8. The conversion to float and the normalisation happen in batches
on the device, so that only a quarter of the bytes travels there.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.schema import FrozenModel
from stages.lib.images.decoding import decode_image
from stages.lib.images.faces import crop_largest_face

CHANNELS_WITH_RESIDUALS = 6  # RGB and three residuals


class Preprocessing(FrozenModel):
    """How an image becomes a model's input; travels with the model in its config.json."""

    image_size: int  # pixels, both sides
    interpolation: Literal["bilinear", "bicubic"]
    mean: list[float]  # per channel of RGB, on a scale from 0 to 1
    std: list[float]
    reencode: list[int] | None = None  # lowest and highest JPEG quality
    scaled_decoding: bool = False
    residuals: Literal["srm"] | None = None  # three more channels
    face_crop: float | None = None  # side of the square around the face, in sizes of the face


def decode(
    content: bytes | memoryview, preprocessing: Preprocessing, max_pixels: int | None = None
) -> torch.Tensor:
    """Decode an image file to uint8 (3, H, W), RGB; raises UnusableImage on bad or larger ones.

    With `scaled_decoding` a JPEG that is at least twice as large as the model's input is decoded at
    a half, a quarter or an eighth of its size, which is faster.
    """
    at_least = preprocessing.image_size if preprocessing.scaled_decoding else None
    return torch.from_numpy(decode_image(content, max_pixels, at_least).pixels).permute(2, 0, 1)


def recompress(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Compress uint8 (3, H, W) as a JPEG of this quality and decode it again."""
    decoded = decode_jpeg(encode_jpeg(image, quality), mode=ImageReadMode.RGB)
    assert isinstance(decoded, torch.Tensor)  # torchvision returns a list for a list of files
    return decoded


def seen_part(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return what a model sees of an image, uint8 (3, H, W): all, or with `face_crop` its face."""
    if preprocessing.face_crop:
        return crop_largest_face(image, preprocessing.face_crop)
    return image


def resize(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize what the model sees of an image, uint8 (3, H, W), to its square input."""
    return to_square(seen_part(image, preprocessing), preprocessing)


def to_square(part: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize uint8 (3, H, W) to the square input of the model, (3, S, S).

    The aspect ratio of a whole image is not kept.
    """
    side = preprocessing.image_size
    mode = tv.InterpolationMode(preprocessing.interpolation)
    return tv.resize(part, [side, side], interpolation=mode, antialias=True)


def to_input(
    image: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> torch.Tensor:
    """Turn a decoded image, uint8 (3, H, W), into the input of the model, uint8 (3, S, S)."""
    return part_to_input(seen_part(image, preprocessing), preprocessing, random)


def part_to_input(
    part: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None = None
) -> torch.Tensor:
    """Turn what the model sees of an image, uint8 (3, H, W), into its input, uint8 (3, S, S).

    With `reencode` every image passes through one more JPEG compression at the size that the model
    sees, which covers the traces of earlier ones. Its quality is random where `random` is given, as
    in training, else it is the middle of the range.
    """
    return reencode(to_square(part, preprocessing), preprocessing, random)


def reencode(
    image: torch.Tensor, preprocessing: Preprocessing, random: np.random.Generator | None
) -> torch.Tensor:
    """Apply preprocessing.reencode, where there is one, to a resized image, uint8 (3, S, S)."""
    if preprocessing.reencode is None:
        return image
    low, high = preprocessing.reencode
    quality = int(random.integers(low, high + 1)) if random else (low + high) // 2
    return recompress(image, quality)


class Normalize(torch.nn.Module):
    """uint8 (N, 3, H, W) to float32 of about zero mean and unit variance, on the device."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)
        self.residuals = Residuals() if preprocessing.residuals else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images * scale + shift, and three more channels where residuals are wanted."""
        normal = torch.addcmul(self.shift, images.float(), self.scale)
        return torch.cat([normal, self.residuals(images)], dim=1) if self.residuals else normal


class Residuals(torch.nn.Module):
    """What three high-pass filters leave of the brightness: noise and edges, and no content.

    The filters and their limit are those of Zhou et al. 2018 (arXiv 1805.04953), who took them from
    the spatial rich model of steganalysis (SRM; Fridrich and Kodovsky 2012).
    """

    LIMIT = 2.0  # levels of 255
    FILTERS = (
        (4, ((0, 0, 0, 0, 0), (0, -1, 2, -1, 0), (0, 2, -4, 2, 0), (0, -1, 2, -1, 0),
             (0, 0, 0, 0, 0))),
        (12, ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2),
              (-1, 2, -2, 2, -1))),
        (2, ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 1, -2, 1, 0), (0, 0, 0, 0, 0),
             (0, 0, 0, 0, 0))),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        kernels = [torch.tensor(rows).float() / divisor for divisor, rows in self.FILTERS]
        self.register_buffer("kernels", torch.stack(kernels)[:, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 3, H, W), from -1 to 1."""
        brightness = images.float().mean(dim=1, keepdim=True)
        padded = F.pad(brightness, [2] * 4, mode="reflect")
        return F.conv2d(padded, self.kernels).clamp(-self.LIMIT, self.LIMIT) / self.LIMIT
