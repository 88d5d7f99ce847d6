"""From the numbers of any detector to logits and scores."""

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from stages.lib.core.errors import UserError
from stages.lib.core.labels import FAKE

MOST_CERTAIN = 1 - np.finfo(float).eps  # whose logit is finite: a probability of 1 has none


class Scale:
    """What makes logits and scores of values; the values rise from real to fake."""

    def __init__(self, kind: str, slope: float = 1.0, offset: float = 0.0) -> None:
        """kind: probability, logit or any; the logit of a value is slope * value + offset."""
        self.kind, self.slope, self.offset = kind, slope, offset

    def logits(self, values: np.ndarray) -> np.ndarray:
        """Return finite logits, float (N,)."""
        if self.kind == "probability":
            return logit(np.clip(values, 1 - MOST_CERTAIN, MOST_CERTAIN))
        return values if self.kind == "logit" else self.slope * values + self.offset

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Return P(fake), float (N,) in [0, 1]; a probability stays as it is."""
        return values if self.kind == "probability" else expit(self.logits(values))


def fit_scale(kind: str, targets: np.ndarray, values: np.ndarray, file: str) -> Scale:
    """Return the scale of a file, with Platt's mapping for the kind "any".

    targets: int (N,), both classes; values: float (N,), both of the calibration split. Raises
    UserError where the values do not rise from real to fake, so that no such mapping exists.
    """
    if kind != "any":
        return Scale(kind)
    slope, offset = platt(targets, values)
    if not (slope > 0 and np.isfinite(offset)):
        raise UserError(
            f"{file}: the scores of calibration do not rise from real to fake, so --scale any has "
            "nothing to fit; try --higher real (or fake), or give logits or probabilities"
        )
    return Scale(kind, slope, offset)


def platt(targets: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return slope and offset of the logistic regression of Platt 1999; NaN where none exists.

    Each target is moved a little towards the other class, as he does it, so that the slope stays
    finite where the values divide the classes: an image counts as a fake by its share, and as a
    real by the rest.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        middle, spread = values.mean(), values.std()
    if not 0 < spread < np.inf:
        return float("nan"), float("nan")
    is_fake = targets == FAKE
    num_fake, num_real = is_fake.sum(), (~is_fake).sum()
    share = np.where(is_fake, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))
    standard = ((values - middle) / spread)[:, None]
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], len(values)),
        sample_weight=np.concatenate([share, 1 - share]),
    )
    slope = float(model.coef_[0, 0] / spread)
    return slope, float(model.intercept_[0] - slope * middle)
