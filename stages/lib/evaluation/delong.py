"""The AUC as a mean over images, its variance, and a test of two AUCs (DeLong et al. 1988).

The variances come from the placement of each image: the share of the other class that it is on the
right side of. Ranks give all placements in O(N log N) (Sun and Xu 2014).

DeLong takes the images as independent of each other. Near-duplicates are not, and then the p-value
is too small; the bootstrap over groups of stages/lib/evaluation/resampling.py knows about them. The
test is for many images: with few of a class, or an AUC of exactly 0 or 1, it is too sure.
"""

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from stages.lib.core.labels import FAKE


def placements(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each fake the share of reals below it, and for each real that of fakes above it.

    targets: int (N,), 0 real or 1 fake, both there; scores: float (N,). Both results are in [0, 1],
    float (num_fake,) and (num_real,), in the order of the images. Ties count half. Either mean is
    the AUC.
    """
    is_fake = targets == FAKE
    ranks, num_fake = rankdata(scores), int(is_fake.sum())
    below_fakes = ranks[is_fake] - rankdata(scores[is_fake])
    below_reals = ranks[~is_fake] - rankdata(scores[~is_fake])
    return below_fakes / (len(targets) - num_fake), 1 - below_reals / num_fake


def auc_variance(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the estimated variance of the AUC; NaN where a class has fewer than two images."""
    return _variance(*placements(targets, scores))


def delong_p(targets: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value of the AUCs of two scores of the same images being equal.

    It is 1 where a class has fewer than two images, because these can show nothing, and where the
    two rank all images alike.
    """
    pairs = zip(placements(targets, first), placements(targets, second), strict=True)
    of_fakes, of_reals = (ours - theirs for ours, theirs in pairs)
    if min(len(of_fakes), len(of_reals)) < 2:
        return 1.0
    difference, variance = of_fakes.mean(), _variance(of_fakes, of_reals)
    if variance == 0:
        return float(np.isclose(difference, 0))
    return float(2 * ndtr(-abs(difference) / np.sqrt(variance)))


def _variance(of_fakes: np.ndarray, of_reals: np.ndarray) -> float:
    if min(len(of_fakes), len(of_reals)) < 2:
        return float("nan")
    return float(of_fakes.var(ddof=1) / len(of_fakes) + of_reals.var(ddof=1) / len(of_reals))
