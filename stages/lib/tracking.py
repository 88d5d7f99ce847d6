"""MLflow as a mirror of what the stages write: one run per trained model.

A run and a model belong together by the SHA-256 of the weights, kept as the run's tag
`weights_sha256`: no DVC output ever holds a run's id. TRACKING=off switches tracking off; MLflow
need not be installed then.

Nothing that goes wrong with MLflow stops a stage: it is said once, the files that DVC and Git keep
are the truth, and a later `stages.evaluate` makes up for a run that is missing.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from stages.lib.files import sha256_of
from stages.lib.params import PARAMS_FILE, read_yaml
from stages.lib.signals import stop
from stages.lib.store import (
    changed_files,
    connect,
    description,
    experiment_id,
    identity_tags,
    process_tags,
    uncommitted_diff,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

WEIGHTS_TAG = "weights_sha256"
# What a trained model depends on; the sections of later stages may change without a new run.
LOGGED_SECTIONS = ("data", "sample", "pack", "prepare", "train")
SERVED_WITH = ("torch", "torchvision", "timm", "pandas", "pillow", "numpy", "pydantic",
               "pyarrow", "safetensors", "simplejpeg", "mlflow")  # fmt: skip


def _forgiving(method: Callable[..., None]) -> Callable[..., None]:
    """Let a tracker's method fail: say so the first time, and leave MLflow alone from then on."""

    @wraps(method)
    def call(self: "Tracker", *arguments: Any, **named: Any) -> None:
        if self.lost:
            return
        with stop.after_write():
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

    def log_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """Record a row of history.csv; MLflow shows what stands before a slash as a heading."""
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
    def attempt(self, action: "Callable[[MlflowClient, str], None]") -> None:
        """Call action(client, run id)."""
        action(self.client, self.run_id)

    @_forgiving
    def log_detector(self, folder: Path, weights: Path) -> None:
        """Record the model that lies in folder, then the digest of its weights as a tag."""
        import mlflow

        root = Path(__file__).parents[2]
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(root / "stages/lib/served_model.py"),
            artifacts={"detector": str(folder)},
            code_paths=[str(root / "stages")],
            signature=_signature(),
            input_example=pd.DataFrame({"image": [_example_image()]}),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in SERVED_WITH],
        )
        self.log_tags({WEIGHTS_TAG: sha256_of(weights)})


def _signature() -> "ModelSignature":
    """Return the served model's schema: one of three columns in, the score out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    kinds = {"image": DataType.binary, "path": DataType.string, "pixels": AnyType()}
    inputs = [ColSpec(kind, name, required=False) for name, kind in kinds.items()]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.double, "score")]))


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
    try:
        yield _start_run({"data_sha256": data_digest})
    except BaseException:
        _end_run("FAILED")
        raise
    _end_run("FINISHED")


def _start_run(more_tags: dict[str, str]) -> Tracker:
    """Begin a run in this process, with what is known before the training."""
    with stop.after_write():
        try:
            client = connect()
            import mlflow

            tags = identity_tags() | more_tags
            commit = tags.get("git_commit", "")[:7]
            run = mlflow.start_run(
                run_name=tags.get("dvc_experiment", f"repro {commit}"),
                tags=process_tags() | tags,
                description=description(tags),
                log_system_metrics=True,
            )
        except Exception as error:
            _warn(error)
            return Tracker()
    tracker = Tracker(client, run.info.run_id)
    tracker.log_params(_flat_params())
    tracker.log_file(PARAMS_FILE)
    if tags["git_dirty"] == "true":
        tracker.attempt(_keep_uncommitted_changes)
    return tracker


def _end_run(status: str) -> None:
    """End this process's run, where it has one, also where its artifacts could not be stored."""
    import mlflow

    with stop.after_write():
        try:
            mlflow.end_run(status)
        except Exception as error:
            _warn(error)


def _keep_uncommitted_changes(client: "MlflowClient", run_id: str) -> None:
    """Keep what the commit does not tell; within `dvc exp run`, DVC keeps it as well."""
    client.log_text(run_id, uncommitted_diff(), "uncommitted.diff")
    if "DVC_EXP_NAME" not in os.environ:
        changed = changed_files()
        more = ", ..." if len(changed) > 3 else ""
        print(
            f"note: {len(changed)} uncommitted files ({', '.join(changed[:3])}{more}): the commit "
            "alone does not give this model; the MLflow run keeps their uncommitted.diff",
            flush=True,
        )


def tracker_of(model: Path) -> Tracker:
    """Return the tracker of the run that trained the model in this folder.

    Where no run has its weights, as after a restore from DVC's cache or a failure of MLflow, a new
    one is made from what the folder holds.
    """
    if not tracking_is_on():
        return Tracker()
    weights = model / "weights.safetensors"
    try:
        client = connect()
        runs = client.search_runs(
            [experiment_id(client)],
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
        tracker.log_epoch(int(results.pop("epoch")), results)
    tracker.log_detector(model, weights)
    _end_run("FINISHED")
    return tracker


def _flat_params() -> dict[str, Any]:
    """Return {"train.lr": 0.001, ...}, lists and mappings inside a section as they are."""
    content = read_yaml(PARAMS_FILE)
    return {
        f"{section}.{name}": value
        for section in LOGGED_SECTIONS
        for name, value in content.get(section, {}).items()
    }
