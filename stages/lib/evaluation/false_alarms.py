"""False alarms by harmless edits: how many reals are called fake after each of them."""

from typing import Any

import pandas as pd

from stages.lib.core.scores import read_set_scores
from stages.lib.evaluation.intervals import columns_of, share_interval

FALSE_ALARM_COLUMNS = ["edit", "level", "share", "low", "high", "unedited", "difference",
                       "num_real"]  # fmt: skip
UNEDITED = "none"


def edited_scores(val: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of edited reals with the group of each image; raises UserError."""
    scores = read_set_scores("edits")
    return scores.merge(val[["img_name", "group"]], on="img_name", validate="many_to_one")


def false_alarm_table(edited: pd.DataFrame, fake_from: float) -> pd.DataFrame:
    """Return the share of reals called fake, with its interval, for every edit and level, in order.

    edited: columns img_name, edit, level, score, group; the same reals in one order for each edit
    and level, the unedited ones first. fake_from: P(fake) from which a verdict is fake. difference:
    from the share of the unedited ones.
    """
    rows: list[dict[str, Any]] = []
    for (edit, level), part in edited.groupby(["edit", "level"], sort=False):
        is_called = (part["score"] >= fake_from).to_numpy()
        share = share_interval(is_called, part["group"].to_numpy())
        unedited = rows[0]["share"] if rows else share.value
        rows.append(
            {"edit": edit, "level": level}
            | columns_of("share", share)
            | {"unedited": unedited, "difference": share.value - unedited, "num_real": len(part)}
        )
    return pd.DataFrame(rows, columns=FALSE_ALARM_COLUMNS)


def worst_edit(table: pd.DataFrame) -> pd.Series:
    """Return the row of the edit with the most false alarms, of what false_alarm_table returns."""
    edits = table[table["edit"] != UNEDITED]
    return edits.loc[edits["share"].idxmax()]


def add_false_alarms(
    report: dict[str, Any], tables: dict[str, pd.DataFrame], edited: pd.DataFrame, fake_from: float
) -> None:
    """Add what edited reals show; edited: as false_alarm_table says, empty for none."""
    table = tables["false_alarms"] = false_alarm_table(edited, fake_from)
    if len(table):
        worst = worst_edit(table)
        report["false_alarms"] = {
            "unedited": float(worst["unedited"]),
            "worst": float(worst["share"]),
            "worst_edit": f"{worst['edit']} {worst['level']:g}",
        }
