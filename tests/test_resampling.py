"""Weighted metrics against scikit-learn; intervals against closed forms."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stages.lib.evaluation.intervals import (
    cluster_weights,
    metric_intervals,
    paired_improvement,
    share_interval,
)
from stages.lib.evaluation.metrics import METRICS, RankedScores
from tests.test_metrics import plain_metrics


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
    metrics = ranked.metrics(weights.astype(float), list(METRICS))
    assert metrics == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_scikit_learn_agrees(seed: int, is_weighted: bool) -> None:
    targets, scores = draw(400, seed)
    weights = np.random.default_rng(seed).random(400) if is_weighted else np.ones(400)
    ranked = RankedScores(targets, scores, threshold=0.6)
    ours = ranked.metrics(weights[ranked.order], list(METRICS))
    for name, theirs, theirs_of in (
        ("auc", sk.roc_auc_score, scores),
        ("average_precision", sk.average_precision_score, scores),
        ("log_loss", sk.log_loss, scores),
        ("brier", sk.brier_score_loss, scores),
        ("accuracy", sk.accuracy_score, scores >= 0.6),
        ("balanced_accuracy", sk.balanced_accuracy_score, scores >= 0.6),
    ):
        expected = theirs(targets, theirs_of, sample_weight=weights)
        assert ours[name] == pytest.approx(expected), name


def test_a_resample_without_one_of_the_classes_has_no_metric() -> None:
    targets, scores = draw(10, seed=5)
    ranked = RankedScores(targets, scores)
    assert np.isnan(ranked.metrics(targets[ranked.order].astype(float), ["auc"])["auc"])


def test_groups_are_drawn_whole_and_repeatably() -> None:
    groups = np.array([7, 7, 7, 2, 2, 9])
    first = list(cluster_weights(groups, 50, seed=1))
    second = list(cluster_weights(groups, 50, seed=1))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    for weights in first:
        assert weights[0] == weights[1] == weights[2]
        assert weights[3] == weights[4]
        assert weights[0] + weights[3] + weights[5] == 3


def test_the_interval_is_as_wide_as_delongs() -> None:
    """Against the closed form for the variance of an AUC (DeLong et al. 1988)."""
    targets, scores = draw(600, seed=6)
    coin = np.full(600, 0.5)
    interval = paired_improvement("auc", targets, scores, coin, np.arange(600))
    fakes, reals = scores[targets == 1], scores[targets == 0]
    wins = (fakes[:, None] > reals[None]) + 0.5 * (fakes[:, None] == reals[None])
    variance = wins.mean(1).var(ddof=1) / len(fakes) + wins.mean(0).var(ddof=1) / len(reals)
    assert interval.value == pytest.approx(wins.mean() - 0.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


def test_every_metric_lies_in_its_interval() -> None:
    targets, scores = draw(300, seed=10)
    groups = np.arange(300) // 2
    intervals = metric_intervals(RankedScores(targets, scores), groups, list(METRICS))
    for name, interval in intervals.items():
        assert interval.low <= interval.value <= interval.high or name == "ece", name
        assert interval.low < interval.high, name


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
        interval = paired_improvement(metric, targets, good, bad, np.arange(400))
        assert interval.value > 0, metric
        assert interval.low <= interval.value <= interval.high, metric
    same = paired_improvement("auc", targets, good, good, np.arange(400))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_published_worked_example() -> None:
    """Hanley & McNeil 1982 (Radiology 143:29), CT ratings: area 0.893, standard error 0.032."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]  # rated 1 to 5
    targets = np.repeat([0, 1], [sum(normal), sum(abnormal)])
    ratings = np.concatenate([np.repeat(np.arange(1, 6), counts) for counts in (normal, abnormal)])
    ranked = RankedScores(targets, ratings / 5)
    interval = metric_intervals(ranked, np.arange(len(targets)), ["auc"])["auc"]
    assert interval.value == pytest.approx(0.893, abs=0.0005)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(0.032, abs=0.004)


def test_a_share_has_an_interval_also_where_all_are_alike() -> None:
    hits = np.arange(500) < 100
    interval = share_interval(hits, np.arange(500))
    width = 1.96 * np.sqrt(0.2 * 0.8 / 500)
    assert (interval.low, interval.high) == pytest.approx((0.2 - width, 0.2 + width), abs=0.01)
    pairs = share_interval(np.repeat(hits, 2), np.repeat(np.arange(500), 2))
    assert pairs.high - pairs.low == pytest.approx(2 * width, rel=0.15)  # twice as many say no more
    none = share_interval(np.zeros(300, dtype=bool), np.arange(300))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(3.69 / 300, rel=0.01)  # -ln 0.025 = 3.69
    everyone = share_interval(np.ones(300, dtype=bool), np.arange(300))
    assert (everyone.low, everyone.high) == pytest.approx((1 - none.high, 1))


def test_one_image_of_a_class_leaves_its_interval_unknown() -> None:
    targets, scores = np.array([0, 1, 1]), np.array([0.2, 0.9, 0.6])
    interval = metric_intervals(RankedScores(targets, scores), np.arange(3), ["auc"])["auc"]
    assert interval.value == 1
    assert np.isnan(interval.low) and np.isnan(interval.high)
