"""Check the names in data.evaluation_sets before DVC makes paths of them.

params.yaml: data  ->  data/checked_names.txt
Run: python -m stages.check_names

DVC removes the old outputs of a stage before it starts the stage. With a name such as `../../tests`
that would be a folder of the user. So pack_set depends on this stage, and does not begin where it
fails. Its output is the same for all names that are right: no set is packed again for another one.
"""

from stages.lib import paths
from stages.lib.core.files import write_text
from stages.lib.core.params import load_params
from stages.lib.data.params import DataParams
from stages.lib.running import run_stage


def main() -> None:
    """Write the output where every name can be that of a folder; raises UserError."""
    num_sets = len(load_params("data", DataParams).evaluation_sets)
    write_text(paths.CHECKED_NAMES, "The names in data.evaluation_sets can be those of folders.\n")
    print(f"{num_sets} evaluation sets")


if __name__ == "__main__":
    run_stage(main)
