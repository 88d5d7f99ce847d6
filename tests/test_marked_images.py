"""Marked faces, their cache, and pseudo-fakes at the pixels of the file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy import ndimage

from stages.lib.core.params import load_params
from stages.lib.detector.preprocessing import Preprocessing, decode
from stages.lib.drawing.photograph import photograph
from stages.lib.drawing.portrait import draw_person
from stages.lib.images.packed_images import IMAGE_SCHEMA, image_batch
from stages.lib.training import images as training_images
from stages.lib.training import mark_cache, pseudo_fakes
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, Draw
from stages.lib.training.face_masks import Mask, Source, face_mask, part_mask
from stages.lib.training.images import TrainingImages
from stages.lib.training.mark_cache import mark_ahead
from stages.lib.training.marked_image import MarkedImage, mark, marked, marks_as_row
from stages.lib.training.params import TrainParams
from tests.conftest import ROOT

SIDE, INPUT = 160, 48  # pixels of a file, and of a model's input
PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
PREPROCESSING = Preprocessing(
    image_size=INPUT, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3
)


def content_of(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    return photograph(draw_person(random), "", SIDE, random)


@pytest.fixture(scope="module")
def portrait() -> MarkedImage:
    return mark(decode(content_of(5), PREPROCESSING).tensor)


@pytest.fixture
def labels(tmp_path: Path) -> pd.DataFrame:
    """Six packed portraits in tmp_path/train, two of them fakes."""
    contents = [content_of(seed) for seed in range(6)]
    folder = tmp_path / "train"
    folder.mkdir()
    with pa.ipc.new_file(str(folder / "images-00000.arrow"), IMAGE_SCHEMA) as writer:
        writer.write_batch(image_batch(contents))
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return pd.DataFrame(
        {"img_name": "x.jpg", "target": [0, 0, 1, 0, 1, 0], "set": "train", "row": range(6)}
        | {"sha256": digests}
    )


def images_of(labels: pd.DataFrame, packed: Path, **changes: Any) -> TrainingImages:
    plain = PARAMS.augmentation.model_copy(update={"horizontal_flip": 0.0, "vertical_flip": 0.0})
    params = PARAMS.model_copy(update={"augmentation": plain} | changes)
    return TrainingImages(labels, packed, PREPROCESSING, params)


def test_a_mesh_lies_on_the_face_and_its_parts_are_in_order(portrait: MarkedImage) -> None:
    mesh, face = portrait.mesh, portrait.face
    assert mesh is not None and face is not None
    center = np.array([face.left + face.width / 2, face.top + face.height / 2])
    assert np.abs(mesh.mean(axis=0) - center).max() < 0.25 * face.size
    eyes, nose, lips = mesh[[33, 263], 1].mean(), mesh[1, 1], mesh[[0, 17], 1].mean()
    assert eyes < nose < lips < mesh[152, 1]  # the chin
    assert mesh[33, 0] < mesh[263, 0]


def test_marks_move_with_the_image(portrait: MarkedImage) -> None:
    assert portrait.face and portrait.mesh is not None
    crop = portrait.crop(1.1)
    assert crop.face and crop.mesh is not None
    left, top = portrait.face.left - crop.face.left, portrait.face.top - crop.face.top
    height, width = crop.size
    cut = portrait.pixels[:, round(top) : round(top) + height, round(left) : round(left) + width]
    assert torch.equal(crop.pixels, cut) and height == width < SIDE
    assert np.allclose(crop.mesh, portrait.mesh - [left, top])
    small = portrait.at_most(SIDE // 2)
    assert small.face and small.mesh is not None
    assert small.size == (SIDE // 2, SIDE // 2)
    assert np.allclose(2 * small.mesh, portrait.mesh)
    assert np.allclose(2 * small.face.landmarks, portrait.face.landmarks)
    assert portrait.at_most(SIDE) is portrait


def test_marks_are_the_same_as_numbers(portrait: MarkedImage) -> None:
    again = marked(portrait.pixels, marks_as_row(portrait))
    assert again.face and again.mesh is not None
    assert portrait.face and portrait.mesh is not None
    assert np.allclose(again.mesh, portrait.mesh, atol=1e-4)
    assert again.face.box == portrait.face.box
    nothing = MarkedImage(portrait.pixels)
    assert marked(portrait.pixels, marks_as_row(nothing)) == nothing
    no_mesh = MarkedImage(portrait.pixels, portrait.face)
    assert marked(portrait.pixels, marks_as_row(no_mesh)).mesh is None


@pytest.mark.parametrize("make_mask", [face_mask, part_mask])
@pytest.mark.parametrize("has_mesh", [True, False])
def test_masks_follow_the_face_with_and_without_a_mesh(
    portrait: MarkedImage, make_mask: Callable[..., Mask], has_mesh: bool
) -> None:
    assert portrait.face
    real = portrait if has_mesh else MarkedImage(portrait.pixels, portrait.face)
    source = Source(real, [0.5, 0.5])
    face = portrait.face
    for seed in range(10):
        mask = make_mask(source, np.random.default_rng(seed))
        assert mask.shape == (1, SIDE, SIDE) and 0 < mask.max() <= 1
        y, x = ndimage.center_of_mass(mask[0].numpy())
        assert face.left < x < face.left + face.width and face.top < y < face.top + face.height


def test_a_pair_is_made_at_the_pixels_of_the_file(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[Mask] = []
    real_paste = pseudo_fakes.paste

    def recorded(region: torch.Tensor, base: torch.Tensor, mask: Mask) -> torch.Tensor:
        masks.append(mask)
        return real_paste(region, base, mask)

    monkeypatch.setattr(pseudo_fakes, "paste", recorded)
    noise = {"probability": 1.0, "range": [3.0, 3.0]}
    augmentation = PARAMS.augmentation.model_validate(
        PARAMS.augmentation.model_dump()
        | {"horizontal_flip": 0.0, "vertical_flip": 0.0, "noise": noise}
    )
    images = images_of(labels, tmp_path, augmentation=augmentation)
    for index in images.reals:
        (real, target, _), (fake, other, _) = (
            images[Draw(2, int(index), role)] for role in (PAIR_REAL, PAIR_FAKE)
        )
        assert (target, other) == (0, 1)
        assert real.shape == fake.shape == (3, INPUT, INPUT)
        mask = masks[-1]
        assert mask.shape == (1, SIDE, SIDE)  # of the file, not of the input
        reach = ndimage.binary_dilation(mask[0].numpy() > 0, iterations=6)
        near = torch.nn.functional.adaptive_max_pool2d(
            torch.from_numpy(reach).float()[None], [INPUT, INPUT]
        )[0]
        outside = (near == 0).expand(3, -1, -1)
        assert outside.any() and torch.equal(real[outside], fake[outside])  # the noise, too
        assert not torch.equal(real, fake)


def test_a_pair_of_a_face_crop_is_the_crop_of_the_file(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def recorded(source: Source, *rest: Any) -> tuple[torch.Tensor, ...]:
        sizes.append(source.real.size)
        return pseudo_fakes.make_pair(source, *rest)

    monkeypatch.setattr(training_images, "make_pair", recorded)
    images = images_of(labels, tmp_path)
    images.preprocessing = PREPROCESSING.model_copy(update={"face_crop": 1.1})
    assert images[Draw(0, 0, PAIR_FAKE)][0].shape == (3, INPUT, INPUT)
    ((height, width),) = sizes
    assert INPUT < height == width < SIDE


def test_faces_are_found_once(
    labels: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mark_cache, "main_workspace", lambda: tmp_path)
    without = images_of(labels, tmp_path)
    first, again = images_of(labels, tmp_path), images_of(labels, tmp_path)
    mark_ahead(first, num_workers=0)
    assert "found 4 faces for pseudo-fakes in 4 images" in capfd.readouterr().out
    monkeypatch.setattr(mark_cache, "mark", lambda _: pytest.fail("it looks once more"))
    monkeypatch.setattr(training_images, "mark", lambda _: pytest.fail("it looks once more"))
    mark_ahead(again, num_workers=0)
    kept = [again[Draw(1, 3, role)][0] for role in (PAIR_REAL, PAIR_FAKE)]
    monkeypatch.undo()
    assert all(
        torch.equal(one, without[Draw(1, 3, role)][0])
        for one, role in zip(kept, (PAIR_REAL, PAIR_FAKE), strict=True)
    )
    assert again.marks is not None and not again.marks[labels["target"] == 1].any()


def test_other_reals_have_a_cache_of_their_own_and_few_are_kept(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark_cache, "main_workspace", lambda: tmp_path)
    monkeypatch.setattr(mark_cache, "KEPT", 2)
    for count in (3, 4, 6):
        mark_ahead(images_of(labels.iloc[:count], tmp_path), num_workers=0)
    assert len(list((tmp_path / ".dvc/tmp/marks").glob("*.npy"))) == 2
