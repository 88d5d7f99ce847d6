"""Metrics of whole videos, from the scores of their frames."""

import pandas as pd

from stages.lib.evaluation.rows import Row, intervals_of, metric_row


def video_rows(table: pd.DataFrame) -> list[Row]:
    """Return a row with the AUC of videos, where a set has videos of both classes.

    table: as stages/lib/evaluation/rows.py says, and the columns set and video. The score of a
    video is the mean of the scores of its frames (the protocol of DeepfakeBench, Yan et al. 2023).
    num_real and num_fake count videos.
    """
    frames = table.dropna(subset=["video"])
    # Data sets may share names of videos, and a real one may share its name with its fakes.
    by = ["set", "video", "target"]
    means = frames.groupby(by, sort=False).agg(score=("score", "mean"), group=("group", "first"))
    means = means.reset_index().assign(logit=lambda table: table["score"])  # which rank alike
    if means["target"].nunique() < 2:
        return []
    found = intervals_of(means, ["auc"])["auc"]
    return [metric_row("all", "video_auc", found, means)]
