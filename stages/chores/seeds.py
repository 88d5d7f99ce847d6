"""Summarise experiments that differ only in the seed: mean and spread of their metrics.

Run: python -m stages.chores.seeds [--metric val.auc --metric ...] [--rev main --rev ...]

This reads what `dvc exp show` lists for the current commit, or for those of --rev. It prints one
line per configuration: the settings in which it differs from the others, the number of seeds, and
for each metric the mean, the standard deviation over the seeds (n - 1) and the range.
"""

from typing import Any

import dvc.api
import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from stages.lib.experiments import aligned, finished_rows, spread
from stages.lib.running import run_command
from stages.tools.command_line import parser_of

SEED = "train.seed"
DEFAULT_METRICS = ("val.auc", "val.tpr_at_fpr_1e-2", "val.balanced_accuracy")


def main() -> None:
    """Print the summary."""
    parser = parser_of(__doc__, "stages.chores.seeds")
    parser.add_argument("--metric", action="append", help="as in `dvc metrics show`; repeatable")
    parser.add_argument("--rev", action="append", help="a commit whose experiments to read")
    options = parser.parse_args()
    rows = dvc.api.exp_show(revs=options.rev)
    metrics = options.metric or list(DEFAULT_METRICS)
    print(summary(rows, list(read_yaml(paths.PARAMS)), metrics))


def summary(rows: list[dict[str, Any]], sections: list[str], metrics: list[str]) -> str:
    """Return the table as text.

    rows: from dvc.api.exp_show; sections: of params.yaml. Raises UserError for an unknown metric
    and where no experiment has finished.
    """
    table = pd.DataFrame(rows)
    table = table[table["rev"] != "workspace"]
    finished = finished_rows(table, metrics)
    if finished.empty:
        names = sorted({name for name in table if name.startswith("val.")})
        raise UserError(
            f"none of {len(table)} commits and experiments has {', '.join(metrics)}; "
            f"known are {', '.join(names) or 'none: run `dvc exp run` first'}"
        )
    num_left_out = len(table) - len(finished)
    # All that decides a result except the seed: parameters, code, labels.
    prefixes = (*(f"{section}." for section in sections), "stages/", "data/labels")
    settings = [name for name in finished if name.startswith(prefixes) and name != SEED]
    finished = finished.assign(**finished[settings].astype(object).fillna("").astype(str))
    finished = finished.drop_duplicates([*settings, SEED], keep="last")  # of one that ran twice
    groups = finished.groupby(settings, sort=False)
    differing = [name for name in settings if finished[name].nunique() > 1]
    readable = [name for name in differing if "/" not in name]  # the others are digests
    if readable and finished.groupby(readable).ngroups == groups.ngroups:
        differing = readable
    cells = [["configuration", "seeds", *metrics]]
    for _, group in groups:
        label = ", ".join(f"{name}={group[name].iloc[0]}" for name in differing) or "all"
        cells.append([label, str(len(group)), *(spread(group[name]) for name in metrics)])
    lines = aligned(cells)
    if num_left_out:
        lines.append(f"left out, not finished or without these metrics: {num_left_out}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
