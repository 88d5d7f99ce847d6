"""The tables of an evaluation: slices, videos, cross-dataset AUC, operating points, robustness.

Every function takes tables as the second part of intervals.py describes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd
from scipy.special import expit

from stages.lib.core.labels import FAKE, REAL
from stages.lib.evaluation.intervals import (
    Interval,
    TableRow,
    both_vary,
    cluster_weights,
    columns_of,
    counts,
    intervals_of,
    percentile_interval,
    rank_table,
    shares_called_fake,
    targets_and_scores,
)
from stages.lib.evaluation.metrics import METRICS, threshold_at_fpr

REALS_FOR_1E_4 = 10_000  # fewer reals cannot show a false alarm in ten thousand
SCALED = ("ece", "log_loss", "brier")  # reported before and after temperature scaling
OPERATING_FPRS = (1e-2, 1e-3)
CROSS_COLUMNS = ["reals_of", "fakes_of", "auc", "low", "high", "num_real", "num_fake"]
ROBUSTNESS_COLUMNS = ["perturbation", "level", "auc", "low", "high", "flip_rate", "num_real",
                      "num_fake"]  # fmt: skip

# ---------------------------------------------------------------------------------------------
# intervals.csv: a set, whole and by slices


def set_rows(table: pd.DataFrame, threshold: float, temperature: float) -> list[TableRow]:
    """Return a row for each metric that the set is large enough for.

    The metrics are METRICS, those of SCALED again as `*_scaled` after temperature scaling, tpr and
    fpr, and the AUC of videos where there are some (one more column: video).
    """
    is_large = (table["target"] == REAL).sum() >= REALS_FOR_1E_4
    names = [name for name in METRICS if is_large or name != "tpr_at_fpr_1e-4"]
    intervals = intervals_of(table, names, threshold)
    scaled = table.assign(score=expit(table["logit"] / temperature))
    for name, interval in intervals_of(scaled, SCALED).items():
        intervals[f"{name}_scaled"] = interval
    intervals |= shares_called_fake(table, threshold)
    return metric_rows("all", intervals, table) + video_rows(table)


def metric_rows(
    slice_name: str, intervals: dict[str, Interval], table: pd.DataFrame
) -> list[TableRow]:
    """Return rows of intervals.csv without the name of the set, one per metric."""
    return [
        {"slice": slice_name, "metric": metric} | columns_of("value", interval) | counts(table)
        for metric, interval in intervals.items()
    ]


def video_rows(table: pd.DataFrame) -> list[TableRow]:
    """Return a row with the AUC of videos, where a set has videos of both classes.

    table: with the columns set and video as well. The score of a video is the mean of the scores of
    its frames (the protocol of DeepfakeBench, Yan et al. 2023). num_real and num_fake count videos.
    """
    frames = table.dropna(subset=["video"])
    # Data sets may share names of videos, and a real one may share its name with its fakes.
    by = ["set", "video", "target"]
    videos = frames.groupby(by, sort=False).agg(score=("score", "mean"), group=("group", "first"))
    videos = videos.reset_index().assign(logit=lambda table: table["score"])  # which rank alike
    if videos["target"].nunique() < 2:
        return []
    return metric_rows("all", {"video_auc": intervals_of(videos, ["auc"])["auc"]}, videos)


def slice_rows(
    table: pd.DataFrame, threshold: float, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> list[TableRow]:
    """Return AUC, tpr and fpr of every slice (more columns: those of data/labels).

    A slice of one class, such as the fakes of a family, has its AUC against all images of the other
    class in the set. tpr and fpr are always those of its own images.
    """
    rows = []
    for name, part in slices(table, size_bands, quality_bands):
        others = table[~table["target"].isin(part["target"].unique())]
        both_classes = pd.concat([part, others])
        rows += metric_rows(name, intervals_of(both_classes, ["auc"]), both_classes)
        rows += metric_rows(name, shares_called_fake(part, threshold), part)
    return rows


def slices(
    table: pd.DataFrame, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield pairs such as ("family=swap", its rows), for each property that differs in the set."""
    side = np.minimum(table["width"], table["height"])
    properties = {
        "family": table["family"],
        "source": table["source"],
        "size": _bands(side, size_bands),
        "quality": _bands(table["jpeg_quality"], quality_bands),
    }
    for name, values in properties.items():
        if values.nunique(dropna=False) > 1:
            for value, part in table.groupby(values, observed=True):
                yield f"{name}={value}", part


def _bands(numbers: pd.Series, ends: Sequence[int]) -> pd.Series:
    """Name the band of each number, such as "below 50", "50 to 74"; a missing one has no band."""
    names = [f"below {ends[0]}"]
    names += [f"{low} to {high - 1}" for low, high in pairwise(ends)]
    names += [f"{ends[-1]} and more"]
    edges = [-np.inf, *ends, np.inf]
    return pd.cut(numbers.astype(float), edges, right=False, labels=names)


# ---------------------------------------------------------------------------------------------
# cross_auc.csv: are scores comparable between sets?


def cross_rows(sets: dict[str, pd.DataFrame]) -> list[TableRow]:
    """Return the AUC of the reals of each set against the fakes of each set (Cross-AUC).

    A detector whose scores drift from set to set may be good on each and bad across them. Then one
    threshold fails for all of them.
    """
    rows = []
    for reals_of, fakes_of in product(sets, sets):
        reals = sets[reals_of][sets[reals_of]["target"] == REAL]
        fakes = sets[fakes_of][sets[fakes_of]["target"] == FAKE]
        table = pd.concat([reals, fakes])
        auc = intervals_of(table, ["auc"])["auc"]
        names = {"reals_of": reals_of, "fakes_of": fakes_of}
        rows.append(names | columns_of("auc", auc) | counts(table))
    return rows


def summarise_cross(table: pd.DataFrame) -> dict[str, float]:
    """Return the mean and the worst Cross-AUC of reals and fakes that are not of the same set."""
    across = table.loc[table["reals_of"] != table["fakes_of"], "auc"]
    return {"mean_auc": float(across.mean()), "worst_auc": float(across.min())}


# ---------------------------------------------------------------------------------------------
# operating_points.csv: what a wanted rate of false alarms costs


def operating_rows(calibration: pd.DataFrame, sets: dict[str, pd.DataFrame]) -> list[TableRow]:
    """Return what the threshold for each of OPERATING_FPRS, set on `calibration`, does on each set.

    `enough_reals` says whether the calibration set can show that rate: with fewer than 1 / rate
    reals none of them is called fake at the threshold.
    """
    targets, scores = targets_and_scores(calibration)
    num_reals = int((targets == REAL).sum())
    rows = []
    for wanted in OPERATING_FPRS:
        threshold = threshold_at_fpr(targets, scores, wanted)
        for name, table in sets.items():
            shares = shares_called_fake(table, threshold)
            rows.append(
                {"set": name, "wanted_fpr": wanted, "threshold": threshold}
                | {"calibration_reals": num_reals, "enough_reals": num_reals * wanted >= 1}
                | columns_of("tpr", shares["tpr"], "tpr_")
                | columns_of("fpr", shares["fpr"], "fpr_")
                | {"false_alarms_per_million": round(1e6 * shares["fpr"].value)}
                | counts(table)
            )
    return rows


# ---------------------------------------------------------------------------------------------
# robustness.csv: perturbed images


def robustness_table(perturbed: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return AUC with its interval, flip rate and n for every perturbation and level, in order.

    perturbed: columns img_name, perturbation, level, logit, score, target, group, with the same
    images in one order for each perturbation and level. An image flips where it is called another
    class at the threshold than when it is not perturbed.
    """
    plain_scores = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["score"]
    rows = []
    for (kind, level), part in perturbed.groupby(["perturbation", "level"], sort=False):
        called_before = part["img_name"].map(plain_scores) >= threshold
        flips = (part["score"] >= threshold) != called_before
        rows.append(
            {"perturbation": kind, "level": level, "flip_rate": float(flips.mean())}
            | columns_of("auc", intervals_of(part, ["auc"])["auc"])
            | counts(part)
        )
    return pd.DataFrame(rows, columns=ROBUSTNESS_COLUMNS)


def summarise_robustness(perturbed: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Return mean_auc, the one number to compare detectors by, and what belongs to it.

    table: what robustness_table returns for perturbed. Every kind of perturbation counts the same.
    The interval of mean_auc is from resamples of the images, each with all its perturbed versions.
    It is left out where it is not known, because JSON has no NaN.
    """
    plain, others = table["perturbation"] == "none", table["perturbation"] != "none"
    flip_rates = table[others].groupby("perturbation")["flip_rate"].mean()
    mean_auc = mean_auc_interval(perturbed[perturbed["perturbation"] != "none"])
    ends = {"mean_auc_low": mean_auc.low, "mean_auc_high": mean_auc.high}
    return {
        "plain_auc": float(table.loc[plain, "auc"].iloc[0]),
        "mean_auc": mean_auc.value,
        **(ends if np.isfinite(mean_auc.low) else {}),
        "worst_auc": float(table.loc[others, "auc"].min()),
        "mean_flip_rate": float(flip_rates.mean()),
    }


def mean_auc_interval(perturbed: pd.DataFrame) -> Interval:
    """Return the mean over kinds of the mean AUC over levels, with its interval."""
    parts = list(perturbed.groupby(["perturbation", "level"], sort=False))
    kinds = pd.Series([kind for (kind, _), _ in parts])
    share = 1 / kinds.map(kinds.value_counts()).to_numpy() / kinds.nunique()
    rankings = [rank_table(part) for _, part in parts]
    _, first = parts[0]
    targets, groups = first["target"].to_numpy(dtype=int), first["group"].to_numpy()

    def mean_auc(weights: np.ndarray) -> float:
        return share @ [
            ranked.metrics(weights[ranked.order], ["auc"])["auc"] for ranked in rankings
        ]

    resamples = cluster_weights(groups) if both_vary(targets, groups) else ()
    return percentile_interval(
        mean_auc(np.ones(len(groups))), [mean_auc(weights) for weights in resamples]
    )
