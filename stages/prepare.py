"""Prepare the labels: decide on bad images, group those that belong together, split, audit.

params.yaml: data, prepare; data/packed/**/facts.parquet
  ->  data/labels/{train,val,calibration,test,held_out,evaluation}.{csv,sha256}, metrics/data.json
Run: python -m stages.prepare

A label table has one row per image; its columns are LABEL_TYPES in stages/lib/core/labels.py. The
calibration set is a part of the validation set. Without a validation set, both are parts of the
training set. A group has near-duplicates, and images that the data set itself groups (one person,
one video, one source image); where this stage splits, it divides no group. Fakes of
prepare.hold_out_families leave train, val and calibration; held_out.csv has those of val.
evaluation.csv has all sets of data.evaluation_sets; one more set changes no other file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import GroupShuffleSplit

from stages.lib import paths
from stages.lib.audit.groups import duplicates_report, group_further_images, group_images
from stages.lib.audit.report import say_what_was_found, warn_of_shortcuts
from stages.lib.audit.shortcuts import audit_set
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, write_json
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL, write_labels
from stages.lib.core.params import Seed, StageParams, load_params
from stages.lib.data.layouts.image_set import SET_NAMES
from stages.lib.data.params import DataParams, packed_name
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
    """Write the label tables and the report on the data."""
    params = load_params("prepare", PrepareParams)
    data = load_params("data", DataParams)
    facts = _read_facts([*SET_NAMES, *map(packed_name, data.evaluation_sets)])
    is_bad, is_own = facts["error"].notna(), facts["set"].isin(SET_NAMES)
    bad, own, evaluation = facts[is_bad], facts[~is_bad & is_own], facts[~is_bad & ~is_own]
    bad = bad.assign(set=bad["set"].str.removesuffix(".set"))  # as the user names it
    if params.bad_images == "refuse":
        _refuse_bad_images(bad)
    own = own.assign(group=group_images(own, params.near_duplicate_bits))
    further_groups = group_further_images(own, evaluation, params.near_duplicate_bits)
    evaluation = evaluation.assign(group=further_groups)
    sets, held_out = hold_out(split(own, params), params.hold_out_families)
    for name in data.evaluation_sets:
        sets[name] = _checked(name, evaluation[evaluation["set"] == packed_name(name)])
    report = {
        "generated_sample": Path(data.root).resolve() == paths.SAMPLE.resolve(),
        "bad_images": {
            "count": len(bad),
            "first": bad[["set", "img_name", "error"]].head(100).to_dict("records"),
        },
        "sets": {name: audit_set(rows, params.seed) for name, rows in sets.items()},
        "held_out": held_out["family"].value_counts().sort_index().to_dict(),
        "duplicates": duplicates_report(sets | {"val": pd.concat([sets["val"], held_out])}),
        "shortcut_auc": params.shortcut_auc,
    }
    say_what_was_found(report)
    warn_of_shortcuts(report["sets"], params.shortcut_auc, refuse=params.shortcuts == "refuse")
    with atomic_folder(paths.LABELS) as labels:
        for name in ("train", "val", "calibration", "test"):
            write_labels(sets[name], labels / f"{name}.csv")
        write_labels(held_out, labels / "held_out.csv")
        write_labels(held_out.head(0), labels / "held_out_sources.csv")
        write_labels(evaluation, labels / "evaluation.csv")
    write_json(paths.DATA_REPORT, report)


def _read_facts(names: Sequence[str]) -> pd.DataFrame:
    """Return the facts of these folders of data/packed, with the columns set and row."""
    tables = [read_facts(paths.PACKED / name).assign(set=name) for name in names]
    rows = np.concatenate([np.arange(len(table)) for table in tables])
    return pd.concat(tables, ignore_index=True).assign(row=rows)


def _refuse_bad_images(bad: pd.DataFrame) -> None:
    if len(bad):
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} listed images cannot be used, the first: {first['img_name']} of the "
            f"{first['set']} set ({first['error']}); fix them, or leave them out with "
            "prepare.bad_images: drop"
        )


def split(own: pd.DataFrame, params: PrepareParams) -> dict[str, pd.DataFrame]:
    """Return the rows of the sets train, val, calibration and test."""
    packed = {name: own[own["set"] == name] for name in SET_NAMES}
    train, val = packed["train"], packed["val"]
    if val.empty:
        train, val = _split_groups(train, params.val_share, params.seed)
    val, calibration = _split_groups(val, params.calibration_share, params.seed)
    return {"train": train, "val": val, "calibration": calibration, "test": packed["test"]}


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


def hold_out(
    sets: dict[str, pd.DataFrame], families: list[str]
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Take the fakes of these families out of train, val and calibration.

    Returns the sets without them, and the fakes of val that were taken out. They measure how the
    detector does on methods that it has not seen. Raises UserError for a family that val does not
    have, and if a class is missing in one of the three sets.
    """
    sets, is_held_out = dict(sets), {}
    for name in ("train", "val", "calibration"):
        is_fake = sets[name]["target"] == FAKE
        is_held_out[name] = sets[name]["family"].isin(families) & is_fake
    held_out = sets["val"][is_held_out["val"]]
    for family in families:
        if family not in set(held_out["family"]):
            fakes = sets["val"][sets["val"]["target"] == FAKE]
            known = ", ".join(sorted(fakes["family"].dropna().unique()))
            hint = f"it has {known}" if known else "its list has no column family"
            raise UserError(
                f"prepare.hold_out_families: the val set has no fakes of '{family}'; {hint}"
            )
    for name, is_out in is_held_out.items():
        sets[name] = _checked(name, sets[name][~is_out])
    return sets, held_out


def _checked(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a set; raises UserError where they lack one of the classes."""
    for target in (REAL, FAKE):
        if not (rows["target"] == target).any():
            raise UserError(
                f"the {name} set ({len(rows)} images) has no {CLASS_NAMES[target]} image "
                f"(target {target}); both classes are needed"
            )
    return rows


if __name__ == "__main__":
    run_stage(main)
