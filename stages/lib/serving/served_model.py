"""The model that MLflow serves. MLflow runs this file itself, so nothing is pickled.

Input: a table with one or more of these columns; each row fills one of them.

    image   bytes     an encoded image (JPEG, PNG, WebP; over REST in base64)
    path    string    an image file, read by the process that runs the model
    pixels  array     uint8 (H, W, 3), RGB, values 0 to 255; over REST nested lists

Output: a table with the column `score`, P(fake) in [0, 1], one row per row of the input. Raises
MlflowException for a row that fills none or several of the columns, an image that cannot be
decoded, a file that cannot be read, and pixels of another shape or outside 0 to 255. The scores are
those of the predict stage; another batch size may change the seventh digit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from stages.lib.detector.model import fake_logit, load_detector
from stages.lib.detector.preprocessing import Preprocessing, decode, to_input

COLUMNS = ("image", "path", "pixels")
BATCH_SIZE = 32


class ServedDetector(PythonModel):
    """Scores images with the weights that are logged beside it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the detector once."""
        self.detector, self.config = load_detector(Path(context.artifacts["detector"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Return one score per row."""
        if model_input.columns.intersection(COLUMNS).empty:
            raise MlflowException.invalid_parameter_value(f"no column of {', '.join(COLUMNS)}")
        rows = list(enumerate(model_input.reindex(columns=list(COLUMNS)).to_dict("records")))
        batches = [rows[first : first + BATCH_SIZE] for first in range(0, len(rows), BATCH_SIZE)]
        scores = [self._scores(batch) for batch in batches]
        return pd.DataFrame({"score": np.concatenate(scores or [np.empty(0)])})

    @torch.inference_mode()
    def _scores(self, rows: list[tuple[int, dict[str, Any]]]) -> np.ndarray:
        """Return float64 (N,)."""
        images = torch.stack([self._input(number, row) for number, row in rows])
        return torch.sigmoid(fake_logit(self.detector(images)).double()).numpy()

    def _input(self, number: int, row: dict[str, Any]) -> torch.Tensor:
        """Return uint8 (3, S, S)."""
        try:
            return to_input(_read(row, self.config.preprocessing), self.config.preprocessing)
        except (ValueError, RuntimeError, OSError) as error:  # what decoders and files raise
            raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from error


def _read(row: dict[str, Any], preprocessing: Preprocessing) -> torch.Tensor:
    """Return uint8 (3, H, W) from the one column that the row fills; raises ValueError."""
    given = {name: value for name, value in row.items() if not _is_missing(value)}
    if len(given) != 1:
        raise ValueError(f"fill one of {', '.join(COLUMNS)}, not {len(given)}")
    ((name, value),) = given.items()
    if name == "pixels":
        return _from_pixels(value)
    return decode(Path(value).read_bytes() if name == "path" else value, preprocessing)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _from_pixels(value: Any) -> torch.Tensor:
    pixels = np.asarray(value)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype.kind not in "ui":
        raise ValueError(
            f"pixels must be integers of shape (H, W, 3), not {pixels.dtype} {pixels.shape}"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels must be 0 to 255, not {pixels.min()} to {pixels.max()}")
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)


set_model(ServedDetector())
