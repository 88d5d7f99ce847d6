"""Packing an image set: the bytes of its files in a few large files, and one row of facts each."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from stages.lib.core.packed_images import FACTS_FILE
from stages.lib.core.pictures import UnusableImage
from stages.lib.core.progress import progress_bar
from stages.lib.data.image_facts import FACTS_SCHEMA, image_facts
from stages.lib.data.known_images import KnownImages
from stages.lib.data.layout import ImageSet, file_of
from stages.lib.data.params import PackParams
from stages.lib.data.shards import Packed, ShardWriter

ROWS_PER_BATCH = 256


def pack_images(image_set: ImageSet, rows: pd.DataFrame, folder: Path, params: PackParams) -> None:
    """Write the images and facts of one set into folder; rows: what read_list returns.

    Images that an earlier or interrupted run packed are used again. The result has the same bytes.
    """
    with KnownImages(image_set.folder, params) as known:
        shards = ShardWriter(known.new, params.shard_mb * 2**20)
        with progress_bar(f"pack {image_set.name}", len(rows)) as bar:
            num_known = 0
            for batch, count in _read_in_batches(image_set.folder, rows, known, params):
                shards.write(batch)
                num_known += count
                bar.update(len(batch))
        shards.close()
        known.deliver(folder)
    earlier = f", {num_known} of them by an earlier run" if num_known else ""
    print(f"packed {len(rows)} images of {image_set.folder}{earlier}", flush=True)


def pack_empty_set(folder: Path) -> None:
    """Write the facts of a set without images into folder."""
    pq.write_table(FACTS_SCHEMA.empty_table(), folder / FACTS_FILE)


def _read_in_batches(
    folder: Path, rows: pd.DataFrame, known: KnownImages, params: PackParams
) -> Iterator[tuple[list[Packed], int]]:
    """Yield packed images in order, and how many were known; reads with several threads."""
    with ThreadPoolExecutor(params.num_threads) as pool:
        for first in range(0, len(rows), ROWS_PER_BATCH):
            part = rows.iloc[first : first + ROWS_PER_BATCH]
            batch = part.astype(object).where(part.notna(), None).to_dict("records")
            found = list(pool.map(known.find, batch))
            unknown = [row for row, image in zip(batch, found, strict=True) if not image]
            read = pool.map(lambda row: read_image(folder, row, params), unknown)
            yield [image or next(read) for image in found], len(batch) - len(unknown)


def _leaves(folder: Path, path: Path) -> bool:
    """Return whether a file in the folder is a link to a place outside of it."""
    return path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())


def read_image(folder: Path, row: dict[str, Any], params: PackParams) -> Packed:
    """Return the bytes and facts of an image file; a bad file gives b"" and a reason in `error`."""
    path = file_of(folder, row["img_name"])
    try:
        changed = path.stat().st_mtime_ns
        if params.links == "refuse" and _leaves(folder, path):
            return b"", row | {"error": "a link that leaves its folder (see pack.links)"}
        content = path.read_bytes()
        facts = image_facts(content, params.max_pixels, params.find_faces)
        return content, row | facts | {"mtime_ns": changed}
    except FileNotFoundError:
        return b"", row | {"error": "no such file"}
    except UnusableImage as error:
        return b"", row | {"error": str(error)}
    except OSError as error:
        return b"", row | {"error": f"unreadable: {error.strerror}"}
