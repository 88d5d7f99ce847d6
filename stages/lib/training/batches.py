"""Which images each step of an epoch trains on, and in which role."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from stages.lib.core.errors import UserError
from stages.lib.detector.hardware import Hardware
from stages.lib.training.params import TrainParams
from stages.lib.training.strata import STRATA, in_turn, make_real_strata, make_strata

PLAIN, PAIR_REAL, PAIR_FAKE = range(3)  # a role: unchanged, or in a pair with its pseudo-fake


class Draw(NamedTuple):
    """An image that is drawn for a batch: what decides how TrainingImages changes it."""

    epoch: int  # with each time that the image comes again in it, train.epochs more
    index: int
    role: int


class TrainingSampler(Sampler[list[Draw]]):
    """Yields the micro-batches of this process for one epoch after another."""

    def __init__(self, params: TrainParams, labels: pd.DataFrame, hardware: Hardware) -> None:
        """Take the label table of train; set_epoch must come next."""
        self.params, self.labels, self.hardware = params, labels, hardware
        self.batches: list[list[Draw]] = []  # of the whole epoch
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, and how many of its first micro-batches are left out."""
        self.batches = training_batches(self.params, self.labels, epoch, self.hardware)
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
    if micro_batch % 2 and params.needs_even_batches:
        options = "train.mixup and train.cutmix need"
        if params.paired_batches:
            options = "train.paired_batches needs"
        raise UserError(
            f"train.batch_size = {params.batch_size}: {options} an even micro-batch, not "
            f"{micro_batch}; make it a multiple of {2 * world_size * accumulate}"
        )
    if num_images < params.batch_size:
        raise UserError(
            f"train.batch_size = {params.batch_size} is more than the {num_images} images; lower it"
        )


def training_batches(
    params: TrainParams, labels: pd.DataFrame, epoch: int, hardware: Hardware
) -> list[list[Draw]]:
    """Return the micro-batches of this process for one epoch.

    labels: the label table of train. The order depends only on the seed and the epoch. The images
    of each step are shared by the processes. The last images, too few for a whole step, are left
    out of this epoch. With several strata each micro-batch is as balanced as its size allows. With
    pseudo-fakes a part of each micro-batch is pairs, a real and its pseudo-fake side by side, which
    take the place of other images.
    """
    random = np.random.default_rng([params.seed, epoch])
    num_steps = len(labels) // params.batch_size
    parts = hardware.world_size * params.num_micro_batches  # of a step
    share = params.pseudo_fakes.share(epoch, params.epochs)
    num_pairs = parts * round(share * params.batch_size / parts / 2)
    strata, real_strata = make_strata(params, labels, random), make_real_strata(params, labels)
    num_units = (params.batch_size - 2 * num_pairs) // strata[0].shape[1]
    units = in_turn(strata, num_steps * num_units, random)
    reals = in_turn(real_strata, num_steps * num_pairs, random)
    of_units = _deal(num_steps, num_units, params, hardware, in_runs=len(strata) > 1)
    of_reals = _deal(num_steps, num_pairs, params, hardware, in_runs=len(real_strata) > 1)
    if len(strata) > 1:  # mixup mixes an image with the one at the same place from the other end
        of_units = random.permuted(of_units, axis=1)
    plain = _draws(units, of_units, epoch, params)
    paired = _draws(reals, of_reals, epoch, params)
    batches = []
    for plain_draws, paired_draws in zip(plain, paired, strict=True):
        batch = [Draw(number, index, PLAIN) for number, index in plain_draws]
        for number, index in paired_draws:
            batch += [Draw(number, index, PAIR_REAL), Draw(number, index, PAIR_FAKE)]
        batches.append(batch)
    return batches


def _draws(
    units: np.ndarray, places: np.ndarray, epoch: int, params: TrainParams
) -> list[list[list[int]]]:
    """Return the epoch and the index of each image of each micro-batch.

    units: of the epoch. places: as _deal returns them. An image that comes again has the number of
    an epoch after the last one, so that it is changed anew.
    """
    epochs = np.full_like(units, epoch)
    if params.balance in STRATA or params.paired_batches:
        images = pd.Series(units.ravel())
        again = images.groupby(images).cumcount().to_numpy().reshape(units.shape)
        epochs += params.epochs * again
    draws = np.stack([epochs, units], axis=-1)[places]
    return draws.reshape(len(places), -1, 2).tolist()


def _deal(
    num_steps: int, count: int, params: TrainParams, hardware: Hardware, in_runs: bool
) -> np.ndarray:
    """Return which units of the epoch are in each micro-batch of this process, int (M, N).

    count: units of a step, in all processes. in_runs: each process gets neighbours, for which
    `in_turn` is balanced.
    """
    world_size = hardware.world_size
    steps = np.arange(num_steps * count).reshape(num_steps, count)
    if in_runs:
        mine = steps.reshape(num_steps, world_size, count // world_size)[:, hardware.rank]
    else:
        mine = steps[:, hardware.rank :: world_size]
    share = count // (world_size * params.num_micro_batches)
    return mine.reshape(num_steps * params.num_micro_batches, share)
