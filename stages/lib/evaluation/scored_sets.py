"""Labels and scores of the same images, joined."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy.special import expit

from stages.lib.core.labels import CLASS_NAMES, REAL
from stages.lib.core.scores import read_labels_and_scores, read_set_scores

HELD_OUT = "held_out"


def labelled_scores(split: str) -> pd.DataFrame:
    """Join the labels and scores of a split; rows without a target are left out.

    Raises UserError where the scores are not those of the present detector for these images.
    """
    labels, scores = read_labels_and_scores(split)
    scored = labels.assign(**{name: scores[name] for name in ("logit", "low", "high")})
    # From the logit, as for any detector: the score of the file may differ in its last digit.
    return scored.assign(score=expit(scores["logit"])).dropna(subset=["target"])


def labelled_sets(
    read: Callable[[str], pd.DataFrame] = labelled_scores,
) -> dict[str, pd.DataFrame]:
    """Return the scored sets with both classes: val, the test set if labelled, and further sets.

    held_out has the reals of val and the fakes of the families that were held out. read: returns
    the labelled rows of a split, with scores.
    """
    sets = {name: read(name) for name in ("val", "test")}
    reals = sets["val"][sets["val"]["target"] == REAL]
    sets[HELD_OUT] = pd.concat([reals, read(HELD_OUT)], ignore_index=True)
    more = read("evaluation")
    sets |= {Path(name).stem: part for name, part in more.groupby("set", sort=False)}
    return {k: part for k, part in sets.items() if part["target"].nunique() == len(CLASS_NAMES)}


def perturbed_scores(val: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of perturbed images with the target and the group of each image."""
    scores = read_set_scores("robustness")
    return scores.merge(val[["img_name", "target", "group"]], on="img_name", validate="many_to_one")
