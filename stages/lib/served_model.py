"""The model that MLflow serves: encoded images in, P(fake) out. MLflow runs this file by itself.

Input: a table with a column `image` of encoded images (bytes; JPEG, PNG, WebP). Output: a table
with a column `score`, P(fake) in [0, 1].
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from stages.lib.images import decode, resize
from stages.lib.model import fake_logit, load_detector


class ServedDetector(PythonModel):
    """Scores images with the weights logged beside it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the detector once."""
        self.detector, self.config = load_detector(Path(context.artifacts["detector"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Return one score per row of the column `image`."""
        scores = [self._score(content) for content in model_input["image"]]
        return pd.DataFrame({"score": scores})

    @torch.inference_mode()
    def _score(self, content: bytes) -> float:
        image = resize(decode(content), self.config.preprocessing)
        return float(torch.sigmoid(fake_logit(self.detector(image[None]))))


set_model(ServedDetector())
