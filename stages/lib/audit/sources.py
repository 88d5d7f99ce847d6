"""The audit of each source, and of what tells sources apart.

Where one source has more fakes than another, a detector may learn to tell the sources, not fakes.
"""

from typing import Any

import pandas as pd
from sklearn.metrics import roc_auc_score

from stages.lib.audit.shortcuts import audit_set, shortcuts
from stages.lib.core.labels import has_both_classes, whole_sources

MOST_SOURCES = 20  # that are audited, the largest; a data set may name thousands
AUDITED = ("real", "fake", "num_groups", "shortcuts")


def audit_sources(sets: dict[str, pd.DataFrame], limit: float, seed: int) -> dict[str, Any]:
    """Return for train and val the audit of each source, and `told_apart`; {} where only one is.

    A source counts as one where it has both classes in val. told_apart has the AUC with which the
    source alone tells the classes (`auc`), and where that is above the limit, `facts`: those that
    tell a source from the others, each with the AUC of the source that it tells best.
    """
    sizes = sets["val"]["source"].value_counts().reindex(whole_sources(sets["val"]))
    names = sorted(sizes.nlargest(MOST_SOURCES).index)
    if len(names) < 2:
        return {}
    report: dict[str, Any] = {"told_apart": {}}
    for set_name in ("train", "val"):
        rows = sets[set_name].dropna(subset=["source"])
        report[set_name] = {}
        for name in names:
            audit = audit_set(rows[rows["source"] == name], seed)
            report[set_name][name] = {key: audit[key] for key in AUDITED}
        if has_both_classes(rows):  # train may name no sources
            report["told_apart"][set_name] = tell_apart(rows, names, limit, seed)
    return report


def tell_apart(rows: pd.DataFrame, names: list[str], limit: float, seed: int) -> dict[str, Any]:
    """Return how well the source alone tells the classes, and above the limit which facts do."""
    target = rows["target"].astype(int)
    share_of_fakes = target.groupby(rows["source"]).transform("mean")
    auc = round(float(roc_auc_score(target, share_of_fakes)), 4)
    if auc <= limit:
        return {"auc": auc}
    facts: dict[str, float] = {}
    for name in names:
        of_source = shortcuts(rows.assign(target=rows["source"] == name), seed)
        for fact, value in of_source.items():
            if fact != "worst":
                facts[fact] = max(value, facts.get(fact, 0.0))
    ordered = sorted(facts, key=lambda fact: -facts[fact])
    return {"auc": auc, "facts": {fact: facts[fact] for fact in ordered if facts[fact] > limit}}
