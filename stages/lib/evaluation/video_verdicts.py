"""Verdicts on whole videos: one row for the frames of each, and the rules that fit such rows.

The mean over the frames of a video varies less than the score of one image, so its thresholds are
others.
"""

import pandas as pd
from scipy.special import expit

from stages.lib.core.labels import FAKE
from stages.lib.evaluation.intervals import targets_and_scores
from stages.lib.evaluation.metrics import choose_threshold, fit_temperature
from stages.lib.evaluation.verdict_rules import VideoRules
from stages.lib.evaluation.verdicts import VerdictParams, choose_thresholds, farthest_allowed


def choose_video_rules(
    calibration: pd.DataFrame, params: VerdictParams, metric: str
) -> VideoRules | None:
    """Return the rules from the videos of the calibration set, None where they are too few.

    One of them must be no more than the wanted share of its class. metric: that chooses the
    threshold in the middle.
    """
    videos = videos_of(calibration)
    num_fake = int((videos["target"] == FAKE).sum())
    num_real = len(videos) - num_fake
    if num_real * params.false_alarms < 1 or num_fake * params.misses < 1:
        return None
    targets, scores = targets_and_scores(videos)
    middle = choose_threshold(targets, scores, metric)
    temperature = fit_temperature(targets, videos["logit"].to_numpy())
    return VideoRules(
        thresholds=choose_thresholds(videos, params, middle, temperature, "videos"),
        farthest=farthest_allowed(videos["distance"]),
    )


def videos_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each video of a set, from those of its frames.

    Its logits and its distance are the means over the frames, its score is that of the mean logit,
    its size of the face and its JPEG quality are the medians. Frames without a face count only
    where no frame has one, as in a verdict.
    """
    # Data sets may share names of videos, and a real one may share its name with its fakes.
    by = ["set", "video", "target"]
    frames = table.dropna(subset=["video"])
    has_face = frames["face"] > 0
    some_have = has_face.groupby([frames[name] for name in by]).transform("any")
    by_video = frames[has_face | ~some_have].groupby(by, sort=False)
    means = by_video[["logit", "low", "high", "distance"]].mean()
    medians = by_video[["face", "jpeg_quality"]].median()
    first = by_video[["group", "width", "height"]].first()
    return means.join([medians, first]).reset_index().assign(score=lambda t: expit(t["logit"]))
