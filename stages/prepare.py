"""Prepare the labels: decide on bad images, group near-duplicates, split, audit.

params.yaml: prepare; data/packed/*/facts.parquet
  ->  data/labels/{train,val,calibration,test}.csv, metrics/data.json
Run: python -m stages.prepare

A label file has one row per image: img_name, target (0 real, 1 fake, empty if unknown), family,
set and row (where the image lies in data/packed) and group (near-duplicates share one). The
calibration part comes out of the validation set; without a validation set, that and the
calibration part come out of the training set. Groups are never divided by a split.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import GroupShuffleSplit

from stages.lib.audit import audit_split, duplicates_report, near_duplicate_groups
from stages.lib.competition import CLASS_NAMES, FAKE, REAL, SETS
from stages.lib.errors import UserError, run_stage
from stages.lib.files import fresh_folder, write_json
from stages.lib.labels import LABEL_TYPES, write_table
from stages.lib.packed import read_facts
from stages.lib.params import StageParams, load_params

PACKED = Path("data/packed")
LABELS = Path("data/labels")
REPORT = Path("metrics/data.json")


class PrepareParams(StageParams):
    """Section `prepare`."""

    bad_images: Literal["refuse", "drop"]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=7)]
    val_share: Annotated[float, Field(gt=0, lt=0.5)]
    calibration_share: Annotated[float, Field(gt=0, lt=0.5)]
    shortcuts: Literal["warn", "refuse"]
    shortcut_auc: Annotated[float, Field(ge=0.5, le=1)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    """Write the label files and the report on the data."""
    params = load_params("prepare", PrepareParams)
    facts = pd.concat([_read_set(name) for name in SETS], ignore_index=True)
    bad = facts[facts["error"].notna()]
    _decide_on_bad_images(bad, params.bad_images)
    good = facts[facts["error"].isna()].copy()
    good["group"] = near_duplicate_groups(good["phash"].to_numpy(), params.near_duplicate_bits)
    splits = split(good, params)
    report = {
        "bad_images": _bad_images_report(bad),
        "splits": {name: audit_split(rows, params.seed) for name, rows in splits.items()},
        "duplicates": duplicates_report(splits),
    }
    _say_what_was_found(report)
    _judge_shortcuts(report["splits"], params)
    with fresh_folder(LABELS) as labels:
        for name, rows in splits.items():
            write_table(rows[list(LABEL_TYPES)], labels / f"{name}.csv")
    write_json(REPORT, report)


def _read_set(name: str) -> pd.DataFrame:
    facts = read_facts(PACKED / name)
    return facts.astype({"target": "Int8"}).assign(set=name, row=np.arange(len(facts)))


def _decide_on_bad_images(bad: pd.DataFrame, decision: str) -> None:
    if len(bad) and decision == "refuse":
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} listed images cannot be used, the first: {first['img_name']} of the "
            f"{first['set']} set ({first['error']}); mend them, or leave them out with "
            "prepare.bad_images: drop"
        )


def _bad_images_report(bad: pd.DataFrame) -> dict[str, Any]:
    listed = bad[["set", "img_name", "error"]].head(100).to_dict("records")
    return {"count": len(bad), "first": listed}


def split(good: pd.DataFrame, params: PrepareParams) -> dict[str, pd.DataFrame]:
    """Return the rows of train, val, calibration and test.

    Raises UserError where a labelled split lacks one of the classes.
    """
    train, val, test = (good[good["set"] == name] for name in SETS)
    if val.empty:
        train, val = _split_groups(train, params.val_share, params.seed)
    val, calibration = _split_groups(val, params.calibration_share, params.seed)
    splits = {"train": train, "val": val, "calibration": calibration, "test": test}
    for name in ("train", "val", "calibration"):
        for target in (REAL, FAKE):
            if not (splits[name]["target"] == target).any():
                raise UserError(
                    f"the {name} split ({len(splits[name])} images) has no {CLASS_NAMES[target]} "
                    f"image (target {target}); both classes are needed"
                )
    return splits


def _split_groups(rows: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Set about `share` of the near-duplicate groups aside: (rest, set aside)."""
    if rows["group"].nunique() < 2:
        raise UserError(
            f"{len(rows)} images in {rows['group'].nunique()} near-duplicate groups are too few "
            "to split; add images or lower prepare.near_duplicate_bits"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    rest, aside = next(splitter.split(rows, groups=rows["group"]))
    return rows.iloc[rest], rows.iloc[aside]


def _judge_shortcuts(splits: dict[str, Any], params: PrepareParams) -> None:
    """Warn of facts that tell the classes apart without a look at the faces, or refuse them."""
    for name in ("train", "val"):
        found = {k: auc for k, auc in splits[name]["shortcuts"].items() if k != "worst"}
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
                f"{problem}; mend the data, set train.reencode, or prepare.shortcuts: warn"
            )
        print(f"WARNING: {problem} (train.reencode helps against traces of compression)")


def _say_what_was_found(report: dict[str, Any]) -> None:
    for name, found in report["splits"].items():
        counts = ", ".join(f"{found[kind]} {kind}" for kind in (*CLASS_NAMES, "unlabelled"))
        print(f"{name:12s}{counts}, {found['num_groups']} near-duplicate groups")
    across = report["duplicates"]["groups_across_splits"]
    for pair, count in across.items():
        if count:
            print(f"WARNING: {count} near-duplicate groups are in both splits of {pair}")
    if report["bad_images"]["count"]:
        print(f"WARNING: {report['bad_images']['count']} bad images left out, see {REPORT}")


if __name__ == "__main__":
    run_stage(main)
