"""Groups of images that belong together: near-duplicates, and images of one person or video.

Near-duplicates have almost the same perceptual hash, as a face and its fakes do.
"""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

HASH_BITS = 64
PAIRS_AT_ONCE = 4_000_000  # hash pairs compared in one step, bounds the memory


def group_images(facts: pd.DataFrame, max_bits: int) -> np.ndarray:
    """Return the groups, int (N,), of images; near-duplicates are found across data sets.

    facts: with the column data_set as well. Groups and videos of two data sets may have one name.
    """
    groups = near_duplicate_groups(facts["phash"].to_numpy(dtype=np.uint64), max_bits)
    for column in ("given_group", "video"):
        groups = join_groups(groups, facts["data_set"].str.cat(facts[column], sep="/"))
    return groups


def group_further_images(own: pd.DataFrame, further: pd.DataFrame, max_bits: int) -> np.ndarray:
    """Return the groups of evaluation sets: those of near-duplicates in `own`, or new ones.

    The column group of `own` stays as it is, so an evaluation set changes no other set.
    """
    if further.empty:
        return np.empty(0, dtype=int)
    groups = group_images(pd.concat([own, further], ignore_index=True), max_bits)
    of_own, of_further = groups[: len(own)], groups[len(own) :]
    numbers = own.groupby(of_own)["group"].first()
    new = pd.Series(of_further).where(~np.isin(of_further, numbers.index))
    new_numbers = int(own["group"].max()) + 1 + pd.factorize(new)[0]
    return np.where(new.isna(), numbers.reindex(of_further).fillna(-1).astype(int), new_numbers)


def near_duplicate_groups(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Number the groups of images whose hashes differ in at most max_bits bits, transitively.

    hashes: uint64 (N,). Returns int (N,), groups numbered in the order of their first image. By the
    pigeonhole principle two such hashes agree in at least one of max_bits + 1 bands (Manku et al.
    2007), so only hashes that share a band are compared.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    edges = [_close_pairs(unique, band, max_bits) for band in _bands(max_bits + 1)]
    left, right = np.concatenate(edges).T if max_bits else np.empty((2, 0), dtype=np.int64)
    graph = coo_matrix((np.ones(len(left), dtype=bool), (left, right)), shape=(len(unique),) * 2)
    component = connected_components(graph, directed=False)[1][inverse]
    return pd.factorize(component)[0]


def join_groups(groups: np.ndarray, names: pd.Series) -> np.ndarray:
    """Join groups of near-duplicates whose images share a name: a person, a video, a source.

    groups: int (N,). names: of N images, missing where not known. Returns int (N,), numbered in the
    order of their first image.
    """
    codes = pd.factorize(names)[0]
    is_named = codes >= 0
    count = int(groups.max(initial=-1)) + 1
    edges = groups[is_named], count + codes[is_named]
    nodes = count + int(codes.max(initial=-1)) + 1
    graph = coo_matrix((np.ones(is_named.sum(), dtype=bool), edges), shape=(nodes, nodes))
    return pd.factorize(connected_components(graph, directed=False)[1][groups])[0]


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
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for members in np.split(order, starts[1:]):
        rows_at_once = max(1, PAIRS_AT_ONCE // len(members))
        for first in range(0, len(members) if len(members) > 1 else 0, rows_at_once):
            some = members[first : first + rows_at_once]
            differing = np.bitwise_count(hashes[some][:, None] ^ hashes[members][None, :])
            i, j = np.nonzero(differing <= max_bits)
            keep = some[i] < members[j]
            pairs.append(np.stack([some[i][keep], members[j][keep]], axis=1))
    return np.concatenate(pairs)


def duplicates_report(sets: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Count copies and groups inside and across sets, and copies with different labels."""
    images = pd.concat(sets, ignore_index=True)
    classes = images.dropna(subset=["target"]).groupby("sha256")["target"].nunique()
    firsts = {name: rows.groupby("group")["img_name"].first() for name, rows in sets.items()}
    counts, examples = {}, {}
    for one, other in combinations(firsts, 2):
        shared = firsts[one].index.intersection(firsts[other].index)
        counts[f"{one}/{other}"] = len(shared)
        if len(shared):
            examples[f"{one}/{other}"] = [firsts[one][shared[0]], firsts[other][shared[0]]]
    return {
        "exact_copies": int(images.duplicated("sha256").sum()),
        "exact_copies_with_both_labels": int((classes > 1).sum()),
        "largest_group": int(images["group"].value_counts().max()),
        "groups_across_sets": counts,
        "first_across_sets": examples,
    }
