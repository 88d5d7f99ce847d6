"""Checkpoints: a training that was killed goes on where it was, and ends with the same weights.

A checkpoint is one file in the main workspace, outside of the outputs, which DVC removes before a
stage. Its name is a digest of everything that decides the weights, so no training goes on from the
checkpoint of another one. It begins with the digest of the rest, because torch.load accepts a file
with changed bits.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torchvision

from stages.lib import paths
from stages.lib.core.errors import short
from stages.lib.core.files import main_workspace, sha256_of
from stages.lib.core.params import read_yaml
from stages.lib.detector.hardware import Hardware
from stages.lib.stopping import stop
from stages.lib.training.marked_image import MESH_FILE
from stages.lib.training.params import TrainParams

FOLDER = Path(".dvc/tmp/checkpoints")
KEPT = 4  # files; the oldest ones go first
STAGES = Path(__file__).parents[2]
# What decides the weights.
CODE = ("lib/core", "lib/images", "lib/detector", "lib/training", "train.py")
DIGEST_BYTES = 32  # of the SHA-256 that a file begins with
NO_EFFECT = {  # on the weights
    "augment_on",
    "num_workers",
    "decoded_gb",
    "gpu_images_gb",
    "checkpoint_minutes",
    "device",
}
State = dict[str, Any]  # of tensors, numbers, strings, lists and dicts


def training_digest(params: TrainParams, data_digest: str, hardware: Hardware) -> str:
    """Return the SHA-256 of everything that decides the weights of a training."""
    files = [file for part in CODE for file in _python_files(STAGES / part)] + [MESH_FILE]
    weights = Path(params.weights)
    parts = {
        "params": params.model_dump(exclude=NO_EFFECT),
        "augments_in_batches": params.augments_in_batches(hardware.device.type),
        "weights": sha256_of(weights) if weights.is_file() else "",
        "data": data_digest,
        "code": sha256_of(*files),
        "versions": [torch.__version__, torchvision.__version__, timm.__version__],
        "hardware": [hardware.device.type, hardware.arithmetic, hardware.world_size],
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _python_files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


class Checkpoints:
    """Keeps what one training has reached. All its processes call each method together.

    A state is a dict of the parts of a training, each as its `state_dict` returns it, and
    `is_finished`, which says whether the training has ended. A state of a process is what it alone
    has; in `loaded` its name is `process`.
    """

    def __init__(self, digest: str, training: str, minutes: float, hardware: Hardware) -> None:
        """Load the checkpoint of a network, where there is one.

        digest: training_digest of the network; training: that of all networks together, which
        another training of the same network may not have. minutes: between two checkpoints within
        an epoch; 0: no checkpoints at all.
        """
        self.training = training
        self.path = main_workspace() / FOLDER / f"{digest[:32]}.pt"
        self.minutes, self.hardware = minutes, hardware
        self.group: Any = dist.new_group(backend="gloo") if hardware.world_size > 1 else None
        self.last_time = time.monotonic()
        self.loaded = self._load()

    @property
    def run_id(self) -> str:
        """The MLflow run that goes on, or "" where this training has none yet."""
        if self.loaded is None or self.loaded["training"] != self.training:
            return ""
        return self.loaded["run_id"]

    def _load(self) -> State | None:
        """Return what `save` has kept, the part of this process as `process`, or None."""
        states = [self._read() if self.hardware.rank == 0 and self.minutes else None]
        if self.group:
            dist.broadcast_object_list(states, group=self.group)
        if states[0] is None:
            return None
        state, processes = states[0]
        return state | {"process": processes[self.hardware.rank]}

    def _read(self) -> tuple[State, list[State]] | None:
        """Return what all processes share and what each one has, or None."""
        try:
            with self.path.open("rb") as file:
                state, processes = _content(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever reading a damaged file raises
            print(f"WARNING: {self.path} is damaged ({short(error)}); training begins with epoch 1")
            return None
        if state["is_finished"] and not _result_is_missing():
            return None
        return state, processes

    def save_if_due(self, make_state: Callable[[], tuple[State, State]]) -> None:
        """Save where enough time has passed since the last checkpoint."""
        if not self.minutes:
            return
        is_due = torch.tensor(time.monotonic() - self.last_time >= 60 * self.minutes)
        if self.group:
            dist.broadcast(is_due, 0, self.group)
        if is_due:
            self.save(*make_state())

    def save(self, state: State, process: State) -> None:
        """Keep the state that all processes share, and that of each process; whole or not at all.

        Where it cannot be written, a line says so and the training goes on. Where the training has
        diverged, the last good checkpoint stays.
        """
        self.last_time = time.monotonic()
        if not self.minutes:
            return
        processes: list[State] = [process] * self.hardware.world_size
        if self.group:
            is_first = self.hardware.rank == 0
            dist.gather_object(process, processes if is_first else None, group=self.group)
        losses = torch.stack([one.get("loss_sum", torch.zeros(())) for one in processes])
        if self.hardware.rank == 0 and torch.isfinite(losses).all():
            with stop.after_write():
                try:
                    self._write((state | {"training": self.training}, processes))
                except (OSError, RuntimeError) as error:  # RuntimeError: the disk is full
                    print(
                        f"WARNING: no checkpoint in {self.path.parent} ({short(error)}); the "
                        "training goes on",
                        flush=True,
                    )

    def _write(self, content: tuple[State, list[State]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            with partial.open("w+b") as file:
                file.write(bytes(DIGEST_BYTES))  # room for the digest
                torch.save(content, file)
                digest = _digest_of_rest(file)
                file.seek(0)
                file.write(digest)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        files = sorted(self.path.parent.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-KEPT]:
            file.unlink(missing_ok=True)


def _content(file: BufferedReader | BufferedRandom) -> tuple[State, list[State]]:
    """Return what is in an open checkpoint; raises ValueError where it is not what was saved."""
    if file.read(DIGEST_BYTES) != _digest_of_rest(file):
        raise ValueError("other bytes than were written")
    file.seek(DIGEST_BYTES)
    return torch.load(file, map_location="cpu", weights_only=True)


def _digest_of_rest(file: BufferedReader | BufferedRandom) -> bytes:
    """Return the SHA-256 of what comes after the place of the digest."""
    file.seek(DIGEST_BYTES)
    return hashlib.file_digest(file, "sha256").digest()


def _result_is_missing() -> bool:
    """Return whether DVC runs this stage and has no result of these very parameters and labels.

    DVC removes a model before it trains the next one. A training can end and be killed before DVC
    has recorded the result: then its checkpoint has it. In all other cases somebody wants to train
    once more.
    """
    lock = Path("dvc.lock")
    if "DVC_STAGE" not in os.environ:
        return False
    if not lock.exists():
        return True
    entry = read_yaml(lock)["stages"].get("train")
    if entry is None:
        return True
    digests = {dep["path"]: dep["md5"] for dep in entry["deps"]}
    for path in (paths.LABELS / "train.csv", paths.LABELS / "val.csv"):
        if digests.get(path.as_posix()) != hashlib.md5(path.read_bytes()).hexdigest():
            return True
    return entry["params"][str(paths.PARAMS)]["train"] != read_yaml(paths.PARAMS)["train"]
