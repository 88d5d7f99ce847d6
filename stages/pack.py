"""Pack raw images: their bytes, unchanged, in a few large files, and one row of facts per image.

params.yaml: data, pack; the folder data.root            ->  data/packed/{train,val,test}
             data, pack; one of data.evaluation_sets     ->  data/packed/NAME.set
Run: python -m stages.pack
     python -m stages.pack NAME     (an evaluation set; DVC gives it in DVC_STAGE, pack_set@NAME)

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
from stages.lib.data.layouts.image_set import SET_NAMES
from stages.lib.data.packing import pack_empty_set, pack_images
from stages.lib.data.params import DataParams, PackParams, packed_name
from stages.lib.running import run_stage


def main(set_name: str = "") -> None:
    """Pack data.root, or the evaluation set of this name."""
    params = load_params("pack", PackParams)
    data = load_params("data", DataParams)
    if set_name:
        pack_evaluation_set(set_name, data, params)
    else:
        pack_root(data, params)


def pack_root(data: DataParams, params: PackParams) -> None:
    """Pack train, val and test; all lists are checked first, so that a typo costs no hours."""
    root = Path(data.root)
    sets = training_sets(find_sets(root, data.layout, data.manifest), root)
    for name in SET_NAMES:
        with atomic_folder(paths.PACKED / name) as folder:
            if name in sets:
                pack_images(sets[name], folder, params)
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
    """Return the evaluation set that the command line or DVC names; "": data.root is wanted."""
    stage = os.environ.get("DVC_STAGE", "")
    return " ".join(sys.argv[1:]) or stage.partition("pack_set@")[2]


if __name__ == "__main__":
    name = wanted_set()
    parts = [name] if name else []
    run_stage(lambda: main(name), *parts)
