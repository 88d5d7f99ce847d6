"""Packed images and their labels, as training reads them, without DVC."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.packing import PackParams, pack_images
from stages.lib.images.packed_images import read_facts

PARAMS = PackParams(
    shard_mb=512,
    max_megapixels=100.0,
    outside="allow",
    frames_per_video=1,
    find_faces=False,
    num_threads=2,
)


def pack_set(folder: Path, image_set: ImageSet) -> pd.DataFrame:
    """Pack the images of a set into folder/packed/NAME; returns their labels.

    Packing remembers what it has read below the folder that the variable DVC_ROOT names.
    """
    packed = folder / "packed" / image_set.name
    packed.mkdir(parents=True)
    pack_images(image_set, packed, PARAMS)
    rows, digests = image_set.rows, read_facts(packed)["sha256"]
    return rows.assign(row=np.arange(len(rows)), set=image_set.name, sha256=digests)
