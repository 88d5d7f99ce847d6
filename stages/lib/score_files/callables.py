"""Detectors of other people that can be called: a Python function, an ONNX file, a model of MLflow.

Each takes pictures as they are in their files, uint8 (H, W, 3) in RGB, of differing sizes.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.errors import UserError, short
from stages.lib.tracking.mlflow_store import connect
from stages.lib.verdict.networks import onnx_session

Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class CallableDetector:
    """A function from N pictures to N numbers, higher for fakes, and what the numbers are."""

    name: str
    run: Callable[[Pictures], object]
    scale: str  # probability or logit

    def score(self, pictures: Pictures) -> np.ndarray:
        """Return one finite number for each picture, float (N,); raises UserError."""
        try:
            found = np.asarray(self.run(pictures), dtype=float)
        except Exception as error:  # whatever somebody else's code raises
            raise UserError(
                f"{self.name}: failed on {len(pictures)} pictures: {type(error).__name__}: "
                f"{short(error, 120)}"
            ) from error
        if found.shape != (len(pictures),) or not np.isfinite(found).all():
            raise UserError(
                f"{self.name}: gave {short(found.shape)} for {len(pictures)} pictures, or numbers "
                "that are not finite; return one number for each picture"
            )
        if self.scale == "probability" and not ((found >= 0) & (found <= 1)).all():
            raise UserError(
                f"{self.name}: {found.min():.4g} to {found.max():.4g} are no probabilities of a "
                "fake; return 0 to 1"
            )
        return found


def load_callable(name: str, threads: int) -> CallableDetector:
    """Return the detector of a name; raises UserError where it cannot be loaded.

    `module:function` returns P(fake) of a list of pictures. `FILE.onnx` takes float32 from 0 to 1
    or uint8, (N, 3, S, S), and returns logits: (N,), (N, 1), or (N, 2) of real and fake. A model of
    MLflow (`models:/...`, `runs:/...`) takes PNG files in a column `image` and returns P(fake), in
    a column `score` where it returns a table.
    """
    if name.startswith(("models:/", "runs:/")):
        return CallableDetector(name, _of_mlflow(name), "probability")
    if name.endswith(".onnx"):
        return CallableDetector(name, _of_onnx(Path(name), threads), "logit")
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(
            f"{short(name)}: no detector; give module:function, FILE.onnx or models:/NAME@ALIAS"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever somebody else's code raises
        raise UserError(
            f"{short(name)}: cannot be imported: {type(error).__name__}: {short(error, 120)}"
        ) from error
    if not callable(found):
        raise UserError(f"{short(name)}: is a {type(found).__name__} and no function")
    return CallableDetector(name, found, "probability")


def _of_onnx(file: Path, threads: int) -> Callable[[Pictures], np.ndarray]:
    try:
        session = onnx_session(file, threads)
    except Exception as error:  # of ONNX Runtime, which has no type of its own for all of them
        raise UserError(f"{file}: no ONNX file that can be run: {short(error, 120)}") from error
    source = session.get_inputs()[0]
    side = source.shape[-1]
    kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    if len(source.shape) != 4 or not isinstance(side, int) or source.type not in kinds:
        raise UserError(
            f"{file}: its input is {source.type} {source.shape}; it must be uint8 or float32 "
            "(N, 3, S, S) of a fixed S: write a function around it"
        )

    def run(pictures: Pictures) -> np.ndarray:
        inputs = np.stack([_square(picture, side) for picture in pictures])
        if source.type == "tensor(float)":
            inputs = inputs.astype(np.float32) / 255
        (found, *_) = session.run(None, {source.name: inputs})
        logits = np.asarray(found, dtype=float).reshape(len(pictures), -1)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits.squeeze(1)

    return run


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture, resized to a square, uint8 (3, S, S)."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    return tv.resize(pixels, [side, side], antialias=True).numpy()


def _of_mlflow(uri: str) -> Callable[[Pictures], object]:
    connect()
    import mlflow

    try:
        model = mlflow.pyfunc.load_model(uri)
    except Exception as error:  # whatever a store or a server raises
        raise UserError(
            f"{uri}: not to be had: {short(error, 100)}; `make ui` shows what is registered"
        ) from error

    def run(pictures: Pictures) -> object:
        found = model.predict(pd.DataFrame({"image": [_png(picture) for picture in pictures]}))
        return found["score"] if isinstance(found, pd.DataFrame) else found

    return run


def _png(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
