"""A detector's figures in parts: by slices of a set, across sets, and at points of operation.

Every function takes tables with one row per image and the columns target (0 real, 1 fake), score
(P(fake)) and group (near-duplicates share one), and returns rows with a 95 % interval and its n.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from stages.lib.competition import FAKE, REAL
from stages.lib.metrics import METRICS, RankedScores, threshold_at_fpr
from stages.lib.resampling import Interval, metric_intervals, share_interval

REALS_FOR_1E_4 = 10_000  # fewer reals cannot show a false alarm in ten thousand
CALIBRATED = ("ece", "log_loss", "brier")  # reported before and after temperature scaling
OPERATING_FPRS = (1e-2, 1e-3)
Row = dict[str, Any]


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of reals and fakes."""
    return {
        "num_real": int((table["target"] == REAL).sum()),
        "num_fake": int((table["target"] == FAKE).sum()),
    }


def set_rows(table: pd.DataFrame, threshold: float, temperature: float) -> list[Row]:
    """Return a row per metric that the set is large enough for (further column: logit).

    These are METRICS, CALIBRATED again as `*_scaled` after temperature scaling, and tpr and fpr.
    """
    enough = (table["target"] == REAL).sum() >= REALS_FOR_1E_4
    names = [name for name in METRICS if enough or name != "tpr_at_fpr_1e-4"]
    found = intervals_of(table, names, threshold)
    scaled = table.assign(score=expit(table["logit"] / temperature))
    found |= {f"{name}_scaled": one for name, one in intervals_of(scaled, CALIBRATED).items()}
    found |= _shares(table, threshold)
    return [_row("all", metric, interval, table) for metric, interval in found.items()]


def slice_rows(
    table: pd.DataFrame, threshold: float, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> list[Row]:
    """Return AUC, tpr and fpr of every slice (further columns as in data/labels).

    A slice with one class only, such as the fakes of a family, has its AUC against the whole set's
    images of the other class; tpr and fpr are always of its own images.
    """
    rows = []
    for name, part in _slices(table, size_bands, quality_bands):
        present = part["target"].unique()
        others = table[~table["target"].isin(present)]
        whole = pd.concat([part, others])
        found = intervals_of(whole, ["auc"], threshold)
        rows += [_row(name, metric, interval, whole) for metric, interval in found.items()]
        found = _shares(part, threshold)
        rows += [_row(name, metric, interval, part) for metric, interval in found.items()]
    return rows


def _slices(
    table: pd.DataFrame, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield ("family=swap", its rows) and the like, of all properties that differ in the set."""
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
    """Name the band of each number: "below 50", "50 to 74", "75 and more"; missing ones none."""
    names = [f"below {ends[0]}"]
    names += [f"{low} to {high - 1}" for low, high in pairwise(ends)]
    names += [f"{ends[-1]} and more"]
    edges = [-np.inf, *ends, np.inf]
    return pd.cut(numbers.astype(float), edges, right=False, labels=names)


def cross_rows(tables: dict[str, pd.DataFrame]) -> list[Row]:
    """Return the AUC of each set's reals against each set's fakes (Cross-AUC).

    A detector whose scores drift from set to set may be good on each and bad across them; one
    threshold for all of them then fails.
    """
    rows = []
    for of_reals, of_fakes in product(tables, tables):
        reals, fakes = tables[of_reals], tables[of_fakes]
        table = pd.concat([reals[reals["target"] == REAL], fakes[fakes["target"] == FAKE]])
        found = intervals_of(table, ["auc"])["auc"]
        names = {"reals_of": of_reals, "fakes_of": of_fakes}
        rows.append(names | columns_of("auc", found) | counts(table))
    return rows


def operating_rows(calibration: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> list[Row]:
    """Return what the threshold for each of OPERATING_FPRS, set on `calibration`, does elsewhere.

    `enough_reals` says whether the calibration reals can show that rate at all: without 1 / rate of
    them the threshold lies just above the highest of their scores.
    """
    targets, scores = arrays(calibration)
    num_reals = int((targets == REAL).sum())
    rows = []
    for wanted in OPERATING_FPRS:
        threshold = threshold_at_fpr(targets, scores, wanted)
        for name, table in tables.items():
            found = _shares(table, threshold)
            rows.append(
                {"set": name, "wanted_fpr": wanted, "threshold": threshold}
                | {"calibration_reals": num_reals, "enough_reals": num_reals * wanted >= 1}
                | columns_of("tpr", found["tpr"], "tpr_")
                | columns_of("fpr", found["fpr"], "fpr_")
                | {"false_alarms_per_million": round(1e6 * found["fpr"].value)}
                | counts(table)
            )
    return rows


def intervals_of(
    table: pd.DataFrame, names: Sequence[str], threshold: float = 0.5
) -> dict[str, Interval]:
    """Return these of METRICS with their intervals."""
    ranked = RankedScores(*arrays(table), threshold)
    return metric_intervals(ranked, table["group"].to_numpy(), names)


def _shares(table: pd.DataFrame, threshold: float) -> dict[str, Interval]:
    """Return tpr and fpr, the shares of fakes and of reals called fake, where there are any."""
    called = (table["score"] >= threshold).to_numpy()
    groups, targets = table["group"].to_numpy(), table["target"].to_numpy(dtype=int)
    return {
        name: share_interval(called[targets == target], groups[targets == target])
        for name, target in (("tpr", FAKE), ("fpr", REAL))
        if (targets == target).any()
    }


def _row(name: str, metric: str, found: Interval, table: pd.DataFrame) -> Row:
    return {"slice": name, "metric": metric} | columns_of("value", found) | counts(table)


def columns_of(name: str, found: Interval, prefix: str = "") -> dict[str, float]:
    """Return the interval as columns: its value by name, and low and high."""
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}


def arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return targets, int (N,), and scores, float (N,)."""
    return table["target"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)
