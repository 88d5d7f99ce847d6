"""The images of the training set: augmented, and in pairs with their pseudo-fakes."""

from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from stages.lib.core.labels import FAKE, REAL
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing, quality_of, reencode, resize
from stages.lib.images.faces import crop_face
from stages.lib.training.augmentation import Change, changed
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, PLAIN, Draw
from stages.lib.training.face_masks import Source
from stages.lib.training.marked_image import MarkedImage, face_in, mark, marked
from stages.lib.training.params import TrainParams
from stages.lib.training.pseudo_fakes import make_pair

LONGEST_SIDE = 1024  # pixels in which a pseudo-fake is made; a larger image is made smaller first


class DevicePixels(Protocol):
    """Where the device has pixels from. Threads may call both methods at the same time."""

    def has(self, index: int) -> bool:
        """Return whether the device has the pixels of an image."""
        ...

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Return the pixels of such images, uint8 (N, 3, S, S), resized, ready on the device."""
        ...


class TrainingImages(LabelledImages):
    """The training images, changed at random.

    What happens to an image at random depends only on the seed, the epoch and the image, so the
    numbers of workers and processes change nothing, and both images of a pair are changed alike.
    Every change of the whole image comes after the pseudo-fake is made.

    A pseudo-fake is made, and degraded, at the pixels of the file, and then resized, as the seam of
    a manipulated photograph is.
    """

    def __init__(
        self, labels: pd.DataFrame, packed: Path, preprocessing: Preprocessing, params: TrainParams
    ) -> None:
        super().__init__(labels, packed, preprocessing)
        self.params = params
        self.reals = np.flatnonzero(self.targets == REAL)
        # Of each image, where they have been found ahead; see stages/lib/training/mark_cache.py:
        self.marks: np.ndarray | None = None
        self.faces: np.ndarray | None = None
        self.on_device: DevicePixels | None = None  # where the device keeps them
        self.last_pair: tuple[tuple[int, int], tuple[torch.Tensor, ...]] = (-1, -1), ()

    def __getitem__(  # pyrefly: ignore[bad-override, bad-override-param-name]
        self, draw: Draw
    ) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (3, S, S), target, index), after all changes."""
        epoch, index, role = draw
        if role == PLAIN:
            image = changed(self.resized(index), self.changes_of(draw))
            return image, int(self.targets[index]), index
        random = np.random.default_rng([self.params.seed, epoch, index])
        image = self._pair(epoch, index)[0 if role == PAIR_REAL else 1]
        image = self.params.augmentation.apply(image, random)
        image = reencode(resize(image, self.preprocessing), self.preprocessing, random)
        return image, FAKE if role == PAIR_FAKE else REAL, index

    def changes_of(self, draw: Draw) -> list[Change]:
        """Return what chance decides about an image that is in no pair with a pseudo-fake."""
        random = np.random.default_rng([self.params.seed, draw.epoch, draw.index])
        side = self.preprocessing.image_size
        quality = quality_of(self.preprocessing, random)
        first = [] if quality is None else [Change("jpeg", np.array([float(quality)]))]
        return first + self.params.augmentation.draw((side, side), random)

    def crop(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return what a detector sees of a decoded image, from its face where that is known."""
        share = self.preprocessing.face_crop
        if self.faces is None or not share:
            return super().crop(image, index)
        face = face_in(self.faces[index])
        return crop_face(image, face, share) if face else image

    def _pair(self, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        """Return the pair of an image; its real and its fake are loaded one after the other."""
        key, pair = self.last_pair
        if key != (epoch, index):
            random = np.random.default_rng([self.params.seed, epoch, index, 1])
            pseudo_fakes = self.params.pseudo_fakes
            source = Source(self.marked_crop(index), pseudo_fakes.face_width)
            pair = make_pair(source, pseudo_fakes.kinds, random)
            self.last_pair = (epoch, index), pair
        return pair

    def marked_crop(self, index: int) -> MarkedImage:
        """Return what a detector sees of an image, not resized to its input, with its marks."""
        pixels, share = self.decoded_file(index), self.preprocessing.face_crop
        image = mark(pixels) if self.marks is None else marked(pixels, self.marks[index])
        return (image.crop(share) if share else image).at_most(LONGEST_SIDE)
