"""The augmentation of whole batches: what is done to one image, with the rounding of floats."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.params import load_params
from stages.lib.training.augmentation import (
    FLIPS,
    INTERPOLATIONS,
    NO_NUMBERS,
    OPERATIONS,
    Change,
    changed,
)
from stages.lib.training.batched_augmentation import (
    BATCHED,
    ON_CPU,
    blurring,
    change_batch,
    grouped,
    resizing,
    split,
)
from stages.lib.training.params import TrainParams
from tests.conftest import ROOT
from tests.test_augmentation import photograph

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml").augmentation
SIDE = 48


def drawn(name: str, seed: int) -> Change:
    """Return one change by chance."""
    if name in FLIPS:
        return Change(name, NO_NUMBERS)
    random = np.random.default_rng(seed)
    level = random.uniform(*getattr(PARAMS, name).range)
    return Change(name, OPERATIONS[name].draw(level, (SIDE, SIDE), random))


def difference(changes: list[list[Change]]) -> torch.Tensor:
    """Return by how many levels a batch differs from its images changed one by one."""
    images = [photograph(seed) for seed in range(len(changes))]
    batch = change_batch(torch.stack(images), grouped(changes))
    assert batch.dtype == torch.uint8
    alone = [changed(image, of_image) for image, of_image in zip(images, changes, strict=True)]
    return (batch.int() - torch.stack(alone).int()).abs()


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_changed_as_its_images_are(name: str) -> None:
    differing = difference([[drawn(name, seed)] for seed in range(24)])
    if name in ("rescale", "crop"):  # the CPU resizes in integers
        assert differing.max() <= 3 and (differing > 1).float().mean() < 0.005
    else:
        assert differing.max() <= 2 and (differing > 0).float().mean() < 0.005


@pytest.mark.parametrize("mode", INTERPOLATIONS)
@pytest.mark.parametrize(("length", "target"), [(48, 13), (48, 47), (13, 48), (30, 30), (1, 48)])
def test_resizing_by_matrices_is_pytorchs(
    mode: InterpolationMode, length: int, target: int
) -> None:
    image = torch.rand((3, length, length))
    numbers = (0, length, target, INTERPOLATIONS.index(mode))
    matrix = resizing(SIDE, *(torch.full((1, 1, 1), float(one)) for one in numbers))[0]
    part = matrix[:target, :length]
    expected = tv.resize(image, [target, target], mode, antialias=mode != InterpolationMode.NEAREST)
    torch.testing.assert_close(part @ image @ part.T, expected, atol=1e-4, rtol=0)
    assert not matrix[target:].any() and not matrix[:, length:].any()


@pytest.mark.parametrize("sigma", [0.3, 1.1, 3.0, 40.0])
def test_blurring_by_matrices_is_torchvisions(sigma: float) -> None:
    image = torch.rand((3, SIDE, SIDE))
    matrix = blurring(SIDE, torch.full((1, 1, 1), sigma))[0]
    radius = min(int(np.ceil(3 * sigma)), SIDE - 1)
    expected = tv.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])
    torch.testing.assert_close(matrix @ image @ matrix.T, expected, atol=1e-4, rtol=0)


def test_colours_change_as_torchvisions_for_all_colours() -> None:
    """Of the 4,096 colours with 16 levels each, under a strong change."""
    levels = torch.arange(0, 256, 17, dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 64, 64)
    for seed in range(6):
        random = np.random.default_rng(seed)
        change = Change("colour", OPERATIONS["colour"].draw(0.5, (64, 64), random))
        batch = change_batch(colours[None], grouped([[change]]))[0]
        differing = (batch.int() - changed(colours, [change]).int()).abs()
        assert differing.max() <= 3 and (differing > 1).float().mean() < 0.01


def test_the_order_of_changes_is_kept() -> None:
    names = ["horizontal_flip", "crop", "colour", "erase", "shift", "blur"]
    some = [[drawn(name, seed) for name in names] for seed in range(6)]
    other = [[change[0], *change[:0:-1]] for change in some]
    none: list[list[Change]] = [[], [drawn("shift", 3)]]
    assert difference(some + other + none).float().mean() < 0.5
    images = torch.stack([photograph()] * 2)
    there, back = change_batch(images, grouped([some[0], other[0]]))
    assert (there.int() - back.int()).abs().float().mean() > 1


def test_what_the_cpu_has_to_do_comes_first() -> None:
    changes = [Change(name, NO_NUMBERS) for name in ("horizontal_flip", "blur", "webp", "crop")]
    assert [change.name for change in split(changes)[0]] == ["horizontal_flip", "blur", "webp"]
    assert [change.name for change in split(changes)[1]] == ["crop"]
    assert split(changes[:2]) == ([], changes[:2])
    assert split(changes[:3]) == (changes[:3], [])
    assert {*BATCHED, *ON_CPU} == {*FLIPS, *OPERATIONS} and not {*BATCHED} & {*ON_CPU}
