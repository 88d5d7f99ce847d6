"""Which images each step of an epoch trains on, and in which role."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from stages.lib.core.errors import UserError
from stages.lib.core.labels import REAL
from stages.lib.detector.hardware import Hardware
from stages.lib.training.params import TrainParams

PLAIN, PAIR_REAL, PAIR_FAKE = range(3)  # a role: unchanged, or in a pair with its pseudo-fake


class Draw(NamedTuple):
    """An image that is drawn for a batch: what decides how TrainingImages changes it."""

    epoch: int
    index: int
    role: int


class TrainingSampler(Sampler[list[Draw]]):
    """Yields the micro-batches of this process for one epoch after another."""

    def __init__(self, params: TrainParams, targets: np.ndarray, hardware: Hardware) -> None:
        """Take the targets of all training images, int (N,); set_epoch must come next."""
        self.params, self.targets, self.hardware = params, targets, hardware
        self.batches: list[list[Draw]] = []  # of the whole epoch
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, and how many of its first micro-batches are left out."""
        self.batches = training_batches(self.params, self.targets, epoch, self.hardware)
        self.skip = skip

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches[self.skip :])

    def __len__(self) -> int:
        return len(self.batches) - self.skip


def check_batch_size(params: TrainParams, num_images: int, world_size: int) -> None:
    """Raise UserError where the images of a step cannot be shared by processes and micro-batches.

    `accumulate: auto` is checked as if it were 1.
    """
    accumulate = 1 if params.accumulate == "auto" else params.accumulate
    micro_batch, rest = divmod(params.batch_size, world_size * accumulate)
    if rest or not micro_batch:
        raise UserError(
            f"train.batch_size = {params.batch_size} cannot be shared by {world_size} processes x "
            f"train.accumulate = {accumulate}; make it a multiple of {world_size * accumulate}"
        )
    if micro_batch % 2 and params.mixes_images:
        raise UserError(
            f"train.batch_size = {params.batch_size}: train.mixup and train.cutmix need an even "
            f"micro-batch, not {micro_batch}; make it a multiple of {2 * world_size * accumulate}"
        )
    if num_images < params.batch_size:
        raise UserError(
            f"train.batch_size = {params.batch_size} is more than the {num_images} images; lower it"
        )


def training_batches(
    params: TrainParams, targets: np.ndarray, epoch: int, hardware: Hardware
) -> list[list[Draw]]:
    """Return the micro-batches of this process for one epoch.

    The order depends only on the seed and the epoch. The images of each step are shared by the
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
    plain = _deal(order, num_steps, params.batch_size - 2 * num_pairs, params, hardware)
    reals = _repeat(np.flatnonzero(targets == REAL), num_steps * num_pairs, random)
    paired = _deal(reals, num_steps, num_pairs, params, hardware)
    batches = []
    for plain_indices, paired_indices in zip(plain.tolist(), paired.tolist(), strict=True):
        batch = [Draw(epoch, index, PLAIN) for index in plain_indices]
        for index in paired_indices:
            batch += [Draw(epoch, index, PAIR_REAL), Draw(epoch, index, PAIR_FAKE)]
        batches.append(batch)
    return batches


def _deal(
    order: np.ndarray, num_steps: int, count: int, params: TrainParams, hardware: Hardware
) -> np.ndarray:
    """Return the indices of each micro-batch of this process, `count` per step in all processes."""
    steps = order[: num_steps * count].reshape(num_steps, count)
    mine = steps[:, hardware.rank :: hardware.world_size]
    share = count // (hardware.world_size * params.num_micro_batches)
    return mine.reshape(num_steps * params.num_micro_batches, share)


def _repeat(indices: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` of the indices in random order; each comes once before one comes again."""
    if not count:
        return indices[:0]
    rounds = [random.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count]
