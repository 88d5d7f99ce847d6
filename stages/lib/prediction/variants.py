"""What perturbed and edited images have in common: their inputs, and the table of their logits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.lib.detector.preprocessing import Preprocessing, crop_of, input_of

Variant = tuple[Callable[..., Any], float]  # an operation and its level


def inputs_of_variants(images: Sequence[torch.Tensor], how: Preprocessing) -> torch.Tensor:
    """Return the inputs of the variants of an image, each uint8 (3, H, W): uint8 (V, 3, S, S)."""
    return torch.stack([input_of(crop_of(image, how), how) for image in images])


def variant_table(
    kind: str, variants: Sequence[Variant], names: pd.Series, logits: np.ndarray
) -> pd.DataFrame:
    """Return one row per image and variant, the unchanged ones (`none`) first.

    kind: the column with the names of the operations. logits: float64 (N, 1 + V).
    """
    unchanged_first = [("none", 0.0)]
    unchanged_first += [(operation.__name__, float(level)) for operation, level in variants]
    tables = [
        pd.DataFrame({"img_name": names, kind: name, "level": level, "logit": column})
        for (name, level), column in zip(unchanged_first, logits.T, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)
