"""Detectors judged from their score files: our own evaluation, whatever the file looks like."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from stages.lib import paths
from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.labels import LABEL_TYPES
from stages.lib.detector.model import fake_logit, load_detector
from stages.lib.detector.preprocessing import crop_of, input_of
from stages.lib.evaluation.intervals import rank_table
from stages.lib.score_files.comparison import compare, compare_on, holm, words
from stages.lib.score_files.delong import delong_p
from stages.lib.score_files.detectors import ScoredDetector, foreign_detector
from stages.lib.score_files.matching import index_images
from stages.lib.score_files.reading import Request, read_score_file
from stages.lib.score_files.scaling import fit_platt, platt
from stages.tools import judge as tool
from stages.tools import score as score_tool
from tests.conftest import ROOT, run

Judge = Callable[..., Path]
SIZES = {"train": 6, "val": 80, "calibration": 60, "test": 4, "held_out": 0, "held_out_sources": 0,
         "evaluation": 40}  # fmt: skip
PACKED = {"calibration": "val", "held_out": "val", "evaluation": "web.set"}


def labels_of(name: str) -> pd.DataFrame:
    """Return a label table: reals and fakes in turn; test has no labels, names are those of val."""
    count, start = SIZES[name], 1000 if name == "calibration" else 0
    rows = np.arange(start, start + count)
    table = pd.DataFrame(
        {"img_name": [f"{name[0]}{row}.jpg" for row in rows]}
        | {"target": rows % 2, "family": "", "source": "", "width": 64, "height": 64}
        | {"jpeg_quality": 90, "face": 40.0, "set": PACKED.get(name, name), "row": rows}
        | {"group": rows + 10_000 * list(SIZES).index(name), "video": "", "sha256": ""}
    )
    table = table[list(LABEL_TYPES)].astype({"target": object})
    table.loc[table["set"] == "test", "target"] = ""
    return table


def put_labels(labels: pd.DataFrame, path: Path) -> None:
    labels.to_csv(path, index=False)
    write_digest(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the labels that the pipeline writes, in which the command runs."""
    (tmp_path / "data/labels").mkdir(parents=True)
    (tmp_path / "metrics").mkdir()
    for name in SIZES:
        put_labels(labels_of(name), tmp_path / f"data/labels/{name}.csv")
    data = {"sets": {}, "shortcut_auc": 0.6, "generated_sample": False}
    data["duplicates"] = {"groups_across_sets": {"train/web": 3, "train/val": 0}}
    (tmp_path / "metrics/data.json").write_text(json.dumps(data))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Run the command; return its folder."""

    def judged(*arguments: object) -> Path:
        monkeypatch.setattr(sys, "argv", ["judge", *map(str, arguments)])
        tool.main()
        return tool.parse([str(one) for one in arguments]).out

    return judged


def scores(seed: int = 0, distance: float = 2.0) -> pd.DataFrame:
    """Return the scores of a detector for all labelled images: img_name, set, target and logit."""
    parts = [labels_of(name) for name in ("val", "calibration", "evaluation")]
    table = pd.concat(parts, ignore_index=True)[["img_name", "set", "target"]]
    table["target"] = table["target"].astype(int)
    random = np.random.default_rng(seed)
    return table.assign(logit=random.normal(distance * (table["target"] - 0.5), 1))


def write(table: pd.DataFrame, name: str = "theirs.csv", **renamed: str) -> Path:
    """Write a score file into the current folder, without its targets."""
    table.drop(columns="target", errors="ignore").rename(columns=renamed).to_csv(name, index=False)
    return Path(name)


def detector(table: pd.DataFrame, missing: str = "refuse", **request: Any) -> ScoredDetector:
    """Return the detector of a table, by way of a file."""
    scores = read_score_file(Request(write(table), "theirs", **request))
    return foreign_detector(scores, index_images(), missing)


def auc(table: pd.DataFrame) -> float:
    return float(roc_auc_score(table["target"].astype(int), table["score"]))


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message


# ---------------------------------------------------------------------------------------------
# Our own scores


@pytest.mark.parametrize("column", ["set", "path"])
def test_our_own_scores_as_a_foreign_file_equal_our_own_evaluation(
    column: str, pipeline: Path, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, in any order of the rows, with plain names or with paths."""
    parts = []
    for name in ("val", "calibration", "held_out", "evaluation", "test"):
        part = pd.read_csv(pipeline / f"data/scores/{name}.csv")[["img_name", "logit"]]
        labels = pd.read_csv(pipeline / f"data/labels/{name}.csv")
        parts.append(part.assign(set=labels["set"]))
    table = pd.concat(parts).sample(frac=1, random_state=0)
    if column == "path":
        table["img_name"] = "/images/" + table["set"] + "/" + table["img_name"]
        table = table.drop(columns="set")
    table.to_csv(tmp_path / "foreign.csv", index=False)
    monkeypatch.chdir(pipeline)
    data = json.loads(paths.DATA_REPORT.read_text())
    data["duplicates"]["groups_across_sets"]["train/drawn"] = 7
    (tmp_path / "data.json").write_text(json.dumps(data))
    monkeypatch.setattr(paths, "DATA_REPORT", tmp_path / "data.json")
    files = (tmp_path / "foreign.csv", "own", "--perturbed", "data/scores/robustness.csv")
    out = judge(*files, "--out", tmp_path / "judged")
    told = "- **own was trained on 7 of the groups in drawn**, so this set flatters it."
    assert told in (out / "comparison.md").read_text()
    limit = "- 7 groups of drawn are in the training set too; the figures of drawn flatter the "
    assert limit in (out / "own/card.md").read_text()
    assert limit not in (out / "foreign/card.md").read_text()
    expected = json.loads((pipeline / "metrics/evaluation.json").read_text())
    for name in ("foreign", "own"):
        report = json.loads((out / name / "evaluation.json").read_text())
        assert {"val", "drawn", "pooled", "cross", "threshold", "temperature"} < set(report)
        del report["judged"]
        not_judged = {key: expected[key] for key in ("weights", "verdicts", "false_alarms")}
        assert report | not_judged == expected
        for table_name in ("intervals", "operating_points", "cross_auc", "robustness"):
            ours = (pipeline / f"metrics/tables/{table_name}.csv").read_bytes()
            assert (out / name / f"tables/{table_name}.csv").read_bytes() == ours
            assert len(ours.splitlines()) > 4
    pairs = pd.read_csv(out / "comparison.csv")
    assert pairs["set"].tolist() == ["val", "drawn", "pooled"]
    assert (pairs[["difference", "low", "high"]] == 0).all(axis=None)
    assert (pairs[["p_delong", "p_holm"]] == 1).all(axis=None)
    card = (pipeline / "metrics/model_card.md").read_text()
    results = card[card.index("## Results") : card.index("## Real, fake or unsure")]
    assert results in (out / "foreign/card.md").read_text()


def test_the_same_files_give_the_same_bytes_without_a_path(place: Path, judge: Judge) -> None:
    write(scores(), "one.csv")
    write(scores(seed=1), "two.csv")
    outputs = []
    for out in ("a", place / "b/c"):
        folder = judge(place / "one.csv", "two.csv", "--out", out)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        outputs.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 2 * 5 + 2
    assert not [name for name, content in outputs[0].items() if str(place).encode() in content]


# ---------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("scale", ["logit", "probability", "any"])
def test_reversed_scores_with_the_other_polarity_give_the_same(place: Path, scale: str) -> None:
    table = scores()
    reversed_ = table.assign(logit=-table["logit"])
    if scale == "probability":
        table = table.assign(logit=expit(table["logit"]))
        reversed_ = reversed_.assign(logit=expit(reversed_["logit"]))
    plain = detector(table, scale=scale)
    turned = detector(reversed_, scale=scale, higher="real")
    for name in ("val", "web"):
        ours, theirs = plain.sets[name]["score"], turned.sets[name]["score"]
        assert theirs.to_numpy() == pytest.approx(ours.to_numpy(), abs=1e-12)
        assert auc(turned.sets[name]) == auc(plain.sets[name]) > 0.8
    if scale != "any":
        wrong = detector(reversed_, scale=scale)
        assert auc(wrong.sets["val"]) == pytest.approx(1 - auc(plain.sets["val"]))
        assert wrong.notes[-1].endswith("are they higher for reals (`--higher real`)?")


@pytest.mark.parametrize("change", [lambda x: x + 45, lambda x: x - 45, lambda x: 30 * x])
def test_scores_that_are_all_but_0_or_1_are_ranked_by_what_is_in_the_file(
    place: Path, change: Callable[[pd.Series], pd.Series]
) -> None:
    table = scores()
    plain, logits = detector(table), change(table["logit"])
    files = {"logit": detector(table.assign(logit=logits))}
    if (logits > 30).mean() < 0.5:  # a number near 1 has few digits, so only one polarity keeps all
        kept = table.assign(logit=expit(logits.clip(upper=0)))
        only = kept["logit"] < 0.5
        files["low"] = detector(kept[only], "leave_out", scale="probability")
        assert files["low"].sets["val"]["logit"].to_numpy() == pytest.approx(
            logits[only & table["img_name"].str.startswith("v")].to_numpy()
        )
    names = ["auc", "average_precision"]
    metrics = rank_table(files["logit"].sets["val"]).metrics(np.ones(80), names)
    expected = rank_table(plain.sets["val"]).metrics(np.ones(80), names)
    assert metrics == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "change", [lambda x: 1e4 * x - 7e5, np.exp, np.arctan, lambda x: np.round(1e3 * x) / 1e9]
)
def test_any_numbers_in_the_same_order_have_the_same_auc(
    place: Path, change: Callable[[pd.Series], pd.Series]
) -> None:
    table = scores().assign(logit=lambda t: np.round(t["logit"], 3))
    plain = detector(table)
    changed = detector(table.assign(logit=change(table["logit"])), scale="any")
    for name, ours in plain.sets.items():
        assert auc(changed.sets[name]) == auc(ours)
        assert changed.sets[name]["score"].between(0, 1).all()
    assert changed.notes == []
    assert changed.sets["val"]["score"].tolist() != plain.sets["val"]["score"].tolist()


def test_platt_scaling_has_the_least_loss_and_comes_from_calibration_alone(place: Path) -> None:
    table = scores().assign(logit=lambda t: 5 * t["logit"] + 30)
    theirs = detector(table, scale="any")
    of_calibration = table["img_name"].str.startswith("c")
    targets = table["target"][of_calibration].to_numpy()
    values = table["logit"][of_calibration].to_numpy()
    share = np.where(targets == 1, 31 / 32, 1 / 32)

    def loss(line: np.ndarray) -> float:
        logits = line[0] * (values - 30) + line[1]
        return float(np.sum(np.logaddexp(0, logits) - share * logits))

    best = minimize(loss, [0.1, 0.0], tol=1e-12).x
    assert theirs.facts["platt"]["slope"] == pytest.approx(best[0], rel=1e-4)
    assert theirs.facts["platt"]["offset"] == pytest.approx(best[1] - 30 * best[0], rel=1e-4)
    others = table["logit"].where(of_calibration, table["logit"] * 2 - 9)
    assert detector(table.assign(logit=others), scale="any").facts["platt"] == theirs.facts["platt"]


def test_platt_scaling_stays_finite_where_the_values_divide_the_classes() -> None:
    targets = np.arange(40) % 2
    slope, offset = platt(targets, targets.astype(float))
    assert slope == pytest.approx(2 * logit(21 / 22)) and offset == pytest.approx(-slope / 2)


@pytest.mark.parametrize(
    "values", [-np.arange(40) % 2, np.ones(40), np.array([1e308, -1e308] * 20)]
)
def test_any_numbers_that_do_not_rise_with_fakes_are_refused(values: np.ndarray) -> None:
    targets = (np.arange(40) + (values[0] == 0)) % 2
    with pytest.raises(UserError, match="do not rise from real to fake.*--higher real"):
        fit_platt(targets, values.astype(float), "a.csv")


def test_one_number_far_from_the_others_is_told_from_the_other_polarity() -> None:
    targets = np.arange(60) % 2
    values = np.random.default_rng(0).normal(2.0 * targets, 1)
    values[0] = 1e4
    with pytest.raises(UserError, match=r"no curve .* fits .* between -2.\d+ and 1e\+04; correct"):
        fit_platt(targets, values, "a.csv")


@pytest.mark.parametrize("factor", [1e300, 1e-300])
def test_the_size_of_the_numbers_does_not_matter(place: Path, factor: float) -> None:
    table = scores()
    plain = detector(table, scale="any")
    scaled = detector(table.assign(logit=factor * table["logit"]), scale="any")
    for name in plain.sets:
        ours, theirs = plain.sets[name]["score"], scaled.sets[name]["score"]
        assert theirs.tolist() == pytest.approx(ours.tolist(), abs=1e-9)


def test_probabilities_of_0_and_1_have_logits_and_stay_as_they_are(place: Path) -> None:
    table = scores().assign(probability=lambda t: (t["logit"] > 0).astype(float))
    theirs = detector(table.drop(columns="logit"))
    assert set(theirs.sets["val"]["score"]) == {0.0, 1.0}
    assert np.isfinite(theirs.sets["val"]["logit"]).all()


def test_logits_that_are_tied_as_probabilities_are_counted(place: Path) -> None:
    table = scores()
    table.loc[table["target"] == 1, "logit"] = 100 + np.arange((table["target"] == 1).sum())
    (note,) = detector(table).notes
    assert note.endswith(f"comes between them: {(table['target'] == 1).sum() - 1}.")


# ---------------------------------------------------------------------------------------------
# Missing scores


def test_missing_scores_are_refused_with_their_number(place: Path) -> None:
    table = scores()
    dropped = table.drop([5, 7, 9, 145])
    with pytest.raises(UserError) as caught:
        detector(dropped)
    message = one_line(caught)
    assert "no score for 3 of 80 images of val, 1 of 40 images of web, first v5.jpg" in message
    assert message.endswith("add them, or choose --missing wrong or leave_out")
    with pytest.raises(UserError, match="; 40 rows name no image, first in line 142; add them"):
        detector(table.replace({"set": {"web.set": "test"}}))
    with pytest.raises(UserError, match="none of its rows .*: it has v0.jpg, and the pipeline c10"):
        detector(table.assign(set="test"))


def test_missing_scores_are_left_out(place: Path) -> None:
    table = scores()
    theirs = detector(table.drop([5, 7, 9, 100]), "leave_out")
    val = table[table["img_name"].str.startswith("v")].drop([5, 7, 9])
    assert len(theirs.sets["val"]) == 77 and len(theirs.calibration) == 59
    assert auc(theirs.sets["val"]) == roc_auc_score(val["target"], val["logit"])
    assert theirs.facts["coverage"]["val"] == {"num_images": 80, "num_scored": 77}
    assert theirs.facts["coverage"]["calibration"] == {"num_images": 60, "num_scored": 59}


def test_missing_scores_are_wrong(place: Path) -> None:
    table = scores()
    gone = [4, 5, 7, 100]  # v4.jpg is real
    theirs = detector(table.drop(gone), "wrong")
    rest = table.drop(gone)["logit"]
    filled = table.assign(logit=table["logit"].where(~table.index.isin(gone)))
    wrong = np.where(table["target"] == 1, rest.min(), rest.max())
    filled["logit"] = filled["logit"].fillna(pd.Series(wrong))
    val = filled[filled["img_name"].str.startswith("v")]
    assert theirs.sets["val"]["logit"].tolist() == val["logit"].tolist()
    assert auc(theirs.sets["val"]) < auc(detector(table.drop(gone), "leave_out").sets["val"])
    assert len(theirs.calibration) == 59  # no threshold comes from what was not scored
    assert theirs.facts["coverage"]["val"]["num_scored"] == 77


def test_a_set_without_scores_is_left_out_and_val_must_have_some(place: Path) -> None:
    table = scores()
    theirs = detector(table[table["set"] == "val"], "leave_out")
    assert list(theirs.sets) == ["val"]
    assert theirs.notes == ["Not judged, for lack of scores of both classes: web."]
    only_reals = table[(table["target"] == 0) | ~table["img_name"].str.startswith("v")]
    with pytest.raises(UserError, match="no scores for both classes of val"):
        detector(only_reals, "leave_out")


def test_the_card_says_what_is_missing(
    place: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(scores().drop([5]))
    card = (judge(file, "--missing", "wrong") / "theirs/card.md").read_text()
    printed = capsys.readouterr().out
    assert "theirs: scores: calibration 60 of 60, val 79 of 80, web 40 of 40" in printed
    assert "| val | 80 | 79 |" in card and "| images without a score | judged wrongly" in card
    assert "\n## Limits\n" in card and "is not known" in card
    report = json.loads(Path("metrics/judged/theirs/evaluation.json").read_text())
    assert f"threshold | {report['threshold']:.4f}, from 60 images" in card
    row = pd.read_csv("metrics/judged/theirs/tables/intervals.csv").iloc[0]
    assert (row["set"], row["metric"]) == ("val", "auc")
    assert f"| AUC | {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] |" in card
    assert "val (40 real, 40 fake)" in card


# ---------------------------------------------------------------------------------------------
# Names


def test_names_are_found_in_paths_of_both_kinds(place: Path) -> None:
    table = scores()
    folders = np.where(table.index % 2, "C:\\faces\\", "/faces/")
    files = table.assign(img_name=folders + table["img_name"]).drop(columns="set")
    expected = detector(table).sets["val"]["logit"].tolist()
    assert detector(files).sets["val"]["logit"].tolist() == expected


def test_an_exact_name_goes_before_the_last_part_of_a_path(place: Path) -> None:
    labels = labels_of("evaluation")
    labels.loc[0, "img_name"] = "inner/v0.jpg"  # its last part is an image of val
    put_labels(labels, Path("data/labels/evaluation.csv"))
    table = scores().replace({"img_name": {"e0.jpg": "inner/v0.jpg"}}).drop(columns="set")
    theirs = detector(table)
    assert theirs.sets["web"]["logit"].iloc[0] == table["logit"].iloc[140]
    assert theirs.sets["val"]["logit"].iloc[0] == table["logit"].iloc[0]


def test_the_longest_end_of_a_path_counts(place: Path) -> None:
    """Names of images may have folders, and files of other people more or fewer of them."""
    labels = labels_of("val")
    labels["img_name"] = "fake/" + labels["img_name"]
    labels.loc[0, "img_name"] = "real/v1.jpg"  # beside fake/v1.jpg
    put_labels(labels, Path("data/labels/val.csv"))
    table = scores()
    is_val = table["img_name"].isin(labels_of("val")["img_name"])
    longer = table.copy()
    longer.loc[is_val, "img_name"] = "/data/x/" + labels["img_name"].to_numpy()
    plain = table.drop(index=table.index[:2])
    expected = table["logit"][is_val].tolist()
    assert detector(longer).sets["val"]["logit"].tolist() == expected
    assert detector(plain, "leave_out").sets["val"]["logit"].tolist() == expected[2:]
    with pytest.raises(
        UserError, match=r"v1.jpg is an image of val and of val; give its whole name"
    ):
        detector(table)


def test_other_folders_are_other_images(place: Path) -> None:
    labels = labels_of("val")
    labels["img_name"] = "fake/" + labels["img_name"]
    put_labels(labels, Path("data/labels/val.csv"))
    table = scores()
    is_val = table["img_name"].str.startswith("v")
    for folder, count in (("", 80), ("/ds/fake/", 80), ("C:\\fake\\", 80), ("/ds/real/", 0)):
        names = np.where(is_val, folder + table["img_name"], table["img_name"])
        if count:
            theirs = detector(table.assign(img_name=names).drop(columns="set"))
            assert theirs.facts["coverage"]["val"]["num_scored"] == count
        else:
            with pytest.raises(UserError, match="no score for 80 of 80 images of val"):
                detector(table.assign(img_name=names))


def test_sets_have_short_names_and_unknown_ones_are_told(place: Path) -> None:
    table = scores()
    for name in ("web", "web.set"):
        theirs = detector(table.replace({"set": {"web.set": name}}))
        assert theirs.facts["coverage"]["web"]["num_scored"] == 40
    with pytest.raises(UserError) as caught:
        detector(table.replace({"set": {"web.set": "Web"}}), "leave_out")
    told = "theirs.csv:142: set = Web: there is no such set; write one of test, train, val, web.set"
    assert told in one_line(caught)


@pytest.mark.parametrize("other", ["evaluation", "train"])
def test_a_name_of_two_sets_needs_the_column_set(place: Path, other: str) -> None:
    labels = labels_of(other)
    labels["img_name"] = labels["img_name"].str.replace(other[0], "v")
    put_labels(labels, Path(f"data/labels/{other}.csv"))
    table = scores()
    table["img_name"] = table["img_name"].str.replace("e", "v" if other == "evaluation" else "e")
    theirs = detector(table)
    of_web = table["logit"][table["set"] == "web.set"].tolist()
    assert theirs.sets["web"]["logit"].tolist() == of_web
    with pytest.raises(UserError) as caught:
        detector(table.drop(columns="set"))
    names = sorted(["val", PACKED.get(other, other)])
    assert f"theirs.csv:2: v0.jpg is an image of {names[0]} and of {names[1]}" in one_line(caught)
    assert "column `set`" in str(caught.value)


def test_a_name_that_is_there_twice_is_refused(place: Path) -> None:
    table = scores()
    twice = pd.concat([table, table.iloc[[3]].assign(img_name="/elsewhere/v3.jpg")])
    with pytest.raises(UserError, match=r"theirs.csv:182: /elsewhere/v3.jpg of val .* line 5 "):
        detector(twice)


def test_rows_of_other_images_are_counted_and_no_error(place: Path) -> None:
    table = scores()
    names, sets = ["x`1.jpg", "v1.jpg", "t0.jpg", "t1.jpg"], ["", "test", "train", "test"]
    more = pd.DataFrame({"img_name": names, "set": sets, "logit": 0.0})
    theirs = detector(pd.concat([table, more]))
    assert theirs.notes == [
        "Rows that name no image of the pipeline: 2, first `x'1.jpg` in line 182."
    ]
    assert theirs.facts["num_extra"] == 2
    assert theirs.sets["val"]["logit"].tolist() == detector(table).sets["val"]["logit"].tolist()


# ---------------------------------------------------------------------------------------------
# Mistakes in files and commands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: is empty or begins with an empty line"),
        ("\nname,p_fake\na,0.5\n", "a.csv: is empty or begins with an empty line"),
        ("name,p_fake\n", "has no row"),
        ("name,p_fake\na,0.5\n\nb,nan\n", "a.csv:4: p_fake = nan: not a finite number"),
        ("name,p_fake\na,inf\n", "a.csv:2: p_fake = inf: not a finite number"),
        ("name,p_fake\na,0.5\nb,high\n", "a.csv:3: p_fake = high: not a finite number"),
        ("name,logit\na,1_0\n", "a.csv:2: logit = 1_0: not a finite number"),
        ("name,logit\na,1e999\n", "a.csv:2: logit = 1e999: not a finite number"),
        ("name,p_fake\na,\n", "a.csv:2: p_fake is empty; remove the row"),
        ("name,p_fake\na,1.5\n", "a.csv:2: p_fake = 1.5: not a probability"),
        ("name,score\na,-3\n", "a.csv:2: score = -3: not a probability.*--scale logit"),
        ("name,p_fake\na\n", "a.csv:2: 1 cells, and the header has 2"),
        ("name,p_fake\n,0.5\n", "a.csv:2: the cell name is empty"),
        ('name,p_fake\n"a"b,0.5\n', "a.csv:2: not valid CSV"),
        ('name,p_fake,more\na,0.5,"x\nb,0.5,\nc,0.5,"\n', "a.csv:2: not valid CSV: a quote opens"),
        ('name,p_fake\na,0.5\n"b,0.5\n', "a.csv:3: not valid CSV: a quote opens"),
        ("name,p_fake,,\na,0.5,,\n,,,\nb,2,,\n", "a.csv:4: p_fake = 2: not a probability"),
        ("name,file,p_fake\na,b,0.5\n", "name, file are columns for --name-column; choose one"),
        ("name,logit,score\na,1,0.5\n", "logit, score are columns for --score-column; choose"),
        ("name,p_fake,p_fake\na,1,0.5\n", "p_fake, p_fake are columns for --score-column"),
        ("name,set,set,logit\na,b,c,1\n", "the column 'set' is there twice"),
        ("name;p_fake\na;0.5\n", "a.csv: its cells are separated by semicolons; write commas"),
        ("name\tp_fake\na\t0.5\n", "a.csv: its cells are separated by tabs; write commas"),
        ("name,certainty\na,0.5\n", "no column logit, score.*or fake among name, certainty"),
        ("name,prediction\na,0.5\n", "prediction does not say what its numbers are; give --scale"),
        ("name,p_fake\na,0.5\xff\n", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    if text is not None:
        (folder / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        read_score_file(Request(folder / "a.csv", "a"))
    one_line(caught)


def test_columns_are_named_or_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('﻿Who,Path,Fake,logit\nx,"b, 1.jpg",0.25,2\n')
    request = Request(tmp_path / "a.csv", "a", score_column="Fake", scale="probability")
    (row,) = read_score_file(request).rows
    assert (row.line, row.name, row.value) == (2, "b, 1.jpg", pytest.approx(logit(0.25)))
    request = Request(tmp_path / "a.csv", "a", name_column="Who", score_column="logit")
    file = read_score_file(request)
    assert (file.rows[0].name, file.rows[0].value, file.scale) == ("x", 2, "logit")
    with pytest.raises(UserError, match="no column logits among .*; did you mean logit"):
        read_score_file(Request(tmp_path / "a.csv", "a", score_column="logits"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/x.csv", "b/x.csv"], "detector x: the name is taken; give others by --names"),
        (["a.csv", "A.csv"], "detector A: the name is taken"),
        (["./own.csv"], "detector own: the name is taken"),
        (["own", "own"], "own: named twice"),
        (["my scores.csv"], "detector my scores: not a plain name"),
        (["a.csv", "--names", "../b"], "detector ../b: not a plain name"),
        (["a.csv", "--names", "comparison.csv"], "the name is taken"),
        (["a.csv", "b.csv", "--names", "c"], "--names c: 1 values for 2 files"),
        (["a.csv", "b.csv", "--scale", "any,any,any"], "--scale any,any,any: 3 values for 2"),
        (["a.csv", "--scale", "logits"], "--scale logits: choose .*; did you mean logit"),
        (["a.csv", "--higher", "both"], "--higher both: choose fake or real"),
        (["a.csv", "--missing", "zero"], "--missing"),
        ([], "SCORES; see --help"),
        (["own", "--perturbed", "p.csv"], "--perturbed: is for score files, and own is none"),
        (["own", "--missing", "wrong"], "--missing: is for score files"),
        (["own", "--name-column", "a"], "--name-column: is for score files"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tool.requests_of(tool.parse(arguments))
    one_line(caught)


def test_options_are_for_all_files_or_for_each() -> None:
    command = ["a.csv", "own", "b.csv", "--scale", "any", "--higher", "real,fake"]
    first, ours, second = tool.requests_of(tool.parse(command))
    assert ours is None and first and second
    assert (first.name, first.scale, first.higher) == ("a", "any", "real")
    assert (second.name, second.scale, second.higher) == ("b", "any", "fake")


def test_the_command_ends_with_1_and_one_line(place: Path) -> None:
    command = (sys.executable, "-m", "stages.tools.judge", "none.csv")
    done = run(*command, cwd=place, check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: none.csv: ") and done.stderr.count("\n") == 1


def test_what_the_pipeline_lacks_is_named_before_anything_is_judged(
    place: Path, judge: Judge
) -> None:
    with pytest.raises(UserError, match="data/scores/views.json: no such file; run `dvc repro"):
        judge("own")
    Path("metrics/data.json").write_text("{")
    with pytest.raises(UserError, match="metrics/data.json: damaged: .*; run `dvc repro` to"):
        judge(write(scores()))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    content = b"name,logit\na,1\n"
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    file = read_score_file(Request(tmp_path / "pipe", "theirs"))
    writer.join()
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert len(file.rows) == 1


def test_only_a_folder_of_the_command_is_replaced(place: Path, judge: Judge) -> None:
    file = write(scores())
    for out in ("data", ".", "params.yaml", "params.yaml/in"):
        with pytest.raises(UserError, match="exists with other things"):
            judge(file, "--out", out)
    (judge(file, "--out", "new") / "theirs/mine.txt").touch()
    with pytest.raises(UserError, match="exists with other things"):
        judge(file, "--out", "new")
    assert Path("new/theirs/mine.txt").exists() and Path("data/labels/val.csv").exists()


def test_what_fails_leaves_the_older_results(
    place: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(scores(), "a.csv"), write(scores(seed=1), "b.csv")]
    out = judge(files[0])
    before = (out / "a/card.md").read_bytes()
    monkeypatch.setattr(tool, "write_comparison", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge(*files)
    assert [path.name for path in out.iterdir()] == ["a"]
    assert (out / "a/card.md").read_bytes() == before
    assert not list(out.parent.glob(".*"))


# ---------------------------------------------------------------------------------------------
# Detectors side by side


def scored(targets: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    columns = {"target": targets, "logit": logits, "score": expit(logits), "group": groups}
    return pd.DataFrame(columns)


def pair(num: int, seed: int, gain: float) -> dict[str, pd.DataFrame]:
    """Return the scores of two detectors that share noise; one is better by its distance."""
    random = np.random.default_rng(seed)
    targets = np.arange(num) % 2
    shared = random.normal(0, 0.7, num)
    tables = {}
    for name, distance in (("weak", 1.0), ("strong", 1.0 + gain)):
        logits = distance * targets + shared + random.normal(0, 0.7, num)
        tables[name] = scored(targets, logits, np.arange(num))
    return tables


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    clear = compare_on("val", pair(400, 0, gain=1.0))
    (row,) = clear.pairs.to_dict("records")
    assert (row["first"], row["second"], row["is_significant"]) == ("strong", "weak", True)
    assert row["difference"] == row["auc_first"] - row["auc_second"] > 0.05
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert (row["num_real"], row["num_fake"]) == (200, 200)
    assert [name for name, _ in clear.ranking] == ["strong", "weak"]
    assert "strong is significantly better than weak (" in words(clear.pairs.iloc[0])
    none = compare_on("val", pair(400, 1, gain=0.0))
    assert not none.pairs["is_significant"].iloc[0]
    assert "do not differ significantly" in words(none.pairs.iloc[0])


def test_near_duplicates_make_no_difference_significant() -> None:
    tables = pair(60, 3, gain=0.4)
    repeated = {name: pd.concat([table] * 30) for name, table in tables.items()}
    alone = {name: table.assign(group=np.arange(1800)) for name, table in repeated.items()}
    once, often = compare_on("val", tables).pairs.iloc[0], compare_on("val", repeated).pairs.iloc[0]
    assert often["p_delong"] == pytest.approx(once["p_delong"])
    assert often["high"] - often["low"] == pytest.approx(once["high"] - once["low"])
    assert not once["is_significant"] and not often["is_significant"]
    # Where they are taken for independent:
    assert compare_on("val", alone).pairs.iloc[0]["is_significant"]


@pytest.mark.parametrize("groups", [np.zeros(40), np.arange(40) % 2, np.arange(40) % 12])
def test_few_groups_show_nothing(groups: np.ndarray) -> None:
    targets = np.arange(40) % 2
    right, same = scored(targets, 4.0 * targets - 2, groups), scored(targets, np.zeros(40), groups)
    tables = {"right": right, "same": same}
    row = compare_on("val", tables).pairs.iloc[0]
    assert (row["first"], row["difference"], row["p_holm"]) == ("right", 0.5, 1.0)
    assert not row["is_significant"] and "do not differ significantly" in words(row)
    assert np.isnan(row["low"]) == (len(np.unique(groups)) < 3)


def test_only_images_that_count_for_all_detectors_are_compared(place: Path) -> None:
    table = scores()
    weak = table.assign(logit=table["logit"] + np.random.default_rng(9).normal(0, 2, len(table)))
    strong_detector = detector(table.drop([4, 5, 6]), "leave_out")
    weak_detector = replace(detector(weak.drop([6, 7]), "leave_out"), name="weak")
    val, web, pooled = compare([strong_detector, weak_detector])
    assert (val.num_real, val.num_fake, web.num_real) == (38, 38, 20)
    assert (pooled.num_real, pooled.num_fake) == (58, 58)
    kept = table[table["img_name"].str.startswith("v")].drop([4, 5, 6, 7])
    expected = roc_auc_score(kept["target"], kept["logit"])
    assert val.ranking[0][1].value == pytest.approx(expected, abs=1e-12)
    same = table["logit"][kept.index].to_numpy(), weak["logit"][kept.index].to_numpy()
    assert val.pairs["p_delong"].iloc[0] == pytest.approx(
        delong_p(kept["target"].to_numpy(), *same, np.arange(len(kept)))
    )


def test_detectors_without_common_images_cannot_be_compared(place: Path, judge: Judge) -> None:
    table, half = scores(), np.arange(180) % 4 < 2
    write(table[half], "a.csv")
    write(table[~half], "b.csv")
    with pytest.raises(UserError, match="no scores for the same images"):
        judge("a.csv", "b.csv", "--missing", "leave_out")
    assert not Path("metrics/judged").exists()


def test_three_detectors_are_ranked_in_words(
    place: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    table = scores(distance=3.0)
    files = [
        write(table, "good.csv"),
        write(table.assign(logit=2 * table["logit"] + 1), "twin.csv"),
        write(scores(seed=5, distance=0.1), "bad.csv"),
    ]
    out = judge(*files)
    text, pairs = (out / "comparison.md").read_text(), pd.read_csv(out / "comparison.csv")
    assert "was trained on" not in text  # of these detectors nobody knows
    assert text in capsys.readouterr().out
    of_val = pairs[pairs["set"] == "val"].set_index(["first", "second"])
    significant = of_val["is_significant"].to_dict()
    assert significant == {("good", "twin"): False, ("good", "bad"): True, ("twin", "bad"): True}
    assert of_val["p_holm"].tolist() == pytest.approx(holm(of_val["p_delong"].to_numpy()).tolist())
    assert "| 1 | good | " in text and "| 3 | bad | " in text
    assert "- good and twin do not differ significantly (+0.0000 [+0.0000, +0.0000]" in text
    assert "- good is significantly better than bad (" in text
    assert text.index("## val (40 real, 40 fake)") < text.index("## web (20 real, 20 fake)")


def test_holms_correction_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.7, 0.6])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.02])).tolist() == [0.02]


# ---------------------------------------------------------------------------------------------
# A detector that was called, and perturbed images


def own_scores(photos: list[np.ndarray]) -> list[float]:
    """Score images as the pipeline in this folder does: a detector that can be called."""
    detector, config = load_detector(paths.MODEL)
    how = config.preprocessing
    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in photos]
    images = torch.stack([input_of(crop_of(image, how), how) for image in pixels])
    with torch.inference_mode():
        return torch.sigmoid(fake_logit(detector(images)).double()).tolist()


def test_our_own_detector_called_gives_what_the_pipeline_has(
    pipeline: Path, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same metrics of all sets, and the same robustness, up to what another batch rounds."""
    monkeypatch.chdir(pipeline)
    file, perturbed = tmp_path / "called.csv", tmp_path / "perturbed.csv"
    command = ["score", "tests.test_judge:own_scores", "--out", file, "--perturbed", perturbed]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
    score_tool.main()
    out = judge(file, "own", "--perturbed", perturbed, "--out", tmp_path / "judged")
    called = json.loads((out / "called/evaluation.json").read_text())
    own = json.loads((out / "own/evaluation.json").read_text())
    assert called["robustness"] == pytest.approx(own["robustness"], abs=1e-6)
    assert own["robustness"] == json.loads(paths.EVALUATION.read_text())["robustness"]
    assert called["val"]["auc"] == pytest.approx(own["val"]["auc"], abs=1e-6)
    table = pd.read_csv(out / "called/tables/robustness.csv")
    ours = pd.read_csv("metrics/tables/robustness.csv")
    assert table["auc"].tolist() == pytest.approx(ours["auc"].tolist(), abs=1e-6)
    card = (out / "called/card.md").read_text()
    assert "## Robustness" in card and "What perturbed images do" not in card


def test_perturbed_scores_that_do_not_fit_are_refused(place: Path, judge: Judge) -> None:
    file = write(scores())
    plain = pd.DataFrame({"img_name": [f"v{i}.jpg" for i in range(10)], "logit": np.arange(10) % 3})
    plain = plain.assign(perturbation="none", level=0.0)
    jpeg = plain.assign(perturbation="jpeg", level=30.0)
    perturbed = pd.concat([plain, jpeg], ignore_index=True)
    for bad, message in (
        (perturbed[1:], "needs the same images of both classes for each perturbation"),
        (perturbed[10:], "needs the same images"),
        (perturbed.replace("v3.jpg", "x.jpg"), "x.jpg is no judged image of val"),
        (perturbed.assign(logit="a"), "p.csv:2: logit = a: not a finite number"),
        (perturbed.assign(level="a"), "p.csv:2: level = a: not a number"),
        (pd.concat([perturbed, perturbed[12:13]]), "p.csv:22: v2.jpg has a score for jpeg 30.0 in"),
        (perturbed.drop(index=12).replace("v3.jpg", "v12.jpg"), "needs the same images"),
        (perturbed[:10], "needs the same images of both classes for each perturbation"),
        (perturbed[perturbed["img_name"].isin(["v1.jpg", "v3.jpg"])], "of both classes"),
        (perturbed.drop(columns="level"), "p.csv: needs one column level, has 0; write it with"),
    ):
        bad.to_csv("p.csv", index=False)
        with pytest.raises(UserError, match=message) as caught:
            judge(file, "--perturbed", "p.csv")
        one_line(caught)
    outputs = []
    for order in (perturbed, perturbed.sample(frac=1, random_state=0)):
        order = order.sort_values("perturbation", ascending=False, kind="stable")
        order.assign(img_name="/x/" + order["img_name"]).to_csv("p.csv", index=False)
        out = judge(file, "--perturbed", "p.csv") / file.stem
        outputs.append((out / "tables/robustness.csv").read_text())
        outputs.append(json.loads((out / "evaluation.json").read_text())["robustness"])
    assert outputs[:2] == outputs[2:] and len(outputs[0].splitlines()) == 3
