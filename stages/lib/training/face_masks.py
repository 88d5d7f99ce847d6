"""Where a pseudo-fake is changed: soft masks of a face or a part of it.

The masks follow the box and the landmarks of the largest face. Where no face is detected, they are
an ellipse and templates that suit a face in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from stages.lib.images.faces import (
    LEFT_EYE,
    MOUTH_CORNERS,
    NOSE,
    RIGHT_EYE,
    Face,
    largest_face,
)

Random = np.random.Generator
Mask = torch.Tensor  # float (1, S, S), 0 to 1

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # as published for self-blended images
FACE_HEIGHT = 1.35  # of the ellipse, in its widths
# Parts of a face: centre and size, in halves of the face's width and height, and the landmarks
# around the centre.
PARTS = {
    "eyes": ((0.0, -0.22), (0.85, 0.22), (RIGHT_EYE, LEFT_EYE)),
    "nose": ((0.0, 0.12), (0.32, 0.30), (RIGHT_EYE, LEFT_EYE, NOSE, NOSE)),
    "mouth": ((0.0, 0.52), (0.50, 0.22), MOUTH_CORNERS),
}


@dataclass(frozen=True)
class Source:
    """What a pseudo-fake is made of."""

    real: torch.Tensor
    face_width: list[float]  # where no face is detected: lowest and highest share of the side
    draw_other: Callable[[Random], torch.Tensor]  # another real

    @cached_property
    def face(self) -> Face | None:
        """The largest face in the real."""
        return largest_face(self.real)


def face_mask(source: Source, random: Random) -> Mask:
    """Return the mask of an ellipse around the face."""
    center, half = _draw_face(source, random)
    return soft_mask(source.real.shape[-1], center, half, random)


def part_mask(source: Source, random: Random) -> Mask:
    """Return the mask of eyes, nose or mouth."""
    center, half = _draw_face(source, random)
    offset, size, landmarks = PARTS[str(random.choice(list(PARTS)))]
    side = source.real.shape[-1]
    if source.face:
        part_center = source.face.landmarks[list(landmarks)].mean(axis=0) / side
    else:
        part_center = center + np.array(offset) * half
    return soft_mask(side, part_center, np.array(size) * half * random.uniform(0.85, 1.3), random)


def any_mask(source: Source, random: Random) -> Mask:
    """Return a mask of the whole face or of a part."""
    if random.random() < 0.6:
        return face_mask(source, random)
    return part_mask(source, random)


def _draw_face(source: Source, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and the half axes of a face: float (2,), x and y as shares of the side."""
    face, side = source.face, source.real.shape[-1]
    if face:
        size = np.array([face.width, face.height]) / side
        center = np.array([face.left, face.top]) / side + size / 2
        return center + random.normal(0, 0.03, 2) * size, size * random.uniform(0.85, 1.1, 2) / 2
    lowest, highest = source.face_width
    width = random.uniform(lowest, highest)
    height = min(width * FACE_HEIGHT * random.uniform(0.85, 1.15), 0.95)
    center = np.array([0.5, 0.52]) + random.normal(0, 0.025, 2)
    return center, np.array([width, height]) / 2


def soft_mask(side: int, center: np.ndarray, half: np.ndarray, random: Random) -> Mask:
    """Return an ellipse with a wavy, soft edge, times one of ALPHAS.

    center and half axes: float (2,), shares of the side. The edge is soft towards the inside,
    so the mask is 0 outside of the wavy ellipse.
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
