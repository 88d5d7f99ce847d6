"""Random changes of training images, the same for both classes."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import StageParams

Probability = Annotated[float, Field(ge=0, le=1)]


class Augmentation(StageParams):
    """Section `train.augmentation`: the probability of each change."""

    horizontal_flip: Probability
    vertical_flip: Probability

    def apply(self, image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """Return the changed image, uint8 (3, S, S)."""
        if random.random() < self.horizontal_flip:
            image = tv.horizontal_flip(image)
        if random.random() < self.vertical_flip:
            image = tv.vertical_flip(image)
        return image
