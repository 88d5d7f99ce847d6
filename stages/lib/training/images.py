"""The images of the training set: augmented, and in pairs with their pseudo-fakes."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib.core.labels import FAKE, REAL
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing, reencode
from stages.lib.training.augmentation import Augmentation
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL
from stages.lib.training.pseudo_fakes import PseudoFakes, Source, make_pair


class TrainingImages(LabelledImages):
    """The training images, changed at random.

    A key is (epoch, index, role). What happens to an image at random depends on the seed, the epoch
    and the image alone, so the numbers of workers and processes change nothing, and both of a pair
    are changed alike. Every change of the whole image comes after the pseudo-fake is made.
    """

    def __init__(
        self,
        labels: pd.DataFrame,
        packed: Path,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        pseudo_fakes: PseudoFakes,
        seed: int,
    ) -> None:
        super().__init__(labels, packed, preprocessing)
        self.augmentation = augmentation
        self.pseudo_fakes = pseudo_fakes
        self.reals = np.flatnonzero(self.targets == REAL)
        self.seed = seed
        self.last_pair: tuple[tuple[int, int], tuple[torch.Tensor, ...]] = (-1, -1), ()

    def __getitem__(  # pyrefly: ignore[bad-override-param-name]
        self, key: tuple[int, ...]
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index)."""
        epoch, index, role = key
        image, target = self.resized(index), int(self.targets[index])
        if role in (PAIR_REAL, PAIR_FAKE):
            real, fake = self._pair(epoch, index, image)
            image, target = (real, REAL) if role == PAIR_REAL else (fake, FAKE)
        random = np.random.default_rng([self.seed, epoch, index])
        image = reencode(image, self.preprocessing, random)
        return self.augmentation.apply(image, random), target, index

    def _pair(self, epoch: int, index: int, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the pair of an image. Its two are loaded in turn, so the last pair is kept."""
        if self.last_pair[0] != (epoch, index):
            random = np.random.default_rng([self.seed, epoch, index, 1])
            source = Source(image, self.pseudo_fakes.face_width, self._draw_real)
            self.last_pair = (epoch, index), make_pair(source, self.pseudo_fakes.kinds, random)
        return self.last_pair[1]

    def _draw_real(self, random: np.random.Generator) -> torch.Tensor:
        return self.resized(int(random.choice(self.reals)))
