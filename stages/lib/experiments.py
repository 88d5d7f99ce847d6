"""What DVC lists of experiments, and tables of them as text; for chores, no stage imports it."""

import pandas as pd


def finished_rows(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Return the rows of dvc.api.exp_show that have all metrics, which are numbers now."""
    # DVC lists an experiment that failed or still runs with the older metrics of the workspace.
    done = table[table["State"].isna() | (table["State"] == "Success")]
    values = done.reindex(columns=metrics).apply(pd.to_numeric, errors="coerce")
    return done.assign(**values)[values.notna().all(axis=1)]


def spread(values: pd.Series) -> str:
    """Return the mean, the standard deviation (n - 1) and the range of several numbers."""
    if len(values) == 1:
        return f"{values.iloc[0]:.4f}"
    return f"{values.mean():.4f} ± {values.std():.4f} ({values.min():.4f} to {values.max():.4f})"


def aligned(cells: list[list[str]]) -> list[str]:
    """Return the lines of a table; cells: row by row."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
