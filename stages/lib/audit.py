"""Looking at a data set before anyone trains on it: near-duplicates and shortcuts."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from stages.lib.competition import CLASS_NAMES, FAKE
from stages.lib.packed import IMAGE_CUES

HEADER_NUMBERS = ("num_bytes", "width", "height", "jpeg_quality")
MOST_FREQUENT = 10  # values that the report lists
MOST_ROWS = 50_000  # enough for an AUC to two digits
MOST_TABLES = 200  # different JPEG tables that are told apart
NUM_FOLDS = 5
NUM_BINS = 8
HASH_BITS = 64
PAIRS_AT_ONCE = 4_000_000  # hash pairs compared in one step, bounds the memory


def near_duplicate_groups(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Number the groups of images whose hashes differ in at most max_bits bits, transitively.

    hashes: uint64 (N,). Returns int (N,), groups numbered by their first image. By the pigeonhole
    principle two such hashes agree in at least one of max_bits + 1 bands (Manku et al. 2007), so
    only hashes that share a band are compared.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    edges = [_close_pairs(unique, band, max_bits) for band in _bands(max_bits + 1)]
    left, right = np.concatenate(edges).T if max_bits else np.empty((2, 0), dtype=np.int64)
    graph = coo_matrix((np.ones(len(left), dtype=bool), (left, right)), shape=(len(unique),) * 2)
    component = connected_components(graph, directed=False)[1][inverse]
    return pd.factorize(component)[0]


def _bands(count: int) -> list[tuple[int, int]]:
    """Cut the hash into `count` bands: (first bit, number of bits)."""
    cuts = np.linspace(0, HASH_BITS, count + 1).astype(int)
    return [(int(low), int(high - low)) for low, high in pairwise(cuts)]


def _close_pairs(hashes: np.ndarray, band: tuple[int, int], max_bits: int) -> np.ndarray:
    """Return the index pairs (M, 2) that agree in the band and differ in at most max_bits bits."""
    low, width = band
    mask = np.uint64((1 << width) - 1)
    keys = (hashes >> np.uint64(low)) & mask
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    found = [np.empty((0, 2), dtype=np.int64)]
    for members in np.split(order, starts[1:]):
        rows_at_once = max(1, PAIRS_AT_ONCE // len(members))
        for first in range(0, len(members) if len(members) > 1 else 0, rows_at_once):
            some = members[first : first + rows_at_once]
            differing = np.bitwise_count(hashes[some][:, None] ^ hashes[members][None, :])
            i, j = np.nonzero(differing <= max_bits)
            keep = some[i] < members[j]
            found.append(np.stack([some[i][keep], members[j][keep]], axis=1))
    return np.concatenate(found)


def duplicates_report(splits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Count copies and near-duplicates inside and across splits, and with different labels."""
    everything = pd.concat(splits, names=["split"]).reset_index("split")
    labelled = everything.dropna(subset=["target"])
    copies = labelled.groupby("sha256")["target"].agg(["size", "nunique"])
    groups = {name: set(rows["group"]) for name, rows in splits.items()}
    return {
        "exact_copies": int(everything.duplicated("sha256").sum()),
        "exact_copies_with_both_labels": int((copies["nunique"] > 1).sum()),
        "largest_group": int(everything["group"].value_counts().max()),
        "groups_across_splits": {
            f"{a}/{b}": len(groups[a] & groups[b]) for a, b in combinations(groups, 2)
        },
    }


def audit_split(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Describe a split's classes and say how well they are told apart without looking at faces."""
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
    """Return the AUC that facts reach which have nothing to do with manipulation.

    Single numbers count in whichever direction they point; `jpeg_tables`, `metadata` (all of the
    header with the file size) and `image_cues` (all of IMAGE_CUES) are what a classifier reaches on
    near-duplicate groups that it has not seen (5-fold). `worst` names the largest.
    """
    if len(rows) > MOST_ROWS:
        rows = rows.sample(MOST_ROWS, random_state=seed)
    target = rows["target"].astype(int).to_numpy()
    found = {}
    for fact in (*HEADER_NUMBERS, *IMAGE_CUES):
        auc = roc_auc_score(target, rows[fact].fillna(0).to_numpy(dtype=float))
        found[fact] = max(auc, 1 - auc)
    for name, facts in (
        ("jpeg_tables", ["jpeg_tables"]),
        ("metadata", [*HEADER_NUMBERS, "jpeg_tables"]),
        ("image_cues", list(IMAGE_CUES)),
    ):
        auc = _cross_validated_auc(rows[facts], target, rows["group"].to_numpy(), seed)
        if auc is not None:
            found[name] = auc
    rounded = {name: round(float(auc), 4) for name, auc in found.items()}
    return rounded | {"worst": max(rounded, key=rounded.get)}


def _cross_validated_auc(
    facts: pd.DataFrame, target: np.ndarray, groups: np.ndarray, seed: int
) -> float | None:
    """Return the AUC of logistic regression on unseen groups; None where there are too few.

    Numbers are cut into NUM_BINS parts with equally many images, so that they may point anywhere.
    """
    if len(np.unique(groups)) < 2 * NUM_FOLDS:
        return None
    binned = pd.DataFrame({
        name: column.fillna("none") if name == "jpeg_tables" else _binned(column)
        for name, column in facts.items()
    })  # fmt: skip
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


def _binned(numbers: pd.Series) -> pd.Series:
    return pd.qcut(numbers.fillna(0).astype(float), NUM_BINS, labels=False, duplicates="drop")
