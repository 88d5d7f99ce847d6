"""Rows of the tables that stages.evaluate writes: a metric, its 95 % interval and its n.

Every function takes a table with one row per image and the columns target (0 real, 1 fake), logit,
score (P(fake)) and group (near-duplicates share one).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.core.labels import FAKE, REAL
from stages.lib.evaluation.metrics import RankedScores
from stages.lib.evaluation.resampling import Interval, metric_intervals, share_interval

Row = dict[str, Any]


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of reals and fakes."""
    return {
        "num_real": int((table["target"] == REAL).sum()),
        "num_fake": int((table["target"] == FAKE).sum()),
    }


def intervals_of(
    table: pd.DataFrame, names: Sequence[str], threshold: float = 0.5
) -> dict[str, Interval]:
    """Return the named METRICS with their intervals."""
    return metric_intervals(ranked(table, threshold), table["group"].to_numpy(), names)


def shares_called_fake(table: pd.DataFrame, threshold: float) -> dict[str, Interval]:
    """Return tpr and fpr, the shares of fakes and of reals called fake, where there are any."""
    called = (table["score"] >= threshold).to_numpy()
    groups, targets = table["group"].to_numpy(), table["target"].to_numpy(dtype=int)
    return {
        name: share_interval(called[targets == target], groups[targets == target])
        for name, target in (("tpr", FAKE), ("fpr", REAL))
        if (targets == target).any()
    }


def metric_row(name: str, metric: str, found: Interval, table: pd.DataFrame) -> Row:
    """Return one row of metrics/tables/intervals.csv, without the name of its set."""
    return {"slice": name, "metric": metric} | columns_of("value", found) | counts(table)


def columns_of(name: str, found: Interval, prefix: str = "") -> dict[str, float]:
    """Return the interval as columns: its value by name, and low and high."""
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}


def ranked(table: pd.DataFrame, threshold: float = 0.5) -> RankedScores:
    """Return the scores of a table, ranked by their logits."""
    return RankedScores(*arrays(table), threshold, table["logit"].to_numpy(dtype=float))


def arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return targets, int (N,), and scores, float (N,)."""
    return table["target"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)
