"""MesoNet, the published detector beside ours: its networks are those of the published weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from tests import mesonet
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
FACES = SHARED / "data/dfdc_faces"
NUM_FACES = 40
DETECTORS = {"Meso4_DF": mesonet.meso4, "MesoInception_DF": mesonet.meso_inception}


def keras_weights(name: str) -> mesonet.Weights:
    """Return random arrays in the names and shapes of Keras, with small variances."""
    generator = torch.Generator().manual_seed(0)
    weights, network = {}, mesonet.NETWORKS[name]()
    for kind, (keras, names) in mesonet.KERAS.items():
        layers = [module for module in network.modules() if isinstance(module, kind)]
        for number, layer in enumerate(layers, 5):  # Keras counts on from network to network
            for ours, theirs in names.items():
                shape = getattr(layer, ours).shape
                shape = {4: (*shape[2:], *shape[1::-1]), 2: shape[::-1]}.get(len(shape), shape)
                array = torch.rand(shape, generator=generator)
                array = array / 100 if ours == "running_var" else (array - 0.5) / 5
                weights[f"{keras}_{number}.{theirs}"] = array
    return weights


def expected_probability(weights: mesonet.Weights, image: np.ndarray) -> float:
    """Return P(fake) of an image of 256 x 256 pixels by the formulas of Meso4."""
    features = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    for number, pool in ((5, 2), (6, 2), (7, 2), (8, 4)):
        kernel = weights[f"conv2d_{number}.kernel"].permute(3, 2, 0, 1)
        bias = weights[f"conv2d_{number}.bias"]
        features = F.conv2d(features, kernel, bias, padding=kernel.shape[-1] // 2).relu()
        norm = {name: weights[f"batch_normalization_{number}.{name}"].view(-1, 1, 1) for name in
                ("gamma", "beta", "moving_mean", "moving_variance")}  # fmt: skip
        scale = norm["gamma"] / (norm["moving_variance"] + 0.001).sqrt()
        features = F.max_pool2d((features - norm["moving_mean"]) * scale + norm["beta"], pool)
    flat = features[0].permute(1, 2, 0).reshape(-1)
    hidden = F.leaky_relu(flat @ weights["dense_5.kernel"] + weights["dense_5.bias"], 0.1)
    real = torch.sigmoid(hidden @ weights["dense_6.kernel"] + weights["dense_6.bias"])
    return 1 - float(real)


@pytest.fixture
def weights_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], mesonet.Weights]:
    """Return a function that writes the random weights of a network where it reads them."""
    monkeypatch.setenv("MESONET_WEIGHTS", str(tmp_path))
    mesonet.published.cache_clear()

    def write(name: str) -> mesonet.Weights:
        weights = keras_weights(name)
        save_file({name: array.contiguous() for name, array in weights.items()},
                  tmp_path / f"{name}.safetensors")  # fmt: skip
        return weights

    return write


@pytest.mark.parametrize("name", mesonet.NETWORKS)
def test_the_networks_have_the_shapes_of_keras_and_return_probabilities(
    name: str, weights_of: Callable[[str], mesonet.Weights]
) -> None:
    weights = weights_of(name)
    assert weights["dense_5.kernel"].shape == (1024, 16)
    assert len(weights) == {"Meso4_DF": 28, "MesoInception_DF": 52}[name]
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8)
    scores = DETECTORS[name](list(noise))
    assert len(scores) == 2 and all(0 < score < 1 for score in scores)
    weights["conv2d_6.bias"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        mesonet.load_keras(mesonet.NETWORKS[name](), weights)


def test_meso4_computes_what_the_paper_says(
    weights_of: Callable[[str], mesonet.Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESONET_CROP", "0")
    weights = weights_of("Meso4_DF")
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    (score,) = mesonet.meso4([image])
    assert score == pytest.approx(expected_probability(weights, image), abs=1e-5)


def test_inception_keeps_the_size_and_joins_its_branches() -> None:
    block = mesonet.Inception(3, [1, 4, 4, 2])
    assert block(torch.zeros(2, 3, 20, 24)).shape == (2, 11, 20, 24)
    layers = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    sizes = [(layer.kernel_size[0], layer.dilation[0]) for layer in layers]
    assert sizes == [(1, 1), (1, 1), (3, 1), (1, 1), (3, 2), (1, 1), (3, 3)]


@pytest.mark.parametrize("name", DETECTORS)
def test_the_published_weights_on_real_faces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The AUC is printed and no target; that most reals are called real shows the orientation."""
    if not (SHARED / f"weights/{name}.safetensors").is_file() or not FACES.is_dir():
        pytest.skip("the published weights and the faces of DFDC are not here")
    monkeypatch.setenv("MESONET_WEIGHTS", str(SHARED / "weights"))
    mesonet.published.cache_clear()
    labels = pd.read_csv(FACES / "valset_label.txt").head(NUM_FACES)
    images = [np.asarray(Image.open(FACES / "valset" / file)) for file in labels["img_name"]]
    scores = np.array(DETECTORS[name](images))
    assert len(scores) == NUM_FACES and (scores >= 0).all() and (scores <= 1).all()
    print(f"{name}: AUC {roc_auc_score(labels['target'], scores):.3f} on {NUM_FACES} faces of DFDC")
    assert np.median(scores[labels["target"] == 0]) < 0.5
