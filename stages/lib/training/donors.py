"""The donor of a face swap: another real in a similar pose, moved onto the face of the real."""

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from stages.lib.images.faces import Face, largest_face
from stages.lib.training.face_masks import Mask, Random, Source

CANDIDATES = 4  # other reals; the one with the most similar pose becomes the donor


def draw_donor(source: Source, random: Random) -> torch.Tensor:
    """Return another real, moved onto the face: of a few, the one in the most alike pose.

    Where no face is detected, it is the one that looks most alike, and is not moved.
    """
    others = [source.draw_other(random) for _ in range(CANDIDATES)]
    alignments = _alignments(source.face, others) if source.face else []
    if not alignments:
        return max(others, key=lambda other: _likeness(other, source.real))
    _, theta, donor = min(alignments, key=lambda alignment: alignment[0])
    grid = F.affine_grid(theta[None], [1, 1, *donor.shape[1:]], align_corners=False)
    pixels = donor[None].float()
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return moved[0].round().clamp(0, 255).byte()


def _alignments(
    face: Face, others: list[torch.Tensor]
) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """Return (error, similarity, image) for each image with a face; see align."""
    alignments = []
    for other in others:
        other_face = largest_face(other)
        if other_face:
            error, theta = align(face.landmarks, other_face.landmarks, other.shape[-1])
            alignments.append((error, theta, other))
    return alignments


def align(landmarks: np.ndarray, others: np.ndarray, side: int) -> tuple[float, torch.Tensor]:
    """Return the error and the similarity, float (2, 3), that best maps landmarks to the others.

    Both are float (5, 2), in pixels of images of this side. The similarity is in the coordinates of
    torch's affine_grid. The error is the mean distance that it leaves between the landmarks, in the
    scale of the first ones.
    """
    x, y = (2 * landmarks.T + 1) / side - 1
    target = (2 * others.T + 1) / side - 1
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    (a, b, move_x, move_y), *_ = np.linalg.lstsq(rows, target.ravel(), rcond=None)
    error = np.abs(rows @ [a, b, move_x, move_y] - target.ravel()).mean()
    theta = torch.tensor([[a, -b, move_x], [b, a, move_y]], dtype=torch.float32)
    return float(error / max(np.hypot(a, b), 1e-6)), theta


def _likeness(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the correlation of the brightness in the middle of two images, made small."""
    small = []
    for image in (first, second):
        middle = tv.center_crop(image, [image.shape[-1] // 2] * 2)
        small.append(tv.resize(tv.rgb_to_grayscale(middle), [12, 12], antialias=True))
    return float(torch.corrcoef(torch.stack(small).flatten(1).float())[0, 1])


def matched_colours(
    image: torch.Tensor, like: torch.Tensor, mask: Mask, strength: float
) -> torch.Tensor:
    """Move mean and spread of each channel in the mask to those of the other (Reinhard 2001)."""
    weights = mask / mask.sum().clamp(min=1e-6)

    def moments(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = (pixels * weights).sum(dim=(1, 2), keepdim=True)
        variance = ((pixels - mean).square() * weights).sum(dim=(1, 2), keepdim=True)
        return mean, variance.sqrt() + 1  # a level more, because flat regions have no spread

    pixels = image.float()
    mean, spread = moments(pixels)
    wanted_mean, wanted_spread = moments(like.float())
    matched = (pixels - mean) * (wanted_spread / spread) + wanted_mean
    return torch.lerp(pixels, matched, strength).round().clamp(0, 255).byte()
