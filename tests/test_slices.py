"""The metrics of parts: slices, sets against each other, operating points."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from stages.lib.evaluation.report import EvaluateParams, evaluate_detector, summary
from stages.lib.evaluation.tables import cross_rows, operating_rows, set_rows, slice_rows
from stages.lib.evaluation.verdicts import VerdictParams


def table(count: int, seed: int, shift: float = 0.0, **columns: Any) -> pd.DataFrame:
    """Return scored images, reals and fakes in turn, their logits shifted."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    logits = random.normal(2.0 * targets + shift, 1)
    plain = {"family": None, "source": None, "video": None, "jpeg_quality": pd.NA}
    plain |= {"set": "val", "width": 64, "height": 64, "group": np.arange(count)}
    scores = {"target": targets, "logit": logits, "score": 1 / (1 + np.exp(-logits))}
    return pd.DataFrame(scores | plain | columns).astype({"jpeg_quality": "Int8"})


def slices(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    table_rows = slice_rows(rows, 0.5, [128, 256], [50, 75])
    return {(row["slice"], row["metric"]): row for row in table_rows}


def test_a_family_is_judged_against_all_reals() -> None:
    rows = table(200, 0)
    families = np.where(rows.index < 100, "swap", "lips")
    rows["family"] = [
        name if target else None for name, target in zip(families, rows["target"], strict=True)
    ]
    figures = slices(rows)
    part = rows[(rows["target"] == 0) | (rows["family"] == "swap")]
    row = figures["family=swap", "auc"]
    assert row["value"] == pytest.approx(roc_auc_score(part["target"], part["score"]))
    assert row["low"] < row["value"] < row["high"]
    assert (row["num_real"], row["num_fake"]) == (100, 50)
    fakes = part[part["target"] == 1]
    assert figures["family=swap", "tpr"]["value"] == pytest.approx((fakes["score"] >= 0.5).mean())
    assert ("family=swap", "fpr") not in figures  # it has no reals of its own


def test_sizes_qualities_and_sources_are_judged_among_themselves() -> None:
    rows = table(300, 1)
    rows["width"] = np.repeat([100, 128, 400], 100)
    rows["height"] = np.repeat([900, 255, 256], 100)
    rows["jpeg_quality"] = pd.array(np.repeat([49, 50, 75], 100), dtype="Int8")
    rows["source"] = ["film", "web"] * 75 + ["web", "web"] * 75  # film: reals only
    figures = slices(rows)
    names = list(dict.fromkeys(name for name, _ in figures))
    assert names == ["source=film", "source=web", "size=below 128", "size=128 to 255",
                     "size=256 and more", "quality=below 50", "quality=50 to 74",
                     "quality=75 and more"]  # fmt: skip
    for name in ("size=128 to 255", "quality=50 to 74"):
        part = rows[100:200]
        expected = roc_auc_score(part["target"], part["score"])
        assert figures[name, "auc"]["value"] == pytest.approx(expected)
        assert figures[name, "fpr"]["num_real"] == 50
    film = rows[(rows["source"] == "film") | (rows["target"] == 1)]
    expected = roc_auc_score(film["target"], film["score"])
    assert figures["source=film", "auc"]["value"] == pytest.approx(expected)


def test_what_does_not_differ_is_no_slice() -> None:
    assert slices(table(50, 2)) == {}


def test_an_image_that_is_no_jpeg_has_no_quality_band() -> None:
    rows = table(100, 2)
    rows.loc[:49, "jpeg_quality"] = 90
    assert {name for name, _ in slices(rows)} == {"quality=75 and more"}


def test_cross_auc_tells_of_scores_that_drift_from_set_to_set() -> None:
    tables = {"here": table(400, 3), "there": table(300, 4, shift=3.0)}
    cross = {(row["reals_of"], row["fakes_of"]): row for row in cross_rows(tables)}
    assert cross["here", "here"]["auc"] > 0.85 < cross["there", "there"]["auc"]
    assert cross["there", "here"]["auc"] < 0.5 < 0.95 < cross["here", "there"]["auc"]
    assert cross["there", "here"]["num_real"] == 150
    assert cross["there", "here"]["num_fake"] == 200


def test_operating_points_are_set_on_calibration_and_judged_elsewhere() -> None:
    calibration, val = table(4000, 5), table(2000, 6)
    fine, rare = operating_rows(calibration, {"val": val})
    reals = calibration.loc[calibration["target"] == 0, "score"]
    assert (reals >= fine["threshold"]).sum() == 20
    assert (reals >= rare["threshold"]).sum() == 2
    assert fine["enough_reals"] and rare["enough_reals"]
    assert fine["fpr_low"] < 0.01 < fine["fpr_high"]
    assert fine["tpr"] > rare["tpr"]
    assert fine["false_alarms_per_million"] == round(1e6 * fine["fpr"])
    few = operating_rows(calibration.head(100), {"val": val})
    assert not few[0]["enough_reals"]
    highest = calibration.head(100).query("target == 0")["score"].max()
    above = calibration.head(100).query("score > @highest")["score"].min()
    assert highest < few[0]["threshold"] == (highest + above) / 2 < above


def test_the_figure_that_needs_ten_thousand_reals_comes_with_them() -> None:
    for count, expected in ((1000, False), (20_000, True)):
        rows = table(count, 7)
        metrics = {row["metric"] for row in set_rows(rows, 0.5, temperature=1.0)}
        assert ("tpr_at_fpr_1e-4" in metrics) == expected
        assert {"auc", "ece_scaled", "tpr", "fpr"} <= metrics


@pytest.mark.parametrize(("distance", "better"), [(0.0, 0), (2.0, 1)])
def test_a_model_that_is_no_better_than_chance_is_called_useless(
    distance: float, better: int
) -> None:
    names = [f"{number}.jpg" for number in range(200)]
    rows = table(200, 0, img_name=names, set="val", row=range(200))
    rows["logit"] = np.random.default_rng(0).normal(distance * rows["target"], 1)
    rows["score"] = 1 / (1 + np.exp(-rows["logit"]))
    params = EvaluateParams(
        threshold="accuracy",
        size_bands=[100],
        quality_bands=[50],
        verdicts=VerdictParams(false_alarms=0.02, misses=0.05),
    )
    report, tables = evaluate_detector({"val": rows}, rows, params)
    assert report["better_than_chance"] == better
    first_line = next(summary(report, tables))
    assert first_line.startswith("WARNING: this model is useless") == (not better)
