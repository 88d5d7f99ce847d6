"""Images with marked faces: the box and five landmarks of YuNet, and the 468 points of a face mesh.

The mesh is the one of MediaPipe 0.10.14 (Kartynnik et al. 2019, arXiv 1907.06724), the file
`face_landmark.tflite` of its package, under the Apache licence 2.0 (face_mesh.LICENSE). OpenCV runs
it in about 4 ms.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import local

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from stages.lib.images.faces import LEFT_EYE, RIGHT_EYE, Face, largest_face, square_around

NUM_POINTS = 468
MESH_FILE = Path(__file__).with_name("face_mesh.tflite")
INPUT_SIDE = 192  # pixels, of the network's input
MARGIN = 1.5  # side of the square around a face that it sees, in sizes of the face
LEAST_LOGIT = 0.0  # of there being a face: a probability of 0.5, as MediaPipe has it
NUM_FACE_NUMBERS = 1 + 4 + 10  # of face_as_row
NUM_NUMBERS = NUM_FACE_NUMBERS + 2 * NUM_POINTS  # of marks_as_row
OF_THREAD = local()  # each thread has its own network, which handles one image at a time


@dataclass(frozen=True)
class MarkedImage:
    """An image and the largest face in it."""

    pixels: torch.Tensor  # uint8 (3, H, W)
    face: Face | None = None
    mesh: np.ndarray | None = None  # float (468, 2), x and y in pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def crop(self, share: float) -> "MarkedImage":
        """Return the square around the face as crop_face does; without a face, the image."""
        if not self.face:
            return self
        top, left, side = square_around(self.face, share, *self.size)
        mesh = None if self.mesh is None else self.mesh - [left, top]
        pixels = self.pixels[:, top : top + side, left : left + side]
        return MarkedImage(pixels, self.face.moved(-left, -top), mesh)

    def at_most(self, longest_side: int) -> "MarkedImage":
        """Return the image, made smaller where its longer side has more pixels than that."""
        factor = longest_side / max(self.size)
        if factor >= 1:
            return self
        size = [max(1, round(side * factor)) for side in self.size]
        mesh = None if self.mesh is None else self.mesh * factor
        face = self.face and self.face.scaled(factor)
        return MarkedImage(tv.resize(self.pixels, size, antialias=True), face, mesh)


def mark(pixels: torch.Tensor) -> MarkedImage:
    """Find the largest face in an image, uint8 (3, H, W), and its mesh."""
    face = largest_face(pixels)
    return MarkedImage(pixels, face, _mesh_of(pixels, face) if face else None)


def _mesh_of(pixels: torch.Tensor, face: Face) -> np.ndarray | None:
    """Return the mesh of a face, None where the network sees none."""
    import cv2  # here, so that all code runs without OpenCV

    across = face.landmarks[LEFT_EYE] - face.landmarks[RIGHT_EYE]
    center = np.array([face.left + face.width / 2, face.top + face.height / 2])
    angle, scale = np.degrees(np.arctan2(across[1], across[0])), INPUT_SIDE / (MARGIN * face.size)
    upright = cv2.getRotationMatrix2D(center.tolist(), float(angle), float(scale))
    upright[:, 2] += INPUT_SIDE / 2 - center
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    seen = cv2.warpAffine(image, upright, (INPUT_SIDE, INPUT_SIDE))
    network, outputs = _network()
    network.setInput(cv2.dnn.blobFromImage(seen, 1 / 255))
    logit, points = sorted(map(np.asarray, network.forward(outputs)), key=np.size)
    if logit.item() < LEAST_LOGIT:
        return None
    back = cv2.invertAffineTransform(upright)
    mesh = points.reshape(NUM_POINTS, 3)[:, :2].astype(float) @ back[:, :2].T + back[:, 2]
    return mesh.round(1)  # CPUs agree on this much


def _network() -> tuple:
    """Load the network of the mesh once in each thread, with the names of its two outputs."""
    if not hasattr(OF_THREAD, "network"):
        import cv2

        cv2.setNumThreads(1)  # the callers are several processes already
        network = cv2.dnn.readNetFromTFLite(_model())
        OF_THREAD.network = network, network.getUnconnectedOutLayersNames()
    return OF_THREAD.network


@cache
def _model() -> np.ndarray:
    return np.fromfile(MESH_FILE, np.uint8)


# ---------------------------------------------------------------------------------------------
# Marks as numbers, which a file can keep


def face_as_row(face: Face | None) -> np.ndarray:
    """Return a face as numbers, float64 (NUM_FACE_NUMBERS,): YuNet's score, then pixels.

    The score is 0 where there is no face.
    """
    if not face:
        return np.zeros(NUM_FACE_NUMBERS)
    box = (face.score, face.left, face.top, face.width, face.height)
    return np.concatenate([box, face.landmarks.ravel()])


def marks_as_row(image: MarkedImage) -> np.ndarray:
    """Return the marks of an image, float32 (NUM_NUMBERS,): its face as a row, then the mesh.

    The mesh is NaN where there is none.
    """
    row = np.full(NUM_NUMBERS, np.nan, np.float32)
    row[:NUM_FACE_NUMBERS] = face_as_row(image.face)
    if image.mesh is not None:
        row[NUM_FACE_NUMBERS:] = image.mesh.ravel()
    return row


def marked(pixels: torch.Tensor, row: np.ndarray) -> MarkedImage:
    """Return an image with the marks that marks_as_row has returned for it."""
    face = face_in(row)
    if not face:
        return MarkedImage(pixels)
    mesh = row[NUM_FACE_NUMBERS:].astype(float).reshape(NUM_POINTS, 2)
    return MarkedImage(pixels, face, None if np.isnan(mesh).any() else mesh)


def face_in(row: np.ndarray) -> Face | None:
    """Return the face that a row of face_as_row or marks_as_row has."""
    numbers = row[:NUM_FACE_NUMBERS].astype(float)
    score, left, top, width, height = numbers[:5].tolist()
    if not score:
        return None
    return Face(left, top, width, height, numbers[5:].reshape(5, 2), score)
