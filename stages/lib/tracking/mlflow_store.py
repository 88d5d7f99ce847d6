"""Where MLflow keeps the runs.

The store is MLFLOW_TRACKING_URI where that is set, else mlflow.db in the main workspace, which is
also that of a stage in a temporary workspace of DVC. MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import os
import platform
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stages.lib.core.errors import UserError, short
from stages.lib.core.files import main_workspace

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
ARTIFACT_COLUMNS = {  # of the tables of the database
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
DEFAULT_EXPERIMENT = "deepfake-detection"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may have a password in it
    # Where a server does not answer, give up after seconds, not minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def store_lock() -> "FileLock":
    """Return the lock for changes that two processes must not make to the store at once."""
    from filelock import FileLock

    return FileLock(main_workspace() / f"{DATABASE}.lock")


def open_store() -> "MlflowClient":
    """Return a client that can read the store; make a local store where there is none.

    Several processes may call it at once. Raises UserError where the store cannot be read.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    root = main_workspace()
    # Two processes that create one SQLite store at once destroy each other's tables. In a folder
    # that cannot be written, no process creates one.
    with _failures_in_one_line(), store_lock() if os.access(root, os.W_OK) else nullcontext():
        mlflow.set_tracking_uri(store_uri())
        client = mlflow.MlflowClient()
        client.get_experiment_by_name(_experiment_name())  # makes the tables
        if _is_own():
            _update_artifact_places(root)
    return client


def connect() -> "MlflowClient":
    """Set up the store and its experiment for runs, and return a client.

    Several processes may call it at once. Raises UserError where the store cannot be used, or where
    somebody has deleted the experiment.
    """
    client = open_store()
    import mlflow

    with _failures_in_one_line():
        with store_lock():
            if client.get_experiment_by_name(_experiment_name()) is None:
                # A server decides where its artifacts go; a local store needs an absolute folder.
                local = store_uri().startswith("sqlite")
                place = (main_workspace() / ARTIFACTS).as_uri() if local else None
                client.create_experiment(_experiment_name(), artifact_location=place)
        experiment = client.get_experiment_by_name(_experiment_name())
        if experiment.lifecycle_stage != "active":
            where = f"MLFLOW_TRACKING_URI={_uri_for_a_shell()} " if _is_own() else ""
            raise UserError(
                f"the experiment {experiment.name!r} was deleted; restore it first with: {where}"
                f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        mlflow.set_experiment(experiment_id=experiment.experiment_id)
        _end_runs_of_dead_processes(client)
    return client


@contextmanager
def _failures_in_one_line() -> Iterator[None]:
    """Turn whatever MLflow, the database, the network or the disk raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shown = store_uri() if _is_own() else without_secrets(store_uri())
        if "database schema" in str(error):  # MLflow's error for a store of another version
            raise UserError(
                f"{shown} was written by another version of MLflow than the installed one, "
                f"{version('mlflow')}. Install a newer version; or, for an older store, keep a "
                f"copy of it and run: mlflow db upgrade {_uri_for_a_shell()}"
            ) from error
        words = str(error).partition("\n")[0]  # the next lines may be SQL
        reason = short(without_secrets(words), 200) or type(error).__name__
        raise UserError(f"{reason} (the store is {shown})") from error


def _uri_for_a_shell() -> str:
    """Return the URI for a command; one of the environment may be secret, so it is not shown."""
    return shlex.quote(store_uri()) if _is_own() else '"$MLFLOW_TRACKING_URI"'


def _is_own() -> bool:
    return store_uri() == _own_uri()


def store_uri() -> str:
    """Return the URI of the store: MLFLOW_TRACKING_URI, or the database of the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri()


def _own_uri() -> str:
    # Two characters have a special meaning in the URL of a database.
    place = str(main_workspace() / DATABASE).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{place}"


def _update_artifact_places(root: Path) -> None:
    """Make the database name the artifacts beside it after the workspace was moved or copied.

    MLflow stores absolute paths (github.com/mlflow/mlflow/issues/3144). Without this, a copy would
    read and change the artifacts of the original.
    """
    here = (root / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(root / DATABASE)) as database, database:
        places = database.execute("SELECT artifact_location FROM experiments").fetchall()
        for (old,) in places:
            if old == here or not old.endswith(f"/{ARTIFACTS}"):
                continue
            for table, column in ARTIFACT_COLUMNS.items():
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


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
            # Clocks are adjusted, so the two times may differ a little.
            is_alive = abs(start - float(run.data.tags["process_start"])) < 2
        except psutil.NoSuchProcess:
            is_alive = False
        if not is_alive:
            client.set_terminated(run.info.run_id, "KILLED")


def process_tags() -> dict[str, str]:
    """Return tags that identify this process, also among later ones with the same pid."""
    import psutil

    start = str(psutil.Process().create_time())
    return {"host": platform.node(), "pid": str(os.getpid()), "process_start": start}
