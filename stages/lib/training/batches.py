"""Which images each step of an epoch trains on."""

import numpy as np

from stages.lib.detector.runtime import Hardware
from stages.lib.training.params import TrainParams


def training_batches(
    params: TrainParams, targets: np.ndarray, epoch: int, hardware: Hardware
) -> list[list[tuple[int, int]]]:
    """Return the micro-batches of (epoch, index) of this process for one epoch.

    The order depends on the seed and the epoch alone. The images of each step are shared by the
    processes. The last images, too few for a whole step, are left out of this epoch.
    """
    random = np.random.default_rng([params.seed, epoch])
    if params.class_balance == "sampler":
        weights = 1 / np.bincount(targets)[targets]
        order = random.choice(len(targets), len(targets), p=weights / weights.sum())
    else:
        order = random.permutation(len(targets))
    num_steps = len(order) // params.batch_size
    steps = order[: num_steps * params.batch_size].reshape(num_steps, params.batch_size)
    mine = steps[:, hardware.rank :: hardware.world_size].reshape(
        num_steps * params.num_micro_batches, -1
    )
    return [[(epoch, int(index)) for index in batch] for batch in mine]
