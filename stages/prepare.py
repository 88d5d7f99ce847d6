"""Prepare the labels: decide on bad images, group those that belong together, split, audit.

params.yaml: data, prepare; data/packed/**/facts.parquet
  ->  data/labels/{train,val,calibration,test,held_out,held_out_sources,evaluation}.{csv,sha256},
      metrics/data.json
Run: python -m stages.prepare

A label table has one row per image; its columns are LABEL_TYPES in stages/lib/core/labels.py. The
calibration set is a part of the validation set. Without a validation set, both are parts of the
training set. A group has near-duplicates, and images that the data set itself groups (one person,
one video, one source image); where this stage splits, it divides no group. With data.training_sets,
each data set is split by itself, and is a source. Fakes of prepare.hold_out_families leave train,
val and calibration, and so do all images of prepare.hold_out_sources: held_out.csv and
held_out_sources.csv have those of val. evaluation.csv has all sets of data.evaluation_sets; one
more set changes no other file.
"""

from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stages.lib import paths
from stages.lib.audit.groups import duplicates_report, group_further_images, group_images
from stages.lib.audit.report import say_what_was_found, warn_of_shortcuts, warn_of_sources
from stages.lib.audit.shortcuts import audit_set
from stages.lib.audit.sources import audit_sources
from stages.lib.audit.splits import checked, hold_out_families, hold_out_sources, split
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, remove_folder, write_json
from stages.lib.core.labels import CLASS_NAMES, name_of_place, write_labels
from stages.lib.core.params import Seed, StageParams, load_params
from stages.lib.data.params import (
    ROOT_FOLDERS,
    TRAINING_PARTS,
    DataParams,
    packed_name,
    packed_training_name,
)
from stages.lib.images.packed_images import read_facts
from stages.lib.running import run_stage


class PrepareParams(StageParams):
    """Section `prepare`."""

    bad_images: Literal["refuse", "drop"]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=7)]
    val_share: Annotated[float, Field(gt=0, lt=0.5)]
    calibration_share: Annotated[float, Field(gt=0, lt=0.5)]
    hold_out_families: list[str]
    hold_out_sources: list[str]
    shortcuts: Literal["warn", "refuse"]
    shortcut_auc: Annotated[float, Field(ge=0.5, le=1)]
    seed: Seed


def main() -> None:
    """Write the label tables and the report on the data."""
    params = load_params("prepare", PrepareParams)
    data = load_params("data", DataParams)
    data.check_sources()
    remove_forgotten_sets(data)
    facts = read_all_facts(data)
    is_bad, is_own = facts["error"].notna(), facts["part"] != "evaluation"
    bad, own, evaluation = facts[is_bad], facts[~is_bad & is_own], facts[~is_bad & ~is_own]
    bad = bad.assign(set=bad["set"].map(name_of_place))
    if params.bad_images == "refuse":
        _refuse_bad_images(bad)
    own = own.assign(group=group_images(own, params.near_duplicate_bits))
    further_groups = group_further_images(own, evaluation, params.near_duplicate_bits)
    evaluation = evaluation.assign(group=further_groups)
    sets = split(own, params.val_share, params.calibration_share, params.seed)
    sets["test"] = own[own["part"] == "test"]
    sets, held_out_sources, num_near = hold_out_sources(sets, params.hold_out_sources)
    sets, held_out = hold_out_families(sets, params.hold_out_families)
    tables = sets | {"held_out": held_out, "held_out_sources": held_out_sources}
    for name in data.evaluation_sets:
        sets[name] = checked(name, evaluation[evaluation["set"] == packed_name(name)])
    report = {
        "generated_sample": data.is_generated_sample,
        "bad_images": {
            "count": len(bad),
            "first": bad[["set", "img_name", "error"]].head(100).to_dict("records"),
        },
        "sets": {name: audit_set(rows, params.seed) for name, rows in sets.items()},
        "held_out": held_out["family"].value_counts().sort_index().to_dict(),
        "duplicates": duplicates_of(sets, held_out, held_out_sources),
        "shortcut_auc": params.shortcut_auc,
    }
    if sources := audit_sources(sets, params.shortcut_auc, params.seed):
        report["sources"] = sources
    if len(held_out_sources):
        report["held_out_sources"] = count_classes(held_out_sources)
        report["near_held_out_sources"] = num_near
    say_what_was_found(report)
    warn_of_shortcuts(report["sets"], params.shortcut_auc, refuse=params.shortcuts == "refuse")
    warn_of_sources(sources.get("told_apart", {}))
    with atomic_folder(paths.LABELS) as labels:
        for name, rows in (tables | {"evaluation": evaluation}).items():
            write_labels(rows, labels / f"{name}.csv")
    write_json(paths.DATA_REPORT, report)


def remove_forgotten_sets(data: DataParams) -> None:
    """Remove packed sets that params.yaml does not name any more.

    DVC leaves them. They would be inputs, and train again what was trained without them.
    """
    named = {*map(packed_name, data.evaluation_sets)}
    named |= {*map(packed_training_name, data.training_sets)}
    for pattern in ("*.set", "training/*.set"):
        for folder in sorted(paths.PACKED.glob(pattern)):
            if folder.relative_to(paths.PACKED).as_posix() not in named:
                print(f"{folder}: no set of params.yaml any more, removed")
                remove_folder(folder)


def read_all_facts(data: DataParams) -> pd.DataFrame:
    """Return the facts of all packed images, with the columns set, row, part and data_set.

    part: train, val, test or evaluation. data_set: the parameter that names its folder.
    """
    tables = [
        _read_facts(place, part, "data.root", data.root_source if data.training_sets else "")
        for part, place in ROOT_FOLDERS.items()
    ]
    for name in data.training_sets:
        for part in TRAINING_PARTS:
            place = f"{packed_training_name(name)}/{part}"
            tables.append(_read_facts(place, part, f"data.training_sets.{name}", name))
    for name in data.evaluation_sets:
        data_set = f"data.evaluation_sets.{name}"
        tables.append(_read_facts(packed_name(name), "evaluation", data_set))
    return pd.concat(tables, ignore_index=True)


def _read_facts(place: str, part: str, data_set: str, source: str = "") -> pd.DataFrame:
    """Return the facts of a folder of data/packed; source: "" leaves what the data set says."""
    facts = read_facts(paths.PACKED / place)
    facts = facts.assign(set=place, row=np.arange(len(facts)), part=part, data_set=data_set)
    return facts.assign(source=source) if source else facts


def duplicates_of(
    sets: dict[str, pd.DataFrame], held_out: pd.DataFrame, held_out_sources: pd.DataFrame
) -> dict[str, Any]:
    """Return the report on groups and copies in all sets; fakes that are held out are in val."""
    sets = sets | {"val": pd.concat([sets["val"], held_out])}
    if len(held_out_sources):
        sets["held_out_sources"] = held_out_sources
    return duplicates_report(sets)


def count_classes(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the number of reals and fakes of each source."""
    return {
        str(source): {
            name: int((part["target"] == target).sum()) for target, name in enumerate(CLASS_NAMES)
        }
        for source, part in rows.groupby("source")
    }


def _refuse_bad_images(bad: pd.DataFrame) -> None:
    if len(bad):
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} listed images cannot be used, the first: {first['img_name']} of the "
            f"{first['set']} set ({first['error']}); fix them, or leave them out with "
            "prepare.bad_images: drop"
        )


if __name__ == "__main__":
    run_stage(main)
