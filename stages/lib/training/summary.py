"""What the training images were like: what the config.json of a detector says of them."""

import numpy as np
import pandas as pd

from stages.lib.core.schema import TrainingSummary
from stages.lib.training.augmentation import Augmentation

LEAST = 0.5  # share of the images that must have a quality, or a face, to count


def summarise_images(labels: pd.DataFrame, augmentation: Augmentation) -> TrainingSummary:
    """Return the ranges of size, JPEG quality and face; labels: a table of LABEL_TYPES."""
    side, quality = labels[["width", "height"]].min(axis=1), labels["jpeg_quality"].dropna()
    face = labels["face"][labels["face"] > 0]
    are_jpegs, have_faces = (len(one) >= LEAST * len(labels) for one in (quality, face))
    qualities = _range(quality) if are_jpegs else None
    if qualities and augmentation.jpeg.probability:
        qualities = min(qualities[0], int(augmentation.jpeg.range[0])), qualities[1]
    margin = (side[face.index] / face).median() if have_faces else None
    return TrainingSummary(
        num_images=len(labels),
        side=_range(side),
        jpeg_quality=qualities,
        face=_range(face) if have_faces else None,
        face_margin=round(float(margin), 3) if margin else None,
    )


def _range(numbers: pd.Series) -> tuple[int, int]:
    """Return the first and the last percentile, rounded to the outside."""
    low, high = np.quantile(numbers.astype(float), [0.01, 0.99])
    return int(np.floor(low)), int(np.ceil(high))
