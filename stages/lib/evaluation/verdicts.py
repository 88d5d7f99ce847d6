"""Verdicts on scored sets: how many are unsure, and how often the sure ones are wrong."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from stages.lib.core.labels import CLASS_NAMES, REAL
from stages.lib.core.params import StageParams
from stages.lib.evaluation.metrics import threshold_at_fpr
from stages.lib.evaluation.resampling import share_interval
from stages.lib.evaluation.rows import Row, arrays, columns_of, counts
from stages.lib.evaluation.slices import slices
from stages.lib.evaluation.verdict_rules import REASONS, UNSURE, Rules, Thresholds

SHARES = ("unsure", "wrong", "sure_wrong")  # of a set
VERDICT_COLUMNS = ["set", "slice", "num_real", "num_fake",
                   *(f"{share}{end}" for share in SHARES for end in ("", "_low", "_high")),
                   *REASONS]  # fmt: skip
Rate = Annotated[float, Field(gt=0, lt=0.5)]


class VerdictParams(StageParams):
    """Section `evaluate.verdicts`."""

    false_alarms: Rate
    misses: Rate


def choose_thresholds(
    calibration: pd.DataFrame, params: VerdictParams, middle: float, temperature: float
) -> Thresholds:
    """Return the thresholds that keep the wanted rates on the calibration split.

    middle: the threshold that divides the classes best. Where one threshold keeps both rates, the
    two are the same, and no score lies between them.
    """
    targets, scores = arrays(calibration)
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
        **params.model_dump(), fake_from=fake_from, real_below=real_below, middle=middle,
        temperature=temperature, false_alarms_high=false_alarms.high, misses_high=misses.high,
        num_real=int(is_real.sum()), num_fake=int((~is_real).sum()),
    )  # fmt: skip


def verdict_rows(
    table: pd.DataFrame, rules: Rules, size_bands: Sequence[int], quality_bands: Sequence[int]
) -> list[Row]:
    """Return rows for a set and its slices: the shares of unsure and of wrong verdicts, and why.

    wrong is the share of wrong verdicts where every score is called at the middle threshold,
    sure_wrong the share of wrong ones among those that are not unsure. Each has its 95 % interval.
    """
    verdicts, reasons = rules.apply(table)
    judged = pd.concat([table.assign(verdict=verdicts), reasons], axis=1)
    parts = [("all", judged), *slices(judged, size_bands, quality_bands)]
    return [_row(name, part, rules.thresholds.middle) for name, part in parts]


def _row(name: str, part: pd.DataFrame, middle: float) -> Row:
    targets, groups = part["target"].to_numpy(dtype=int), part["group"].to_numpy()
    wrong = (part["score"].to_numpy() >= middle) != targets
    is_unsure = (part["verdict"] == UNSURE).to_numpy()
    sure = ~is_unsure
    classes = np.array(CLASS_NAMES)[targets]
    sure_wrong = (part["verdict"].to_numpy() != classes)[sure]
    row: Row = {"slice": name} | counts(part)
    row |= columns_of("unsure", share_interval(is_unsure, groups), "unsure_")
    row |= columns_of("wrong", share_interval(wrong, groups), "wrong_")
    if sure.any():
        found = share_interval(sure_wrong, groups[sure])
        row |= columns_of("sure_wrong", found, "sure_wrong_")
    return row | {reason: int(part[reason].sum()) for reason in REASONS}
