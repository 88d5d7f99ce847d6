"""Fitting the distance to the training images, at the end of the training."""

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from stages.lib.detector.dataset import LabelledImages, make_loader
from stages.lib.detector.distance import (
    NUM_NEAREST,
    TrainingDistance,
    early_blocks,
    early_features,
)
from stages.lib.detector.inference import BATCH_SIZE
from stages.lib.detector.model import Detector
from stages.lib.progress import progress_bar
from stages.lib.training.params import TrainParams

MOST_IMAGES = 2000  # of the bank
MOST_DIMENSIONS = 32
BITS = 12  # of the numbers of the projection, so that the last digits of a CPU do not count
LEAST_DEVIATION = 1e-6  # of a feature that is not constant
LEAST_SPREAD = 0.5  # of the median


def fit_distance(
    detector: Detector, images: LabelledImages, params: TrainParams
) -> TrainingDistance | None:
    """Return the distance to training images, or None for a network without early blocks.

    detector: in evaluation mode. images: unaugmented. Computes in fp32.
    """
    if not early_blocks(detector):
        print(f"{params.model} does not return its early blocks: no distance is measured")
        return None
    chosen = choose_evenly(images.labels, MOST_IMAGES, params.seed)
    batches = [
        chosen[first : first + BATCH_SIZE].tolist() for first in range(0, len(chosen), BATCH_SIZE)
    ]
    loader = make_loader(images, batches, params.num_workers, pin=False)
    features = []
    with torch.inference_mode(), progress_bar("distance", len(chosen)) as bar:
        for inputs, _, _ in loader:
            features.append(early_features(detector, inputs.to(detector.device)).cpu())
            bar.update(len(inputs))
    return whiten(torch.cat(features).double().numpy())


def choose_evenly(labels: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    """Draw rows, as many of each source and class as there are; return their numbers, rising."""
    drawn = labels.reset_index(drop=True).sample(frac=1, random_state=seed)
    turns = drawn.groupby(["source", "target"], dropna=False).cumcount()
    return np.sort(turns.sort_values(kind="stable").index.to_numpy()[:count])


def whiten(features: np.ndarray) -> TrainingDistance:
    """Return the distance to images with these features, float64 (N, D), N > 1."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation < LEAST_DEVIATION] = np.inf  # a constant channel says nothing
    centred = features - mean
    dimensions = min(MOST_DIMENSIONS, len(features) - 1, features.shape[1])
    pca = PCA(dimensions, svd_solver="full").fit(centred / deviation)
    axes = np.sqrt(np.maximum(pca.explained_variance_, LEAST_DEVIATION))
    projection = _rounded(pca.components_.T / deviation[:, None] / axes)
    bank = torch.from_numpy(centred @ projection).half()
    return TrainingDistance(
        mean=torch.from_numpy(mean).float(),
        projection=torch.from_numpy(projection).float(),
        bank=bank,
        spread=torch.from_numpy(_spread(bank.double().numpy())).float(),
    )


def _spread(bank: np.ndarray) -> np.ndarray:
    """Return the mean distance of each image to its nearest others, float64 (N, K) to (N,).

    The frames of one video are so near to each other that all else would seem far: LEAST_SPREAD.
    """
    distances = cdist(bank, bank)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : min(NUM_NEAREST, len(bank) - 1)]
    spread = nearest.mean(axis=1)
    return np.maximum(spread, max(LEAST_SPREAD * np.median(spread), LEAST_DEVIATION))


def _rounded(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers with BITS binary digits."""
    mantissas, exponents = np.frexp(numbers)
    return np.ldexp(np.round(mantissas * 2**BITS), exponents - BITS)
