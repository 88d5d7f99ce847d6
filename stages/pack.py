"""Pack raw images: their bytes, unchanged, in a few large files, and one row of facts per image.

params.yaml: data, pack; data.root                    ->  data/packed/{training/{train,val},test}
             data, pack; one of data.training_sets    ->  data/packed/training/NAME.set/{train,val}
             data, pack; one of data.evaluation_sets  ->  data/packed/NAME.set
Run: python -m stages.pack
     python -m stages.pack training/NAME  (a training set; DVC_STAGE is pack_training_set@NAME)
     python -m stages.pack NAME           (an evaluation set; DVC_STAGE is pack_set@NAME)

How a data set is laid out is found out, or said in data.layout (data/README.md). Of an evaluation
set the test set is packed; where that has not both classes, the validation or the training set.

Each packed set has `images-*.arrow` (column image: binary) and `facts.parquet`, both in the order
of the list of the set. A video gives several images, its frames. An image that is missing, empty or
unreadable gets an empty cell and its reason in the column `error`; stages.prepare decides what
happens to it. A set that is not in the data set is packed as an empty one. Memory use does not grow
with the number of images.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder
from stages.lib.core.params import load_params
from stages.lib.data.layouts.find import evaluation_set, find_sets, training_sets
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.packing import pack_empty_set, pack_images
from stages.lib.data.params import (
    ROOT_FOLDERS,
    TRAINING_PARTS,
    DataParams,
    PackParams,
    packed_name,
    packed_training_name,
)
from stages.lib.running import run_stage


def main(name: str = "") -> None:
    """Pack data.root, or the evaluation set of this name, or the training set `training/NAME`."""
    params = load_params("pack", PackParams)
    data = load_params("data", DataParams)
    folder, _, training_name = name.rpartition("/")
    if folder == "training":
        pack_training_set(training_name, data, params)
    elif name:
        pack_evaluation_set(name, data, params)
    else:
        pack_root(data, params)


def pack_root(data: DataParams, params: PackParams) -> None:
    """Pack train, val and test; all lists are checked first, so that a typo costs no hours."""
    root = Path(data.root)
    sets = training_sets(find_sets(root, data.layout, data.manifest), root)
    for part, place in ROOT_FOLDERS.items():
        with atomic_folder(paths.PACKED / place) as folder:
            pack_part(sets, part, folder, params)


def pack_training_set(name: str, data: DataParams, params: PackParams) -> None:
    """Pack train and val of one of data.training_sets; a test set of it is not trained on."""
    if name not in data.training_sets:
        known = ", ".join(data.training_sets) or "none is set"
        raise UserError(f"give a name of data.training_sets ({known}), not '{name}'")
    data.check_sources()
    root = Path(data.training_sets[name])
    sets = find_sets(root, "auto", data.manifest, f"data.training_sets.{name}")
    sets = training_sets(sets, root)
    with atomic_folder(paths.PACKED / packed_training_name(name)) as folder:
        for part in TRAINING_PARTS:
            (folder / part).mkdir()
            pack_part(sets, part, folder / part, params)


def pack_part(sets: dict[str, ImageSet], part: str, folder: Path, params: PackParams) -> None:
    """Pack train, val or test of a data set; one that it has not is packed as an empty one."""
    if part in sets:
        pack_images(sets[part], folder, params)
    else:
        pack_empty_set(folder)


def pack_evaluation_set(name: str, data: DataParams, params: PackParams) -> None:
    """Pack one of data.evaluation_sets."""
    if name not in data.evaluation_sets:
        known = ", ".join(data.evaluation_sets) or "none is set"
        raise UserError(f"give a name of data.evaluation_sets ({known}), not '{name}'")
    root = Path(data.evaluation_sets[name])
    sets = find_sets(root, "auto", data.manifest, f"data.evaluation_sets.{name}")
    image_set = replace(evaluation_set(sets, root), name=packed_name(name))
    with atomic_folder(paths.PACKED / image_set.name) as folder:
        pack_images(image_set, folder, params)


def wanted_set() -> str:
    """Return the set that the command line or DVC names; "": data.root is wanted."""
    stage = os.environ.get("DVC_STAGE", "")
    _, is_training_set, training_name = stage.partition("pack_training_set@")
    if len(sys.argv) > 1:
        return " ".join(sys.argv[1:])
    if is_training_set:
        return f"training/{training_name}"
    return stage.partition("pack_set@")[2]


if __name__ == "__main__":
    name = wanted_set()
    parts = [name] if name else []
    run_stage(lambda: main(name), *parts)
