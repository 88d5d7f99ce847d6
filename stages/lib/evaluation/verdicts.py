"""Verdicts on scored sets: how many are unsure, and how often the sure ones are wrong."""

from collections.abc import Sequence
from typing import Annotated

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
from stages.lib.evaluation.tables import slices
from stages.lib.evaluation.verdict_rules import REASONS, UNSURE, Rules, Thresholds

SHARES = ("unsure", "wrong", "sure_wrong")  # of a set
SHARE_COLUMNS = [f"{share}{end}" for share in SHARES for end in ("", "_low", "_high")]
VERDICT_COLUMNS = ["set", "slice", "num_real", "num_fake", *SHARE_COLUMNS, *REASONS]
Rate = Annotated[float, Field(gt=0, lt=0.5)]


class VerdictParams(StageParams):
    """Section `evaluate.verdicts`."""

    false_alarms: Rate
    misses: Rate


def choose_thresholds(
    calibration: pd.DataFrame, params: VerdictParams, middle: float, temperature: float
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
    )


def verdict_table(
    sets: dict[str, pd.DataFrame],
    rules: Rules,
    size_bands: Sequence[int],
    quality_bands: Sequence[int],
) -> pd.DataFrame:
    """Return one row per set and slice: shares of unsure and of wrong verdicts, and reasons.

    wrong is the share of wrong verdicts where every score is called at the middle threshold,
    sure_wrong the share of wrong ones among those that are not unsure. Each has its 95 % interval.
    """
    rows = []
    for name, table in sets.items():
        verdicts, reasons = rules.apply(table)
        table = pd.concat([table.assign(verdict=verdicts), reasons], axis=1)
        for slice_name, part in [("all", table), *slices(table, size_bands, quality_bands)]:
            row = verdict_row(part, rules.thresholds.middle)
            rows.append({"set": name, "slice": slice_name} | row)
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def verdict_row(part: pd.DataFrame, middle: float) -> TableRow:
    """Return the shares of a slice, which has its verdicts and a column for each of REASONS."""
    targets, groups = part["target"].to_numpy(dtype=int), part["group"].to_numpy()
    verdicts = part["verdict"].to_numpy()
    is_sure = verdicts != UNSURE
    is_wrong = (part["score"].to_numpy() >= middle) != targets
    is_sure_wrong = (verdicts != np.array(CLASS_NAMES)[targets])[is_sure]
    row = counts(part)
    row |= columns_of("unsure", share_interval(~is_sure, groups), "unsure_")
    row |= columns_of("wrong", share_interval(is_wrong, groups), "wrong_")
    if is_sure.any():
        share = share_interval(is_sure_wrong, groups[is_sure])
        row |= columns_of("sure_wrong", share, "sure_wrong_")
    return row | {reason: int(part[reason].sum()) for reason in REASONS}


def summarise_verdicts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the shares of each set, from what verdict_table returns."""
    whole_sets = table[table["slice"] == "all"].set_index("set")
    shares = whole_sets[list(SHARES)]
    return {str(name): row.dropna().to_dict() for name, row in shares.iterrows()}
