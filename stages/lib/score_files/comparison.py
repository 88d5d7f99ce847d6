"""Detectors side by side on the same images: which differences in AUC are real?

Two ways to tell must agree: DeLong's test after Holm's correction, and the interval of the paired
bootstrap. Both know that near-duplicates and the frames of a video are not independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from stages.lib.evaluation.delong import delong_p
from stages.lib.evaluation.judging import with_pooled
from stages.lib.evaluation.resampling import Interval, interval, resamples_of
from stages.lib.evaluation.rows import counts, ranked
from stages.lib.progress import progress_bar
from stages.lib.score_files.detectors import Detector, Sets

COLUMNS = ["set", "first", "second", "auc_first", "auc_second", "difference", "low", "high",
           "p_delong", "p_holm", "is_real", "num_real", "num_fake"]  # fmt: skip
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


def compare(detectors: Sequence[Detector]) -> Iterator[Comparison]:
    """Yield the comparison of each set of which all detectors have images of both classes."""
    by_name = {one.name: with_pooled(one.sets) for one in detectors}
    for name in next(iter(by_name.values())):
        if all(name in sets for sets in by_name.values()):
            tables = shared_images({of: sets[name] for of, sets in by_name.items()})
            if min(counts(next(iter(tables.values()))).values()):
                yield compare_on(name, tables)


def shared_images(tables: Sets) -> Sets:
    """Return, for each detector, the images that all of them have, in one order."""
    indexed = {name: table.set_index(IMAGE, drop=False) for name, table in tables.items()}
    first, *others = indexed.values()
    shared = first.index
    for table in others:
        shared = shared[shared.isin(table.index)]
    return {name: table.loc[shared].reset_index(drop=True) for name, table in indexed.items()}


def compare_on(name: str, tables: Sets) -> Comparison:
    """Compare detectors on a set; tables: the same images for each, as `shared_images` returns."""
    first_table = next(iter(tables.values()))
    targets, groups = first_table["target"].to_numpy(dtype=int), first_table["group"].to_numpy()
    numbers = counts(first_table)
    aucs, resamples = {}, {}
    with progress_bar(f"compare {name}", len(tables)) as bar:
        for of, table in tables.items():
            ranking = ranked(table)
            value = ranking.metrics(np.ones(len(groups)), ["auc"])["auc"]
            # The same resamples for all, so that an image that is hard for all cancels out.
            resamples[of] = np.array([one["auc"] for one in resamples_of(ranking, groups, ["auc"])])
            aucs[of] = interval(value, resamples[of])
            bar.update()
    places = sorted(aucs, key=lambda of: (-aucs[of].value, of))
    rows = []
    for first, second in combinations(places, 2):
        difference = aucs[first].value - aucs[second].value
        found = interval(difference, resamples[first] - resamples[second])
        ours, theirs = (tables[of]["logit"].to_numpy() for of in (first, second))
        rows.append(
            {"set": name, "first": first, "second": second}
            | {"auc_first": aucs[first].value, "auc_second": aucs[second].value}
            | {"difference": difference, "low": found.low, "high": found.high}
            | {"p_delong": delong_p(targets, ours, theirs, groups)}
            | numbers
        )
    pairs = pd.DataFrame(rows)
    pairs["p_holm"] = holm(pairs["p_delong"].to_numpy())
    pairs["is_real"] = (pairs["p_holm"] < LEVEL) & (pairs["low"] > 0)  # NaN: not known
    return Comparison(name, **numbers, ranking=[(of, aucs[of]) for of in places],
                      pairs=pairs[COLUMNS])  # fmt: skip


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
    """Say in one sentence whether the difference of a pair is real."""
    ends = f"[{pair['low']:+.4f}, {pair['high']:+.4f}]"
    p_value = f"{pair['p_holm']:.2g}" if pair["p_holm"] >= LEAST_SHOWN else f"below {LEAST_SHOWN}"
    figures = f"{pair['difference']:+.4f} {ends}, Holm p {p_value}"
    if not pair["is_real"]:
        return f"{pair['first']} and {pair['second']}: no real difference is shown ({figures})."
    return f"{pair['first']} is better than {pair['second']}: the difference is real ({figures})."
