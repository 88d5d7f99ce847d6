"""Time one core making pairs, a real and its pseudo-fake: faces found once or each time.

Run: python -m tests.benchmarks.pairs [--images 40] [--repeats 5]   (from the repository's root)

The baseline finds faces each time. `plain` is the same number of inputs without pseudo-fakes, which
finds each face too. The images are drawn portraits; degradations are off. Rates count inputs, two
for each pair.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.params import load_params
from stages.lib.data.layouts.image_set import ROW_TYPES
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.drawing.photograph import photograph
from stages.lib.drawing.portrait import draw_person
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, PLAIN, Draw
from stages.lib.training.images import TrainingImages
from stages.lib.training.mark_cache import mark_ahead
from stages.lib.training.params import TrainParams
from tests.benchmarks.notebook import MEAN, STD, pack
from tests.benchmarks.race import Rates, race, run_races

INPUT = Preprocessing(image_size=128, interpolation="bilinear", mean=MEAN, std=STD, face_crop=1.1)


def draw_portraits(folder: Path, num_images: int, side: int) -> pd.DataFrame:
    """Write drawn portraits, all of them real, and return their list."""
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(num_images)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        (folder / name).write_bytes(photograph(draw_person(random), "", side, random))
    rows = {"img_name": names, "target": 0}
    return pd.DataFrame(rows, columns=list(ROW_TYPES)).astype(ROW_TYPES)


class Loading:
    """Loads the inputs of all reals of a training set, for another epoch each time."""

    def __init__(self, images: TrainingImages, roles: tuple[int, ...]) -> None:
        self.images, self.roles, self.epoch = images, roles, 0

    def __call__(self) -> None:
        for index in self.images.reals:
            for role in self.roles:
                self.images[Draw(self.epoch, int(index), role)]
        self.epoch += 1


def compare(folder: Path, num_images: int, repeats: int, side: int) -> Rates:
    """Return inputs per second of each repetition, all on one thread."""
    labels = pack(folder, draw_portraits(folder / "photographs", num_images, side))
    params = load_params("train", TrainParams, paths.PARAMS)
    found, kept = (TrainingImages(labels, folder / "packed", INPUT, params) for _ in range(2))
    mark_ahead(kept, num_workers=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {
        "baseline": Loading(found, (PAIR_REAL, PAIR_FAKE)),
        "faces found once": Loading(kept, (PAIR_REAL, PAIR_FAKE)),
        "plain": Loading(found, (PLAIN, PLAIN)),
    }
    rates = race(runs, 2 * len(kept.reals), repeats)
    torch.set_num_threads(threads)
    return rates


if __name__ == "__main__":
    run_races(__doc__, 40, {f"pairs {side} px": partial(compare, side=side) for side in (250, 600)})
