"""What an epoch is drawn from: images, or pairs of a fake and a real, in strata of equal shares."""

import numpy as np
import pandas as pd

from stages.lib.core.labels import FAKE, REAL
from stages.lib.training.params import TrainParams

# Their values make a stratum, by train.balance; else there is only one.
STRATA = {"classes": ["target"], "sources": ["source", "target"]}


def make_strata(
    params: TrainParams, labels: pd.DataFrame, random: np.random.Generator
) -> list[np.ndarray]:
    """Return the images of each stratum, int (N, 1), or its pairs, int (N, 2): rows of the table.

    All strata are drawn equally often. A pair has both classes, so that only sources are left to
    balance.
    """
    if params.paired_batches:
        sources = rows_by(labels, ["source"] if params.balance == "sources" else [])
        return [make_pairs(rows, labels, random) for rows in sources]
    return [rows[:, None] for rows in rows_by(labels, STRATA.get(params.balance, []))]


def make_real_strata(params: TrainParams, labels: pd.DataFrame) -> list[np.ndarray]:
    """Return the reals, int (N, 1), that become pseudo-fakes, in strata like the above."""
    is_real = (labels["target"] == REAL).to_numpy(dtype=bool)
    sources = rows_by(labels, ["source"] if params.balance == "sources" else [])
    return [rows[is_real[rows], None] for rows in sources if is_real[rows].any()]


def make_pairs(rows: np.ndarray, labels: pd.DataFrame, random: np.random.Generator) -> np.ndarray:
    """Return pairs of a fake and a real, in this or the other order, with all these rows in them.

    rows: int (N,). Returns int (M, 2). Both are of one group, as GenD needs them in its training
    set (Yermakov et al. 2025, arXiv 2508.06248): then they differ in little but the manipulation.
    An image whose group has only one class is paired within its source, or else with any image. The
    images of the smaller class come again.
    """
    is_fake = (labels["target"] == FAKE).to_numpy(dtype=bool)
    pairs = []
    for columns in (["group"], ["source"], []):
        numbers = _numbers(labels, columns)
        has_both = (np.bincount(numbers, is_fake) > 0) & (np.bincount(numbers, ~is_fake) > 0)
        is_paired = has_both[numbers[rows]]
        pairs.append(_pair_by_number(numbers, rows[is_paired], is_fake, random))
        rows = rows[~is_paired]
    return random.permuted(np.concatenate(pairs), axis=1)


def _pair_by_number(
    numbers: np.ndarray, rows: np.ndarray, is_fake: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return pairs (fake, real) of one number each, int (M, 2), with all these rows in them.

    numbers, is_fake: of all rows of the table. Of a class that these rows have not, for some
    number, the other rows of the table are taken.
    """
    of_class = [is_fake, ~is_fake]
    size = numbers.max() + 1
    counts = np.max([np.bincount(numbers[rows[one[rows]]], minlength=size) for one in of_class], 0)
    number = np.repeat(np.arange(size), counts)  # of each pair
    place = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    pair = []
    for one in of_class:
        own = rows[one[rows]]
        is_missing = (counts > 0) & (np.bincount(numbers[own], minlength=size) == 0)
        pool = random.permutation(np.append(own, np.flatnonzero(one & is_missing[numbers])))
        pool = pool[np.argsort(numbers[pool], kind="stable")]
        sizes = np.bincount(numbers[pool], minlength=size)
        firsts = np.cumsum(sizes) - sizes
        pair.append(pool[firsts[number] + place % sizes[number]])
    return np.column_stack(pair)


def rows_by(labels: pd.DataFrame, columns: list[str]) -> list[np.ndarray]:
    """Return the rows, int (N,), of each combination of values; a missing value is one, too.

    Without columns all rows are together.
    """
    numbers = _numbers(labels, columns)
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]


def _numbers(labels: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Return the number of the combination of values in each row, int (N,)."""
    if not columns:
        return np.zeros(len(labels), dtype=int)
    return labels.groupby(columns, dropna=False).ngroup().to_numpy()


def in_turn(strata: list[np.ndarray], count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` units, int (count, K), one of each stratum in turn.

    strata: int (N, K). Any run of neighbours has each stratum equally often, give or take one.
    """
    units = np.empty((count, strata[0].shape[1]), dtype=int)
    for place, number in enumerate(random.permutation(len(strata))):
        mine = units[place :: len(strata)]
        mine[:] = repeat(strata[number], len(mine), random)
    return units


def repeat(units: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` of the units in random order; each comes once before one comes again."""
    num_rounds = max(1, -(-count // len(units)))
    return np.concatenate([random.permutation(units) for _ in range(num_rounds)])[:count]
