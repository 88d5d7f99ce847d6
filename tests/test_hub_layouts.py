"""Data sets as hubs share them: Parquet with images, image folders with metadata, tar shards."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.data.layouts.find import find_sets
from stages.lib.data.layouts.hub_files import sets_of_files
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.layouts.parquet import RowGroups, has_images
from stages.lib.data.packing import pack_images
from stages.lib.data.params import PackParams
from stages.lib.images.packed_images import PackedImages, read_facts
from tests.conftest import ROOT
from tests.test_images import encoded, photograph
from tests.test_layouts import PLAIN, find, rows

NAMES = ["Deepfake", "Real"]  # of the classes 0 and 1, the other way round than here
PARAMS = load_params("pack", PackParams, ROOT / "params.yaml").model_copy(
    update={"find_faces": False}
)
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int) -> bytes:
    return encoded(photograph(seed=seed), "JPEG")


def write_hub_parquet(file: Path, seeds: Iterable[int], size: int = 3, **columns: list) -> Path:
    """Write a file as the library `datasets` does: struct cells, class names in the metadata."""
    seeds = list(seeds)
    images = [{"bytes": picture(seed), "path": f"{seed}.jpg"} for seed in seeds]
    labels = columns.pop("label", [seed % 2 for seed in seeds])
    table = pa.table({"image": pa.array(images, STRUCT), "label": labels} | columns)
    label = {"names": NAMES, "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata(metadata), file, row_group_size=size)
    return file


def packed(found: ImageSet, folder: Path) -> list[bytes]:
    """Pack a set; return the bytes of its images, b"" for a bad one."""
    folder.mkdir()
    pack_images(found, folder, PARAMS)
    images, facts = PackedImages(folder), read_facts(folder)
    return [bytes(images[row]) for row in range(len(facts))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the cache of what is packed is in the current folder


# ---------------------------------------------------------------------------------------------
# Which set a file is of


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["data/train-00000-of-00007.parquet", "data/test-00000-of-00001.parquet"], "train test"),
        (["default/train/0000.parquet", "default/validation/0000.parquet"], "train val"),
        (["train[0:3200]-00000-of-00002-935cc6e306599b38.parquet"], "train"),
        (["000000.tar", "000001.tar"], "train train"),
        (["faces-train-000000.tar", "faces-val-{000000..000003}.tar"], "train val"),
        (["part.0.parquet"], "train"),
    ],
)
def test_names_say_the_set(tmp_path: Path, names: list[str], sets: str) -> None:
    files = [tmp_path / name for name in names]
    assert list(sets_of_files(tmp_path, files).values()) == sets.split()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train-0.tar", "more-0.tar"], "more-0.tar: its name says no set, and those of other"),
        (["train-test-0.tar"], "'train-test-0' says two sets, test and train"),
    ],
)
def test_unclear_names_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sets_of_files(tmp_path, [tmp_path / name for name in names])


# ---------------------------------------------------------------------------------------------
# Parquet


def test_parquet_of_a_hub_is_found_and_packed(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    write_hub_parquet(root / "data/train-00000-of-00002.parquet", range(7), model=list("abcdefg"))
    write_hub_parquet(root / "data/train-00001-of-00002.parquet", range(7, 9), model=["", "h"])
    write_hub_parquet(root / "data/test-00000-of-00001.parquet", range(9, 11), label=[-1, 0])
    sets = find_sets(root, "auto", PLAIN.model_copy(update={"family": "model"}))
    train = rows(sets["train"], "target", "family")
    first = "data/train-00000-of-00002.parquet"
    assert train[f"{first}#0"] == (1, "a") and train[f"{first}#1"] == (0, "b")
    assert train["data/train-00001-of-00002.parquet#0"] == (0, "")
    assert list(rows(sets["test"], "target").values()) == [("",), (1,)]
    assert packed(sets["train"], tmp_path / "packed") == [picture(seed) for seed in range(9)]
    facts = read_facts(tmp_path / "packed")
    assert list(facts["img_name"][:2]) == [f"{first}#0", f"{first}#1"]
    assert set(facts["width"]) == {60} and facts["error"].isna().all()


def test_what_was_packed_of_parquet_is_used_again_until_the_file_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_hub_parquet(tmp_path / "faces/train.parquet", range(6))
    expected = packed(find(tmp_path / "faces")["train"], tmp_path / "first")
    capsys.readouterr()
    assert packed(find(tmp_path / "faces")["train"], tmp_path / "second") == expected
    assert "packed 6 images" in (out := capsys.readouterr().out)
    assert "6 of them by an earlier run" in out
    write_hub_parquet(file, range(1, 7))
    assert packed(find(tmp_path / "faces")["train"], tmp_path / "third")[0] == picture(1)
    assert "earlier run" not in capsys.readouterr().out


def test_columns_of_parquet_may_have_other_names(tmp_path: Path) -> None:
    table = {
        "jpg": [picture(0), picture(1)],
        "mask": [b"x", b"y"],
        "kind": ["photo", "AI-generated"],
    }
    parquet.write_table(pa.table(table | {"person": [7, 8]}), tmp_path / "train.parquet")
    assert has_images(tmp_path)
    with pytest.raises(
        UserError, match=r"several columns have images: jpg, mask; name one in data.m"
    ):
        find(tmp_path)
    with pytest.raises(
        UserError, match=r"has no column 'label' \(data.manifest.label\); it has jpg"
    ):
        find(tmp_path, image="jpg")
    columns = {"image": "jpg", "label": "kind", "group": "person"}
    with pytest.raises(UserError, match="labels without a meaning: 'photo'; say in data.manifest"):
        find(tmp_path, **columns)
    found = find(tmp_path, **columns, labels={"photo": 0})["train"]
    assert list(rows(found, "target", "given_group").values()) == [(0, "7"), (1, "8")]
    assert packed(found, tmp_path / "packed") == [picture(0), picture(1)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, None], "train.parquet: row 2: no label, and the train set needs one"),
        ([0, -1], "train.parquet: row 2: no label, and the train set needs one"),
        ([0, 2], "train.parquet: row 2: class 2, which has no name there"),
    ],
)
def test_rows_without_a_label_are_refused(tmp_path: Path, labels: list, words: str) -> None:
    write_hub_parquet(tmp_path / "train.parquet", range(2), label=labels)
    with pytest.raises(UserError, match=words):
        find(tmp_path)


def test_bad_cells_are_bad_images(tmp_path: Path) -> None:
    cells = [None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"no image", "path": None}]
    cells.append({"bytes": picture(1), "path": None})
    table = pa.table({"image": pa.array(cells, STRUCT), "label": [0, 1, 0, 1]})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert [len(one) > 0 for one in packed(find(tmp_path)["train"], tmp_path / "packed")] == [
        False, False, False, True,
    ]  # fmt: skip
    errors = read_facts(tmp_path / "packed")["error"]
    assert list(errors[:2]) == ["its cell has no bytes of an image"] * 2
    assert errors[2] and errors.isna()[3]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = write_hub_parquet(tmp_path / "train.parquet", range(6))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(UserError, match="train.parquet: cannot be read as Parquet"):
        find(tmp_path, "parquet")
    found = find(tmp_path)["train"] if has_images(tmp_path) else None
    assert found is None
    file.write_bytes(whole)
    found = find(tmp_path)["train"]
    file.write_bytes(whole[:8] + bytes(len(whole) // 2) + whole[8 + len(whole) // 2 :])
    assert b"" in packed(found, tmp_path / "packed")
    assert read_facts(tmp_path / "packed")["error"].str.contains("Parquet").any()


def test_memory_holds_the_last_row_groups_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.lib.data.layouts.parquet.MOST_BYTES", 1)
    images = [bytes([row]) * 1000 for row in range(50)]
    parquet.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=5)
    groups = RowGroups(tmp_path, {"a.parquet": "image"})
    for row in np.random.default_rng(0).permutation(50).tolist():
        assert groups.read(f"a.parquet#{row}") == images[row]
        assert len(groups.groups) <= 2


def test_a_manifest_in_parquet_is_no_data_set_of_a_hub(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["a.jpg"], "label": [0]}).to_parquet(tmp_path / "list.parquet")
    assert not has_images(tmp_path)
    assert find(tmp_path, file="list.parquet")["train"].containers is None


# ---------------------------------------------------------------------------------------------
# Image folders with metadata


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_beside_the_images_of_each_set(tmp_path: Path, form: str) -> None:
    for name in ("train", "test"):
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        table = pd.DataFrame(
            {
                "file_name": ["a.jpg", "inner/b.jpg"],
                "label": ["Real", "deepfake"],
                "group": ["x", ""],
            }
        )
        file = folder / f"metadata.{form}"
        if form == "csv":
            table.to_csv(file, index=False)
        elif form == "jsonl":
            table.to_json(file, orient="records", lines=True)
        else:
            table.to_parquet(file)
        for place in table["file_name"]:
            (folder / place).write_bytes(picture(0))
    sets = find(tmp_path)
    for name in ("train", "test"):
        assert rows(sets[name], "target", "given_group") == {
            f"{name}/a.jpg": (0, "x"),
            f"{name}/inner/b.jpg": (1, ""),
        }
    assert packed(sets["train"], tmp_path / "packed") == [picture(0)] * 2


def test_one_file_of_metadata_has_splits_and_folders_say_the_class(tmp_path: Path) -> None:
    lines = [
        "file_name,split,source",
        "real/a.jpg,train,film",
        "fake/b.jpg,validation,",
        "real/c.jpg,train,",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    sets = find(tmp_path)
    assert rows(sets["train"], "target", "source") == {
        "real/a.jpg": (0, "film"),
        "real/c.jpg": (0, ""),
    }
    assert rows(sets["val"], "target") == {"fake/b.jpg": (1,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,label\na.jpg,real\n../b.jpg,\n", "metadata.csv: .*b.jpg has no label"),
        ("file_name,label\na.jpg,dog\n", "metadata.csv: labels without a meaning: 'dog'"),
        ("file_name,label\na.jpg,real\na.jpg,fake\n", "metadata.csv:3: 'a.jpg' is listed before"),
        ("file_name\na.jpg\n", "metadata.csv: a.jpg has no label, and its set needs one"),
    ],
)
def test_mistakes_in_metadata_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        find(tmp_path)


def test_metadata_of_something_else_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "fake").mkdir()
    for place in ("real/a.jpg", "fake/b.jpg"):
        (tmp_path / place).write_bytes(picture(0))
    (tmp_path / "metadata.csv").write_text("who,when\nme,today\n")
    assert rows(find(tmp_path)["train"], "target") == {"real/a.jpg": (0,), "fake/b.jpg": (1,)}


# ---------------------------------------------------------------------------------------------
# Tar archives


def write_tar(file: Path, members: Mapping[str, bytes | dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def test_tar_archives_are_found_and_packed_without_unpacking(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    write_tar(
        root / "train-000000.tar",
        {
            "a.jpg": picture(0),
            "a.cls": b"0\n",
            "b.cls": b"fake",
            "b.jpg": picture(1),
            "b.txt": b"x",
        },
    )
    of_json = {"label": True, "family": "swap", "group": 5, "made": None}
    write_tar(
        root / "train-000001.tar", {"x/c.d.json": b"{}", "c.jpg": picture(2), "c.json": of_json}
    )
    write_tar(root / "val/000000.tar", {"real/e#1.JPG": picture(3), "fake/e.jpg": picture(4)})
    before = sorted(root.rglob("*"))
    sets = find(root)
    assert rows(sets["train"], "target", "family", "given_group") == {
        "train-000000.tar#a.jpg": (0, "", ""),
        "train-000000.tar#b.jpg": (1, "", ""),
        "train-000001.tar#c.jpg": (1, "swap", "5"),
    }
    assert rows(sets["val"], "target") == {
        "val/000000.tar#real/e#1.JPG": (0,),
        "val/000000.tar#fake/e.jpg": (1,),
    }
    assert packed(sets["train"], tmp_path / "train") == [picture(seed) for seed in range(3)]
    assert packed(sets["val"], tmp_path / "val") == [picture(3), picture(4)]
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.jpg": b"x"}, "0.tar: a.jpg: no label, and the train set needs one"),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "0.tar: labels without a meaning: 'dog'"),
        ({"a.jpg": b"x", "a.json": b"["}, "0.tar: a.json: not valid .json"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "0.tar: a.json: expected names with values, such as"),
        ({"a.jpg": b"x", "a.png": b"y", "a.cls": b"0"}, "0.tar: a.png: a second image of its key"),
    ],
)
def test_mistakes_in_archives_are_one_line(tmp_path: Path, members: dict, words: str) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=words):
        find(tmp_path)


def test_an_archive_that_is_cut_off_or_compressed_is_named(tmp_path: Path) -> None:
    members = {"a.jpg": picture(0), "a.cls": b"0", "b.jpg": picture(1), "b.cls": b"1"}
    file = write_tar(tmp_path / "0.tar", members)
    whole = file.read_bytes()
    file.write_bytes(whole[:700])
    with pytest.raises(UserError, match="0.tar: cannot be read as an uncompressed tar archive"):
        find(tmp_path)
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(UserError, match="0.tar: cannot be read as an uncompressed tar archive"):
        find(tmp_path)
    file.write_bytes(whole)
    found = find(tmp_path)["train"]
    file.write_bytes(whole[:600])
    assert packed(found, tmp_path / "packed") == [b"", b""]
    assert set(read_facts(tmp_path / "packed")["error"]) == {"its archive is cut off"}


def test_a_link_in_an_archive_or_to_one_leads_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    outside = write_tar(tmp_path / "outside.tar", {"a.jpg": picture(0), "a.cls": b"0"})
    root.mkdir()
    with tarfile.open(root / "train-0.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (root / "train-1.tar").symlink_to(outside)
    found = find(root)["train"]
    assert list(rows(found)) == ["train-1.tar#a.jpg"]
    assert packed(found, tmp_path / "packed") == [b""]
    assert "outside of the data set's folder" in read_facts(tmp_path / "packed")["error"][0]
