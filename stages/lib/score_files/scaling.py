"""From the numbers of any detector to logits, by Platt scaling."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from stages.lib.core.errors import UserError
from stages.lib.core.labels import FAKE

VALUE = "value"  # the column of the numbers of a file, NaN where an image has none


class Scaling(NamedTuple):
    """How the numbers of a file become logits: slope * number + offset."""

    slope: float
    offset: float


IDENTITY = Scaling(1.0, 0.0)


def with_scores(table: pd.DataFrame, scaling: Scaling) -> pd.DataFrame:
    """Return a table of values with logits and scores."""
    logits = scaling.slope * table[VALUE] + scaling.offset
    return table.assign(logit=logits, score=expit(logits))


def fit_platt(targets: np.ndarray, values: np.ndarray, file: str) -> Scaling:
    """Return the scaling of the numbers of a file.

    targets: int (N,), both classes; values: float (N,), both of the calibration set. Raises
    UserError where the numbers do not rise from real to fake, so that no such scaling exists.
    """
    scaling = platt(targets, values)
    if scaling.slope > 0 and np.isfinite(scaling).all():
        return scaling
    if roc_auc_score(targets, rankdata(values)) > 0.5:  # the values themselves may overflow it
        raise UserError(
            f"{file}: no curve of --scale any fits the scores of calibration, which are between "
            f"{values.min():.4g} and {values.max():.4g}; correct those that lie far from the others"
        )
    raise UserError(
        f"{file}: the scores of calibration do not rise from real to fake, so --scale any has "
        "nothing to fit; try --higher real (or fake), or give logits or probabilities"
    )


def platt(targets: np.ndarray, values: np.ndarray) -> Scaling:
    """Return the logistic regression of Platt 1999; NaN where none exists.

    As in the paper, each target is moved a little towards the other class, so that the slope stays
    finite where the values divide the classes: an image counts partly as a fake, with the weight
    `fake_share`, and with the rest of its weight as a real.
    """
    size = np.abs(values).max() or 1.0  # first, because the squares of large numbers overflow
    middle, spread = (values / size).mean(), (values / size).std()
    if spread == 0:
        return Scaling(float("nan"), float("nan"))
    is_fake = targets == FAKE
    num_fake, num_real = is_fake.sum(), (~is_fake).sum()
    fake_share = np.where(is_fake, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))
    standard = ((values / size - middle) / spread)[:, None]
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], len(values)),
        sample_weight=np.concatenate([fake_share, 1 - fake_share]),
    )
    steepness = float(model.coef_[0, 0] / spread)
    offset = float(model.intercept_[0] - steepness * middle)
    return Scaling(steepness / float(size), offset)
