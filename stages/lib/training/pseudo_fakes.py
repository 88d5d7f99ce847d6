"""Pseudo-fakes: fakes made from one real image of the training set, while training.

A region of a face is changed and pasted back through a soft mask, as the last step of every face
manipulation does. So a detector learns the seam, and the difference between a region and its
surroundings, instead of the traces of one generator. Published as self-blended images (Shiohara and
Yamasaki 2022, arXiv 2204.08376). stages/lib/training/face_masks.py chooses the region.

- blend: the face, from a slightly changed copy of itself (colour, sharpness, place, elastic warp)
- part: the same for eyes, nose or mouth alone

A pair is the real and its pseudo-fake. Outside of the mask their pixels are identical, so nothing
but the region tells them apart. All images are uint8 (3, H, W), at the pixels of their files.
"""

from collections.abc import Callable
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import Range, Share, StageParams
from stages.lib.detector.pixel_operations import blur
from stages.lib.training.augmentation import OPERATIONS
from stages.lib.training.face_masks import Mask, Random, Source, face_mask, part_mask

Weight = Annotated[float, Field(ge=0)]


class Kinds(StageParams):
    """How often each kind is drawn, relative to the others."""

    blend: Weight
    part: Weight


class PseudoFakes(StageParams):
    """Section `train.pseudo_fakes`."""

    first_share: Share
    last_share: Share
    expert_weight: Annotated[Share, Field(lt=1)]
    face_width: Range[Share]
    kinds: Kinds

    @property
    def are_wanted(self) -> bool:
        """Whether any batch has some."""
        return bool(self.first_share or self.last_share)

    @model_validator(mode="after")
    def _check_kinds(self) -> Self:
        weights = self.kinds.model_dump().values()
        if (self.are_wanted or self.expert_weight) and not any(weights):
            raise ValueError("kinds: every weight is 0; give one of them a weight")
        return self

    def share(self, epoch: int, num_epochs: int) -> float:
        """Return the share of each batch that is pairs: first_share, rising to last_share."""
        progress = epoch / max(1, num_epochs - 1)
        return (1 - progress) * self.first_share + progress * self.last_share


def make_pair(source: Source, kinds: Kinds, random: Random) -> tuple[torch.Tensor, ...]:
    """Return (real, pseudo-fake), which differ only inside a mask.

    The pseudo-fake has either the changed region in the given image, or the given region in the
    changed image. In the second case the real of the pair is the changed image.
    """
    names = list(Kinds.model_fields)
    weights = np.array([getattr(kinds, name) for name in names])
    name = str(random.choice(names, p=weights / weights.sum()))
    real = source.real.pixels
    change, mask = changed_copy(real, random), KINDS[name](source, random)
    if random.random() < 0.5:
        return change, paste(real, change, mask)
    return real, paste(change, real, mask)


def paste(region: torch.Tensor, base: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return the base with the region where the mask is; where it is 0, the base's own pixels."""
    blended = base + mask * (region.float() - base.float())
    return torch.where(mask > 0, blended.round().clamp(0, 255).byte(), base)


KINDS: dict[str, Callable[[Source, Random], Mask]] = {"blend": face_mask, "part": part_mask}


def changed_copy(image: torch.Tensor, random: Random) -> torch.Tensor:
    """Return the image with other colours, another sharpness, a little moved and warped."""
    copy = warp(image, random)
    copy = OPERATIONS["colour"](copy, random.uniform(0.05, 0.25), random)
    offset = torch.from_numpy(random.uniform(-12, 12, (3, 1, 1))).float()
    copy = (copy + offset).round().clamp(0, 255).byte()
    how = random.integers(3)
    if how == 0:
        return OPERATIONS["rescale"](copy, random.uniform(0.4, 0.9), random)
    if how == 1:
        return tv.adjust_sharpness(copy, random.uniform(1.5, 4))
    return blur(copy, random.uniform(0.4, 1.2), random)


def warp(image: torch.Tensor, random: Random) -> torch.Tensor:
    """Scale, move and warp the image by a few percent of its sides, smoothly."""
    size = list(image.shape[1:])
    scale = random.uniform(0.95, 1.05)
    move_x, move_y = random.uniform(-0.04, 0.04), random.uniform(-0.03, 0.03)
    theta = torch.tensor([[[scale, 0, move_x], [0, scale, move_y]]])
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    bumps = torch.from_numpy(random.normal(0, random.uniform(0, 0.015), (1, 2, 5, 5))).float()
    elastic = F.interpolate(bumps, size=size, mode="bicubic", align_corners=False)
    grid = (grid + elastic.permute(0, 2, 3, 1)).float()
    pixels = image[None].float()
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return moved[0].round().clamp(0, 255).byte()
