"""Reading packed images: encoded bytes in memory-mapped Arrow files, one row of facts per image.

A packed set is a folder with `images-00000.arrow`, ... (one column, `image`: the file's bytes as
they were) and `facts.parquet` (see stages/lib/packing.py). Row i of the facts is image i.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
import pyarrow as pa

# Facts that need a decode and say nothing about manipulation: what a lazy detector would learn.
IMAGE_CUES = ("brightness", "contrast", "saturation", "sharpness", "high_frequency")


IMAGE_SCHEMA = pa.schema([("image", pa.binary())])


def image_batch(images: Sequence[bytes]) -> pa.RecordBatch:
    """Return images as a record batch of IMAGE_SCHEMA."""
    return pa.RecordBatch.from_arrays([pa.array(images, pa.binary())], schema=IMAGE_SCHEMA)


class PackedImages:
    """The encoded images of one packed set, by row.

    The files are memory-mapped: opening costs nothing, and processes share the pages.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches: list[pa.Array] = []
        for path in sorted(folder.glob("images-*.arrow")):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            for number in range(reader.num_record_batches):
                self._batches.append(reader.get_batch(number).column(0))
        self._starts = list(accumulate(map(len, self._batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> memoryview:
        """Return the bytes of one encoded image, without copying; raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder} has {len(self)} images, no row {row}")
        batch = bisect_right(self._starts, row) - 1
        content = self._batches[batch][row - self._starts[batch]].as_buffer()
        return memoryview(content).cast("B")  # Arrow's bytes are signed, those of files are not

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[Path]]:
        """Let a DataLoader's worker map the files itself instead of copying the bytes."""
        return PackedImages, (self.folder,)


def read_facts(folder: Path) -> pd.DataFrame:
    """Return the facts of a packed set, one row per listed image, in the list's order."""
    return pd.read_parquet(folder / "facts.parquet")
