"""The model that MLflow serves, from source text and safetensors: nothing is pickled.

Input: a table with one or more of these columns; each row fills one of them.

    image   bytes     an encoded image (JPEG, PNG, WebP; over REST in base64)
    path    string    an image file below the folder `path_root`, read by the process that runs the
                      model; off unless that folder is named
    pixels  array     uint8 (H, W, 3), RGB, values 0 to 255; over REST nested lists

Output: a table with the column `score`, P(fake) in [0, 1], one row per row of the input. With the
parameter `verdicts` it has more columns, for images of faces that are cut out already:
`doubt` (a sentence where this detector cannot be believed), `verdict` (real, fake or unsure),
`probability` (calibrated; none where there is a doubt) and `reasons` (why it is unsure, keys of
REASONS in stages/lib/evaluation/verdict_rules.py with commas between them). Raises
MlflowException for a row that fills none or several of the columns, an image that cannot be decoded
or is too large, a file that cannot be read, and pixels of another shape or outside 0 to 255. With
the parameter `bad_images` = `report` such a row has its reason in the column `error`, no numbers
and empty words; in the other rows `error` is empty. So one bad image in a million ends no job. The
scores are those of the predict stage; another batch size may change the seventh digit.

The configuration of the model has `max_megapixels`, the largest image, and `path_root`. Change
them with load_model(..., model_config={...}). A server reads path_root from the environment
variable DETECTOR_PATH_ROOT.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from stages.lib.core.files import open_regular
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.inference import BATCH_SIZE
from stages.lib.detector.preprocessing import crop_of, input_of
from stages.lib.evaluation.verdict_rules import DOUBTS
from stages.lib.images.decoding import DecodedImage
from stages.lib.verdict.examiner import Examiner, PreparedImage

COLUMNS = ("image", "path", "pixels")
BAD_IMAGES = ("refuse", "report")
OF_SCORES = ("score",)  # columns of an answer
OF_VERDICTS = (*OF_SCORES, "doubt", "verdict", "probability", "reasons")
NUMBERS = ("score", "probability")
Row = tuple[int, dict[str, Any]]  # with its number
T = TypeVar("T")


class ServedDetector(PythonModel):
    """Scores images with the weights that are logged beside it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the detector and its rules once."""
        config = context.model_config or {}
        max_pixels = round(float(config["max_megapixels"]) * 1e6)
        self.path_root = os.environ.get("DETECTOR_PATH_ROOT") or config.get("path_root")
        self.examiner = examiner_of(context.artifacts["detector"], max_pixels)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Return one score per row, and its verdict where params has `verdicts`."""
        if model_input.columns.intersection(COLUMNS).empty:
            raise MlflowException.invalid_parameter_value(f"no column of {', '.join(COLUMNS)}")
        params = params or {}
        bad_images = params.get("bad_images", "refuse")
        if bad_images not in BAD_IMAGES:
            raise MlflowException.invalid_parameter_value(
                f"bad_images = '{bad_images}': give one of {', '.join(BAD_IMAGES)}"
            )
        rows = list(enumerate(model_input.reindex(columns=list(COLUMNS)).to_dict("records")))
        batches = [rows[first : first + BATCH_SIZE] for first in range(0, len(rows), BATCH_SIZE)]
        has_verdicts = bool(params.get("verdicts"))
        answers = [self._answer(batch, has_verdicts, bad_images) for batch in batches]
        empty = pd.DataFrame({"score": np.empty(0)})
        return pd.concat(answers or [empty], ignore_index=True)

    def _answer(self, rows: list[Row], has_verdicts: bool, bad_images: str) -> pd.DataFrame:
        """Return scores or verdicts of a batch, where wanted with the reasons of bad images."""
        prepare = self.examiner.prepare if has_verdicts else self._input
        prepared: dict[int, Any] = {}
        errors: dict[int, str] = {}
        for number, row in rows:
            try:
                prepared[number] = self._prepared(row, prepare)
            except (ValueError, TypeError, RuntimeError) as error:  # of a value that is no image
                if bad_images == "refuse":
                    told = f"row {number}: {error}"
                    raise MlflowException.invalid_parameter_value(told) from error
                errors[number] = str(error)
        answer = pd.DataFrame(columns=list(OF_VERDICTS if has_verdicts else OF_SCORES))
        if prepared:
            images = list(prepared.values())
            answer = self._verdicts(images) if has_verdicts else self._scores(images)
        if bad_images == "refuse":
            return answer
        answer = answer.set_axis(list(prepared)).reindex([number for number, _ in rows])
        numbers = [name for name in answer if name in NUMBERS]
        answer[numbers] = answer[numbers].astype(float)
        # Spark has no empty cell of text in what a model returns.
        words = answer.columns.difference(NUMBERS)
        answer[words] = answer[words].astype(object).fillna("")
        return answer.assign(error=[errors.get(number, "") for number, _ in rows])

    def _input(self, image: DecodedImage) -> torch.Tensor:
        how = self.examiner.preprocessing
        return input_of(crop_of(image.tensor, how), how)[None]

    def _scores(self, inputs: list[torch.Tensor]) -> pd.DataFrame:
        logits = self.examiner.inference.logits(torch.stack(inputs))
        return pd.DataFrame({"score": torch.sigmoid(logits[:, 0]).numpy()})

    def _verdicts(self, prepared: list[PreparedImage]) -> pd.DataFrame:
        verdicts = self.examiner.verdicts(prepared)
        columns = (
            [image.faces[0].score for image in verdicts],
            [image.doubt and DOUBTS[image.doubt] for image in verdicts],
            [image.verdict for image in verdicts],
            np.array([image.probability for image in verdicts], dtype=float),
            [",".join(image.reasons) for image in verdicts],
        )
        return pd.DataFrame(dict(zip(OF_VERDICTS, columns, strict=True)))

    def _prepared(self, row: dict[str, Any], prepare: Callable[[DecodedImage], T]) -> T:
        """Return what a function makes of the image of a row."""
        given = {name: value for name, value in row.items() if not _is_missing(value)}
        if len(given) != 1:
            raise ValueError(f"fill one of {', '.join(COLUMNS)}, not {len(given)}")
        ((name, value),) = given.items()
        if name == "pixels":
            return prepare(_from_pixels(value, self.examiner.max_pixels))
        content = _read_file(value, self.path_root) if name == "path" else value
        return prepare(self.examiner.decode(content))


@lru_cache(maxsize=2)
def examiner_of(folder: str, max_pixels: int) -> Examiner:
    """Load the detector in a folder once in each process: Spark loads the model for each task."""
    hardware = Hardware(torch.device("cpu"), bf16=False)
    return Examiner(Path(folder), hardware, crop=False, max_pixels=max_pixels)


def _read_file(path: str, root: str | None) -> bytes:
    """Return the bytes of a file below root; raises ValueError, the same for all other files."""
    if not root:
        raise ValueError(
            "the column path is off; send the bytes in the column image, or name the folder of the "
            "images: load_model(..., model_config={'path_root': FOLDER})"
        )
    try:
        file = Path(root, path).resolve(strict=True)
        if file.is_relative_to(Path(root).resolve()):
            with open_regular(file) as content:
                return content.read()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        pass
    raise ValueError(f"path: no file {path!r} that can be read")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _from_pixels(value: Any, max_pixels: int) -> DecodedImage:
    """Return an array as an image; raises ValueError."""
    pixels = np.asarray(value)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype.kind not in "ui":
        raise ValueError(
            f"pixels must be integers of shape (H, W, 3), not {pixels.dtype} {pixels.shape}"
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= max_pixels:
        raise ValueError(f"pixels: {pixels.shape} is empty, or more than {max_pixels} pixels")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels must be 0 to 255, not {pixels.min()} to {pixels.max()}")
    size = pixels.shape[1], pixels.shape[0]
    return DecodedImage(pixels.astype(np.uint8), "pixels", "RGB", size, jpeg_tables=None)
