"""Sum up leave-one-source-out: the AUC on each source that experiments have left out.

Run: python -m stages.chores.left_out [--rev main --rev ...]

  the experiments of the current commit, or of those of --rev  ->  metrics/left_out.csv

An experiment counts where it has finished and prepare.hold_out_sources has one source. There is one
table for each recipe (the parameters of train that decide the weights, and the sources) and weight
of the expert. It has the mean, the standard deviation over the seeds (n - 1) and the range of each
source, and the mean and the worst over the sources. Where several weights were tried, one more
table takes for each source the weight that is best on the others. The file has a row for each
experiment, and `dvc repro card` says on the model card what those of its own recipe show.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dvc.api
import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json, write_text
from stages.lib.core.params import read_yaml
from stages.lib.core.tables import read_table
from stages.lib.evaluation.report import held_out_set
from stages.lib.experiments import aligned, finished_rows, spread
from stages.lib.report.left_out import LEFT_OUT_TYPES, counting_rows, expert_weight_of, recipe_of
from stages.lib.running import run_command
from stages.tools.command_line import parser_of

INTERVALS = paths.TABLES / "intervals.csv"


@dataclass(frozen=True)
class Experiment:
    """What Git has of an experiment."""

    params: dict[str, Any]  # params.yaml
    report: dict[str, Any]  # metrics/evaluation.json
    intervals: pd.DataFrame

    @property
    def held_out(self) -> list[str]:
        """The sources that it has left out."""
        return self.params["prepare"].get("hold_out_sources", [])


def main() -> None:
    """Print the tables, and write the file."""
    parser = parser_of(__doc__, "stages.chores.left_out")
    parser.add_argument("--rev", action="append", help="a commit whose experiments to read")
    options = parser.parse_args()
    listed = pd.DataFrame(dvc.api.exp_show(revs=options.rev))
    listed = finished_rows(listed[listed["rev"] != "workspace"], ["val.auc"])
    table = left_out_rows(map(read_experiment, listed["rev"]))
    write_text(paths.LEFT_OUT, table[list(LEFT_OUT_TYPES)].to_csv(index=False, lineterminator="\n"))
    print(*summary(table), paths.LEFT_OUT, sep="\n")


def read_experiment(rev: str) -> Experiment:
    """Read what Git has of the experiment with this commit."""
    repository = dvc.api.DVCFileSystem(rev=rev)
    with TemporaryDirectory() as folder:
        files = []
        for path in (paths.PARAMS, paths.EVALUATION, INTERVALS):
            files.append(Path(folder) / path.name)
            repository.get_file(path.as_posix(), str(files[-1]))
        return Experiment(read_yaml(files[0]), read_json(files[1]), read_table(files[2]))


def left_out_rows(experiments: Iterable[Experiment]) -> pd.DataFrame:
    """Return the rows of left_out.csv, and as `sources` all that belong to the recipe.

    Of a source and a seed that ran twice with one recipe the last one counts. Raises UserError
    where no experiment leaves out one source.
    """
    rows = [row_of(experiment) for experiment in experiments if len(experiment.held_out) == 1]
    if not rows:
        raise UserError(
            "no finished experiment leaves out one source; run them: `dvc exp run --queue evaluate "
            "-S 'prepare.hold_out_sources=[one],[other]'`, then `dvc queue start`"
        )
    keys = ["recipe", "expert_weight", "source", "seed"]
    return pd.DataFrame(rows).drop_duplicates(keys, keep="last").sort_values(keys)


def row_of(experiment: Experiment) -> dict[str, Any]:
    """Return the row of an experiment that leaves out one source."""
    (source,) = experiment.held_out
    train, intervals = experiment.params["train"], experiment.intervals
    sources = sorted({source, *experiment.report.get("trained_sources", {})})
    is_of_set = (intervals["set"] == held_out_set(source)) & (intervals["slice"] == "all")
    auc = intervals[is_of_set & (intervals["metric"] == "auc")].iloc[0]
    row = {"source": source, "seed": train["seed"], "auc": auc["value"]}
    row |= {name: auc[name] for name in ("low", "high", "num_real", "num_fake")}
    row |= {"recipe": recipe_of(train, sources), "expert_weight": expert_weight_of(train)}
    return row | {"sources": ", ".join(sources)}


def summary(table: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of what left_out_rows returns: a table for each recipe, and warnings."""
    num_recipes = table["recipe"].nunique()
    if num_recipes > 1:
        yield f"WARNING: {num_recipes} recipes; the card takes the one of its own detector"
    for (recipe, _, sources), rows in table.groupby(["recipe", "expert_weight", "sources"]):
        yield f"recipe {recipe}, sources {sources}"
        yield from lines_of(rows)
        missing = [name for name in sources.split(", ") if name not in set(rows["source"])]
        if missing:
            yield f"WARNING: no finished experiment leaves out {', '.join(missing)}"
    for recipe, rows in table.groupby("recipe"):
        if rows["expert_weight"].nunique() > 1:
            yield f"recipe {recipe}, the expert at the weight that is best on the other sources"
            yield from lines_of(counting_rows(rows, rows["expert_weight"].iloc[0]))


def lines_of(rows: pd.DataFrame) -> list[str]:
    """Return a table of the AUC of each source, of their mean and of the worst."""
    cells = [["left out", "expert at", "seeds", "AUC", "reals, fakes"]]
    for source, of_source in rows.groupby("source"):
        weight = f"{of_source['expert_weight'].iloc[0]:g}"
        counts = ", ".join(str(of_source[name].iloc[-1]) for name in ("num_real", "num_fake"))
        cells.append([str(source), weight, str(len(of_source)), spread(of_source["auc"]), counts])
    means = rows.groupby("source")["auc"].mean()
    cells.append(["mean", "", "", f"{means.mean():.4f}", ""])
    cells.append([f"worst: {means.idxmin()}", "", "", f"{means.min():.4f}", ""])
    return aligned(cells)


if __name__ == "__main__":
    run_command(main)
