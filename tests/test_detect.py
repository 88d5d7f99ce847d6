"""The command for images: what it takes, prints, records, repeats, and with what exit code."""

import csv
import json
import os
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.lib.core.errors import UserError
from stages.lib.evaluation.verdict_rules import DOUBTS, Doubt
from stages.lib.verdict.files import find_files
from stages.lib.verdict.printing import CSV_COLUMNS
from stages.tools import detect, export
from tests.conftest import copy_detector, run


@pytest.fixture
def there(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of validation images of the pipeline, in which the command runs."""
    monkeypatch.chdir(pipeline)
    return Path("data/raw/sample/phase1/valset")


Printed = tuple[int, str, str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> "Command":
    return Command(monkeypatch, capfd)


class Command:
    """Runs the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: object, stdin: str = "") -> Printed:
        """Return the exit code and what it has printed on both streams."""
        self.monkeypatch.setattr(sys, "argv", ["detect", *map(str, arguments)])
        buffer = BytesIO(os.fsencode(stdin))
        self.monkeypatch.setattr(sys, "stdin", TextIOWrapper(buffer))
        with pytest.raises(SystemExit) as end:
            detect.main()
        captured = self.capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err


def test_files_folders_globs_and_lists_are_examined(there: Path, command: Command) -> None:
    first, second, *_ = sorted(there.iterdir())
    code, out, err = command(
        "--json", first, f"{there}/{second.name[:9]}*", there, "-", stdin=f"{first}\n{second}\n"
    )
    records = [json.loads(line) for line in out.splitlines()]
    files = [record["file"] for record in records]
    assert files[:2] == [str(first), str(second)] and files[-2:] == files[:2]
    assert len(files) == 4 + len(list(there.iterdir()))
    assert {record["verdict"] for record in records} <= {"real", "fake", "unsure"}
    assert code == 0 and "0 not examined" in err and "Missing provenance" in err


def test_the_three_forms_tell_the_same(there: Path, command: Command, tmp_path: Path) -> None:
    believed = copy_detector(Path(), tmp_path / "detector", doubt=None)
    files = [*sorted(there.iterdir())[:6], "--model", believed]
    records = [json.loads(line) for line in command("--json", *files)[1].splitlines()]
    rows = list(csv.DictReader(StringIO(command("--csv", *files)[1])))
    _, out, err = command(*files)
    first, second, *lines = out.splitlines()
    assert (
        ", learnt from 60 images; fakes: " in first
        and second.startswith("fake from ")
        and "a reason to look closer" in err
    )
    for record, row, line in zip(records, rows, lines, strict=True):
        assert row["verdict"] == record["verdict"] == line.split()[0]
        assert float(row["probability"]) == pytest.approx(record["probability"], abs=1e-6)
        assert record["file"] == row["file"] and record["file"] in line
        assert record["doubt"] is None and row["doubt"] == ""
        assert f" {record['probability']:.1%} " in line
        assert (row["why"] != "") == (record["verdict"] == "unsure")
        limits = record["detector"]["thresholds"]
        assert float(row["false_alarms"]) == limits["false_alarms"] == 0.02


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_detector_that_cannot_be_believed_says_so_before_its_verdicts(
    there: Path, command: Command, tmp_path: Path, doubt: Doubt
) -> None:
    """In each form, without a probability; scores stay, so that a verdict can be repeated."""
    doubted = copy_detector(Path(), tmp_path / "detector", doubt=doubt)
    files = [*sorted(there.iterdir())[:3], "--model", doubted]
    _, out, err = command(*files)
    _, second, *lines = out.splitlines()
    assert second == DOUBTS[doubt] and DOUBTS[doubt] in err
    assert "%" not in out and "look closer" not in err
    assert all(f"  [{doubt}]" in line for line in lines)
    for row in csv.DictReader(StringIO(command("--csv", *files)[1])):
        assert list(row)[1:3] == ["doubt", "verdict"] and row["doubt"] == DOUBTS[doubt]
        assert [row[name] for name in CSV_COLUMNS[3:7]] == [""] * 4
    for line in command("--json", *files)[1].splitlines():
        record = json.loads(line)
        assert line.index(f'"doubt":"{doubt}"') < line.index('"verdict"')
        assert record["probability"] is record["faces"][0]["probability"] is None
        assert 0 < record["faces"][0]["score"] < 1


def test_bad_input_is_a_line_and_disturbs_nothing(
    there: Path, command: Command, tmp_path: Path
) -> None:
    good = min(there.iterdir()).read_bytes()
    bomb = BytesIO()
    Image.new("L", (2000, 1000)).save(bomb, "PNG")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
    contents = {
        "good.jpg": good,
        "text.png": b"hello",
        "empty.jpg": b"",
        "cut.jpg": good[:400],
        "bomb.png": bomb.getvalue(),
        "phone.heic": heic,
        "写真 ü.jpg": good,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg/inside.jpg").write_bytes(good)
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.jpg")
    Path(strange).write_bytes(good)
    missing = [tmp_path / "gone.jpg", "nul\0byte"]
    code, out, _ = command("--csv", "--max-megapixels", 1, tmp_path, *missing)
    rows = {Path(row["file"]).name: row for row in csv.DictReader(StringIO(out))}
    errors = {name: row["why"] for name, row in rows.items() if row["verdict"] == "error"}
    assert errors == {
        "text.png": "not an image of a known format", "empty.jpg": "empty file",
        "cut.jpg": errors["cut.jpg"], "loop.jpg": "Too many levels of symbolic links",
        "bomb.png": "2000 x 1000 pixels are more than max_megapixels, 1",
        "phone.heic": "damaged HEIC", "zero.jpg": "no regular file", "pipe.jpg": "no regular file",
        "gone.jpg": "No such file or directory", "nul\\x00byte": "embedded null byte",
    }  # fmt: skip
    assert errors["cut.jpg"].startswith("damaged: ")
    good_names = {"good.jpg", "写真 ü.jpg", "inside.jpg", "\\xff\\n.jpg"}
    assert set(rows) - set(errors) == good_names
    assert len({rows[name]["verdict"] for name in good_names}) == 1
    assert code == 2
    text = command(strange, tmp_path / "text.png")[1].splitlines()
    assert len(text) == 4 and "\\xff .jpg" in text[2] and text[3].startswith("error")


def test_after_two_dashes_all_are_paths() -> None:
    options = detect.parse(["a.jpg", "--json", "--", "-b.jpg", "--csv"])
    assert options.paths == ["a.jpg", "-b.jpg", "--csv"]
    assert detect.parse(["--", "--"]).paths == ["--"]
    with pytest.raises(UserError, match="name one image or video, or more"):
        detect.parse(["--"])


def test_thumbnails_and_other_files_of_a_folder_are_passed_over_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".thumbnails/@eaDir"  # what is named itself is searched
    droppings = ("._1.jpg", ".thumbnails/1.jpg", "@eaDir/1.jpg/SYNO.jpg", "__MACOSX/1.jpg")
    for name in ("1.jpg", "2/3.PNG", "4.mpg", "5", *droppings):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert find_files([str(folder)]) == [str(folder / "1.jpg"), str(folder / "2/3.PNG")]
    assert capsys.readouterr().err == (
        f"{folder}: passed over 4 hidden files, thumbnails and the like, left out 2 files without "
        "the suffix of an image or a video\n"
    )
    (folder / "1.jpg").unlink()
    (folder / "2/3.PNG").unlink()
    with pytest.raises(UserError, match=r"and videos \(passed over 4 .*left out 2 .*\); name"):
        find_files([str(folder)])


def test_a_name_that_is_no_utf8_is_found_again(
    there: Path, command: Command, tmp_path: Path
) -> None:
    record, names = tmp_path / "record.jsonl", [b"\xff\xe4\n.jpg", b"\\xfe.jpg"]
    files = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    for file, image in zip(files, sorted(there.iterdir()), strict=False):
        Path(file).write_bytes(image.read_bytes())
    command("--record", record, *files)
    code, out, _ = command("--verify", record)
    assert code == 0 and out.count("same ") == 2


def test_a_name_gives_no_command_to_a_terminal_or_a_spreadsheet(
    there: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["=1+2.jpg", "+1.jpg", "-1.jpg", "@a.jpg", "\x1b[2Ja.jpg", "\x9b1\u202e.jpg", "ü.jpg"]
    content = min(there.iterdir()).read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(content)
    model = Path("data/model").absolute()
    monkeypatch.chdir(tmp_path)
    outputs = []
    for form in ("text", "csv", "json"):
        _, out, err = command("--model", model, "--form", form, "--", *names, "@gone\x1b.jpg")
        assert (out + err).replace("\n", "").isprintable()
        outputs.append(out)
    cells = [row["file"] for row in csv.DictReader(StringIO(outputs[1]))]
    assert cells == [
        "'=1+2.jpg",
        "'+1.jpg",
        "'-1.jpg",
        "'@a.jpg",
        "\\x1b[2Ja.jpg",
        "\\x9b1\\u202e.jpg",
        "ü.jpg",
        "'@gone\\x1b.jpg",
    ]
    files = [json.loads(line)["file"] for line in outputs[2].splitlines()]
    assert files == [*names, "@gone\x1b.jpg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one image or video, or more; see --help"),
        (["--resume", "a.jpg"], "--resume needs --record FILE"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--model", "nowhere", "a.jpg"], "nowhere: no weights.safetensors in it"),
        (["."], r"\.: a folder without images"),
        (["--verify", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["--model", "models:/nobody@champion", "a.jpg"], "--model models:/nobody@champion: "),
    ],
)
def test_a_wrong_command_is_one_line(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    empty = arguments == ["."]
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    arguments = [str(tmp_path)] if empty else arguments
    monkeypatch.setattr(sys, "argv", ["detect", *arguments])
    with pytest.raises(UserError, match="a folder without images" if empty else words) as error:
        detect.main()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_wrong_command_ends_with_1(there: Path) -> None:
    done = run(sys.executable, "-m", "stages.tools.detect", cwd=Path.cwd(), check=False)
    assert (
        done.returncode == 1
        and done.stderr == "error: name one image or video, or more; see --help\n"
    )


@pytest.mark.parametrize(("threshold", "verdict"), [(0.0, "fake"), (1.0, "real")])
def test_a_fake_may_set_the_exit_code(
    there: Path, command: Command, tmp_path: Path, threshold: float, verdict: str
) -> None:
    """With rules that call every image so."""
    rules = json.loads(Path("data/verdict_rules.json").read_text())
    rules["thresholds"] |= dict.fromkeys(("fake_from", "real_below", "middle"), threshold)
    rules["trained_on"] |= {"side": [1, 9999], "face": None, "jpeg_quality": None}
    copy_detector(Path(), tmp_path, **rules)
    arguments = [min(there.iterdir()), "--model", tmp_path]
    assert command(*arguments)[:2][1].splitlines()[2].startswith(verdict)
    expected = 3 if verdict == "fake" else 0
    assert command(*arguments, "--fail-on-fake")[0] == expected
    assert command(*arguments, "nowhere.jpg", "--fail-on-fake")[0] == (expected or 2)
    assert command(*arguments)[0] == 0


def test_a_record_is_taken_up_where_it_ended(
    there: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, record = sorted(there.iterdir())[:8], tmp_path / "record.jsonl"
    command("--record", record, *files[:5])
    with record.open("a") as file:
        file.write('{"sha256":"cut off')
    batches: list[int] = []
    examine = detect.Examiner.examine

    def counting(self: detect.Examiner, contents: list[bytes]) -> Any:
        batches.append(len(contents))
        return examine(self, contents)

    monkeypatch.setattr(detect.Examiner, "examine", counting)
    code, out, err = command("--json", "--record", record, "--resume", *files)
    assert code == 0 and batches == [3] and len(out.splitlines()) == 8
    assert f"{record}:6: half-written by a process that was stopped; no verdict; it is " in err
    assert len(record.read_text().splitlines()) == 8
    code, *_ = command("--json", "--record", record, "--resume", "--no-crop", *files)
    assert batches == [3, 8]  # cut out or not is another verdict
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(files[0].read_bytes())
    command("--record", record, "--resume", copy)
    assert json.loads(record.read_text().splitlines()[-1])["file"] == str(copy)
    command("--record", record, "--resume", files[0], copy)
    assert len(record.read_text().splitlines()) == 17


def test_a_record_is_repeated_and_differences_are_told(
    there: Path, command: Command, tmp_path: Path
) -> None:
    record, copies = tmp_path / "record.jsonl", tmp_path / "copies"
    copies.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (copies / name).write_bytes(min(there.iterdir()).read_bytes())
    command("--record", record, copies)
    code, out, err = command("--verify", record)
    names = ("a.jpg", "b.jpg", "c.jpg")
    assert (code, out) == (0, "".join(f"same     {copies / name}  \n" for name in names))
    assert "What cannot be verified: the time of a verdict, the name" in err
    whole = record.read_text()
    record.write_text(whole[:-9])
    code, out, err = command("--verify", record)
    assert code == 2 and out.count("same") == 2 and f"{record}:3: half-written" in err
    record.write_text(whole)
    moved = copies.rename(tmp_path / "moved")
    code, out, _ = command("--verify", record)
    assert code == 2 and out.count("No such file or directory; name the folder") == 3
    assert command("--verify", record, moved)[0] == 0
    lines = record.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["faces"][0]["score"] += 0.1
    changed["verdict"] = {"real": "fake"}.get(changed["verdict"], "real")
    record.write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    code, out, _ = command("--verify", record, moved)
    assert code == 2 and out.count("DIFFERS") == 1 and "faces 1 score: 0." in out
    forged = json.loads(lines[1])
    forged["provenance"]["camera"] = {"make": "Canon"}
    record.write_text("\n".join([lines[0], json.dumps(forged), lines[2]]))
    code, out, _ = command("--verify", record, moved)
    assert code == 2 and out.count("DIFFERS") == 1 and out.count("same") == 2
    assert "provenance camera: {}, not {'make': 'Canon'}" in out
    (moved / "unread.jpg").symlink_to("unread.jpg")
    assert "not read " in command("--verify", record, moved)[1]
    code, out, _ = command("--verify", record, moved, "--no-crop")
    assert code == 2 and out.count("DIFFERS") == 3 and "(face_share None)" in out


def test_a_page_explains_each_image_without_a_network(
    there: Path, command: Command, tmp_path: Path
) -> None:
    file = min(there.iterdir())
    command(file, "--explain", tmp_path)
    (page,) = tmp_path.glob(f"{file.stem}-*.html")
    text = page.read_text()
    for words in (
        "What this does not tell you",
        "heatmap",
        "none in this file",
        "data:image/png;base64,",
    ):
        assert words in text
    assert "http" not in text
    told = f"<p><b>{DOUBTS['trained on drawn faces alone']}</b> Its verdict is: "
    assert told in text and "probability" not in text and "Stability" not in text
    believed = copy_detector(Path(), tmp_path / "detector", doubt=None)
    command(file, "--explain", tmp_path / "more", "--model", believed)
    (page,) = (tmp_path / "more").iterdir()
    for words in ("probability of a fake", "Stability", "three quarters"):
        assert words in page.read_text()


def test_a_detector_of_the_registry_gives_the_verdicts_of_its_folder(
    there: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    files = sorted(there.iterdir())[:3]
    registered = "models:/deepfake-detector-generated-sample/1"
    assert command("--model", registered, *files)[:2] == command(*files)[:2]


@pytest.fixture(scope="module")
def exported(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "detector"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pipeline)
        patch.setattr(sys, "argv", ["export", str(folder)])
        export.main()
    return folder


def test_an_exported_detector_gives_the_same_verdicts(
    there: Path, command: Command, exported: Path
) -> None:
    facts = json.loads((exported / "export.json").read_text())
    assert facts["num_images"] > 20
    assert max(facts["largest_difference_of_logits"].values()) < 1e-4
    assert set(facts["changed_verdicts"].values()) == {0.0}
    assert set(facts["auc"].values()) == {facts["auc"]["detector"]}
    plain, fast = (
        [json.loads(line) for line in command("--json", *arguments, there)[1].splitlines()]
        for arguments in ([], ["--model", exported])
    )
    assert {one["detector"]["runtime"] for one in plain} == {"torch"}
    assert {one["detector"]["runtime"] for one in fast} == {"onnxruntime"}
    for one, other in zip(plain, fast, strict=True):
        assert one["verdict"] == other["verdict"]
        for face, same in zip(one["faces"], other["faces"], strict=True):
            assert face["score"] == pytest.approx(same["score"], abs=1e-5)
            assert 0 < face["distance"] == pytest.approx(same["distance"], abs=1e-5)


def test_an_int8_network_is_used_and_told_apart(
    there: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = tmp_path / "int8", tmp_path / "record.jsonl"
    monkeypatch.setattr(sys, "argv", ["export", str(folder), "--int8"])
    with monkeypatch.context() as patch:
        patch.setattr(export, "AUC_TOLERANCE", -1.0)
        with pytest.raises(UserError, match=r"--int8: its AUC is 0\.\d+, that of the detector 0\."):
            export.main()
    assert not folder.exists()
    monkeypatch.setattr(export, "AUC_TOLERANCE", 0.5)  # this model is a poor one
    export.main()
    facts = json.loads((folder / "export.json").read_text())
    assert facts["largest_difference_of_logits"]["detector.int8.onnx"] > 1e-3
    assert facts["largest_difference_of_logits"]["detector.onnx"] < 1e-4
    command("--model", folder, "--record", record, there)
    detectors = [json.loads(line)["detector"] for line in record.read_text().splitlines()]
    assert all(one["quantised"] and one["runtime"] == "onnxruntime" for one in detectors)
    assert {one["network"] for one in detectors} == {facts["sha256"]["detector.int8.onnx"]}
    assert command("--verify", record, "--model", folder)[0] == 0
    code, out, err = command("--verify", record)
    assert code == 2
    assert "(int8, face_share" in out
    words = "made elsewhere; here: arithmetic portable fp32, not native, runtime torch, not onnx"
    assert words in err


@pytest.mark.parametrize("damage", ["network", "facts", "weights"])
def test_a_damaged_export_is_refused(
    there: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    network, facts = tmp_path / "detector.onnx", tmp_path / "export.json"
    if damage == "network":
        network.write_bytes(network.read_bytes()[:-1] + b"x")
    elif damage == "facts":
        facts.unlink()
    else:
        known = json.loads(facts.read_text())
        facts.write_text(json.dumps(known | {"weights_sha256": "0" * 64}))
    monkeypatch.setattr(sys, "argv", ["detect", "--model", str(tmp_path), str(there)])
    with pytest.raises(
        UserError, match=r"detector.onnx: damaged, or not of the detector beside it"
    ):
        detect.main()


def test_an_export_never_takes_the_place_of_other_files(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    for target in (tmp_path, tmp_path / "diary.txt", Path("data/model")):
        monkeypatch.setattr(sys, "argv", ["export", str(target)])
        with pytest.raises(UserError, match="exists, and no export is in it; name a new folder"):
            export.main()
    assert (tmp_path / "diary.txt").read_text() == "dear diary"
