"""Pseudo-fakes: fakes made from one real image of the training set, while training.

Each kind changes one region of a face and pastes it back through a soft mask, as the last step of
every face manipulation does. So a detector learns the seam, and the difference between a region and
its surroundings, instead of the traces of one generator. Published as self-blended images (Shiohara
and Yamasaki 2022, arXiv 2204.08376), here without face landmarks: the regions are an ellipse and
templates that suit centred faces.

- blend: the face, from a slightly changed copy of itself (colour, sharpness, place, elastic warp)
- part: the same for eyes, nose or mouth alone
- resample: a region down- and upscaled or sharpened, as face super-resolution leaves it
- smooth: a region smoothed, as inpainting leaves it

A pair is the real and its pseudo-fake. Outside of the mask their pixels are identical, so nothing
but the region tells them apart. All pictures are uint8 (3, S, S).
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import StageParams
from stages.lib.detector.pixel_operations import blur
from stages.lib.training.augmentation import any_rescale, colour

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Random = np.random.Generator
Region = torch.Tensor  # mask, float (1, S, S), 0 to 1

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # as published for self-blended images
FACE_WIDTHS = (0.35, 0.75)  # of the ellipse, as a share of the side: loose and tight crops
FACE_HEIGHT = 1.35  # of the ellipse, in its widths
# Parts of a face: centre and size, in halves of the face's width and height.
PARTS = {
    "eyes": ((0.0, -0.22), (0.85, 0.22)),
    "nose": ((0.0, 0.12), (0.32, 0.30)),
    "mouth": ((0.0, 0.52), (0.50, 0.22)),
}


class Kinds(StageParams):
    """How often each kind is drawn, relative to the others."""

    blend: Weight
    part: Weight
    resample: Weight
    smooth: Weight


class PseudoFakes(StageParams):
    """Section `train.pseudo_fakes`."""

    first_share: Share
    last_share: Share
    kinds: Kinds

    def share(self, epoch: int, num_epochs: int) -> float:
        """Return the share of each batch that is pairs: first_share, rising to last_share."""
        progress = epoch / max(1, num_epochs - 1)
        return (1 - progress) * self.first_share + progress * self.last_share


def make_pair(real: torch.Tensor, kinds: Kinds, random: Random) -> tuple[torch.Tensor, ...]:
    """Return (real, pseudo-fake); the pair may differ from the image given, but only alike.

    Where the real is a person's photograph, the change may be on the face or on the rest of the
    picture: what differs is the side of the seam. In the second case the real of the pair is
    changed as a whole.
    """
    names = list(Kinds.model_fields)
    weights = np.array([getattr(kinds, name) for name in names])
    name = str(random.choice(names, p=weights / weights.sum()))
    change, mask = KINDS[name](real, random)
    if name in ("blend", "part") and random.random() < 0.5:
        return change, paste(real, change, mask)
    return real, paste(change, real, mask)


def paste(region: torch.Tensor, base: torch.Tensor, mask: Region) -> torch.Tensor:
    """Return the base with the region where the mask is; where it is 0, the base's own pixels."""
    blended = base + mask * (region.float() - base.float())
    return torch.where(mask > 0, blended.round().clamp(0, 255).byte(), base)


# ---------------------------------------------------------------------------------------------
# Kinds: a changed copy of the whole picture, and the mask of the region that is taken from it


def blend(real: torch.Tensor, random: Random) -> tuple[torch.Tensor, Region]:
    """Change the whole face slightly."""
    return changed_copy(real, random), face_mask(real.shape[-1], random)


def part(real: torch.Tensor, random: Random) -> tuple[torch.Tensor, Region]:
    """Change eyes, nose or mouth slightly."""
    return changed_copy(real, random), part_mask(real.shape[-1], random)


def resample(real: torch.Tensor, random: Random) -> tuple[torch.Tensor, Region]:
    """Down- and upscale a region, sharpen it, or both."""
    copy = any_rescale(real, random.uniform(0.25, 0.7), random)
    if random.random() < 0.5:
        copy = tv.adjust_sharpness(copy, random.uniform(2, 5))
    return copy, any_mask(real.shape[-1], random)


def smooth(real: torch.Tensor, random: Random) -> tuple[torch.Tensor, Region]:
    """Smooth a region and give it a little noise of another kind."""
    copy = blur(real, random.uniform(0.8, 2.5), random)
    return copy, any_mask(real.shape[-1], random)


KINDS: dict[str, Callable[[torch.Tensor, Random], tuple[torch.Tensor, Region]]] = {
    "blend": blend,
    "part": part,
    "resample": resample,
    "smooth": smooth,
}


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


def face_mask(side: int, random: Random) -> Region:
    """Return the mask of an ellipse around the middle, where the face of a centred crop is."""
    center, half = _draw_face(random)
    return soft_mask(side, center, half, random)


def part_mask(side: int, random: Random) -> Region:
    """Return the mask of eyes, nose or mouth, after the template of a face in the middle."""
    center, half = _draw_face(random)
    offset, size = PARTS[str(random.choice(list(PARTS)))]
    place = center + np.array(offset) * half
    return soft_mask(side, place, np.array(size) * half * random.uniform(0.85, 1.3), random)


def any_mask(side: int, random: Random) -> Region:
    """Return a mask of the whole face or of a part."""
    return (face_mask if random.random() < 0.6 else part_mask)(side, random)


def _draw_face(random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and the half axes of a face: float (2,), x and y as shares of the side."""
    width = random.uniform(*FACE_WIDTHS)
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
