"""Faces: found in drawn portraits, cropped alike wherever a model sees an image."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from stages import pack, predict, prepare, train
from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.labels import read_labels
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing, resize
from stages.lib.drawing.portrait import draw_person, portrait
from stages.lib.images import faces
from stages.lib.images.faces import crop_largest_face, find_faces, largest_face, smallest_found
from stages.lib.training.decode_cache import decode_ahead
from tests.conftest import change_preprocessing, set_params

SEEDS = range(8)
CROPPED = Preprocessing(
    image_size=64, interpolation="bicubic", mean=[0.5] * 3, std=[0.2] * 3, face_crop=1.1
)


def drawn(seed: int, size: int = 200) -> torch.Tensor:
    """Return a drawn portrait, uint8 (3, S, S)."""
    photo = portrait(draw_person(np.random.default_rng(seed)), size).clip(0, 255)
    return torch.from_numpy(photo.astype(np.uint8)).permute(2, 0, 1)


@pytest.fixture
def portraits(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose images show drawn faces, prepared to train."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    for seed, file in enumerate(sorted((workspace / "drawn").rglob("*.jpg"))):
        tv.to_pil_image(drawn(seed, 100)).save(file)
    changes = {"data.root": "drawn", "prepare.near_duplicate_bits": 0, "train.epochs": 1}
    set_params(workspace, changes)
    pack.main()
    prepare.main()
    return workspace


@pytest.mark.parametrize("seed", SEEDS)
def test_a_face_is_found_where_it_was_drawn(seed: int) -> None:
    person = draw_person(np.random.default_rng(seed))
    (face,) = find_faces(drawn(seed))
    assert abs(face.left + face.width / 2 - 200 * person.center[0]) < 16
    assert abs(face.top + face.height / 2 - 200 * person.center[1]) < 26
    assert 0.7 < face.height / (2 * 200 * person.face[1]) < 1.2
    right_eye, left_eye, nose, *mouth = face.landmarks
    assert right_eye[0] < nose[0] < left_eye[0]  # the right eye of the person
    assert right_eye[1] < nose[1] < min(corner[1] for corner in mouth)


def test_the_largest_face_comes_first_and_is_cropped() -> None:
    small, large = drawn(0, 150), drawn(1, 300)
    both = torch.full((3, 300, 450), 128, dtype=torch.uint8)
    both[:, 75:225, :150], both[:, :, 150:] = small, large
    first, second = find_faces(both)
    assert first.width > 1.5 * second.width
    assert first.left > 150 > second.left + second.width
    assert crop_largest_face(both, 1.1).shape[1] == round(1.1 * first.size)


def photograph(width: int, height: int, places: dict[int, tuple[int, int, int]]) -> torch.Tensor:
    """Return a grey image with drawn portraits; places: left, top and size by their seeds."""
    photo = torch.full((3, height, width), 110, dtype=torch.uint8)
    for seed, (left, top, size) in places.items():
        photo[:, top : top + size, left : left + size] = drawn(seed, size)
    return photo


def test_small_faces_are_found_in_a_large_photograph() -> None:
    places = {seed: (200 + 600 * place, 300, 100) for place, seed in enumerate((1, 4, 8, 9, 11))}
    photo = photograph(3840, 800, places)
    assert len(find_faces(photo, small=False)) <= 1
    found = sorted(find_faces(photo), key=lambda face: face.left)
    for face, (left, top, size) in zip(found, places.values(), strict=True):
        assert left < face.left and face.left + face.width < left + size
        assert abs(face.top + face.height / 2 - top - size / 2) < 0.2 * size
        assert 0.5 * size < face.size < size


def test_small_faces_are_found_beside_a_large_one_and_none_twice() -> None:
    small = {seed: (900 + 110 * seed, 100, 90) for seed in (1, 2, 5, 10, 12)}
    photo = photograph(2400, 1000, {0: (0, 0, 1000)} | small)
    large, *_ = find_faces(photo, small=False)
    first, *others = find_faces(photo)
    assert len(others) == 5 and max(face.size for face in others) < 90 < large.size
    largest = largest_face(photo)
    assert largest and first.box == large.box == largest.box


def test_a_small_image_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = faces._look
    monkeypatch.setattr(faces, "_look", lambda image, side: looks.append(side) or real(image, side))
    for size, count in ((640, 1), (641, 2)):
        looks.clear()
        photo = drawn(1, size)
        (face,) = find_faces(photo)
        assert face.score > 0.8 and len(looks) == count


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        ((640, 480), 0),
        ((1200, 2560), 0),
        ((4000, 3000), 50),
        ((3000, 4000), 50),
        ((8000, 6000), 100),
    ],
)
def test_what_is_not_looked_for_is_known(size: tuple[int, int], pixels: int) -> None:
    assert smallest_found(*size) == pixels


@pytest.mark.parametrize("size", [100, 200, 1500])
def test_the_face_fills_the_crop_whatever_the_size_of_the_image(size: int) -> None:
    photo = drawn(2, size)
    face = find_faces(photo)[0]
    for share in (1.1, 1.3):
        crop = crop_largest_face(photo, share)
        assert crop.shape[1] == crop.shape[2] == round(share * face.size)
        inside = find_faces(tv.resize(crop, [200, 200], antialias=True))[0]
        assert inside.size / 200 == pytest.approx(1 / share, abs=0.12)


def test_the_crop_stays_within_the_image() -> None:
    photo = drawn(3)
    assert torch.equal(crop_largest_face(photo, 9), photo)
    wide = torch.cat([photo, torch.zeros(3, 200, 100, dtype=torch.uint8)], dim=2)
    assert torch.equal(crop_largest_face(wide, 9), wide[:, :, :200])


def test_a_image_without_a_face_is_seen_whole() -> None:
    for photo in (torch.full((3, 90, 120), 77, dtype=torch.uint8), drawn(0)[:, 150:]):
        assert find_faces(photo) == []
        assert torch.equal(crop_largest_face(photo, 1.1), photo)
    for size in ((3, 1, 1), (3, 1, 700), (3, 2000, 1), (3, 32, 90)):
        assert find_faces(torch.zeros(size, dtype=torch.uint8)) == []


def test_threads_get_the_faces_of_one_after_the_other() -> None:
    images = [drawn(seed, 120 + 20 * seed) for seed in SEEDS]
    alone = [crop_largest_face(photo, 1.1) for photo in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: crop_largest_face(photo, 1.1), images * 3))
    assert all(map(torch.equal, together, alone * 3))


def test_every_reader_of_images_crops_alike(portraits: Path) -> None:
    labels = read_labels(paths.LABELS / "val.csv")
    images = LabelledImages(labels, paths.PACKED, CROPPED)
    seen = [images[index][0] for index in range(len(labels))]
    whole = CROPPED.model_copy(update={"face_crop": None})
    for index, one in enumerate(seen):
        file = images.decoded_file(index)
        assert torch.equal(one, resize(crop_largest_face(file, 1.1), whole))
        assert not torch.equal(one, resize(file, whole))
    assert decode_ahead({"val": images}, 1, num_workers=2)
    assert all(torch.equal(images[index][0], one) for index, one in enumerate(seen))


def test_a_model_is_used_with_the_crop_that_it_was_trained_with(portraits: Path) -> None:
    set_params(portraits, {"train.face_crop": 1.1, "predict.robustness_images": 0})
    train.main()
    assert json.loads(paths.CONFIG.read_text())["preprocessing"]["face_crop"] == 1.1
    predict.main()
    cropped = pd.read_csv(paths.SCORES / "val.csv")["score"]
    change_preprocessing(portraits, face_crop=None)
    predict.main()
    assert (pd.read_csv(paths.SCORES / "val.csv")["score"] != cropped).all()


def test_scaled_decoding_would_lose_the_face(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    set_params(workspace, {"train.face_crop": 1.1, "train.scaled_decoding": True})
    with pytest.raises(UserError, match=r"train\.scaled_decoding .* train\.face_crop"):
        train.main()
