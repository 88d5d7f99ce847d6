"""What happens to images on their way through the internet, to test the robustness of a detector.

Every perturbation takes a level and a decoded image, uint8 (3, H, W), before it is resized to the
input of the model. Both classes are perturbed alike. The levels go from mild to severe (after
Hendrycks & Dietterich 2019).
"""

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.pixel_operations import (
    PixelOperation,
    blur,
    grey,
    jpeg,
    noise,
    shrink,
    webp,
)
from stages.lib.prediction.variants import inputs_of_variants, variant_table


def crop(image: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    """Keep the middle, this share of both sides."""
    height, width = image.shape[1:]
    return tv.center_crop(image, [round(height * share), round(width * share)])


LEVELS: dict[PixelOperation, list[float]] = {
    jpeg: [95, 85, 70, 50, 30, 10],
    webp: [90, 70, 50, 30],
    blur: [0.5, 1, 2, 3],
    shrink: [224, 128, 96, 64],
    noise: [2, 5, 10, 20],
    crop: [0.9, 0.8, 0.7],
    grey: [1],
}
VARIANTS = [(kind, level) for kind, levels in LEVELS.items() for level in levels]


def variants_of(image: torch.Tensor, index: int) -> list[torch.Tensor]:
    """Return the image unchanged, then every one of VARIANTS.

    index: the number of the image among the chosen ones, which its random draws depend on.
    """
    random = np.random.default_rng([0, index])
    return [image, *(kind(image, level, random) for kind, level in VARIANTS)]


class PerturbedImages(LabelledImages):
    """The images of a label table, each with the inputs of all its variants, from one decoding."""

    num_inputs = 1 + len(VARIANTS)

    def inputs(self, index: int) -> torch.Tensor:
        """Return uint8 (1 + V, 3, S, S)."""
        variants = variants_of(self.decoded_file(index), index)
        return inputs_of_variants(variants, self.preprocessing)


def choose_images(labels: pd.DataFrame, num_images: int) -> pd.DataFrame:
    """Draw labelled images, half of them real where there are enough, and keep their order."""
    half = num_images // 2
    drawn = [
        rows.sample(min(half, len(rows)), random_state=0)
        for _, rows in labels.dropna(subset=["target"]).groupby("target")
    ]
    return pd.concat(drawn).sort_index().reset_index(drop=True)


def perturbed_table(names: pd.Series, logits: np.ndarray) -> pd.DataFrame:
    """Return one row per image and variant; logits: float64 (N, 1 + V)."""
    return variant_table("perturbation", VARIANTS, names, logits)
