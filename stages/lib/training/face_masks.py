"""Where a pseudo-fake is changed: soft masks of a face or a part of it.

A mask is the inside of an outline: of landmarks of the face mesh where there is one, else of
ellipses that follow the box and the five landmarks of YuNet, and where no face is detected of
ellipses that suit a face in the middle. Convex hulls of dense landmarks, deformed and soft, are the
masks of self-blended images (Shiohara and Yamasaki 2022, arXiv 2204.08376).
"""

from dataclasses import dataclass

import numpy as np
import torch

from stages.lib.images.faces import LEFT_EYE, MOUTH_CORNERS, NOSE, RIGHT_EYE
from stages.lib.training.marked_image import NUM_POINTS, MarkedImage

Random = np.random.Generator
Mask = torch.Tensor  # float (1, H, W), 0 to 1
Outline = np.ndarray  # float (N, 2), x and y in pixels

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # as published for self-blended images
FACE_HEIGHT = 1.35  # of the ellipse, in its widths
# Parts of a face: centre and size, in halves of the face's width and height, and the landmarks
# around the centre.
PARTS = {
    "eyes": ((0.0, -0.22), (0.85, 0.22), (RIGHT_EYE, LEFT_EYE)),
    "nose": ((0.0, 0.12), (0.32, 0.30), (RIGHT_EYE, LEFT_EYE, NOSE, NOSE)),
    "mouth": ((0.0, 0.52), (0.50, 0.22), MOUTH_CORNERS),
}
# Points of the mesh around the parts, and how much larger than their hull the part is.
EYES = [33, 133, 159, 145, 263, 362, 386, 374]
EYEBROWS = [46, 53, 52, 65, 55, 70, 63, 105, 66, 107, 276, 283, 282, 295, 285, 300, 293, 334, 296]
NOSE_POINTS = [168, 6, 4, 1, 2, 98, 327, 48, 278, 64, 294, 115, 344, 220, 440]
LIPS = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
CHIN = [152, 148, 176, 149, 150, 377, 400, 378, 379]
MESH_PARTS = {
    "eyes": (EYES + EYEBROWS, 1.1),
    "nose": (NOSE_POINTS, 1.15),
    "mouth": (LIPS, 1.3),
}
ALL_POINTS = list(range(NUM_POINTS))
# Hulls that generators replace: the whole face, without the forehead, and the inner face.
MESH_FACES = [
    ALL_POINTS,
    ALL_POINTS,
    EYEBROWS + CHIN + LIPS + [93, 132, 58, 172, 323, 361, 288, 397],
    EYEBROWS + EYES + NOSE_POINTS + LIPS,
]
NUM_ANGLES = 72  # of an outline that is an ellipse


@dataclass(frozen=True)
class Source:
    """What a pseudo-fake is made of."""

    real: MarkedImage
    face_width: list[float]  # where no face is detected: lowest and highest share of the width


def face_mask(source: Source, random: Random) -> Mask:
    """Return the mask of the face."""
    mesh = source.real.mesh
    if mesh is not None:
        points = mesh[MESH_FACES[random.integers(len(MESH_FACES))]]
        return soft_mask(source.real.size, _scaled_hull(points, random.uniform(0.9, 1.1)), random)
    center, half = _draw_face(source, random)
    return soft_mask(source.real.size, _ellipse(center, half), random)


def part_mask(source: Source, random: Random) -> Mask:
    """Return the mask of eyes, nose or mouth."""
    name = str(random.choice(list(PARTS)))
    if source.real.mesh is not None:
        points, scale = MESH_PARTS[name]
        outline = _scaled_hull(source.real.mesh[points], scale * random.uniform(0.85, 1.3))
        return soft_mask(source.real.size, outline, random)
    center, half = _draw_face(source, random)
    offset, size, landmarks = PARTS[name]
    center = center + np.array(offset) * half
    if source.real.face:
        center = source.real.face.landmarks[list(landmarks)].mean(axis=0)
    outline = _ellipse(center, np.array(size) * half * random.uniform(0.85, 1.3))
    return soft_mask(source.real.size, outline, random)


def _draw_face(source: Source, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and the half axes of a face, float (2,), x and y in pixels."""
    face, (height, width) = source.real.face, source.real.size
    if face:
        size = np.array([face.width, face.height])
        center = np.array([face.left, face.top]) + size / 2
        return center + random.normal(0, 0.03, 2) * size, size * random.uniform(0.85, 1.1, 2) / 2
    lowest, highest = source.face_width
    across = random.uniform(lowest, highest) * width
    down = min(across * FACE_HEIGHT * random.uniform(0.85, 1.15), 0.95 * height)
    center = np.array([0.5, 0.52]) + random.normal(0, 0.025, 2)
    return center * [width, height], np.array([across, down]) / 2


def _ellipse(center: np.ndarray, half: np.ndarray) -> Outline:
    angles = np.linspace(0, 2 * np.pi, NUM_ANGLES, endpoint=False)
    return center + half * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _scaled_hull(points: np.ndarray, scale: float) -> Outline:
    """Return the outline of the convex hull of points, float (N, 2), scaled about its middle."""
    import cv2  # here, so that all code runs without OpenCV

    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)
    middle = (hull.min(axis=0) + hull.max(axis=0)) / 2
    return middle + scale * (hull - middle)


def soft_mask(size: tuple[int, int], outline: Outline, random: Random) -> Mask:
    """Return the inside of a wavy outline with a soft edge, times one of ALPHAS.

    size: height and width. The edge is soft towards the inside, so the mask is 0 outside.
    """
    import cv2

    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.round(_wavy(outline, random)).astype(np.int32)], 1)
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    softness = random.uniform(0.04, 0.5)  # share of the depth in which the mask rises
    rise = torch.from_numpy(depth / max(softness * depth.max(), 1e-6)).clamp(0, 1)
    alpha = float(random.choice(ALPHAS))
    return (alpha * rise * rise * (3 - 2 * rise)).float()[None]


def _wavy(outline: Outline, random: Random) -> Outline:
    """Move the points of an outline to and from its middle, smoothly around it."""
    middle = outline.mean(axis=0)
    x, y = (outline - middle).T
    angle = np.arctan2(y, x)
    wobble = np.zeros(len(outline))
    for order in range(1, 6):
        phase = random.uniform(0, 2 * np.pi)
        wobble += random.normal(0, 0.08 / order) * np.cos(order * angle + phase)
    return middle + (1 + wobble[:, None]) * (outline - middle)
