"""What the training images were like: what the config.json of a detector says of them."""

import numpy as np
import pandas as pd

from stages.lib.core.labels import FAKE
from stages.lib.core.schema import TrainingFakes, TrainingSummary
from stages.lib.training.augmentation import Augmentation

LEAST = 0.5  # share of the images that must have a quality, or a face, to count


def summarise_images(labels: pd.DataFrame, augmentation: Augmentation) -> TrainingSummary:
    """Return the ranges of size, JPEG quality and face, and what the fakes are.

    labels: a table of LABEL_TYPES.
    """
    side = labels[["width", "height"]].min(axis=1)
    quality = labels["jpeg_quality"].dropna()
    face = labels["face"][labels["face"] > 0]
    summary = TrainingSummary(
        num_images=len(labels),
        side=_range(side),
        jpeg_quality=None,
        face=None,
        face_margin=None,
        sources=labels["source"].value_counts(sort=False).to_dict(),
        fakes=_fakes(labels[labels["target"] == FAKE]),
    )
    if len(quality) >= LEAST * len(labels):
        lowest, highest = _range(quality)
        if augmentation.jpeg.probability:
            lowest = min(lowest, int(augmentation.jpeg.range[0]))
        summary = summary.model_copy(update={"jpeg_quality": (lowest, highest)})
    if len(face) >= LEAST * len(labels):
        margin = round(float((side[face.index] / face).median()), 3)
        summary = summary.model_copy(update={"face": _range(face), "face_margin": margin})
    return summary


def _fakes(labels: pd.DataFrame) -> tuple[TrainingFakes, ...]:
    """Return the manipulation methods and sources of fakes, the most frequent first."""
    names = ["family", "source"]
    counts = labels[names].fillna("").groupby(names).size()
    frequent = counts.sort_values(ascending=False, kind="stable")
    return tuple(
        TrainingFakes(family=family or None, source=source or None, num_images=count)
        for (family, source), count in frequent.items()
    )


def _range(numbers: pd.Series) -> tuple[int, int]:
    """Return the first and the last percentile, rounded to the outside."""
    low, high = np.quantile(numbers.astype(float), [0.01, 0.99])
    return int(np.floor(low)), int(np.ceil(high))
