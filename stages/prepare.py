"""Prepare the labels: decide on bad images, group those that belong together, split, audit.

params.yaml: data, prepare; data/packed/**/facts.parquet
  ->  data/labels/{train,val,calibration,test,held_out,evaluation}.{csv,sha256}, metrics/data.json
Run: python -m stages.prepare

A label file has one row per image; its columns are LABEL_TYPES in stages/lib/core/labels.py. The
calibration split is a part of the validation set. Without a validation set, both are parts of the
training set. A group has near-duplicates, and images that the data set itself groups (one person,
one video, one source image); no split divides it. Fakes of prepare.hold_out_families leave
train, val and calibration; held_out.csv has those of val. evaluation.csv has all sets of
data.evaluation_sets; one more set changes no other file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import GroupShuffleSplit

from stages.lib import paths
from stages.lib.audit.near_duplicates import duplicates_report, join_groups, near_duplicate_groups
from stages.lib.audit.shortcuts import audit_split
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import atomic_folder, write_json
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL, write_labels
from stages.lib.core.params import Seed, StageParams, load_params
from stages.lib.data.layouts.image_set import SET_NAMES
from stages.lib.data.params import DataParams
from stages.lib.images.packed_images import read_facts
from stages.lib.running import run_stage

NUM_DRAWS = 100  # of a split that leaves both classes in both parts


class PrepareParams(StageParams):
    """Section `prepare`."""

    bad_images: Literal["refuse", "drop"]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=7)]
    val_share: Annotated[float, Field(gt=0, lt=0.5)]
    calibration_share: Annotated[float, Field(gt=0, lt=0.5)]
    hold_out_families: list[str]
    shortcuts: Literal["warn", "refuse"]
    shortcut_auc: Annotated[float, Field(ge=0.5, le=1)]
    seed: Seed


def main() -> None:
    """Write the label files and the report on the data."""
    params = load_params("prepare", PrepareParams)
    data = load_params("data", DataParams)
    names = data.evaluation_sets
    facts = _read_facts([*SET_NAMES, *(f"sets/{name}" for name in names)])
    is_bad, is_own = facts["error"].notna(), facts["set"].isin(SET_NAMES)
    bad = facts[is_bad]
    _decide_on_bad_images(bad, params.bad_images)
    good, more = facts[~is_bad & is_own].copy(), facts[~is_bad & ~is_own].copy()
    near = near_duplicate_groups(_hashes(good), params.near_duplicate_bits)
    good["group"] = _joined(near, good)
    more["group"] = _groups_of_more(good, more, params.near_duplicate_bits)
    splits = split(good, params)
    splits, held_out = hold_out(splits, params.hold_out_families)
    for name in names:
        splits[name] = _checked(name, more[more["set"] == f"sets/{name}"])
    report = {
        "generated_sample": Path(data.root).resolve() == paths.SAMPLE.resolve(),
        "bad_images": _bad_images_report(bad),
        "splits": {name: audit_split(rows, params.seed) for name, rows in splits.items()},
        "held_out": held_out["family"].value_counts().sort_index().to_dict(),
        "duplicates": duplicates_report(splits | {"val": pd.concat([splits["val"], held_out])}),
        "shortcut_auc": params.shortcut_auc,
    }
    _say_what_was_found(report)
    _judge_shortcuts(report["splits"], params)
    with atomic_folder(paths.LABELS) as labels:
        for name in ("train", "val", "calibration", "test"):
            write_labels(splits[name], labels / f"{name}.csv")
        write_labels(held_out, labels / "held_out.csv")
        write_labels(more, labels / "evaluation.csv")
    write_json(paths.DATA_REPORT, report)


def _read_facts(sets: Sequence[str]) -> pd.DataFrame:
    """Return the facts of these folders of data/packed, with the columns set and row."""
    tables = [read_facts(paths.PACKED / name).assign(set=name) for name in sets]
    rows = np.concatenate([np.arange(len(table)) for table in tables])
    return pd.concat(tables, ignore_index=True).assign(row=rows)


def _hashes(facts: pd.DataFrame) -> np.ndarray:
    """Return the perceptual hashes, uint64 (N,), of good images."""
    return facts["phash"].to_numpy(dtype=np.uint64)


def _joined(near: np.ndarray, facts: pd.DataFrame) -> np.ndarray:
    """Join near-duplicate groups, int (N,), of images that the data set groups, or of one video.

    Other data sets may have the same names, so these begin with the set.
    """
    data_set = facts["set"].where(~facts["set"].isin(SET_NAMES), "own")
    for column in ("given_group", "video"):
        near = join_groups(near, data_set.str.cat(facts[column], sep="/"))
    return near


def _groups_of_more(good: pd.DataFrame, more: pd.DataFrame, max_bits: int) -> np.ndarray:
    """Return the groups of further images: those of their near-duplicates in `good`, or new ones.

    The groups of `good` stay as they are, so an evaluation set changes no split.
    """
    if more.empty:
        return np.empty(0, dtype=int)
    hashes = np.concatenate([_hashes(good), _hashes(more)])
    near = near_duplicate_groups(hashes, max_bits)
    together = _joined(near, pd.concat([good, more], ignore_index=True))
    of_good, of_more = together[: len(good)], together[len(good) :]
    known = good.groupby(of_good)["group"].first()
    new = pd.Series(of_more).where(~np.isin(of_more, known.index))
    numbers = int(good["group"].max()) + 1 + pd.factorize(new)[0]
    return np.where(new.isna(), known.reindex(of_more).fillna(-1).astype(int), numbers)


def _decide_on_bad_images(bad: pd.DataFrame, decision: str) -> None:
    if len(bad) and decision == "refuse":
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} listed images cannot be used, the first: {first['img_name']} of the "
            f"{first['set']} set ({first['error']}); fix them, or leave them out with "
            "prepare.bad_images: drop"
        )


def _bad_images_report(bad: pd.DataFrame) -> dict[str, Any]:
    listed = bad[["set", "img_name", "error"]].head(100).to_dict("records")
    return {"count": len(bad), "first": listed}


def split(good: pd.DataFrame, params: PrepareParams) -> dict[str, pd.DataFrame]:
    """Return the rows of train, val, calibration and test."""
    train, val, test = (good[good["set"] == name] for name in SET_NAMES)
    if val.empty:
        train, val = _split_groups(train, params.val_share, params.seed)
    val, calibration = _split_groups(val, params.calibration_share, params.seed)
    return {"train": train, "val": val, "calibration": calibration, "test": test}


def hold_out(
    splits: dict[str, pd.DataFrame], families: list[str]
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Take the fakes of these families out of all that training and choosing sees.

    Returns the splits without them, and those of val, which measure how the detector does on
    families that it has not seen. Raises UserError for a family that val does not have, and where a
    labelled split lacks one of the classes.
    """
    seen = ("train", "val", "calibration")
    fakes = splits["val"][splits["val"]["target"] == FAKE]
    for family in families:
        if family not in set(fakes["family"]):
            known = ", ".join(sorted(fakes["family"].dropna().unique()))
            raise UserError(
                f"prepare.hold_out_families: the val split has no fakes of '{family}'; "
                + (f"it has {known}" if known else "its list has no column family")
            )
    held = {name: splits[name]["family"].isin(families) & (splits[name]["target"] == FAKE)
            for name in seen}  # fmt: skip
    kept = {name: _checked(name, splits[name][~held[name]]) for name in seen}
    return splits | kept, splits["val"][held["val"]]


def _checked(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows; raises UserError where they lack one of the classes."""
    for target in (REAL, FAKE):
        if not (rows["target"] == target).any():
            raise UserError(
                f"the {name} split ({len(rows)} images) has no {CLASS_NAMES[target]} image "
                f"(target {target}); both classes are needed"
            )
    return rows


def _split_groups(rows: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off about `share` of the groups; return (rest, split off).

    Of up to NUM_DRAWS draws it takes the first that leaves each class in both parts.
    """
    if rows["group"].nunique() < 2:
        raise UserError(
            f"{len(rows)} images in {rows['group'].nunique()} groups are too few "
            "to split; add images or lower prepare.near_duplicate_bits"
        )
    classes = rows["target"].nunique()
    splitter = GroupShuffleSplit(n_splits=NUM_DRAWS, test_size=share, random_state=seed)
    for rest, aside in splitter.split(rows, groups=rows["group"]):
        parts = rows.iloc[rest], rows.iloc[aside]
        if all(part["target"].nunique() == classes for part in parts):
            return parts
    counts = rows.groupby("target")["group"].nunique()
    raise UserError(
        f"no split of {len(rows)} images has both classes in both parts: the "
        f"{CLASS_NAMES[int(counts.idxmin())]} ones are in {counts.min()} groups; "
        "add images of this class, or lower prepare.near_duplicate_bits"
    )


def _judge_shortcuts(splits: dict[str, Any], params: PrepareParams) -> None:
    """Warn of facts that tell the classes apart without a look at faces, or refuse them."""
    for name, audit in splits.items():
        if name == "calibration":  # a part of val, and too small for an AUC
            continue
        found = {k: auc for k, auc in audit["shortcuts"].items() if k != "worst"}
        above = {k: auc for k, auc in found.items() if auc > params.shortcut_auc}
        if not above:
            continue
        listed = ", ".join(
            f"{cue} ({auc:.3f})" for cue, auc in sorted(above.items(), key=lambda x: -x[1])
        )
        problem = (
            f"facts that alone tell real from fake in the {name} split, with their AUC: {listed}; "
            "a detector may learn these instead of the manipulation"
        )
        if params.shortcuts == "refuse":
            raise UserError(
                f"{problem}; fix the data, set train.reencode, or prepare.shortcuts: warn"
            )
        print(f"WARNING: {problem} (train.reencode helps against traces of compression)")


def _say_what_was_found(report: dict[str, Any]) -> None:
    for name, found in report["splits"].items():
        counts = ", ".join(f"{found[kind]} {kind}" for kind in (*CLASS_NAMES, "unlabelled"))
        print(f"{name:12s}{counts}, {found['num_groups']} groups")
    for family, count in report["held_out"].items():
        print(f"held out    {count} fake of {family}, which nothing is trained or chosen on")
    across, firsts = (report["duplicates"][f"{name}_across_splits"] for name in ("groups", "first"))
    for pair, (one, other) in firsts.items():
        print(
            f"WARNING: {across[pair]} groups of images that belong together are in both splits "
            f"of {pair}, for example {short(one)} and {short(other)}"
        )
    if report["bad_images"]["count"]:
        print(
            f"WARNING: {report['bad_images']['count']} bad images left out, see {paths.DATA_REPORT}"
        )


if __name__ == "__main__":
    run_stage(main)
