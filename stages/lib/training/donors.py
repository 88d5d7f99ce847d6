"""The donor of a face swap: another real in a similar pose, moved onto the face of the real."""

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from stages.lib.images.faces import Face
from stages.lib.training.face_masks import Mask, Random, Source
from stages.lib.training.marked_image import MarkedImage

CANDIDATES = 4  # other reals; the one with the most similar pose becomes the donor


def draw_donor(source: Source, random: Random) -> torch.Tensor:
    """Return another real, moved onto the face: of a few, the one in the most alike pose.

    Where no face is detected, it is the one that looks most alike, at the size of the real.
    """
    others = [source.draw_other(random) for _ in range(CANDIDATES)]
    real = source.real
    alignments = _alignments(real.face, real.size, others) if real.face else []
    if not alignments:
        resized = [tv.resize(other.pixels, list(real.size), antialias=True) for other in others]
        return max(resized, key=lambda other: _likeness(other, real.pixels))
    _, theta, donor = min(alignments, key=lambda alignment: alignment[0])
    grid = F.affine_grid(theta[None], [1, 1, *real.size], align_corners=False)
    pixels = donor[None].float()
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return moved[0].round().clamp(0, 255).byte()


def _alignments(
    face: Face, size: tuple[int, int], others: list[MarkedImage]
) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """Return (error, affine map, image) for each image with a face; see align."""
    alignments = []
    for other in others:
        if other.face:
            error, theta = align(face.landmarks, other.face.landmarks, size, other.size)
            alignments.append((error, theta, other.pixels))
    return alignments


def align(
    landmarks: np.ndarray, others: np.ndarray, size: tuple[int, int], other_size: tuple[int, int]
) -> tuple[float, torch.Tensor]:
    """Return the error and the similarity that best maps landmarks to the others.

    Both are float (5, 2), in pixels of images of these heights and widths. The similarity is a
    float (2, 3) in the coordinates of torch's affine_grid. The error is the mean distance that it
    leaves between the landmarks, in pixels of the first ones over the width of their image.
    """
    x, y = landmarks.T
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    solution, *_ = np.linalg.lstsq(rows, others.T.ravel(), rcond=None)
    a, b, move_x, move_y = solution
    error = np.abs(rows @ solution - others.T.ravel()).mean() / max(np.hypot(a, b), 1e-6)
    similarity = np.array([[a, -b, move_x], [b, a, move_y], [0, 0, 1]])
    theta = _to_shares(other_size) @ similarity @ np.linalg.inv(_to_shares(size))
    return float(error / size[1]), torch.from_numpy(theta[:2]).float()


def _to_shares(size: tuple[int, int]) -> np.ndarray:
    """Return the map, float (3, 3), from pixels to the coordinates of affine_grid, -1 to 1."""
    height, width = size
    return np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])


def _likeness(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the correlation of the brightness in the middle of two images, made small."""
    small = []
    for image in (first, second):
        middle = tv.center_crop(image, [side // 2 for side in image.shape[1:]])
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
