"""`dvc exp` in every mode: each trained model is one MLflow run, in one store."""

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import TINY, clone_project, run

pytestmark = pytest.mark.slow


def runs(clone: Path) -> dict[str, Run]:
    """Return the runs of the clone's store by the name of their DVC experiment ("" for repro)."""
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deepfake-detection")
    found = client.search_runs([experiment.experiment_id])
    named = {one.data.tags.get("dvc_experiment", ""): one for one in found}
    assert len(named) == len(found), "one model has two runs"
    return named


def experiments(clone: Path) -> dict[str, dict[str, float]]:
    """Return {name: {learning rate, validation AUC}} of what `dvc exp show` lists."""
    shown = json.loads(run("dvc", "exp", "show", "--json", cwd=clone).stdout)
    found = {}
    for experiment in shown[0]["experiments"] or []:
        data = experiment["revs"][0]["data"]
        metrics = data["metrics"]["metrics/evaluation.json"]["data"]
        params = data["params"]["params.yaml"]["data"]["train"]
        found[experiment["name"]] = {"lr": params["lr"], "auc": metrics["val"]["auc"]}
    return found


def wait_for_queue(clone: Path, seconds: int = 900) -> str:
    """Return `dvc queue status` once nothing is queued or running."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = run("dvc", "queue", "status", cwd=clone).stdout
        if "Running" not in status and "Queued" not in status:
            return status
        time.sleep(5)
    pytest.fail(f"the queue is not done after {seconds} s:\n{status}")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose `dvc repro` is committed, as an experiment's baseline should be."""
    clone = clone_project(tmp_path_factory.mktemp("experiments"), TINY)
    run("dvc", "repro", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "baseline", cwd=clone)
    return clone


def test_every_mode_leaves_one_run_in_the_main_store(clone: Path) -> None:
    assert set(runs(clone)) == {""}
    run("dvc", "exp", "run", "-n", "here", "-S", "train.lr=1e-3", "-S", "train.seed=1", cwd=clone)
    run("dvc", "exp", "run", "-n", "aside", "--temp", "-S", "train.lr=3e-3", cwd=clone)
    assert set(runs(clone)) == {"", "here", "aside"}

    grid = ["-S", "train.lr=1e-3,2e-3,4e-3", "-S", "train.label_smoothing=0.0,0.1"]
    run("dvc", "exp", "run", "--queue", *grid, "-S", "train.seed=2", cwd=clone)
    run("dvc", "queue", "start", "-j", "2", cwd=clone)
    status = wait_for_queue(clone)
    assert status.count("Success") == 6, status

    named = runs(clone)
    listed = experiments(clone)
    assert len(listed) == 8
    assert set(named) == {"", *listed}
    for name, experiment in listed.items():
        assert named[name].info.status == "FINISHED"
        assert float(named[name].data.params["train.lr"]) == experiment["lr"]
        assert named[name].data.metrics["val.auc"] == pytest.approx(experiment["auc"])


def test_what_is_restored_makes_no_second_run(clone: Path) -> None:
    before = set(runs(clone))
    run("dvc", "exp", "apply", "aside", cwd=clone)
    assert "lr: 0.003" in (clone / "params.yaml").read_text()
    run("dvc", "repro", cwd=clone)
    run("dvc", "exp", "branch", "aside", "aside-branch", cwd=clone)
    run("git", "stash", "-q", cwd=clone)
    run("dvc", "checkout", cwd=clone)
    run("dvc", "repro", cwd=clone)
    run("dvc", "exp", "save", "-n", "saved", cwd=clone)
    run("dvc", "exp", "remove", "here", cwd=clone)
    assert "aside-branch" in run("git", "branch", "--list", cwd=clone).stdout
    assert set(runs(clone)) == before


def test_a_failed_experiment_shows_as_failed(clone: Path) -> None:
    done = run("dvc", "exp", "run", "-n", "wild", "--temp", "-S", "train.lr=1e30",
               "-S", "train.warmup_epochs=0", cwd=clone, check=False)  # fmt: skip
    assert done.returncode
    assert "training diverged in epoch 1" in done.stdout + done.stderr
    assert runs(clone)["wild"].info.status == "FAILED"


def test_two_experiments_can_be_compared(clone: Path) -> None:
    names = list(experiments(clone))[:2]
    for what in ("metrics", "params"):
        found = json.loads(run("dvc", what, "diff", "--json", *names, cwd=clone).stdout)
        assert found
    run("dvc", "plots", "diff", *names, cwd=clone)
    page = (clone / "dvc_plots/index.html").read_text()
    assert all(name in page for name in names)
