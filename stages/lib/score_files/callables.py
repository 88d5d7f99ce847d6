"""Detectors of other people that can be called: a Python function, an ONNX file, a model of MLflow.

Each takes images as they are in their files, uint8 (H, W, 3) in RGB, of differing sizes.
"""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.errors import UserError, short
from stages.lib.score_files.reading import LOGIT, PROBABILITY
from stages.lib.tracking.mlflow_store import connect
from stages.lib.verdict.networks import onnx_session

NUMBERS = "fiub"  # kinds of NumPy: floats, integers and booleans
NOT_NUMBERS = {"U": "strings", "S": "strings", "c": "complex numbers"}
NUM_TRIED = 4  # images of noise on which an ONNX file is tried
SUM_TOLERANCE = 1e-4  # of two probabilities, from 1

Images = Sequence[np.ndarray]
Run = Callable[[Images], object]


@dataclass(frozen=True)
class CallableDetector:
    """A function from N images to N numbers, higher for fakes, and what the numbers are."""

    name: str
    run: Run
    scale: str  # PROBABILITY or LOGIT

    def score(self, images: Images) -> np.ndarray:
        """Return one finite number for each image, float64 (N,); raises UserError.

        The function may return a list, an array or a tensor, (N,) or (N, 1).
        """
        count = len(images)
        batch = f"{count} image{'s' if count > 1 else ''}"
        with _in_one_line(f"{self.name}: failed on {batch}"):
            returned = self.run(images)
            numbers = _as_array(returned)
        if numbers.shape in ((count, 1), ()) and numbers.size == count:
            numbers = numbers.reshape(count)
        mistake = _what_is_wrong(numbers, returned, count)
        if mistake:
            raise UserError(
                f"{self.name}: gave {mistake} for {batch}; return one number for each image"
            )
        numbers = numbers.astype(float)
        infinite = numbers[~np.isfinite(numbers)]
        if len(infinite):
            raise UserError(
                f"{self.name}: gave numbers that are not finite ({infinite[0]}) for "
                f"{len(infinite)} of {batch}; return finite ones"
            )
        if self.scale == PROBABILITY and not _are_probabilities(numbers):
            raise UserError(
                f"{self.name}: {numbers.min():.4g} to {numbers.max():.4g} are no probabilities of "
                "a fake; return 0 to 1, or give --scale logit"
            )
        return numbers

    def doubt(self, scores: np.ndarray) -> str:
        """Say what speaks against the scale in the scores of all images, float (N,), or nothing."""
        if self.scale == PROBABILITY or not _are_probabilities(scores):
            return ""
        return (
            f"{self.name}: every score is in 0 to 1; where these are probabilities, give --scale "
            "probability"
        )


def load_callable(name: str, threads: int, scale: str | None = None) -> CallableDetector:
    """Return the detector of a name; raises UserError where it cannot be loaded.

    `module:function` takes a list of images. `FILE.onnx` takes float32 from 0 to 1 or uint8,
    (N, 3, S, S), and returns (N,), (N, 1), or (N, 2) of real and fake. A model of MLflow
    (`models:/...`, `runs:/...`) takes PNG files in a column `image`, and returns its numbers in a
    column `score` where it returns a table. scale: of the numbers, PROBABILITY or LOGIT; None:
    LOGIT for an ONNX file, whose outputs must then not look like probabilities, else PROBABILITY.
    """
    if name.startswith(("models:/", "runs:/")):
        return CallableDetector(name, _of_mlflow(name), scale or PROBABILITY)
    if name.endswith(".onnx"):
        return CallableDetector(name, _of_onnx(Path(name), threads, scale), scale or LOGIT)
    return CallableDetector(name, _of_python(name), scale or PROBABILITY)


# ---------------------------------------------------------------------------------------------
# What somebody else's code does and returns


@contextmanager
def _in_one_line(beginning: str, remedy: str = "") -> Iterator[None]:
    """Make one line of whatever somebody else's code raises, and of its sys.exit()."""
    try:
        yield
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:  # somebody stops this program, see stopping.py
            raise
        raise UserError(
            f"{beginning}: it ended the program by sys.exit({short(repr(error.code))}); remove "
            'that, or put it under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise UserError(
            f"{beginning}: {type(error).__name__}: {short(error, 120)}{remedy}"
        ) from error


def _as_array(numbers: object) -> np.ndarray:
    """Return a list, an array or a tensor as an array, of any type and shape."""
    if isinstance(numbers, torch.Tensor):
        tensor = numbers.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # for bfloat16
    if isinstance(numbers, list | tuple):
        return np.asarray([_as_array(part) for part in numbers])
    return np.asarray(numbers)


def _what_is_wrong(numbers: np.ndarray, returned: object, count: int) -> str:
    """Say what was returned in place of `count` numbers; nothing where it was these."""
    if numbers.dtype.kind not in NUMBERS:
        return NOT_NUMBERS.get(numbers.dtype.kind, f"a {type(returned).__name__}, no numbers,")
    if numbers.shape == (count,):
        return ""
    return f"{len(numbers)} numbers" if numbers.ndim == 1 else f"an array of shape {numbers.shape}"


def _are_probabilities(numbers: np.ndarray) -> bool:
    return bool(((numbers >= 0) & (numbers <= 1)).all())


# ---------------------------------------------------------------------------------------------
# The kinds of detectors


def _of_python(name: str) -> Run:
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(
            f"{short(name)}: no detector; give module:function, FILE.onnx or models:/NAME@ALIAS"
        )
    if module.endswith(".py"):
        file = Path(module)
        place = "" if file.parent == Path() else f", with PYTHONPATH={file.parent}"
        raise UserError(
            f"{short(name)}: names a file and no module; write {file.stem}:{function}{place}"
        )
    sys.path.insert(0, str(Path.cwd()))
    with _in_one_line(f"{short(name)}: cannot be imported"):
        run = getattr(importlib.import_module(module), function)
    if not callable(run):
        raise UserError(f"{short(name)}: is a {type(run).__name__} and no function")
    return run


def _of_onnx(file: Path, threads: int, scale: str | None) -> Run:
    outputs = _outputs_of_onnx(file, threads)
    print(
        f"{file}: gets whole images, resized to a square; for another input, such as the face "
        "only, write a function around it",
        file=sys.stderr,
    )
    _try_onnx(file, outputs, scale)

    def run(images: Images) -> np.ndarray:
        numbers = outputs(images)
        if numbers.shape[1] == 1:
            return numbers[:, 0]
        reals, fakes = numbers.T
        return fakes if scale == PROBABILITY else fakes - reals

    return run


def _outputs_of_onnx(file: Path, threads: int) -> Callable[[Images], np.ndarray]:
    """Return the function from N images to the first output of a network, float64 (N, K)."""
    with _in_one_line(f"{file}: no ONNX file that can be run"):
        session = onnx_session(file, threads)
    network_input = session.get_inputs()[0]
    shape, kind = network_input.shape, network_input.type
    side = shape[-1] if shape else 0
    is_square = isinstance(side, int) and shape[1:] == [3, side, side]
    if not is_square or kind not in ("tensor(uint8)", "tensor(float)"):
        raise UserError(
            f"{file}: its input is {kind} {shape}; it must be uint8 or float32 "
            "(N, 3, S, S) of a fixed S: write a function around it"
        )

    def outputs(images: Images) -> np.ndarray:
        inputs = np.stack([_square(image, side) for image in images])
        if kind == "tensor(float)":
            inputs = inputs.astype(np.float32) / 255
        size = shape[0] if isinstance(shape[0], int) else len(inputs)
        parts = []
        for first in range(0, len(inputs), size):
            part = inputs[first : first + size]
            full = np.resize(part, (size, *shape[1:]))  # repeats images up to a fixed number
            first_output = session.run(None, {network_input.name: full})[0]
            numbers = np.asarray(first_output, dtype=float)
            parts.append(numbers.reshape(len(numbers), -1)[: len(part)])
        return np.concatenate(parts)

    return outputs


def _try_onnx(file: Path, outputs: Callable[[Images], np.ndarray], scale: str | None) -> None:
    """Raise UserError where noise shows, before hours of work, that the outputs do not fit."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_TRIED, 32, 32, 3), dtype=np.uint8)
    with _in_one_line(f"{file}: no ONNX file that can be run"):
        numbers = outputs(list(noise))
    if numbers.shape not in ((NUM_TRIED, 1), (NUM_TRIED, 2)):
        raise UserError(
            f"{file}: its output for {NUM_TRIED} images is {numbers.shape}; it must be (N,), "
            "(N, 1) or (N, 2) for N images: write a function around it"
        )
    if scale == PROBABILITY or not _are_probabilities(numbers):
        return
    if numbers.shape[1] == 2 and np.abs(numbers.sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        raise UserError(
            f"{file}: its two outputs are in 0 to 1 and sum to 1: these are probabilities; give "
            "--scale probability"
        )
    if scale is None:  # a detector that is hardly trained can have such logits
        raise UserError(
            f"{file}: its outputs for noise are in 0 to 1; give --scale probability, or --scale "
            "logit where they are logits"
        )


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image, resized to a square, uint8 (3, S, S)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return tv.resize(pixels, [side, side], antialias=True).numpy()


def _of_mlflow(uri: str) -> Run:
    connect()
    import mlflow

    with _in_one_line(f"{uri}: cannot be loaded", "; `make ui` shows what is registered"):
        model = mlflow.pyfunc.load_model(uri)

    def run(images: Images) -> object:
        returned = model.predict(pd.DataFrame({"image": [_png(image) for image in images]}))
        return returned["score"] if isinstance(returned, pd.DataFrame) else returned

    return run


def _png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
