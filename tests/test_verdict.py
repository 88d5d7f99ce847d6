"""From a score to a verdict: the rules, the examiner, and the origin of a file."""

import hashlib
import json
import socket
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pandas as pd
import pillow_heif
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from scipy.special import expit, logit

from stages.evaluate import make_rules
from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json, write_json
from stages.lib.core.params import load_params
from stages.lib.core.schema import TrainingFakes, TrainingSummary
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.evaluation.report import EvaluateParams, labelled_scores
from stages.lib.evaluation.risk_coverage import area, risk_coverage_curves, risks, risks_of
from stages.lib.evaluation.verdict_rules import (
    REASONS,
    Doubt,
    Rules,
    Thresholds,
    known_manipulations,
    read_rules,
)
from stages.lib.evaluation.verdicts import (
    VerdictParams,
    choose_thresholds,
    farthest_allowed,
    summarise_verdicts,
    verdict_table,
    with_verdicts,
)
from stages.lib.images.faces import Face
from stages.lib.training.augmentation import Degradation
from stages.lib.training.summary import summarise_images
from stages.lib.verdict import examiner as examiner_module
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.explanation import verdict_in_words
from stages.lib.verdict.printing import why
from stages.lib.verdict.provenance import read_provenance
from stages.lib.verdict.record import Record, identity_of, make_record
from stages.lib.verdict.results import ImageVerdict
from tests.test_images import PARAMS

TRAINED_ON = TrainingSummary(
    num_images=100, side=(200, 400), jpeg_quality=(50, 95), face=(80, 160), face_margin=1.5
)
THRESHOLDS = Thresholds(
    false_alarms=0.02,
    misses=0.05,
    fake_from=0.8,
    real_below=0.3,
    middle=0.5,
    temperature=2.0,
    false_alarms_high=0.1,
    misses_high=0.12,
    num_real=50,
    num_fake=60,
)
RULES = Rules(
    weights_sha256="a" * 64,
    views=["plain"],
    thresholds=THRESHOLDS,
    stability=True,
    farthest=1.5,
    trained_on=TRAINED_ON,
    doubt=None,
)
GOOD = {"logit": 3.0, "low": 2.5, "high": 3.5, "distance": 1.5, "face": 100.0, "width": 250,
        "height": 300, "jpeg_quality": 80.0}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Rules


@pytest.mark.parametrize(
    ("changes", "verdict", "reasons"),
    [
        ({}, "fake", set()),
        ({"logit": -3.0, "low": -4.0, "high": -2.0}, "real", set()),
        ({"logit": 0.5, "low": 0.1, "high": 0.6}, "unsure", {"between"}),
        ({"low": -0.1}, "unsure", {"unstable"}),
        ({"logit": -3.0, "low": -4.0, "high": 0.1}, "unsure", {"unstable"}),
        ({"low": -2.0, "high": -1.0}, "unsure", {"unstable"}),  # all views on the other side
        ({"low": np.nan, "high": np.nan}, "fake", set()),
        ({"face": 0.0}, "unsure", {"no_face"}),
        ({"distance": 1.51}, "unsure", {"unlike_training"}),
        ({"distance": np.nan}, "fake", set()),
        ({"distance": 9.0, "face": 0.0}, "unsure", {"no_face", "unlike_training"}),
        ({"face": np.nan}, "fake", set()),
        ({"face": 79.0}, "unsure", {"small_face"}),
        ({"face": 320.0}, "fake", set()),
        ({"face": 321.0}, "unsure", {"unlike_size"}),
        ({"face": np.nan, "width": 199}, "unsure", {"unlike_size"}),
        ({"face": np.nan, "width": 801, "height": 801}, "unsure", {"unlike_size"}),
        ({"width": 5000, "height": 5000}, "fake", set()),
        ({"jpeg_quality": 49.0}, "unsure", {"unlike_quality"}),
        ({"jpeg_quality": np.nan}, "fake", set()),
        ({"jpeg_quality": 30.0, "face": 0.0}, "unsure", {"no_face", "unlike_quality"}),
    ],
)
def test_a_verdict_is_unsure_for_its_reasons(
    changes: dict[str, float], verdict: str, reasons: set[str]
) -> None:
    images = pd.DataFrame([GOOD | changes])
    given = RULES.apply(images)[1].loc[0]
    assert {name for name, is_given in given.items() if is_given} == reasons
    assert list(given.index) == list(REASONS)
    assert RULES.apply(images)[0].tolist() == [verdict]


def test_a_detector_that_was_trained_without_faces_asks_for_none() -> None:
    without_faces = TRAINED_ON.model_copy(update={"face": None, "jpeg_quality": None})
    rules = RULES.model_copy(update={"trained_on": without_faces})
    rows = [{"face": 0.0, "jpeg_quality": 1.0}, {"face": 900.0}, {"width": 9000, "height": 9000}]
    images = pd.DataFrame([GOOD | row for row in rows])
    assert rules.apply(images)[0].tolist() == ["fake", "fake", "unsure"]


def test_a_detector_whose_views_were_not_scored_asks_for_no_stability() -> None:
    rules = RULES.model_copy(update={"stability": False})
    assert rules.apply(pd.DataFrame([GOOD | {"low": -2.0}]))[0].tolist() == ["fake"]


def test_thresholds_keep_the_wanted_rates_on_the_calibration_set() -> None:
    random = np.random.default_rng(0)
    targets = np.arange(2000) % 2
    logits = random.normal(2.0 * targets - 1, 1)
    table = pd.DataFrame(
        {"target": targets, "logit": logits, "score": expit(logits), "group": range(2000)}
    )
    params = VerdictParams(false_alarms=0.02, misses=0.05)
    limits = choose_thresholds(table, params, middle=0.5, temperature=1.0)
    reals, fakes = table["score"][targets == 0], table["score"][targets == 1]
    assert 0.015 < (reals >= limits.fake_from).mean() <= 0.02
    assert 0.045 < (fakes < limits.real_below).mean() <= 0.05
    assert limits.real_below < limits.middle == 0.5 < limits.fake_from
    assert (limits.num_real, limits.num_fake) == (1000, 1000)
    assert 0.02 < limits.false_alarms_high < 0.035 and 0.05 < limits.misses_high < 0.07
    words = limits.in_words("fake")
    assert words.startswith("at most 2.0% of 1000 calibration reals were called fake, so up to ")


def test_one_threshold_is_enough_where_it_keeps_both_rates() -> None:
    scores = np.concatenate([np.linspace(0, 0.3, 50), np.linspace(0.7, 1, 50)])
    table = pd.DataFrame({"target": [0] * 50 + [1] * 50, "score": scores, "group": range(100)})
    params = VerdictParams(false_alarms=0.02, misses=0.05)
    limits = choose_thresholds(table, params, middle=0.5, temperature=1.0)
    assert limits.fake_from == limits.real_below == limits.middle == 0.5


def table_of(scored: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the verdicts on one set."""
    decided = {"val": with_verdicts(scored, RULES)}
    return verdict_table(decided, {}, RULES, [128], [50])


def test_the_sure_verdicts_are_counted_apart() -> None:
    rows = [GOOD | {"target": 1}] * 6 + [GOOD | {"target": 0, "face": 0.0}] * 4
    table = pd.DataFrame(rows).assign(
        group=range(10), family=None, source=None, score=lambda t: expit(t["logit"])
    )
    whole = table_of(table).iloc[0]
    assert whole["unsure"] == 0.4 and whole["wrong"] == 0.4 and whole["sure_wrong"] == 0
    assert whole["no_face"] == 4 and whole["unstable"] == 0
    assert 0 < whole["sure_wrong_high"] < 0.5  # six right ones do not rule out errors
    assert whole["sure_and_wrong"] == whole["sure_and_wrong_before"] == 0
    # Two fakes are called real, and one of them is far from the training images.
    wrong = [GOOD | {"target": 1, "logit": -3.0, "low": -3.0, "high": -3.0, "distance": distance}
             for distance in (1.0, 2.0)]  # fmt: skip
    table = pd.concat([table, pd.DataFrame(wrong).assign(group=[10, 11], score=expit(-3.0))])
    whole = table_of(table).iloc[0]
    assert whole["unlike_training"] == 1
    assert whole["sure_and_wrong"] == pytest.approx(1 / 12)
    assert whole["sure_and_wrong_low"] == 0 < whole["sure_and_wrong_high"] < 0.4
    assert whole["sure_and_wrong_before"] == pytest.approx(2 / 12)
    assert summarise_verdicts(table_of(table))["val"].keys() == {
        "unsure", "wrong", "sure_wrong", "sure_and_wrong", "sure_and_wrong_before", "aurc",
    }  # fmt: skip
    nobody = table.assign(face=0.0)
    assert np.isnan(table_of(nobody)["sure_wrong"].iloc[0])


@pytest.mark.parametrize("count", [19, 20, 38, 39, 99, 100, 1000])
def test_at_most_five_percent_of_the_calibration_images_are_too_far(count: int) -> None:
    distances = pd.Series(np.random.default_rng(count).gamma(2, 1, count))
    farthest = farthest_allowed(distances)
    assert farthest is not None
    assert (distances > farthest).sum() == (count + 1) // 20 - 1 <= 0.05 * count
    tied = distances.where(distances < distances.quantile(0.5), 3.0)
    assert (tied > (farthest_allowed(tied) or 0)).sum() == 0
    assert farthest_allowed(distances[:18]) is None  # too few to tell one in twenty
    assert farthest_allowed(distances.where(distances.index > 0)) is None


def test_the_distance_that_is_allowed_is_that_of_the_calibration_set_alone(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisoned rows of val would move it."""
    monkeypatch.chdir(pipeline)
    config, report = read_json(paths.CONFIG), read_json(paths.EVALUATION)
    calibration = pd.concat([labelled_scores("calibration")] * 4, ignore_index=True)
    params = load_params("evaluate", EvaluateParams)
    farthest = make_rules(config, calibration, report, params).farthest
    assert farthest == farthest_allowed(calibration["distance"])
    poisoned = pd.concat([calibration, labelled_scores("val").assign(distance=1e6)])
    assert farthest_allowed(poisoned["distance"]) == 1e6
    assert make_rules(config, calibration[:18], report, params).farthest is None


def test_the_area_under_the_risk_coverage_curve_is_that_by_hand() -> None:
    is_wrong = np.array([True, False, False, True])
    certainty = np.array([0.1, 0.9, 0.8, 0.7])
    expected = [0, 0, 1 / 3, 2 / 4]  # the surest two are right, then one wrong, then another
    assert risks(is_wrong, certainty) == pytest.approx(expected)
    assert area(risks(is_wrong, certainty)) == pytest.approx(sum(expected) / 4)
    assert risks(is_wrong, np.ones(4)) == pytest.approx([0.5] * 4)  # none is surer than another
    table = pd.DataFrame([GOOD | {"logit": gap} for gap in (0.1, -2.0, 3.0, -4.0)])
    table = table.assign(target=[1, 0, 0, 1], **dict.fromkeys(REASONS, False))
    assert risks_of(table, middle=0.5) == pytest.approx([1, 1, 2 / 3, 2 / 4])
    abstains = table.assign(unlike_training=[False, False, False, True], between=True)
    assert risks_of(abstains, middle=0.5) == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4])
    curve = risk_coverage_curves({"val": risks(is_wrong, certainty)})
    assert curve["coverage"].iloc[[24, 25, -1]].tolist() == [0.25, 0.26, 1.0]
    assert curve["val"].iloc[[0, 49, 50, 75, -1]].tolist() == pytest.approx([0, 0, 1 / 3, 0.5, 0.5])


@pytest.mark.parametrize(
    ("fakes", "words"),
    [
        ([("face_swap", "lfw"), ("reenactment", None), ("face_swap", "dfdc")],
         "the manipulations it knows (face_swap of lfw and dfdc, reenactment)"),
        ([("<b>", "a|b"), (None, "dfdc")],
         "the manipulations it knows (<b> of a|b, those in the fakes of dfdc)"),
        ([(None, "lfw"), (None, "dfdc")],
         "the manipulations in the fakes of lfw and dfdc that it was trained on"),
        ([(None, None)], "the manipulations in the fakes of its training set"),
        ([(f"kind {number}", None) for number in range(10)],
         f"the manipulations it knows ({', '.join(f'kind {n}' for n in range(8))}, 2 more)"),
    ],
)  # fmt: skip
def test_the_manipulations_that_are_looked_for_are_named(
    fakes: list[tuple[str | None, str | None]], words: str
) -> None:
    labels = pd.DataFrame(fakes, columns=["family", "source"], dtype="str").assign(
        target=1, width=9, height=9, jpeg_quality=None, face=np.nan
    )
    summary = summarise_images(labels, PARAMS.augmentation)
    assert sum(part.num_images for part in summary.fakes) == len(fakes)
    given = [TrainingFakes(family=family, source=source, num_images=1) for family, source in fakes]
    assert set(summary.fakes) == set(given)
    trained_on = TRAINED_ON.model_copy(update={"fakes": tuple(given)})
    assert known_manipulations(trained_on) == words


def test_a_detector_knows_what_its_training_images_were_like() -> None:
    labels = pd.DataFrame(
        {"width": [300] * 100, "height": range(200, 300), "jpeg_quality": [70] * 60 + [None] * 40,
         "face": [100.0] * 70 + [0.0] * 30, "target": [0] * 50 + [1] * 50, "family": None,
         "source": ["lfw"] * 80 + [None] * 20}
    )  # fmt: skip
    augmentation = PARAMS.augmentation
    summary = summarise_images(labels, augmentation)
    assert summary.sources == {"lfw": 80}
    assert [(part.source, part.num_images) for part in summary.fakes] == [("lfw", 30), (None, 20)]
    assert summary.side == (200, 299) and summary.jpeg_quality == (70, 70)
    assert summary.face == (100, 100)
    assert summary.face_margin == 2.345  # the median of 200 to 269, in faces of 100 pixels
    harsh = Degradation(probability=0.5, range=[30.0, 95.0])
    summary = summarise_images(labels, augmentation.model_copy(update={"jpeg": harsh}))
    assert summary.jpeg_quality == (30, 70)
    few = summarise_images(labels.assign(face=np.nan, jpeg_quality=None), augmentation)
    assert few.face is few.face_margin is few.jpeg_quality is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file, and verdicts need it"),
        ("{}", "not the rules of verdicts: weights_sha256: Field required; write it again"),
        (RULES.model_dump_json(exclude={"doubt"}), "doubt: Field required; write it again with"),
        (RULES.model_dump_json(exclude={"farthest"}), "farthest: Field required; write it again"),
        (RULES.model_dump_json(), "the rules of another detector"),
    ],
)
def test_rules_that_do_not_fit_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "verdict_rules.json"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_rules(path, "b" * 64)


@pytest.mark.parametrize(
    ("is_sample", "is_better", "doubt"),
    [
        (False, 1, None),
        (False, 0, "no better than chance"),
        (True, 1, "trained on drawn faces alone"),
        (True, 0, "trained on drawn faces alone"),
    ],
)
def test_the_rules_say_what_a_detector_is_worth(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sample: bool,
    is_better: int, doubt: Doubt | None,
) -> None:  # fmt: skip
    monkeypatch.chdir(pipeline)
    write_json(tmp_path / "data.json", {"generated_sample": is_sample})
    monkeypatch.setattr(paths, "DATA_REPORT", tmp_path / "data.json")
    report = read_json(paths.EVALUATION) | {"better_than_chance": is_better}
    params = load_params("evaluate", EvaluateParams)
    config, calibration = read_json(paths.CONFIG), labelled_scores("calibration")
    assert make_rules(config, calibration, report, params).doubt == doubt


# ---------------------------------------------------------------------------------------------
# The examiner


@pytest.fixture(scope="module")
def examiner(pipeline: Path) -> Examiner:
    hardware = set_up_hardware("cpu", 1)
    return Examiner(pipeline / "data/model", hardware, crop=False, max_pixels=1_000_000)


def test_bad_files_do_not_disturb_the_others(pipeline: Path, examiner: Examiner) -> None:
    file = next((pipeline / "data/raw/sample/phase1/valset").iterdir())
    good = file.read_bytes()
    bomb = BytesIO()
    Image.new("L", (1001, 1000)).save(bomb, "PNG")
    verdicts = examiner.examine(
        [b"", good, b"no image", good[: len(good) // 2], bomb.getvalue(), good]
    )
    problems = {
        0: "empty file",
        2: "not an image of a known format",
        3: "damaged: image file is truncated",
        4: "1001 x 1000 pixels are more than",
    }
    for place, verdict in enumerate(verdicts):
        if place in problems:
            assert str(verdict).startswith(problems[place])
        else:
            assert isinstance(verdict, ImageVerdict)
            assert verdict.sha256 == hashlib.sha256(good).hexdigest()
    assert examiner.examine([]) == []


def group_photograph(pipeline: Path, examiner: Examiner) -> bytes:
    """Return an image with the largest drawn faces of the sample side by side."""
    labels = pd.read_csv(pipeline / "data/labels/val.csv").nlargest(3, "face")
    folder = pipeline / "data/raw/sample/phase1/valset"
    whole = Image.new("RGB", (640, 200), "white")
    for place, name in enumerate(labels["img_name"]):
        with Image.open(folder / name) as face:
            whole.paste(face.resize((200, 200), Image.Resampling.BICUBIC), (220 * place, 0))
    buffer = BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def test_each_face_of_an_image_has_its_verdict(
    pipeline: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph = group_photograph(pipeline, examiner)
    cutting = Examiner(
        pipeline / "data/model", examiner.inference.hardware, crop=True, max_pixels=10**6
    )
    assert cutting.face_share == examiner.rules.trained_on.face_margin is not None
    (verdict,) = cutting.examine([photograph])
    assert isinstance(verdict, ImageVerdict) and len(verdict.faces) >= 2
    lefts = sorted(face.box[0] // 220 for face in verdict.faces if face.box)
    assert lefts == sorted(set(lefts))  # each in its third of the image
    assert verdict.probability is None
    assert all(face.probability is None for face in verdict.faces)
    rules = cutting.rules.model_copy(update={"doubt": None})
    monkeypatch.setattr(cutting, "rules", rules)
    (believed,) = cutting.examine([photograph])
    assert isinstance(believed, ImageVerdict)
    assert believed.probability == max(face.probability or 0 for face in believed.faces) > 0
    ranking = ["real", "unsure", "fake"]
    assert verdict.verdict == max((face.verdict for face in verdict.faces), key=ranking.index)
    (whole,) = examiner.examine([photograph])
    assert isinstance(whole, ImageVerdict) and len(whole.faces) == 1


def test_a_far_image_is_unsure_and_a_real_one_says_what_was_looked_for(
    pipeline: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = min((pipeline / "data/raw/sample/phase1/valset").iterdir()).read_bytes()
    limits = THRESHOLDS.model_copy(update={"fake_from": 1.0, "real_below": 1.0, "middle": 0.999})
    rules = RULES.model_copy(
        update={
            "thresholds": limits,
            "stability": False,
            "farthest": 1e6,
            "trained_on": TRAINED_ON.model_copy(
                update={
                    "side": (1, 999),
                    "face": None,
                    "fakes": (TrainingFakes(family="\x1b<b>swap", source="lfw", num_images=9),),
                }
            ),
        }
    )
    monkeypatch.setattr(examiner, "rules", rules)
    (verdict,) = examiner.examine([content])
    assert isinstance(verdict, ImageVerdict) and verdict.verdict == "real"
    assert verdict.no_sign_of == "the manipulations it knows (\x1b<b>swap of lfw)"
    record = make_record("a.jpg", verdict, identity_of(examiner), content)
    assert "no sign of the manipulations it knows ( <b>swap of lfw)" in why(record)
    assert f" No sign of {verdict.no_sign_of}. How often" in verdict_in_words(record)
    distance = verdict.faces[0].distance
    assert distance is not None and distance > 0.1
    monkeypatch.setattr(examiner, "rules", rules.model_copy(update={"farthest": distance / 2}))
    (far,) = examiner.examine([content])
    assert isinstance(far, ImageVerdict)
    assert (far.verdict, far.reasons, far.no_sign_of) == ("unsure", ["unlike_training"], "")
    assert far.faces[0].distance == distance
    words = "The detector should not be trusted here: unlike everything it was trained on."
    record = make_record("a.jpg", far, identity_of(examiner), content)
    assert words in verdict_in_words(record)
    assert why(record) == "unlike everything it was trained on"
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_faces_that_are_not_examined_or_not_looked_for_are_told(
    pipeline: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutting = Examiner(
        pipeline / "data/model", examiner.inference.hardware, crop=True, max_pixels=10**7
    )
    faces = [Face(9.0 * n, 5.0, 90.0 - n, 90.0 - n, np.zeros((5, 2)), 0.9) for n in range(35)]
    monkeypatch.setattr(examiner_module, "find_faces", lambda *_, small: faces)
    buffer = BytesIO()
    Image.new("RGB", (3200, 120), "grey").save(buffer, "PNG")
    content = buffer.getvalue()
    (verdict,) = cutting.examine([content])
    (whole,) = examiner.examine([content])
    assert isinstance(verdict, ImageVerdict) and isinstance(whole, ImageVerdict)
    assert [face.face_size for face in verdict.faces] == [90.0 - n for n in range(32)]
    assert (verdict.not_judged, verdict.missed_below) == (3, 40)
    words = (
        "of the faces found, 3 smaller ones were not examined; faces below 40 pixels were not "
        "looked for"
    )
    assert verdict.not_searched == words
    assert (len(whole.faces), whole.not_searched) == (1, "")
    record = make_record("a.png", verdict, identity_of(cutting), content)
    assert Record.model_validate_json(record.model_dump_json()) == record
    assert words in why(record) and f"Not examined: {words}." in verdict_in_words(record)
    old = record.model_dump_json(exclude={"not_judged", "missed_below"})
    assert Record.model_validate_json(old).not_searched == ""  # of before


def test_a_huge_image_is_examined_and_a_strange_one_is_refused(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = BytesIO()
    Image.new("RGB", (20_000, 40), "teal").save(wide, "PNG")
    monkeypatch.setattr(examiner, "max_pixels", 10**7)
    (verdict,) = examiner.examine([wide.getvalue()])
    assert isinstance(verdict, ImageVerdict) and verdict.verdict == "unsure"
    monkeypatch.setattr(examiner_module, "inputs_of_views", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a defect is no fault of the image
        examiner.examine([wide.getvalue()])

    def no_memory(_: torch.Tensor, small: bool) -> list[Face]:
        raise MemoryError

    monkeypatch.setattr(examiner_module, "find_faces", no_memory)
    (verdict,) = examiner.examine([wide.getvalue()])
    assert str(verdict) == "too large for the memory of this machine"


def test_weights_that_give_no_number_are_no_verdict(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(examiner.inference, network=lambda inputs: torch.full((len(inputs),), np.nan))
    monkeypatch.setattr(examiner, "inference", broken)
    image = BytesIO()
    Image.new("RGB", (64, 64)).save(image, "PNG")
    with pytest.raises(UserError, match="give scores that are not numbers; take another model"):
        examiner.examine([image.getvalue()])


def test_faces_are_measured_in_pixels_of_the_file(
    pipeline: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a JPEG is decoded at a part of its size."""
    with Image.open(BytesIO(group_photograph(pipeline, examiner))) as image:
        large = BytesIO()
        image.crop((0, 0, 200, 200)).resize((800, 800)).save(large, "JPEG", quality=95)
    scaled = examiner.config.preprocessing.model_copy(update={"scaled_decoding": True})
    (whole,) = examiner.examine([large.getvalue()])
    config = examiner.config.model_copy(update={"preprocessing": scaled})
    monkeypatch.setattr(examiner, "config", config)
    _, (crop,) = examiner.crops(examiner.decode(large.getvalue()))
    assert crop.shape[1] < 800
    (small,) = examiner.examine([large.getvalue()])
    assert isinstance(whole, ImageVerdict) and isinstance(small, ImageVerdict)
    assert whole.faces[0].face_size > 0
    assert small.faces[0].face_size == pytest.approx(whole.faces[0].face_size, rel=0.15)


# ---------------------------------------------------------------------------------------------
# Provenance


@cache
def signer_and_manifest(source_type: str = "digitalCapture") -> tuple[c2pa.Signer, dict[str, Any]]:
    """Return a signer with a certificate that nobody vouches for, and what it signs."""

    def name(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Newsroom"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: str, owner: Any, usage: dict[str, bool], is_ca: bool) -> Any:
        none = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        begin = datetime(2026, 1, 1)
        builder = x509.CertificateBuilder(
            name("Authority"),
            name(subject),
            owner.public_key(),
            x509.random_serial_number(),
            begin,
            begin + timedelta(days=36500),
        )
        of_owner = x509.SubjectKeyIdentifier.from_public_key(owner.public_key())
        of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        builder = builder.add_extension(of_owner, False).add_extension(of_issuer, False)
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
        builder = builder.add_extension(x509.KeyUsage(**none | usage), True)
        if not is_ca:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    chain = certificate("Desk", key, {"digital_signature": True}, is_ca=False)
    chain += certificate("Authority", authority, {"key_cert_sign": True, "crl_sign": True}, True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    uri = f"http://cv.iptc.org/newscodes/digitalsourcetype/{source_type}"
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": uri}]}
    manifest = {
        "claim_generator_info": [{"name": "Example Camera", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": actions}],
    }
    info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=private, ta_url=None)
    return c2pa.Signer.from_info(info), manifest


@cache
def signed(source_type: str = "digitalCapture") -> bytes:
    """Return a JPEG with a signed C2PA manifest."""
    signer, manifest = signer_and_manifest(source_type)
    plain, result = BytesIO(), BytesIO()
    Image.new("RGB", (200, 150), "teal").save(plain, "JPEG")
    plain.seek(0)
    c2pa.Builder(json.dumps(manifest)).sign(signer, "image/jpeg", plain, result)
    return result.getvalue()


def test_a_signed_manifest_is_read_and_a_changed_image_breaks_it() -> None:
    manifest = read_provenance(signed()).c2pa
    assert manifest and (manifest.state, manifest.signer) == ("valid", "Example Newsroom, Desk")
    assert manifest.generator == "Example Camera" and manifest.problems == []
    assert (manifest.actions, manifest.source_types) == (["c2pa.created"], ["digitalCapture"])
    changed = bytearray(signed())
    changed[-200] ^= 1
    broken = read_provenance(bytes(changed))
    assert broken.c2pa and broken.c2pa.state == "broken"
    assert broken.c2pa.problems == ["assertion.dataHash.mismatch"]
    assert str(broken).startswith(
        "C2PA broken, signed by Example Newsroom, Desk; says c2pa.created"
    )
    cut = read_provenance(signed()[:3000]).c2pa
    assert cut and cut.state == "broken" and not cut.signer


WITH_XMP = ("JPEG", "WEBP", "AVIF", "HEIF")  # formats in which Pillow writes it


def with_fields(form: str) -> bytes:
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Canon", "EOS\n5D" + "x" * 500, "Editor 1"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    uri = b"http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a Iptc4xmpExt:DigitalSourceType="%s"/>' % uri
    more = {"xmp": xmp} if form in WITH_XMP else {}
    buffer = BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, form, exif=exif, **more)
    return buffer.getvalue()


def test_thresholds_are_told_on_the_scale_of_the_probability() -> None:
    assert THRESHOLDS.calibrated(0.8) == pytest.approx(expit(logit(0.8) / 2))
    assert THRESHOLDS.calibrated(float(np.nextafter(1, 2))) == 1 and THRESHOLDS.calibrated(0.0) == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_the_fields_of_camera_and_source_are_read(form: str) -> None:
    provenance = read_provenance(with_fields(form))
    assert provenance.c2pa is None
    assert provenance.camera["make"] == "Canon" and provenance.camera["software"] == "Editor 1"
    model = provenance.camera["model"]
    assert model.startswith("EOS 5Dxxx") and len(model) == 200
    if form != "TIFF":  # where Pillow does not write it
        assert provenance.camera["taken"] == "2026:01:02 03:04:05"
    assert provenance.source_types == (["compositeSynthetic"] if form in WITH_XMP else [])


@pytest.mark.parametrize("form", ["BMP", "GIF", "PPM"])
def test_a_file_without_provenance_says_nothing(form: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, form)
    for content in (buffer.getvalue(), buffer.getvalue()[:30], b"", b"no image"):
        assert str(read_provenance(content)) == ""


def test_a_manifest_that_lies_elsewhere_is_named_and_not_fetched() -> None:
    """An image from a stranger must not make a server ask another machine for anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa"
        rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
        xmp = (
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description '
            f'rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{url}"/>'
            "</rdf:RDF></x:xmpmeta>"
        )
        buffer = BytesIO()
        Image.new("RGB", (20, 20)).save(buffer, "JPEG", xmp=xmp.encode())
        manifest = read_provenance(buffer.getvalue()).c2pa
        with pytest.raises(TimeoutError):
            server.accept()
    assert manifest and manifest.state == "elsewhere" and url in manifest.problems[0]
