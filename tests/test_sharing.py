"""A remote: what one person has computed, another one gets without computing."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from stages.lib.core.files import read_json
from stages.lib.core.params import read_yaml
from stages.publish import flatten
from tests.conftest import client_of, readme_commands, run, runs_of, set_params


@pytest.fixture(scope="module")
def hub(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git server's repository; the results were committed and pushed by the README's commands."""
    folder = tmp_path_factory.mktemp("sharing")
    # Not what DVC writes there meanwhile, for the tests of another process.
    mine = shutil.copytree(
        pipeline, folder / "mine", symlinks=True, ignore=shutil.ignore_patterns("tmp")
    )
    run("git", "clone", "-q", "--bare", str(mine), str(folder / "hub.git"), cwd=mine)
    run("git", "remote", "add", "origin", str(folder / "hub.git"), cwd=mine)
    run("git", "config", "push.autoSetupRemote", "true", cwd=mine)
    for command in readme_commands("dvc remote add"):
        command = command.replace("/mnt/share/deepfakes", str(folder / "store"))
        run("bash", "-c", command, cwd=mine)
    return folder / "hub.git"


def clone_of(hub: Path, target: Path) -> Path:
    run("git", "clone", "-q", str(hub), str(target), cwd=hub)
    return target


def test_a_colleague_pulls_and_computes_nothing(hub: Path, pipeline: Path, tmp_path: Path) -> None:
    theirs = clone_of(hub, tmp_path / "theirs")
    for command in readme_commands("dvc pull"):
        done = run("bash", "-c", command, cwd=theirs)
        assert "Running stage" not in done.stdout
    name = "data/submission/submission.csv"
    assert (theirs / name).read_bytes() == (pipeline / name).read_bytes()
    assert run("git", "status", "--porcelain", cwd=theirs).stdout == ""


def published(clone: Path) -> tuple[MlflowClient, Run]:
    """Return the one run of the clone's store, after checking that everything is in it."""
    client = client_of(clone)
    (found,) = runs_of(client)
    for name, value in flatten(read_json(clone / "metrics/evaluation.json")).items():
        assert found.data.metrics[name] == pytest.approx(value)
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {
        "figures",
        "explanations",
        "model_card.md",
        "model_card.html",
        "submission.csv",
    } <= files
    name = "deepfake-detector-generated-sample"
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert (str(version.version), version.run_id) == ("1", found.info.run_id)
    return client, found


@pytest.mark.slow
def test_a_fresh_clone_without_a_cache_publishes_all_of_its_first_run(
    hub: Path, tmp_path: Path
) -> None:
    """Metrics come with Git and match dvc.lock; what MLflow gets must not depend on that."""
    theirs = clone_of(hub, tmp_path / "theirs")
    assert "Running stage 'publish'" in run("dvc", "repro", cwd=theirs).stdout
    client, found = published(theirs)
    assert "restored" not in found.data.tags
    assert [one.step for one in client.get_metric_history(found.info.run_id, "epoch/val_auc")]
    assert "Running stage" not in run("dvc", "repro", cwd=theirs).stdout


@pytest.mark.slow
def test_results_restored_from_the_run_cache_are_published_like_any_other(
    hub: Path, pipeline: Path, tmp_path: Path
) -> None:
    """Two clones with one cache: the second one trains nothing, and has everything in MLflow.

    Stages with an output in Git and one in the cache run again, which takes seconds: DVC removes
    both before it looks into its run cache, and finds the second one there alone.
    """
    theirs = clone_of(hub, tmp_path / "theirs")
    cache = shutil.copytree(pipeline / ".dvc/cache", tmp_path / "cache")
    run("dvc", "cache", "dir", str(cache), cwd=theirs)
    lines = run("dvc", "repro", cwd=theirs).stdout.splitlines()
    ran = {line.split("'")[1] for line in lines if line.startswith("Running stage")}
    assert ran == {"prepare", "evaluate", "card", "publish"}
    assert run("git", "status", "--porcelain", cwd=theirs).stdout.split() == ["M", ".dvc/config"]
    _, found = published(theirs)
    assert found.data.tags["restored"] == "true"


@pytest.mark.slow
def test_without_the_data_only_what_has_changed_runs(hub: Path, tmp_path: Path) -> None:
    theirs = clone_of(hub, tmp_path / "theirs")
    without_data = readme_commands("dvc pull")[-1]
    assert "Running stage" not in run("bash", "-c", without_data, cwd=theirs).stdout
    set_params(theirs, {"evaluate.threshold": "accuracy"})
    done = run("dvc", "repro", "--pull", "--allow-missing", cwd=theirs)
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == [f"Running stage '{name}':" for name in ("evaluate", "card", "publish")]
    assert not (theirs / "data/raw").exists()  # the images were not fetched for it


@pytest.mark.slow
def test_an_experiment_is_handed_over(hub: Path, tmp_path: Path) -> None:
    mine, theirs = hub.parent / "mine", clone_of(hub, tmp_path / "theirs")
    run("dvc", "exp", "run", "-n", "aside", "--temp", "-S", "train.lr=1e-3", cwd=mine)
    run("dvc", "exp", "push", "origin", "aside", cwd=mine)
    run("dvc", "exp", "pull", "origin", "aside", cwd=theirs)
    run("dvc", "exp", "apply", "aside", cwd=theirs)
    assert read_yaml(theirs / "params.yaml")["train"]["lr"] == 1e-3
    given = json.loads(run("dvc", "exp", "show", "--json", cwd=mine).stdout)[1]["experiments"][0]
    metrics = given["revs"][0]["data"]["metrics"]["metrics/evaluation.json"]["data"]
    assert json.loads((theirs / "metrics/evaluation.json").read_text()) == metrics
    weights = (theirs / "data/model/weights.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest().startswith(metrics["weights"])
