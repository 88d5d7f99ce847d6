"""Perturbed images: what is done to them, and what becomes of the figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from torchvision.transforms.v2 import functional as tv

from stages import evaluate, predict, publish, train
from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.detector import dataset
from stages.lib.detector.pixel_operations import PixelOperation
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.evaluation.curves import severities
from stages.lib.evaluation.report import perturbed_scores
from stages.lib.evaluation.tables import (
    mean_auc_interval,
    robustness_table,
    summarise_robustness,
)
from stages.lib.prediction.perturbations import (
    LEVELS,
    VARIANTS,
    PerturbedImages,
    choose_images,
    crop,
    grey,
    noise,
    shrink,
    variants_of,
)
from tests.conftest import set_params

RANDOM = np.random.default_rng(0)
IMAGE = (
    torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 12, 10), dtype=np.uint8))
    .repeat_interleave(10, dim=1)
    .repeat_interleave(10, dim=2)
)


@pytest.mark.parametrize("kind", LEVELS, ids=lambda kind: kind.__name__)
def test_the_levels_go_from_mild_to_severe(kind: PixelOperation) -> None:
    """The image, resized to one size, differs from what it was the more the higher the level."""
    textured = noise(IMAGE, 12, np.random.default_rng(2))
    size = list(textured.shape[1:])
    differences = []
    for level in LEVELS[kind]:
        perturbed = kind(textured, level, np.random.default_rng(3))
        assert perturbed.dtype == torch.uint8 and perturbed.shape[0] == 3
        same_size = tv.resize(perturbed, size, antialias=True).float()
        differences.append(float((same_size - textured.float()).abs().mean()))
    assert differences == sorted(differences)
    assert differences[-1] > 1


def test_every_perturbation_takes_small_images() -> None:
    tiny = IMAGE[:, :5, :7]
    assert len(variants_of(tiny, 0)) == PerturbedImages.num_inputs == 1 + len(VARIANTS)


def test_what_the_perturbations_do() -> None:
    assert crop(IMAGE, 0.7, RANDOM).shape == (3, 84, 70)
    channels = grey(IMAGE, 1, RANDOM)
    assert torch.equal(channels[0], channels[2])
    assert torch.equal(shrink(IMAGE, 200, RANDOM), shrink(IMAGE, 100, RANDOM))  # never enlarged
    flat = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    assert noise(flat, 10, RANDOM).float().std() == pytest.approx(10, rel=0.02)


def test_both_classes_are_drawn_alike_and_repeatably() -> None:
    targets = pd.array([0] * 30 + [1] * 70 + [None] * 5, dtype="Int8")
    labels = pd.DataFrame({"img_name": [f"{n}.jpg" for n in range(105)], "target": targets})
    chosen = choose_images(labels, 40)
    assert chosen["target"].value_counts().to_dict() == {0: 20, 1: 20}
    assert chosen.equals(choose_images(labels, 40))
    assert choose_images(labels, 100)["target"].value_counts().to_dict() == {0: 30, 1: 50}
    assert choose_images(labels, 0).empty


def table(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Return perturbed scores of four images, two reals and two fakes."""
    tables = []
    for kind, values in scores.items():
        rows = pd.DataFrame({"img_name": list("0123"), "perturbation": kind, "level": 1.0})
        more = {"score": values, "logit": logit(values)}
        tables.append(rows.assign(**more, target=[0, 0, 1, 1], group=range(4)))
    return pd.concat(tables, ignore_index=True)


def test_auc_and_flips_of_an_example_worked_by_hand() -> None:
    scores = {
        "none": [0.1, 0.4, 0.6, 0.9],
        "jpeg": [0.1, 0.7, 0.6, 0.9],
        "blur": [0.9, 0.8, 0.2, 0.1],
    }
    perturbed = table(scores)
    rows = robustness_table(perturbed, threshold=0.5)
    assert rows["perturbation"].tolist() == ["none", "jpeg", "blur"]
    assert rows["auc"].tolist() == [1.0, 0.75, 0.0]
    assert rows["flip_rate"].tolist() == [0.0, 0.25, 1.0]
    assert rows[["num_real", "num_fake"]].to_numpy().tolist() == [[2, 2]] * 3
    summary = summarise_robustness(perturbed, rows)
    assert summary.pop("mean_auc_low") <= 0.375 <= summary.pop("mean_auc_high")
    assert summary == {
        "plain_auc": 1.0, "mean_auc": 0.375, "worst_auc": 0.0, "mean_flip_rate": 0.625,
    }  # fmt: skip
    of_one_group = summarise_robustness(perturbed.assign(group=0), rows)
    assert of_one_group == summary  # without an interval, of which nothing is known
    assert severities(rows).to_dict("list") == {
        "severity": [0, 1],
        "jpeg": [1.0, 0.75],
        "blur": [1.0, 0.0],
    }


def test_the_mean_auc_counts_every_kind_once_and_its_interval_takes_images_whole() -> None:
    random = np.random.default_rng(4)
    targets, plain = np.arange(300) % 2, random.normal(size=300)
    levels = [("jpeg", 90, 2.0), ("jpeg", 50, 1.0), ("blur", 1, 0.5)]
    perturbed = pd.concat(
        pd.DataFrame({"img_name": range(300), "perturbation": kind, "level": level,
                      "logit": plain + shift * targets,
                      "score": expit(plain + shift * targets), "target": targets,
                      "group": range(300)})
        for kind, level, shift in levels
    )  # fmt: skip
    rows = robustness_table(perturbed, threshold=0.5).set_index(["perturbation", "level"])
    mean = mean_auc_interval(perturbed)
    expected = (rows["auc"][:2].mean() + rows["auc"]["blur", 1]) / 2
    assert mean.value == pytest.approx(expected)
    widths = rows["high"] - rows["low"]
    assert widths.min() < mean.high - mean.low < widths.max()  # no averaging out


def test_every_variant_of_an_image_is_scored_and_counted(pipeline, monkeypatch) -> None:
    monkeypatch.chdir(pipeline)
    variants = perturbed_scores(pd.read_csv("data/labels/val.csv"))
    assert variants.groupby("img_name").size().tolist() == [PerturbedImages.num_inputs] * 20
    rows = pd.read_csv("metrics/tables/robustness.csv")
    assert len(rows) == PerturbedImages.num_inputs
    assert (rows["low"] <= rows["auc"]).all() and (rows["auc"] <= rows["high"]).all()


def test_variants_come_from_one_decoding(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline)
    decoded = []
    real_decode = dataset.decode
    monkeypatch.setattr(dataset, "decode", lambda c, p: decoded.append(1) or real_decode(c, p))
    preprocessing = Preprocessing(
        image_size=32, interpolation="bilinear", mean=[0.5] * 3, std=[0.2] * 3
    )
    labels = pd.read_csv("data/labels/val.csv").head(1)
    images = PerturbedImages(labels, paths.PACKED, preprocessing)
    assert images[0][0].shape == (PerturbedImages.num_inputs, 3, 32, 32)
    assert len(decoded) == 1


def test_it_can_be_left_out_and_a_metric_that_needs_more_reals_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    set_params(workspace, {"predict.robustness_images": 0, "train.epochs": 1})
    train.main()
    predict.main()
    evaluate.main()
    assert pd.read_csv("metrics/tables/robustness.csv").empty
    assert pd.read_csv("metrics/tables/false_alarms.csv").empty
    assert not {"robustness", "false_alarms"} & set(json.loads(paths.EVALUATION.read_text()))
    set_params(workspace, {"publish.champion_metric": "tpr_at_fpr_1e-4"})
    with pytest.raises(UserError, match="publish.champion_metric = tpr_at_fpr_1e-4 needs 10,000"):
        publish.main()
