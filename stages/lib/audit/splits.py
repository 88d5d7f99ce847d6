"""Splitting by group, and taking out what is held out; rows are those of stages.prepare.

Rows have the columns of a label table, and part (train or val, as the data set has it) and
data_set (the parameter that names its folder).
"""

import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL

NUM_DRAWS = 100  # of a split that leaves both classes in both parts
LEARNT = ("train", "val", "calibration")  # the sets that a detector is trained or chosen on
Sets = dict[str, pd.DataFrame]


def split(own: pd.DataFrame, val_share: float, calibration_share: float, seed: int) -> Sets:
    """Return the rows of the sets train, val and calibration, each data set split by itself.

    No group is divided here: one that several data sets have is split with the first of them, and
    follows a data set that brings its own val.
    """
    part, groups = own["part"], own["group"]
    brings_val = own["data_set"].isin(own.loc[part == "val", "data_set"])
    is_divisible = (part == "train") & ~brings_val
    val_groups = set(groups[part == "val"])
    split_already = val_groups | set(groups[(part == "train") & brings_val])
    val_groups |= choose_groups(own[is_divisible], split_already, val_share, seed)
    is_val = (part == "val") | (is_divisible & groups.isin(val_groups))
    calibration_groups = choose_groups(own[is_val], set(), calibration_share, seed)
    is_calibration = is_val & groups.isin(calibration_groups)
    return {
        "train": own[(part == "train") & ~is_val],
        "val": own[is_val & ~is_calibration],
        "calibration": own[is_calibration],
    }


def choose_groups(rows: pd.DataFrame, split_already: set[int], share: float, seed: int) -> set[int]:
    """Return groups to split off: about `share` of those of each data set that are not yet split.

    Of up to NUM_DRAWS draws it takes the first that leaves each class in both parts.
    """
    chosen: set[int] = set()
    done = set(split_already)
    for name, all_rows in rows.groupby("data_set", sort=False):
        new = all_rows[~all_rows["group"].isin(done)]
        if len(new):
            chosen |= _draw_groups(new, share, seed, str(name))
        done |= set(all_rows["group"])
    return chosen


def _draw_groups(rows: pd.DataFrame, share: float, seed: int, name: str) -> set[int]:
    if rows["group"].nunique() < 2:
        raise UserError(
            f"{name}: {len(rows)} images in {rows['group'].nunique()} groups are too few "
            "to split; add images or lower prepare.near_duplicate_bits"
        )
    classes = rows["target"].nunique()
    splitter = GroupShuffleSplit(n_splits=NUM_DRAWS, test_size=share, random_state=seed)
    for rest, aside in splitter.split(rows, groups=rows["group"]):
        parts = rows.iloc[rest], rows.iloc[aside]
        if all(part["target"].nunique() == classes for part in parts):
            return set(parts[1]["group"])
    counts = rows.groupby("target")["group"].nunique()
    raise UserError(
        f"{name}: no split of {len(rows)} images has both classes in both parts: the "
        f"{CLASS_NAMES[int(counts.idxmin())]} ones are in {counts.min()} groups; "
        "add images of this class, or lower prepare.near_duplicate_bits"
    )


def hold_out_sources(sets: Sets, sources: list[str]) -> tuple[Sets, pd.DataFrame, int]:
    """Take all images of these sources out of train, val and calibration.

    Returns the sets without them, the images of val and calibration that were taken out, and how
    many images of other sources left with them, because one of those is in their group. Raises
    UserError for a source that val does not have, and if a class is missing anywhere.
    """
    whole_val = pd.concat([sets["val"], sets["calibration"]]).sort_index()
    held_out = whole_val[whole_val["source"].isin(sources)]
    for source in sources:
        rows = held_out[held_out["source"] == source]
        if rows.empty:
            known = sorted(whole_val["source"].dropna().unique())
            hint = f"it has {short(', '.join(known), 200)}" if known else "none has a source"
            raise UserError(
                f"prepare.hold_out_sources: the val set has no images of '{source}'; "
                f"{hint}{did_you_mean(source, known)}"
            )
        checked(f"held_out_{source}", rows)
    rest, num_near = dict(sets), 0
    for name in LEARNT:
        others = sets[name][~sets[name]["source"].isin(sources)]
        is_near = others["group"].isin(held_out["group"])
        num_near += int(is_near.sum())
        rest[name] = checked(name, others[~is_near])
    return rest, held_out, num_near


def hold_out_families(sets: Sets, families: list[str]) -> tuple[Sets, pd.DataFrame]:
    """Take the fakes of these families out of train, val and calibration.

    Returns the sets without them, and the fakes of val that were taken out. They measure how the
    detector does on methods that it has not seen. Raises UserError for a family that val does not
    have, and if a class is missing in one of the three sets.
    """
    rest, is_held_out = dict(sets), {}
    for name in LEARNT:
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
        rest[name] = checked(name, sets[name][~is_out])
    return rest, held_out


def checked(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a set; raises UserError where they lack one of the classes."""
    for target in (REAL, FAKE):
        if not (rows["target"] == target).any():
            raise UserError(
                f"the {name} set ({len(rows)} images) has no {CLASS_NAMES[target]} image "
                f"(target {target}); both classes are needed"
            )
    return rows
