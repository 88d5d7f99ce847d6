"""Degradations: each does what it says, by chance of seed, epoch and image alone."""

import numpy as np
import pytest
import torch

from stages.lib.core.params import load_params
from stages.lib.training.augmentation import FLIPS, OPERATIONS, Augmentation
from stages.lib.training.params import TrainParams
from tests.conftest import ROOT

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml").augmentation
SIDE = 48


def photograph(seed: int = 0) -> torch.Tensor:
    """Return a smooth image with some grain, uint8 (3, S, S)."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand((1, 3, 6, 6), generator=random) * 200 + 20
    image = torch.nn.functional.interpolate(small, size=[SIDE, SIDE], mode="bicubic")[0]
    return (image + 6 * torch.randn((3, SIDE, SIDE), generator=random)).clamp(0, 255).byte()


def only(name: str, probability: float = 1.0, **more: object) -> Augmentation:
    """Return an augmentation in which nothing but one degradation happens."""
    one = getattr(PARAMS, name).model_copy(update={"probability": probability})
    off = {"horizontal_flip": 0.0, "vertical_flip": 0.0}
    return PARAMS.model_copy(update=off | {name: one} | more)


def detail(image: torch.Tensor) -> float:
    """Return the mean difference of neighbouring pixels."""
    return float((image[:, :, 1:].float() - image[:, :, :-1].float()).abs().mean())


def test_params_yaml_names_every_operation() -> None:
    others = {"horizontal_flip", "vertical_flip", "max_ops"}
    assert set(OPERATIONS) == set(Augmentation.model_fields) - others


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_degradation_changes_the_image_and_keeps_its_form(name: str) -> None:
    image = photograph()
    changed = [only(name).apply(image, np.random.default_rng(seed)) for seed in range(6)]
    again = [only(name).apply(image, np.random.default_rng(seed)) for seed in range(6)]
    for one, same in zip(changed, again, strict=True):
        assert (one.shape, one.dtype) == (image.shape, torch.uint8)
        assert torch.equal(one, same)
    assert sum(not torch.equal(one, image) for one in changed) >= 4  # a shift by 0 changes nothing
    assert len({one.numpy().tobytes() for one in changed}) >= 4
    assert torch.equal(only(name, 0.0).apply(image, np.random.default_rng(0)), image)


def test_degradations_do_what_their_names_say() -> None:
    image = photograph()
    random = np.random.default_rng(0)
    assert detail(OPERATIONS["blur"](image, 1.5, random)) < 0.65 * detail(image)
    assert detail(OPERATIONS["rescale"](image, 0.3, random)) < detail(image)
    assert detail(OPERATIONS["noise"](image, 10, random)) > 1.5 * detail(image)
    gone = OPERATIONS["grey"](image, 1.0, random)
    assert torch.equal(gone[0], gone[1]) and torch.equal(gone[1], gone[2])
    erased = OPERATIONS["erase"](image, 0.1, random) != image
    assert 0.05 < float(erased.any(dim=0).float().mean()) < 0.15
    whole = OPERATIONS["crop"](image, 1.0, random)
    assert torch.equal(whole, image)
    moved = OPERATIONS["shift"](image, 0.1, random)
    assert (
        not torch.equal(moved, image)
        and abs(float(moved.float().mean() - image.float().mean())) < 9
    )


def test_at_most_max_ops_change_one_image() -> None:
    certain = {
        name: getattr(PARAMS, name).model_copy(update={"probability": 1.0}) for name in OPERATIONS
    }
    for max_ops in (0, 2, 3):
        augmentation = PARAMS.model_copy(update=certain | {"max_ops": max_ops})
        changes = augmentation.draw((SIDE, SIDE), np.random.default_rng(0))
        assert len({change.name for change in changes} - set(FLIPS)) == max_ops


def test_the_probability_is_that_of_the_degradation() -> None:
    image = photograph()
    augmentation = only("noise", 0.3)
    hits = sum(
        not torch.equal(augmentation.apply(image, np.random.default_rng(seed)), image)
        for seed in range(400)
    )
    assert abs(hits / 400 - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5
