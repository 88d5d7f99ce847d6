"""A training that is stopped goes on where it was, with the same weights; nothing stale is used."""

import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params, read_yaml
from stages.lib.detector.hardware import Hardware
from stages.lib.training import checkpoint
from stages.lib.training import loop as loop_module
from stages.lib.training.batches import training_batches
from stages.lib.training.checkpoint import Checkpoints, training_digest
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from stages.train import main
from tests.conftest import client_of, environment, run, runs_of, set_params, store_of, wait_for

ALONE = Hardware(torch.device("cpu"), bf16=False)
ALWAYS = 1e-9  # minutes: a checkpoint after each step


class Killed(BaseException):
    """What ends a training in these tests, caught by nobody."""


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    monkeypatch.setenv("TRACKING", "off")
    set_params(workspace, {"train.epochs": 3, "train.checkpoint_minutes": ALWAYS})


def train_until(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and die after so many steps, before the next checkpoint."""
    update = TrainingLoop._update

    def update_or_die(self: TrainingLoop, updates: int) -> None:
        if updates > steps:
            raise Killed
        update(self, updates)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingLoop, "_update", update_or_die)
        main()


def result(workspace: Path) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    model = workspace / "data/model"
    return load_file(model / "weights.safetensors"), pd.read_csv(model / "history.csv")


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)


def checkpoints(workspace: Path) -> list[Path]:
    return sorted((workspace / ".dvc/tmp/checkpoints").iterdir())


def reached(workspace: Path) -> tuple[int, int]:
    """Return the epochs that the checkpoint has behind it, and the batches of the next one."""
    state = Checkpoints(checkpoints(workspace)[0].stem, "", 1.0, ALONE).loaded
    assert state is not None
    return len(state["results"]["history"]), state["process"]["done"]


PLAIN: dict[str, Any] = {}
AVERAGES = {"model_args": {"drop_rate": 0.3}, "ema_decay": 0.9, "average_last": 2}
IN_PARTS = {"mixup": 0.3, "accumulate": 2, "num_workers": 1, "optimizer": "sgd"}
ON_DEVICE = {"augment_on": "device", "decoded_gb": 0.1, "gpu_images_gb": 0.1}
EVENLY = {"balance": "sources", "paired_batches": True, "choose_epoch_by": "mean"}


@pytest.mark.parametrize(
    ("options", "steps"),
    [(PLAIN, 4), (AVERAGES, 1), (AVERAGES, 9), (IN_PARTS, 6), (EVENLY, 6), (ON_DEVICE, 6)],
    ids=[
        "end-of-epoch",
        "dropout-ema-first-step",
        "average-last-epoch",
        "mixup-accumulate",
        "pairs",
        "on-device",
    ],
)
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: dict[str, Any],
    steps: int,
) -> None:
    set_params(workspace, {f"train.{name}": value for name, value in options.items()})
    assert 80 // load_params("train", TrainParams).batch_size == 4  # steps of an epoch
    main()
    expected = result(workspace)
    checkpoints(workspace)[0].unlink()
    train_until(steps, monkeypatch)
    capfd.readouterr()
    main()
    assert "this training was stopped before; it goes on" in capfd.readouterr().out
    assert_same(result(workspace), expected)


def test_the_model_that_was_there_stays_until_the_new_one_is_whole(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main()
    before = result(workspace)
    set_params(workspace, {"train.seed": 1})
    train_until(9, monkeypatch)
    assert_same(result(workspace), before)


@pytest.mark.parametrize("changed", ["params", "labels", "code", "damaged", "off"])
def test_what_is_stale_or_damaged_is_not_used(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changed: str,
) -> None:
    train_until(5, monkeypatch)
    (kept,) = checkpoints(workspace)
    if changed == "params":
        set_params(workspace, {"train.lr": 1e-4})
    elif changed == "labels":
        table = workspace / "data/labels/train.csv"
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join([lines[0], *lines[2:], lines[1]]))
        write_digest(table)
    elif changed == "code":
        monkeypatch.setattr(checkpoint, "CODE", ("lib/core",))
    elif changed == "damaged":
        kept.write_bytes(kept.read_bytes()[:-100])
    else:
        set_params(workspace, {"train.checkpoint_minutes": 0.0})
    capfd.readouterr()
    main()
    out = capfd.readouterr().out
    assert "goes on" not in out
    assert (f"{kept} is damaged" in out) == (changed == "damaged")


def test_one_flipped_bit_is_not_trained_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train_until(5, monkeypatch)
    (kept,) = checkpoints(workspace)
    whole, digest = kept.read_bytes(), kept.stem
    assert Checkpoints(digest, "", 1.0, ALONE).loaded
    for place in np.linspace(0, len(whole) - 1, 12).astype(int):
        content = bytearray(whole)
        content[place] ^= 1
        kept.write_bytes(content)
        assert Checkpoints(digest, "", 1.0, ALONE).loaded is None, place
        assert f"WARNING: {kept} is damaged (other bytes than" in capfd.readouterr().out


def test_what_changes_no_weight_keeps_the_checkpoint() -> None:
    params = load_params("train", TrainParams)
    same = params.model_copy(update={"num_workers": 5, "decoded_gb": 1.0})
    other = params.model_copy(update={"momentum": 0.8})
    digests = [training_digest(one, "data", ALONE) for one in (params, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_few_checkpoints_are_kept(workspace: Path) -> None:
    for number in range(checkpoint.KEPT + 3):
        Checkpoints(f"{number:032d}", "", 1.0, ALONE).save({"is_finished": False}, {})
        os.utime(checkpoints(workspace)[-1], (number, number))
    names = [file.stem for file in checkpoints(workspace)]
    assert names == [f"{number:032d}" for number in range(3, checkpoint.KEPT + 3)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full")])
def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    set_params(workspace, {"train.epochs": 1, "train.checkpoint_minutes": 10.0})
    main()
    assert capfd.readouterr().out.count("WARNING: no checkpoint in") == 1
    assert result(workspace)
    assert not checkpoints(workspace)


def test_where_training_diverges_the_last_good_checkpoint_stays(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = TrainingLoop._update

    def spoil(self: TrainingLoop, updates: int) -> None:
        update(self, updates)
        if updates == 6:
            self.loss_sum += float("nan")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="diverged in epoch 2"):
        patch.setattr(TrainingLoop, "_update", spoil)
        main()
    assert reached(workspace) == (1, 1)


def test_a_loss_that_is_no_number_names_its_step_and_images(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "STEPS_BETWEEN_CHECKS", 2)
        entropy, steps = F.cross_entropy, []

        def spoil(*arguments: Any, **options: Any) -> torch.Tensor:
            steps.append(1)
            losses = entropy(*arguments, **options)
            return losses * float("nan") if len(steps) == 7 else losses

        patch.setattr(F, "cross_entropy", spoil)
        with pytest.raises(UserError) as error:
            main()
    assert len(steps) == 8
    assert "diverged in epoch 2, step 3, at a learning rate of about" in str(error.value)
    labels = pd.read_csv(workspace / "data/labels/train.csv")
    params = load_params("train", TrainParams)
    batch = training_batches(params, labels, 1, ALONE)[2]
    names = ", ".join(labels["img_name"][draw.index] for draw in batch[:3])
    assert f"images of that step: {names} and 17 more" in str(error.value)
    assert reached(workspace) == (1, 2)


def test_what_dvc_has_not_recorded_is_not_trained_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main()
    expected = result(workspace)
    run("git", "rm", "-q", "--cached", "dvc.lock", cwd=workspace, check=False)
    (workspace / "dvc.lock").unlink(missing_ok=True)
    trained = []
    monkeypatch.setattr(TrainingLoop, "_update", lambda _, updates: trained.append(updates))
    monkeypatch.setenv("DVC_STAGE", "train")
    main()
    assert not trained
    assert_same(result(workspace), expected)
    record_in_lock(workspace)
    main()  # somebody wants it once more
    assert trained


def record_in_lock(workspace: Path) -> None:
    """Write what DVC records of this training, as far as it counts here."""
    params = {"train": read_yaml(workspace / "params.yaml")["train"]}
    deps = [
        {"path": f"data/labels/{name}.csv", "hash": "md5", "md5": md5_of(workspace, name)}
        for name in ("train", "val")
    ]
    entry = {"cmd": "python -m stages.train", "deps": deps, "params": {"params.yaml": params}}
    (workspace / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"train": entry}})
    )


def md5_of(workspace: Path, name: str) -> str:
    return hashlib.md5((workspace / f"data/labels/{name}.csv").read_bytes()).hexdigest()


def test_mlflow_shows_one_run_that_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_of(workspace):
        train_until(6, monkeypatch)
        client = client_of(workspace)
        (stopped,) = runs_of(client)
        assert stopped.info.status == "FAILED"
        main()
        (whole,) = runs_of(client)
        assert whole.info.run_id == stopped.info.run_id
        assert whole.info.status == "FINISHED"
        steps = client.get_metric_history(whole.info.run_id, "epoch/val_auc")
        assert [metric.step for metric in steps] == [1, 2, 3]
        # A run that somebody has deleted is replaced by one that has everything.
        client.delete_run(whole.info.run_id)
        train_until(6, monkeypatch)
        client.delete_run(runs_of(client)[0].info.run_id)
        main()
        (new,) = runs_of(client)
        steps = client.get_metric_history(new.info.run_id, "epoch/val_auc")
        assert [metric.step for metric in steps] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_at_any_moment_it_ends_with_the_same_weights(
    workspace: Path, num_processes: int
) -> None:
    changes = {"train.num_processes": num_processes, "train.epochs": 40}
    set_params(workspace, changes)
    command = ["python", "-m", "stages.train"]
    run(*command, cwd=workspace)
    expected = result(workspace)
    checkpoints(workspace)[0].unlink()
    random = np.random.default_rng(num_processes)
    goes_on = 0
    for _ in range(4):
        with (workspace / "log.txt").open("w+") as log:
            process = subprocess.Popen(
                command,
                cwd=workspace,
                env=environment() | {"DVC_ROOT": str(workspace)},
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
            wait_for_epochs(workspace / "log.txt", int(random.integers(1, 8)))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_for(lambda: not processes_in(workspace), seconds=15)
            goes_on += "goes on" in (workspace / "log.txt").read_text()
    done = run(*command, cwd=workspace, DVC_ROOT=str(workspace))
    assert "goes on" in done.stdout
    assert goes_on == 3
    assert_same(result(workspace), expected)


def wait_for_epochs(log: Path, count: int) -> None:
    wait_for(lambda: log.read_text().count("/40 ") >= count)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in this folder, except this one."""
    processes = []
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(folder) and process.pid != os.getpid():
            processes.append(process)
    return processes
