"""What is left of a detector's figures where pictures are perturbed."""

import pandas as pd

from stages.lib.breakdown import arrays, counts
from stages.lib.metrics import RankedScores
from stages.lib.resampling import metric_intervals


def robustness_table(perturbed: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return AUC with its interval, flip rate and n for every perturbation and level, in order.

    perturbed: columns img_name, perturbation, level, score, target, group. An image flips where its
    verdict at the threshold is not that on the unperturbed image.
    """
    plain = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["score"]
    rows = []
    for (kind, level), part in perturbed.groupby(["perturbation", "level"], sort=False):
        groups = part["group"].to_numpy()
        found = metric_intervals(RankedScores(*arrays(part)), groups, ["auc"])["auc"]
        before = part["img_name"].map(plain) >= threshold
        flips = float(((part["score"] >= threshold) != before).mean())
        numbers = {"auc": found.value, "low": found.low, "high": found.high, "flip_rate": flips}
        rows.append({"perturbation": kind, "level": level} | numbers | counts(part))
    columns = ["perturbation", "level", "auc", "low", "high", "flip_rate", "num_real", "num_fake"]
    return pd.DataFrame(rows, columns=columns)


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """Return the one number to compare detectors by, mean_auc over all perturbations, and more."""
    plain, others = table["perturbation"] == "none", table["perturbation"] != "none"
    by_kind = table[others].groupby("perturbation")[["auc", "flip_rate"]].mean()
    return {
        "plain_auc": float(table.loc[plain, "auc"].iloc[0]),
        "mean_auc": float(by_kind["auc"].mean()),  # every kind counts the same
        "worst_auc": float(table.loc[others, "auc"].min()),
        "mean_flip_rate": float(by_kind["flip_rate"].mean()),
    }
