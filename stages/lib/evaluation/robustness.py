"""How well a detector works on perturbed images."""

import numpy as np
import pandas as pd

from stages.lib.evaluation.resampling import Interval, both_vary, cluster_weights, interval
from stages.lib.evaluation.rows import columns_of, counts, intervals_of, ranked


def robustness_table(perturbed: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return AUC with its interval, flip rate and n for every perturbation and level, in order.

    perturbed: columns img_name, perturbation, level, logit, score, target, group, with the same
    images in one order for each perturbation and level. An image flips where its
    verdict at the threshold differs from that on the unperturbed image.
    """
    plain = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["score"]
    rows = []
    for (kind, level), part in perturbed.groupby(["perturbation", "level"], sort=False):
        found = intervals_of(part, ["auc"])["auc"]
        before = part["img_name"].map(plain) >= threshold
        flips = float(((part["score"] >= threshold) != before).mean())
        numbers = columns_of("auc", found) | {"flip_rate": flips} | counts(part)
        rows.append({"perturbation": kind, "level": level} | numbers)
    columns = ["perturbation", "level", "auc", "low", "high", "flip_rate", "num_real", "num_fake"]
    return pd.DataFrame(rows, columns=columns)


def summarise_robustness(perturbed: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Return mean_auc, the one number to compare detectors by, and what belongs to it.

    table: what robustness_table returns for perturbed. Every kind of perturbation counts the same.
    The interval of mean_auc is from resamples of the images, each with all its perturbed versions.
    It is left out where it is not known, because JSON has no NaN.
    """
    plain, others = table["perturbation"] == "none", table["perturbation"] != "none"
    flip_rates = table[others].groupby("perturbation")["flip_rate"].mean()
    found = mean_auc_interval(perturbed[perturbed["perturbation"] != "none"])
    ends = {"mean_auc_low": found.low, "mean_auc_high": found.high}
    return {
        "plain_auc": float(table.loc[plain, "auc"].iloc[0]),
        "mean_auc": found.value,
        **(ends if np.isfinite(found.low) else {}),
        "worst_auc": float(table.loc[others, "auc"].min()),
        "mean_flip_rate": float(flip_rates.mean()),
    }


def mean_auc_interval(perturbed: pd.DataFrame) -> Interval:
    """Return the mean over kinds of the mean AUC over levels, with its interval."""
    parts = list(perturbed.groupby(["perturbation", "level"], sort=False))
    kinds = pd.Series([kind for (kind, _), _ in parts])
    share = 1 / kinds.map(kinds.value_counts()).to_numpy() / kinds.nunique()
    first, rankings = parts[0][1], [ranked(part) for _, part in parts]
    targets, groups = first["target"].to_numpy(dtype=int), first["group"].to_numpy()

    def mean_auc(weights: np.ndarray) -> float:
        return share @ [one.metrics(weights[one.order], ["auc"])["auc"] for one in rankings]

    resamples = cluster_weights(groups) if both_vary(targets, groups) else ()
    return interval(mean_auc(np.ones(len(groups))), [mean_auc(weights) for weights in resamples])
