"""Weighted metrics against scikit-learn; intervals against closed forms."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stages.lib.metrics import METRICS, RankedScores, plain_metrics
from stages.lib.resampling import cluster_weights, metric_intervals, paired_improvement


def draw(num: int, seed: int, distance: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and scores of two normal distributions, with ties."""
    random = np.random.default_rng(seed)
    targets = np.arange(num) % 2
    logits = random.normal(distance * targets, 1)
    return targets, np.round(1 / (1 + np.exp(-logits)), 2)


def test_an_image_drawn_twice_counts_as_two() -> None:
    targets, scores = draw(301, seed=1)
    ranked = RankedScores(targets, scores, threshold=0.4)
    weights = np.random.default_rng(2).integers(0, 4, 301)
    repeated = np.repeat(ranked.order, weights)
    expected = plain_metrics(targets[repeated], scores[repeated], list(METRICS), threshold=0.4)
    found = ranked.metrics(weights.astype(float), list(METRICS))
    assert found == pytest.approx(expected, abs=1e-12)


def test_scikit_learns_weights_agree() -> None:
    targets, scores = draw(400, seed=3)
    weights = np.random.default_rng(4).random(400)
    ranked = RankedScores(targets, scores, threshold=0.6)
    found = ranked.metrics(weights[ranked.order], list(METRICS))
    for name, theirs, theirs_of in (
        ("auc", sk.roc_auc_score, scores),
        ("average_precision", sk.average_precision_score, scores),
        ("log_loss", sk.log_loss, scores),
        ("brier", sk.brier_score_loss, scores),
        ("accuracy", sk.accuracy_score, scores >= 0.6),
        ("balanced_accuracy", sk.balanced_accuracy_score, scores >= 0.6),
    ):
        assert found[name] == pytest.approx(theirs(targets, theirs_of, sample_weight=weights)), name


def test_a_resample_without_one_of_the_classes_has_no_metric() -> None:
    targets, scores = draw(10, seed=5)
    ranked = RankedScores(targets, scores)
    assert np.isnan(ranked.metrics(targets[ranked.order].astype(float), ["auc"])["auc"])


def test_groups_are_drawn_whole_and_repeatably() -> None:
    groups = np.array([7, 7, 7, 2, 2, 9])
    first, second = (list(cluster_weights(groups, 50, seed=1)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    for weights in first:
        assert weights[0] == weights[1] == weights[2]
        assert weights[3] == weights[4]
        assert weights[0] + weights[3] + weights[5] == 3


def test_the_interval_is_as_wide_as_delongs() -> None:
    """Against the closed form for the variance of an AUC (DeLong et al. 1988)."""
    targets, scores = draw(600, seed=6)
    coin = np.full(600, 0.5)
    found = paired_improvement("auc", targets, scores, coin, np.arange(600))
    fakes, reals = scores[targets == 1], scores[targets == 0]
    wins = (fakes[:, None] > reals[None]) + 0.5 * (fakes[:, None] == reals[None])
    variance = wins.mean(1).var(ddof=1) / len(fakes) + wins.mean(0).var(ddof=1) / len(reals)
    assert found.value == pytest.approx(wins.mean() - 0.5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


def test_every_metric_lies_in_its_interval() -> None:
    targets, scores = draw(300, seed=10)
    groups = np.arange(300) // 2
    for name, found in metric_intervals(RankedScores(targets, scores), groups, METRICS).items():
        assert found.low <= found.value <= found.high or name == "ece", name
        assert found.low < found.high, name


def test_copies_of_an_image_do_not_make_the_interval_narrower() -> None:
    targets, scores = draw(200, seed=7)
    coin = np.full(200, 0.5)
    once = paired_improvement("auc", targets, scores, coin, np.arange(200))
    copied = [np.repeat(x, 5) for x in (targets, scores, coin, np.arange(200))]
    fivefold = paired_improvement("auc", *copied)
    assert (fivefold.low, fivefold.high) == pytest.approx((once.low, once.high), abs=1e-12)


def test_improvement_is_positive_where_less_is_better() -> None:
    targets, good = draw(400, seed=8, distance=3.0)
    bad = np.clip(good + np.random.default_rng(9).normal(0, 0.4, 400), 0.01, 0.99)
    for metric in set(METRICS) - {"ece"}:  # neither is calibrated
        found = paired_improvement(metric, targets, good, bad, np.arange(400))
        assert found.value > 0, metric
        assert found.low <= found.value <= found.high, metric
    same = paired_improvement("auc", targets, good, good, np.arange(400))
    assert (same.value, same.low, same.high) == (0, 0, 0)
