"""Portable arithmetic: the same bytes on every x86-64 CPU with AVX2; native: as fast as it goes."""

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages.lib.core.arithmetic import PINNED_ALWAYS, PINNED_IF_PORTABLE
from stages.lib.detector import hardware as runtime
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.results import ImageVerdict
from stages.predict import main as predict
from stages.train import main as train
from tests import portable
from tests.conftest import ROOT, run, set_params

WHAT_A_STAGE_USES = """
import sys
sys.argv[0] = "-m"  # as Python has it while it imports the package of `python -m stages.NAME`
import stages
from stages.lib.core.arithmetic import arithmetic_in_use
import numpy, torch
from numpy._core._multiarray_umath import __cpu_features__ as numpy_uses
print(arithmetic_in_use(), torch.backends.cpu.get_cpu_capability(), numpy_uses["X86_V4"])
"""
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.cpu._is_avx2_supported(),
    reason="portable arithmetic is promised on x86-64 CPUs with AVX2",
)


@on_x86
def test_this_cpu_computes_the_bytes_that_were_written_down() -> None:
    """Two steps of training, facts of images, an audit, intervals: see tests/portable.py."""
    expected, found = portable.read(), portable.compute()
    if found["versions"] != expected["versions"]:
        pytest.skip(f"the digests are of {expected['versions']}, not of {found['versions']}")
    assert found == expected


@on_x86
@pytest.mark.parametrize("setting", ["portable", "native"])
def test_a_stage_pins_the_kernels_before_pytorch_is_imported(
    tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PINNED_ALWAYS, *PINNED_IF_PORTABLE):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"train.arithmetic": setting})
    done = run(sys.executable, "-c", WHAT_A_STAGE_USES, cwd=tmp_path)
    used, kernels, numpy_uses_avx512 = done.stdout.split()
    assert used == setting
    assert numpy_uses_avx512 == "False"
    if setting == "portable":
        assert kernels == "AVX2"


def test_a_detector_that_is_trained_in_bf16_scores_in_fp32_everywhere(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores in bf16 are others, and would not fit thresholds that fp32 has chosen."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    monkeypatch.setattr(runtime, "has_native_bf16", lambda device: True)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    set_params(workspace, {"train.arithmetic": "native", "predict.batch_size": 7})
    train()
    assert json.loads(Path("data/model/config.json").read_text())["trained_in"] == "native bf16"
    predict()
    run("python", "-m", "stages.evaluate", cwd=workspace)
    judge = Examiner(Path("data/model"), set_up_hardware("cpu", 1), crop=False, max_pixels=10**6)
    scores = pd.read_csv("data/scores/val.csv")
    images = [file_of(workspace, name).read_bytes() for name in scores["img_name"]]
    found = [one.faces[0].logit for one in judge.examine(images) if isinstance(one, ImageVerdict)]
    assert found == pytest.approx(scores["logit"], abs=1e-5)


def file_of(workspace: Path, name: str) -> Path:
    return workspace / "drawn/phase1/valset" / name


def test_figures_have_no_more_digits_than_two_machines_agree_on(pipeline: Path) -> None:
    report = json.loads((pipeline / "metrics/evaluation.json").read_text())
    numbers = [number for number in leaves(report) if isinstance(number, float)]
    assert len(numbers) > 20
    assert all(number == float(f"{number:.9g}") for number in numbers)
    for file in (pipeline / "metrics/plots").glob("*.csv"):
        table = pd.read_csv(file).select_dtypes("number")
        assert np.array_equal(table, table.round(9), equal_nan=True), file


def leaves(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [value]
    return [leaf for part in value.values() for leaf in leaves(part)]


def test_the_kernels_of_this_process_are_pinned() -> None:
    """tests/__init__.py has done so; else the digests above would be of another arithmetic."""
    assert PINNED_IF_PORTABLE.items() <= os.environ.items()
