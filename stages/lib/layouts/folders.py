"""Folders whose names say what is in them: any tree with a folder for each class.

    train/real/*.jpg    train/fake/swap/*.jpg    val/0_real/*.png    training_fake/*.jpg

A folder below that of the class names the family of fakes, or the source of reals; one between set
and class names the source of both. Without folders for sets, all images are of the training set.
"""

from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import FAKE
from stages.lib.layouts.image_set import SET_NAMES, ImageSet, media_files, table_of
from stages.lib.layouts.words import class_of, set_of

Row = dict[str, str | int | None]
EXPECTED = (
    "a folder named real, 0 or original and one named fake, 1 or manipulated, in folders named "
    "train, val and test or in none"
)


def folder_sets(root: Path) -> dict[str, ImageSet]:
    """Return the sets under root; raises UserError where the names of folders do not tell."""
    rows: dict[str, list[Row]] = {name: [] for name in SET_NAMES}
    unclear: list[str] = []
    for path in media_files(root):
        set_name, row = _row(path)
        if row["target"] is None and set_name != "test":
            unclear.append(path)
        rows[set_name].append(row)
    if unclear:
        total = sum(map(len, rows.values()))
        raise UserError(
            f"{root}: no layout fits: looked for {EXPECTED}; found {len(unclear)} of {total} files "
            f"in no folder of a class, the first: {short(unclear[0], 60)}; see data.layout"
        )
    return {name: ImageSet(name, root, table_of(found)) for name, found in rows.items() if found}


def _row(path: str) -> tuple[str, Row]:
    """Return the set and the row of a file from the names of the folders that it is in."""
    folders = path.split("/")[:-1]
    sets = [(at, found) for at, name in enumerate(folders) if (found := set_of(name))]
    classes = [(at, found) for at, name in enumerate(folders)
               if (found := class_of(name)) is not None]  # fmt: skip
    row: Row = {"img_name": path}
    set_at, set_name = sets[-1] if sets else (-1, "train")
    if classes:
        class_at, row["target"] = classes[0]
        below = folders[class_at + 1 :]
        between = folders[set_at + 1 : class_at] if sets else []
        row["source"] = "/".join(between) or None
        if below and row["target"] == FAKE:
            row["family"] = below[0]
        elif below:
            row["source"] = below[0]
    else:
        row["target"] = None
    return set_name, row
