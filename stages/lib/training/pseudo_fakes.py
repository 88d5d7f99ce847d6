"""Pseudo-fakes: fakes made from one real image of the training set, while training.

Each kind changes one region of a face and pastes it back through a soft mask, as the last step of
every face manipulation does. So a detector learns the seam, and the difference between a region and
its surroundings, instead of the traces of one generator. Published as self-blended images (Shiohara
and Yamasaki 2022, arXiv 2204.08376). The regions follow the box and the landmarks of the largest
face; where none is found, an ellipse and templates that suit a face in the middle take their place.

- blend: the face, from a slightly changed copy of itself (colour, sharpness, place, elastic warp)
- part: the same for eyes, nose or mouth alone
- resample: a region down- and upscaled or sharpened, as face super-resolution leaves it
- smooth: a region smoothed, as inpainting leaves it
- swap: the face of another real of like pose, moved onto this one, in its colours

A pair is the real and its pseudo-fake. Outside of the mask their pixels are identical, so nothing
but the region tells them apart. All images are uint8 (3, S, S).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import StageParams
from stages.lib.detector.pixel_operations import blur
from stages.lib.images.faces import (
    LEFT_EYE,
    MOUTH_CORNERS,
    NOSE,
    RIGHT_EYE,
    Face,
    largest_face,
)
from stages.lib.training.augmentation import any_rescale, colour

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Random = np.random.Generator
Region = torch.Tensor  # mask, float (1, S, S), 0 to 1

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # as published for self-blended images
FACE_HEIGHT = 1.35  # of the ellipse, in its widths
# Parts of a face: centre and size, in halves of the face's width and height, and the landmarks
# around the centre.
PARTS = {
    "eyes": ((0.0, -0.22), (0.85, 0.22), (RIGHT_EYE, LEFT_EYE)),
    "nose": ((0.0, 0.12), (0.32, 0.30), (RIGHT_EYE, LEFT_EYE, NOSE, NOSE)),
    "mouth": ((0.0, 0.52), (0.50, 0.22), MOUTH_CORNERS),
}
CANDIDATES = 4  # other reals, of which the one of the most alike pose is the donor of a swap


class Kinds(StageParams):
    """How often each kind is drawn, relative to the others."""

    blend: Weight
    part: Weight
    resample: Weight
    smooth: Weight
    swap: Weight


class PseudoFakes(StageParams):
    """Section `train.pseudo_fakes`."""

    first_share: Share
    last_share: Share
    face_width: Annotated[list[Share], Field(min_length=2, max_length=2)]
    kinds: Kinds

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.face_width[0] > self.face_width[1]:
            raise ValueError("give the smallest width first")
        return self

    def share(self, epoch: int, num_epochs: int) -> float:
        """Return the share of each batch that is pairs: first_share, rising to last_share."""
        progress = epoch / max(1, num_epochs - 1)
        return (1 - progress) * self.first_share + progress * self.last_share


@dataclass(frozen=True)
class Source:
    """What a pseudo-fake is made of."""

    real: torch.Tensor
    face_width: list[float]  # smallest and largest, as a share of the side
    draw_other: Callable[[Random], torch.Tensor]  # another real

    @cached_property
    def face(self) -> Face | None:
        """The largest face in the real."""
        return largest_face(self.real)


def make_pair(source: Source, kinds: Kinds, random: Random) -> tuple[torch.Tensor, ...]:
    """Return (real, pseudo-fake); the pair may differ from the image given, but only alike.

    Where the real is a person's photograph, the change may be on the face or on the rest of the
    image: what differs is the side of the seam. In the second case the real of the pair is
    changed as a whole.
    """
    names = list(Kinds.model_fields)
    weights = np.array([getattr(kinds, name) for name in names])
    name = str(random.choice(names, p=weights / weights.sum()))
    real = source.real
    change, mask = KINDS[name](source, random)
    if name in ("blend", "part") and random.random() < 0.5:
        return change, paste(real, change, mask)
    return real, paste(change, real, mask)


def paste(region: torch.Tensor, base: torch.Tensor, mask: Region) -> torch.Tensor:
    """Return the base with the region where the mask is; where it is 0, the base's own pixels."""
    blended = base + mask * (region.float() - base.float())
    return torch.where(mask > 0, blended.round().clamp(0, 255).byte(), base)


# ---------------------------------------------------------------------------------------------
# Kinds: a changed copy of the whole image, and the mask of the region that is taken from it


def blend(source: Source, random: Random) -> tuple[torch.Tensor, Region]:
    """Change the whole face slightly."""
    return changed_copy(source.real, random), face_mask(source, random)


def part(source: Source, random: Random) -> tuple[torch.Tensor, Region]:
    """Change eyes, nose or mouth slightly."""
    return changed_copy(source.real, random), part_mask(source, random)


def resample(source: Source, random: Random) -> tuple[torch.Tensor, Region]:
    """Down- and upscale a region, sharpen it, or both."""
    copy = any_rescale(source.real, random.uniform(0.25, 0.7), random)
    if random.random() < 0.5:
        copy = tv.adjust_sharpness(copy, random.uniform(2, 5))
    return copy, any_mask(source, random)


def smooth(source: Source, random: Random) -> tuple[torch.Tensor, Region]:
    """Smooth a region."""
    return blur(source.real, random.uniform(0.8, 2.5), random), any_mask(source, random)


def swap(source: Source, random: Random) -> tuple[torch.Tensor, Region]:
    """Take the face of another real, slightly warped, in the colours of this one."""
    mask = face_mask(source, random)
    donor = matched_colours(
        warp(draw_donor(source, random), random), source.real, mask, random.uniform(0.6, 1)
    )
    if random.random() < 0.5:
        donor = any_rescale(donor, random.uniform(0.4, 0.9), random)
    return donor, mask


KINDS: dict[str, Callable[[Source, Random], tuple[torch.Tensor, Region]]] = {
    "blend": blend,
    "part": part,
    "resample": resample,
    "smooth": smooth,
    "swap": swap,
}


def draw_donor(source: Source, random: Random) -> torch.Tensor:
    """Return the one of a few other reals that has the most alike pose, moved onto the real's face.

    Where no faces are found, it is the one that looks most alike.
    """
    others = [source.draw_other(random) for _ in range(CANDIDATES)]
    fits = _fits(source.face, others) if source.face else []
    if not fits:
        return max(others, key=lambda other: _likeness(other, source.real))
    _, theta, donor = min(fits, key=lambda fit: fit[0])
    grid = F.affine_grid(theta[None], [1, 1, *donor.shape[1:]], align_corners=False)
    pixels = donor[None].float()
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return moved[0].round().clamp(0, 255).byte()


def _fits(
    wanted: Face, others: list[torch.Tensor]
) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """Return (error, similarity, image) for each image with a face; see _fit."""
    fits = []
    for other in others:
        face = largest_face(other)
        if face:
            fits.append((*_fit(wanted.landmarks, face.landmarks, other.shape[-1]), other))
    return fits


def _fit(wanted: np.ndarray, found: np.ndarray, side: int) -> tuple[float, torch.Tensor]:
    """Return the error and the similarity, float (2, 3), that best leads from wanted to found.

    wanted, found: landmarks, float (5, 2), in pixels of images of this side. The similarity is in
    the coordinates of torch's affine_grid. The error is the mean distance that it leaves between
    the landmarks, as it is seen in the image of `wanted`.
    """
    (x, y), target = ((2 * one.T + 1) / side - 1 for one in (wanted, found))
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    (a, b, move_x, move_y), *_ = np.linalg.lstsq(rows, target.ravel(), rcond=None)
    error = np.abs(rows @ [a, b, move_x, move_y] - target.ravel()).mean()
    return float(error / max(np.hypot(a, b), 1e-6)), torch.tensor(
        [[a, -b, move_x], [b, a, move_y]], dtype=torch.float32
    )


def _likeness(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the correlation of the brightness in the middle of two images, seen from afar."""
    middles = [tv.center_crop(one, [one.shape[-1] // 2] * 2) for one in (first, second)]
    small = [tv.resize(tv.rgb_to_grayscale(one), [12, 12], antialias=True) for one in middles]
    return float(torch.corrcoef(torch.stack(small).flatten(1).float())[0, 1])


def matched_colours(
    image: torch.Tensor, like: torch.Tensor, mask: Region, strength: float
) -> torch.Tensor:
    """Move mean and spread of each channel in the mask to those of the other (Reinhard 2001)."""
    weights = mask / mask.sum().clamp(min=1e-6)

    def moments(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = (pixels * weights).sum(dim=(1, 2), keepdim=True)
        variance = ((pixels - mean).square() * weights).sum(dim=(1, 2), keepdim=True)
        return mean, variance.sqrt() + 1  # a level more, because flat regions have no spread

    pixels = image.float()
    (mean, spread), (wanted_mean, wanted_spread) = moments(pixels), moments(like.float())
    matched = (pixels - mean) * (wanted_spread / spread) + wanted_mean
    return torch.lerp(pixels, matched, strength).round().clamp(0, 255).byte()


def changed_copy(image: torch.Tensor, random: Random) -> torch.Tensor:
    """Return the image with other colours, another sharpness, a little moved and warped."""
    copy = warp(image, random)
    copy = colour(copy, random.uniform(0.05, 0.25), random)
    offset = torch.from_numpy(random.uniform(-12, 12, (3, 1, 1))).float()
    copy = (copy + offset).round().clamp(0, 255).byte()
    how = random.integers(3)
    if how == 0:
        return any_rescale(copy, random.uniform(0.4, 0.9), random)
    if how == 1:
        return tv.adjust_sharpness(copy, random.uniform(1.5, 4))
    return blur(copy, random.uniform(0.4, 1.2), random)


def warp(image: torch.Tensor, random: Random) -> torch.Tensor:
    """Scale, move and warp the image by a few percent of its side, smoothly."""
    side = image.shape[-1]
    scale = random.uniform(0.95, 1.05)
    grid = F.affine_grid(
        torch.tensor([[[scale, 0, random.uniform(-0.04, 0.04)],
                       [0, scale, random.uniform(-0.03, 0.03)]]]),
        [1, 1, side, side], align_corners=False,
    )  # fmt: skip
    bumps = torch.from_numpy(random.normal(0, random.uniform(0, 0.015), (1, 2, 5, 5))).float()
    elastic = F.interpolate(bumps, size=[side, side], mode="bicubic", align_corners=False)
    moved = F.grid_sample(
        image[None].float(), (grid + elastic.permute(0, 2, 3, 1)).float(),
        mode="bilinear", padding_mode="reflection", align_corners=False,
    )  # fmt: skip
    return moved[0].round().clamp(0, 255).byte()


# ---------------------------------------------------------------------------------------------
# Masks


def face_mask(source: Source, random: Random) -> Region:
    """Return the mask of an ellipse around the face."""
    center, half = _draw_face(source, random)
    return soft_mask(source.real.shape[-1], center, half, random)


def part_mask(source: Source, random: Random) -> Region:
    """Return the mask of eyes, nose or mouth."""
    center, half = _draw_face(source, random)
    offset, size, around = PARTS[str(random.choice(list(PARTS)))]
    side = source.real.shape[-1]
    if source.face:
        place = source.face.landmarks[list(around)].mean(axis=0) / side
    else:
        place = center + np.array(offset) * half
    return soft_mask(side, place, np.array(size) * half * random.uniform(0.85, 1.3), random)


def any_mask(source: Source, random: Random) -> Region:
    """Return a mask of the whole face or of a part."""
    return (face_mask if random.random() < 0.6 else part_mask)(source, random)


def _draw_face(source: Source, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and the half axes of a face: float (2,), x and y as shares of the side."""
    face, side = source.face, source.real.shape[-1]
    if face:
        size = np.array([face.width, face.height]) / side
        center = np.array([face.left, face.top]) / side + size / 2
        return center + random.normal(0, 0.03, 2) * size, size * random.uniform(0.85, 1.1, 2) / 2
    low, high = source.face_width
    width = random.uniform(low, high)
    height = min(width * FACE_HEIGHT * random.uniform(0.85, 1.15), 0.95)
    center = np.array([0.5, 0.52]) + random.normal(0, 0.025, 2)
    return center, np.array([width, height]) / 2


def soft_mask(side: int, center: np.ndarray, half: np.ndarray, random: Random) -> Region:
    """Return an ellipse with a wobbling, soft edge, times one of ALPHAS.

    center and half axes: float (2,), shares of the side. The edge is soft to its inside, so that
    the mask is 0 outside of the wobbling ellipse.
    """
    y, x = np.mgrid[0:side, 0:side] / side
    dx, dy = (x - center[0]) / half[0], (y - center[1]) / half[1]
    angle = np.arctan2(dy, dx)
    wobble = sum(
        random.normal(0, 0.08 / order) * np.cos(order * angle + random.uniform(0, 2 * np.pi))
        for order in range(1, 6)
    )
    power = random.uniform(2, 4)  # 2: an ellipse; more: nearly a rectangle
    radius = (np.abs(dx) ** power + np.abs(dy) ** power) ** (1 / power)
    softness = random.uniform(0.04, 0.5)  # share of the radius in which the mask rises
    rise = np.clip((1 + wobble - radius) / softness, 0, 1)
    alpha = random.choice(ALPHAS)
    return torch.from_numpy(alpha * rise * rise * (3 - 2 * rise)).float()[None]
