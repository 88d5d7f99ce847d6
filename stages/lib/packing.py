"""Packing an image set: the files' bytes into few large ones, and what a look at each one tells."""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import imagehash
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from scipy import ndimage

from stages.lib.competition import ImageSet
from stages.lib.files import main_workspace, remove_folder, sha256_of
from stages.lib.packed import IMAGE_CUES, IMAGE_SCHEMA, image_batch
from stages.lib.params import StageParams
from stages.lib.progress import progress_bar

ROWS_PER_BATCH = 256
BATCHES_PER_PIECE = 256  # at most: facts wait in memory until their piece is whole
FACTS_SCHEMA = pa.schema(
    [
        ("img_name", pa.string()),
        ("target", pa.int8()),  # 0 real, 1 fake, null unknown
        ("family", pa.string()),  # manipulation family of a fake, where the list names it
        ("source", pa.string()),  # the collection that an image is from, likewise
        ("error", pa.string()),  # why the image cannot be used, null for a good one
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("phash", pa.uint64()),  # 64-bit perceptual hash (Zauner 2010, as in ImageHash)
        ("jpeg_tables", pa.string()),  # digest of the quantisation tables, null for other formats
        ("jpeg_quality", pa.int8()),  # 1 to 100 on libjpeg's scale, from the luminance table
        *[(cue, pa.float32()) for cue in IMAGE_CUES],
    ]
)


PIECE_SCHEMA = FACTS_SCHEMA.append(pa.field("mtime_ns", pa.int64()))
Packed = tuple[bytes, dict[str, Any]]  # an image's bytes and facts


class PackParams(StageParams):
    """Section `pack`."""

    shard_mb: Annotated[int, Field(ge=1)]
    num_threads: Annotated[int, Field(ge=1)]


def pack_images(
    image_set: ImageSet | None, rows: pd.DataFrame | None, folder: Path, params: PackParams
) -> None:
    """Write one set's images and facts into folder; image_set None writes an empty set.

    What an earlier or interrupted run packed of the same images is taken from there; the bytes
    written are the same as without.
    """
    if image_set is None or rows is None:
        pq.write_table(FACTS_SCHEMA.empty_table(), folder / "facts.parquet")
        return
    with Memory(image_set.folder) as memory:
        pieces = PieceWriter(memory.new, params.shard_mb * 2**20)
        with progress_bar(f"pack {image_set.name}", len(rows)) as bar:
            num_known = 0
            for batch, known in _read_in_batches(
                image_set.folder, rows, memory, params.num_threads
            ):
                pieces.write(batch)
                num_known += known
                bar.update(len(batch))
        pieces.close()
        memory.deliver(folder)
    known = f", {num_known} of them known from an earlier run" if num_known else ""
    print(f"packed {len(rows)} images of {image_set.folder}{known}", flush=True)


def _read_in_batches(
    folder: Path, rows: pd.DataFrame, memory: "Memory", num_threads: int
) -> Iterator[tuple[list[Packed], int]]:
    """Yield packed images, in order, and how many were known; reads with several threads."""
    with ThreadPoolExecutor(num_threads) as pool:
        for first in range(0, len(rows), ROWS_PER_BATCH):
            part = rows.iloc[first : first + ROWS_PER_BATCH]
            batch = part.astype(object).where(part.notna(), None).to_dict("records")
            recalled = list(pool.map(memory.recall, batch))
            unknown = [row for row, found in zip(batch, recalled, strict=True) if not found]
            read = pool.map(lambda row: read_image(folder, row), unknown)
            yield [found or next(read) for found in recalled], len(batch) - len(unknown)


def read_image(folder: Path, row: dict[str, Any]) -> Packed:
    """Return an image file's bytes and facts; a bad file gives b"" and a reason in `error`."""
    path = folder / row["img_name"]
    try:
        changed = path.stat().st_mtime_ns
        content = path.read_bytes()
        return content, row | image_facts(content) | {"mtime_ns": changed}
    except FileNotFoundError:
        return b"", row | {"error": "no such file"}
    except UnidentifiedImageError:
        return b"", row | {"error": "unreadable: not an image"}
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        return b"", row | {"error": f"unreadable: {error}"}


def image_facts(content: bytes) -> dict[str, Any]:
    """Decode an encoded image fully and return what FACTS_SCHEMA asks of it."""
    if not content:
        return {"error": "empty file"}
    with Image.open(BytesIO(content)) as image:
        image.load()
        tables = getattr(image, "quantization", None)
        return {
            "num_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "format": image.format,
            "mode": image.mode,
            "width": image.width,
            "height": image.height,
            "phash": int(str(imagehash.phash(image)), 16),
            "jpeg_tables": _tables_digest(tables) if tables else None,
            "jpeg_quality": _jpeg_quality(tables[0]) if tables else None,
            **image_cues(image),
        }


def image_cues(image: Image.Image) -> dict[str, float]:
    """Return IMAGE_CUES of a decoded picture, each one number for the whole of it.

    Brightness, contrast (standard deviation) and saturation on a scale of 0 to 255, sharpness as
    the variance of the Laplacian (Pech-Pacheco et al. 2000), and the share of the spectrum's energy
    beyond half the highest frequency.
    """
    luma = np.asarray(image.convert("L"), dtype=np.float32)
    energy = np.abs(np.fft.rfft2(luma - luma.mean())) ** 2
    vertical, horizontal = np.fft.fftfreq(luma.shape[0]), np.fft.rfftfreq(luma.shape[1])
    is_high = np.maximum(np.abs(vertical)[:, None], horizontal[None]) > 0.25
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(np.asarray(image.convert("RGB").convert("HSV"))[..., 1].mean()),
        "sharpness": float(ndimage.laplace(luma).var()),
        "high_frequency": float(energy[is_high].sum() / max(energy.sum(), 1e-9)),
    }


def _tables_digest(tables: dict[int, list[int]]) -> str:
    text = str([(number, list(table)) for number, table in sorted(tables.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _libjpeg_tables() -> np.ndarray:
    """Return libjpeg's luminance tables of the qualities 1 to 100, by asking it: int (100, 64)."""
    tables = []
    for quality in range(1, 101):
        buffer = BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            tables.append(image.quantization[0])
    return np.array(tables)


def _jpeg_quality(luminance: list[int]) -> int:
    """Return the quality of libjpeg whose table is the nearest."""
    return 1 + int(np.abs(_libjpeg_tables() - luminance).sum(axis=1).argmin())


class PieceWriter:
    """Writes `images-*.arrow` of about max_bytes at most, and `facts-*.parquet` of whole ones."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.num_pieces = 0
        self.num_bytes = 0
        self.writer: pa.ipc.RecordBatchFileWriter | None = None
        self.facts: list[pa.RecordBatch] = []

    def write(self, batch: list[Packed]) -> None:
        """Append one record batch; starts a new piece where the last one is full."""
        images, facts = zip(*batch, strict=True)
        if self.writer is None:
            path = self.folder / f"images-{self.num_pieces:05d}.arrow"
            self.writer = pa.ipc.new_file(str(path), IMAGE_SCHEMA)
        self.writer.write_batch(image_batch(images))
        self.facts.append(pa.RecordBatch.from_pylist(list(facts), PIECE_SCHEMA))
        self.num_bytes += sum(map(len, images))
        if self.num_bytes >= self.max_bytes or len(self.facts) == BATCHES_PER_PIECE:
            self.close()

    def close(self) -> None:
        """Finish the current piece."""
        if self.writer is None:
            return
        self.writer.close()
        path = self.folder / f"facts-{self.num_pieces:05d}.parquet"
        pq.write_table(pa.Table.from_batches(self.facts), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        self.writer, self.facts, self.num_bytes = None, [], 0
        self.num_pieces += 1


class ImageFile:
    """One of PieceWriter's files of images, read and not mapped: mapped pages count as memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, lengths = [], []
        with pa.memory_map(str(path)) as mapped:
            beginning = mapped.read_buffer().address
            for cells in pa.ipc.open_file(mapped).read_all()["image"].chunks:
                _, offsets, content = cells.buffers()
                ends = np.frombuffer(offsets, np.int32, len(cells) + 1).astype(np.int64)
                starts.append(ends[:-1] + (content.address - beginning))
                lengths.append(np.diff(ends))
        self.starts, self.lengths = np.concatenate(starts), np.concatenate(lengths)

    def read(self, row: int) -> bytes:
        """Return one image's bytes."""
        with self.path.open("rb") as file:
            file.seek(self.starts[row])
            return file.read(self.lengths[row])


class Memory:
    """What earlier runs packed of an image folder, so that only new and changed files are read.

    It lies in `.dvc/tmp/pack` of the main workspace, for DVC removes a stage's outputs before it
    runs; its images are hard links to those of data/packed. A file is taken to be the same where
    its name, size and time of change are. Other code in this module begins a new memory.
    """

    def __init__(self, image_folder: Path) -> None:
        """Find the memory of an image folder; entering it waits for other runs that use it."""
        self.image_folder = image_folder
        root = main_workspace() / ".dvc/tmp/pack"
        images = hashlib.sha256(str(image_folder.resolve()).encode()).hexdigest()[:16]
        self.folder = root / images / sha256_of(Path(__file__))[:16]
        self.new = self.folder / "new"
        self.facts: list[pa.Table] = []
        self.images: list[ImageFile] = []
        self.places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Memory":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder.parent.with_suffix(".lock"))
        self.lock.acquire()
        for code in self.folder.parent.iterdir():
            if code != self.folder:  # its hard links would keep a whole data set
                remove_folder(code)
        for leftover in list(self.folder.glob(".*.gone")):
            shutil.rmtree(leftover)
        olds = sorted(self.folder.glob("old-*"))
        if self.new.exists():  # of an interrupted run
            number = 1 + max((int(old.name[4:]) for old in olds), default=0)
            olds.append(self.new.rename(self.folder / f"old-{number:05d}"))
        for old in olds:
            for path in sorted(old.glob("facts-*.parquet")):
                self._remember(path)
        self.new.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _remember(self, path: Path) -> None:
        facts = pq.read_table(path, schema=PIECE_SCHEMA)
        images = path.with_name(path.name.replace("facts", "images")).with_suffix(".arrow")
        names, errors = facts["img_name"].to_pylist(), facts["error"].to_pylist()
        piece = len(self.facts)
        self.places |= {
            name: (piece, row)
            for row, (name, error) in enumerate(zip(names, errors, strict=True))
            if error is None
        }
        self.facts.append(facts)
        self.images.append(ImageFile(images))

    def recall(self, row: dict[str, Any]) -> Packed | None:
        """Return an image's bytes and facts where its file has not changed since."""
        piece, place = self.places.get(row["img_name"], (None, None))
        if piece is None:
            return None
        (facts,) = self.facts[piece].slice(place, 1).to_pylist()
        try:
            found = (self.image_folder / row["img_name"]).stat()
        except OSError:
            return None
        if (found.st_size, found.st_mtime_ns) != (facts["num_bytes"], facts["mtime_ns"]):
            return None
        return self.images[piece].read(place), facts | row

    def deliver(self, folder: Path) -> None:
        """Put the new pieces into folder, with one facts.parquet, and forget older ones."""
        with pq.ParquetWriter(folder / "facts.parquet", FACTS_SCHEMA) as writer:
            for path in sorted(self.new.glob("facts-*.parquet")):
                writer.write_table(pq.read_table(path, columns=FACTS_SCHEMA.names))
        for path in sorted(self.new.glob("images-*.arrow")):
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:  # another file system
                shutil.copy2(path, folder / path.name)
        self.images.clear()
        for old in list(self.folder.glob("old-*")):
            remove_folder(old)
        self.new.rename(self.folder / "old-00000")
