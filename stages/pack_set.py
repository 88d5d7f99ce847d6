"""Pack one further evaluation set, as stages.pack does with those of data.root.

params.yaml: data.evaluation_sets, pack; the set's folder  ->  data/packed/sets/NAME
Run: python -m stages.pack_set NAME

The folder has the competition's layout; its validation set is what will be judged on.
"""

import sys
from pathlib import Path

from stages.lib.competition import find_sets, read_list
from stages.lib.errors import UserError, run_stage
from stages.lib.files import fresh_folder
from stages.lib.packing import PackParams, pack_images
from stages.lib.params import DataParams, load_params

SETS = Path("data/packed/sets")


def main() -> None:
    """Pack the set that the command line names."""
    params = load_params("pack", PackParams)
    folders = load_params("data", DataParams).evaluation_sets
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in folders:
        known = ", ".join(folders) or "none is set"
        raise UserError(f"give a name of data.evaluation_sets ({known}), not '{name}'")
    where = f"data.evaluation_sets.{name}"
    image_set = find_sets(Path(folders[name]), required="val", parameter=where)["val"]
    with fresh_folder(SETS / name) as folder:
        pack_images(image_set, read_list(image_set), folder, params)


if __name__ == "__main__":
    run_stage(main)
