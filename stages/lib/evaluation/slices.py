"""The metrics of a set, whole and by slices: family, source, size and JPEG quality.

Every function takes a table as stages/lib/evaluation/rows.py describes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.special import expit

from stages.lib.core.labels import REAL
from stages.lib.evaluation.metrics import METRICS
from stages.lib.evaluation.rows import Row, intervals_of, metric_row, shares_called_fake
from stages.lib.evaluation.videos import video_rows

REALS_FOR_1E_4 = 10_000  # fewer reals cannot show a false alarm in ten thousand
SCALED = ("ece", "log_loss", "brier")  # reported before and after temperature scaling


def set_rows(table: pd.DataFrame, threshold: float, temperature: float) -> list[Row]:
    """Return a row for each metric that the set is large enough for (one more column: logit).

    The metrics are METRICS, those of SCALED again as `*_scaled` after temperature scaling, tpr and
    fpr, and the AUC of videos where there are some (one more column: video).
    """
    enough = (table["target"] == REAL).sum() >= REALS_FOR_1E_4
    names = [name for name in METRICS if enough or name != "tpr_at_fpr_1e-4"]
    found = intervals_of(table, names, threshold)
    scaled = table.assign(score=expit(table["logit"] / temperature))
    found |= {f"{name}_scaled": one for name, one in intervals_of(scaled, SCALED).items()}
    found |= shares_called_fake(table, threshold)
    rows = [metric_row("all", metric, interval, table) for metric, interval in found.items()]
    return rows + video_rows(table)


def slice_rows(
    table: pd.DataFrame, threshold: float, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> list[Row]:
    """Return AUC, tpr and fpr of every slice (more columns: those of data/labels).

    A slice of one class, such as the fakes of a family, has its AUC against all images of the other
    class in the set. tpr and fpr are always those of its own images.
    """
    rows = []
    for name, part in slices(table, size_bands, quality_bands):
        present = part["target"].unique()
        others = table[~table["target"].isin(present)]
        whole = pd.concat([part, others])
        found = intervals_of(whole, ["auc"], threshold)
        rows += [metric_row(name, metric, interval, whole) for metric, interval in found.items()]
        found = shares_called_fake(part, threshold)
        rows += [metric_row(name, metric, interval, part) for metric, interval in found.items()]
    return rows


def slices(
    table: pd.DataFrame, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield pairs such as ("family=swap", its rows), for each property that differs in the set."""
    side = np.minimum(table["width"], table["height"])
    kinds = {
        "family": table["family"],
        "source": table["source"],
        "size": _bands(side, size_bands),
        "quality": _bands(table["jpeg_quality"], quality_bands),
    }
    for kind, values in kinds.items():
        if values.nunique(dropna=False) > 1:
            for value, part in table.groupby(values, observed=True):
                yield f"{kind}={value}", part


def _bands(numbers: pd.Series, ends: Sequence[int]) -> pd.Series:
    """Name the band of each number, such as "below 50", "50 to 74"; a missing one has no band."""
    names = [f"below {ends[0]}"]
    names += [f"{low} to {high - 1}" for low, high in pairwise(ends)]
    names += [f"{ends[-1]} and more"]
    edges = [-np.inf, *ends, np.inf]
    return pd.cut(numbers.astype(float), edges, right=False, labels=names)
