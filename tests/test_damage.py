"""What a stage is given is checked where DVC cannot know: one line, with the file and a remedy."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from stages import card, evaluate, explain, pack, predict, prepare, publish, submit, train
from stages.chores import plots
from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder
from stages.lib.detector.inference import Inference
from stages.lib.images.packed_images import PackedImages, read_facts
from stages.lib.running import STORAGE_FAULTS, run_stage
from stages.lib.training.loop import TrainingLoop
from stages.tools import judge
from tests.conftest import ROOT, run, set_params

MODEL, SCORES, LABELS, PACKED = "data/model", "data/scores", "data/labels", "data/packed/training"
Damage = Callable[[Path], None]


@pytest.fixture
def clone(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished pipeline, to damage."""
    copy = tmp_path / "clone"
    for name in ("data", "metrics", "params.yaml"):
        source = pipeline / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("raw"))
        else:
            shutil.copy2(source, copy / name)
    for path in copy.rglob("*"):  # DVC's links are read-only
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.setenv("TRACKING", "off")
    return copy


def cut(name: str, share: float = 0.5) -> Damage:
    def damage(clone: Path) -> None:
        content = (clone / name).read_bytes()
        (clone / name).write_bytes(content[: int(len(content) * share)])

    return damage


def changed(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    def damage(clone: Path) -> None:
        table = pd.read_csv(clone / name, dtype=str, keep_default_na=False)
        change(table).to_csv(clone / name, index=False)

    return damage


def in_order(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    """Change a table, and what is known of it: as if its stage had written it so."""

    def damage(clone: Path) -> None:
        changed(name, change)(clone)
        digest = hashlib.sha256((clone / name).read_bytes()).hexdigest()
        if name.startswith(SCORES):
            views = json.loads((clone / SCORES / "views.json").read_text())
            views["scores"][Path(name).stem] = digest
            (clone / SCORES / "views.json").write_text(json.dumps(views))
        else:
            write_digest(clone / name)

    return damage


def score(value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(score=value)


def without(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=column)


def flip_a_byte(clone: Path) -> None:
    content = bytearray((clone / MODEL / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (clone / MODEL / "weights.safetensors").write_bytes(content)


def flip_a_bit(name: str, of: bytes = b"") -> Damage:
    """Flip a bit in the middle of a file, or in the middle of some bytes in it."""

    def damage(clone: Path) -> None:
        content = bytearray((clone / name).read_bytes())
        content[content.index(of) + (len(of) or len(content)) // 2] ^= 1
        (clone / name).write_bytes(content)

    return damage


def flip_a_bit_of_a_image(clone: Path) -> None:
    flip_a_bit(
        f"{PACKED}/val/images-00000.arrow",
        bytes(PackedImages(clone / PACKED / "val")[3]),
    )(clone)


def train_for_val(clone: Path) -> None:
    shutil.rmtree(clone / PACKED / "val")
    shutil.copytree(clone / PACKED / "train", clone / PACKED / "val")


def gone(name: str) -> Damage:
    return lambda clone: (clone / name).unlink()


def of_other_weights(name: str, key: str) -> Damage:
    def damage(clone: Path) -> None:
        content = json.loads((clone / name).read_text())
        content[key] = "0" * len(content[key])
        (clone / name).write_text(json.dumps(content))

    return damage


def empty_images(clone: Path) -> None:
    source = clone / PACKED / "val/images-00000.arrow"
    source.unlink()


def judge_own() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["judge", "own"])
        judge.main()


READERS: dict[str, tuple[Callable[[], None], ...]] = {
    f"{SCORES}/views.json": (evaluate.main, explain.main, submit.main),
    f"{MODEL}/config.json": (evaluate.main, card.main, publish.main, judge_own),
    f"{MODEL}/history.csv": (evaluate.main, publish.main),
    "metrics/evaluation.json": (card.main, publish.main),
    "metrics/data.json": (card.main, publish.main, judge_own),
    "metrics/plots/roc.csv": (card.main, publish.main),
    "metrics/plots/history.csv": (card.main,),
    "metrics/tables/intervals.csv": (card.main, publish.main),
}
CASES: list[tuple[Callable[[], None], Damage, str]] = [
    (predict.main, cut(f"{MODEL}/weights.safetensors"), "weights.safetensors: not the weights"),
    (predict.main, flip_a_byte, "weights.safetensors: not the weights that config.json names"),
    (predict.main, of_other_weights(f"{MODEL}/config.json", "weights_sha256"),
     "config.json: changed since it was written, or of another"),
    (predict.main, cut(f"{MODEL}/distance.safetensors"), "distance.safetensors: absent, damaged"),
    (predict.main, cut(f"{MODEL}/config.json"), "config.json: not a detector's configuration"),
    (predict.main, lambda c: (c / MODEL / "config.json").unlink(), "no config.json in it"),
    (predict.main, cut(f"{PACKED}/val/images-00000.arrow"), "images-00000.arrow: damaged"),
    (predict.main, empty_images, "val: 0 images, the labels name row"),
    (predict.main, in_order(f"{LABELS}/val.csv", without("row")), "no column row"),
    (train.main, in_order(f"{LABELS}/train.csv", lambda t: t.assign(row="x")), "csv: damaged"),
    (train.main, gone(f"{LABELS}/val.csv"), "val.csv: no such file"),
    (evaluate.main, in_order(f"{SCORES}/val.csv", score("nan")), "val.csv: damaged"),
    (evaluate.main, in_order(f"{SCORES}/val.csv", score("1.5")), "val.csv: .* not a"),
    (evaluate.main, in_order(f"{SCORES}/val.csv", without("logit")), "no column logit"),
    (submit.main, in_order(f"{SCORES}/test.csv", score("inf")), "test.csv: .* not a"),
    # Tables that are whole by themselves, and images that can be decoded
    (train.main, changed(f"{LABELS}/train.csv", lambda t: t[:20]), "train.csv: damaged"),
    (predict.main, changed(f"{LABELS}/test.csv", lambda t: t[:2]), "test.csv: damaged, or changed"),
    (predict.main, gone(f"{LABELS}/test.sha256"), "test.csv: no digest of it in test.sha256"),
    (predict.main, flip_a_bit_of_a_image, "val: .*: not the bytes that the labels name"),
    (predict.main, train_for_val, "val: .*: not the bytes that the labels name"),
    (explain.main, train_for_val, "val: .*: not the bytes that the labels name"),
    (train.main, train_for_val, "val: .*: not the bytes that the labels name"),
    (prepare.main, flip_a_bit(f"{PACKED}/val/facts.parquet"), "facts.parquet: damaged, or changed"),
    (submit.main, cut("data/packed/test/facts.parquet"), "facts.parquet: damaged, or changed"),
    # Scores of other images, or of another detector
    *((stage, changed(f"{SCORES}/val.csv", lambda t: t[::-1]), "val.csv: damaged, or not as")
      for stage in (evaluate.main, explain.main, publish.main)),
    (submit.main, changed(f"{SCORES}/test.csv", lambda t: t[::-1]), "test.csv: damaged, or not as"),
    (evaluate.main, changed(f"{SCORES}/robustness.csv", lambda t: t[:99]), "damaged, or not as"),
    *((stage, of_other_weights(f"{SCORES}/views.json", "weights_sha256"), "scores of other weights")
      for stage in (evaluate.main, explain.main, submit.main, publish.main)),
    *((stage, in_order(f"{LABELS}/val.csv", lambda t: t[::-1]), "not of the images of .*val.csv")
      for stage in (evaluate.main, explain.main, publish.main)),
    *((stage, of_other_weights("metrics/evaluation.json", "weights"), "of other weights than")
      for stage in (card.main, publish.main)),
    (publish.main, of_other_weights("data/verdict_rules.json", "weights_sha256"), "rules of an"),
    # What stages say to each other
    *((stage, damage(name), f"{name}: {words}")
      for name, stages in READERS.items() for stage in stages
      for damage, words in ((gone, "no such file"), (cut, "damaged"))),
    (card.main, lambda c: (c / "metrics/data.json").write_text("{}"), "it has no generated_sample"),
    (publish.main, gone("data/card/model_card.html"), "model_card.html: no such file"),
    (publish.main, gone("data/verdict_rules.json"), "verdict_rules.json: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "damage", "words"), CASES)
def test_damage_is_one_line_that_names_the_file(
    clone: Path, stage: Callable[[], None], damage: Damage, words: str
) -> None:
    damage(clone)
    with pytest.raises(UserError, match=words) as error:
        stage()
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    assert "dvc " in message


def second_row_is_elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(row=table["row"].where(table.index != 1, "12345"))


@pytest.mark.parametrize(
    ("damage", "changes", "words"),
    [
        (empty_images, {"num_workers": 2}, "0 images, the labels name row"),
        pytest.param(
            in_order(f"{LABELS}/val.csv", second_row_is_elsewhere),
            {"num_processes": 2},
            "images, the labels name row 12345",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["worker", "second-process"],
)
def test_a_process_that_meets_damage_ends_the_stage_with_one_line(
    pipeline: Path, clone: Path, damage: Damage, changes: dict[str, int], words: str
) -> None:
    shutil.copytree(pipeline / "stages", clone / "stages")
    set_params(clone, {f"predict.{name}": value for name, value in changes.items()})
    damage(clone)
    done = run("python", "-m", "stages.predict", cwd=clone, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: data/packed/training/val: ")
    assert words in line


def test_what_was_packed_and_is_damaged_is_packed_anew(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data/packed and what pack remembers are hard links to the same bytes."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    pack.main()
    images = Path(PACKED, "val/images-00000.arrow")
    whole, facts = images.read_bytes(), read_facts(Path(PACKED, "val"))
    content = bytearray(whole)
    content[content.index(bytes(PackedImages(Path(PACKED, "val"))[3])) + 500] ^= 1
    with images.open("r+b") as file:  # in place, as a disk does
        file.write(content)
    pack.main()
    assert images.read_bytes() == whole
    shards = list(workspace.glob(".dvc/tmp/pack/*/*/old-00000/facts-00000.parquet"))
    assert len(shards) == 3
    for shard in shards:
        flip_a_bit(shard.name)(shard.parent)
    pack.main()
    assert read_facts(Path(PACKED, "val")).equals(facts)


def test_what_a_killed_command_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".exported.partial").mkdir()
    (tmp_path / ".exported.partial/half").touch()
    with atomic_folder(tmp_path / "exported") as folder:
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "whole"]


def test_curves_that_are_damaged_are_not_drawn(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut("metrics/plots/roc.csv")(clone)
    monkeypatch.setattr(sys, "argv", ["plots"])
    with pytest.raises(UserError, match="roc.csv: damaged, or changed since it was written"):
        plots.main()


def test_a_file_that_is_damaged_in_the_cache_of_dvc_is_found_and_made_again(tmp_path: Path) -> None:
    """An edit in place goes through a hard link, and DVC trusts what is read-only."""
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)
    run("dvc", "config", "cache.type", "hardlink", cwd=tmp_path)
    stage = "stages:\n  s:\n    cmd: mkdir out && seq 9 > out/a && seq 99 > b\n    outs: [out, b]\n"
    (tmp_path / "dvc.yaml").write_text(stage)
    run("dvc", "repro", cwd=tmp_path)
    files = [tmp_path / "out/a", tmp_path / "b"]
    whole = [file.read_bytes() for file in files]
    shutil.rmtree(tmp_path / "out")
    files[1].unlink()
    run("dvc", "checkout", cwd=tmp_path)
    check_cache = ("python", "-m", "stages.chores.check_cache")
    done = run(*check_cache, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "all 3 files in DVC's cache are whole" in done.stdout  # the third one lists the folder
    for file in files:
        file.chmod(0o644)
        os.truncate(file, 5)
        file.chmod(0o444)
    done = run(*check_cache, cwd=tmp_path, check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.startswith("error: 2 of 3 files in DVC's cache were damaged and are removed")
    run("dvc", "repro", cwd=tmp_path)
    assert [file.read_bytes() for file in files] == whole
    run(*check_cache, cwd=tmp_path, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize(("stage", "free"), [(train, 1_000_000), (predict, 0)])
def test_where_there_is_no_room_nothing_is_computed(
    clone: Path, monkeypatch: pytest.MonkeyPatch, stage: ModuleType, free: int
) -> None:
    monkeypatch.setattr(TrainingLoop, "train_epoch", lambda *_: pytest.fail("it has trained"))
    monkeypatch.setattr(Inference, "logits_of", lambda *_: pytest.fail("it has scored"))
    usage = shutil.disk_usage(clone)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"data: \d MB are free, \d MB are needed; make room"):
        stage.main()


@pytest.mark.parametrize("number", STORAGE_FAULTS)
def test_a_fault_of_the_storage_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "data/scores/val.csv")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_stage(fail)
    assert end.value.code == 1
    expected = f"error: data/scores/val.csv: {os.strerror(number)}; make room"
    assert capsys.readouterr().err.startswith(expected)
