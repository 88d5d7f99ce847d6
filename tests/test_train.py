"""Training: coverage of the data, repeatability, options, several processes, bad parameters."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from stages.lib.errors import UserError
from stages.lib.hardware import Hardware
from stages.lib.params import load_params
from stages.predict import main as predict
from stages.train import TrainParams, main, make_schedule, training_batches
from tests.conftest import ROOT, environment, run, set_params

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
CPU = torch.device("cpu")


def params_with(**changes: Any) -> TrainParams:
    return TrainParams.model_validate(PARAMS.model_dump() | changes)


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")


def train(workspace: Path, **changes: Any) -> None:
    """Train in this process, which saves importing torch again."""
    set_params(workspace, {f"train.{name}": value for name, value in changes.items()})
    main()


def train_in_new_process(workspace: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    set_params(workspace, {f"train.{name}": value for name, value in changes.items()})
    return run("python", "-m", "stages.train", cwd=workspace, check=False, TRACKING="off")


def history(workspace: Path) -> pd.DataFrame:
    return pd.read_csv(workspace / "data/model/history.csv")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_step_sees_the_same_images_with_any_number_of_processes(
    world_size: int, accumulate: int
) -> None:
    targets = np.arange(100) % 2
    params = params_with(batch_size=16, accumulate=accumulate)
    alone = training_batches(params_with(batch_size=16), targets, 3, Hardware(CPU, False))
    dealt = [
        training_batches(params, targets, 3, Hardware(CPU, False, rank, world_size))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        micro = slice(step * accumulate, (step + 1) * accumulate)
        together = [key for batches in dealt for part in batches[micro] for key in part]
        assert sorted(together) == sorted(batch)
    seen = [index for batch in alone for _, index in batch]
    assert len(seen) == len(set(seen)) == 96


def test_every_epoch_has_its_own_order() -> None:
    targets = np.zeros(50, dtype=int)
    orders = [
        training_batches(params_with(batch_size=10), targets, epoch, Hardware(CPU, False))
        for epoch in (0, 1)
    ]
    assert [i for b in orders[0] for _, i in b] != [i for b in orders[1] for _, i in b]


def test_the_balanced_sampler_draws_both_classes_equally_often() -> None:
    targets = (np.arange(4000) % 10 > 0).astype(int)  # 90 % fake
    params = params_with(batch_size=100, class_balance="sampler")
    batches = training_batches(params, targets, 0, Hardware(CPU, False))
    share = targets[[index for batch in batches for _, index in batch]].mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.01, 1.0, 1.0, 1.0]),
        ("step", [0.01, 1.0, 0.1, 0.1]),
        ("cosine", [0.01, 0.5 * (1 + np.cos(np.pi / 4)), 0.5, 0.5 * (1 - np.cos(np.pi / 4))]),
    ],
)
def test_the_learning_rate_at_the_start_of_each_epoch(schedule: str, rates: list[float]) -> None:
    params = params_with(lr=1.0, schedule=schedule, epochs=4, warmup_epochs=1, decay_epochs=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = make_schedule(params, optimizer, steps_per_epoch=10)
    seen = []
    for epoch in range(4):
        steps.step_update(epoch * 10)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates)


def test_two_runs_are_bitwise_equal_with_any_number_of_workers(workspace: Path) -> None:
    files = []
    for num_workers in (0, 2):
        train(workspace, num_workers=num_workers, epochs=2, mixup=0.2, cutmix=0.5)
        names = ("weights.safetensors", "config.json", "history.csv")
        files.append([(workspace / "data/model" / name).read_bytes() for name in names])
    assert files[0] == files[1]


def test_two_processes_train_the_same_model_as_one(workspace: Path) -> None:
    """test_vit has no batch normalisation, so the gradient is the same up to rounding."""
    weights = []
    for num_processes in (1, 2):
        done = train_in_new_process(
            workspace, model="test_vit", num_processes=num_processes, optimizer="sgd",
            lr=1e-2, accumulate=2, batch_size=20,
        )  # fmt: skip
        assert f"{num_processes} process(es)" in done.stdout
        assert done.stdout.count("1/2") == 1  # only the first process reports
        weights.append(load_file(workspace / "data/model/weights.safetensors"))
        weights[-1]["history"] = torch.tensor(history(workspace)[["train_loss", "val_loss"]].values)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_keep_the_weights_that_they_judged(workspace: Path) -> None:
    """Batch normalisation's statistics differ between processes until they are averaged."""
    done = train_in_new_process(workspace, num_processes=2, epochs=3, ema_decay=0.5)
    assert done.returncode == 0, done.stderr
    predict()
    scores = pd.read_csv("data/scores/val.csv")["score"]
    targets = pd.read_csv("data/labels/val.csv")["target"]
    assert roc_auc_score(targets, scores) == pytest.approx(history(workspace)["val_auc"].max())


@pytest.mark.parametrize(
    "options",
    [
        {"class_balance": "weights", "ema_decay": 0.9, "clip_grad": 1.0, "optimizer": "sgd",
         "schedule": "step", "label_smoothing": 0.1},
        {"class_balance": "sampler", "optimizer": "adam", "schedule": "constant",
         "channels_last": False, "early_stopping": 1, "epochs": 12, "lr": 1e-9},
        {"precision": "bf16", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5],
         "std": [0.2, 0.2, 0.2], "batch_size": 8, "epochs": 1},
    ],
    ids=["ema-weights-sgd-step", "sampler-adam-constant-stopping", "bf16-own-normalisation"],
)  # fmt: skip
def test_every_option_trains(workspace: Path, options: dict[str, Any]) -> None:
    train(workspace, **options)
    table = history(workspace)
    assert np.isfinite(table).all(axis=None)
    config = json.loads((workspace / "data/model/config.json").read_text())
    assert config["best_epoch"] == table["val_auc"].idxmax() + 1
    if "early_stopping" in options:
        assert len(table) == config["best_epoch"] + 1 < 12
    if "mean" in options:
        assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
        assert config["preprocessing"]["interpolation"] == "bilinear"


def test_an_easy_signal_is_learnt(workspace: Path) -> None:
    train(workspace, epochs=5, lr=3e-3)
    assert history(workspace)["val_auc"].max() > 0.95


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet_18"}, ["train.model = 'resnet_18'", "resnet18"]),
        ({"model_args": {"no_such": 1}}, ["train.model_args", "no_such"]),
        ({"weights": "nowhere.pth"}, ["train.weights = 'nowhere.pth'", "is no file"]),
        ({"optimizer": "adamv"}, ["train.optimizer = 'adamv'", "did you mean adam"]),
        ({"batch_size": 30, "accumulate": 4}, ["train.batch_size = 30", "multiple of 4"]),
        ({"batch_size": 81}, ["train.batch_size = 81", "80 images"]),
        ({"batch_size": 5, "mixup": 0.2}, ["even micro-batch", "5"]),
        ({"lr": -1.0}, ["train.lr = -1.0", "greater than 0"]),
        ({"epochs": "3"}, ["train.epochs = '3'", "integer"]),
        ({"learning_rate": 1.0}, ["train.learning_rate is not a parameter", ""]),
        ({"device": "cuda"}, ["device = 'cuda'", "auto or cpu"]),
        ({"lr": 1e30, "epochs": 1, "warmup_epochs": 0}, ["diverged in epoch 1", "train.lr"]),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(
    workspace: Path, changes: dict[str, Any], words: list[str]
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError) as error:
        train(workspace, **changes)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not list((workspace / "data").glob("*model*"))


@pytest.mark.slow
def test_with_two_processes_only_one_says_what_was_wrong(workspace: Path) -> None:
    done = train_in_new_process(workspace, num_processes=2, weights="nowhere.pth")
    assert done.returncode
    assert done.stderr.count("error: train.weights = 'nowhere.pth'") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="no SIGTERM")
def test_a_stopped_training_leaves_nothing_and_its_run_is_failed(workspace: Path) -> None:
    import mlflow

    set_params(workspace, {"train.epochs": 500})
    process = subprocess.Popen(
        ["python", "-m", "stages.train"],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.strip().startswith("1/500"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deepfake-detection")
    (training,) = client.search_runs([experiment.experiment_id])
    assert training.info.status == "FAILED"
    assert not list((workspace / "data").glob("*model*"))
