"""The AUC as a mean over images, its variance, and a test of two AUCs (DeLong et al. 1988).

The variances come from the placement of each image: the share of the other class that it is on the
right side of. Ranks give all placements in O(N log N) (Sun and Xu 2014).

Images of one group, such as near-duplicates and frames of a video, are not independent of each
other, so their placements are summed up first (Obuchowski 1997, Biometrics 53). Where each image is
a group of its own, this is DeLong's test.
"""

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from stages.lib.core.labels import FAKE, REAL

FEWEST_GROUPS = 10  # of a class


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


def delong_p(
    targets: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray
) -> float:
    """Return the two-sided p-value of the AUCs of two scores of the same images being equal.

    groups: int (N,); images that are not independent share one. The p-value is 1 where a class is
    of fewer than FEWEST_GROUPS groups, because the test needs many and is too sure with few, and
    where the two rank all images alike.
    """
    first_fakes, first_reals = placements(targets, first)
    second_fakes, second_reals = placements(targets, second)
    fakes, reals = first_fakes - second_fakes, first_reals - second_reals
    if min(len(np.unique(groups[targets == target])) for target in (REAL, FAKE)) < FEWEST_GROUPS:
        return 1.0
    difference, variance = fakes.mean(), variance_of_mean(targets, fakes, reals, groups)
    if variance == 0:
        return float(np.isclose(difference, 0))
    return float(2 * ndtr(-abs(difference) / np.sqrt(variance)))


def variance_of_mean(
    targets: np.ndarray, fakes: np.ndarray, reals: np.ndarray, groups: np.ndarray
) -> float:
    """Return the estimated variance of the mean placement, which is the same in both classes.

    fakes and reals: what `placements` returns, or its difference between two scores. It is NaN
    where a class is of fewer than two groups.
    """
    names, member_of = np.unique(groups, return_inverse=True)
    sums, factors = [], []
    for placed, target in ((fakes, FAKE), (reals, REAL)):
        members = member_of[targets == target]
        centred = (placed - placed.mean()) / len(placed)
        sums.append(np.bincount(members, centred, minlength=len(names)))
        factors.append(_small_sample(len(np.unique(members))))
    of_fakes, of_reals = sums
    both = 2 * _small_sample(len(names)) * (of_fakes @ of_reals)  # 0: no group has both classes
    return float(factors[0] * (of_fakes @ of_fakes) + factors[1] * (of_reals @ of_reals) + both)


def _small_sample(num_groups: int) -> float:
    return num_groups / (num_groups - 1) if num_groups > 1 else float("nan")
