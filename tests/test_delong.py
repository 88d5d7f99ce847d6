"""DeLong's variance and test: against brute force, and against what simulated data show."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stages.lib.score_files.delong import FEWEST_GROUPS, delong_p, placements, variance_of_mean


def brute_placements(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the placements by comparing each fake with each real."""
    fakes, reals = scores[targets == 1], scores[targets == 0]
    wins = (fakes[:, None] > reals) + 0.5 * (fakes[:, None] == reals)
    return wins.mean(axis=1), wins.mean(axis=0)


def auc_variance(targets: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    return variance_of_mean(targets, *placements(targets, scores), groups)


def test_placements_and_p_are_those_of_brute_force() -> None:
    random = np.random.default_rng(0)
    targets = (np.arange(83) % 3 > 0).astype(int)
    first = np.round(targets + random.normal(0, 1, 83), 1)  # with ties
    second = np.round(targets + random.normal(0, 2, 83), 1)
    first_brute, second_brute = brute_placements(targets, first), brute_placements(targets, second)
    for placed, expected in zip(placements(targets, first), first_brute, strict=True):
        assert placed == pytest.approx(expected)
        assert placed.mean() == pytest.approx(roc_auc_score(targets, first))
    pairs = zip(first_brute, second_brute, strict=True)
    covariances = [np.cov(np.stack(pair)) / len(pair[0]) for pair in pairs]
    contrast, total = np.array([1, -1]), np.sum(covariances, axis=0)
    gap = roc_auc_score(targets, first) - roc_auc_score(targets, second)
    z = gap / np.sqrt(contrast @ total @ contrast)
    p_value = 2 * norm.sf(abs(z))
    assert delong_p(targets, first, second, np.arange(83)) == pytest.approx(p_value)
    assert auc_variance(targets, first, np.arange(83)) == pytest.approx(total[0, 0])


def test_the_variance_is_that_of_aucs_drawn_again_and_again() -> None:
    random, targets = np.random.default_rng(1), np.arange(120) % 3 // 2
    aucs, variances = [], []
    for _ in range(3000):
        drawn = targets + random.normal(0, 1, 120)
        aucs.append(placements(targets, drawn)[0].mean())
        variances.append(auc_variance(targets, drawn, np.arange(120)))
    assert np.mean(variances) == pytest.approx(np.var(aucs), rel=0.08)


def test_equal_detectors_are_called_different_as_often_as_the_level_says() -> None:
    targets, p_values = np.arange(100) % 2, []
    for seed in range(1000):
        random = np.random.default_rng(seed)
        shared = targets + random.normal(0, 0.7, 100)
        first = shared + random.normal(0, 0.7, 100)
        second = shared + random.normal(0, 0.7, 100)
        p_values.append(delong_p(targets, first, second, np.arange(100)))
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("has_both", [False, True])
def test_frames_of_a_video_do_not_make_equal_detectors_different(has_both: bool) -> None:
    videos = np.repeat(np.arange(60), 10)
    targets = np.arange(600) % 2 if has_both else videos % 2
    clustered, alone, variances, aucs = [], [], [], []
    for seed in range(400):
        random = np.random.default_rng(seed)
        first = targets + random.normal(0, 1, 60)[videos] + random.normal(0, 0.3, 600)
        second = targets + random.normal(0, 1, 60)[videos] + random.normal(0, 0.3, 600)
        clustered.append(delong_p(targets, first, second, videos))
        alone.append(delong_p(targets, first, second, np.arange(600)))
        variances.append(auc_variance(targets, first, videos))
        aucs.append(placements(targets, first)[0].mean())
    assert np.mean(np.array(clustered) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(variances) == pytest.approx(np.var(aucs), rel=0.2)
    assert has_both or np.mean(np.array(alone) < 0.05) > 0.3


def test_a_test_of_nothing_has_no_small_p() -> None:
    targets, values = np.array([0, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert delong_p(targets, values, -values, np.arange(4)) == 1  # one real shows nothing
    targets = np.arange(50) % 2
    random = np.random.default_rng(2).normal(targets, 1)
    assert delong_p(targets, random, np.exp(random), np.arange(50)) == 1
    right = targets.astype(float)
    assert delong_p(targets, right, -right, np.arange(50)) == 0
    few = np.minimum(np.arange(50), 2 * FEWEST_GROUPS - 3)  # the last ones are of one group
    assert delong_p(targets, right, -right, few) == 1
