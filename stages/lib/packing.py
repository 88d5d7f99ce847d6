"""Packing an image set: the files' bytes into few large ones, and what a look at each one tells."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import imagehash
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from scipy import ndimage

from stages.lib.competition import ImageSet
from stages.lib.packed import IMAGE_CUES
from stages.lib.params import StageParams
from stages.lib.progress import progress_bar

ROWS_PER_BATCH = 256
IMAGE_SCHEMA = pa.schema([("image", pa.binary())])
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


class PackParams(StageParams):
    """Section `pack`."""

    shard_mb: Annotated[int, Field(ge=1)]
    num_threads: Annotated[int, Field(ge=1)]


def pack_images(
    image_set: ImageSet | None, rows: pd.DataFrame | None, folder: Path, params: PackParams
) -> None:
    """Write one set's images and facts into folder; image_set None writes an empty set."""
    with pq.ParquetWriter(folder / "facts.parquet", FACTS_SCHEMA) as facts_writer:
        if image_set is None or rows is None:
            return
        shards = ShardWriter(folder, params.shard_mb * 2**20)
        with progress_bar(f"pack {image_set.name}", len(rows)) as bar:
            for batch in _read_in_batches(image_set, rows, params.num_threads):
                images, facts = zip(*batch, strict=True)
                shards.write(list(images))
                facts_writer.write_batch(pa.RecordBatch.from_pylist(list(facts), FACTS_SCHEMA))
                bar.update(len(batch))
        shards.close()
    print(f"packed {len(rows)} images of {image_set.folder}", flush=True)


def _read_in_batches(
    image_set: ImageSet, rows: pd.DataFrame, num_threads: int
) -> Iterator[list[tuple[bytes, dict[str, Any]]]]:
    """Yield lists of (bytes, facts), in order, reading with several threads."""
    plain = rows.astype(object).where(rows.notna(), None)
    records = (row._asdict() for row in plain.itertuples(index=False))
    with ThreadPoolExecutor(num_threads) as pool:
        while batch := list(islice(records, ROWS_PER_BATCH)):
            yield list(pool.map(lambda row: read_image(image_set.folder, row), batch))


def read_image(folder: Path, row: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return an image file's bytes and facts; a bad file gives b"" and a reason in `error`."""
    try:
        content = (folder / row["img_name"]).read_bytes()
        return content, row | image_facts(content)
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


class ShardWriter:
    """Writes images into Arrow files of about `max_bytes` each."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.num_shards = 0
        self.shard_bytes = 0
        self.writer: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, images: list[bytes]) -> None:
        """Append one record batch; starts a new file where the last one is full."""
        if self.writer is None:
            path = self.folder / f"images-{self.num_shards:05d}.arrow"
            self.writer = pa.ipc.new_file(str(path), IMAGE_SCHEMA)
            self.num_shards += 1
        self.writer.write_batch(
            pa.RecordBatch.from_arrays([pa.array(images, pa.binary())], ["image"])
        )
        self.shard_bytes += sum(map(len, images))
        if self.shard_bytes >= self.max_bytes:
            self.close()

    def close(self) -> None:
        """Finish the current file."""
        if self.writer is not None:
            self.writer.close()
        self.writer, self.shard_bytes = None, 0
