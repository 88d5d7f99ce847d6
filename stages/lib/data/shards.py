"""Shards of a packed set: files of images, each with a table of facts, written and read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.lib.core.digests import write_digest
from stages.lib.data.image_facts import FACTS_SCHEMA
from stages.lib.images.packed_images import IMAGE_SCHEMA, image_batch

BATCHES_PER_SHARD = 256  # at most: facts stay in memory until their shard is whole
BATCH_BYTES = 64 * 2**20  # of images in a record batch, which can have 2 GiB at most
# With what tells whether a file has changed since, and whether all its frames are there.
SHARD_SCHEMA = pa.schema(
    [
        *FACTS_SCHEMA,
        ("file", pa.string()),
        ("file_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("num_frames", pa.int32()),  # of the file, 1 of an image
    ]
)
Packed = tuple[bytes, dict[str, Any]]  # the bytes and the facts of one image


def _cut(images: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Cut images into parts of about BATCH_BYTES."""
    part: list[bytes] = []
    size = 0
    for image in images:
        size += len(image)
        if part and size > BATCH_BYTES:
            yield part
            part, size = [], len(image)
        part.append(image)
    yield part


class ShardWriter:
    """Writes `images-*.arrow` of about max_bytes, and `facts-*.parquet` once a shard is whole."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.num_shards = 0
        self.num_bytes = 0
        self.writer: pa.ipc.RecordBatchFileWriter | None = None
        self.facts: list[pa.RecordBatch] = []

    def write(self, batch: list[Packed]) -> None:
        """Append images to one shard; a full one is closed, and the next images start a new one."""
        images, facts = zip(*batch, strict=True)
        if self.writer is None:
            path = self.folder / f"images-{self.num_shards:05d}.arrow"
            self.writer = pa.ipc.new_file(str(path), IMAGE_SCHEMA)
        for part in _cut(images):
            self.writer.write_batch(image_batch(part))
        self.facts.append(pa.RecordBatch.from_pylist(list(facts), SHARD_SCHEMA))
        self.num_bytes += sum(map(len, images))
        if self.num_bytes >= self.max_bytes or len(self.facts) == BATCHES_PER_SHARD:
            self.close()

    def close(self) -> None:
        """Finish the current shard."""
        if self.writer is None:
            return
        self.writer.close()
        path = self.folder / f"facts-{self.num_shards:05d}.parquet"
        pq.write_table(pa.Table.from_batches(self.facts), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        write_digest(path)
        self.writer, self.facts, self.num_bytes = None, [], 0
        self.num_shards += 1


class ImageFile:
    """One `images-*.arrow` of ShardWriter, read by offset: mapped pages would count as memory.

    An Arrow file has a column of binary cells as one buffer of all bytes and one of int32 offsets,
    between which the cells are. With the address of the buffer they give the place of each image in
    the file, so that one seek reads it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, lengths = [], []
        with pa.memory_map(str(path)) as mapped:
            beginning = mapped.read_buffer().address  # buffers are addresses in the mapped file
            for cells in pa.ipc.open_file(mapped).read_all()["image"].chunks:
                _, offsets, content = cells.buffers()
                ends = np.frombuffer(offsets, np.int32, len(cells) + 1).astype(np.int64)
                starts.append(ends[:-1] + (content.address - beginning))
                lengths.append(np.diff(ends))
        self.starts, self.lengths = np.concatenate(starts), np.concatenate(lengths)

    def read(self, row: int) -> bytes:
        """Return the bytes of one image."""
        with self.path.open("rb") as file:
            file.seek(self.starts[row])
            return file.read(self.lengths[row])
