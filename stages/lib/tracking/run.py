"""Writing to one MLflow run per trained model. MLflow mirrors what the stages write.

The tag `weights_sha256` of a run, the SHA-256 of the weights, connects it with its model: no output
of DVC has the id of a run. TRACKING=off switches tracking off; then MLflow need not be installed.

No failure of MLflow stops a stage. It is reported once, the files of DVC and Git are complete, and
`dvc repro --force --single-item publish` adds to MLflow later what is missing there.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.params import read_yaml
from stages.lib.stopping import stop
from stages.lib.tracking.identity import (
    changed_files,
    description,
    identity_tags,
    uncommitted_diff,
)
from stages.lib.tracking.mlflow_store import (
    connect,
    experiment_id,
    process_tags,
    without_secrets,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

WEIGHTS_TAG = "weights_sha256"
CHANCE_TAG = "better_than_chance"
PUBLISH_AGAIN = "dvc repro --force --single-item publish"
# What a trained model depends on; the sections of later stages may change without a new run.
LOGGED_SECTIONS = ("data", "sample", "pack", "prepare", "train")


def _forgiving(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method of Tracker fail: report the failure, and switch the tracker off."""

    @wraps(method)
    def call(self: "Tracker", *arguments: Any, **named: Any) -> None:
        if self.is_off:
            return
        with stop.after_write():
            try:
                method(self, *arguments, **named)
            except Exception as error:  # of the network, the database or the disk
                self.is_off = True
                warn(error)

    return call


def warn(error: Exception) -> None:
    """Report that MLflow has failed."""
    if isinstance(error, UserError):  # it is one line without secrets, with a remedy at its end
        reason = str(error)
    else:
        reason = short(without_secrets(str(error)), 200) or type(error).__name__
    print(
        f"WARNING: MLflow has failed ({reason}); the stage continues without it. Its files "
        f"are complete. Publish them later with: {PUBLISH_AGAIN}",
        flush=True,
    )


class Tracker:
    """Writes to one MLflow run; without a run, or once MLflow has failed, it does nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self.client: Any = client
        self.run_id = run_id
        self.is_off = client is None

    @_forgiving
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers, of one epoch where step is given."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, value, now, step or 0) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=batch)

    def log_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """Record a row of history.csv; MLflow shows the part before a slash as a heading."""
        self.log_metrics({f"epoch/{name}": value for name, value in results.items()}, step=epoch)

    @_forgiving
    def log_tags(self, tags: dict[str, Any]) -> None:
        """Record facts that may change later."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    @_forgiving
    def log_params(self, params: dict[str, Any]) -> None:
        """Record the parameters, which never change."""
        from mlflow.entities import Param

        batch = [Param(name, str(value)) for name, value in params.items()]
        self.client.log_batch(self.run_id, params=batch)

    @_forgiving
    def log_dataset(self, labels: pd.DataFrame, name: str, source: Path) -> None:
        """Record which labelled images were used; name: of their set."""
        import mlflow

        table = labels.astype({"target": float, "family": object})
        with warnings.catch_warnings():  # about local paths and columns of integers
            warnings.simplefilter("ignore")
            data = mlflow.data.from_pandas(table, source=str(source), name=name, targets="target")
            mlflow.log_input(data, context=name)

    @_forgiving
    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a figure as an image."""
        self.client.log_figure(self.run_id, figure, name)

    @_forgiving
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""
        self.client.log_artifact(self.run_id, str(path), folder)

    @_forgiving
    def attempt(self, action: "Callable[[MlflowClient, str], None]") -> None:
        """Call action(client, run id)."""
        action(self.client, self.run_id)


def tracking_is_on() -> bool:
    """Return whether tracking is on; print a line where TRACKING=off switches it off."""
    if os.environ.get("TRACKING", "on") != "off":
        return True
    print(f"tracking is off (TRACKING=off). Publish later with: {PUBLISH_AGAIN}", flush=True)
    return False


@contextmanager
def training_run(data_digest: str, is_first_process: bool, run_id: str = "") -> Iterator[Tracker]:
    """Open the run of a model in training; it ends FINISHED, or FAILED after any exception.

    run_id: of the run to continue, where this training was stopped before.
    """
    if not is_first_process or not tracking_is_on():
        yield Tracker()
        return
    try:
        yield start_run({"data_sha256": data_digest}, run_id)
    except BaseException:
        end_run("FAILED")
        raise
    end_run("FINISHED")


def start_run(more_tags: dict[str, str], run_id: str = "") -> Tracker:
    """Start a run in this process, with everything that is known before the training.

    run_id: of a run to continue; where the store does not have it any more, a new one starts.
    """
    with stop.after_write():
        try:
            client = connect()
            import mlflow

            if run_id and _exists(client, run_id):
                mlflow.start_run(run_id=run_id, log_system_metrics=True)
                mlflow.set_tags(process_tags())
                return Tracker(client, run_id)
            tags = identity_tags() | more_tags
            commit = tags.get("git_commit", "")[:7]
            run = mlflow.start_run(
                run_name=tags.get("dvc_experiment", f"repro {commit}"),
                tags=process_tags() | tags,
                description=description(tags),
                log_system_metrics=True,
            )
        except Exception as error:
            warn(error)
            return Tracker()
    tracker = Tracker(client, run.info.run_id)
    tracker.log_params(_flat_params())
    tracker.log_file(paths.PARAMS)
    if tags["git_dirty"] != "false":
        tracker.attempt(_keep_uncommitted_changes)
    return tracker


def _exists(client: "MlflowClient", run_id: str) -> bool:
    """Return whether the experiment has this run, which may be deleted or in another store."""
    runs = client.search_runs([experiment_id(client)], f"attributes.run_id = '{run_id}'")
    return bool(runs)


def end_run(status: str) -> None:
    """End the run of this process, if there is one, even where MLflow has failed before."""
    with stop.after_write():
        try:
            import mlflow

            mlflow.end_run(status)
        except Exception as error:
            warn(error)


def _keep_uncommitted_changes(client: "MlflowClient", run_id: str) -> None:
    """Keep what the commit does not contain, and say so."""
    client.log_text(run_id, uncommitted_diff(), "uncommitted.diff")
    if "DVC_EXP_NAME" in os.environ:  # DVC keeps it, too
        return
    changed = changed_files()
    if changed is None:
        print("note: Git cannot read this folder; the run cannot name its commit", flush=True)
        return
    names = ", ".join(changed[:3]) + (" and more" if len(changed) > 3 else "")
    print(
        f"note: files that are not committed: {len(changed)} ({names}). The commit alone does not "
        "reproduce this model; the MLflow run has them in uncommitted.diff",
        flush=True,
    )


def _flat_params() -> dict[str, Any]:
    """Return {"train.lr": 0.001, ...}; lists and mappings inside a section stay as they are."""
    content = read_yaml(paths.PARAMS)
    return {
        f"{section}.{name}": value
        for section in LOGGED_SECTIONS
        for name, value in content.get(section, {}).items()
    }
