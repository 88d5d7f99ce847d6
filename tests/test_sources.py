"""Several sets to train on: packed by themselves, split without a leak, audited, held out."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import pack, predict, prepare, train
from stages.lib.audit.groups import group_images
from stages.lib.audit.splits import split
from stages.lib.core.errors import UserError
from stages.lib.core.labels import name_of_place, read_labels
from stages.lib.core.tables import read_scores
from stages.lib.data.params import DataParams
from stages.lib.images.packed_images import PackedImages, read_facts
from stages.lib.score_files.matching import ImageIndex
from stages.lib.score_files.reading import ScoreRow
from tests.conftest import ROOT, TINY, clone_project, draw_dataset, run, set_params
from tests.test_pack import count_reads, packed_files
from tests.test_prepare import facts, report, write_facts

LEARNT = ("train", "val", "calibration")
DFDC, GAN = "training/dfdc.set", "training/gan.set"
Sets = dict[str, pd.DataFrame]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"data.root": "/data/lfw"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the audit only count, which takes a twentieth of the time."""
    monkeypatch.setattr("stages.lib.audit.shortcuts.shortcuts", lambda rows, seed: {})


def prepared(workspace: Path, sets: Sets, names: tuple[str, ...] = ("dfdc",), **more: Any) -> Sets:
    """Write these facts, prepare with training sets of these names, return the label tables."""
    empty = {f"training/{name}.set/{part}": facts(0, 9) for name in names for part in LEARNT[:2]}
    write_facts(workspace, empty | sets)
    changes = {f"prepare.{name}": value for name, value in more.items()}
    set_params(workspace, changes | {"data.training_sets": dict.fromkeys(names, "x")})
    prepare.main()
    return {path.stem: read_labels(path) for path in Path("data/labels").glob("*.csv")}


def two_sets() -> Sets:
    """Return facts of data.root with a val, and of a training set without one."""
    return {
        "train": facts(60, 0),
        "val": facts(40, 1),
        "test": facts(9, 2),
        f"{DFDC}/train": facts(100, 3),
    }


def groups_in_two_sets(labels: Sets) -> set[int]:
    """Return the groups that are in two of the sets that a detector is trained or chosen on."""
    groups = pd.concat([labels[name]["group"].drop_duplicates() for name in LEARNT])
    return set(groups[groups.duplicated()])


# ---------------------------------------------------------------------------------------------
# Packing


def draw_tree(root: Path, seed: int, parts: tuple[str, ...] = ("train", "val")) -> Path:
    """Draw a set in the layout `folders`, four images in each part; parts: of its name."""
    for part in parts:
        drawn = draw_dataset(root / "drawn", {"train": 4}, size=40 + seed)
        for index, path in enumerate(sorted(drawn.rglob("*.jpg"))):
            target = root / part / ("real", "fake")[index % 2] / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        shutil.rmtree(drawn)
    return root


def test_adding_a_training_set_packs_only_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_tree(workspace / "lfw", 0)
    draw_tree(workspace / "dfdc", 1, ("train", "val", "test"))
    set_params(workspace, {"data.root": "lfw"})
    pack.main()
    before = packed_files()
    set_params(workspace, {"data.training_sets": {"dfdc": "dfdc"}})
    read = count_reads(monkeypatch)
    pack.main("training/dfdc")
    assert len(read) == 8  # of train and val; the test set is nothing to train on
    after = packed_files()
    assert {name: after[name] for name in before} == before
    assert {str(Path(name).parent) for name in set(after) - set(before)} == {
        f"data/packed/{DFDC}/{part}" for part in ("train", "val")
    }
    assert len(PackedImages(Path(f"data/packed/{DFDC}/train"))) == 4
    set_params(workspace, {"data.root": "dfdc", "data.training_sets": {"lfw": "lfw"}})
    pack.main()
    pack.main("training/lfw")
    assert len(read) == 8 + 4  # its test set; what is another source now is not read again


def test_a_training_set_may_lack_all_but_train(workspace: Path) -> None:
    draw_tree(workspace / "one", 0, ("train",))
    draw_tree(workspace / "two", 1, ("val",))
    set_params(workspace, {"data.training_sets": {"one": "one", "two": "two", "gone": "nowhere"}})
    pack.main("training/one")
    assert read_facts(Path("data/packed/training/one.set/val")).empty
    for name, words in (
        ("two", "two: has no training set, only val"),
        ("gone", "data.training_sets.gone = 'nowhere' is not a folder"),
        ("three", r"a name of data.training_sets \(one, two, gone\), not 'three'"),
    ):
        with pytest.raises(UserError, match=words):
            pack.main(f"training/{name}")


def test_dvc_gives_the_name_of_a_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stages.pack"])
    for stage, wanted in (
        ("pack", ""),
        ("pack_set@dfdc", "dfdc"),
        ("pack_training_set@dfdc", "training/dfdc"),
        ("pack_training_set@../../x", "training/../../x"),  # which is checked: see below
    ):
        monkeypatch.setenv("DVC_STAGE", stage)
        assert pack.wanted_set() == wanted


@pytest.mark.parametrize("name", ["../../raw", "a b", "train", "held_out_lfw", "worst", "lfw"])
def test_the_name_of_a_training_set_is_checked_before_anything_is_written(
    workspace: Path, name: str
) -> None:
    set_params(workspace, {"data.training_sets": {name: "raw"}})
    words = "training_sets.lfw: .* data.root = '/data/lfw' has this name too"
    for stage in (lambda: pack.main(f"training/{name}"), prepare.main):
        with pytest.raises(
            UserError, match=words if name == "lfw" else "name the set with letters"
        ):
            stage()
    assert not (workspace / "data").exists()


def test_drawn_faces_are_not_mixed_with_photographs(workspace: Path) -> None:
    set_params(
        workspace, {"data.training_sets": {"dfdc": "x"}, "data.root": "data/raw/../raw/sample"}
    )
    for stage in (lambda: pack.main("training/dfdc"), prepare.main):
        with pytest.raises(UserError, match="data.root is the generated sample, .* do not mix"):
            stage()


def test_data_root_is_a_source_by_the_name_of_its_folder() -> None:
    for root, name in (("/data/lfw/", "lfw"), ("a/../b c", "b c"), ("/x/faces (1)", "faces (1)")):
        assert DataParams.model_construct(root=root).root_source == name


# ---------------------------------------------------------------------------------------------
# Splitting


@pytest.mark.usefixtures("no_shortcuts")
def test_each_set_is_split_by_itself(workspace: Path) -> None:
    sets = two_sets()
    alone = prepared(workspace, sets, ())
    assert alone["train"]["source"].isna().all()
    labels = prepared(workspace, sets)
    for name in (*LEARNT, "test"):
        own = labels[name].query("source == 'lfw'").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, alone[name].assign(source=own["source"]))
    counts = {name: labels[name]["source"].value_counts().to_dict() for name in LEARNT}
    assert counts["train"] == {"lfw": 60, "dfdc": 80}
    assert counts["val"] == {"lfw": 30, "dfdc": 15}
    assert counts["calibration"] == {"lfw": 10, "dfdc": 5}
    for name in LEARNT:
        assert labels[name].groupby("source")["target"].nunique().eq(2).all()
    places = {place for name in LEARNT for place in labels[name]["set"]}
    assert places == {"training/train", "training/val", f"{DFDC}/train"}
    assert {*map(name_of_place, places)} == {"train", "val", "dfdc/train"}
    of_dfdc = pd.concat([labels[name].query("source == 'dfdc'") for name in LEARNT])
    assert sorted(of_dfdc["row"]) == list(range(100))


def split_parts(parts: dict[tuple[str, str], pd.DataFrame], seed: int = 0) -> Sets:
    """Group and split as `prepare` does; parts: by the data set and train or val."""
    tables = [
        pd.DataFrame({"given_group": None, "video": None}, index=rows.index)
        .assign(**dict(rows.items()))
        .assign(data_set=data_set, part=part)
        for (data_set, part), rows in parts.items()
    ]
    own = pd.concat(tables, ignore_index=True)
    return split(own.assign(group=group_images(own, 3)), 0.2, 0.25, seed)


@pytest.mark.parametrize("seed", range(20))
def test_no_split_divides_a_group_of_several_sets(seed: int) -> None:
    """Near-duplicates across three sets, each of which may bring a val or not."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**63, 400, dtype=np.uint64)
    parts = {}
    for number, brings_val in enumerate(random.integers(0, 2, 3)):
        for part, count in (("train", 90), ("val", 60 * brings_val)):
            pool = hashes[random.choice(400, count, replace=False)]
            flips = np.uint64(1) << random.integers(0, 64, count, dtype=np.uint64)
            parts[f"set {number}", part] = facts(count, 10 * number, phash=pool ^ flips)
    sets = split_parts(parts, seed)
    table = pd.concat(sets)
    brings_val = table["data_set"].isin(table.loc[table["part"] == "val", "data_set"])
    brought = table[brings_val].groupby("group")["part"].nunique()
    assert groups_in_two_sets(sets) <= set(brought[brought == 2].index)
    assert not set(sets["val"]["group"]) & set(sets["calibration"]["group"])
    for name, of_set in sets.items():
        assert of_set["data_set"].nunique() == 3, name


def test_a_set_that_is_all_near_duplicates_follows_the_first_one() -> None:
    """The same photographs, with fakes of another generator: nothing is left to draw."""
    first = facts(80, 0)
    second = facts(80, 1, phash=first["phash"])
    sets = split_parts({("first", "train"): first, ("second", "train"): second})
    assert groups_in_two_sets(sets) == set()
    for table in sets.values():
        assert table["data_set"].value_counts().nunique() == 1


def test_names_of_groups_and_videos_of_two_sets_are_apart() -> None:
    first = facts(80, 0, given_group=[f"person {i // 4}" for i in range(80)])
    second = first.assign(phash=facts(80, 1)["phash"], video=[f"clip {i // 8}" for i in range(80)])
    first["video"] = ["clip 9"] * 8 + [None] * 72
    table = pd.concat(split_parts({("first", "train"): first, ("second", "train"): second}))
    assert table.groupby("group")["data_set"].nunique().eq(1).all()
    assert table.groupby("data_set")["group"].nunique().to_dict() == {"first": 19, "second": 10}


@pytest.mark.usefixtures("no_shortcuts")
def test_groups_that_sets_themselves_divide_are_counted(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = two_sets() | {f"{DFDC}/val": facts(40, 4)}
    sets[f"{DFDC}/val"].loc[:2, "phash"] = sets["train"]["phash"][:3].to_numpy()
    prepared(workspace, sets)
    across = report(workspace)["duplicates"]["groups_across_sets"]
    assert across["train/val"] + across["train/calibration"] == 3
    assert "WARNING: " in capsys.readouterr().out


def test_too_few_groups_are_told_with_the_parameter_of_the_set(workspace: Path) -> None:
    sets = two_sets() | {f"{DFDC}/train": facts(4, 3, given_group="one")}
    with pytest.raises(
        UserError, match="data.training_sets.dfdc: 4 images in 1 groups are too few"
    ):
        prepared(workspace, sets)


@pytest.mark.usefixtures("no_shortcuts")
def test_a_set_that_params_do_not_name_any_more_is_removed(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC leaves its folder, which would train again whatever is trained without it."""
    sets = two_sets() | {"web.set": facts(40, 5)}
    prepared(workspace, sets)
    assert "data/packed/web.set: no set of params.yaml any more, removed" in capsys.readouterr().out
    assert sorted(path.name for path in Path("data/packed").iterdir()) == ["test", "training"]
    set_params(workspace, {"data.training_sets": {}})
    prepare.main()
    assert sorted(path.name for path in Path("data/packed/training").iterdir()) == ["train", "val"]


# ---------------------------------------------------------------------------------------------
# Sources held out


@pytest.mark.usefixtures("no_shortcuts")
def test_nothing_of_a_source_that_is_held_out_is_learnt(workspace: Path) -> None:
    sets = two_sets() | {f"{GAN}/train": facts(80, 4), f"{GAN}/val": facts(40, 5)}
    hashes = sets[f"{GAN}/val"]["phash"].to_numpy() ^ np.uint64(1)
    sets["train"].loc[[3, 8], "phash"] = hashes[:2]
    sets["val"].loc[0, "phash"] = hashes[2]
    sets[f"{DFDC}/train"].loc[0, "phash"] = hashes[3]
    whole = prepared(workspace, sets, ("dfdc", "gan"))
    assert whole["held_out_sources"].empty
    part = prepared(workspace, sets, ("dfdc", "gan"), hold_out_sources=["gan"])
    held_out = part["held_out_sources"]
    expected = pd.concat([whole["val"], whole["calibration"]]).query("source == 'gan'")
    pd.testing.assert_frame_equal(
        held_out.sort_values("row", ignore_index=True),
        expected.sort_values("row", ignore_index=True),
    )
    for name in LEARNT:
        table = whole[name]
        kept = table[(table["source"] != "gan") & ~table["group"].isin(held_out["group"])]
        pd.testing.assert_frame_equal(part[name], kept.reset_index(drop=True))
        assert not set(part[name]["group"]) & set(held_out["group"])
    pd.testing.assert_frame_equal(part["test"], whole["test"])
    told = report(workspace)
    assert told["held_out_sources"] == {"gan": {"real": 20, "fake": 20}}
    assert told["near_held_out_sources"] == 4
    assert told["duplicates"]["groups_across_sets"]["train/held_out_sources"] == 0
    assert set(told["sources"]["train"]) == {"lfw", "dfdc"}


@pytest.mark.usefixtures("no_shortcuts")
def test_sources_of_a_manifest_are_held_out_and_split_together(workspace: Path) -> None:
    train, val = facts(80, 0), facts(80, 1)
    for table in (train, val):
        table["source"] = np.where(np.arange(80) % 8 < 4, "web", "studio")
        table["family"] = [None, "swap", None, "morph"] * 20
    whole = prepared(workspace, {"train": train, "val": val}, ())
    expected = {"real": 20, "fake": 20}
    part = prepared(workspace, {"train": train, "val": val}, (), hold_out_sources=["web"])
    assert report(workspace)["held_out_sources"] == {"web": expected}
    for name in LEARNT:
        kept = whole[name].query("source == 'studio'").reset_index(drop=True)
        pd.testing.assert_frame_equal(part[name], kept)
    both = {"hold_out_sources": ["web"], "hold_out_families": ["morph"]}
    labels = prepared(workspace, {"train": train, "val": val}, (), **both)
    assert set(labels["held_out"]["source"]) == {"studio"}
    assert set(labels["held_out"]["family"]) == {"morph"}
    pd.testing.assert_frame_equal(labels["held_out_sources"], part["held_out_sources"])


def test_a_source_that_cannot_be_held_out_is_refused(workspace: Path) -> None:
    sets = two_sets() | {f"{GAN}/train": facts(40, 4), f"{GAN}/val": facts(40, 5, target=0)}
    for sources, words in (
        (["dfcd"], "hold_out_sources: .* of 'dfcd'; it has dfdc, gan, lfw; did you mean dfdc"),
        (["gan"], r"the held_out_gan set \(40 images\) has no fake image"),
        (["lfw", "dfdc"], "the val set .* has no fake image"),
    ):
        with pytest.raises(UserError, match=words):
            prepared(workspace, sets, ("dfdc", "gan"), hold_out_sources=sources)
    assert not Path("data/labels").exists()


# ---------------------------------------------------------------------------------------------
# The audit


def test_sources_with_other_shares_of_fakes_are_shouted_at(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"train": facts(100, 0), "val": facts(12, 1)}
    sets |= {f"{DFDC}/train": facts(100, 2, width=128), f"{DFDC}/val": facts(12, 3, width=128)}
    prepared(workspace, sets)
    told = report(workspace)["sources"]
    assert told["told_apart"] == {"train": {"auc": 0.5}, "val": {"auc": 0.5}}
    figures = told["train"]["dfdc"]
    assert (figures["real"], figures["fake"], figures["num_groups"]) == (50, 50, 100)
    assert 0.5 <= figures["shortcuts"]["num_bytes"] < 0.7
    printed = capsys.readouterr().out
    assert "\n    lfw: 50 real, 50 fake, 100 groups\n" in printed
    assert "train.balance" not in printed
    sets[f"{DFDC}/train"]["target"] = ([1] + [0] * 9) * 10
    prepared(workspace, sets)
    apart = report(workspace)["sources"]["told_apart"]
    assert apart["val"] == {"auc": 0.5}
    expected = 0.5 + 0.5 * (50 / 60 - 50 / 140)  # of a score with two values
    assert apart["train"]["auc"] == pytest.approx(expected, abs=1e-3)
    assert apart["train"]["facts"]["width"] == 1.0
    assert "num_bytes" not in apart["train"]["facts"]
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "train.balance" in line]
    assert line.startswith("WARNING: ") and "width (1.000)" in line


def test_one_source_of_both_classes_is_none(workspace: Path) -> None:
    """As where folders name the source of reals alone."""
    table = facts(80, 1)
    table["source"] = ["a", None, "b", None] * 20
    prepared(workspace, {"train": facts(80, 0), "val": table}, ())
    assert not {"sources", "held_out_sources"} & set(report(workspace))


# ---------------------------------------------------------------------------------------------
# With DVC, and on to the scores


@pytest.mark.usefixtures("no_shortcuts")
def test_a_source_that_is_held_out_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    counts = {"train": 40, "val": 40}
    one, two = draw_dataset(tmp_path / "one", counts), draw_dataset(tmp_path / "two", counts, 56)
    changes = {"data.root": str(one), "data.training_sets": {"two": str(two)}}
    set_params(tmp_path, TINY | changes | {"prepare.hold_out_sources": ["two"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("TRACKING", "off")
    set_params(tmp_path, {"train.epochs": 1})
    pack.main()
    pack.main("training/two")
    for stage in (prepare, train, predict):
        stage.main()
    labels = read_labels(Path("data/labels/held_out_sources.csv"))
    scores = read_scores(Path("data/scores/held_out_sources.csv"))
    assert labels["img_name"].tolist() == scores["img_name"].tolist() and len(labels) == 40
    assert scores["low"].notna().all()
    views = json.loads(Path("data/scores/views.json").read_text())
    assert "held_out_sources" in views["scores"] and "held_out_sources" in views["labels"]


def test_a_score_file_names_the_parts_of_a_training_set() -> None:
    places = ["training/val", f"{DFDC}/val", f"{GAN}/train"]
    table = pd.DataFrame({"img_name": "a.jpg", "set": places, "row": 0, "target": [0, 0, None]})
    index = ImageIndex({"val": table})
    for name, image in (
        ("val", ("training/val", 0)),
        ("dfdc/val", (f"{DFDC}/val", 0)),
        (f"{DFDC}/val", (f"{DFDC}/val", 0)),
        ("gan/train", None),  # which is not judged
    ):
        assert index.find(ScoreRow(2, "a.jpg", name, 0.5, ()), "theirs.csv") == image


@pytest.mark.slow
def test_dvc_packs_only_a_set_that_is_added_and_trains_again_only_for_training_sets(
    tmp_path: Path,
) -> None:
    roots = [draw_dataset(tmp_path / name, {"train": 40, "val": 40}, size)
             for name, size in (("one", 48), ("two", 52), ("three", 56))]  # fmt: skip
    one, two, three = map(str, roots)
    clone = clone_project(tmp_path / "clone", TINY | {"train.epochs": 1})

    def stages_of(**data: Any) -> list[str]:
        """Return the stages that really run, not those whose results DVC has."""
        set_params(clone, {f"data.{name}": value for name, value in data.items()})
        done = run("dvc", "repro", "predict", cwd=clone, TRACKING="off")
        lines = done.stdout.splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    rest = ["prepare", "train", "predict"]
    alone = stages_of(root=one)
    assert alone == ["pack", *rest]
    assert stages_of(training_sets={"two": two}) == ["pack_training_set@two", *rest]
    listed = run("dvc", "stage", "list", "--name-only", cwd=clone).stdout.split()
    assert "pack_training_set@two" in listed
    added = stages_of(training_sets={"two": two, "three": three})
    assert added == ["pack_training_set@three", *rest]
    # An evaluation set trains nothing again.
    added = stages_of(evaluation_sets={"three": three})
    assert added == ["pack_set@three", "prepare", "predict"]
    # Without its folder, data/packed/training is what it was: DVC has the detector still.
    assert stages_of(training_sets={"two": two}, evaluation_sets={}) == ["prepare"]
    assert stages_of(training_sets={}) == ["prepare"]
    assert "up to date" in run("dvc", "repro", "predict", cwd=clone).stdout
