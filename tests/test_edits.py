"""Harmless edits of reals: what is done to them, and how many are called fake after it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from torchvision.transforms.v2 import functional as tv

from stages.lib import paths
from stages.lib.core.files import read_json
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.evaluation.false_alarms import add_false_alarms, edited_scores, false_alarm_table
from stages.lib.images.faces import Face
from stages.lib.prediction import edits
from stages.lib.prediction.edits import LEVELS, LONGEST_SIDE, VARIANTS, Edit, EditedImages

random = np.random.default_rng(1)
BLOCKS = torch.from_numpy(random.integers(0, 256, (3, 12, 10), dtype=np.uint8))
NOISE = torch.from_numpy(random.normal(0, 12, (3, 120, 100)))
IMAGE = BLOCKS.repeat_interleave(10, dim=1).repeat_interleave(10, dim=2)
IMAGE = (IMAGE + NOISE).clamp(0, 255).to(torch.uint8)
INPUT = Preprocessing(image_size=32, interpolation="bilinear", mean=[0.5] * 3, std=[0.2] * 3)


@pytest.mark.parametrize("edit", LEVELS, ids=lambda edit: edit.__name__)
def test_every_edit_changes_the_image_a_little_and_always_alike(edit: Edit) -> None:
    for level in LEVELS[edit]:
        edited = edit(IMAGE, level)
        assert edited.dtype == torch.uint8 and edited.shape[0] == 3
        assert torch.equal(edited, edit(IMAGE.clone(), level))
        same_size = tv.resize(edited, list(IMAGE.shape[1:]), antialias=True).float()
        assert 0.5 < float((same_size - IMAGE.float()).abs().mean()) < 40
        assert edit(IMAGE[:, :5, :7], level).shape[0] == 3  # also of a tiny image


def test_what_the_edits_do() -> None:
    grey = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    assert edits.screenshot(IMAGE, 360).shape == (3, 360, 300)
    assert edits.enlarge(IMAGE, 3).shape == IMAGE.shape
    red, _, blue = edits.photo_filter(grey, 1)
    assert red[20, 30] > 128 > blue[20, 30] and red[0, 0] < red[20, 30]  # warm, with dark corners
    dark = edits.grade(torch.full_like(grey, 40), 0.4)
    assert dark[2, 0, 0] > dark[1, 0, 0] > dark[0, 0, 0]  # shadows turn teal
    for edit, level in ((edits.denoise, 6), (edits.smooth, 40)):
        patch, before = edit(IMAGE, level)[:, 12:18, 12:18], IMAGE[:, 12:18, 12:18]
        assert patch.float().std() < before.float().std()
    edge = torch.cat([grey, grey // 2], dim=2)
    assert edits.sharpen(edge, 120).max() > 128 and edits.sharpen(grey, 120).equal(grey)


def test_a_large_image_is_cut_to_the_surroundings_of_its_face_and_made_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    face = Face(1000, 500, 400, 400, np.zeros((5, 2)), 0.9)
    monkeypatch.setattr("stages.lib.images.faces.largest_face", lambda _: face)
    photograph = torch.zeros((3, 1500, 3000), dtype=torch.uint8)
    photograph[:, 500:900, 1000:1400] = 255
    assert edits.editable(photograph, INPUT).shape == (3, LONGEST_SIDE // 2, LONGEST_SIDE)
    cut = edits.editable(photograph, INPUT.model_copy(update={"face_crop": 1.25}))
    assert cut.shape == (3, 1000, 1000)
    assert float(cut.float().mean() / 255) == pytest.approx(1 / 2.5**2, rel=0.02)
    assert edits.editable(IMAGE, INPUT) is IMAGE


def table(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Return the scores of four reals."""
    tables = [
        pd.DataFrame({"img_name": list("0123"), "edit": edit, "level": 2.0, "score": values,
                      "logit": logit(values), "group": range(4)})
        for edit, values in scores.items()
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def test_false_alarms_of_an_example_worked_by_hand() -> None:
    edited = table(
        {
            "none": [0.1, 0.2, 0.3, 0.8],
            "smooth": [0.1, 0.8, 0.9, 0.9],
            "grade": [0.1, 0.2, 0.3, 0.7],
        }
    )
    rows = false_alarm_table(edited, fake_from=0.8)
    assert rows["edit"].tolist() == ["none", "smooth", "grade"]
    assert rows["share"].tolist() == [0.25, 0.75, 0.0]
    assert rows["difference"].tolist() == [0.0, 0.5, -0.25]
    assert (rows["unedited"] == 0.25).all() and (rows["num_real"] == 4).all()
    assert rows["high"][2] == pytest.approx(1 - 0.025**0.25)  # none of four: the binomial bound
    report, tables = {}, {}
    add_false_alarms(report, tables, edited, fake_from=0.8)
    assert tables["false_alarms"].equals(rows)
    assert report["false_alarms"] == {"unedited": 0.25, "worst": 0.75, "worst_edit": "smooth 2"}
    report = {}
    add_false_alarms(report, tables, edited[:0], fake_from=0.8)
    assert tables["false_alarms"].empty and not report


def test_the_reals_of_the_perturbed_images_are_edited_and_counted(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline)
    val = pd.read_csv("data/labels/val.csv")
    edited = edited_scores(val)
    perturbed = pd.read_csv("data/scores/robustness.csv")
    plain = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["logit"]
    unedited = edited[edited["edit"] == "none"].set_index("img_name")["logit"]
    reals = val.loc[val["target"] == 0, "img_name"]
    assert unedited.index.tolist() == [name for name in plain.index if name in set(reals)]
    assert unedited.to_numpy() == pytest.approx(plain[unedited.index], abs=1e-5)
    assert edited.groupby("img_name").size().tolist() == [EditedImages.num_inputs] * 10
    fake_from = read_json(paths.VERDICT_RULES)["thresholds"]["fake_from"]
    rows = pd.read_csv("metrics/tables/false_alarms.csv")
    assert len(rows) == 1 + len(VARIANTS)
    assert rows["share"][0] == pytest.approx(np.mean(edited["score"][:10] >= fake_from))
    assert (rows["low"] <= rows["share"]).all() and (rows["share"] <= rows["high"]).all()
    worst = json.loads(Path("metrics/evaluation.json").read_text())["false_alarms"]
    assert worst["worst"] == pytest.approx(rows["share"][1:].max())
    card = Path("metrics/model_card.md").read_text()
    assert f"after {worst['worst_edit']}, the worst edit, {100 * worst['worst']:.1f}%." in card
