"""MLflow as a mirror of what the stages write: one run per trained model.

The store is MLFLOW_TRACKING_URI where that is set, else mlflow.db in the main workspace, also for
a stage that runs in one of DVC's temporary workspaces. TRACKING=off switches tracking off; MLflow
need not be installed then. A run and a model belong together by the SHA-256 of the weights, kept
as the run's tag `weights_sha256`: no DVC output ever holds a run's id.
"""

import os
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pandas as pd

from stages.lib.files import sha256_of
from stages.lib.params import PARAMS_FILE, read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "deepfake-detection"
WEIGHTS_TAG = "weights_sha256"
# What a trained model depends on; the sections of later stages may change without a new run.
LOGGED_SECTIONS = ("data", "sample", "pack", "prepare", "train")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SERVED_WITH = ("torch", "torchvision", "timm", "pandas", "pillow", "numpy", "pydantic",
               "pyarrow", "safetensors", "mlflow")  # fmt: skip


class NoTracker:
    """Tracks nothing: TRACKING=off, or a process other than the first."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers, of one epoch where step is given."""

    def log_tags(self, tags: dict[str, Any]) -> None:
        """Record facts that may change later."""

    def log_dataset(self, labels: pd.DataFrame, name: str, source: Path) -> None:
        """Record which labelled images were used."""

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a picture."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""

    def log_detector(self, folder: Path, weights: Path, example: bytes) -> None:
        """Record the model that lies in folder, with an encoded image as the input example."""


class RunTracker(NoTracker):
    """Writes to one MLflow run."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def log_tags(self, tags: dict[str, Any]) -> None:
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def log_dataset(self, labels: pd.DataFrame, name: str, source: Path) -> None:
        import mlflow

        with warnings.catch_warnings():  # on how a local path and an integer may be understood
            warnings.simplefilter("ignore")
            known = labels.astype({"target": float, "family": object})
            data = mlflow.data.from_pandas(known, source=str(source), name=name, targets="target")
            mlflow.log_input(data, context=name)

    def log_figure(self, figure: "Figure", name: str) -> None:
        self.client.log_figure(self.run_id, figure, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_detector(self, folder: Path, weights: Path, example: bytes) -> None:
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

        root = Path(__file__).parents[2]
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(root / "stages/lib/served_model.py"),
            artifacts={"detector": str(folder)},
            code_paths=[str(root / "stages")],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, "image")]),
                outputs=Schema([ColSpec(DataType.double, "score")]),
            ),
            input_example=pd.DataFrame({"image": [example]}),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in SERVED_WITH],
        )
        self.log_tags({WEIGHTS_TAG: sha256_of(weights)})


def tracking_is_on() -> bool:
    """Say whether TRACKING leaves tracking on, which it is by default."""
    return os.environ.get("TRACKING", "on") != "off"


@contextmanager
def training_run(data_digest: str, is_first_process: bool) -> Iterator[NoTracker]:
    """Open the run of a model in training; it ends FINISHED, or FAILED after any exception."""
    if not is_first_process or not tracking_is_on():
        if is_first_process:
            print("tracking is off (TRACKING=off): no MLflow run", flush=True)
        yield NoTracker()
        return
    client = _connect()
    import mlflow

    with (
        _sigterm_raises(),
        mlflow.start_run(
            run_name=os.environ.get("DVC_EXP_NAME"), tags=_identity(), log_system_metrics=True
        ) as run,
    ):
        mlflow.log_params(_flat_params())
        mlflow.log_artifact(str(PARAMS_FILE))
        tracker = RunTracker(client, run.info.run_id)
        tracker.log_tags({"data_sha256": data_digest})
        yield tracker


def tracker_of(weights: Path) -> NoTracker:
    """Return the tracker of the run that trained these weights.

    Where no run has these weights, as after a restore from DVC's cache, a new one is made.
    """
    if not tracking_is_on():
        return NoTracker()
    client = _connect()
    digest = sha256_of(weights)
    experiment = client.get_experiment_by_name(_experiment_name())
    runs = client.search_runs(
        [experiment.experiment_id], f"tags.{WEIGHTS_TAG} = '{digest}'", max_results=1
    )
    if runs:
        return RunTracker(client, runs[0].info.run_id)
    run = client.create_run(
        experiment.experiment_id, tags=_identity() | {WEIGHTS_TAG: digest, "restored": "true"}
    )
    for name, value in _flat_params().items():
        client.log_param(run.info.run_id, name, value)
    client.set_terminated(run.info.run_id)
    return RunTracker(client, run.info.run_id)


def main_workspace() -> Path:
    """Return the repository's root, the main workspace's also in DVC's temporary ones."""
    return Path(os.environ.get("DVC_ROOT", Path(__file__).parents[2])).resolve()


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)


def _connect() -> "MlflowClient":
    """Set MLflow's store up and return a client; safe for several processes at a time."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow
    from filelock import FileLock

    root = main_workspace()
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    # Two processes that create one SQLite store at once destroy each other's tables.
    with FileLock(root / "mlflow.db.lock"):
        if client.get_experiment_by_name(_experiment_name()) is None:
            # A remote server knows where its artifacts go; a local store freezes the folder in.
            local = uri.startswith("sqlite")
            place = (root / "mlartifacts").as_uri() if local else None
            client.create_experiment(_experiment_name(), artifact_location=place)
        mlflow.set_experiment(_experiment_name())
    return client


def _identity() -> dict[str, str]:
    """Return the tags that lead from a run to the Git commit and the DVC experiment."""
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(_git("status", "--porcelain"))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "initial_weights": str(read_yaml(PARAMS_FILE).get("train", {}).get("weights", "")),
    }
    return {name: value for name, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """Return what git prints, or "" outside a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _flat_params() -> dict[str, Any]:
    """Return {"train.lr": 0.001, ...}, lists and mappings inside a section as they are."""
    content = read_yaml(PARAMS_FILE)
    return {
        f"{section}.{name}": value
        for section in LOGGED_SECTIONS
        for name, value in content.get(section, {}).items()
    }


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the run of a stopped training is marked FAILED."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
