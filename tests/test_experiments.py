"""`dvc exp` in every mode, as the README has it: each trained model is one run, in one store."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.conftest import (
    client_of,
    environment,
    readme_commands,
    run,
    runs_of,
    wait_for,
    wait_for_queue,
)

pytestmark = pytest.mark.slow


def runs(clone: Path) -> dict[str, Run]:
    """Return the runs of the clone's store by the name of their DVC experiment ("" for repro)."""
    found = runs_of(client_of(clone))
    named = {one.data.tags.get("dvc_experiment", ""): one for one in found}
    assert len(named) == len(found), "one experiment has two runs"
    return named


def experiments(clone: Path) -> dict[str, dict]:
    """Return what `dvc exp show` lists by name: parameters of train, and the metrics."""
    shown = json.loads(run("dvc", "exp", "show", "--json", cwd=clone).stdout)
    found = {}
    for experiment in shown[1]["experiments"] or []:
        data = experiment["revs"][0]["data"]
        if data:
            metrics = data["metrics"]["metrics/evaluation.json"]["data"]
            params = data["params"]["params.yaml"]["data"]["train"]
            found[experiment["name"]] = {"params": params, "metrics": metrics}
    return found


def test_each_trained_model_is_one_finished_run_with_its_metrics(team: Path) -> None:
    named, listed = runs(team), experiments(team)
    assert len(listed) == 2 + 6 + 3
    assert set(named) == {"", *listed}
    for name, experiment in listed.items():
        found = named[name]
        assert (found.info.status, found.info.run_name) == ("FINISHED", name)
        for key in ("lr", "label_smoothing", "seed"):
            assert float(found.data.params[f"train.{key}"]) == experiment["params"][key]
        assert found.data.metrics["val.auc"] == pytest.approx(experiment["metrics"]["val"]["auc"])


def test_what_was_asked_for_was_run(team: Path) -> None:
    wanted = [(lr, smoothing, 0) for lr in (1e-3, 2e-3, 4e-3) for smoothing in (0.05, 0.1)]
    wanted += [(1e-3, 0.0, seed) for seed in (0, 1, 2, 3)] + [(3e-3, 0.0, 0)]
    params = [experiment["params"] for experiment in experiments(team).values()]
    got = [(one["lr"], one["label_smoothing"], one["seed"]) for one in params]
    assert sorted(got) == sorted(wanted)


def test_identity_leads_both_ways(team: Path) -> None:
    named, listed = runs(team), experiments(team)
    baseline = run("git", "rev-parse", "HEAD", cwd=team).stdout.strip()
    client = client_of(team)
    for name, experiment in listed.items():
        tags = named[name].data.tags
        assert tags["git_commit"] == tags["dvc_baseline"] == baseline
        assert f"dvc exp apply {name}" in tags["mlflow.note.content"]
        assert tags["data_sha256"] == named[""].data.tags["data_sha256"]
        weights = experiment["metrics"]["weights"]
        query = f"tags.weights_sha256 LIKE '{weights}%'"
        (found,) = client.search_runs([named[name].info.experiment_id], query)
        assert found.info.run_id == named[name].info.run_id
        diff = Path(client.download_artifacts(found.info.run_id, "uncommitted.diff")).read_text()
        assert "params.yaml" in diff


def test_every_model_is_a_version_and_none_is_champion_that_is_no_better_than_chance(
    team: Path,
) -> None:
    client = client_of(team)
    name = "deepfake-detector-generated-sample"
    versions = client.search_model_versions(f"name = '{name}'")
    assert len(versions) == len(runs(team))
    useful = [one for one in versions if one.tags["better_than_chance"] == "yes"]
    assert len(client.get_registered_model(name).aliases) == bool(useful)
    compared = [one for one in versions if "against_champion" in one.tags]
    assert len(compared) == max(len(useful) - 1, 0)


def test_the_readme_shows_useful_tables(team: Path, tmp_path: Path) -> None:
    shown, params, metrics, plots, seeds = (
        run("bash", "-c", command, cwd=team).stdout
        for command in readme_commands("dvc exp show --only-changed")
    )
    header = shown.splitlines()[1]
    assert "train.lr" in header and "val.auc" in header and "weights" in header
    assert not [word for word in ("stages/", "data/", "true_", "families") if word in header]
    assert "train.lr" in params and "0.003" in params
    assert "val.accuracy" in metrics and "weights" in metrics
    page = Path(plots.strip().splitlines()[-1].removeprefix("file://")).read_text()
    assert "here" in page and "aside" in page and "wrong_real.png" in page
    line = next(x for x in seeds.splitlines() if "smoothing=0.0, train.lr=0.001" in x)
    assert line.split()[2] == "4" and "±" in line


def test_a_failed_experiment_shows_as_such(team: Path) -> None:
    run("dvc", "exp", "run", "--queue", "-n", "broken", "-S", "train.weights=/no.pth", cwd=team)
    run("dvc", "queue", "start", cwd=team)
    status = wait_for_queue(team)
    assert [line for line in status.splitlines() if "broken" in line and "Failed" in line]
    assert runs(team)["broken"].info.status == "FAILED"
    assert "is not a file" in run("dvc", "queue", "logs", "broken", cwd=team).stdout
    assert "Failed" in run("dvc", "exp", "show", cwd=team).stdout
    # DVC lists it with the workspace's old metrics; they are no result of its parameters.
    summary = run("python", "-m", "stages.chores.seeds", cwd=team).stdout
    assert "no.pth" not in summary


@pytest.mark.parametrize("how", [[], ["--force"]], ids=["kill", "kill --force"])
def test_a_killed_experiment_stops_computing_and_shows_as_such(team: Path, how: list[str]) -> None:
    name = f"endless{len(how)}"
    epochs = f"train.epochs={5000 + len(how)}"
    run("dvc", "exp", "run", "--queue", "-n", name, "-S", epochs, cwd=team)
    run("dvc", "queue", "start", cwd=team)
    wait_for(lambda: name in runs(team))
    run("dvc", "queue", "kill", *how, name, cwd=team)
    wait_for(lambda: runs(team)[name].info.status != "RUNNING")
    assert runs(team)[name].info.status == "FAILED"
    assert "Failed" in run("dvc", "queue", "status", cwd=team).stdout


def test_a_dead_dvc_takes_its_training_along(team: Path, tmp_path: Path) -> None:
    command = ["dvc", "exp", "run", "--temp", "-n", "orphan", "-S", "train.epochs=7000"]
    started = subprocess.Popen(command, cwd=team, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: "orphan" in runs(team))
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_for(lambda: runs(team)["orphan"].info.status == "FAILED")


def test_what_is_restored_makes_no_second_run(team: Path) -> None:
    before = set(runs(team))
    run("dvc", "exp", "run", "--temp", "-n", "again", "-S", "train.lr=3e-3", cwd=team)
    assert set(runs(team)) == before
    assert (
        experiments(team)["again"]["metrics"]["weights"]
        == experiments(team)["aside"]["metrics"]["weights"]
    )


def test_results_can_be_applied_branched_saved_and_removed(team: Path) -> None:
    before = set(runs(team))
    apply, branch, save, remove = readme_commands("dvc exp apply")
    run("bash", "-c", apply, cwd=team)
    aside = experiments(team)["aside"]["metrics"]
    assert json.loads((team / "metrics/evaluation.json").read_text()) == aside
    assert "up to date" in run("dvc", "repro", cwd=team).stdout  # a repro in between
    run("bash", "-c", branch, cwd=team)
    assert "better-rate" in run("git", "branch", cwd=team).stdout
    run("bash", "-c", save, cwd=team)
    assert experiments(team)["kept"]["metrics"] == aside
    run("bash", "-c", remove, cwd=team)
    assert "here" not in experiments(team)
    run("python", "-m", "stages.publish", cwd=team)
    assert set(runs(team)) == before


def test_a_fresh_clone_without_a_cache_can_experiment(team: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run("git", "clone", "-q", str(team), str(clone), cwd=tmp_path)
    run("dvc", "exp", "run", "-n", "first", "-S", "train.lr=3e-3", cwd=clone)
    assert runs(clone)["first"].info.status == "FINISHED"
    assert (
        experiments(clone)["first"]["metrics"]["weights"]
        == experiments(team)["aside"]["metrics"]["weights"]
    )
