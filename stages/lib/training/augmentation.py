"""Random changes of training images, the same for both classes.

Two flips, then degradations as images undergo them on their way through the internet: a detector
that has seen them does not rely on traces that one more compression removes. At most max_ops of
them change one image; more do not help (arXiv 2506.11490).

Chance decides first (`Augmentation.draw`), then the pixels change, one image at a time here, or a
batch at a time in stages/lib/training/batched_augmentation.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import Range, Share, StageParams
from stages.lib.detector.pixel_operations import (
    PixelOperation,
    add_noise,
    blur,
    grey,
    jpeg,
    small_size,
    there_and_back,
    webp,
)

INTERPOLATIONS = [InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]

Size = tuple[int, int]  # height and width in pixels
Random = np.random.Generator


class Change(NamedTuple):
    """One change of an image, with all that chance has decided about it."""

    name: str  # of a flip, or of OPERATIONS
    numbers: np.ndarray  # float64; Operation.draw says what they are


@dataclass(frozen=True)
class Operation:
    """A degradation of images, uint8 (3, H, W), that keeps their size.

    draw: from a level and the size of an image to the numbers that chance decides, float64.
    change: from an image and those numbers to the changed image.
    """

    draw: Callable[[float, Size, Random], np.ndarray]
    change: Callable[[torch.Tensor, np.ndarray], torch.Tensor]

    def __call__(self, image: torch.Tensor, level: float, random: Random) -> torch.Tensor:
        """Return the image, changed at a level."""
        return self.change(image, self.draw(level, size_of(image), random))


def size_of(image: torch.Tensor) -> Size:
    """Return height and width."""
    return image.shape[-2], image.shape[-1]


class Degradation(StageParams):
    """How often a degradation happens, and the range from which its level is drawn evenly."""

    probability: Share
    range: Range[float]


class Augmentation(StageParams):
    """Section `train.augmentation`: params.yaml says what the level of each degradation is."""

    horizontal_flip: Share
    vertical_flip: Share
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

    def draw(self, size: Size, random: Random) -> list[Change]:
        """Return the changes of an image of this size, in their order."""
        changes = []
        for name in FLIPS:
            if random.random() < getattr(self, name):
                changes.append(Change(name, NO_NUMBERS))
        degradations: dict[str, Degradation] = {name: getattr(self, name) for name in OPERATIONS}
        chosen = []
        for name, degradation in degradations.items():
            if random.random() < degradation.probability:
                chosen.append(name)
        for name in random.permutation(chosen)[: self.max_ops]:
            lowest, highest = degradations[name].range
            level = random.uniform(lowest, highest)
            changes.append(Change(str(name), OPERATIONS[name].draw(level, size, random)))
        return changes

    def apply(self, image: torch.Tensor, random: Random) -> torch.Tensor:
        """Return the changed image, uint8 (3, H, W); all chance comes from the generator."""
        return changed(image, self.draw(size_of(image), random))


def changed(image: torch.Tensor, changes: list[Change]) -> torch.Tensor:
    """Return the image, uint8 (3, H, W), after all changes."""
    for name, numbers in changes:
        image = FLIPS[name](image) if name in FLIPS else OPERATIONS[name].change(image, numbers)
    return image


# ---------------------------------------------------------------------------------------------
# What chance decides about each degradation, and what it does


def draw_level(level: float, size: Size, random: Random) -> np.ndarray:
    """Return the level alone."""
    return np.array([level])


def draw_noise(sigma: float, size: Size, random: Random) -> np.ndarray:
    """Return the noise, (3, H, W), of sigma levels of 255."""
    return random.normal(0, sigma, (3, *size))


def draw_rescale(factor: float, size: Size, random: Random) -> np.ndarray:
    """Return the smaller height and width, and the numbers of two of INTERPOLATIONS."""
    down, up = random.integers(len(INTERPOLATIONS), size=2)
    return np.array([*small_size(size, factor), down, max(up, 1)], dtype=float)


def change_rescale(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Scale to the smaller size and back again."""
    height, width, down, up = numbers.astype(int).tolist()
    return there_and_back(image, [height, width], [INTERPOLATIONS[down], INTERPOLATIONS[up]])


def draw_colour(strength: float, size: Size, random: Random) -> np.ndarray:
    """Return factors of brightness, contrast and saturation, and 1 + 4 times the shift of hue."""
    return 1 + random.uniform(-strength, strength, 4)


def change_colour(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue by at most the strength, 0 to 1."""
    brightness, contrast, saturation, hue = numbers
    image = tv.adjust_brightness(image, float(brightness))
    image = tv.adjust_contrast(image, float(contrast))
    image = tv.adjust_saturation(image, float(saturation))
    return tv.adjust_hue(image, float(hue - 1) / 4)


def draw_place(height: int, width: int, size: Size, random: Random) -> np.ndarray:
    """Return top, left, height and width of such a rectangle, anywhere in an image of this size."""
    top = random.integers(size[0] - height + 1)
    left = random.integers(size[1] - width + 1)
    return np.array([top, left, height, width], dtype=float)


def draw_crop(share: float, size: Size, random: Random) -> np.ndarray:
    """Return top, left, height and width of a random square, this share of both sides."""
    height, width = small_size(size, share)
    return draw_place(height, width, size, random)


def change_crop(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Keep the square, enlarged to the whole."""
    top, left, height, width = numbers.astype(int).tolist()
    return tv.resized_crop(image, top, left, height, width, list(size_of(image)), antialias=True)


def draw_shift(share: float, size: Size, random: Random) -> np.ndarray:
    """Return a move in pixels, at most this share of the side: rightwards and downwards."""
    reach = round(share * size[1])
    return random.integers(-reach, reach + 1, 2).astype(float)


def change_shift(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Move what is seen; the border is repeated."""
    x, y = numbers.astype(int).tolist()
    reach = max(abs(x), abs(y))
    padded = tv.pad(image, [reach] * 4, padding_mode="edge")
    return tv.crop(padded, reach + y, reach + x, *size_of(image))


def draw_erase(share: float, size: Size, random: Random) -> np.ndarray:
    """Return top, left, height and width of a random rectangle of this share of the area."""
    height, width = size
    aspect = float(np.exp(random.uniform(-0.7, 0.7)))
    covered_height = min(height, max(1, round(height * (share * aspect) ** 0.5)))
    covered_width = min(width, max(1, round(width * (share / aspect) ** 0.5)))
    return draw_place(covered_height, covered_width, size, random)


def change_erase(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Cover the rectangle with its mean colour (Zhong 2020)."""
    top, left, height, width = numbers.astype(int).tolist()
    place = (slice(None), slice(top, top + height), slice(left, left + width))
    erased = image.clone()
    erased[place] = image[place].float().mean(dim=(1, 2), keepdim=True).round().byte()
    return erased


def without_chance(operation: PixelOperation) -> Operation:
    """Return the degradation about which chance decides nothing but the level."""
    no_chance = np.random.default_rng(0)  # from which nothing is drawn
    return Operation(
        draw_level, lambda image, numbers: operation(image, float(numbers[0]), no_chance)
    )


NO_NUMBERS = np.empty(0)
FLIPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "horizontal_flip": tv.horizontal_flip,
    "vertical_flip": tv.vertical_flip,
}
OPERATIONS: dict[str, Operation] = {
    "jpeg": without_chance(jpeg),
    "webp": without_chance(webp),
    "rescale": Operation(draw_rescale, change_rescale),
    "blur": without_chance(blur),
    "noise": Operation(draw_noise, add_noise),
    "colour": Operation(draw_colour, change_colour),
    "grey": without_chance(grey),
    "crop": Operation(draw_crop, change_crop),
    "shift": Operation(draw_shift, change_shift),
    "erase": Operation(draw_erase, change_erase),
}
