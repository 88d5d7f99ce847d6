"""Checkpoints: a training that was killed goes on where it was, and ends with the same weights.

A checkpoint is one file in the main workspace, outside the outputs, which DVC removes before a
stage. Its name is the digest of everything that decides the weights, so that a checkpoint of
another training is never taken up. It begins with the digest of the rest, because torch.load takes
a file with changed bits.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
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
from stages.lib.training.params import TrainParams

FOLDER = Path(".dvc/tmp/checkpoints")
KEPT = 4  # files; the oldest ones go first
STAGES = Path(__file__).parents[2]
CODE = (
    "lib/core",
    "lib/images",
    "lib/detector",
    "lib/training",
    "train.py",
)  # what decides the weights
DIGEST_BYTES = 32  # of the SHA-256 that a file begins with
KEPT_KEYS = {"finished", "run_id", "accumulate", "epochs", "best", "history", "last", "own"}
UNFINISHED_KEYS = {"model", "optimizer"}
NO_EFFECT = {"num_workers", "decoded_gb", "checkpoint_minutes", "device"}  # on the weights
State = dict[str, Any]  # of tensors, numbers, strings, lists and dicts


def training_digest(params: TrainParams, data_digest: str, hardware: Hardware) -> str:
    """Return the SHA-256 of everything that decides the weights of a training."""
    files = [file for part in CODE for file in _python_files(STAGES / part)]
    weights = Path(params.weights)
    parts = {
        "params": params.model_dump(exclude=NO_EFFECT),
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
    """Keeps what one training has reached. All its processes call each method together."""

    def __init__(self, digest: str, minutes: float, hardware: Hardware) -> None:
        """minutes: between two checkpoints within an epoch; 0: no checkpoints at all."""
        self.path = main_workspace() / FOLDER / f"{digest[:32]}.pt"
        self.minutes, self.hardware = minutes, hardware
        self.group: Any = dist.new_group(backend="gloo") if hardware.world_size > 1 else None
        self.last = time.monotonic()
        self.found = self._load()

    def _load(self) -> State | None:
        """Return what `save` has kept, with the part of this process as `own`, or None."""
        found = [self._read() if self.hardware.rank == 0 and self.minutes else None]
        if self.group:
            dist.broadcast_object_list(found, group=self.group)
        state = found[0]
        return None if state is None else state | {"own": state["own"][self.hardware.rank]}

    def _read(self) -> State | None:
        try:
            with self.path.open("rb") as file:
                state = _content(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever reading a damaged file raises
            print(f"WARNING: {self.path} is damaged ({short(error)}); training begins with epoch 1")
            return None
        return None if state["finished"] and not _result_is_missing() else state

    def save_if_due(self, make_state: Callable[[], tuple[State, State]]) -> None:
        """Save where enough time has passed since the last checkpoint."""
        if not self.minutes:
            return
        due = torch.tensor(time.monotonic() - self.last >= 60 * self.minutes)
        if self.group:
            dist.broadcast(due, 0, self.group)
        if due:
            self.save(*make_state())

    def save(self, shared: State, own: State) -> None:
        """Keep the state that all processes share, and that of each one; whole or not at all.

        Where it cannot be written, a line says so and the training goes on.
        """
        self.last = time.monotonic()
        if not self.minutes:
            return
        owns: list[State] = [own] * self.hardware.world_size
        if self.group:
            first = self.hardware.rank == 0
            dist.gather_object(own, owns if first else None, group=self.group)
        diverged = not all(np.isfinite(one.get("loss_sum", 0.0)) for one in owns)
        if self.hardware.rank == 0 and not diverged:  # the last good one stays
            with stop.after_write():
                try:
                    self._write(shared | {"own": owns})
                except (OSError, RuntimeError) as error:  # RuntimeError: the disk is full
                    print(f"WARNING: no checkpoint in {self.path.parent} ({short(error)}); the "
                          "training goes on", flush=True)  # fmt: skip

    def _write(self, state: State) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            with partial.open("w+b") as file:
                file.write(bytes(DIGEST_BYTES))  # room for the digest
                torch.save(state, file)
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


def _content(file: BufferedReader | BufferedRandom) -> State:
    """Return the state in an open checkpoint; raises ValueError where it is not what was saved."""
    if file.read(DIGEST_BYTES) != _digest_of_rest(file):
        raise ValueError("other bytes than were written")
    file.seek(DIGEST_BYTES)
    state = torch.load(file, map_location="cpu", weights_only=True)
    needed = KEPT_KEYS if state.get("finished") else KEPT_KEYS | UNFINISHED_KEYS
    if missing := needed - state.keys():
        raise ValueError(f"without {', '.join(sorted(missing))}")
    return state


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
    same_labels = all(
        digests.get(path.as_posix()) == hashlib.md5(path.read_bytes()).hexdigest()
        for path in (paths.LABELS / "train.csv", paths.LABELS / "val.csv")
    )
    params = read_yaml(paths.PARAMS)["train"]
    return not (same_labels and entry["params"][str(paths.PARAMS)]["train"] == params)
