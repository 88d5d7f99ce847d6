"""What is drawn for the steps of an epoch: evenly over sources and classes, and in pairs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.detector.hardware import Hardware
from stages.lib.training.batches import (
    PAIR_FAKE,
    PAIR_REAL,
    PLAIN,
    Draw,
    TrainingSampler,
    check_batch_size,
    training_batches,
)
from stages.lib.training.params import TrainParams
from stages.lib.training.reporting import print_sources
from stages.lib.training.strata import in_turn
from tests.conftest import ROOT

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
BALANCES = ("none", "classes", "sources")


def params_with(**changes: Any) -> TrainParams:
    return TrainParams.model_validate(PARAMS.model_dump() | changes)


def with_pseudo_fakes(share: float, **changes: Any) -> TrainParams:
    shares = {"first_share": share, "last_share": share}
    return params_with(pseudo_fakes=PARAMS.pseudo_fakes.model_dump() | shares, **changes)


def alone(rank: int = 0, world_size: int = 1) -> Hardware:
    return Hardware(torch.device("cpu"), False, rank, world_size)


def table(*parts: tuple[str | None, int, int, int]) -> pd.DataFrame:
    """Return a label table; parts: source, target, number of images, number of the first group."""
    rows = [
        {"source": source, "target": target, "group": first + number}
        for source, target, count, first in parts
        for number in range(count)
    ]
    return pd.DataFrame(rows).astype({"source": "str", "target": "Int8"})


# Sources of other sizes and shares of fakes; in the last one each real has three fakes.
PARTS = [("lfw", 0, 150, 0), ("lfw", 1, 50, 500), ("dfdc", 0, 12, 1000), ("dfdc", 1, 12, 1000)]
SOURCES = table(*PARTS, ("ff", 0, 20, 2000), *[("ff", 1, 20, 2000)] * 3)
CELLS = SOURCES.groupby(["source", "target"]).ngroup().to_numpy()  # even: of reals


def counts_of_cells(draws: list[Draw]) -> np.ndarray:
    """Return how many of the draws each source and class has, int (6,)."""
    return np.bincount(CELLS[[draw.index for draw in draws]], minlength=6)


def joined(batches: list[list[Draw]]) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def test_without_balance_the_batches_are_what_they_were() -> None:
    """Indices by share of pseudo-fakes, accumulate, rank, number of processes and epoch."""
    labels = pd.DataFrame({"target": np.arange(13) % 3 % 2})
    expected = {
        (0.0, 1, 0, 1, 0): [[6, 8, 0, 7], [4, 1, 10, 3], [12, 2, 5, 9]],
        (0.0, 1, 1, 2, 3): [[5, 4], [8, 12], [0, 9]],
        (0.0, 2, 0, 1, 3): [[7, 5], [2, 4], [11, 8], [3, 12], [10, 0], [1, 9]],
        (0.5, 1, 0, 1, 2): [[1, 11, 12, 12], [4, 3, 11, 11], [5, 0, 9, 9]],
        (1.0, 1, 0, 1, 1): [[6, 6, 3, 3], [0, 0, 12, 12], [5, 5, 11, 11]],
        (1.0, 1, 1, 2, 1): [[3, 3], [12, 12], [11, 11]],
    }
    for (share, accumulate, rank, world_size, epoch), indices in expected.items():
        for balance in ("none", "weights"):
            params = with_pseudo_fakes(
                share, balance=balance, batch_size=4, accumulate=accumulate, seed=7
            )
            batches = training_batches(params, labels, epoch, alone(rank, world_size))
            assert [[draw.index for draw in batch] for batch in batches] == indices
            assert {draw.epoch for draw in joined(batches)} == {epoch}
            paired = {draw.index for draw in joined(batches) if draw.role != PLAIN}
            assert bool(paired) == bool(share)


@pytest.mark.parametrize("batch_size", [12, 15, 32, 4])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_each_class_of_each_source_is_drawn_equally_often(batch_size: int, share: float) -> None:
    params = with_pseudo_fakes(share, balance="sources", batch_size=batch_size)
    batches = training_batches(params, SOURCES, 2, alone())
    assert len(joined(batches)) == len(SOURCES) // batch_size * batch_size
    for step in [joined(batches), *batches]:
        assert np.ptp(counts_of_cells([draw for draw in step if draw.role == PLAIN])) <= 1
        reals = [draw for draw in step if draw.role == PAIR_REAL]
        assert bool(reals) == bool(share)
        assert np.ptp(counts_of_cells(reals)[::2]) <= 1


@pytest.mark.parametrize("balance", BALANCES)
def test_no_image_comes_again_before_all_of_its_kind_have_come(balance: str) -> None:
    params = params_with(balance=balance, batch_size=12)
    draws = joined(training_batches(params, SOURCES, 0, alone()))
    counts = np.bincount([draw.index for draw in draws], minlength=len(SOURCES))
    kinds = CELLS if balance == "sources" else SOURCES["target"].to_numpy()
    for kind in np.unique(kinds):
        assert np.ptp(counts[kinds == kind]) <= 1


def test_an_image_that_comes_again_is_changed_anew() -> None:
    params = params_with(balance="sources", batch_size=12, epochs=5)
    draws = [joined(training_batches(params, SOURCES, epoch, alone())) for epoch in (0, 1)]
    together = draws[0] + draws[1]
    assert len(set(together)) == len(together)
    assert {draw.epoch % 5 for draw in draws[1]} == {1}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (2, 3), (3, 2)])
def test_processes_share_each_step(
    balance: str, paired: bool, world_size: int, accumulate: int
) -> None:
    options = {"balance": balance, "paired_batches": paired, "batch_size": 24}
    whole = training_batches(with_pseudo_fakes(0.5, **options), SOURCES, 1, alone())
    params = with_pseudo_fakes(0.5, accumulate=accumulate, **options)
    dealt = [
        training_batches(params, SOURCES, 1, alone(rank, world_size)) for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        micro = slice(step * accumulate, (step + 1) * accumulate)
        parts = [part for batches in dealt for part in batches[micro]]
        assert {len(part) for part in parts} == {24 // (world_size * accumulate)}
        assert sorted(joined(parts)) == sorted(batch)
        if balance == "sources":
            for part in parts:
                plain = [draw for draw in part if draw.role == PLAIN]
                assert paired or np.ptp(counts_of_cells(plain)) <= 1


def pairs_of(batch: list[Draw]) -> list[tuple[pd.Series, pd.Series]]:
    """Return neighbours that are no pseudo-fakes, as rows of the table: (fake, real)."""
    plain = [SOURCES.loc[draw.index] for draw in batch if draw.role == PLAIN]
    pairs = []
    for one, other in zip(plain[::2], plain[1::2], strict=True):
        pairs.append((one, other) if one["target"] else (other, one))
    return pairs


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("balance", BALANCES)
def test_a_fake_and_a_real_of_one_group_are_neighbours(balance: str, share: float) -> None:
    options = {"balance": balance, "paired_batches": True, "batch_size": 24, "accumulate": 2}
    pairs = []
    for rank in range(2):
        params = with_pseudo_fakes(share, **options)
        batches = training_batches(params, SOURCES, 4, alone(rank, 2))
        assert {len(batch) for batch in batches} == {6}
        for batch in batches:
            pairs += pairs_of(batch)
            pseudo = [(draw.index, draw.role) for draw in batch if draw.role != PLAIN]
            assert pseudo == [
                (index, role) for index, _ in pseudo[::2] for role in (PAIR_REAL, PAIR_FAKE)
            ]
    for fake, real in pairs:
        assert (fake["target"], real["target"]) == (1, 0)
        assert fake["source"] == real["source"]
        assert fake["group"] == real["group"] or fake["source"] == "lfw"
    if balance == "sources":
        counts = pd.Series([fake["source"] for fake, _ in pairs]).value_counts()
        assert len(counts) == 3 and np.ptp(counts) <= 1


def test_pairs_have_all_images_over_the_epochs_in_either_order() -> None:
    params = params_with(paired_batches=True, batch_size=12)
    draws = joined(
        [b for epoch in range(12) for b in training_batches(params, SOURCES, epoch, alone())]
    )
    assert {draw.index for draw in draws} == set(SOURCES.index)
    first = SOURCES["target"][[draw.index for draw in draws[::2]]]
    assert 0.4 < first.mean() < 0.6


def test_where_a_source_has_one_class_the_partner_is_of_another() -> None:
    """A source of fakes has its share; a fake without a source is found by its group."""
    labels = table(("a", 0, 8, 0), ("a", 1, 8, 0), ("gan", 1, 4, 100), (None, 1, 3, 1))
    for balance in BALANCES:
        params = params_with(balance=balance, paired_batches=True, batch_size=6)
        for epoch in range(4):
            for batch in training_batches(params, labels, epoch, alone()):
                for one, other in zip(batch[::2], batch[1::2], strict=True):
                    rows = labels.loc[[one.index, other.index]].sort_values("target")
                    assert rows["target"].tolist() == [0, 1]
                    fake = rows.iloc[1]
                    assert rows["source"].iloc[0] == "a"
                    assert rows["group"].nunique() == 1 or fake["source"] == "gan"
    batches = training_batches(params_with(balance="sources", batch_size=4), labels, 0, alone())
    drawn = labels.loc[[draw.index for draw in joined(batches)]]
    assert drawn.value_counts(["source", "target"], dropna=False).tolist() == [5] * 4


def test_an_epoch_is_drawn_again_from_its_seed_and_number() -> None:
    for balance in BALANCES:
        for paired in (False, True):
            params = params_with(balance=balance, paired_batches=paired, batch_size=12, seed=3)
            first, again, later = (
                training_batches(params, SOURCES, epoch, alone()) for epoch in (1, 1, 2)
            )
            other = params.model_copy(update={"seed": 4})
            assert first == again != later
            assert first != training_batches(other, SOURCES, 1, alone())
            sampler = TrainingSampler(params, SOURCES, alone())
            sampler.set_epoch(1, skip=5)
            assert list(sampler) == first[5:]


def test_mixup_mixes_any_strata() -> None:
    """It mixes the first image of a micro-batch with its last one, and so on."""
    params = params_with(balance="sources", batch_size=12)
    mixed = set()
    for epoch in range(3):
        for batch in training_batches(params, SOURCES, epoch, alone()):
            targets = SOURCES["target"][[draw.index for draw in batch]].tolist()
            mixed |= set(zip(targets, targets[::-1], strict=True))
    assert len(mixed) == 4


def test_every_run_of_units_is_balanced() -> None:
    strata = [np.arange(count)[:, None] + 100 * number for number, count in enumerate((3, 7, 50))]
    units = in_turn(strata, 100, np.random.default_rng(0))[:, 0] // 100
    for length in (1, 2, 3, 7, 30):
        for first in range(100 - length):
            assert np.ptp(np.bincount(units[first : first + length], minlength=3)) <= 1


@pytest.mark.parametrize(("batch_size", "accumulate", "multiple"), [(10, 2, 4), (9, 1, 2)])
def test_pairs_need_an_even_micro_batch(batch_size: int, accumulate: int, multiple: int) -> None:
    params = params_with(paired_batches=True, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(UserError) as error:
        check_batch_size(params, 100, world_size=1)
    assert str(error.value) == (
        f"train.batch_size = {batch_size}: train.paired_batches needs an even micro-batch, not "
        f"{batch_size // accumulate}; make it a multiple of {multiple}"
    )
    check_batch_size(params_with(paired_batches=True, batch_size=12, accumulate=2), 100, 3)


def test_weights_are_refused_with_pairs() -> None:
    with pytest.raises(ValueError, match="balance = weights: with train.paired_batches"):
        params_with(balance="weights", paired_batches=True)


def test_the_log_has_a_line_for_each_source(capsys: pytest.CaptureFixture[str]) -> None:
    print_sources(table(("a", 0, 3, 0), ("a", 1, 2, 0), ("gan", 1, 4, 0), (None, 0, 1, 0)))
    assert capsys.readouterr().out.splitlines() == [
        "  a: 3 real, 2 fake",
        "  gan: 0 real, 4 fake, no real images",
        "  without a source: 1 real, 0 fake, no fake images",
    ]
    print_sources(table(("a", 0, 3, 0), ("a", 1, 2, 0)))
    assert not capsys.readouterr().out
