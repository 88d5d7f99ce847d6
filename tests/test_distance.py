"""The distance to the training images: what it measures, what it is fitted on, and its file."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from stages import predict, train
from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import sha256_of
from stages.lib.core.labels import read_labels
from stages.lib.core.params import load_params
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.distance import (
    DISTANCE_FILE,
    TrainingDistance,
    early_blocks,
    early_features,
    load_distance,
    save_distance,
)
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.inference import Inference
from stages.lib.detector.model import (
    Detector,
    create_model,
    input_size_args,
    load_detector,
    resolve_preprocessing,
)
from stages.lib.publishing.served_code import import_closure
from stages.lib.training.params import TrainParams
from stages.lib.training.training_distance import (
    MOST_DIMENSIONS,
    choose_evenly,
    fit_distance,
    whiten,
)
from tests.conftest import ROOT
from tests.golden import draw

SIDE = 64
HARDWARE = Hardware(torch.device("cpu"), bf16=False)


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """Drawn faces, uint8 (60, 3, S, S)."""
    images = [Image.open(BytesIO(draw(number, "jpeg"))) for number in range(60)]
    return torch.stack([tv.pil_to_tensor(image.resize((SIDE, SIDE))) for image in images])


def detector_of(model: str) -> Detector:
    torch.manual_seed(0)
    network = create_model(model, input_size_args(model, SIDE), "random")
    return Detector(network, resolve_preprocessing(network, image_size=SIDE)).eval()


def features_of(detector: Detector, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return early_features(detector, images)


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_noise_is_farther_than_other_faces(model: str, faces: torch.Tensor) -> None:
    detector = detector_of(model)
    distance = whiten(features_of(detector, faces[:40]).double().numpy())
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (10, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    near, far = [distance(features_of(detector, images)) for images in (faces[50:], noise)]
    assert far.min() > near.max()
    assert 0.5 < near.median() < 5  # in distances of the training images
    alone = torch.cat([distance(features_of(detector, image[None])) for image in faces[50:]])
    torch.testing.assert_close(alone, near, atol=1e-5, rtol=1e-5)


def test_one_is_as_far_as_training_images_are_from_each_other_in_any_order() -> None:
    random = np.random.default_rng(0)
    features = random.normal(3, 2, (300, 20)) @ random.normal(size=(20, 20))
    features[:, 5] = 7.0  # a channel that is constant
    distance = whiten(features)
    known = torch.from_numpy(random.permuted(features, axis=0)).float()
    assert distance(torch.from_numpy(features).float()).median() == pytest.approx(0.9, abs=0.1)
    assert distance(known).median() > 1  # the same numbers in combinations that are new
    others = torch.from_numpy(features[:5] + 1).float()
    expected = distance(others)
    assert expected.isfinite().all()
    torch.testing.assert_close(whiten(features[::-1])(others), expected, atol=1e-3, rtol=1e-3)


def test_the_file_has_the_same_bytes_and_is_small(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(200, 30))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digest = save_distance(tmp_path / name, whiten(features))
    assert (
        sha256_of(tmp_path / "a" / DISTANCE_FILE)
        == digest
        == sha256_of(tmp_path / "b" / DISTANCE_FILE)
    )
    loaded = load_distance(tmp_path / "a", digest)
    assert loaded
    others = torch.zeros(3, 30)
    assert torch.equal(loaded(others), whiten(features)(others))
    assert load_distance(tmp_path, "") is None
    for damage in (b"", (tmp_path / "a" / DISTANCE_FILE).read_bytes()[:-1]):
        (tmp_path / "a" / DISTANCE_FILE).write_bytes(damage)
        with pytest.raises(
            UserError, match=r"distance.safetensors: absent, damaged, or of another"
        ):
            load_distance(tmp_path / "a", digest)
    # Two blocks of a large transformer, with a full bank.
    bank = torch.zeros(2000, MOST_DIMENSIONS, dtype=torch.half)
    largest = TrainingDistance(
        torch.zeros(2048), torch.zeros(2048, MOST_DIMENSIONS), bank, torch.zeros(2000)
    )
    save_distance(tmp_path, largest)
    assert (tmp_path / DISTANCE_FILE).stat().st_size < 2e6


def test_the_distance_counts_how_dense_the_training_images_are_nearby() -> None:
    """Two sources, one ten times as varied: the same step leaves the other one, but not this."""
    random = np.random.default_rng(0)
    dense = random.normal(0, 0.1, (200, 4))
    varied = random.normal(0, 1, (200, 4)) + np.array([9, 0, 0, 0])
    distance = whiten(np.concatenate([dense, varied]))
    step = np.array([0, 0.8, 0.0, 0.0])
    near_dense, near_varied = (
        distance(torch.from_numpy(centre[None] + step).float())
        for centre in (dense.mean(axis=0), varied.mean(axis=0))
    )
    assert near_dense > 2 > near_varied
    frames = whiten(np.concatenate([dense, np.zeros((40, 4))]))  # of a video without movement
    assert frames.spread.min() >= 0.49 * frames.spread.median()


def test_images_are_drawn_evenly_of_sources_and_classes() -> None:
    table = pd.DataFrame(
        {
            "source": ["a"] * 100 + ["b"] * 10 + [None] * 90,
            "target": [0, 1] * 50 + [1] * 10 + [0] * 90,
        }
    )
    chosen = choose_evenly(table, 60, seed=0)
    assert (np.diff(chosen) > 0).all()
    counts = table.iloc[chosen].groupby(["source", "target"], dropna=False).size()
    assert sorted(counts) == [10, 16, 17, 17]
    assert np.array_equal(chosen, choose_evenly(table, 60, seed=0))
    assert not np.array_equal(chosen, choose_evenly(table, 60, seed=1))
    assert len(choose_evenly(table, 1000, seed=0)) == len(table)


def test_a_network_without_early_blocks_has_no_distance(
    faces: torch.Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of("test_resnet")
    monkeypatch.setattr(type(detector.model), "forward_intermediates", property())
    assert early_blocks(detector) == []
    params = load_params("train", TrainParams, ROOT / "params.yaml")
    labels = pd.DataFrame({"img_name": [], "target": [], "row": [], "set": [], "sha256": []})
    preprocessing = resolve_preprocessing(detector.model, image_size=SIDE)
    images = LabelledImages(labels, Path("nowhere"), preprocessing)
    assert fit_distance(detector, images, params) is None
    assert capsys.readouterr().out.count("no distance is measured") == 1
    inference = Inference(detector, None, HARDWARE, lambda inputs: inputs)  # pyrefly: ignore
    assert inference.distances(faces[:3]).isnan().all()


def test_the_distance_is_fitted_on_training_images_alone_and_scored_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed again from train alone it is the same; with validation images it is another."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    train.main()
    detector, config = load_detector(paths.MODEL)
    assert config.distance_sha256 == sha256_of(paths.DISTANCE)
    stored = load_distance(paths.MODEL, config.distance_sha256)
    assert stored

    def fitted(labels: pd.DataFrame) -> TrainingDistance:
        images = LabelledImages(labels, paths.PACKED, config.preprocessing)
        params = load_params("train", TrainParams)
        distance = fit_distance(detector, images, params)
        assert distance
        return distance

    seen, val = [read_labels(paths.LABELS / f"{name}.csv") for name in ("train", "val")]
    images = LabelledImages(val, paths.PACKED, config.preprocessing)
    inputs = torch.stack([images.inputs(index) for index in range(len(val))])
    features = features_of(detector, inputs)
    expected = stored(features)
    torch.testing.assert_close(fitted(seen)(features), expected, rtol=1e-2, atol=1e-3)
    poisoned = fitted(pd.concat([seen[20:], val[:20]], ignore_index=True))(features)
    assert (poisoned - expected).abs().max() > 0.1

    predict.main()
    scores = {name: pd.read_csv(paths.SCORES / f"{name}.csv") for name in predict.SETS}
    columns = ["img_name", "logit", "low", "high", "distance", "score"]
    assert list(scores["val"].columns) == columns
    assert scores["test"]["distance"].isna().all()  # it has no labels
    assert scores["val"]["distance"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    assert scores["calibration"]["distance"].between(0.1, 10).all()


def test_the_served_model_has_the_code_of_the_distance() -> None:
    assert "stages/lib/detector/distance.py" in import_closure("stages.lib.publishing.served_model")
