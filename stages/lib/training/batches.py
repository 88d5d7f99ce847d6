"""Which images each step of an epoch trains on, and in which role."""

import numpy as np

from stages.lib.core.labels import REAL
from stages.lib.detector.hardware import Hardware
from stages.lib.training.params import TrainParams

PLAIN, PAIR_REAL, PAIR_FAKE = range(3)  # a role: as it is, or in a pair with its pseudo-fake
Key = tuple[int, int, int]  # epoch, index, role


def training_batches(
    params: TrainParams, targets: np.ndarray, epoch: int, hardware: Hardware
) -> list[list[Key]]:
    """Return the micro-batches of this process for one epoch.

    The order depends on the seed and the epoch alone. The images of each step are shared by the
    processes. The last images, too few for a whole step, are left out of this epoch. With
    pseudo-fakes a part of each micro-batch is pairs, a real and its pseudo-fake side by side, which
    take the place of other images.
    """
    random = np.random.default_rng([params.seed, epoch])
    if params.class_balance == "sampler":
        weights = 1 / np.bincount(targets)[targets]
        order = random.choice(len(targets), len(targets), p=weights / weights.sum())
    else:
        order = random.permutation(len(targets))
    num_steps = len(order) // params.batch_size
    parts = hardware.world_size * params.num_micro_batches  # of a step
    share = params.pseudo_fakes.share(epoch, params.epochs)
    num_pairs = parts * round(share * params.batch_size / parts / 2)
    plain = _dealt(order, num_steps, params.batch_size - 2 * num_pairs, params, hardware)
    reals = _repeated(np.flatnonzero(targets == REAL), num_steps * num_pairs, random)
    pairs = _dealt(reals, num_steps, num_pairs, params, hardware)
    return [
        [(epoch, int(index), PLAIN) for index in alone]
        + [(epoch, int(index), role) for index in paired for role in (PAIR_REAL, PAIR_FAKE)]
        for alone, paired in zip(plain, pairs, strict=True)
    ]


def _dealt(
    order: np.ndarray, num_steps: int, count: int, params: TrainParams, hardware: Hardware
) -> np.ndarray:
    """Return the indices of each micro-batch of this process, `count` per step in all processes."""
    steps = order[: num_steps * count].reshape(num_steps, count)
    mine = steps[:, hardware.rank :: hardware.world_size]
    share = count // (hardware.world_size * params.num_micro_batches)
    return mine.reshape(num_steps * params.num_micro_batches, share)


def _repeated(indices: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` of the indices in random order, all of them before one comes again."""
    if not count:
        return indices[:0]
    rounds = [random.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count]
