"""Verdicts on scored sets: how many are unsure, and how often the sure ones are wrong."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stages.lib.core.labels import CLASS_NAMES, REAL
from stages.lib.core.params import StageParams
from stages.lib.evaluation.intervals import (
    TableRow,
    columns_of,
    counts,
    share_interval,
    targets_and_scores,
)
from stages.lib.evaluation.metrics import threshold_at_fpr
from stages.lib.evaluation.risk_coverage import area, risks_of
from stages.lib.evaluation.tables import slices
from stages.lib.evaluation.verdict_rules import REASONS, UNSURE, Rules, Thresholds

SHARES = ("unsure", "wrong", "sure_wrong", "sure_and_wrong")  # of a set
SHARE_COLUMNS = [f"{share}{end}" for share in SHARES for end in ("", "_low", "_high")]
FIGURES = ["sure_and_wrong_before", "aurc"]  # without intervals
VERDICT_COLUMNS = ["set", "slice", "num_real", "num_fake", *SHARE_COLUMNS, *FIGURES, *REASONS]
VIDEOS = "videos"  # the slice that counts videos
FAR = 0.05  # largest share of images like the calibration set that are unsure for their distance
Rate = Annotated[float, Field(gt=0, lt=0.5)]


class VerdictParams(StageParams):
    """Section `evaluate.verdicts`."""

    false_alarms: Rate
    misses: Rate


def choose_thresholds(
    calibration: pd.DataFrame,
    params: VerdictParams,
    middle: float,
    temperature: float,
    counted: Literal["images", "videos"] = "images",
) -> Thresholds:
    """Return the thresholds that keep the wanted rates on the calibration set.

    middle: the threshold that divides the classes best. Where one threshold keeps both rates, the
    two are the same, and no score lies between them.
    """
    targets, scores = targets_and_scores(calibration)
    fake_from = threshold_at_fpr(targets, scores, params.false_alarms)
    real_below = 1 - threshold_at_fpr(1 - targets, 1 - scores, params.misses)
    low, high = sorted((real_below, fake_from))
    middle = float(np.clip(middle, low, high))
    if real_below > fake_from:
        real_below = fake_from = middle
    is_real, groups = targets == REAL, calibration["group"].to_numpy()
    false_alarms = share_interval((scores >= fake_from)[is_real], groups[is_real])
    misses = share_interval((scores < real_below)[~is_real], groups[~is_real])
    return Thresholds(
        **params.model_dump(),
        fake_from=fake_from,
        real_below=real_below,
        middle=middle,
        temperature=temperature,
        false_alarms_high=false_alarms.high,
        misses_high=misses.high,
        num_real=int(is_real.sum()),
        num_fake=int((~is_real).sum()),
        counted=counted,
    )


def farthest_allowed(distances: pd.Series) -> float | None:
    """Return the distance that at most FAR of the images like those of calibration exceed.

    It is the conformal quantile (Vovk et al. 2005), half-way to the next image above, so that
    rounding changes no verdict. None: no distances, or too few images to tell (below 1 / FAR - 1).
    """
    allowed = int(FAR * (len(distances) + 1))
    if not allowed or distances.isna().any():
        return None
    ranked = np.sort(distances)
    farthest = ranked[-allowed]
    above = ranked[ranked > farthest]
    return float((farthest + above[0]) / 2 if len(above) else farthest)


def verdict_table(
    sets: dict[str, pd.DataFrame],
    videos: dict[str, pd.DataFrame],
    rules: Rules,
    size_bands: Sequence[int],
    quality_bands: Sequence[int],
) -> pd.DataFrame:
    """Return one row per set and slice: shares of unsure and of wrong verdicts, and reasons.

    wrong is the share of wrong verdicts where every score is called at the middle threshold,
    sure_wrong the share of wrong ones among those that are not unsure, sure_and_wrong that among
    all. Each has its 95 % interval. sure_and_wrong_before is without the reason of the distance.
    sets, and the videos of those that have some: as with_verdicts returns them.
    """
    rows = []
    for name, table in sets.items():
        parts = [("all", table, rules)]
        if name in videos:
            parts.append((VIDEOS, videos[name], rules.for_videos()))
        parts += [(*part, rules) for part in slices(table, size_bands, quality_bands)]
        for slice_name, part, its_rules in parts:
            row = verdict_row(part, its_rules.thresholds.middle)
            rows.append({"set": name, "slice": slice_name} | row)
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def with_verdicts(table: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Return a scored set with verdict, verdict_before (without the distance) and REASONS."""
    verdicts, reasons = rules.apply(table)
    before, _ = rules.model_copy(update={"farthest": None}).apply(table)
    return pd.concat([table.assign(verdict=verdicts, verdict_before=before), reasons], axis=1)


def verdict_row(part: pd.DataFrame, middle: float) -> TableRow:
    """Return the figures of a slice of what with_verdicts returns."""
    targets, groups = part["target"].to_numpy(dtype=int), part["group"].to_numpy()
    verdicts = part["verdict"].to_numpy()
    is_sure = verdicts != UNSURE
    is_wrong = (part["score"].to_numpy() >= middle) != targets
    other_class = np.array(CLASS_NAMES)[1 - targets]
    is_sure_and_wrong = verdicts == other_class
    row = counts(part)
    row |= columns_of("unsure", share_interval(~is_sure, groups), "unsure_")
    row |= columns_of("wrong", share_interval(is_wrong, groups), "wrong_")
    if is_sure.any():
        share = share_interval(is_sure_and_wrong[is_sure], groups[is_sure])
        row |= columns_of("sure_wrong", share, "sure_wrong_")
    row |= columns_of(
        "sure_and_wrong", share_interval(is_sure_and_wrong, groups), "sure_and_wrong_"
    )
    row["sure_and_wrong_before"] = float((part["verdict_before"] == other_class).mean())
    row["aurc"] = area(risks_of(part, middle))
    return row | {reason: int(part[reason].sum()) for reason in REASONS}


def summarise_verdicts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the shares and FIGURES of each set, from what verdict_table returns."""
    whole_sets = table[table["slice"] == "all"].set_index("set")
    shares = whole_sets[[*SHARES, *FIGURES]]
    return {str(name): row.dropna().to_dict() for name, row in shares.iterrows()}
