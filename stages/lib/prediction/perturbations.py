"""What happens to pictures on their way through the internet, to test the robustness of a detector.

Every perturbation takes a level and a decoded image, uint8 (3, H, W), before it is resized to the
input of the model. Both classes are perturbed alike. The levels go from mild to severe (after
Hendrycks & Dietterich 2019).
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.preprocessing import recompress


def jpeg(image: torch.Tensor, quality: float, random: np.random.Generator) -> torch.Tensor:
    """Compress again as a JPEG of this quality."""
    return recompress(image, int(quality))


def webp(image: torch.Tensor, quality: float, random: np.random.Generator) -> torch.Tensor:
    """Compress again as a WebP of this quality."""
    buffer = BytesIO()
    tv.to_pil_image(image).save(buffer, "WEBP", quality=int(quality))
    with Image.open(buffer) as decoded:
        return tv.pil_to_tensor(decoded.convert("RGB"))


def blur(image: torch.Tensor, sigma: float, random: np.random.Generator) -> torch.Tensor:
    """Blur with a Gaussian of sigma pixels."""
    radius = int(np.ceil(3 * sigma))
    radius = min(radius, min(image.shape[1:]) - 1)  # as far as reflecting the border allows
    return tv.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])


def shrink(image: torch.Tensor, side: float, random: np.random.Generator) -> torch.Tensor:
    """Shrink until the shorter side has this many pixels, and enlarge again."""
    height, width = image.shape[1:]
    factor = min(1.0, side / min(height, width))
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    small = tv.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    return tv.resize(small, [height, width], InterpolationMode.BICUBIC, antialias=True)


def noise(image: torch.Tensor, sigma: float, random: np.random.Generator) -> torch.Tensor:
    """Add Gaussian noise of sigma levels of 255."""
    drawn = torch.from_numpy(random.normal(0, sigma, tuple(image.shape)))
    return (image + drawn).round().clamp(0, 255).to(torch.uint8)


def crop(image: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    """Keep the middle, this share of both sides."""
    height, width = image.shape[1:]
    return tv.center_crop(image, [round(height * share), round(width * share)])


def grey(image: torch.Tensor, level: float, random: np.random.Generator) -> torch.Tensor:
    """Remove the colours."""
    return tv.rgb_to_grayscale(image, num_output_channels=3)


Perturbation = Callable[[torch.Tensor, float, np.random.Generator], torch.Tensor]
LEVELS: dict[Perturbation, list[float]] = {
    jpeg: [95, 85, 70, 50, 30, 10],
    webp: [90, 70, 50, 30],
    blur: [0.5, 1, 2, 3],
    shrink: [224, 128, 96, 64],
    noise: [2, 5, 10, 20],
    crop: [0.9, 0.8, 0.7],
    grey: [1],
}
VARIANTS = [(kind, level) for kind, levels in LEVELS.items() for level in levels]


def perturb_all(image: torch.Tensor, random: np.random.Generator) -> list[torch.Tensor]:
    """Return the image unchanged, then every one of VARIANTS."""
    return [image, *(kind(image, level, random) for kind, level in VARIANTS)]
