"""The record of verdicts: what a line is, who writes it, and how a verdict is repeated."""

import json
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import lock_descriptor

from stages.lib.core.errors import UserError
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.record import (
    Record,
    append_records,
    identity_of,
    make_record,
    open_record,
    read_records,
)
from stages.lib.verdict.results import ImageVerdict
from stages.lib.verdict.verification import differences, other_circumstances


@pytest.fixture(scope="module")
def record(pipeline: Path) -> Record:
    """The record of one image."""
    hardware = set_up_hardware("cpu", 1)
    examiner = Examiner(pipeline / "data/model", hardware, crop=False, max_pixels=1_000_000)
    content = min((pipeline / "data/raw/sample/phase1/valset").iterdir()).read_bytes()
    (verdict,) = examiner.examine([content])
    assert isinstance(verdict, ImageVerdict)
    return make_record("a.jpg", verdict, identity_of(examiner), content)


# ---------------------------------------------------------------------------------------------
# Lines


def test_a_record_is_read_back_and_a_half_written_line_is_told(
    record: Record, tmp_path: Path
) -> None:
    path = tmp_path / "record.jsonl"
    append_records(path, [record])
    assert read_records(path) == ([record], "")
    whole = path.read_bytes()
    for half in (b"{", b'{"sha256"', b'{"sha256": "cut off by a', whole[:-2]):
        path.write_bytes(whole + half)
        words = f"{path}:2: half-written by a process that was stopped; no verdict"
        assert read_records(path) == open_record(path) == ([record], words)
        append_records(path, [record, record])
        assert path.read_bytes() == 3 * whole


def test_a_last_line_without_its_newline_is_a_record_and_stays(
    record: Record, tmp_path: Path
) -> None:
    """An editor, or a copy, has removed the newline."""
    path = tmp_path / "record.jsonl"
    append_records(path, [record] * 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read_records(path) == ([record] * 2, "")
    append_records(path, [record])
    assert path.read_bytes() == whole + whole[: len(whole) // 2]


def test_another_file_is_refused_and_stays_as_it_is(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    line = record.model_dump_json()
    lists = ("no list", "a list without an end", "{}", f"{{}}\n{line}", f"{line[:-9]}\n{line}\n")
    for other in lists:
        path.write_text(other)
        with pytest.raises(UserError, match=r"record.jsonl:1: not the record of a verdict"):
            open_record(path)
        assert path.read_text() == other
    with pytest.raises(UserError, match=r"--record .*nowhere/a: No such file or directory; name"):
        open_record(tmp_path / "nowhere/a")


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero", "pipe", "folder"])
def test_only_a_regular_file_is_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of others, some wait for ever and some have no end."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    for use in (open_record, read_records):
        with pytest.raises(UserError, match=f"{name}: not a regular file; name one for the record"):
            use(Path(name))


def test_a_record_from_before_has_no_doubt(record: Record, tmp_path: Path) -> None:
    old = record.model_dump() | {"probability": 0.5}
    old.pop("doubt")
    path = tmp_path / "record.jsonl"
    path.write_text(json.dumps(old) + "\n")
    ((read,), _) = read_records(path)
    assert read.doubt is None and read.probability == 0.5


# ---------------------------------------------------------------------------------------------
# Writers


def test_a_writer_waits_for_the_line_of_another_one(record: Record, tmp_path: Path) -> None:
    path, line = tmp_path / "record.jsonl", record.model_dump_json().encode() + b"\n"
    second = threading.Thread(target=append_records, args=(path, [record]))
    with path.open("ab", buffering=0) as first:
        lock_descriptor(first.fileno())
        first.write(line[:100])
        second.start()
        time.sleep(0.3)
        assert path.read_bytes() == line[:100]
        first.write(line[100:])
    second.join(10)
    assert path.read_bytes() == 2 * line


def test_a_full_disk_leaves_whole_lines(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    append_records(path, [record])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-50])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(3.5 * len(whole)), limits[1]))
    try:
        words = "File too large; its lines are whole: make room"
        with pytest.raises(UserError, match=words) as error:
            append_records(path, [record] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == whole
    append_records(path, [record] * 3)
    assert path.read_bytes() == 4 * whole


# ---------------------------------------------------------------------------------------------
# A repeated verdict


def changed(record: Record, name: str, change: Callable[[Any], Any]) -> Record:
    """Return a record in which one number or word is another one; name: with dots."""
    content = record.model_dump()
    *parts, last = name.split(".")
    place: Any = content
    for part in parts:
        place = place[int(part) if part.isdigit() else part]
    place[last] = change(place[last])
    return Record.model_validate(content)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("verdict", lambda word: {"real": "fake"}.get(word, "real")),
        ("doubt", lambda _: None),
        ("probability", lambda _: 0.946),
        ("reasons", lambda _: ["no_face", "small_face", "unstable"]),
        ("width", lambda number: number + 1),
        ("format", lambda _: "PNG"),
        ("faces.0.score", lambda number: number + 2e-4),
        ("faces.0.distance", lambda number: 1.001 * number),
        ("no_sign_of", lambda _: "anything"),
        ("faces.0.box", lambda _: [1, 2, 3, 4]),
        ("provenance.camera", lambda _: {"make": "Canon"}),
        ("provenance.source_types", lambda _: ["digitalCapture"]),
        ("detector.model", lambda _: "resnet152"),
        ("detector.network", lambda _: "f" * 64),
        ("detector.thresholds.fake_from", lambda number: number - 1e-6),
        ("detector.thresholds.num_real", lambda number: number + 1),
    ],
)
def test_what_was_forged_is_told(record: Record, name: str, change: Callable[[Any], Any]) -> None:
    (words,) = differences(changed(record, name, change), record)
    place = " ".join(str(int(part) + 1) if part.isdigit() else part for part in name.split("."))
    assert words.startswith(place)


def test_a_verdict_may_be_repeated_elsewhere(record: Record) -> None:
    """By another network of the same detector too, which is told apart."""
    assert differences(record, record) == []
    for name, change in (
        ("time", lambda _: "2020-01-01T00:00:00+00:00"),
        ("file", lambda _: "b.jpg"),
        ("detector.device", lambda _: "cuda"),
        ("detector.versions", lambda _: {"torch": "1"}),
        ("faces.0.score", lambda number: number + 9e-5),
    ):
        assert differences(changed(record, name, change), record) == []
    exported = changed(record, "detector.runtime", lambda _: "onnxruntime")
    exported = changed(exported, "detector.network", lambda _: "f" * 64)
    assert differences(exported, record) == []
    words = other_circumstances(exported.detector, record.detector)
    weights = record.detector.weights
    assert words == f"runtime torch, not onnxruntime, network {weights}, not {'f' * 64}"
