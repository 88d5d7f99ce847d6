"""Detectors side by side on the same images: which differences in AUC are significant?

Two ways to tell must agree: DeLong's test after Holm's correction, and the interval of the paired
bootstrap. Both know that near-duplicates and the frames of a video are not independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from stages.lib.evaluation.intervals import (
    Interval,
    counts,
    percentile_interval,
    rank_table,
    resampled_metrics,
)
from stages.lib.evaluation.report import with_pooled
from stages.lib.progress import progress_bar
from stages.lib.score_files.delong import delong_p
from stages.lib.score_files.detectors import ScoredDetector, Sets

COLUMNS = ["set", "first", "second", "auc_first", "auc_second", "difference", "low", "high",
           "p_delong", "p_holm", "is_significant", "num_real", "num_fake"]  # fmt: skip
LEVEL = 0.05  # of the p-values after Holm's correction
LEAST_SHOWN = 0.0001
IMAGE = ["set", "row"]


@dataclass(frozen=True)
class Comparison:
    """The detectors on one set."""

    name: str  # of the set
    num_real: int
    num_fake: int
    ranking: list[tuple[str, Interval]]  # detector and AUC, the best one first
    pairs: pd.DataFrame  # COLUMNS; the first one of a pair has the higher place


def compare(detectors: Sequence[ScoredDetector]) -> Iterator[Comparison]:
    """Yield the comparison of each set in which all detectors have images of both classes."""
    sets_of = {detector.name: with_pooled(detector.sets) for detector in detectors}
    for set_name in sets_of[detectors[0].name]:
        if all(set_name in sets for sets in sets_of.values()):
            tables = shared_images({name: sets[set_name] for name, sets in sets_of.items()})
            if min(counts(tables[detectors[0].name]).values()):
                yield compare_on(set_name, tables)


def shared_images(tables: Sets) -> Sets:
    """Return, for each detector, the images that all of them have, in one order."""
    indexed = {name: table.set_index(IMAGE, drop=False) for name, table in tables.items()}
    first, *others = indexed.values()
    shared = first.index
    for table in others:
        shared = shared[shared.isin(table.index)]
    return {name: table.loc[shared].reset_index(drop=True) for name, table in indexed.items()}


def compare_on(set_name: str, tables: Sets) -> Comparison:
    """Compare detectors on a set; tables: the same images for each, as `shared_images` returns."""
    first_table = next(iter(tables.values()))
    targets, groups = first_table["target"].to_numpy(dtype=int), first_table["group"].to_numpy()
    numbers = counts(first_table)
    aucs, resamples = {}, {}
    with progress_bar(f"compare {set_name}", len(tables)) as bar:
        for name, table in tables.items():
            ranked = rank_table(table)
            value = ranked.metrics(np.ones(len(groups)), ["auc"])["auc"]
            # The same resamples for all, so that an image that is hard for all cancels out.
            resampled = resampled_metrics(ranked, groups, ["auc"])
            resamples[name] = np.array([metrics["auc"] for metrics in resampled])
            aucs[name] = percentile_interval(value, resamples[name])
            bar.update()
    names = sorted(aucs, key=lambda name: (-aucs[name].value, name))
    rows = []
    for first, second in combinations(names, 2):
        difference = percentile_interval(
            aucs[first].value - aucs[second].value, resamples[first] - resamples[second]
        )
        first_logits = tables[first]["logit"].to_numpy()
        second_logits = tables[second]["logit"].to_numpy()
        rows.append(
            {"set": set_name, "first": first, "second": second}
            | {"auc_first": aucs[first].value, "auc_second": aucs[second].value}
            | {"difference": difference.value, "low": difference.low, "high": difference.high}
            | {"p_delong": delong_p(targets, first_logits, second_logits, groups)}
            | numbers
        )
    pairs = pd.DataFrame(rows)
    pairs["p_holm"] = holm(pairs["p_delong"].to_numpy())
    pairs["is_significant"] = (pairs["p_holm"] < LEVEL) & (pairs["low"] > 0)  # NaN: not known
    ranking = [(name, aucs[name]) for name in names]
    return Comparison(set_name, **numbers, ranking=ranking, pairs=pairs[COLUMNS])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return the p-values after Holm's correction (1979), float (N,), in the given order.

    The smallest is multiplied by N, the next one by N - 1, and so on; none gets below the one
    before it, nor above 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p_values[order]))
    return corrected


def words(pair: pd.Series) -> str:
    """Say in one sentence whether the difference of a pair is significant."""
    ends = f"[{pair['low']:+.4f}, {pair['high']:+.4f}]"
    p_value = f"{pair['p_holm']:.2g}" if pair["p_holm"] >= LEAST_SHOWN else f"below {LEAST_SHOWN}"
    figures = f"({pair['difference']:+.4f} {ends}, Holm p {p_value})"
    if pair["is_significant"]:
        return f"{pair['first']} is significantly better than {pair['second']} {figures}."
    return f"{pair['first']} and {pair['second']} do not differ significantly {figures}."
