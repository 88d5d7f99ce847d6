"""Summarise experiments that differ in nothing but the seed: mean and spread of their metrics.

Run: python -m stages.tools.seeds [--metric val.auc --metric ...] [--rev main --rev ...]

Reads what `dvc exp show` lists for the current commit, or for those of --rev. One line per
configuration: what tells it from the others, how many seeds, and per metric the mean, the standard
deviation over the seeds (n - 1) and the range.
"""

import argparse
import statistics
from typing import Any

import dvc.api

from stages.lib.errors import UserError, run_stage
from stages.lib.params import PARAMS_FILE, read_yaml

SEED = "train.seed"
DEFAULT_METRICS = ("val.auc", "val.tpr_at_fpr_1e-2", "val.balanced_accuracy")
Row = dict[str, Any]


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--metric", action="append", help="as in `dvc metrics show`; repeatable")
    parser.add_argument("--rev", action="append", help="a commit whose experiments to read")
    arguments = parser.parse_args()
    rows = dvc.api.exp_show(revs=arguments.rev)
    print(summary(rows, list(read_yaml(PARAMS_FILE)), arguments.metric or list(DEFAULT_METRICS)))


def summary(rows: list[Row], sections: list[str], metrics: list[str]) -> str:
    """Return the table as text.

    rows: from dvc.api.exp_show; sections: of params.yaml. Raises UserError for an unknown metric
    and where no experiment has finished.
    """
    committed = [row for row in rows if row["rev"] != "workspace"]
    # DVC lists what failed or still runs with the metrics that the workspace had before it.
    done = [row for row in committed if row["State"] in (None, "Success")]
    finished = [row for row in done if all(_is_number(row.get(name)) for name in metrics)]
    if not finished:
        known = sorted({name for row in rows for name in row if name.startswith("val.")})
        raise UserError(
            f"none of {len(committed)} commits and experiments has {', '.join(metrics)}; "
            f"known are {', '.join(known) or 'none: run `dvc exp run` first'}"
        )
    configurations: dict[tuple, dict[float, Row]] = {}
    for row in finished:  # two experiments of one seed and configuration are one result
        configurations.setdefault(_configuration(row, sections), {})[row[SEED]] = row
    names = _differing(list(configurations))
    lines = []
    for configuration, by_seed in configurations.items():
        settings = dict(configuration)
        label = ", ".join(f"{name}={settings.get(name)}" for name in names) or "all"
        results = [_spread([row[name] for row in by_seed.values()]) for name in metrics]
        lines.append([label, str(len(by_seed)), *results])
    left_out = len(committed) - len(finished)
    note = [f"left out, not finished or without these metrics: {left_out}"] if left_out else []
    return "\n".join([*_aligned([["configuration", "seeds", *metrics], *lines]), *note])


def _configuration(row: Row, sections: list[str]) -> tuple[tuple[str, Any], ...]:
    """Return all that decides a result but the seed: parameters, code, labels."""
    kept = (*(f"{section}." for section in sections), "stages/", "data/labels/")
    return tuple(sorted(
        (name, value) for name, value in row.items() if name.startswith(kept) and name != SEED
    ))  # fmt: skip


def _differing(configurations: list[tuple[tuple[str, Any], ...]]) -> list[str]:
    """Return the names whose values are not the same in all configurations."""
    settings = [dict(configuration) for configuration in configurations]
    names = sorted({name for one in settings for name in one})
    return [name for name in names if len({str(one.get(name)) for one in settings}) > 1]


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    deviation = statistics.stdev(values)
    return (
        f"{statistics.mean(values):.4f} ± {deviation:.4f} ({min(values):.4f} to {max(values):.4f})"
    )


def _is_number(value: Any) -> bool:
    """Say whether a cell of the table holds a number; of a failed experiment it may not."""
    return isinstance(value, (int, float)) and value == value


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


if __name__ == "__main__":
    run_stage(main)
