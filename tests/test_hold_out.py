"""Families held out: nothing is trained or chosen on them, and they are reported as unseen."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stages import card, evaluate, pack, predict, prepare, sample, train
from stages.lib.core.errors import UserError
from stages.lib.core.labels import FAKE, REAL, read_labels
from stages.lib.drawing.photograph import FAMILIES
from tests.conftest import TINY, clone_project, readme_commands, run, set_params, wait_for_queue

HELD_OUT = "face_swap"
SEEN = ("train", "val", "calibration")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the sample drawn and packed; copy before changing."""
    clone = clone_project(tmp_path_factory.mktemp("drawn"), TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        sample.main()
        pack.main()
    return clone


@pytest.fixture
def workspace(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    workspace = shutil.copytree(drawn, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    return workspace


def prepared(workspace: Path, families: list[str]) -> dict[str, pd.DataFrame]:
    """Prepare with these families held out; return the label files."""
    set_params(workspace, {"prepare.hold_out_families": families})
    prepare.main()
    return {path.stem: read_labels(path) for path in Path("data/labels").glob("*.csv")}


def test_what_is_held_out_is_gone_from_all_that_is_seen(workspace: Path) -> None:
    whole = prepared(workspace, [])
    assert whole["held_out"].empty
    part = prepared(workspace, [HELD_OUT])
    for name in SEEN:
        kept = whole[name][whole[name]["family"] != HELD_OUT]
        assert len(kept) < len(whole[name])
        pd.testing.assert_frame_equal(part[name], kept.reset_index(drop=True))
    expected = whole["val"][whole["val"]["family"] == HELD_OUT]
    pd.testing.assert_frame_equal(part["held_out"], expected.reset_index(drop=True))
    report = json.loads(Path("metrics/data.json").read_text())
    assert report["held_out"] == {HELD_OUT: len(expected)}
    assert "val/held_out" not in report["duplicates"]["groups_across_sets"]


def test_they_are_reported_as_unseen(workspace: Path) -> None:
    labels = prepared(workspace, [HELD_OUT, "reenactment"])
    for stage in (train, predict, evaluate, card):
        stage.main()
    text = Path("metrics/model_card.md").read_text()
    assert "the reals of val: face_swap, reenactment." in text
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    num_real = int((labels["val"]["target"] == REAL).sum())
    assert metrics["held_out"]["num_real"] == metrics["val"]["num_real"] == num_real
    assert metrics["held_out"]["num_fake"] == len(labels["held_out"])
    # The reals of val count once.
    assert metrics["pooled"]["num_real"] == num_real
    num_fake = len(labels["held_out"]) + int((labels["val"]["target"] == FAKE).sum())
    assert metrics["pooled"]["num_fake"] == num_fake
    assert HELD_OUT not in metrics["val"].get("families", {})
    assert "cross" not in metrics


def test_what_cannot_be_held_out_is_refused(workspace: Path) -> None:
    with pytest.raises(
        UserError, match="hold_out_families.*no fakes of 'face_swop'; it has .*face_swap"
    ):
        prepared(workspace, ["face_swop"])
    with pytest.raises(UserError, match="the train set .* has no fake image"):
        prepared(workspace, list(FAMILIES))
    assert not Path("data/labels").exists()


@pytest.mark.slow
def test_leaving_one_family_out_as_the_readme_shows(tmp_path: Path) -> None:
    clone = clone_project(tmp_path, TINY)
    run("dvc", "repro", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "baseline", cwd=clone)
    *before, summary = readme_commands("dvc exp run --queue -S 'prepare.hold_out_families")
    for command in before:
        run("bash", "-c", command, cwd=clone)
    wait_for_queue(clone)
    shown = run("bash", "-c", summary, cwd=clone).stdout
    for family in FAMILIES:
        (line,) = [line for line in shown.splitlines() if family in line]
        assert line.split("  ")[-1].strip(), line
