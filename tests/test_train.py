"""Training: coverage of the data, repeatability, options, several processes, bad parameters."""

import json
import shutil
import signal
import subprocess
from importlib import import_module
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.utils._python_dispatch import TorchDispatchMode

from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.detector import hardware as runtime
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import (
    Detector,
    create_model,
    fake_logit,
    resolve_preprocessing,
)
from stages.lib.training.batches import TrainingSampler, training_batches
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.micro_batch import find_accumulate
from stages.lib.training.optimization import (
    SharpnessAware,
    average_states,
    make_schedule,
    zero_head,
)
from stages.lib.training.params import TrainParams
from stages.lib.training.pseudo_fakes import KINDS
from stages.predict import main as predict
from stages.train import main
from tests.conftest import ROOT, client_of, environment, readme_commands, run, runs_of, set_params

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
CPU = torch.device("cpu")


def params_with(**changes: Any) -> TrainParams:
    return TrainParams.model_validate(PARAMS.model_dump() | changes)


def loop_of(**changes: Any) -> TrainingLoop:
    """Return a loop that is fed by hand: its images are not there."""
    params = params_with(**changes)
    model = create_model("test_resnet", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=params.image_size)
    labels = pd.DataFrame(
        {"img_name": "x.jpg", "target": [0, 1] * 40, "row": range(80), "set": "train", "sha256": ""}
    )
    images = LabelledImages(labels, Path("nowhere"), preprocessing)
    return TrainingLoop(params, Detector(model, preprocessing), images, Hardware(CPU, False))


@pytest.fixture
def workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    return workspace


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
    labels = pd.DataFrame({"target": np.arange(100) % 2})
    params = params_with(batch_size=16, accumulate=accumulate)
    alone = training_batches(params_with(batch_size=16), labels, 3, Hardware(CPU, False))
    dealt = [
        training_batches(params, labels, 3, Hardware(CPU, False, rank, world_size))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        micro = slice(step * accumulate, (step + 1) * accumulate)
        together = [draw for batches in dealt for part in batches[micro] for draw in part]
        assert sorted(together) == sorted(batch)
    indices = [draw.index for batch in alone for draw in batch]
    assert len(indices) == len(set(indices)) == 96


def test_every_epoch_has_its_own_order() -> None:
    params, labels = params_with(batch_size=10), pd.DataFrame({"target": [0] * 50})
    orders = []
    for epoch in (0, 1):
        batches = training_batches(params, labels, epoch, Hardware(CPU, False))
        orders.append([draw.index for batch in batches for draw in batch])
    assert orders[0] != orders[1]


def test_the_sampler_yields_what_is_left_of_its_epoch() -> None:
    params, labels = params_with(batch_size=10), pd.DataFrame({"target": [0] * 50})
    sampler = TrainingSampler(params, labels, Hardware(CPU, False))
    for epoch, skip in ((0, 0), (1, 0), (1, 2), (2, 5)):
        sampler.set_epoch(epoch, skip)
        batches = training_batches(params, labels, epoch, Hardware(CPU, False))
        assert list(sampler) == batches[skip:]
        assert len(sampler) == 5 - skip


def test_the_balanced_sampler_draws_both_classes_equally_often() -> None:
    targets = (np.arange(4000) % 10 > 0).astype(int)  # 90 % fake
    labels = pd.DataFrame({"target": targets})
    params = params_with(batch_size=100, balance="classes")
    batches = training_batches(params, labels, 0, Hardware(CPU, False))
    share = targets[[draw.index for batch in batches for draw in batch]].mean()
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
        names = ("weights.safetensors", "distance.safetensors", "config.json", "history.csv")
        files.append([(workspace / "data/model" / name).read_bytes() for name in names])
    assert files[0] == files[1]


def test_two_processes_train_the_same_model_as_one(workspace: Path) -> None:
    """test_vit has no batch normalisation, so the gradient is the same up to rounding."""
    options = {
        "model": "test_vit",
        "optimizer": "sgd",
        "lr": 1e-2,
        "accumulate": 2,
        "batch_size": 20,
    }

    def result() -> dict[str, torch.Tensor]:
        losses = history(workspace)[["train_loss", "val_loss"]].values
        weights = load_file(workspace / "data/model/weights.safetensors")
        return weights | {"history": torch.tensor(losses)}

    train(workspace, **options)
    alone = result()
    on_device = {"augment_on": "device", "decoded_gb": 0.1, "gpu_images_gb": 0.1}
    done = train_in_new_process(workspace, num_processes=2, **options, **on_device)
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("1/2") == 1  # only the first process reports
    shared = result()
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-4, atol=1e-5)


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
        {
            "balance": "weights",
            "ema_decay": 0.9,
            "clip_grad": 1.0,
            "optimizer": "sgd",
            "schedule": "step",
            "label_smoothing": 0.1,
        },
        {
            "balance": "classes",
            "optimizer": "adam",
            "schedule": "constant",
            "channels_last": False,
            "early_stopping": 1,
            "epochs": 12,
            "lr": 1e-9,
        },
        {
            "arithmetic": "native",
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "batch_size": 8,
            "epochs": 1,
        },
    ],
    ids=["ema-weights-sgd-step", "classes-adam-constant-stopping", "bf16-own-input"],
)
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
        predict()


def changed_tensors(loop: TrainingLoop) -> set[str]:
    """Return which parameters three steps change."""
    before = {name: one.clone() for name, one in loop.detector.model.named_parameters()}
    batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2
    loop.train_on([(*batch, batch[1])] * 3, epoch=0)
    after = dict(loop.detector.model.named_parameters())
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("which", ["all", "norms", "head"])
def test_only_what_is_trainable_learns(which: str) -> None:
    loop = loop_of(trainable=which, batch_size=8, image_size=32, warmup_epochs=0)
    changed = changed_tensors(loop)
    names = [name for name, _ in loop.detector.model.named_parameters()]
    head = {name for name in names if name.startswith("fc.")}
    norms = {name for name in names if "bn" in name or ".1." in name or "conv1.1" in name}
    assert head <= changed
    if which == "head":
        assert changed == head
    elif which == "norms":
        assert changed & norms and not [
            name
            for name in changed - head
            if "weight" in name and loop.detector.model.get_parameter(name).ndim > 1
        ]
    else:
        assert len(changed) == len(names)


def test_layer_decay_slows_the_first_layers_down() -> None:
    loop = loop_of(layer_decay=0.5, batch_size=8, image_size=32)
    scales = [group["lr_scale"] for group in loop.optimizer.param_groups]
    assert max(scales) == 1 and min(scales) < 0.2


def test_the_average_of_the_last_epochs_is_their_mean() -> None:
    states = [
        {"a": torch.tensor([1.0, 3.0]), "n": torch.tensor(4)},
        {"a": torch.tensor([3.0, 5.0]), "n": torch.tensor(6)},
    ]
    mean = average_states(states)
    assert torch.equal(mean["a"], torch.tensor([2.0, 4.0]))
    assert torch.equal(mean["n"], torch.tensor(5))


@pytest.mark.parametrize(("auc", "averaged"), [(0.9, 2), (0.7, 1)])
def test_the_average_is_kept_where_it_is_better_than_every_epoch(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, auc: float, averaged: int
) -> None:
    stage = import_module("stages.lib.training.epochs")
    validate, aucs, states = stage.validate, iter([0.6, 0.8, auc]), []

    def validate_as_told(detector: Detector, *arguments: Any) -> dict[str, float]:
        states.append({name: one.clone() for name, one in detector.model.state_dict().items()})
        return validate(detector, *arguments) | {"val_auc": next(aucs)}

    monkeypatch.setattr(stage, "validate", validate_as_told)
    train(workspace, average_last=2, epochs=2)
    config = json.loads((workspace / "data/model/config.json").read_text())
    assert (config["best_epoch"], config["averaged_epochs"]) == (2, averaged)
    weights = load_file(workspace / "data/model/weights.safetensors")
    expected = average_states(states[:2]) if averaged == 2 else states[1]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def head_of(detector: Any) -> torch.Tensor:
    return detector.model.get_classifier().weight.detach()


def test_the_moving_average_forgets_where_the_training_began() -> None:
    loop = loop_of(ema_decay=0.999, batch_size=8, image_size=32, warmup_epochs=0)
    ema: Any = loop.ema
    batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2
    before = head_of(loop.detector).clone()
    loop.train_on([(*batch, batch[1])], epoch=0)
    learnt, average = head_of(loop.detector), head_of(ema.module)
    assert not torch.equal(learnt, before)
    assert torch.equal(average, learnt)  # with a constant decay it would be 0.999 of `before`


def test_sam_takes_the_gradient_of_the_worst_weights_nearby() -> None:
    """By hand: for the loss sum(weight ** 4), from 1 and 2, with a step of plain SGD."""
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    sam = SharpnessAware(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradient = np.array([4.0, 32.0])
    (model.weight**4).sum().backward()
    sam.climb()
    nearby = np.array([1.0, 2.0]) + 0.5 * gradient / np.linalg.norm(gradient)
    assert model.weight.detach().numpy()[0] == pytest.approx(nearby)
    (model.weight**4).sum().backward()
    sam.descend()
    assert model.weight.tolist() == [[1.0, 2.0]]
    optimizer.step()
    assert model.weight.detach().numpy()[0] == pytest.approx([1.0, 2.0] - 0.01 * 4 * nearby**3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sam_sees_each_batch_twice_and_counts_it_once(accumulate: int) -> None:
    changes: dict[str, Any] = {"batch_size": 8, "image_size": 32, "warmup_epochs": 0}
    batch = torch.randint(0, 256, (8 // accumulate, 3, 32, 32), dtype=torch.uint8)
    targets = torch.arange(8 // accumulate) % 2
    results = {}
    for rho in (0.0, 0.05):
        torch.manual_seed(0)
        loop = loop_of(**changes, sam_rho=rho, accumulate=accumulate)
        passes: list[int] = []
        loop.detector.model.register_forward_pre_hook(lambda *_, count=passes: count.append(1))
        figures, _ = loop.train_on([(batch, targets, targets)] * accumulate, epoch=0)
        buffers = dict(loop.detector.model.named_buffers())
        results[rho] = figures, buffers, head_of(loop.detector).clone(), len(passes)
    plain, statistics, weights, count = results[0.0]
    sharp, others, moved, num_passes = results[0.05]
    assert plain == sharp  # the loss before the step
    assert num_passes == 2 * count
    assert not torch.equal(weights, moved)
    for name, value in statistics.items():
        if "running" in name:
            assert torch.equal(value, others[name]), name


def test_a_zero_head_begins_at_one_half() -> None:
    model = create_model("test_resnet", {}, "random")
    images = torch.randn(16, 3, 32, 32) * 3
    model.eval()
    before = fake_logit(model(images)).abs().max()
    zero_head(model)
    after = fake_logit(model(images)).abs().max()
    assert after < 0.05 * before


def test_pairs_are_trained_on(workspace: Path) -> None:
    train(workspace)
    plain = (workspace / "data/model/weights.safetensors").read_bytes()
    changes = {"pseudo_fakes.first_share": 0.5, "pseudo_fakes.last_share": 1.0}
    files = []
    for num_workers in (0, 2):
        train(workspace, num_workers=num_workers, **changes)
        files.append((workspace / "data/model/weights.safetensors").read_bytes())
    assert files[0] == files[1] != plain


class Fetches(TorchDispatchMode):
    """Counts the times that a value is fetched from the device, for which Python waits there."""

    count = 0

    def __torch_dispatch__(  # pyrefly: ignore[bad-override-param-name]
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        fetching = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero
        self.count += operator.overloadpacket in fetching
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9, "clip_grad": 1.0, "mixup": 0.5, "accumulate": 2},
        {"optimizer": "sgd", "balance": "weights"},
        {"sam_rho": 0.05, "accumulate": 2},
    ],
    ids=["adamw-ema-clip-mixup", "sgd-weights", "sam"],
)
def test_the_device_is_waited_for_once_an_epoch(options: dict[str, Any]) -> None:
    loop = loop_of(**options, batch_size=8, image_size=32)
    params = loop.params
    size = 8 // params.num_micro_batches
    batch = torch.zeros((size, 3, 32, 32), dtype=torch.uint8), torch.arange(size) % 2
    with Fetches() as fetches:
        loop.train_on([(*batch, batch[1])] * 5 * params.num_micro_batches, epoch=0)
    assert fetches.count == 1  # the mean loss


def with_room_for(loop: TrainingLoop, num_images: int, error: Exception) -> None:
    """Let the loop's network fail on larger batches, as it does where memory ends."""

    def check(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > num_images:
            raise error

    loop.detector.model.register_forward_pre_hook(check)


def automatic(loop: TrainingLoop) -> tuple[TrainParams, Detector, LabelledImages, Hardware]:
    params = loop.params.model_copy(update={"accumulate": "auto"})
    return params, loop.detector, loop.images, Hardware(CPU, False)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("could not create a primitive"),
]


@pytest.mark.parametrize(
    ("room", "mixup", "expected"), [(80, 0, 1), (40, 0, 2), (39, 0, 4), (5, 0, 16), (5, 0.2, 20)]
)
@pytest.mark.parametrize("error", NO_MEMORY, ids=["cuda", "cpu", "onednn"])
def test_as_many_images_at_a_time_as_fit_into_memory(
    error: Exception, room: int, mixup: float, expected: int
) -> None:
    loop = loop_of(batch_size=80, image_size=32, mixup=mixup)
    with_room_for(loop, room, error)
    before = {name: tensor.clone() for name, tensor in loop.detector.state_dict().items()}
    random = torch.get_rng_state()
    assert find_accumulate(*automatic(loop)) == expected
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in loop.detector.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_where_not_one_image_fits_the_reason_is_told() -> None:
    loop = loop_of(batch_size=80, image_size=32)
    with_room_for(loop, 0, NO_MEMORY[0])
    with pytest.raises(UserError, match="not even 1 of 80 images fit .* 20 GiB"):
        find_accumulate(*automatic(loop))


def test_what_is_found_is_what_is_trained_with(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(workspace)
    by_hand = (workspace / "data/model/weights.safetensors").read_bytes()
    train(workspace, accumulate="auto")
    assert "a step: 20 images, 20 at a time in each process" in capsys.readouterr().out
    assert (workspace / "data/model/weights.safetensors").read_bytes() == by_hand


@pytest.mark.parametrize(
    ("fast", "tolerance"),
    [
        ({"channels_last": True}, 1e-3),
        ({"arithmetic": "native"}, 0.05),
        pytest.param({"compile": "default"}, 1e-3, marks=pytest.mark.slow),
    ],
    ids=["channels-last", "bf16", "compiled"],
)
def test_the_fast_path_agrees_with_the_plain_one(
    workspace: Path, fast: dict[str, Any], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Largest difference of an epoch's losses and AUC, over four epochs."""
    monkeypatch.setattr(runtime, "has_native_bf16", lambda device: True)
    if "compile" in fast:
        monkeypatch.delenv("ATEN_CPU_CAPABILITY")  # native
    plain = {"channels_last": False, "arithmetic": "portable", "compile": None, "epochs": 4}
    train(workspace, **plain)
    expected = history(workspace)
    train(workspace, **plain | fast)
    assert history(workspace).to_numpy() == pytest.approx(expected.to_numpy(), abs=tolerance)
    assert not history(workspace).equals(expected)


def test_an_easy_signal_is_learnt(workspace: Path) -> None:
    train(workspace, epochs=5, lr=3e-3)
    assert history(workspace)["val_auc"].max() > 0.95


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet_18"}, ["train.model = 'resnet_18'", "resnet18"]),
        ({"model_args": {"no_such": 1}}, ["train.model_args", "no_such"]),
        ({"weights": "nowhere.pth"}, ["train.weights = 'nowhere.pth'", "is not a file"]),
        ({"optimizer": "adamv"}, ["train.optimizer = 'adamv'", "did you mean adam"]),
        ({"batch_size": 30, "accumulate": 4}, ["train.batch_size = 30", "multiple of 4"]),
        ({"compile": "reduce-overhead", "accumulate": 2}, ["train.accumulate = 2", "set it to 1"]),
        ({"batch_size": 81}, ["train.batch_size = 81", "80 images"]),
        ({"batch_size": 5, "mixup": 0.2}, ["even micro-batch", "5"]),
        ({"reencode": [95, 60]}, ["train.reencode = [95, 60]", "lowest number first"]),
        ({"reencode": [0, 60]}, ["train.reencode.0 = 0", "greater than or equal to 1"]),
        ({"augmentation.blur.range": [2, 1]}, ["train.augmentation.blur.range = [2, 1]: give"]),
        ({"pseudo_fakes.face_width": [0.5, 1.5]}, ["train.pseudo_fakes.face_width.1 = 1.5"]),
        ({"face_crop": 1.1, "scaled_decoding": True}, ["train.scaled_decoding = True", "use one"]),
        (
            {"pseudo_fakes.last_share": 0.5, "pseudo_fakes.kinds": dict.fromkeys(KINDS, 0.0)},
            ["train.pseudo_fakes.kinds: every weight is 0; give one of them a weight"],
        ),
        ({"lr": -1.0}, ["train.lr = -1.0", "greater than 0"]),
        ({"epochs": "3"}, ["train.epochs = '3'", "integer"]),
        ({"learning_rate": 1.0}, ["train.learning_rate is not a parameter", ""]),
        ({"compile": "default"}, ["train.compile = default", "train.arithmetic: native"]),
        ({"arithmetic": "bf16"}, ["train.arithmetic = 'bf16'", "'portable' or 'native'"]),
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
@pytest.mark.slow
def test_a_stopped_training_leaves_nothing_and_its_run_is_failed(workspace: Path) -> None:
    set_params(workspace, {"train.epochs": 500})
    process = subprocess.Popen(
        ["python", "-m", "stages.train"],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.strip().startswith("1/500"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    (training,) = runs_of(client_of(workspace))
    assert training.info.status == "FAILED"
    assert not list((workspace / "data").glob("*model*"))


def on_two_machines(command: str, folders: list[Path]) -> list[tuple[int, str]]:
    """Run the README's command as two machines do, with a process each; return (code, output)."""
    with socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    here = command.replace("=node1", "=localhost").replace("29500", str(port))
    here = here.replace("per-node=8", "per-node=1")
    processes = [
        subprocess.Popen(
            here.replace("rank=0", f"rank={rank}").split(),
            cwd=folder,
            env=environment() | {"TRACKING": "off"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_two_machines_train_the_model_of_one(workspace: Path, tmp_path: Path) -> None:
    """Two launchers that meet as those of two machines do, one process each; then DVC agrees."""
    set_params(workspace, {"train.model": "test_vit", "train.optimizer": "sgd"})
    run("dvc", "repro", "prepare", cwd=workspace)
    train(workspace, num_processes=1)
    alone = load_file(workspace / "data/model/weights.safetensors")
    shutil.rmtree(workspace / "data/model")
    *launches, record = readme_commands("torchrun")
    for command in launches:
        outputs = on_two_machines(command, [workspace, workspace])
        assert [code for code, _ in outputs] == [0, 0]
        assert ["2 process(es)" in output for _, output in outputs] == [True, False]
    for name, tensor in load_file(workspace / "data/model/weights.safetensors").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)
    assert (workspace / "data/scores/val.csv").is_file()
    other = shutil.copytree(workspace, tmp_path / "other")
    (other / "data/model/weights.safetensors").write_bytes(
        (workspace / "data/model/weights.safetensors").read_bytes()[:-4] + bytes(4)
    )
    (first, output), (second, _) = on_two_machines(command, [workspace, other])
    assert first and second
    assert "error: data/model differs between the machines" in output
    done = run("bash", "-c", record, cwd=workspace)
    assert "Running stage 'evaluate'" in done.stdout
    assert "Running stage 'train'" not in done.stdout
    assert "Running stage 'predict'" not in done.stdout
