"""Reading packed images: encoded bytes in memory-mapped Arrow files, one row of facts per image.

A packed set is a folder with `images-00000.arrow`, ... (one column, `image`: the bytes of the file,
unchanged) and `facts.parquet` (see stages/lib/data/image_facts.py). Row i of the facts is image i.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.lib.core.digests import check_digest
from stages.lib.core.errors import UserError, short

IMAGE_SCHEMA = pa.schema([("image", pa.binary())])
FACTS_FILE = "facts.parquet"
# Types that hold a missing value. By default pandas turns a column of integers with one missing
# value into floats, which lose the low bits of a hash and write 90 as 90.0.
NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


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
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                for number in range(reader.num_record_batches):
                    self._batches.append(reader.get_batch(number).column(0))
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{path}: damaged: {short(error, 100)}; run `dvc repro --force pack`"
                ) from None
        self._starts = list(accumulate(map(len, self._batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> memoryview:
        """Return the bytes of one encoded image without copying them; raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder} has {len(self)} images, no row {row}")
        batch = bisect_right(self._starts, row) - 1
        content = self._batches[batch][row - self._starts[batch]].as_buffer()
        return memoryview(content).cast("B")  # Arrow's bytes are signed, those of files are not

    def labelled(self, row: int, name: str, sha256: str) -> memoryview:
        """Return the bytes of the image that a label table names and has the digest of.

        Raises UserError where there are other bytes: another data set, or damage.
        """
        try:
            content = self[row]
        except IndexError:
            raise UserError(
                f"{self.folder}: {len(self)} images, the labels name row {row}; they are of "
                "different data: run `dvc repro --force prepare`"
            ) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{self.folder}: {short(name)}: not the bytes that the labels name: damaged, or "
                "of different data; run `dvc repro --force prepare`"
            )
        return content

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[Path]]:
        """Let a DataLoader's worker map the files itself instead of copying the bytes."""
        return PackedImages, (self.folder,)


def read_facts(folder: Path) -> pd.DataFrame:
    """Return the facts of a packed set, one row per listed image, in the order of the list.

    Raises UserError where the file is missing or damaged.
    """
    check_digest(folder / FACTS_FILE, "pack")
    return pq.read_table(folder / FACTS_FILE).to_pandas(types_mapper=NULLABLE.get)
