"""Shortcuts: facts other than faces that tell the classes of a data set apart."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from stages.lib.core.labels import CLASS_NAMES, FAKE
from stages.lib.data.image_facts import IMAGE_CUES

HEADER_NUMBERS = ("num_bytes", "width", "height", "jpeg_quality")
MOST_FREQUENT = 10  # values that the report lists
MOST_ROWS = 50_000  # enough for an AUC to two digits
MOST_TABLES = 200  # different JPEG tables that are told apart
NUM_FOLDS = 5
NUM_BINS = 8


def audit_set(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Describe the classes of a set, and how well they are told apart without a look at faces."""
    parts = {name: rows[rows["target"] == target] for target, name in enumerate(CLASS_NAMES)}
    labelled = pd.concat(list(parts.values()))
    return {
        **{name: len(part) for name, part in parts.items()},
        "unlabelled": len(rows) - len(labelled),
        "num_groups": int(rows["group"].nunique()),
        "families": _counts(parts["fake"]["family"].dropna().sort_values()),
        "classes": {name: _describe(part) for name, part in parts.items() if len(part)},
        "shortcuts": shortcuts(labelled, seed) if all(map(len, parts.values())) else {},
    }


def _describe(rows: pd.DataFrame) -> dict[str, Any]:
    """Return formats, most frequent sizes and JPEG tables, and quartiles of every number."""
    sizes = rows["width"].astype(int).astype(str) + "x" + rows["height"].astype(int).astype(str)
    numbers = rows[[*HEADER_NUMBERS, *IMAGE_CUES]].astype(float)
    quartiles = numbers.quantile([0.25, 0.5, 0.75]).dropna(axis=1)
    return {
        "formats": _counts(rows["format"]),
        "sizes": _counts(sizes),
        "jpeg_tables": _counts(rows["jpeg_tables"].dropna()),
        "quartiles": {name: [float(f"{x:.4g}") for x in quartiles[name]] for name in quartiles},
    }


def _counts(values: pd.Series) -> dict[str, int]:
    """Count the most frequent values, and all others together."""
    counts = values.value_counts(sort=True)
    top = counts.sort_index().sort_values(ascending=False, kind="stable").head(MOST_FREQUENT)
    rest = int(counts.sum() - top.sum())
    return {str(k): int(v) for k, v in top.items()} | ({"others": rest} if rest else {})


def shortcuts(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Return the AUC of facts that have nothing to do with manipulation.

    A single number counts in either direction. `jpeg_tables`, `metadata` (the whole header and the
    file size) and `image_cues` (all of IMAGE_CUES) are the AUC of a classifier on near-duplicate
    groups that it has not seen (5-fold). `worst` names the largest.
    """
    if len(rows) > MOST_ROWS:
        rows = rows.sample(MOST_ROWS, random_state=seed)
    target = rows["target"].astype(int).to_numpy()
    aucs = {}
    for fact in (*HEADER_NUMBERS, *IMAGE_CUES):
        auc = roc_auc_score(target, rows[fact].fillna(0).to_numpy(dtype=float))
        aucs[fact] = max(auc, 1 - auc)
    for name, facts in (
        ("jpeg_tables", ["jpeg_tables"]),
        ("metadata", [*HEADER_NUMBERS, "jpeg_tables"]),
        ("image_cues", list(IMAGE_CUES)),
    ):
        auc = _cross_validated_auc(rows[facts], target, rows["group"].to_numpy(), seed)
        if auc is not None:
            aucs[name] = auc
    rounded = {name: round(float(auc), 4) for name, auc in aucs.items()}
    return rounded | {"worst": max(rounded, key=lambda name: rounded[name])}


def _cross_validated_auc(
    facts: pd.DataFrame, target: np.ndarray, groups: np.ndarray, seed: int
) -> float | None:
    """Return the AUC of logistic regression on unseen groups; None where there are too few.

    Numbers are cut into NUM_BINS bins of equally many images, so that a middle range can point to a
    class.
    """
    if len(np.unique(groups)) < 2 * NUM_FOLDS:
        return None
    binned = facts.apply(_binned)
    encoder = OneHotEncoder(handle_unknown="ignore", max_categories=MOST_TABLES)
    classifier = make_pipeline(encoder, LogisticRegression(max_iter=1000))
    scores = np.zeros(len(target))
    folds = GroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(binned, target, groups):
        if len(np.unique(target[train])) < len(CLASS_NAMES):
            return None
        classifier.fit(binned.iloc[train], target[train])
        scores[held_out] = classifier.predict_proba(binned.iloc[held_out])[:, FAKE]
    return float(roc_auc_score(target, scores))


def _binned(fact: pd.Series) -> pd.Series:
    if fact.name == "jpeg_tables":
        return fact.fillna("none")
    return pd.qcut(fact.fillna(0).astype(float), NUM_BINS, labels=False, duplicates="drop")
