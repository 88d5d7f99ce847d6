"""Where MLflow keeps the runs.

The store is MLFLOW_TRACKING_URI where that is set, else mlflow.db in the main workspace, also for
a stage in a temporary workspace of DVC. MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import os
import platform
import re
from typing import TYPE_CHECKING

from stages.lib.core.files import main_workspace

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "deepfake-detection"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may have a password in it
    # If a server does not answer, give up after seconds, not minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def store_lock() -> "FileLock":
    """Return the lock for changes that two processes must not make to the store at once."""
    from filelock import FileLock

    return FileLock(main_workspace() / "mlflow.db.lock")


def connect() -> "MlflowClient":
    """Set up the store and return a client; safe for several processes at a time."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    root = main_workspace()
    # Two characters have a meaning of their own in the URL of a database.
    place = str(root / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}"
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    # Two processes that create one SQLite store at once destroy each other's tables.
    with store_lock():
        if client.get_experiment_by_name(_experiment_name()) is None:
            # A server decides where its artifacts go; a local store needs an absolute folder.
            local = uri.startswith("sqlite")
            place = (root / "mlartifacts").as_uri() if local else None
            client.create_experiment(_experiment_name(), artifact_location=place)
        mlflow.set_experiment(_experiment_name())
    _end_runs_of_dead_processes(client)
    return client


def without_secrets(words: str) -> str:
    """Return the words without the user and password of any URL in them."""
    return re.sub(r"(?<=://)\S*@", "", words)


def experiment_id(client: "MlflowClient") -> str:
    """Return the id of the experiment that `connect` has created."""
    return client.get_experiment_by_name(_experiment_name()).experiment_id


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def _end_runs_of_dead_processes(client: "MlflowClient") -> None:
    """Mark runs as KILLED whose process on this machine has died without ending the run."""
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
    """Return what tells this process from every other one, also from a later one with its pid."""
    import psutil

    start = str(psutil.Process().create_time())
    return {"host": platform.node(), "pid": str(os.getpid()), "process_start": start}
