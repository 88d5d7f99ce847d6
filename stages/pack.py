"""Pack raw images: their bytes, unchanged, in a few large files, and one row of facts per image.

params.yaml: data, pack; the folder data.root            ->  data/packed/{train,val,test}
             data, pack; one of data.evaluation_sets     ->  data/packed/sets/NAME
Run: python -m stages.pack
     python -m stages.pack NAME     (an evaluation set; its validation set is what counts; DVC
                                     gives the name in the variable DVC_STAGE, pack_set@NAME)

Each packed set has `images-*.arrow` (column image: binary) and `facts.parquet`, both in the order
of the list of the set. An image that is missing, empty or unreadable gets an empty cell and its
reason in the column `error`; stages.prepare decides what happens to it. A set that the data set
lacks is packed as an empty one. Memory use does not grow with the number of images.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import fresh_folder
from stages.lib.core.params import load_params
from stages.lib.core.running import run_stage
from stages.lib.data.layout import SET_NAMES, find_sets, read_list
from stages.lib.data.packing import pack_empty_set, pack_images
from stages.lib.data.params import DataParams, PackParams


def main(arguments: Sequence[str] = ()) -> None:
    """Pack data.root, or the evaluation set that the arguments name."""
    params = load_params("pack", PackParams)
    data = load_params("data", DataParams)
    if arguments:
        pack_evaluation_set(" ".join(arguments), data, params)
    else:
        pack_root(Path(data.root), params)


def pack_root(root: Path, params: PackParams) -> None:
    """Pack train, val and test; all lists are checked first, so that a typo costs no hours."""
    sets = find_sets(root)
    lists = {name: read_list(image_set) for name, image_set in sets.items()}
    for name in SET_NAMES:
        with fresh_folder(paths.PACKED / name) as folder:
            if name in sets:
                pack_images(sets[name], lists[name], folder, params)
            else:
                pack_empty_set(folder)


def pack_evaluation_set(name: str, data: DataParams, params: PackParams) -> None:
    """Pack the validation set of one of data.evaluation_sets."""
    if name not in data.evaluation_sets:
        known = ", ".join(data.evaluation_sets) or "none is set"
        raise UserError(f"give a name of data.evaluation_sets ({known}), not '{name}'")
    root = Path(data.evaluation_sets[name])
    image_set = find_sets(root, required="val", parameter=f"data.evaluation_sets.{name}")["val"]
    with fresh_folder(paths.PACKED / "sets" / name) as folder:
        pack_images(image_set, read_list(image_set), folder, params)


def names() -> list[str]:
    """Return the name of the evaluation set that the command line or DVC gives, if any."""
    name = os.environ.get("DVC_STAGE", "").partition("pack_set@")[2]
    return sys.argv[1:] or [name] * bool(name)


if __name__ == "__main__":
    run_stage(lambda: main(names()), *names())
