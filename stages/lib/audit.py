"""Looking at a data set before anyone trains on it: near-duplicates and shortcuts."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from stages.lib.competition import FAKE, REAL

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
    """Count a split's images and say how well metadata alone tells its classes apart."""
    real, fake = rows[rows["target"] == REAL], rows[rows["target"] == FAKE]
    labelled = pd.concat([real, fake])
    families = fake["family"].value_counts().sort_index()
    return {
        "real": len(real),
        "fake": len(fake),
        "unlabelled": len(rows) - len(labelled),
        "num_groups": int(rows["group"].nunique()),
        "families": {str(name): int(count) for name, count in families.items()},
        "formats": {str(k): int(v) for k, v in rows["format"].value_counts().items()},
        "median_num_bytes": {
            name: float(part["num_bytes"].median())
            for name, part in (("real", real), ("fake", fake))
            if len(part)
        },
        "shortcuts": _shortcuts(labelled, seed) if len(real) and len(fake) else {},
    }


def _shortcuts(rows: pd.DataFrame, seed: int) -> dict[str, float]:
    """Return the AUC that single facts reach, in whichever direction they point."""
    target = rows["target"].astype(int).to_numpy()
    found = {}
    for fact in ("num_bytes", "width", "height", "jpeg_quality"):
        auc = roc_auc_score(target, rows[fact].fillna(0).to_numpy(dtype=float))
        found[fact] = round(float(max(auc, 1 - auc)), 4)
    num_folds = min(5, *np.bincount(target))
    if num_folds > 1:
        found["jpeg_tables"] = round(_tables_auc(rows["jpeg_tables"], target, num_folds, seed), 4)
    return found


def _tables_auc(tables: pd.Series, target: np.ndarray, num_folds: int, seed: int) -> float:
    """Return the AUC of knowing which JPEG tables are fakes' tables, learnt on other folds."""
    classifier = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    names = tables.fillna("none").to_frame()
    scores = cross_val_predict(classifier, names, target, cv=folds, method="predict_proba")
    return float(roc_auc_score(target, scores[:, FAKE]))
