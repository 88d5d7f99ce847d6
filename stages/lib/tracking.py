"""MLflow as a mirror of what the stages write: one run per trained model.

The store is MLFLOW_TRACKING_URI where that is set, else mlflow.db in the main workspace, also for
a stage that runs in one of DVC's temporary workspaces. TRACKING=off switches tracking off; MLflow
need not be installed then. A run and a model belong together by the SHA-256 of the weights, kept
as the run's tag `weights_sha256`: no DVC output ever holds a run's id.

Nothing that goes wrong with MLflow stops a stage: it is said once, the files that DVC and Git keep
are the truth, and a later `stages.evaluate` makes up for a run that is missing.
"""

import os
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

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
    # A server that is away is given up after seconds, not after many minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
SERVED_WITH = ("torch", "torchvision", "timm", "pandas", "pillow", "numpy", "pydantic",
               "pyarrow", "safetensors", "mlflow")  # fmt: skip


class _Stop:
    """Turns SIGTERM and Ctrl-C into exceptions, yet never in the middle of a write to MLflow.

    An interrupted SQLite transaction would keep the store locked, and the run RUNNING for ever.
    """

    def __init__(self) -> None:
        self.writing = False
        self.pending: int | None = None

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal, now or after the write."""
        if self.writing:
            self.pending = number
            return
        self.pending = None
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    @contextmanager
    def after_write(self) -> Iterator[None]:
        """Put signals off until the body is done."""
        outer, self.writing = self.writing, True
        try:
            yield
        finally:
            self.writing = outer
        if self.pending is not None:
            self(self.pending)


_stop = _Stop()


def _forgiving(method: Callable[..., None]) -> Callable[..., None]:
    """Let a tracker's method fail: say so the first time, and leave MLflow alone from then on."""

    @wraps(method)
    def call(self: "Tracker", *arguments: Any, **named: Any) -> None:
        if self.lost:
            return
        with _stop.after_write():
            try:
                method(self, *arguments, **named)
            except Exception as error:  # of the network, the database, the disk: all alike here
                self.lost = True
                _warn(error)

    return call


def _warn(error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    print(
        f"WARNING: MLflow has failed ({reason[:200]}); the stage goes on without it, its files "
        "stay the truth. Mirror them later: dvc repro --force --single-item evaluate",
        flush=True,
    )


class Tracker:
    """Writes to one MLflow run; without one, or once MLflow has failed, it does nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self.client = client
        self.run_id = run_id
        self.lost = client is None

    @_forgiving
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers, of one epoch where step is given."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, value, now, step or 0) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=batch)

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
        """Record which labelled images were used."""
        import mlflow

        with warnings.catch_warnings():  # on how a local path and an integer may be understood
            warnings.simplefilter("ignore")
            known = labels.astype({"target": float, "family": object})
            data = mlflow.data.from_pandas(known, source=str(source), name=name, targets="target")
            mlflow.log_input(data, context=name)

    @_forgiving
    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a picture."""
        self.client.log_figure(self.run_id, figure, name)

    @_forgiving
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""
        self.client.log_artifact(self.run_id, str(path), folder)

    @_forgiving
    def log_detector(self, folder: Path, weights: Path) -> None:
        """Record the model that lies in folder, and the digest of its weights."""
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

        self.log_tags({WEIGHTS_TAG: sha256_of(weights)})
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
            input_example=pd.DataFrame({"image": [_example_image()]}),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in SERVED_WITH],
        )

    def end(self, status: str) -> None:
        """End this process's run, also where its artifacts could not be stored."""
        if self.client is None:
            return
        import mlflow

        with _stop.after_write():
            try:
                mlflow.end_run(status)
            except Exception as error:
                _warn(error)


def _example_image() -> bytes:
    """Return a small grey JPEG: an example of the model's input that shows no one's face."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def tracking_is_on() -> bool:
    """Say whether TRACKING leaves tracking on, which it is by default."""
    return os.environ.get("TRACKING", "on") != "off"


@contextmanager
def training_run(data_digest: str, is_first_process: bool) -> Iterator[Tracker]:
    """Open the run of a model in training; it ends FINISHED, or FAILED after any exception."""
    if not is_first_process or not tracking_is_on():
        if is_first_process:
            print("tracking is off (TRACKING=off): no MLflow run", flush=True)
        yield Tracker()
        return
    with _stoppable():
        tracker = _start_run({"data_sha256": data_digest})
        try:
            yield tracker
        except BaseException:
            tracker.end("FAILED")
            raise
        tracker.end("FINISHED")


def _start_run(tags: dict[str, str]) -> Tracker:
    """Begin a run in this process, with what is known before the training."""
    try:
        client = _connect()
        import mlflow

        run = mlflow.start_run(
            run_name=os.environ.get("DVC_EXP_NAME"),
            tags=_identity() | tags,
            log_system_metrics=True,
        )
    except Exception as error:
        _warn(error)
        return Tracker()
    tracker = Tracker(client, run.info.run_id)
    tracker.log_params(_flat_params())
    tracker.log_file(PARAMS_FILE)
    return tracker


def tracker_of(model: Path) -> Tracker:
    """Return the tracker of the run that trained the model in this folder.

    Where no run has its weights, as after a restore from DVC's cache or a failure of MLflow, a new
    one is made from what the folder holds.
    """
    if not tracking_is_on():
        return Tracker()
    weights = model / "weights.safetensors"
    try:
        client = _connect()
        experiment = client.get_experiment_by_name(_experiment_name())
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.{WEIGHTS_TAG} = '{sha256_of(weights)}'",
            max_results=1,
        )
        return Tracker(client, runs[0].info.run_id) if runs else _restored_run(model, weights)
    except Exception as error:
        _warn(error)
        return Tracker()


def _restored_run(model: Path, weights: Path) -> Tracker:
    """Make the run that a training would have left, from its outputs."""
    tracker = _start_run({"restored": "true"})
    for results in pd.read_csv(model / "history.csv").to_dict("records"):
        epoch = int(results.pop("epoch"))
        tracker.log_metrics(results, step=epoch)
    tracker.log_detector(model, weights)
    tracker.end("FINISHED")
    return tracker


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
    _end_runs_of_dead_processes(client)
    return client


def _end_runs_of_dead_processes(client: "MlflowClient") -> None:
    """Mark runs KILLED whose process on this machine is gone and had no time to say so."""
    import psutil

    experiment = client.get_experiment_by_name(_experiment_name())
    host = _process_tags()["host"]
    running = f"attributes.status = 'RUNNING' and tags.host = '{host}'"
    for run in client.search_runs([experiment.experiment_id], running):
        try:
            start = psutil.Process(int(run.data.tags["pid"])).create_time()
            alive = abs(start - float(run.data.tags["process_start"])) < 2  # clocks are adjusted
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            client.set_terminated(run.info.run_id, "KILLED")


def _process_tags() -> dict[str, str]:
    """Return what tells this process from every other one, a later one of its number too."""
    import psutil

    start = str(psutil.Process().create_time())
    return {"host": platform.node(), "pid": str(os.getpid()), "process_start": start}


def _identity() -> dict[str, str]:
    """Return the tags that lead from a run to the Git commit and the DVC experiment."""
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(_git("status", "--porcelain"))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "initial_weights": str(read_yaml(PARAMS_FILE).get("train", {}).get("weights", "")),
    }
    return _process_tags() | {name: value for name, value in tags.items() if value}


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
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise, so that the run of a stopped training is marked FAILED."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
