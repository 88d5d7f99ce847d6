"""The MLflow run of a model, found by the digest of its weights or made from its history."""

from typing import TYPE_CHECKING

import pandas as pd

from stages.lib.core.files import main_workspace
from stages.lib.stopping import stop
from stages.lib.tracking.mlflow_store import connect, experiment_id
from stages.lib.tracking.run import WEIGHTS_TAG, Tracker, end_run, start_run, tracking_is_on, warn

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient


def publishing_lock() -> "FileLock":
    """Return the lock that lets one process of this machine publish at a time."""
    from filelock import FileLock

    return FileLock(main_workspace() / "mlflow.db.publishing.lock")


def find_or_make_run(weights_sha256: str, history: pd.DataFrame) -> Tracker:
    """Return a tracker that writes to the run that trained these weights.

    Where no run has them, because DVC has restored them from its cache or MLflow had failed, this
    makes a run with the epochs of history. The caller holds publishing_lock.
    """
    if not tracking_is_on():
        return Tracker()
    with stop.after_write():
        try:
            client = connect()
            run_id = _find_run(client, weights_sha256)
        except Exception as error:  # of the network, the database or the disk
            warn(error)
            return Tracker()
    return Tracker(client, run_id) if run_id else _make_run(weights_sha256, history)


def _find_run(client: "MlflowClient", weights_sha256: str) -> str | None:
    """Return the id of the latest run that has these weights."""
    query = f"tags.{WEIGHTS_TAG} = '{weights_sha256}'"
    runs = client.search_runs([experiment_id(client)], query, max_results=1)
    return runs[0].info.run_id if runs else None


def _make_run(weights_sha256: str, history: pd.DataFrame) -> Tracker:
    """Make the run that the training would have left."""
    tracker = start_run({"restored": "true", WEIGHTS_TAG: weights_sha256})
    for results in history.to_dict("records"):
        tracker.log_epoch(int(results.pop("epoch")), results)
    end_run("FINISHED")
    return tracker
