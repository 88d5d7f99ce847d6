"""Pack the raw images: their bytes as they are in few large files, and one row of facts per image.

params.yaml: data.root, pack; the folder data.root  ->  data/packed/{train,val,test}
Run: python -m stages.pack

Each packed set holds `images-*.arrow` (column image: binary) and `facts.parquet`, both in the order
of the set's list. An image that is missing, empty or unreadable gets an empty cell and its reason
in the column `error`; stages.prepare decides what becomes of it. A set that the data set lacks is
packed as an empty one. Memory use does not grow with the number of images.
"""

from pathlib import Path

from stages.lib.competition import SETS, find_sets, read_list
from stages.lib.errors import run_stage
from stages.lib.files import fresh_folder
from stages.lib.packing import PackParams, pack_images
from stages.lib.params import DataParams, load_params

PACKED = Path("data/packed")


def main() -> None:
    """Pack every set; the label lists are checked first, so that a typo costs no hours."""
    params = load_params("pack", PackParams)
    sets = find_sets(Path(load_params("data", DataParams).root))
    lists = {name: read_list(image_set) for name, image_set in sets.items()}
    for name in SETS:
        with fresh_folder(PACKED / name) as folder:
            pack_images(sets.get(name), lists.get(name), folder, params)


if __name__ == "__main__":
    run_stage(main)
