"""Random changes of training images, the same for both classes.

Two flips, then degradations as images undergo them on their way through the internet: a detector
that has seen them does not rely on traces that one more compression removes. At most max_ops of
them change one image; more do not help (arXiv 2506.11490).
"""

from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import StageParams
from stages.lib.detector.pixel_operations import (
    PixelOperation,
    blur,
    grey,
    jpeg,
    noise,
    rescale,
    webp,
)

Probability = Annotated[float, Field(ge=0, le=1)]
INTERPOLATIONS = [InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]


class Degradation(StageParams):
    """How often a degradation happens, and the range from which its level is drawn evenly."""

    probability: Probability
    range: Annotated[list[float], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.range[0] > self.range[1]:
            raise ValueError("give the lowest level first")
        return self


class Augmentation(StageParams):
    """Section `train.augmentation`: params.yaml says what the level of each degradation is."""

    horizontal_flip: Probability
    vertical_flip: Probability
    max_ops: Annotated[int, Field(ge=0)]
    jpeg: Degradation
    webp: Degradation
    rescale: Degradation
    blur: Degradation
    noise: Degradation
    colour: Degradation
    grey: Degradation
    crop: Degradation
    shift: Degradation
    erase: Degradation

    def apply(self, image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """Return the changed image, uint8 (3, S, S); all chance comes from the generator."""
        if random.random() < self.horizontal_flip:
            image = tv.horizontal_flip(image)
        if random.random() < self.vertical_flip:
            image = tv.vertical_flip(image)
        degradations: dict[str, Degradation] = {name: getattr(self, name) for name in OPERATIONS}
        chosen = [name for name, one in degradations.items() if random.random() < one.probability]
        for name in random.permutation(chosen)[: self.max_ops]:
            low, high = degradations[name].range
            level = random.uniform(low, high)
            image = OPERATIONS[name](image, level, random)
        return image


def any_rescale(image: torch.Tensor, factor: float, random: np.random.Generator) -> torch.Tensor:
    """Scale by the factor and back again, each with a random interpolation."""
    down, up = random.integers(len(INTERPOLATIONS), size=2)
    return rescale(image, factor, [INTERPOLATIONS[down], INTERPOLATIONS[max(up, 1)]])


def colour(image: torch.Tensor, strength: float, random: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue by at most the strength, 0 to 1."""
    brightness, contrast, saturation, hue = 1 + random.uniform(-strength, strength, 4)
    image = tv.adjust_brightness(image, float(brightness))
    image = tv.adjust_contrast(image, float(contrast))
    image = tv.adjust_saturation(image, float(saturation))
    return tv.adjust_hue(image, float(hue - 1) / 4)


def crop(image: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    """Keep a random square with this share of both sides, enlarged to the whole."""
    height, width = image.shape[1:]
    size = max(1, round(height * share)), max(1, round(width * share))
    top, left = random.integers(height - size[0] + 1), random.integers(width - size[1] + 1)
    return tv.resized_crop(image, int(top), int(left), *size, [height, width], antialias=True)


def shift(image: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    """Move by at most this share of the side in a random direction; the border is repeated."""
    side = image.shape[-1]
    reach = round(share * side)
    x, y = (int(one) for one in random.integers(-reach, reach + 1, 2))
    padded = tv.pad(image, [reach] * 4, padding_mode="edge")
    return tv.crop(padded, reach + y, reach + x, *image.shape[1:])


def erase(image: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    """Cover a random rectangle of this share of the area with its mean colour (Zhong 2020)."""
    height, width = image.shape[1:]
    aspect = float(np.exp(random.uniform(-0.7, 0.7)))
    size = [min(height, max(1, round(height * (share * aspect) ** 0.5))),
            min(width, max(1, round(width * (share / aspect) ** 0.5)))]  # fmt: skip
    top, left = random.integers(height - size[0] + 1), random.integers(width - size[1] + 1)
    place = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    erased = image.clone()
    erased[place] = image[place].float().mean(dim=(1, 2), keepdim=True).round().byte()
    return erased


OPERATIONS: dict[str, PixelOperation] = {
    "jpeg": jpeg,
    "webp": webp,
    "rescale": any_rescale,
    "blur": blur,
    "noise": noise,
    "colour": colour,
    "grey": grey,
    "crop": crop,
    "shift": shift,
    "erase": erase,
}
