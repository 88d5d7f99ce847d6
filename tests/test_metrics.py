"""Metrics against scikit-learn, closed forms and examples worked by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stages.lib.metrics import (
    choose_threshold,
    equal_error_rate,
    ranking_metrics,
    threshold_metrics,
    tpr_at_fpr,
)

# Reals at 0.1, 0.2, 0.3, 0.6; fakes at 0.4, 0.5, 0.7, 0.8.
TARGETS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.8])


def test_an_example_worked_by_hand() -> None:
    found = ranking_metrics(TARGETS, SCORES)
    assert found["auc"] == 14 / 16  # two of sixteen pairs stand the wrong way round
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert found["eer"] == pytest.approx(0.25)
    assert found["tpr_at_fpr_1e-2"] == 0.5
    assert threshold_metrics(TARGETS, SCORES, 0.45) == {
        "accuracy": 0.75, "balanced_accuracy": 0.75,
        "true_real": 3, "false_fake": 1, "false_real": 1, "true_fake": 3,
    }  # fmt: skip


def test_a_score_at_the_threshold_is_called_fake() -> None:
    assert threshold_metrics(np.array([0, 1]), np.array([0.4, 0.5]), 0.5)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("scores", "auc", "eer", "tpr"),
    [
        (TARGETS.astype(float), 1.0, 0.0, 1.0),
        (1.0 - TARGETS, 0.0, 1.0, 0.0),
        (np.full(8, 0.5), 0.5, 0.5, 0.0),
    ],
    ids=["perfect", "inverted", "constant"],
)
def test_extreme_scores(scores: np.ndarray, auc: float, eer: float, tpr: float) -> None:
    assert sk.roc_auc_score(TARGETS, scores) == auc
    assert equal_error_rate(TARGETS, scores) == pytest.approx(eer)
    assert tpr_at_fpr(TARGETS, scores, 1e-3) == tpr


def test_the_equal_error_rate_of_two_normal_distributions() -> None:
    """Unit variance, means 2 apart: both errors are Phi(-1) = 0.158655."""
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1], 200_000)
    scores = random.normal(targets * 2.0)
    assert equal_error_rate(targets, scores) == pytest.approx(0.158655, abs=0.002)


@pytest.mark.parametrize("max_fpr", [1e-3, 1e-2, 0.1])
def test_tpr_at_fpr_is_that_of_the_best_allowed_threshold(max_fpr: float) -> None:
    random = np.random.default_rng(1)
    targets = random.integers(0, 2, 3000)
    scores = np.round(random.normal(targets), 2)  # with ties
    allowed = [
        np.mean(scores[targets == 1] >= t)
        for t in np.append(np.unique(scores), np.inf)
        if np.mean(scores[targets == 0] >= t) <= max_fpr
    ]
    assert tpr_at_fpr(targets, scores, max_fpr) == max(allowed)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_chosen_one(metric: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = (random.random(200) < 0.8).astype(int)
    scores = 1 / (1 + np.exp(-random.normal(targets)))
    chosen = threshold_metrics(targets, scores, choose_threshold(targets, scores, metric))[metric]
    every = [threshold_metrics(targets, scores, t)[metric] for t in scores]
    assert chosen == max(every)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("scores", [1.0 - TARGETS, np.full(8, 0.5), TARGETS.astype(float)])
def test_a_threshold_is_always_a_score_between_0_and_1(metric: str, scores: np.ndarray) -> None:
    assert 0 <= choose_threshold(TARGETS, scores, metric) <= 1
