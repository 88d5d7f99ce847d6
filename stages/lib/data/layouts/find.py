"""Finding out how a data set is laid out, and reading what it says of each image."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from stages.lib.core.errors import UserError, short
from stages.lib.data.layouts.celeb_df import celeb_df_sets, is_celeb_df
from stages.lib.data.layouts.clips import pair_groups
from stages.lib.data.layouts.competition import competition_sets, is_competition
from stages.lib.data.layouts.deepfakebench import deepfakebench_sets, lists_of
from stages.lib.data.layouts.dfdc import dfdc_sets, is_dfdc
from stages.lib.data.layouts.faceforensics import faceforensics_sets, is_faceforensics
from stages.lib.data.layouts.folders import folder_sets
from stages.lib.data.layouts.image_set import ImageSet, LeftOut, folders_in
from stages.lib.data.layouts.imagefolder import has_metadata, imagefolder_sets
from stages.lib.data.layouts.manifest import ManifestParams, manifest_sets
from stages.lib.data.layouts.parquet import has_images, parquet_sets
from stages.lib.data.layouts.webdataset import has_archives, webdataset_sets

LayoutName = Literal[
    "auto", "competition", "manifest", "faceforensics", "celeb_df", "dfdc", "deepfakebench",
    "imagefolder", "parquet", "webdataset", "folders",
]  # fmt: skip
Reader = Callable[[Path, ManifestParams, LeftOut], dict[str, ImageSet]]
READERS: dict[str, Reader] = {
    "competition": lambda root, columns, left_out: competition_sets(root),
    "manifest": lambda root, columns, left_out: manifest_sets(root, columns),
    "faceforensics": lambda root, columns, left_out: faceforensics_sets(root, left_out),
    "celeb_df": lambda root, columns, left_out: celeb_df_sets(root, left_out),
    "dfdc": lambda root, columns, left_out: dfdc_sets(root, left_out),
    "deepfakebench": lambda root, columns, left_out: deepfakebench_sets(root, left_out),
    "imagefolder": lambda root, columns, left_out: imagefolder_sets(root, columns),
    "parquet": lambda root, columns, left_out: parquet_sets(root, columns),
    "webdataset": webdataset_sets,
    "folders": lambda root, columns, left_out: folder_sets(root, left_out),
}
CHECKS: dict[str, Callable[[Path], object]] = {  # whether a folder has a layout, in this order
    "competition": is_competition,
    "faceforensics": is_faceforensics,
    "celeb_df": is_celeb_df,
    "dfdc": is_dfdc,
    "deepfakebench": lists_of,
    "imagefolder": has_metadata,
    "parquet": has_images,
    "webdataset": has_archives,
}
# The first of these that has both classes is evaluated.
BEST_FOR_EVALUATION = ("test", "val", "train")


def find_sets(
    root: Path, layout: LayoutName, manifest: ManifestParams, parameter: str = "data.root"
) -> dict[str, ImageSet]:
    """Return the sets under root, and say in one line how it is laid out.

    Raises UserError where root (named by `parameter`) is no folder, where no layout fits, and for
    every mistake in lists.
    """
    if not root.is_dir():
        hint = ", and its whole path in place of ~" if root.parts[:1] == ("~",) else ""
        raise UserError(
            f"{parameter} = '{root}' is not a folder; give the folder with the data set{hint}"
        )
    name = _find_layout(root, manifest, parameter) if layout == "auto" else layout
    left_out = LeftOut()
    sets = READERS[name](root, manifest, left_out)
    for line in left_out.lines():
        print(f"{root}: {line}", flush=True)
    if not sets:
        raise UserError(
            f"{root}: has no images in the layout {name}; see data/README.md, or set data.layout"
        )
    for image_set in sets.values():
        _refuse_line_breaks(image_set)
    if name in ("manifest", "folders"):
        sets = _with_pairs(sets, root, is_group_kept=name == "manifest")
    counts = ", ".join(f"{len(image_set.rows)} {image_set.name}" for image_set in sets.values())
    print(f"{root}: layout {name}: {counts}", flush=True)
    return sets


def _refuse_line_breaks(image_set: ImageSet) -> None:
    """Raise UserError for a name that would be two lines in a table."""
    for column in ("img_name", "family", "source", "given_group", "video"):
        words = image_set.rows[column]
        broken = words[words.str.contains("[\r\n]", regex=True, na=False)]
        if len(broken):
            word = short(repr(broken.iloc[0]))
            raise UserError(f"{image_set.folder}: {word} has a line break in it; rename it")


def _with_pairs(sets: dict[str, ImageSet], root: Path, is_group_kept: bool) -> dict[str, ImageSet]:
    """Return the sets with the pairs of FaceForensics++ as groups, where files have their names.

    Such a pair shows the same two people, so no split may divide it. is_group_kept: a group
    that is known already counts.
    """
    rows = pd.concat({name: image_set.rows for name, image_set in sets.items()})
    pairs = pair_groups(rows)
    if is_group_kept:
        pairs = pairs.mask(rows["given_group"].notna())
    if pairs.isna().all():
        return sets
    print(
        f"{root}: {pairs.count()} files have names as in FaceForensics++ (033, 033_097): each pair "
        "is one group",
        flush=True,
    )
    groups = pairs.fillna(rows["given_group"])
    return {
        name: replace(image_set, rows=image_set.rows.assign(given_group=groups[name]))
        for name, image_set in sets.items()
    }


def _find_layout(root: Path, manifest: ManifestParams, parameter: str) -> str:
    """Return the name of the layout that fits a folder; folders fit where nothing else does.

    A manifest that is named is wanted: only an evaluation set may do without it.
    """
    if manifest.file and (parameter == "data.root" or (root / manifest.file).is_file()):
        return "manifest"
    if name := _known_layout(root):
        return name
    for folder in folders_in(root):
        if name := _known_layout(folder):
            raise UserError(
                f"{parameter} = '{root}': {folder.name} in it has the layout {name}; give "
                f"'{folder}', or set data.layout"
            )
    return "folders"


def _known_layout(root: Path) -> str | None:
    """Return the layout of the known data set or list that a folder has; None: it has none."""
    return next((name for name, fits in CHECKS.items() if fits(root)), None)


def training_sets(sets: dict[str, ImageSet], root: Path) -> dict[str, ImageSet]:
    """Return the sets; raises UserError where there is none for training."""
    if "train" not in sets:
        raise UserError(f"{root}: has no training set, only {', '.join(sets)}")
    return sets


def evaluation_set(sets: dict[str, ImageSet], root: Path) -> ImageSet:
    """Return the set to evaluate: the first of test, val and train that has both classes."""
    for name in BEST_FOR_EVALUATION:
        if name in sets and sets[name].rows["target"].nunique() == 2:
            return sets[name]
    raise UserError(f"{root}: none of its sets ({', '.join(sets)}) has images of both classes")
