"""Labels: near-duplicates, splits by group, bad images, and the audit's shouting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stages import pack, prepare
from stages.lib.audit.groups import near_duplicate_groups
from stages.lib.audit.splits import choose_groups
from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.labels import read_labels
from stages.lib.data.image_facts import FACTS_SCHEMA, IMAGE_CUES
from stages.lib.data.params import ROOT_FOLDERS
from tests.conftest import ROOT, set_params

FACE_SWAPS = ROOT.parent / "shared/data/lfw_faceswap"
SETS = ("train", "val", "calibration", "test")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def facts(count: int, seed: int, **columns: Any) -> pd.DataFrame:
    """Return facts of `count` good images, reals and fakes in turn, alike in every cue."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "img_name": [f"{seed}-{i}.jpg" for i in range(count)],
            "target": np.arange(count) % 2,
            "family": None,
            "source": None,
            "error": None,
            "num_bytes": random.integers(1000, 2000, count),
            "sha256": [f"{seed}-{i}" for i in range(count)],
            "format": "JPEG",
            "mode": "RGB",
            "width": 64,
            "height": 64,
            "phash": random.integers(0, 2**63, count, dtype=np.uint64),
            "jpeg_tables": random.choice(["a", "b", "c"], count),
            "jpeg_quality": 80,
            **{cue: random.normal(0, 1, count) for cue in IMAGE_CUES},
        }
    )
    return table.assign(**columns)


def write_facts(folder: Path, sets: dict[str, pd.DataFrame]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in {"train", "val", "test", *sets}:
        place = folder / "data/packed" / ROOT_FOLDERS.get(name, name)
        place.mkdir(parents=True, exist_ok=True)
        rows = sets.get(name, facts(0, 9)).to_dict("records")
        table = pa.Table.from_pylist(
            [{k: None if pd.isna(v) else v for k, v in row.items()} for row in rows], FACTS_SCHEMA
        )
        pq.write_table(table, place / "facts.parquet")
        write_digest(place / "facts.parquet")


def labels(workspace: Path) -> dict[str, pd.DataFrame]:
    return {name: read_labels(workspace / f"data/labels/{name}.csv") for name in SETS}


def report(workspace: Path) -> dict[str, Any]:
    return json.loads((workspace / "metrics/data.json").read_text())


@pytest.mark.parametrize("max_bits", range(8))
def test_groups_are_those_of_comparing_every_pair(max_bits: int) -> None:
    random = np.random.default_rng(max_bits)
    centers = random.integers(0, 2**63, 40, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(0, 64, (6, 400), dtype=np.uint64)
    hashes = random.choice(centers, 400)
    for flip in flips:
        hashes = np.where(random.random(400) < 0.6, hashes ^ flip, hashes)
    close = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= max_bits
    expected = connected_components(coo_matrix(close), directed=False)[1]
    assert near_duplicate_groups(hashes, max_bits).tolist() == expected.tolist()
    assert 40 <= expected.max() + 1 <= 400


def test_no_group_is_divided_by_a_split_of_the_training_set(workspace: Path) -> None:
    hashes = np.repeat(np.random.default_rng(0).integers(0, 2**63, 100, dtype=np.uint64), 4)
    write_facts(workspace, {"train": facts(400, 0, phash=hashes)})
    prepare.main()
    groups = [set(table["group"]) for table in labels(workspace).values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 100
    assert [len(table) for table in labels(workspace).values()] == [320, 60, 20, 0]


def test_calibration_comes_out_of_the_validation_set(workspace: Path) -> None:
    write_facts(workspace, {"train": facts(50, 0), "val": facts(80, 1), "test": facts(9, 2)})
    prepare.main()
    tables = labels(workspace)
    assert [len(tables[name]) for name in SETS] == [50, 60, 20, 9]
    assert set(tables["calibration"]["set"]) == {"training/val"}
    rows = sorted([*tables["val"]["row"], *tables["calibration"]["row"]])
    assert rows == list(range(80))
    assert report(workspace)["sets"]["val"]["num_groups"] == 60


@pytest.mark.parametrize("which", ["train", "val"])
@pytest.mark.parametrize("target", [0, 1])
def test_a_set_of_one_class_is_refused(workspace: Path, which: str, target: int) -> None:
    sets = {"train": facts(40, 0), "val": facts(40, 1)}
    sets[which]["target"] = target
    write_facts(workspace, sets)
    missing = "fake" if target == 0 else "real"
    with pytest.raises(UserError, match=f"the {which} set .* has no {missing} image"):
        prepare.main()
    assert not list(workspace.glob("data/*labels*"))
    assert not (workspace / "metrics").exists()


def test_bad_images_are_refused_by_name_and_reason(workspace: Path) -> None:
    table = facts(40, 0).astype({"phash": object, "width": object, "jpeg_quality": object})
    table.loc[[3, 5], "error"] = "empty file"
    table.loc[[3, 5], ["phash", "width", "jpeg_quality", *IMAGE_CUES]] = None
    write_facts(workspace, {"train": table, "val": facts(40, 1)})
    with pytest.raises(
        UserError, match=r"2 listed images .* 0-3.jpg of the train set \(empty file"
    ):
        prepare.main()
    set_params(workspace, {"prepare.bad_images": "drop"})
    prepare.main()
    assert len(labels(workspace)["train"]) == 38
    bad = report(workspace)["bad_images"]
    assert bad["count"] == 2
    assert bad["first"][0] == {"set": "train", "img_name": "0-3.jpg", "error": "empty file"}


def test_a_planted_shortcut_is_shouted_at(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = facts(300, 0)
    table["jpeg_tables"] = np.where(table["target"] == 1, "a", "b")
    table["num_bytes"] -= 800 * table["target"]
    write_facts(workspace, {"train": table, "val": facts(300, 1)})
    prepare.main()
    found = report(workspace)["sets"]
    assert found["train"]["shortcuts"]["jpeg_tables"] == 1.0
    assert found["train"]["shortcuts"]["num_bytes"] > 0.9
    assert found["train"]["shortcuts"]["metadata"] > 0.99
    assert found["train"]["shortcuts"]["worst"] == "jpeg_tables"
    assert found["val"]["shortcuts"][found["val"]["shortcuts"]["worst"]] < 0.6
    shouted = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(shouted) == 1
    assert "jpeg_tables (1.000)" in shouted[0]


def test_a_cue_that_only_a_middle_range_gives_away_is_found(workspace: Path) -> None:
    """Fakes are neither dark nor bright: no single direction tells, the bins do."""
    table = facts(600, 0)
    brightness = np.random.default_rng(1).uniform(-1, 1, 600)
    table["brightness"] = np.where(table["target"] == 1, brightness / 4, brightness)
    write_facts(workspace, {"train": table, "val": facts(100, 1)})
    prepare.main()
    found = report(workspace)["sets"]["train"]["shortcuts"]
    assert found["brightness"] < 0.6
    assert found["image_cues"] > 0.75
    assert found["worst"] == "image_cues"


def test_shortcuts_can_be_refused(workspace: Path) -> None:
    set_params(workspace, {"prepare.shortcuts": "refuse"})
    table = facts(300, 0)
    table["num_bytes"] -= 800 * table["target"]
    write_facts(workspace, {"train": table, "val": facts(300, 1)})
    with pytest.raises(UserError, match=r"in the train set, .*num_bytes \(.*shortcuts: warn"):
        prepare.main()
    assert not list(workspace.glob("data/*labels*"))
    assert not (workspace / "metrics").exists()


def test_each_class_is_described(workspace: Path) -> None:
    table = facts(100, 0)
    table["width"] = np.where(table["target"] == 1, 32, 64)
    write_facts(workspace, {"train": table, "val": facts(100, 1)})
    prepare.main()
    fake = report(workspace)["sets"]["train"]["classes"]["fake"]
    assert fake["sizes"] == {"32x64": 50}
    assert fake["formats"] == {"JPEG": 50}
    assert sum(fake["jpeg_tables"].values()) == 50
    expected = table.loc[table["target"] == 1, "num_bytes"].median()
    assert fake["quartiles"]["num_bytes"][1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    not FACE_SWAPS.is_dir(), reason=f"the real data set {FACE_SWAPS.name} is absent"
)
def test_the_shortcuts_of_a_real_data_set_are_found(workspace: Path) -> None:
    """Its reals have one JPEG table, its fakes another, and the fakes' files are larger."""
    set_params(workspace, {"data.root": str(FACE_SWAPS)})
    pack.main()
    prepare.main()
    for name in ("train", "val"):
        found = report(workspace)["sets"][name]["shortcuts"]
        assert found["jpeg_tables"] == 1.0
        assert found["num_bytes"] > 0.9


def test_a_further_set_changes_no_other_set(workspace: Path) -> None:
    sets = {"train": facts(60, 0), "val": facts(60, 1)}
    write_facts(workspace, sets)
    prepare.main()
    before = {path: path.read_bytes() for path in Path("data/labels").iterdir()}
    more = facts(20, 2)
    near = sets["train"]["phash"].to_numpy()[:2] ^ np.uint64(1)
    more.loc[:2, "phash"] = [near[0], near[1], near[0]]
    sets["celeb.set"] = more
    write_facts(workspace, sets)
    set_params(workspace, {"data.evaluation_sets": {"celeb": "x"}})
    prepare.main()
    for path, content in before.items():
        assert (path.read_bytes() == content) == (path.stem != "evaluation")
    found = read_labels(Path("data/labels/evaluation.csv"))
    train = labels(workspace)["train"]["group"]
    assert found["group"].tolist()[:3] == [train[0], train[1], train[0]]
    assert found["group"].nunique() == 2 + 17
    assert not set(found["group"][3:]) & set(range(120))
    assert report(workspace)["duplicates"]["groups_across_sets"]["train/celeb"] == 2


def test_a_further_set_of_other_formats_changes_no_other_file(workspace: Path) -> None:
    """A PNG has no JPEG quality; the missing value must not turn 90 into 90.0 elsewhere."""
    sets = {"train": facts(60, 0), "val": facts(60, 1), "test": facts(9, 3)}
    write_facts(workspace, sets)
    prepare.main()
    before = {path: path.read_bytes() for path in Path("data/labels").iterdir()}
    png = facts(20, 2, format="PNG").astype({"jpeg_quality": object, "jpeg_tables": object})
    png.loc[3:7, ["jpeg_quality", "jpeg_tables"]] = None
    write_facts(workspace, sets | {"png.set": png})
    set_params(workspace, {"data.evaluation_sets": {"png": "x"}})
    prepare.main()
    for path, content in before.items():
        assert (path.read_bytes() == content) == (path.stem != "evaluation"), path
    assert read_labels(Path("data/labels/evaluation.csv"))["jpeg_quality"].isna().sum() == 5


def test_a_further_set_needs_both_classes_and_a_free_name(workspace: Path) -> None:
    sets = {"train": facts(60, 0), "val": facts(60, 1), "one.set": facts(9, 2, target=1)}
    write_facts(workspace, sets)
    set_params(workspace, {"data.evaluation_sets": {"one": "x"}})
    with pytest.raises(UserError, match=r"the one set \(9 images\) has no real image"):
        prepare.main()
    for name in ("val", "pooled", "held_out_lfw", "a/b", "2nd"):
        set_params(workspace, {"data.evaluation_sets": {name: "x"}})
        with pytest.raises(UserError, match="data.evaluation_sets.*name the set with letters"):
            prepare.main()


def test_copies_and_leaks_between_sets_are_counted_and_named(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = facts(40, 0), facts(40, 1)
    copied = ["sha256", "phash"]
    val.loc[:2, copied] = train.loc[:2, copied].to_numpy()
    train.loc[10, copied] = train.loc[11, copied]
    write_facts(workspace, {"train": train, "val": val})
    prepare.main()
    found = report(workspace)["duplicates"]
    assert found["exact_copies"] == 4
    assert found["exact_copies_with_both_labels"] == 1
    across = found["groups_across_sets"]
    assert across["train/val"] + across["train/calibration"] == 3
    first, other = found["first_across_sets"]["train/val"]
    assert f"of train/val, for example {first} and {other}\n" in capsys.readouterr().out


def test_few_images_of_a_class_are_in_both_parts_of_a_split() -> None:
    rows = facts(60, 0).assign(target=[0] * 3 + [1] * 57, group=range(60))
    rows = rows.assign(data_set="data.root")
    for seed in range(40):
        is_chosen = rows["group"].isin(choose_groups(rows, set(), 0.25, seed))
        for part in (rows[is_chosen], rows[~is_chosen]):
            assert part["target"].nunique() == 2
    together = rows.assign(group=[0] * 3 + list(range(57)))
    with pytest.raises(UserError, match="the real ones are in 1 groups; add images"):
        choose_groups(together, set(), 0.25, 0)


def test_images_that_a_data_set_groups_stay_together(workspace: Path) -> None:
    train = facts(90, 0).assign(given_group=[f"person {i // 9}" for i in range(90)])
    train.loc[80:, "given_group"] = None
    train.loc[80, "phash"] = train.loc[0, "phash"]  # a near-duplicate joins the first person
    train["video"] = None
    train.loc[[5, 85], "video"] = "clip"  # a frame of the first person, and one without a person
    more = facts(20, 2).assign(given_group="person 0")
    write_facts(workspace, {"train": train, "more.set": more})
    set_params(workspace, {"data.evaluation_sets": {"more": "x"}})
    prepare.main()
    found = labels(workspace)
    table = pd.concat([found["train"], found["val"], found["calibration"]])
    group_of = table.set_index("img_name")["group"]
    person = train.set_index("img_name")["given_group"]
    assert group_of.groupby(person).nunique().tolist() == [1] * 9
    assert group_of.nunique() == 9 + 8
    assert group_of[train["img_name"][85]] == group_of[train["img_name"][5]]
    assert group_of[train["img_name"][80]] == group_of[train["img_name"][0]]
    own = [set(found[name]["group"]) for name in ("train", "val", "calibration")]
    assert not own[0] & own[1] and not own[0] & own[2] and not own[1] & own[2]
    evaluation = read_labels(Path("data/labels/evaluation.csv"))["group"]
    assert evaluation.nunique() == 1 and not set(evaluation) & set(group_of)
