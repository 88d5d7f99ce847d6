"""Changes that images undergo on their way through the internet, as functions of a level.

Each takes uint8 (3, H, W), a level and a generator, and returns uint8 of the same shape. Training
applies them at random levels, prediction at fixed ones.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.preprocessing import recompress

PixelOperation = Callable[[torch.Tensor, float, np.random.Generator], torch.Tensor]


def jpeg(image: torch.Tensor, quality: float, random: np.random.Generator) -> torch.Tensor:
    """Compress again as a JPEG of this quality, 1 to 100."""
    return recompress(image, int(quality))


def webp(
    image: torch.Tensor, quality: float, random: np.random.Generator, method: int = 4
) -> torch.Tensor:
    """Compress again as a WebP of this quality, 1 to 100.

    method: of the encoder, 0 (fast, larger files) to 6.
    """
    buffer = BytesIO()
    tv.to_pil_image(image).save(buffer, "WEBP", quality=int(quality), method=method)
    with Image.open(buffer) as decoded:
        return tv.pil_to_tensor(decoded.convert("RGB"))


def blur(image: torch.Tensor, sigma: float, random: np.random.Generator) -> torch.Tensor:
    """Blur with a Gaussian of sigma pixels."""
    radius = int(np.ceil(3 * sigma))
    radius = min(radius, min(image.shape[1:]) - 1)  # as far as reflecting the border allows
    return tv.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])


def noise(image: torch.Tensor, sigma: float, random: np.random.Generator) -> torch.Tensor:
    """Add Gaussian noise of sigma levels of 255."""
    return add_noise(image, random.normal(0, sigma, tuple(image.shape)))


def add_noise(image: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
    """Add noise that has been drawn, float64 of the shape of the image, in levels of 255."""
    return (image + torch.from_numpy(drawn)).round_().clamp_(0, 255).to(torch.uint8)


def shrink(image: torch.Tensor, side: float, random: np.random.Generator) -> torch.Tensor:
    """Shrink until the shorter side has this many pixels, and enlarge again."""
    factor = min(1.0, side / min(image.shape[1:]))
    return rescale(image, factor, [InterpolationMode.BICUBIC] * 2)


def rescale(image: torch.Tensor, factor: float, modes: list[InterpolationMode]) -> torch.Tensor:
    """Scale by the factor and back again, each with its interpolation."""
    height, width = image.shape[1:]
    return there_and_back(image, small_size((height, width), factor), modes)


def small_size(size: tuple[int, int], factor: float) -> list[int]:
    """Return height and width, scaled by the factor, of at least a pixel."""
    return [max(1, round(side * factor)) for side in size]


def there_and_back(
    image: torch.Tensor, size: list[int], modes: list[InterpolationMode]
) -> torch.Tensor:
    """Resize to this height and width and back again, each with its interpolation."""
    small = tv.resize(image, size, modes[0], antialias=modes[0] != InterpolationMode.NEAREST)
    return tv.resize(small, list(image.shape[1:]), modes[1], antialias=True)


def grey(image: torch.Tensor, level: float, random: np.random.Generator) -> torch.Tensor:
    """Remove this share of the colours, 0 to 1."""
    gone = tv.rgb_to_grayscale(image, num_output_channels=3)
    return gone if level == 1 else torch.lerp(image.float(), gone.float(), level).round().byte()
