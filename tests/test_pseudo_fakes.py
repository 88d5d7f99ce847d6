"""Pseudo-fakes: a pair differs inside of the mask alone, and nothing else gives them away."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from torch.nn.functional import avg_pool2d

from stages.chores.show_pseudo_fakes import pair_with_difference
from stages.lib.core.params import load_params
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.preprocessing import Preprocessing, decode, resize
from stages.lib.drawing.photograph import photograph
from stages.lib.drawing.portrait import draw_person
from stages.lib.training import pseudo_fakes
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, PLAIN, Draw, training_batches
from stages.lib.training.face_masks import Source
from stages.lib.training.marked_image import MarkedImage, mark
from stages.lib.training.params import TrainParams
from stages.lib.training.pseudo_fakes import (
    KINDS,
    Kinds,
    make_pair,
    paste,
)
from tests.conftest import ROOT

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
SIDE = 64
SEEN = Preprocessing(image_size=SIDE, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3)


def face(seed: int) -> torch.Tensor:
    """Return a drawn face, uint8 (3, S, S)."""
    random = np.random.default_rng(seed)
    content = photograph(draw_person(random), "", SIDE, random)
    return resize(decode(content, SEEN).tensor, SEEN)


@cache
def source(seed: int) -> Source:
    """Return what a pair is made of; drawing a face and finding it takes longer than the rest."""
    return Source(mark(face(seed)), PARAMS.pseudo_fakes.face_width)


def only(name: str) -> Kinds:
    return Kinds.model_validate({kind: float(kind == name) for kind in KINDS})


BOTH = Kinds.model_validate(dict.fromkeys(KINDS, 1.0))


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The masks of the pairs that are made, as they come."""
    found: list[torch.Tensor] = []
    real_paste = pseudo_fakes.paste

    def recorded(region: torch.Tensor, base: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found.append(mask)
        return real_paste(region, base, mask)

    monkeypatch.setattr(pseudo_fakes, "paste", recorded)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_pair_differs_inside_of_the_mask_alone(name: str, masks: list[torch.Tensor]) -> None:
    differing = []
    for seed in range(30):
        real, fake = make_pair(source(seed), only(name), np.random.default_rng(seed))
        assert (
            (fake.shape, fake.dtype) == (real.shape, real.dtype) == ((3, SIDE, SIDE), torch.uint8)
        )
        outside = masks[-1].expand(3, -1, -1) == 0
        assert outside.float().mean() > 0.2
        assert torch.equal(real[outside], fake[outside])
        differing.append(float((real != fake).any(dim=0).float().mean()))
        again = make_pair(source(seed), only(name), np.random.default_rng(seed))
        assert torch.equal(again[0], real) and torch.equal(again[1], fake)
    assert np.mean(np.array(differing) > 0.01) > 0.9


@pytest.mark.parametrize("name", KINDS)
def test_a_region_follows_a_face_that_is_not_in_the_middle(
    name: str, masks: list[torch.Tensor]
) -> None:
    random = np.random.default_rng(3)
    pixels = torch.full((3, 256, 256), 128, dtype=torch.uint8)
    face = decode(photograph(draw_person(random), "", 140, random), SEEN)
    pixels[:, 100:240, 110:250] = face.tensor
    real = mark(pixels)
    assert real.face
    found = Source(real, [0.4, 0.5])
    box = [real.face.top, real.face.top + real.face.height,
           real.face.left, real.face.left + real.face.width]  # fmt: skip
    for seed in range(10):
        make_pair(found, only(name), np.random.default_rng(seed))
        y, x = ndimage.center_of_mass(masks[-1][0].numpy())
        assert box[0] < y < box[1] and box[2] < x < box[3]


def test_a_part_is_smaller_than_a_face() -> None:
    changes: dict[str, list[float]] = {name: [] for name in KINDS}
    for name in KINDS:
        for seed in range(40):
            real, fake = make_pair(source(seed), only(name), np.random.default_rng(seed))
            changes[name].append(float((real != fake).any(dim=0).float().mean()))
    assert np.mean(changes["part"]) < 0.6 * np.mean(changes["blend"])


def test_where_no_face_is_found_the_mask_has_the_width_that_was_given(
    masks: list[torch.Tensor],
) -> None:
    pixels = torch.arange(SIDE).mul(3).byte().expand(3, SIDE, SIDE)
    widths = []
    for width in (0.35, 0.7):
        for seed in range(30):
            one = Source(MarkedImage(pixels), [width, width])
            make_pair(one, only("blend"), np.random.default_rng(seed))
        measured = [(mask[0] > 0).any(dim=0).float().mean().item() for mask in masks[-30:]]
        widths.append(np.mean(measured))
    assert widths == pytest.approx([0.35, 0.7], abs=0.06)


def test_pasting_takes_the_region_where_the_mask_is_1() -> None:
    base, region = torch.zeros((3, 8, 8), dtype=torch.uint8), torch.full((3, 8, 8), 200).byte()
    mask = torch.zeros((1, 8, 8))
    mask[:, 2:4], mask[:, 4:6] = 1.0, 0.5
    pasted = paste(region, base, mask)
    assert [int(pasted[0, row, 0]) for row in (1, 3, 5, 7)] == [0, 200, 100, 0]


# ---------------------------------------------------------------------------------------------
# No leak


def outside_features(image: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Return the audit's kind of cues, of the pixels outside of a mask alone."""
    keep = (mask[0] == 0).numpy()
    pixels = image.numpy().astype(float)
    luma = pixels.mean(axis=0)
    laplace = ndimage.laplace(luma)
    return [*(pixels[:, keep].mean(axis=1)), luma[keep].std(), laplace[keep].var(),
            np.abs(luma - ndimage.median_filter(luma, 3))[keep].mean()]  # fmt: skip


def auc_outside(make: Callable[..., tuple[torch.Tensor, ...]], masks: list[torch.Tensor]) -> float:
    """Return the AUC of a classifier that sees what is outside of the dilated mask alone."""
    rows, targets = [], []
    for seed in range(150):
        pair = make(source(seed), BOTH, np.random.default_rng(seed))
        far = torch.from_numpy(ndimage.binary_dilation(masks[-1][0].numpy() > 0, iterations=3))[
            None
        ]
        rows += [outside_features(image, far) for image in pair]
        targets += [0, 1]
    features = np.array(rows)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    scores = cross_val_predict(
        LogisticRegression(), features, targets, cv=5, method="predict_proba"
    )[:, 1]
    return float(roc_auc_score(targets, scores))


def test_nothing_outside_of_the_mask_gives_a_pseudo_fake_away(masks: list[torch.Tensor]) -> None:
    assert abs(auc_outside(make_pair, masks) - 0.5) < 0.07


def leaking(one: Source, kinds: Kinds, random: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Make a pair whose fake is blurred a little, outside of the mask too."""
    real, fake = make_pair(one, kinds, random)
    return real, pseudo_fakes.blur(fake, 0.6, random)


def test_a_leak_is_found(masks: list[torch.Tensor]) -> None:
    assert auc_outside(leaking, masks) > 0.65


class Outside(torch.nn.Module):
    """A small network that sees the high frequencies of images, where a manipulation shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(12, 24, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(24, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images - avg_pool2d(images, 3, stride=1, padding=1))[:, 0]


def network_auc(make: Callable[..., tuple[torch.Tensor, ...]], masks: list[torch.Tensor]) -> float:
    """Train the small network on the outside of 200 pairs, return its AUC on 100 others."""
    torch.manual_seed(0)
    images = []
    for seed in range(300):
        pair = make(source(seed), BOTH, np.random.default_rng(seed))
        far = torch.from_numpy(ndimage.binary_dilation(masks[-1][0].numpy() > 0, iterations=3))
        images += [torch.where(far, 0, image).float() / 16 for image in pair]
    batch, targets = torch.stack(images), torch.tensor([0.0, 1.0] * 300)
    network = Outside()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(12):
        for first in range(0, 400, 40):
            part = slice(first, first + 60)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network(batch[part]), targets[part]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float(roc_auc_score(targets[400:], network(batch[400:])))


def test_a_network_finds_nothing_outside_of_the_mask(masks: list[torch.Tensor]) -> None:
    assert abs(network_auc(make_pair, masks) - 0.5) < 0.08


def test_a_network_finds_a_leak(masks: list[torch.Tensor]) -> None:
    assert network_auc(leaking, masks) > 0.65


# ---------------------------------------------------------------------------------------------
# Batches


def batches(epoch: int, first: float, last: float, hardware: Hardware) -> list[list[Draw]]:
    shares = PARAMS.pseudo_fakes.model_copy(update={"first_share": first, "last_share": last})
    changes = {"pseudo_fakes": shares, "batch_size": 16, "epochs": 5, "accumulate": 2}
    labels = pd.DataFrame({"target": np.arange(96) % 3 % 2})  # a third is fake
    return training_batches(PARAMS.model_copy(update=changes), labels, epoch, hardware)


def alone(rank: int = 0, world_size: int = 1) -> Hardware:
    return Hardware(torch.device("cpu"), False, rank, world_size)


@pytest.mark.parametrize(("epoch", "pairs"), [(0, 0), (2, 4), (4, 8)])
def test_the_share_of_pairs_follows_the_curriculum(epoch: int, pairs: int) -> None:
    micro_batches = batches(epoch, 0.0, 1.0, alone())
    assert [len(batch) for batch in micro_batches] == [8] * 12
    for first, second in zip(micro_batches[::2], micro_batches[1::2], strict=True):
        roles = [draw.role for draw in first + second]
        assert roles.count(PAIR_REAL) == roles.count(PAIR_FAKE) == pairs
        assert roles.count(PLAIN) == 16 - 2 * pairs


def test_a_real_and_its_pseudo_fake_are_side_by_side_in_one_micro_batch() -> None:
    used = []
    for rank in range(2):
        for batch in batches(4, 0.5, 0.5, alone(rank, 2)):
            paired = [(draw.index, draw.role) for draw in batch if draw.role != PLAIN]
            for (real, one), (fake, other) in zip(paired[::2], paired[1::2], strict=True):
                assert (real, one, other) == (fake, PAIR_REAL, PAIR_FAKE)
                assert real % 3 % 2 == 0
                used.append(real)
    assert len(used) == 6 * 4
    assert np.bincount(used).max() == 1


def test_without_pseudo_fakes_the_order_is_what_it_was() -> None:
    draws = [draw for batch in batches(1, 0.0, 0.0, alone()) for draw in batch]
    order = np.random.default_rng([PARAMS.seed, 1]).permutation(96)
    assert draws == [Draw(1, index, PLAIN) for index in order]


def test_the_image_of_all_kinds_shows_a_real_and_what_differs() -> None:
    for kind in KINDS:
        real, fake, difference = pair_with_difference(kind, 0)
        assert real.shape == fake.shape == difference.shape
        assert torch.equal((real != fake), difference > 0)
