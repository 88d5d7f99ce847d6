"""How a detector does on sources that it has not seen, for the card.

Either nothing of some sources was trained or chosen on (prepare.hold_out_sources). Or the detector
has learnt from all sources, and others of the same recipe were trained without one each: then
metrics/left_out.csv, which stages.chores.left_out writes, has their AUC.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.lib import paths
from stages.lib.core.tables import read_table

LEFT_OUT_TYPES = {
    "source": "str",  # that the training left out
    "seed": "int64",  # train.seed
    "auc": "float64",  # on the images of the source
    "low": "float64",  # ends of its 95 % interval
    "high": "float64",
    "num_real": "int64",
    "num_fake": "int64",
    "recipe": "str",  # what recipe_of returns
    "expert_weight": "float64",  # train.pseudo_fakes.expert_weight
}
HELD_OUT = "held_out_"  # what the name of the set of a held-out source begins with
# Of the section train: the seed, and what changes no weight or only by rounding.
NO_RECIPE = {
    "seed", "device", "num_processes", "num_workers", "num_threads", "compile", "arithmetic",
    "channels_last", "augment_on", "gpu_images_gb", "gpu_decoding", "decoded_gb",
    "checkpoint_minutes",
}  # fmt: skip
RECIPE_DIGITS = 12


@dataclass(frozen=True)
class Unseen:
    """What the card says of unseen generators: the answer, and sentences that explain it."""

    answer: str
    sentences: list[str]


NOT_MEASURED = Unseen("not measured", [])


def recipe_of(train: dict[str, Any], sources: Iterable[str]) -> str:
    """Return a short SHA-256 of what decides a training, whichever source it leaves out.

    The weight of an expert is no part of it: networks are the same with any. train: that section of
    params.yaml. sources: the one that is left out among them.
    """
    parameters = {name: value for name, value in train.items() if name not in NO_RECIPE}
    pseudo_fakes = parameters["pseudo_fakes"].items()
    others = {name: value for name, value in pseudo_fakes if name != "expert_weight"}
    parameters["pseudo_fakes"] = others
    content = json.dumps([parameters, sorted(sources)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:RECIPE_DIGITS]


def expert_weight_of(train: dict[str, Any]) -> float:
    """Return the weight of the expert; train: that section of params.yaml, of any commit."""
    return train["pseudo_fakes"].get("expert_weight", 0.0)


def counting_rows(rows: pd.DataFrame, own_weight: float) -> pd.DataFrame:
    """Return the rows of one recipe that tell how its detector does on unseen sources.

    Where several weights of the expert were tried, the rows of a source are those of the weight
    that is best on the other sources, by the mean of their AUC: chosen on the source itself, it
    would flatter. own_weight: that of the detector, without whose rows none count.
    """
    if own_weight not in set(rows["expert_weight"]):
        return rows.head(0)
    aucs = rows.pivot_table(index="source", columns="expert_weight", values="auc")
    aucs = aucs.dropna(axis="columns")  # weights that all sources have
    if len(aucs) < 2 or aucs.empty:
        return rows[rows["expert_weight"] == own_weight]
    chosen = {source: aucs.drop(source).mean().idxmax() for source in aucs.index}
    return rows[rows["expert_weight"] == rows["source"].map(chosen)]


def read_left_out() -> pd.DataFrame:
    """Read metrics/left_out.csv; raises UserError where it is missing or damaged."""
    remedy = "write it again: `python -m stages.chores.left_out`"
    return read_table(paths.LEFT_OUT, LEFT_OUT_TYPES, remedy)


def unseen_sources(
    report: dict[str, Any], intervals: pd.DataFrame, train: dict[str, Any], rows: pd.DataFrame
) -> Unseen:
    """Return how the detector does on sources that it has not seen.

    report: evaluation.json; intervals: that table; train: that section of params.yaml; rows: those
    of left_out.csv, of which only the ones of this recipe and these images count.
    """
    own = _own_rows(intervals)
    if len(own):
        return _measured(own, ["This detector itself was trained and chosen without them."])
    sources = report.get("trained_sources", {})
    fitting = _fitting_rows(rows, recipe_of(train, sources), sources)
    counting = counting_rows(fitting, expert_weight_of(train))
    if len(counting):
        sentences = [
            f"This detector has learnt from all of its {len(sources)} sources; other trainings of "
            f"the same recipe left out one each ({len(counting)})."
        ]
        if fitting["expert_weight"].nunique() > 1:
            sentences.append("The weight of the expert was chosen for each source on the others.")
        missing = [name for name in sources if name not in set(counting["source"])]
        if missing:
            sentences.append(f"Never left out: {', '.join(missing)}.")
        return _measured(counting, sentences)
    if len(rows):
        told = f"{paths.LEFT_OUT} has trainings of another recipe, other sources or other images."
        return Unseen("not measured for this recipe", [told])
    return NOT_MEASURED


def _own_rows(intervals: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC of each source that was held out, in the columns of left_out.csv."""
    is_whole = (intervals["slice"] == "all") & (intervals["metric"] == "auc")
    own = intervals[is_whole & intervals["set"].str.startswith(HELD_OUT)]
    return own.assign(source=own["set"].str.removeprefix(HELD_OUT), auc=own["value"])


def _fitting_rows(
    rows: pd.DataFrame, recipe: str, sources: dict[str, dict[str, int]]
) -> pd.DataFrame:
    """Return the rows of this recipe that were measured on as many images as there are now.

    Other numbers are those of other data. sources: trained_sources of evaluation.json.
    """
    is_fitting = []
    for row in rows.itertuples():
        numbers = {"num_real": row.num_real, "num_fake": row.num_fake}
        is_fitting.append(row.recipe == recipe and sources.get(row.source) == numbers)
    return rows[np.array(is_fitting, dtype=bool)]


def _measured(rows: pd.DataFrame, sentences: list[str]) -> Unseen:
    """Return the answer from at least one row; sentences: those that come first."""
    # The interval of a source reaches over those of all its seeds.
    columns = {"auc": ("auc", "mean"), "low": ("low", "min"), "high": ("high", "max")}
    sources = rows.groupby("source").agg(num_seeds=("auc", "size"), **columns)
    each = []
    for source in sources.sort_values("auc").itertuples():
        seeds = f" ({source.num_seeds} seeds)" if source.num_seeds > 1 else ""
        each.append(f"{source.Index} {source.auc:.4f} [{source.low:.4f}, {source.high:.4f}]{seeds}")
    told = f"AUC and 95 % interval of each source: {'; '.join(each)}."
    if sources["num_seeds"].max() > 1:
        told += " Of several seeds it is the mean, from the lowest to the highest end of all."
    if len(sources) == 1:
        (source,) = sources.itertuples()
        answer = f"AUC {source.auc:.4f} [{source.low:.4f}, {source.high:.4f}], one source left out"
        return Unseen(answer, [*sentences, told])
    aucs = sources["auc"]
    answer = (
        f"AUC {aucs.mean():.4f} [{aucs.min():.4f}, {aucs.max():.4f}], mean, worst and best over "
        f"{len(sources)} sources left out"
    )
    warning = "The brackets are that range, no confidence interval for the next generator."
    return Unseen(answer, [*sentences, warning, told])
