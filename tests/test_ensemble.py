"""The ensemble of a network and its expert: arithmetic, training, and one detector of both."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import norm

from stages import explain, predict, train
from stages.lib import paths
from stages.lib.core.labels import REAL, read_labels
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.ensemble import Ensemble
from stages.lib.detector.model import (
    Detector,
    create_model,
    fake_logit,
    load_detector,
    resolve_preprocessing,
)
from stages.lib.training.checkpoint import FOLDER
from stages.lib.training.loop import TrainingLoop
from stages.lib.verdict.networks import ONNX_FILE, export_network, onnx_network
from tests.conftest import client_of, run, runs_of, set_params, store_of

EXPERT = {"train.pseudo_fakes.expert_weight": 0.3}
PAIRS_ALONE = {"train.pseudo_fakes.first_share": 1.0, "train.pseudo_fakes.last_share": 1.0}


@pytest.fixture
def tracked(workspace: Path) -> Iterator[Path]:
    """The current folder, in which trainings are tracked."""
    set_params(workspace, {"train.epochs": 2})
    with store_of(workspace):
        yield workspace


def train_with(workspace: Path, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Train, and return the weights."""
    set_params(workspace, changes)
    shutil.rmtree(paths.MODEL, ignore_errors=True)
    train.main()
    return load_file(paths.WEIGHTS)


def part_of(weights: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    prefix = f"networks.{number}."
    return {
        name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------
# The arithmetic


def mixture(logits: np.ndarray, reals: np.ndarray, weight: float) -> np.ndarray:
    """Return the log odds of a mixture of two normal distributions against that of reals.

    logits: float (2, N); reals: bool (N,).
    """
    mean, deviation = (f(logits[:, reals], axis=1)[:, None] for f in (np.mean, sample_deviation))
    standardised = (logits - mean) / deviation
    odds = norm.pdf(standardised, loc=2) / norm.pdf(standardised)
    return np.log((1 - weight) * odds[0] + weight * odds[1])


sample_deviation = partial(np.std, ddof=1)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5])
def test_it_is_the_odds_of_a_mixture_whatever_the_scale_of_the_logits(weight: float) -> None:
    logits = np.random.default_rng(0).normal(0, [[1], [1.5]], (2, 300))
    reals = np.arange(300) < 200
    ensemble = Ensemble(torch.nn.Identity(), torch.nn.Identity())
    for scale, shift in ((1.0, 0.0), (7.0, -3.0)):
        scaled = torch.from_numpy(logits * [[1], [scale]] + [[0], [shift]])
        ensemble.standardise(scaled[:, torch.from_numpy(reals)], weight)
        joined = ensemble.joined(scaled).numpy()
        np.testing.assert_allclose(joined, mixture(logits, reals, weight), atol=1e-5)


def test_a_network_that_knows_nothing_of_a_fake_does_not_outvote_the_other_one() -> None:
    ensemble = Ensemble(torch.nn.Identity(), torch.nn.Identity())
    found_by_one, found_by_none = ensemble.joined(torch.tensor([[-2.0, 0.9], [3.0, 0.9]]))
    assert found_by_one > 2 and found_by_none < 0


def test_its_logits_are_made_of_those_of_its_networks() -> None:
    ensemble = an_ensemble()
    inputs = torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        logits = torch.stack([fake_logit(network(inputs)) for network in ensemble.networks])
        torch.testing.assert_close(fake_logit(ensemble(inputs)), ensemble.joined(logits))


def an_ensemble() -> Ensemble:
    torch.manual_seed(0)
    networks = [create_model("test_resnet", {}, "random") for _ in range(2)]
    ensemble = Ensemble(*networks).eval()
    ensemble.standardise(torch.randn(2, 50).double(), 0.4)
    return ensemble


def test_it_can_be_exported(tmp_path: Path) -> None:
    ensemble = an_ensemble()
    preprocessing = resolve_preprocessing(ensemble.networks[0], image_size=64)
    detector = Detector(ensemble, preprocessing).eval()
    export_network(detector, 64, tmp_path)
    inputs = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = fake_logit(detector(inputs))
    torch.testing.assert_close(onnx_network(tmp_path / ONNX_FILE, 1)(inputs), expected)


# ---------------------------------------------------------------------------------------------
# The training


def test_its_networks_are_those_of_two_trainings(
    tracked: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = train_with(tracked, {"train.checkpoint_minutes": 0.0})  # each network is trained
    distance = paths.DISTANCE.read_bytes()
    history = pd.read_csv(paths.HISTORY)
    both = train_with(tracked, EXPERT)
    assert "expert: a second network" in capfd.readouterr().out
    assert_same(part_of(both, 0), first)
    assert paths.DISTANCE.read_bytes() == distance  # the early blocks are those of the first one
    joined = pd.read_csv(paths.HISTORY)
    pd.testing.assert_frame_equal(joined[list(history)], history)
    expert = train_with(tracked, PAIRS_ALONE | {"train.pseudo_fakes.expert_weight": 0.0})
    assert_same(part_of(both, 1), expert)
    alone = pd.read_csv(paths.HISTORY).add_prefix("expert/")
    of_expert = joined[[name for name in joined if name.startswith("expert/")]]
    pd.testing.assert_frame_equal(of_expert, alone.drop(columns="expert/epoch"))


def test_it_is_one_detector_everywhere(tracked: Path) -> None:
    train_with(tracked, EXPERT)
    detector, config = load_detector(paths.MODEL)
    assert isinstance(detector.model, Ensemble)
    assert config.expert and config.expert.weight == 0.3
    assert config.num_parameters == 2 * sum(one.numel() for one in detector.timm_model.parameters())
    val = read_labels(paths.LABELS / "val.csv")
    images = LabelledImages(val, paths.PACKED, config.preprocessing)
    inputs = torch.stack([images.inputs(index) for index in range(len(val))])
    with torch.inference_mode():
        alone = [Detector(one, config.preprocessing).eval() for one in detector.model.networks]
        of_networks = np.stack([fake_logit(one(inputs)).numpy() for one in alone])
        logits = fake_logit(detector(inputs)).numpy()
    reals = (val["target"] == REAL).to_numpy(dtype=bool)
    np.testing.assert_allclose(logits, mixture(of_networks, reals, 0.3), atol=1e-3)
    predict.main()
    written = pd.read_csv(paths.SCORES / "val.csv").set_index("img_name")["logit"]
    np.testing.assert_allclose(written[val["img_name"]], logits, atol=1e-3)
    explain.main()


def test_another_weight_trains_nothing_again_and_has_its_own_run(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")  # else somebody wants to train once more
    one = train_with(tracked, EXPERT)
    capfd.readouterr()
    other = train_with(tracked, {"train.pseudo_fakes.expert_weight": 0.6})
    out = capfd.readouterr().out
    assert out.count("this network was trained before") == 2 and "  2/2 " not in out
    for number in (0, 1):
        assert_same(part_of(one, number), part_of(other, number))
    assert not torch.equal(one["weights"], other["weights"])
    runs = runs_of(client_of(tracked))
    assert len(runs) == 2
    for one_run in runs:
        for name in ("epoch/val_auc", "epoch/expert/val_auc"):
            figures = client_of(tracked).get_metric_history(one_run.info.run_id, name)
            assert [figure.step for figure in figures] == [1, 2]
        assert one_run.data.metrics.keys() >= {"ensemble/val_auc"}


@pytest.mark.parametrize("steps", [3, 10])
def test_a_training_that_was_stopped_goes_on_with_the_network_that_was_trained(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], steps: int
) -> None:
    """Of 8 steps for each network."""
    expected = train_with(tracked, EXPERT | {"train.checkpoint_minutes": 1e-9})
    shutil.rmtree(FOLDER)
    update, taken = TrainingLoop._update, []

    def update_or_die(self: TrainingLoop, updates: int) -> None:
        taken.append(updates)
        if len(taken) > steps:
            raise KeyError("killed")
        update(self, updates)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="killed"):
        patch.setattr(TrainingLoop, "_update", update_or_die)
        train_with(tracked, {})
    assert taken[-1] == steps % 8 + 1
    assert_same(train_with(tracked, {}), expected)
    assert len(runs_of(client_of(tracked))) == 2


@pytest.mark.slow
def test_two_processes_train_it(tracked: Path) -> None:
    alone = train_with(tracked, EXPERT)
    shutil.rmtree(paths.MODEL)
    set_params(tracked, {"train.num_processes": 2})
    run("python", "-m", "stages.train", cwd=tracked)
    together = load_file(paths.WEIGHTS)
    assert together.keys() == alone.keys()
    assert all(torch.isfinite(one).all() for one in together.values())
    assert load_detector(paths.MODEL)[1].expert


def test_it_sees_no_set_that_is_reported(tracked: Path) -> None:
    """Neither its weights nor the cut of its distance changes with what is not train or val."""
    whole = train_with(tracked, EXPERT)
    files = [paths.CONFIG.read_bytes(), paths.DISTANCE.read_bytes()]
    shutil.rmtree(FOLDER)
    for file in paths.LABELS.iterdir():
        if not file.name.startswith(("train.", "val.")):
            file.unlink()
    assert_same(train_with(tracked, {}), whole)
    assert files == [paths.CONFIG.read_bytes(), paths.DISTANCE.read_bytes()]
