"""The images of the training set: augmented, and in pairs with their pseudo-fakes."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib.core.labels import FAKE, REAL
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing, reencode
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, Draw
from stages.lib.training.face_masks import Source
from stages.lib.training.params import TrainParams
from stages.lib.training.pseudo_fakes import make_pair


class TrainingImages(LabelledImages):
    """The training images, changed at random.

    What happens to an image at random depends only on the seed, the epoch and the image, so the
    numbers of workers and processes change nothing, and both images of a pair are changed alike.
    Every change of the whole image comes after the pseudo-fake is made.
    """

    def __init__(
        self, labels: pd.DataFrame, packed: Path, preprocessing: Preprocessing, params: TrainParams
    ) -> None:
        super().__init__(labels, packed, preprocessing)
        self.params = params
        self.reals = np.flatnonzero(self.targets == REAL)
        self.last_pair: tuple[tuple[int, int], tuple[torch.Tensor, ...]] = (-1, -1), ()

    def __getitem__(  # pyrefly: ignore[bad-override, bad-override-param-name]
        self, draw: Draw
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index)."""
        epoch, index, role = draw
        image, target = self.resized(index), int(self.targets[index])
        if role == PAIR_REAL:
            image, target = self._pair(epoch, index, image)[0], REAL
        if role == PAIR_FAKE:
            image, target = self._pair(epoch, index, image)[1], FAKE
        random = np.random.default_rng([self.params.seed, epoch, index])
        image = reencode(image, self.preprocessing, random)
        return self.params.augmentation.apply(image, random), target, index

    def _pair(self, epoch: int, index: int, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the pair of an image; its real and its fake are loaded one after the other."""
        if self.last_pair[0] != (epoch, index):
            random = np.random.default_rng([self.params.seed, epoch, index, 1])
            pseudo_fakes = self.params.pseudo_fakes
            source = Source(image, pseudo_fakes.face_width, self._draw_real)
            self.last_pair = (epoch, index), make_pair(source, pseudo_fakes.kinds, random)
        return self.last_pair[1]

    def _draw_real(self, random: np.random.Generator) -> torch.Tensor:
        return self.resized(int(random.choice(self.reals)))
