"""MLflow mirrors and never rules: what fails there stops no stage and is made up for later."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from stages.card import main as card
from stages.chores import store
from stages.evaluate import main as evaluate
from stages.explain import main as explain
from stages.lib.core.errors import UserError
from stages.lib.publishing.find_run import find_or_make_run
from stages.lib.stopping import Stop
from stages.lib.tracking.identity import identity_tags, uncommitted_diff
from stages.lib.tracking.mlflow_store import connect, experiment_id, without_secrets
from stages.lib.verdict.load import load_examiner
from stages.predict import main as predict
from stages.publish import main as publish
from stages.submit import main as submit
from stages.train import main as train
from tests.conftest import client_of, environment, run, runs_of, set_params, store_of


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path) -> Iterator[None]:
    with store_of(workspace):
        yield


def print_store() -> None:
    """Run the chore of `make ui`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["store"])
        store.main()


def finish() -> None:
    """Run the stages after training."""
    for stage in (predict, explain, evaluate, card, submit, publish):
        stage()


def link_as_dvc_does(folder: Path, cache: Path) -> None:
    """Put links in the place of the files of a folder, as DVC does with a cache on another disk."""
    folder.rename(cache)
    folder.mkdir()
    for file in cache.iterdir():
        (folder / file.name).symlink_to(file)


def test_a_store_that_cannot_be_made_stops_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    train()
    assert capsys.readouterr().out.count("WARNING: MLflow has failed") == 1
    assert (workspace / "data/model/weights.safetensors").is_file()


def test_training_goes_on_without_mlflow_and_is_mirrored_later(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train()
    shown = capsys.readouterr().out
    assert shown.count("WARNING: MLflow has failed") == 1
    assert "dvc repro --force --single-item publish" in shown
    assert (workspace / "data/model/weights.safetensors").is_file()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    link_as_dvc_does(workspace / "data/model", workspace / "cache")
    finish()
    (mirrored,) = runs_of(client_of(workspace))
    history = pd.read_csv(workspace / "data/model/history.csv")
    client = MlflowClient()
    logged = client.get_metric_history(mirrored.info.run_id, "epoch/val_auc")
    assert [metric.value for metric in logged] == history["val_auc"].tolist()
    assert mirrored.data.metrics["val.auc"] == pytest.approx(history["val_auc"].max())
    assert mirrored.info.status == "FINISHED"
    mlflow.pyfunc.load_model(f"runs:/{mirrored.info.run_id}/model")
    publish()
    assert len(runs_of(client_of(workspace))) == 1


@pytest.mark.slow
def test_an_artifact_store_that_cannot_be_written_stops_nothing(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "mlartifacts").write_text("a file where the folder should be")
    train()
    assert capsys.readouterr().out.count("WARNING: MLflow has failed") == 1
    assert (workspace / "data/model/weights.safetensors").is_file()
    assert [one.info.status for one in runs_of(client_of(workspace))] == ["FINISHED"]
    finish()
    assert capsys.readouterr().out.count("WARNING: MLflow has failed") == 1
    assert (workspace / "data/published.json").is_file()
    (workspace / "mlartifacts").unlink()
    publish()
    assert [one for one in runs_of(client_of(workspace)) if "val.auc" in one.data.metrics]
    mlflow.pyfunc.load_model("models:/deepfake-detector/1")


@pytest.mark.slow
def test_a_locked_store_stops_nothing_and_is_mirrored_later(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connect()
    with sqlite3.connect(workspace / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        train()
        other.execute("ROLLBACK")
    shown = capsys.readouterr().out
    assert shown.count("WARNING: MLflow has failed") == 1
    assert "database is locked" in shown
    finish()
    (mirrored,) = [
        one for one in runs_of(client_of(workspace)) if "weights_sha256" in one.data.tags
    ]
    assert mirrored.data.metrics["val.auc"]


@pytest.mark.slow
def test_a_full_disk_for_artifacts_stops_nothing(workspace: Path) -> None:
    (workspace / "mlartifacts").mkdir()
    mount = "mount -t tmpfs -o size=64k none mlartifacts && "
    full = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or run(*full, f"{mount} true", cwd=workspace, check=False).stderr
    ):
        pytest.skip("this machine lets nobody mount a small disk")
    train()
    for stage in (predict, explain, evaluate, card, submit):
        stage()
    env = {"DVC_ROOT": str(workspace)}
    done = run(*full, f"{mount} python -m stages.publish", cwd=workspace, **env)
    assert done.stdout.count("WARNING: MLflow has failed") == 1
    assert "No space left on device" in done.stdout
    assert (workspace / "data/published.json").is_file()


def test_uncommitted_changes_are_said_and_kept(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("git", "add", "-A", cwd=workspace)
    run("git", "commit", "-qm", "all", cwd=workspace)
    train()
    assert "not committed" not in capsys.readouterr().out
    set_params(workspace, {"train.lr": 0.007})
    train()
    assert "note: files that are not committed: 1 (params.yaml)" in capsys.readouterr().out
    dirty, clean = runs_of(client_of(workspace))
    assert [one.data.tags["git_dirty"] for one in (dirty, clean)] == ["true", "false"]
    client = MlflowClient()
    diff = Path(client.download_artifacts(dirty.info.run_id, "uncommitted.diff")).read_text()
    assert "+  lr: 0.007" in diff
    assert "uncommitted.diff" in dirty.data.tags["mlflow.note.content"]
    assert not [f for f in client.list_artifacts(clean.info.run_id) if "diff" in f.path]


def test_what_git_says_is_kept_whatever_its_bytes(workspace: Path) -> None:
    run("git", "add", "-A", cwd=workspace)
    run("git", "commit", "-qm", "all", cwd=workspace)
    (workspace / "stages/lib/new_module.py").write_text("x = 'a new module'\n")
    (workspace / "README.md").write_bytes(b"caf\xe9\n")
    (workspace / "large.csv").write_text("1\n" * 1_000_000)
    with open(os.fsencode(workspace) + b"/\xd5\xd5\xc6\xac.jpg", "w"):
        pass
    assert identity_tags()["git_dirty"] == "true"
    diff = uncommitted_diff()
    for words in ("+x = 'a new module'", "+caf\ufffd", "new file, not kept: large.csv"):
        assert words in diff
    assert len(diff) < 100_000


def test_where_git_refuses_the_run_says_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    tags = identity_tags()
    assert tags["git_dirty"] == "unknown"
    assert "git_commit" not in tags
    monkeypatch.setenv("PATH", "/nowhere")
    assert identity_tags()["git_dirty"] == "unknown"


def test_a_password_in_the_address_of_the_store_is_never_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:se/cr@et@127.0.0.1:9/x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train()
    printed = "".join(capfd.readouterr())
    assert "WARNING: MLflow has failed" in printed
    for secret in ("secret", "se/cr", "cr@et", "me:"):
        assert secret not in printed
    assert without_secrets("see https://me:pass@host/x and http://a@b/c") == (
        "see https://host/x and http://b/c"
    )


def test_a_deleted_experiment_is_restored_by_the_command_that_is_named(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    client.delete_experiment(experiment_id(client))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow sets it
    find_or_make_run("0" * 64, pd.DataFrame({"epoch": [1], "val_auc": [0.5]}))
    (warning,) = capsys.readouterr().out.splitlines()
    assert "'deepfake-detection' was deleted; restore it first with: MLFLOW_TRACKING" in warning
    assert warning.endswith("Publish them later with: dvc repro --force --single-item publish")
    print_store()
    printed = capsys.readouterr()
    assert printed.out == f"sqlite:///{workspace}/mlflow.db\n"
    assert printed.err.startswith("note: the experiment 'deepfake-detection' was deleted; restore")
    command = printed.err.partition("restore it first with: ")[2]
    run("bash", "-c", command, cwd=Path("/"))
    assert not find_or_make_run("0" * 64, pd.DataFrame({"epoch": [1], "val_auc": [0.5]})).is_off


def newer_schema(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'f00d'")


def no_database(path: Path) -> None:
    path.write_text("no database" * 1000)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (newer_schema, "mlflow.db was written by another version of MLflow than .*db upgrade"),
        (no_database, r"file is not a database \(the store is sqlite:///"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_line(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path], None],
    words: str,
) -> None:
    broken = tmp_path / "broken"  # of another name, because MLflow looks at a store once
    broken.mkdir()
    break_it(Path(shutil.copy(workspace / "mlflow.db", broken)))
    monkeypatch.setenv("DVC_ROOT", str(broken))
    for attempt in (
        connect,
        print_store,
        lambda: load_examiner("models:/a/1", "cpu", 1, False, 1.0),
    ):
        with pytest.raises(UserError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_read(pipeline: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pipeline, tmp_path / "copy", symlinks=True)
    run("python", "-m", "stages.chores.store", cwd=copy)
    here = f"mount --bind {copy} {copy} && mount -o remount,bind,ro {copy} && cd {copy} && "
    locked = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or run(*locked, f"{here} true", cwd=copy, check=False).stderr:
        pytest.skip("this machine lets nobody mount a folder that cannot be written")
    done = run(*locked, f"{here} python -m stages.chores.store", cwd=copy)
    assert done.stdout == f"sqlite:///{copy}/mlflow.db\n"
    assert done.stderr.startswith("note: [Errno 30] Read-only file system")
    image = next((copy / "data/raw/sample").rglob("*.jpg"))
    detect = "python -m stages.tools.detect --model models:/deepfake-detector-generated-sample/1"
    assert "0 not examined" in run(*locked, f"{here} {detect} {image}", cwd=copy).stderr


def test_the_store_is_made_in_the_workspace_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a%20b?c#d e"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    connect()
    assert (root / "mlflow.db").is_file()


@pytest.mark.slow
def test_a_killed_training_is_marked_by_the_next_one(workspace: Path) -> None:
    set_params(workspace, {"train.epochs": 500})
    process = subprocess.Popen(
        ["python", "-m", "stages.train"],
        cwd=workspace,
        env=environment() | {"DVC_ROOT": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any(line.strip().startswith("1/500") for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [one.info.status for one in runs_of(client_of(workspace))] == ["RUNNING"]
    set_params(workspace, {"train.epochs": 1})
    train()
    assert [one.info.status for one in runs_of(client_of(workspace))] == ["FINISHED", "KILLED"]


def test_a_signal_waits_for_the_end_of_a_write() -> None:
    """In the middle of one, it would leave SQLite's transaction open and the store locked."""
    stop = Stop()
    written = []
    with pytest.raises(SystemExit) as ended, stop.after_write():
        with stop.after_write():
            stop(signal.SIGTERM)
            written.append("inner")
        written.append("outer")
    assert written == ["inner", "outer"]
    assert ended.value.code == 128 + signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT)


def test_tracking_can_be_switched_off(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKING", "off")
    (workspace / "mlflow.db").unlink()
    train()
    assert "tracking is off" in capsys.readouterr().out
    assert not (workspace / "mlflow.db").exists()


@pytest.mark.slow
def test_a_copy_of_the_workspace_has_a_store_of_its_own(pipeline: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pipeline, tmp_path / "a copy", symlinks=True)
    before = tree_of(pipeline / "mlartifacts")
    uri = run("python", "-m", "stages.chores.store", cwd=copy).stdout.strip()
    with sqlite3.connect(copy / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    assert (pipeline / "mlartifacts").as_uri() not in dump
    assert (copy / "mlartifacts").as_uri() in dump
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/deepfake-detector-generated-sample/1")
    image = next((copy / "data/raw/sample").rglob("*.jpg")).read_bytes()
    assert 0 < model.predict(pd.DataFrame({"image": [image]}))["score"][0] < 1
    runs = len(tree_of(copy / "mlartifacts"))
    run("dvc", "repro", "--force", "--single-item", "publish", cwd=copy)
    assert len(tree_of(copy / "mlartifacts")) >= runs
    assert tree_of(pipeline / "mlartifacts") == before
    assert run("python", "-m", "stages.chores.store", cwd=copy).stdout.strip() == uri


def tree_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}
