"""Where MLflow's runs are kept, and what tells one run from another.

The store is MLFLOW_TRACKING_URI where that is set, else mlflow.db in the main workspace, also for
a stage that runs in one of DVC's temporary workspaces. MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import os
import platform
import subprocess
from typing import TYPE_CHECKING

from stages.lib.files import main_workspace
from stages.lib.params import PARAMS_FILE, read_yaml

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "deepfake-detection"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that is away is given up after seconds, not after many minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
# What the stages themselves write, so no change that a user left uncommitted.
WRITTEN_BY_STAGES = (":(exclude)metrics", ":(exclude)dvc.lock")


def store_lock() -> "FileLock":
    """Return the lock for what two processes on this machine must not do to the store at once."""
    from filelock import FileLock

    return FileLock(main_workspace() / "mlflow.db.lock")


def connect() -> "MlflowClient":
    """Set MLflow's store up and return a client; safe for several processes at a time."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    root = main_workspace()
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    # Two processes that create one SQLite store at once destroy each other's tables.
    with store_lock():
        if client.get_experiment_by_name(_experiment_name()) is None:
            # A remote server knows where its artifacts go; a local store freezes the folder in.
            local = uri.startswith("sqlite")
            place = (root / "mlartifacts").as_uri() if local else None
            client.create_experiment(_experiment_name(), artifact_location=place)
        mlflow.set_experiment(_experiment_name())
    _end_runs_of_dead_processes(client)
    return client


def experiment_id(client: "MlflowClient") -> str:
    """Return the id of this project's experiment, which `connect` has made."""
    return client.get_experiment_by_name(_experiment_name()).experiment_id


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)


def _end_runs_of_dead_processes(client: "MlflowClient") -> None:
    """Mark runs KILLED whose process on this machine is gone and had no time to say so."""
    import psutil

    running = f"attributes.status = 'RUNNING' and tags.host = '{process_tags()['host']}'"
    for run in client.search_runs([experiment_id(client)], running):
        try:
            start = psutil.Process(int(run.data.tags["pid"])).create_time()
            alive = abs(start - float(run.data.tags["process_start"])) < 2  # clocks are adjusted
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            client.set_terminated(run.info.run_id, "KILLED")


def process_tags() -> dict[str, str]:
    """Return what tells this process from every other one, a later one of its number too."""
    import psutil

    start = str(psutil.Process().create_time())
    return {"host": platform.node(), "pid": str(os.getpid()), "process_start": start}


def identity_tags() -> dict[str, str]:
    """Return the tags that lead from a run to the Git commit and the DVC experiment."""
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(changed_files())).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "initial_weights": str(read_yaml(PARAMS_FILE).get("train", {}).get("weights", "")),
    }
    return {name: value for name, value in tags.items() if value}


def description(tags: dict[str, str]) -> str:
    """Return the Markdown at the head of a run's page: where it comes from, how to get it back."""
    commit = f"commit `{tags.get('git_commit', 'unknown')[:10]}`"
    name = tags.get("dvc_experiment")
    if name:
        return (
            f"DVC experiment **{name}** on {commit}. `dvc exp apply {name}` brings its parameters, "
            f"model and metrics into the workspace; `dvc exp show` lists it by this name."
        )
    diff = " and `uncommitted.diff` below" if tags.get("git_dirty") == "true" else ""
    return (
        f"`dvc repro` on {commit}{diff}. `git checkout` that commit and `dvc checkout` bring back "
        "its parameters, model and metrics once its `dvc.lock` has been committed."
    )


def changed_files() -> list[str]:
    """Return the files that differ from the commit, except those that the stages write."""
    listed = _git("status", "--porcelain", "-z", "--", ".", *WRITTEN_BY_STAGES)
    return [entry[3:] for entry in listed.split("\0") if entry[2:3] == " "]


def uncommitted_diff() -> str:
    """Return what `git diff` says of tracked files, except those that the stages write."""
    return _git("diff", "HEAD", "--", ".", *WRITTEN_BY_STAGES)


def _git(*arguments: str) -> str:
    """Return what git prints, or "" outside a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else ""
