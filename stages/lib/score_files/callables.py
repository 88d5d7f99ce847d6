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
from stages.lib.tracking.mlflow_store import connect
from stages.lib.verdict.networks import onnx_session

PROBABILITY, LOGIT = SCALES = ("probability", "logit")
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
    scale: str  # of SCALES

    def score(self, images: Images) -> np.ndarray:
        """Return one finite number for each image, float64 (N,); raises UserError.

        The function may return a list, an array or a tensor, (N,) or (N, 1).
        """
        count = len(images)
        batch = f"{count} image{'s' if count > 1 else ''}"
        with _in_one_line(f"{self.name}: failed on {batch}"):
            returned = self.run(images)
            found = _as_array(returned)
        if found.shape in ((count, 1), ()) and found.size == count:
            found = found.reshape(count)
        told = _what_is_wrong(found, returned, count)
        if told:
            raise UserError(
                f"{self.name}: gave {told} for {batch}; return one number for each image"
            )
        found = found.astype(float)
        wrong = found[~np.isfinite(found)]
        if len(wrong):
            raise UserError(
                f"{self.name}: gave numbers that are not finite ({wrong[0]}) for {len(wrong)} of "
                f"{batch}; return finite ones"
            )
        if self.scale == PROBABILITY and not _are_probabilities(found):
            raise UserError(
                f"{self.name}: {found.min():.4g} to {found.max():.4g} are no probabilities of a "
                "fake; return 0 to 1, or give --scale logit"
            )
        return found

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
    column `score` where it returns a table. The numbers are of the scale, one of SCALES; None:
    logits of an ONNX file, which must not look like probabilities then, else P(fake).
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


def _as_array(found: object) -> np.ndarray:
    """Return a list, an array or a tensor as an array, of any type and shape."""
    if isinstance(found, torch.Tensor):
        found = found.detach().cpu()
        return (found.double() if found.is_floating_point() else found).numpy()  # for bfloat16
    if isinstance(found, list | tuple):
        found = [_as_array(one) if isinstance(one, torch.Tensor) else one for one in found]
    return np.asarray(found)


def _what_is_wrong(found: np.ndarray, returned: object, count: int) -> str:
    """Say what was returned in place of `count` numbers; nothing where it was these."""
    if found.dtype.kind not in NUMBERS:
        return NOT_NUMBERS.get(found.dtype.kind, f"a {type(returned).__name__}, no numbers,")
    if found.shape == (count,):
        return ""
    return f"{len(found)} numbers" if found.ndim == 1 else f"an array of shape {found.shape}"


def _are_probabilities(found: np.ndarray) -> bool:
    return bool(((found >= 0) & (found <= 1)).all())


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
        found = getattr(importlib.import_module(module), function)
    if not callable(found):
        raise UserError(f"{short(name)}: is a {type(found).__name__} and no function")
    return found


def _of_onnx(file: Path, threads: int, scale: str | None) -> Run:
    outputs = _outputs_of_onnx(file, threads)
    print(f"{file}: gets whole images, resized to a square; for another input, such as the face "
          "alone, write a function around it", file=sys.stderr)  # fmt: skip
    _try_onnx(file, outputs, scale)

    def run(images: Images) -> np.ndarray:
        found = outputs(images)
        if found.shape[1] == 1:
            return found[:, 0]
        return found[:, 1] if scale == PROBABILITY else found[:, 1] - found[:, 0]

    return run


def _outputs_of_onnx(file: Path, threads: int) -> Callable[[Images], np.ndarray]:
    """Return the function from N images to the first output of a network, float64 (N, K)."""
    with _in_one_line(f"{file}: no ONNX file that can be run"):
        session = onnx_session(file, threads)
    source = session.get_inputs()[0]
    shape = source.shape
    kinds = ("tensor(uint8)", "tensor(float)")
    is_square = len(shape) == 4 and isinstance(shape[3], int) and shape[1:] == [3, *[shape[3]] * 2]
    if not is_square or source.type not in kinds:
        raise UserError(
            f"{file}: its input is {source.type} {shape}; it must be uint8 or float32 "
            "(N, 3, S, S) of a fixed S: write a function around it"
        )

    def outputs(images: Images) -> np.ndarray:
        inputs = np.stack([_square(image, shape[3]) for image in images])
        if source.type == "tensor(float)":
            inputs = inputs.astype(np.float32) / 255
        size = shape[0] if isinstance(shape[0], int) else len(inputs)
        parts = []
        for first in range(0, len(inputs), size):
            part = inputs[first : first + size]
            full = np.resize(part, (size, *shape[1:]))  # repeats images up to a fixed number
            (first_output, *_) = session.run(None, {source.name: full})
            found = np.asarray(first_output, dtype=float)
            parts.append(found.reshape(len(found), -1)[: len(part)])
        return np.concatenate(parts)

    return outputs


def _try_onnx(file: Path, outputs: Callable[[Images], np.ndarray], scale: str | None) -> None:
    """Raise UserError where noise shows, before hours of work, that the outputs do not fit."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_TRIED, 32, 32, 3), dtype=np.uint8)
    with _in_one_line(f"{file}: no ONNX file that can be run"):
        found = outputs(list(noise))
    if found.shape not in ((NUM_TRIED, 1), (NUM_TRIED, 2)):
        raise UserError(
            f"{file}: its output for {NUM_TRIED} images is {found.shape}; it must be (N,), "
            "(N, 1) or (N, 2) for N images: write a function around it"
        )
    if scale == PROBABILITY or not _are_probabilities(found):
        return
    if found.shape[1] == 2 and np.abs(found.sum(axis=1) - 1).max() <= SUM_TOLERANCE:
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
        found = model.predict(pd.DataFrame({"image": [_png(image) for image in images]}))
        return found["score"] if isinstance(found, pd.DataFrame) else found

    return run


def _png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
