"""Risk and coverage: how often a detector is wrong on the images that it is surest of.

A detector that abstains on an image leaves it to a person (El-Yaniv & Wiener 2010). Coverage is the
share of images that it does not leave, risk the share of wrong calls among those.
"""

import numpy as np
import pandas as pd
from scipy.special import logit

from stages.lib.evaluation.verdict_rules import REASONS

CURVE_POINTS = 100
# A score between the thresholds is no reason here, because the curve takes every threshold.
OTHER_REASONS = [reason for reason in REASONS if reason != "between"]


def risks(is_wrong: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """Return the risk at coverage 1/N, 2/N, ... 1, float (N,); the surest images come first.

    is_wrong: bool (N,), N > 0. certainty: float (N,). Images that are equally sure have no order,
    so each of them counts as their mean.
    """
    order = np.argsort(-certainty, kind="stable")
    _, tie = np.unique(-certainty[order], return_inverse=True)
    means = np.bincount(tie, is_wrong[order]) / np.bincount(tie)
    return np.cumsum(means[tie]) / np.arange(1, len(order) + 1)


def risks_of(table: pd.DataFrame, middle: float) -> np.ndarray:
    """Return the risks of a set, float (N,), where all images are called at the middle threshold.

    table: logit, target, and a column for each of REASONS. The surest images have a score far from
    that threshold; those with another reason to abstain come after all others.
    """
    gap = table["logit"].to_numpy(dtype=float) - logit(middle)
    is_wrong = (gap >= 0) != table["target"].to_numpy(dtype=int)
    certainty = np.abs(gap)
    has_reason = table[OTHER_REASONS].any(axis=1).to_numpy()
    return risks(is_wrong, np.where(has_reason, certainty - certainty.max() - 1, certainty))


def area(curve: np.ndarray) -> float:
    """Return AURC, the area under what `risks` returns (Geifman et al. 2019); 0 is best."""
    return float(curve.mean())


def risk_coverage_curves(curves: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return a row for each of CURVE_POINTS coverages and a column for the risks of each set."""
    coverage = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS
    table = pd.DataFrame({"coverage": coverage})
    for name, curve in curves.items():
        table[name] = curve[np.ceil(coverage * len(curve) - 1e-9).astype(int) - 1]
    return table
