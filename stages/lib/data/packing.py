"""Packing an image set: the bytes of its files in a few large files, and one row of facts each."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from stages.lib.core.digests import write_digest
from stages.lib.core.files import open_regular
from stages.lib.data.image_facts import FACTS_SCHEMA, image_facts
from stages.lib.data.layouts.clips import spread
from stages.lib.data.layouts.image_set import ImageSet, is_video
from stages.lib.data.pack_cache import PackCache
from stages.lib.data.params import PackParams
from stages.lib.data.shards import Packed, ShardWriter
from stages.lib.images.decoding import UnusableImage
from stages.lib.images.packed_images import FACTS_FILE
from stages.lib.progress import progress_bar

IMAGES_PER_BATCH = 256
PNG_LEVEL = 1  # of zlib, for frames: three times faster than 6 and 10 % larger
CACHED_FILE = re.compile("(files/md5/)?[0-9a-f]{2}/[0-9a-f]{30}")  # of DVC, version 3 and before


def pack_images(image_set: ImageSet, folder: Path, params: PackParams) -> None:
    """Write the images and facts of one set into folder, of videos the frames.

    Images that an earlier or interrupted run packed are used again. The result has the same bytes.
    """
    rows = choose_frames(image_set.rows, params.frames_per_video)
    num_images, num_cached = 0, 0
    with PackCache(image_set, params) as cache:
        shards = ShardWriter(cache.new, params.shard_mb * 2**20)
        with progress_bar(f"pack {image_set.name}", len(rows)) as bar:
            for batch, num_rows, count in _read_in_batches(image_set, rows, cache, params):
                shards.write(batch)
                num_images += len(batch)
                num_cached += count
                bar.update(num_rows)
        shards.close()
        cache.deliver(folder)
    earlier = f", {num_cached} of them by an earlier run" if num_cached else ""
    print(f"packed {num_images} images of {image_set.folder}{earlier}", flush=True)


def pack_empty_set(folder: Path) -> None:
    """Write the facts of a set without images into folder."""
    pq.write_table(FACTS_SCHEMA.empty_table(), folder / FACTS_FILE)
    write_digest(folder / FACTS_FILE)


def choose_frames(rows: pd.DataFrame, wanted: int) -> pd.DataFrame:
    """Return the rows with at most `wanted` frames, evenly spread, of each video in images.

    The numbers in the names of frames tell their order: 9 comes before 10.
    """
    if rows["video"].isna().all():
        return rows
    in_order = rows.loc[rows["img_name"].map(_number_key).sort_values(kind="stable").index]
    numbers = in_order.groupby("video").cumcount().reindex(rows.index)
    counts = rows.groupby("video")["img_name"].transform("size")
    chosen = [
        pd.isna(count) or number in spread(int(count), wanted)
        for number, count in zip(numbers, counts, strict=True)
    ]
    return rows[chosen].reset_index(drop=True)


def _number_key(name: str) -> str:
    """Return a name in which every number has ten digits, so that text sorts as numbers do."""
    return re.sub(r"\d+", lambda number: number.group().zfill(10), name)


def _read_in_batches(
    image_set: ImageSet, rows: pd.DataFrame, cache: PackCache, params: PackParams
) -> Iterator[tuple[list[Packed], int, int]]:
    """Yield images in order, of how many rows they are, and how many were packed by earlier runs.

    Threads read them.
    """
    has_videos = rows["img_name"].map(is_video).any()
    step = max(1, IMAGES_PER_BATCH // params.frames_per_video) if has_videos else IMAGES_PER_BATCH
    with ThreadPoolExecutor(params.num_threads) as pool:
        for first in range(0, len(rows), step):
            part = rows.iloc[first : first + step]
            batch = part.astype(object).where(part.notna(), None).to_dict("records")
            cached = list(pool.map(cache.find, batch))
            missing = [row for row, images in zip(batch, cached, strict=True) if not images]
            read = pool.map(lambda row: read_file(image_set, row, params), missing)
            packed: list[Packed] = []
            for images in cached:
                packed += images or next(read)
            num_cached = sum(len(images) for images in cached if images)
            yield packed, len(batch), num_cached


def _leaves(folder: Path, path: Path) -> bool:
    """Return whether a file is outside of the folder, by its name or by a link.

    A link in the folder that DVC has put in the place of a file, into its cache, is no way out.
    """
    parent, inside = _real(path.parent.absolute()), _real(folder.absolute())
    if not path.is_symlink():
        return not parent.is_relative_to(inside)
    real = path.resolve()
    if real.is_relative_to(inside):
        return False
    return not (parent.is_relative_to(inside) and _is_cached_by_dvc(real))


@cache
def _real(folder: Path) -> Path:
    return folder.resolve()


def _is_cached_by_dvc(file: Path) -> bool:
    """Return whether a file is one that the cache of this repository has under its digest."""
    cache_folder = dvc_cache()
    return (
        cache_folder is not None
        and file.is_relative_to(cache_folder)
        and CACHED_FILE.fullmatch(file.relative_to(cache_folder).as_posix()) is not None
    )


@cache
def dvc_cache() -> Path | None:
    """Return the folder of DVC's cache, None outside of a repository of DVC.

    DVC's command knows what all its configuration files say. It takes a second, so it is asked
    once, and only where a link leaves the data set.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def read_file(image_set: ImageSet, row: dict[str, Any], params: PackParams) -> list[Packed]:
    """Return bytes and facts of an image, or of the frames of a video.

    A bad one gives one item without bytes, with a reason in the column `error`.
    """
    name, containers = row["img_name"], image_set.containers
    path = image_set.file_of(name)
    try:
        status = path.stat()
        if params.outside == "refuse" and _leaves(image_set.folder, path):
            raise UnusableImage("outside of the data set's folder (see pack.outside)")
        if containers is None and is_video(name):
            images = _frames(path, row, params)
        else:
            content = containers.read(name) if containers else _read_regular(path)
            images = [(content, row | image_facts(content, params.max_pixels, params.find_faces))]
        file_facts = {
            "file": name,
            "file_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "num_frames": len(images),
        }
        return [(content, facts | file_facts) for content, facts in images]
    except FileNotFoundError:
        return [(b"", row | {"error": "no such file"})]
    except UnusableImage as error:
        return [(b"", row | {"error": str(error)})]
    except OSError as error:
        return [(b"", row | {"error": f"unreadable: {error.strerror}"})]


def _read_regular(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _frames(path: Path, row: dict[str, Any], params: PackParams) -> list[Packed]:
    """Return the frames of a video; their format is the codec of the video."""
    from stages.lib.data.videos import read_frames  # here, because it loads FFmpeg

    frames = []
    for frame, codec in read_frames(path, params.frames_per_video, params.max_pixels):
        content = _png(frame.pixels)
        facts = image_facts(content, params.max_pixels, params.find_faces)
        frame_facts = {
            "img_name": f"{row['img_name']}#{frame.number}",
            "video": row["img_name"],
            "frame_seconds": frame.seconds,
            "format": codec,
        }
        frames.append((content, row | facts | frame_facts))
    return frames


def _png(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file: a frame without another loss of quality."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
