"""The reals of one set against the fakes of another: are scores comparable between sets?"""

from itertools import product

import pandas as pd

from stages.lib.core.labels import FAKE, REAL
from stages.lib.evaluation.rows import Row, columns_of, counts, intervals_of

CROSS_COLUMNS = ["reals_of", "fakes_of", "auc", "low", "high", "num_real", "num_fake"]


def cross_rows(tables: dict[str, pd.DataFrame]) -> list[Row]:
    """Return the AUC of the reals of each set against the fakes of each set (Cross-AUC).

    A detector whose scores drift from set to set may be good on each and bad across them. Then one
    threshold fails for all of them.
    """
    rows = []
    for of_reals, of_fakes in product(tables, tables):
        reals, fakes = tables[of_reals], tables[of_fakes]
        table = pd.concat([reals[reals["target"] == REAL], fakes[fakes["target"] == FAKE]])
        found = intervals_of(table, ["auc"])["auc"]
        names = {"reals_of": of_reals, "fakes_of": of_fakes}
        rows.append(names | columns_of("auc", found) | counts(table))
    return rows


def summarise_cross(table: pd.DataFrame) -> dict[str, float]:
    """Return the mean and the worst Cross-AUC of reals and fakes that are not of the same set."""
    across = table.loc[table["reals_of"] != table["fakes_of"], "auc"]
    return {"mean_auc": float(across.mean()), "worst_auc": float(across.min())}
