"""Every layout of a data set: a miniature of each is read as its authors mean it."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from stages.lib.core.errors import UserError
from stages.lib.data.layouts.find import LayoutName, evaluation_set, find_sets, training_sets
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.layouts.manifest import ManifestParams
from stages.lib.data.layouts.words import class_of, set_of
from tests.test_competition import touch

PLAIN = ManifestParams(
    file=None,
    path="path",
    image="image",
    label="label",
    split="split",
    family="family",
    source="source",
    group="group",
    video="video",
    labels={"real": 0, "fake": 1},
)
Rows = dict[str, tuple]


def find(root: Path, layout: LayoutName = "auto", **manifest: object) -> dict[str, ImageSet]:
    return find_sets(root, layout, PLAIN.model_copy(update=manifest))


def rows(found: ImageSet, *columns: str) -> Rows:
    """Return the given columns of each image by its name, "" for what is empty."""
    table = found.rows.astype(object).where(found.rows.notna(), "")
    return dict(
        zip(table["img_name"], table[list(columns)].itertuples(index=False, name=None), strict=True)
    )


def test_words_in_names_of_folders() -> None:
    for name in ("real", "Real_Images", "0_real", "training_real", "0", "originals", "real-faces"):
        assert class_of(name) == 0, name
    for name in ("fake", "Fake", "1_fake", "manipulated_sequences", "ai_generated", "DEEPFAKES"):
        assert class_of(name) == 1, name
    for name in ("real_vs_fake", "realistic", "images", "train", "anna", "01", "video_1",
                 "train_1", "\u975ereal", "unfake"):  # fmt: skip
        assert class_of(name) is None, name
    assert [set_of(name) for name in ("Train", "validation", "test_set", "training_fake")] == [
        "train", "val", "test", "train"]  # fmt: skip
    assert set_of("train_and_test") is None and set_of("trainer") is None


def test_folders_tell_set_class_family_and_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(
        tmp_path, "data/train/real/a.jpg", "data/train/real/museum/b.png",
        "data/train/fake/swap/deep/c.jpg", "data/valid/1_fake/d.webp", "data/valid/0_real/e.jpg",
        "data/test/web/fake/f.jpg", "data/test/unknown/g.jpg", "data/readme.txt",
        "data/train/.thumbnails/x.jpg",
    )  # fmt: skip
    sets = find(root)
    assert capsys.readouterr().out.splitlines() == [
        f"{root}: left out 1 files that are neither images nor videos: 1 .txt",
        f"{root}: passed over 1 hidden files and folders, thumbnails and the like",
        f"{root}: layout folders: 3 train, 2 val, 2 test",
    ]
    columns = ("target", "family", "source")
    assert rows(sets["train"], *columns) == {
        "data/train/fake/swap/deep/c.jpg": (1, "swap", ""),
        "data/train/real/a.jpg": (0, "", ""),
        "data/train/real/museum/b.png": (0, "", "museum"),
    }
    assert rows(sets["val"], "target") == {
        "data/valid/0_real/e.jpg": (0,),
        "data/valid/1_fake/d.webp": (1,),
    }
    assert rows(sets["test"], *columns) == {
        "data/test/unknown/g.jpg": ("", "", ""),
        "data/test/web/fake/f.jpg": (1, "", "web"),
    }
    assert sets["train"].folder == root


def test_folders_of_well_known_downloads(tmp_path: Path) -> None:
    faces = touch(tmp_path / "140k", "real_vs_fake/real-vs-fake/train/real/1.jpg",
                  "real_vs_fake/real-vs-fake/train/fake/2.jpg",
                  "real_vs_fake/real-vs-fake/valid/fake/3.jpg", "train.csv")  # fmt: skip
    assert rows(find(faces)["train"], "target", "source") == {
        "real_vs_fake/real-vs-fake/train/fake/2.jpg": (1, ""),
        "real_vs_fake/real-vs-fake/train/real/1.jpg": (0, ""),
    }
    forensics = touch(tmp_path / "OpenForensics", "Dataset/Train/Fake/fake_0.jpg",
                      "Dataset/Train/Real/real_0.jpg", "Dataset/Validation/Real/real_1.jpg",
                      "Dataset/Test/Fake/fake_1.jpg")  # fmt: skip
    assert [len(one.rows) for one in find(forensics).values()] == [2, 1, 1]
    plain = touch(tmp_path / "kaggle", "training_real/a.jpg", "training_fake/easy_1.jpg")
    assert rows(find(plain)["train"], "target") == {
        "training_fake/easy_1.jpg": (1,),
        "training_real/a.jpg": (0,),
    }


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jpg", "real/b.jpg"], "1 of 2 files of no clear set or class, the first: a.jpg"),
        (["train/cats/a.jpg"], "looked for a folder named real, 0 or original and one named fake"),
        ([], "has no images in the layout folders"),
    ],
)
def test_a_tree_that_fits_no_layout_is_told_what_was_looked_for(
    tmp_path: Path, names: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        find(touch(tmp_path, *names))
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300
    with pytest.raises(UserError, match="data.root = 'nowhere' is not a folder"):
        find(Path("nowhere"))
    with pytest.raises(UserError, match="give the folder .*, and its whole path in place of ~"):
        find(Path("~/faces"))


def test_sets_for_training_and_for_evaluation(tmp_path: Path) -> None:
    both = touch(tmp_path / "a", "val/real/1.jpg", "val/fake/2.jpg", "test/3.jpg")
    sets = find(both)
    assert evaluation_set(sets, both).name == "val"  # the test set has no labels
    with pytest.raises(UserError, match="has no training set, only val, test"):
        training_sets(sets, both)
    one = find(touch(tmp_path / "b", "real/1.jpg"))
    with pytest.raises(UserError, match=r"none of its sets \(train\) has images of both classes"):
        evaluation_set(one, tmp_path)


# ---------------------------------------------------------------------------------------------
# Manifests

TABLE = pd.DataFrame(
    {
        "path": ["faces/a.jpg", "b.png", "./c.jpg", "d.mp4"],
        "label": ["real", "FAKE", "1", "0"],
        "split": ["train", "training", "val", "test"],
        "family": ["", "swap", "", ""],
        "group": ["anna", "anna", "", ""],
    }
)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_manifest_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"list.{form}"
    if form == "parquet":
        TABLE.to_parquet(file)
    elif form == "jsonl":
        TABLE.to_json(file, orient="records", lines=True)
    else:
        TABLE.to_csv(file, index=False, sep="\t" if form == "tsv" else ",")
    sets = find(tmp_path, file=file.name)
    assert rows(sets["train"], "target", "family", "given_group") == {
        "faces/a.jpg": (0, "", "anna"),
        "b.png": (1, "swap", "anna"),
    }
    assert rows(sets["val"], "target") == {"c.jpg": (1,)}
    assert rows(sets["test"], "target") == {"d.mp4": (0,)}


def test_a_manifest_has_columns_and_words_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        f'file,class,made by\n{tmp_path}/x.jpg,AI-generated,"GAN, new"\nodd".jpg,photo,NA\n'
    )
    found = find(
        tmp_path,
        file="list.csv",
        path="file",
        label="class",
        family="made by",
        labels={"photo": 0, "AI-generated": 1},
    )
    assert rows(found["train"], "target", "family") == {
        "x.jpg": (1, "GAN, new"),
        'odd".jpg': (0, "NA"),
    }


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True]])
def test_labels_in_a_parquet_file_may_be_numbers(tmp_path: Path, values: list) -> None:
    pd.DataFrame({"path": ["a.jpg", "b.jpg"], "label": values}).to_parquet(tmp_path / "l.parquet")
    assert rows(find(tmp_path, file="l.parquet")["train"], "target") == {
        "a.jpg": (0,),
        "b.jpg": (1,),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label\na.jpg,dog\nb.jpg,cat\nc.jpg,real\n",
            "labels without a meaning: 'cat', 'dog'",
        ),
        ("path,labels\na.jpg,0\n", r"no column 'label' \(data.manifest.label\); did you mean lab"),
        ("path,label,split\na.jpg,0,train\nb.jpg,0,later\n", "list.csv:3: split 'later', expected"),
        ("path,label\na.jpg,0\na.jpg,1\n", r"list.csv:3: 'a.jpg' is listed before, list.csv:2"),
        ("path,label\na.jpg,0\nb.jpg,\n", "list.csv:3: no label, and the train set needs one"),
        ("path,label\na.jpg,0\n,1\n", "list.csv:3: no path"),
        ("path,label\n", "lists no image"),
        ("path;label\na.jpg;0\n", "list.csv: its cells are separated by semicolons; write commas"),
        ("path,label\n,\na.jpg,0\n,,\nb.jpg,dog\n", "labels without a meaning: 'dog'"),
        ("path,label\n,\n\nb.jpg,\n", "list.csv:4: no label"),
        ('path,label\n"a\n.jpg",0\n', "list.csv:2: .* a quote opens"),
        ("path,label\na\xff.jpg,0\n", "list.csv: not UTF-8; save it as CSV in UTF-8"),
    ],
)
def test_mistakes_in_a_manifest_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words) as caught:
        find(tmp_path, "manifest", file="list.csv")
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


@pytest.mark.parametrize(
    ("one", "zero"),
    [("1", "0"), ("1.0", "0.0"), ("01", "00"), ("1e0", "-0"), ("+1", "0.00"), ("True", "FALSE")],
)
def test_a_number_means_what_was_said_of_it_in_every_spelling(
    tmp_path: Path, one: str, zero: str
) -> None:
    (tmp_path / "list.csv").write_text(f"path,label\na.jpg,{one}\nb.jpg,{zero}\n")
    for labels, expected in (({}, (1, 0)), ({0: 1, 1: 0}, (0, 1)), ({False: 1, True: 0}, (0, 1)),
                             ({"0.0": 1, "1.": 0}, (0, 1)), ({1: 0}, (0, 0))):  # fmt: skip
        found = rows(find(tmp_path, file="list.csv", labels=labels)["train"], "target")
        assert (found["a.jpg"][0], found["b.jpg"][0]) == expected


def test_a_label_that_is_no_number_of_the_two_is_refused(tmp_path: Path) -> None:
    words = ["1_0", "2", "1,0", "0x1", "nan", "1e999999999"]
    pd.DataFrame({"path": words, "label": words}).to_csv(tmp_path / "list.csv", index=False)
    with pytest.raises(UserError, match="'0x1', '1,0', '1_0', '1e999999999', '2', 'nan'; say in"):
        find(tmp_path, file="list.csv", labels={0: 1, 1: 0})
    with pytest.raises(UserError, match="labels: '01' is there twice, in two spellings"):
        find(tmp_path, file="list.csv", labels={1: 0, "01": 1})


@pytest.mark.parametrize("column", ["path", "label", "family"])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_line_break_in_a_typed_manifest_is_refused(
    tmp_path: Path, form: str, column: str
) -> None:
    table = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "label": "real", "family": ""})
    table.loc[1, column] += "\n"
    file = tmp_path / f"list.{form}"
    table.to_parquet(file) if form == "parquet" else table.to_json(
        file, orient="records", lines=True
    )
    at = "parquet: row 2" if form == "parquet" else "jsonl:2"
    with pytest.raises(UserError, match=f"list.{at}: .* take it out of the column {column}"):
        find(tmp_path, file=file.name)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    for file in ("gone.csv", None):
        with pytest.raises(UserError, match="data.manifest.file = '"):
            find(tmp_path, "manifest", file=file)


# ---------------------------------------------------------------------------------------------
# Public data sets


def test_faceforensics_has_the_splits_and_pairs_of_its_authors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(
        tmp_path, "original_sequences/youtube/c23/videos/033.mp4",
        "original_sequences/youtube/c23/videos/097.mp4",
        "original_sequences/youtube/c40/videos/033.mp4",
        "original_sequences/youtube/c23/videos/101.mp4",
        "original_sequences/actors/c23/videos/01__talk.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/033_097.mp4",
        "manipulated_sequences/Face2Face/c23/frames/101_102/0000.png",
        "manipulated_sequences/Face2Face/c23/frames/101_102/0010.png",
        "manipulated_sequences/Face2Face/c23/videos/101_102.mp4",
    )  # fmt: skip
    unsplit = find(root)
    assert list(unsplit) == ["train"] and len(unsplit["train"].rows) == 7
    groups = rows(unsplit["train"], "given_group")
    assert groups["original_sequences/youtube/c23/videos/097.mp4"] == ("033_097",)
    assert groups["original_sequences/actors/c23/videos/01__talk.mp4"] == ("01",)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.json").write_text('[["097", "033"]]')
    (tmp_path / "splits/test.json").write_text('[["101", "102"]]')
    capsys.readouterr()
    sets = find(root)
    out = capsys.readouterr().out
    assert "left out 1 files that no list of the authors names" in out
    assert "layout faceforensics: 3 train, 3 test" in out
    columns = ("target", "family", "source", "given_group", "video")
    assert rows(sets["train"], *columns) == {
        "original_sequences/youtube/c23/videos/033.mp4": (0, "", "youtube", "033_097", ""),
        "original_sequences/youtube/c23/videos/097.mp4": (0, "", "youtube", "033_097", ""),
        "manipulated_sequences/Deepfakes/c23/videos/033_097.mp4": (
            1, "Deepfakes", "", "033_097", ""),
    }  # fmt: skip
    frames = "manipulated_sequences/Face2Face/c23/frames/101_102"
    assert rows(sets["test"], *columns) == {
        "original_sequences/youtube/c23/videos/101.mp4": (0, "", "youtube", "101_102", ""),
        f"{frames}/0000.png": (1, "Face2Face", "", "101_102", frames),
        f"{frames}/0010.png": (1, "Face2Face", "", "101_102", frames),
    }
    (tmp_path / "splits/val.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="val.json: not a list of pairs"):
        find(root)
    (tmp_path / "splits/val.json").unlink()
    touch(root, "manipulated_sequences/New/c40/videos/033_097.mp4")
    find(root)
    assert "left out New, without c23" in capsys.readouterr().out
    other = touch(
        tmp_path / "other",
        "original_sequences/youtube/raw/videos/033.mp4",
        "manipulated_sequences/New/c40/videos/033_097.mp4",
    )
    with pytest.raises(UserError, match="has the compressions c40, raw; leave one, such as c23"):
        find(other)


def test_frames_of_faceforensics_are_found_in_images_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = "original_sequences/youtube/c23", "manipulated_sequences/Deepfakes/c23"
    root = touch(
        tmp_path, f"{real}/images/033/0000.png", f"{real}/097/0000.png", f"{real}/0000.png",
        f"{fake}/images/033_097/0000.png", f"{fake}/masks/033_097/0000.png",
        f"{fake}/masks/1.png", "manipulated_sequences/@eaDir/x",
    )  # fmt: skip
    assert rows(find(root)["train"], "target", "given_group", "video") == {
        f"{real}/images/033/0000.png": (0, "033_097", f"{real}/images/033"),
        f"{real}/097/0000.png": (0, "033_097", f"{real}/097"),
        f"{fake}/images/033_097/0000.png": (1, "033_097", f"{fake}/images/033_097"),
    }
    assert "left out 3 images and videos in folders in which this" in capsys.readouterr().out
    touch(root, f"{real}/frames/033/0000.png")
    with pytest.raises(UserError, match=r"the frames of 033 twice, in .*/frames/033 and .*/images"):
        find(root)


def test_faceforensics_as_kaggle_has_it(tmp_path: Path) -> None:
    root = touch(tmp_path, "original/033.mp4", "original/097.mp4", "Deepfakes/033_097.mp4",
                 "Face2Face/097_033.mp4", "DeepFakeDetection/01_02__talk.mp4",
                 "csv/FF++_Metadata.csv")  # fmt: skip
    assert rows(find(root)["train"], "target", "family", "source", "given_group") == {
        "original/033.mp4": (0, "", "original", "033_097"),
        "original/097.mp4": (0, "", "original", "033_097"),
        "Deepfakes/033_097.mp4": (1, "Deepfakes", "", "033_097"),
        "Face2Face/097_033.mp4": (1, "Face2Face", "", "033_097"),
        "DeepFakeDetection/01_02__talk.mp4": (1, "DeepFakeDetection", "", "01"),
    }
    other = touch(tmp_path / "other", "original/a.jpg", "Deepfakes/b.jpg")
    assert rows(find(other)["train"], "target") == {"Deepfakes/b.jpg": (1,), "original/a.jpg": (0,)}


def test_pairs_by_name_are_groups_in_folders_and_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(tmp_path, "train/real/033.mp4", "val/real/097/000.png", "train/real/001.mp4",
                 "train/fake/033_097/001.png", "train/fake/x_1.mp4")  # fmt: skip
    sets = find(root)
    groups = {
        name: group for one in sets.values() for name, (group,) in rows(one, "given_group").items()
    }
    assert groups == {
        "train/real/033.mp4": "033_097", "val/real/097/000.png": "033_097",
        "train/fake/033_097/001.png": "033_097", "train/real/001.mp4": "", "train/fake/x_1.mp4": "",
    }  # fmt: skip
    assert "3 files have names as in FaceForensics++" in capsys.readouterr().out
    (root / "list.csv").write_text(
        "path,label,group,video\na/033.mp4,real,,\nb/033_097.mp4,fake,mine,\nc/1.png,fake,,097_033\n"
    )
    assert rows(find(root, file="list.csv")["train"], "given_group") == {
        "a/033.mp4": ("033_097",),
        "b/033_097.mp4": ("mine",),
        "c/1.png": ("033_097",),
    }
    capsys.readouterr()
    find(touch(tmp_path / "numbers", "real/001.jpg", "fake/002_003.jpg"))
    assert "FaceForensics" not in capsys.readouterr().out


def test_frames_of_celeb_df_may_lie_in_folders_of_clips(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "Celeb-real/id0_0000/0.png",
        "YouTube-real/00170/0.png",
        "Celeb-synthesis/id0_id1_0000/0.png",
    )
    (root / "List_of_testing_videos.txt").write_text("1 YouTube-real/00170\n")
    sets = find(root)
    assert rows(sets["train"], "given_group", "video") == {
        "Celeb-real/id0_0000/0.png": ("Celeb/id0", "Celeb-real/id0_0000"),
        "Celeb-synthesis/id0_id1_0000/0.png": ("Celeb/id0", "Celeb-synthesis/id0_id1_0000"),
    }
    assert list(rows(sets["test"])) == ["YouTube-real/00170/0.png"]


def test_celeb_df_has_its_list_in_which_1_means_real(tmp_path: Path) -> None:
    root = touch(tmp_path, "Celeb-real/id0_0000.mp4", "Celeb-real/id0_0001.mp4",
                 "YouTube-real/00170.mp4", "Celeb-synthesis/id0_id1_0000.mp4")  # fmt: skip
    with pytest.raises(UserError, match="List_of_testing_videos.txt: no such file"):
        find(root)
    listed = root / "List_of_testing_videos.txt"
    listed.write_text("1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    sets = find(root)
    columns = ("target", "family", "source", "given_group")
    assert rows(sets["train"], *columns) == {
        "Celeb-real/id0_0000.mp4": (0, "", "Celeb-real", "Celeb/id0"),
        "Celeb-real/id0_0001.mp4": (0, "", "Celeb-real", "Celeb/id0"),
    }
    assert rows(sets["test"], *columns) == {
        "YouTube-real/00170.mp4": (0, "", "YouTube-real", "YouTu/00170"),
        "Celeb-synthesis/id0_id1_0000.mp4": (1, "Celeb-synthesis", "", "Celeb/id0"),
    }
    listed.write_text("YouTube-real/00170.mp4\n")
    with pytest.raises(UserError, match=r"videos.txt:1: 'YouTube-real/00170.mp4', expected `1 Fol"):
        find(root)


def test_dfdc_groups_a_real_with_the_fakes_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(tmp_path, "dfdc_train_part_0/a.mp4", "dfdc_train_part_0/b.mp4",
                 "dfdc_train_part_1/frames/c/0.png",
                 "dfdc_train_part_1/frames/c/1.png")  # fmt: skip
    (root / "dfdc_train_part_0/metadata.json").write_text(
        json.dumps(
            {
                "a.mp4": {"label": "FAKE", "split": "train", "original": "b.mp4"},
                "b.mp4": {"label": "REAL", "split": "train", "original": None},
                "gone.mp4": {"label": "REAL", "split": "train", "original": None},
            }
        )
    )
    other = root / "dfdc_train_part_1/metadata.json"
    other.write_text(json.dumps({"c.mp4": {"is_fake": 1}}))
    sets = find(root)
    told = "left out 1 videos that a metadata.json names and that are not in its folder, and 0"
    assert told in capsys.readouterr().out
    assert rows(sets["train"], "target", "given_group", "video") == {
        "dfdc_train_part_0/a.mp4": (1, "b.mp4", ""),
        "dfdc_train_part_0/b.mp4": (0, "b.mp4", ""),
    }
    assert rows(sets["test"], "target", "given_group", "video") == {
        "dfdc_train_part_1/frames/c/0.png": (1, "c.mp4", "dfdc_train_part_1/frames/c"),
        "dfdc_train_part_1/frames/c/1.png": (1, "c.mp4", "dfdc_train_part_1/frames/c"),
    }
    for content, words in (("{", "not JSON"), ("[]", "not one object for each video"),
                           ('{"x.mp4": {}}', "'x.mp4' has neither label nor is_fake"),
                           ('{"x.mp4": {"label": "ODD"}}', "label or split unknown")):  # fmt: skip
        other.write_text(content)
        with pytest.raises(UserError, match=words):
            find(root)


def test_the_lists_of_deepfakebench(tmp_path: Path) -> None:
    frames = {name: [f"FF\\{name}\\00{i}.png" for i in range(2)] for name in ("033", "033_097")}
    content = {
        "FaceForensics++": {
            "FF-real": {
                "train": {
                    "c23": {"033": {"label": "FF-real", "frames": frames["033"]}},
                    "c40": {"033": {"label": "FF-real", "frames": ["no.png"]}},
                }
            },
            "FF-DF": {
                "train": {"c23": {"033_097": {"label": "FF-DF", "frames": frames["033_097"]}}},
                "test": {"c23": {}},
            },
        }
    }
    (tmp_path / "FaceForensics++.json").write_text(json.dumps(content))
    found = find(tmp_path)
    assert list(found) == ["train"]
    assert rows(found["train"], "target", "family", "given_group", "video") == {
        **{f"FF/033/00{i}.png": (0, "", "FaceForensics++/033_097", "FaceForensics++/FF-real/033")
           for i in range(2)},
        **{f"FF/033_097/00{i}.png": (1, "FF-DF", "FaceForensics++/033_097",
                                     "FaceForensics++/FF-DF/033_097") for i in range(2)},
    }  # fmt: skip
    celebrities = {
        "Celeb-DF-v2": {
            "CelebDFv2_real": {"test": {"id3_0001": {"frames": ["r.png"]}}},
            "CelebDFv2_fake": {"test": {"id3_id5_0002": {"frames": ["f.png"]}}},
        }
    }
    (tmp_path / "FaceForensics++.json").write_text(json.dumps(celebrities))
    assert rows(find(tmp_path)["test"], "target", "given_group") == {
        "r.png": (0, "Celeb-DF-v2/id3"),
        "f.png": (1, "Celeb-DF-v2/id3"),
    }
    for label, target in (("whichisreal_Fake", 1), ("whichisreal_Real", 0), ("FF-DF", 1),
                          ("DFDCP_FakeA", 1), ("sd2.0_Fake", 1), ("DF_1.0_real", 0)):  # fmt: skip
        named = {"DF40": {label: {"train": {"a": {"frames": ["a.png"]}}}}}
        (tmp_path / "FaceForensics++.json").write_text(json.dumps(named))
        assert rows(find(tmp_path)["train"], "target") == {"a.png": (target,)}, label
    for label in ("whichisreal", "unreal", "real_fake", "RealA"):
        named = {"DF40": {label: {"train": {"a": {"frames": ["a.png"]}}}}}
        (tmp_path / "FaceForensics++.json").write_text(json.dumps(named))
        with pytest.raises(UserError, match=f"the label '{label}' does not say whether"):
            find(tmp_path)
    with pytest.raises(UserError, match="needs one list of DeepfakeBench, has none"):
        find(tmp_path / "..", "deepfakebench")


# ---------------------------------------------------------------------------------------------
# What goes wrong silently


def test_names_of_persons_and_wrappers_decide_nothing(tmp_path: Path) -> None:
    root = touch(tmp_path, "deepfake_dataset/train/real/Dev_Patel/1.jpg",
                 "deepfake_dataset/train/fake/test_person/1.jpg",
                 "deepfake_dataset/real/train/2.jpg",
                 "deepfake_dataset/fake/val/2.jpg")  # fmt: skip
    sets = find(root)
    found = {name: rows(one, "target") for name, one in sets.items()}
    assert found == {
        "train": {
            "deepfake_dataset/real/train/2.jpg": (0,),
            "deepfake_dataset/train/fake/test_person/1.jpg": (1,),
            "deepfake_dataset/train/real/Dev_Patel/1.jpg": (0,),
        },
        "val": {"deepfake_dataset/fake/val/2.jpg": (1,)},
    }
    shards = touch(tmp_path / "shards", "0/real/a.jpg", "0/fake/b.jpg", "1/real/c.jpg")
    assert [target for (target,) in rows(find(shards)["train"], "target").values()] == [1, 0, 0]
    with pytest.raises(UserError, match="2 of 2 files of no clear set or class"):
        find(touch(tmp_path / "odd", "real/fake/a.jpg", "fake/real/a.jpg"))


def test_a_number_in_the_name_of_a_folder_is_no_class_beside_words(tmp_path: Path) -> None:
    for number, name in enumerate(("", "video_", "train_")):
        root = touch(tmp_path / str(number), f"real/{name}0/a.jpg", f"real/{name}1/b.jpg",
                     f"fake/{name}0/c.jpg", f"fake/{name}1/d.jpg")  # fmt: skip
        found = rows(find(root)["train"], "target")
        assert {Path(path).name: target for path, (target,) in found.items()} == {
            "a.jpg": 0, "b.jpg": 0, "c.jpg": 1, "d.jpg": 1}  # fmt: skip
    with pytest.raises(UserError, match="name only one class, and the folders 0 and 1 both"):
        find(touch(tmp_path / "odd", "deepfakes/0/a.jpg", "deepfakes/1/b.jpg"))


def test_a_set_word_beside_others_is_not_taken_for_training(tmp_path: Path) -> None:
    clear = touch(tmp_path / "a", "train_val/real/1.jpg", "train_val/fake/2.jpg")
    assert len(find(clear)["train"].rows) == 2
    with pytest.raises(UserError, match="1 of 3 files of no clear set .*: val_2/real/3.jpg"):
        find(touch(tmp_path / "b", "train/real/1.jpg", "train/fake/2.jpg", "val_2/real/3.jpg"))


IGNORED = [
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "._1.jpg", ".thumbnails/1.jpg",
    "__MACOSX/real/._1.jpg", "#recycle/1.jpg", ".Trash-1000/1.jpg", "lost+found/1.jpg",
    "$RECYCLE.BIN/1.jpg", ".AppleDouble/1.jpg", "THUMBS.DB",
]  # fmt: skip


def test_ignored_files_are_no_images_and_others_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The folder itself may have any name.
    inside = [f"@eaDir/.root/real/{name}" for name in IGNORED]
    root = touch(tmp_path, *inside, "@eaDir/.root/real/1.jpg", "@eaDir/.root/fake/2.jpg",
                 "@eaDir/.root/real/3.mpg", "@eaDir/.root/4", "@eaDir/.root/5")  # fmt: skip
    root = root / "@eaDir/.root"
    assert list(rows(find(root)["train"])) == ["fake/2.jpg", "real/1.jpg"]
    out = capsys.readouterr().out
    assert (
        "left out 3 files that are neither images nor videos: 2 without a suffix, 1 .mpg"
    ) in out
    assert "passed over 10 hidden files and folders" in out


def test_ignored_files_are_no_layout(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/real/1.jpg", "train/fake/2.jpg", "testset/.DS_Store",
                 "#recycle/original_sequences/x", "#recycle/manipulated_sequences/x",
                 "#recycle/metadata.json")  # fmt: skip
    (root / "#recycle/metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    assert len(find(root)["train"].rows) == 2


def test_a_line_break_in_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'real/a\\nb.jpg' has a line break in it; rename it"):
        find(touch(tmp_path, "real/a\nb.jpg", "fake/c.jpg"))


@pytest.mark.parametrize("content", ['{"label": ["real"], "n": 2}', '{"1.jpg": {"label": "x"}}'])
def test_a_metadata_json_of_something_else_is_no_dfdc(tmp_path: Path, content: str) -> None:
    root = touch(tmp_path, "train/real/1.jpg", "train/fake/2.jpg")
    (root / "metadata.json").write_text(content)
    assert len(find(root)["train"].rows) == 2


def test_a_layout_without_images_names_the_parameter(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "original_sequences/youtube/c23/a/b/1.png",
        "manipulated_sequences/Deepfakes/c23/a/b/1.png",
    )
    with pytest.raises(UserError, match="no images in the layout faceforensics; .* data.layout"):
        find(root)


def test_many_folders_of_a_class_are_persons_or_videos(tmp_path: Path) -> None:
    frames = [f"fake/swap/{video:03d}/{frame}.png" for video in range(31) for frame in (9, 10)]
    people = [f"real/person{number}/person{number}_0001.jpg" for number in range(31)]
    found = rows(find(touch(tmp_path, *frames, *people))["train"],
                 "family", "source", "given_group", "video")  # fmt: skip
    assert found["fake/swap/007/9.png"] == ("swap", "", "fake/swap/007", "fake/swap/007")
    assert found["real/person3/person3_0001.jpg"] == ("", "", "real/person3", "")


def test_linked_folders_are_followed_once_and_odd_names_refused(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "fake/a.jpg")
    (root / "real").symlink_to(touch(tmp_path / "elsewhere", "b.jpg"))
    (root / "fake/loop").symlink_to(root)
    assert rows(find(root)["train"], "target") == {"fake/a.jpg": (1,), "real/b.jpg": (0,)}
    (root / "fake" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    with pytest.raises(UserError, match=r"caf\\xe9.jpg' is not UTF-8; rename it"):
        find(root)


def test_a_known_data_set_one_folder_too_high_is_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "FF/original_sequences/youtube/c23/videos/033.mp4",
        "FF/manipulated_sequences/Deepfakes/c23/videos/033_097.mp4",
    )
    with pytest.raises(UserError, match="FF in it has the layout faceforensics; give"):
        find(tmp_path)
    assert len(find(tmp_path, "folders")["train"].rows) == 2


def test_a_manifest_that_is_named_is_never_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg", "fake/b.jpg", "trainset/")
    with pytest.raises(UserError, match="data.manifest.file = 'lst.csv'"):
        find(tmp_path, file="lst.csv")
    (tmp_path / "list.csv").write_text("path, label ,x,x\nreal/a.jpg,1,,\n")
    assert rows(find(tmp_path, file="list.csv")["train"], "target") == {"real/a.jpg": (1,)}
    (tmp_path / "list.csv").write_text("path,label,label\nreal/a.jpg,1,0\n")
    with pytest.raises(UserError, match="the column 'label' is there twice"):
        find(tmp_path, file="list.csv")


def test_large_numbers_and_other_spellings_in_a_manifest(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"path": ["x//a.jpg", "b.jpg", "c.jpg"], "label": ["True", "false", "1.0"],
         "group": pd.array([1234567890123456789, 1234567890123456790, None], dtype="Int64"),
         "image": [b"\xff"] * 3}
    )  # fmt: skip
    table.to_parquet(tmp_path / "list.parquet")
    assert rows(find(tmp_path, file="list.parquet")["train"], "target", "given_group") == {
        "x/a.jpg": (1, "1234567890123456789"),
        "b.jpg": (0, "1234567890123456790"),
        "c.jpg": (1, ""),
    }
    (tmp_path / "list.csv").write_text("path,label\nx/a.jpg,0\nx/../x/a.jpg,1\n")
    with pytest.raises(UserError, match="'x/a.jpg' is listed before"):
        find(tmp_path, file="list.csv")


def test_a_clip_of_deepfakebench_is_in_one_set_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The authors' list of Celeb-DF has all clips in train, and those of test in val again."""
    clip = {"id0_0001": {"frames": ["a.png"]}}
    other = {"id2_0001": {"frames": ["b.png"]}}
    content = {
        "Celeb-DF-v2": {"CelebDFv2_real": {"train": clip | other, "val": clip, "test": clip}}
    }
    (tmp_path / "Celeb-DF-v2.json").write_text(json.dumps(content))
    (tmp_path / "dataset_infos.json").write_text('{"default": {"download_size": 3}}')
    sets = find(tmp_path)
    assert {name: list(rows(one)) for name, one in sets.items()} == {
        "train": ["b.png"],
        "test": ["a.png"],
    }
    assert "left out 1 clips of train, which the list has in another set" in capsys.readouterr().out
    (tmp_path / "more.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="needs one list .*, has Celeb-DF-v2.json, more.json"):
        find(tmp_path)


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "Celeb-real/id0_0000.mp4",
        "Celeb-real/id0_0000.avi",
        "Celeb-synthesis/id0_id1_0000.mp4",
    )
    (root / "List_of_testing_videos.txt").write_text("\ufeff1 Celeb-real/id0_0000.mp4\n\n")
    with pytest.raises(UserError, match="Celeb-real: has two videos named id0_0000; remove one"):
        find(root)
