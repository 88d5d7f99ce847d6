"""Operating points: what a wanted rate of false alarms costs."""

import pandas as pd

from stages.lib.core.labels import REAL
from stages.lib.evaluation.metrics import threshold_at_fpr
from stages.lib.evaluation.rows import Row, arrays, columns_of, counts, shares_called_fake

OPERATING_FPRS = (1e-2, 1e-3)


def operating_rows(calibration: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> list[Row]:
    """Return what the threshold for each of OPERATING_FPRS, set on `calibration`, does on each set.

    `enough_reals` says whether the calibration set can show that rate: with fewer than 1 / rate
    reals none of them is called fake at the threshold.
    """
    targets, scores = arrays(calibration)
    num_reals = int((targets == REAL).sum())
    rows = []
    for wanted in OPERATING_FPRS:
        threshold = threshold_at_fpr(targets, scores, wanted)
        for name, table in tables.items():
            found = shares_called_fake(table, threshold)
            rows.append(
                {"set": name, "wanted_fpr": wanted, "threshold": threshold}
                | {"calibration_reals": num_reals, "enough_reals": num_reals * wanted >= 1}
                | columns_of("tpr", found["tpr"], "tpr_")
                | columns_of("fpr", found["fpr"], "fpr_")
                | {"false_alarms_per_million": round(1e6 * found["fpr"].value)}
                | counts(table)
            )
    return rows
