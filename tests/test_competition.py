"""The competition's layout in all its spellings, and the mistakes that lists contain."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.core.errors import UserError
from stages.lib.core.tables import read_table
from stages.lib.data.layouts.competition import competition_sets, read_list
from stages.lib.data.layouts.image_set import file_of
from tests.conftest import EXAMPLES

LONG = "b.jpg,0\n" * 20_000  # more than Python's csv takes for one cell
LIST = "img_name,target\na.jpg,1\n"


def touch(root: Path, *names: str) -> Path:
    """Make empty files, and folders where the name ends in a slash."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("")
    return root


def read(folder: Path, text: str | bytes, name: str = "train") -> list[tuple]:
    path = folder / "labels.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    table = read_list(path, name)[["img_name", "target", "family", "source"]]
    plain = table.astype(object).where(table.notna(), None)
    return list(plain.itertuples(index=False, name=None))


@pytest.mark.parametrize("spelling", ["trainset_label.txt", "train_label.txt"])
@pytest.mark.parametrize("phase", ["", "phase1/"])
def test_every_spelling_is_found(tmp_path: Path, spelling: str, phase: str) -> None:
    root = touch(tmp_path, f"{phase}trainset/", f"{phase}{spelling}")
    (root / phase / spelling).write_text("img_name,target\na.jpg,1\n")
    (found,) = competition_sets(root).values()
    assert (found.name, found.folder) == ("train", root / phase / "trainset")
    assert found.rows["img_name"].tolist() == ["a.jpg"]


def test_all_three_sets_are_found(tmp_path: Path) -> None:
    root = touch(tmp_path, "phase1/trainset/", "phase1/trainset_label.txt", "phase1/valset/",
                 "phase1/val_label.txt", "phase2/testset1_seen/",
                 "phase2/testset1_seen_nolabel.txt")  # fmt: skip
    for file in root.rglob("*.txt"):
        file.write_text("img_name\na.jpg\n" if "nolabel" in file.name else LIST)
    assert list(competition_sets(root)) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["trainset/"], "train set has no list; expected one of trainset_label.txt"),
        (["train_label.txt"], "train set has no image folder; expected one of trainset"),
        (["trainset/", "train_label.txt", "valset/"], "val set has no list"),
        (["trainset/", "train_label.txt", "trainset_label.txt"], "second list"),
        (["trainset/", "phase1/trainset/", "train_label.txt"], "second image folder"),
    ],
)
def test_an_incomplete_data_set_is_named(tmp_path: Path, names: list[str], words: str) -> None:
    root = touch(tmp_path, *names)
    for file in root.rglob("*.txt"):
        file.write_text(LIST)
    with pytest.raises(UserError, match=words):
        competition_sets(root)


@pytest.mark.parametrize(
    "text",
    [
        "img_name,target\na.jpg,1\nb.jpg,0\n",
        "\ufeffimg_name,target\r\na.jpg,1\r\nb.jpg,0\r\n",
        "img_name, target\n a.jpg , 1\n\nb.jpg,0",
        'img_name,target\n"a.jpg",1\nb.jpg,0\n\n',
        "img_name,target,,\r\na.jpg,1,,\r\nb.jpg,0,,\r\n,,,\r\n,,,\r\n",
    ],
    ids=["plain", "bom-crlf", "spaces-blank-lines", "quotes", "excel"],
)
def test_a_list_is_read_in_its_order(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [("a.jpg", 1, None, None), ("b.jpg", 0, None, None)]


def test_family_and_source_are_optional_in_any_order(tmp_path: Path) -> None:
    text = "img_name,target,family\na.jpg,1,swap\nb.jpg,0,\n"
    assert read(tmp_path, text) == [("a.jpg", 1, "swap", None), ("b.jpg", 0, None, None)]
    text = "img_name,target,source,family\na.jpg,1,web,swap\nb.jpg,0,film,\n"
    assert read(tmp_path, text) == [("a.jpg", 1, "swap", "web"), ("b.jpg", 0, None, "film")]
    (tmp_path / "labels.txt").write_text("img_name,target,group\na.jpg,1,anna\nb.jpg,0,\n")
    groups = read_list(tmp_path / "labels.txt", "train")["given_group"]
    assert groups.fillna("none").tolist() == ["anna", "none"]


def test_only_the_test_list_may_lack_labels(tmp_path: Path) -> None:
    assert read(tmp_path, "img_name\na.jpg\n", "test") == [("a.jpg", None, None, None)]
    with pytest.raises(UserError, match="labels.txt:1: header 'img_name', expected"):
        read(tmp_path, "img_name\na.jpg\n")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "a/b.jpg", "a\\b.jpg", "..", ".", "", "C:a.jpg"]
)
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"labels.txt:3: img_name '.*' is not a plain file name"):
        read(tmp_path, f"img_name,target\nok.jpg,0\n{name},1\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "labels.txt: is empty or begins with an empty line"),
        ("img_name;target\na.jpg;1\n", "labels.txt: its cells are separated by semicolons; write"),
        ("img_name,target\n", "lists no image"),
        ("name,label\na.jpg,1\n", "header 'name,label', expected 'img_name,target[,"),
        ("img_name,target,family,family\na.jpg,1,x,y\n", "header 'img_name,target,family,family'"),
        ("a.jpg,1\n", "header 'a.jpg,1'"),
        ("img_name,target\na.jpg,2\n", "labels.txt:2: target '2', expected 0"),
        ("img_name,target\na.jpg,\n", "labels.txt:2: target ''"),
        ("img_name,target\na.jpg,fake\n", "labels.txt:2: target 'fake'"),
        ("img_name,target\na.jpg\n", "labels.txt:2: 1 cells, and the header has 2"),
        ("img_name,target\na.jpg,1,x\n", "labels.txt:2: 3 cells, and the header has 2"),
        (
            "img_name,target\na.jpg,1\na.jpg,1\n",
            "labels.txt:3: 'a.jpg' is listed before, line 2, with the same target",
        ),
        ("img_name,target\na.jpg,1\na.jpg,0\n", "line 2, with another target"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "labels.txt: not UTF-8; save it as CSV"),
        ('img_name,target\n"a.jpg,1\nb.jpg,0\n', "labels.txt:2: not valid CSV: a quote opens in"),
        ('img_name,target\na.jpg,1\nb.jpg,"0\n', "labels.txt:3: not valid CSV: a quote opens in"),
        ('img_name,target,family\na.jpg,1,"swap\nb.jpg,0,"\n', "labels.txt:2: not valid CSV: a qu"),
        (f'img_name,target\na.jpg,"1\n{LONG}', "labels.txt:2: not valid CSV: a quote opens in"),
        ('img_name,target\n"a".jpg,1\n', "labels.txt:2: not valid CSV: ',' expected after"),
        (f"img_name,target\n{'a' * 999}/,1\n", "labels.txt:2: img_name 'aaa"),
        (f"img_name,target\n{'a' * 200_000},1\n", "labels.txt:2: not valid CSV: field larger"),
        (f"img_name,target\na.jpg,{'9' * 999}\n", "labels.txt:2: target '999"),
        (f"img_name,target\na.jpg{',1' * 999}\n", "labels.txt:2: 1000 cells"),
        (f"{'x' * 999},target\na.jpg,1\n", "labels.txt:1: header 'xxx"),
    ],
)
def test_a_wrong_list_is_one_line_with_file_and_line(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(UserError, match="labels.txt") as error:
        read(tmp_path, text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


FIELD = st.text("ab.jp\"'/\\ \t01é,;#\0\r", max_size=6) | st.sampled_from(
    ["img_name", "target", "family", "a.jpg", "b.jpg", "0", "1", '"c,d.jpg"', "NA", "null", ""]
)
LISTS = st.lists(st.lists(FIELD, max_size=4).map(",".join), max_size=6).map("\n".join)
LABELLED = LISTS.map("img_name,target,family\na.jpg,1,NA\n".__add__)


@given(LISTS | LABELLED | st.binary(max_size=60))
@settings(EXAMPLES)
def test_any_list_is_read_as_the_csv_module_reads_it_or_is_one_short_line(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    content = text.encode() if isinstance(text, str) else text
    folder = tmp_path_factory.getbasetemp()
    try:
        rows = read(folder, content)
    except UserError as error:
        message = str(error).replace(str(folder), "")
        assert message.isprintable() and len(message) < 300
        return
    lines = content.decode("utf-8-sig").splitlines(keepends=True)
    header, *expected = csv.reader(lines, strict=True)
    header = [name for at, name in enumerate(header) if any(map(str.strip, header[at:]))]
    expected = [row for row in expected if any(map(str.strip, row))]
    places = {name.strip(): place for place, name in enumerate(header)}
    names = [row[places["img_name"]].strip() for row in expected]
    assert [row[0] for row in rows] == names
    assert len(set(names)) == len(names)
    assert [str(row[1]) for row in rows] == [row[places["target"]].strip() for row in expected]
    if "family" in places:
        assert [row[2] or "" for row in rows] == [row[places["family"]].strip() for row in expected]


def test_a_stray_quote_in_a_table_of_a_stage_loses_no_row(tmp_path: Path) -> None:
    types = {"img_name": "str", "family": "str", "row": "int64"}
    text = 'img_name,family,row\na.jpg,swap,0\nb.jpg,"swap,1\nc.jpg,swap",2\nd.jpg,NA,3\n'
    (tmp_path / "val.csv").write_text(text)
    for kinds in (types, None):
        with pytest.raises(UserError, match="val.csv:3: damaged: family has a line break in it"):
            read_table(tmp_path / "val.csv", kinds)
    (tmp_path / "val.csv").write_text(text.replace('"', ""))
    assert len(read_table(tmp_path / "val.csv", types)) == 4


def test_a_listed_name_finds_its_file_in_both_forms_of_unicode(tmp_path: Path) -> None:
    composed, separate = "caf\u00e9.jpg", "cafe\u0301.jpg"
    for listed, there in ((composed, separate), (separate, composed)):
        folder = tmp_path / listed
        touch(folder, there)
        assert file_of(folder, listed).exists()
        touch(folder, listed)
        assert file_of(folder, listed).name == listed  # its own form comes first
    assert file_of(tmp_path, "missing.jpg") == tmp_path / "missing.jpg"
