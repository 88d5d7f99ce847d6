"""Metrics against closed forms and examples worked by hand; test_resampling.py has scikit-learn."""

from collections.abc import Sequence

import numpy as np
import pytest

from stages.lib.evaluation.metrics import (
    METRICS,
    RankedScores,
    choose_threshold,
    confusion,
    fit_temperature,
    threshold_at_fpr,
)

# Reals at 0.1, 0.2, 0.3, 0.6; fakes at 0.4, 0.5, 0.7, 0.8.
TARGETS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.8])


def plain_metrics(
    targets: np.ndarray, scores: np.ndarray, names: Sequence[str], threshold: float = 0.5
) -> dict[str, float]:
    """Return the named METRICS; every image counts once."""
    return RankedScores(targets, scores, threshold).metrics(np.ones(len(targets)), names)


def test_an_example_worked_by_hand() -> None:
    metrics = plain_metrics(TARGETS, SCORES, list(METRICS), threshold=0.45)
    assert metrics["auc"] == 14 / 16  # two of sixteen pairs stand the wrong way round
    assert metrics["average_precision"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert metrics["eer"] == pytest.approx(0.25)
    assert metrics["tpr_at_fpr_1e-2"] == 0.5
    assert metrics["accuracy"] == metrics["balanced_accuracy"] == 0.75
    counts = {"true_real": 3, "false_fake": 1, "false_real": 1, "true_fake": 3}
    assert confusion(TARGETS, SCORES, 0.45) == counts


def test_a_score_at_the_threshold_is_called_fake() -> None:
    counts = confusion(np.array([0, 1]), np.array([0.4, 0.5]), 0.5)
    assert (counts["true_real"], counts["true_fake"]) == (1, 1)
    metrics = plain_metrics(np.array([0, 1]), np.array([0.4, 0.5]), ["accuracy"], threshold=0.5)
    assert metrics["accuracy"] == 1.0


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
    metrics = plain_metrics(TARGETS, scores, ["auc", "eer", "tpr_at_fpr_1e-3"])
    assert list(metrics.values()) == pytest.approx([auc, eer, tpr])


def test_the_equal_error_rate_of_two_normal_distributions() -> None:
    """Unit variance, means 2 apart: both errors are Phi(-1) = 0.158655."""
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1], 200_000)
    scores = random.normal(targets * 2.0)
    assert plain_metrics(targets, scores, ["eer"])["eer"] == pytest.approx(0.158655, abs=0.002)


@pytest.mark.parametrize("max_fpr", [1e-4, 1e-3, 1e-2])
def test_tpr_at_fpr_is_that_of_the_best_allowed_threshold(max_fpr: float) -> None:
    random = np.random.default_rng(1)
    targets = random.integers(0, 2, 3000)
    scores = np.round(random.normal(targets), 2)  # with ties
    allowed = [
        np.mean(scores[targets == 1] >= t)
        for t in np.append(np.unique(scores), np.inf)
        if np.mean(scores[targets == 0] >= t) <= max_fpr
    ]
    name = f"tpr_at_fpr_1e-{round(-np.log10(max_fpr))}"
    assert plain_metrics(targets, scores, [name])[name] == max(allowed)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_chosen_one(metric: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = (random.random(200) < 0.8).astype(int)
    scores = 1 / (1 + np.exp(-random.normal(targets)))
    thresholds = [choose_threshold(targets, scores, metric), *scores]
    chosen, *every = (plain_metrics(targets, scores, [metric], t)[metric] for t in thresholds)
    assert chosen == max(every)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("scores", [1.0 - TARGETS, np.full(8, 0.5), TARGETS.astype(float)])
def test_a_threshold_is_always_a_score_between_0_and_1(metric: str, scores: np.ndarray) -> None:
    assert 0 <= choose_threshold(TARGETS, scores, metric) <= 1


def test_the_calibration_error_of_an_example_worked_by_hand() -> None:
    """Two bins: scores 0.1 with a third of fakes, 0.9 with fakes alone (Guo et al. 2017, eq. 3)."""
    targets, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.9])
    metrics = plain_metrics(targets, scores, ["ece", "brier"])
    assert metrics["ece"] == pytest.approx(3 / 4 * (1 / 3 - 0.1) + 1 / 4 * 0.1)
    assert metrics["brier"] == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, 50_000)
    targets = (random.random(50_000) < 1 / (1 + np.exp(-honest))).astype(int)
    assert fit_temperature(targets, honest * temperature) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("max_fpr", [0.0, 0.1, 0.25, 0.5])
def test_a_threshold_keeps_to_its_rate_of_false_alarms(max_fpr: float) -> None:
    random = np.random.default_rng(3)
    targets = np.arange(80) % 2
    for decimals in (1, 8):  # with ties and without
        scores = np.round(random.random(80), decimals)
        threshold = threshold_at_fpr(targets, scores, max_fpr)
        reals = np.sort(scores[targets == 0])
        assert (reals >= threshold).mean() <= max_fpr
        lower = reals[reals < threshold].max()
        assert (reals >= lower).mean() > max_fpr  # the next lower one would not
    assert threshold_at_fpr(np.array([0, 1]), np.array([1.0, 1.0]), 0.5) > 1
