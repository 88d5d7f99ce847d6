"""How a stage starts and ends: it never outlives its DVC, and never writes beside another one."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from stages.lib import progress, running
from stages.lib.core.errors import UserError
from stages.lib.running import AFTER_A_KILL
from stages.lib.training.reporting import HEADINGS
from tests.conftest import ROOT, environment, run, set_params, wait_for

KILLED = f"error: process 1 of 2 was killed by SIGKILL; {AFTER_A_KILL}"
# PyTorch has two sentences for it.
WORKER = r"worker \(pid\S* \d+\) (is killed by signal: Killed|exited unexpectedly)"
# Takes the place of DVC: starts a stage through a shell, says its pid, and waits.
FAKE_DVC = """
import os, subprocess, sys
command = f"sleep {sys.argv[1]}; python -m stages.train"
child = subprocess.Popen(["sh", "-c", command], env=os.environ | {"DVC_STAGE": "train"})
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def endless(workspace: Path) -> Path:
    """A workspace whose training takes long."""
    set_params(workspace, {"train.epochs": 5000})
    (workspace / "dvc").write_text(FAKE_DVC)
    return workspace


@pytest.fixture
def left() -> Iterator[list[psutil.Process]]:
    """Processes that are killed at the end, whatever happens."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [(1, 0.0), (0, 0.2), (0, 0.8), (0, 5.0)],
    ids=["before-it-starts", "as-it-starts", "while-it-imports", "later"],
)
def test_a_stage_ends_with_the_dvc_that_started_it(
    endless: Path, left: list[psutil.Process], delay: float, seconds: float
) -> None:
    env = environment() | {"TRACKING": "off"}
    command = [sys.executable, "dvc", str(delay)]
    dvc = subprocess.Popen(command, cwd=endless, env=env, stdout=subprocess.PIPE, text=True)
    assert dvc.stdout
    shell = psutil.Process(int(dvc.stdout.readline()))
    left.append(shell)
    try:
        dvc.wait(seconds)
    except subprocess.TimeoutExpired:
        left += shell.children()
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not shell.is_running() or shell.status() == psutil.STATUS_ZOMBIE, seconds=15)
    assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not list((endless / "data").glob("*model*"))


@pytest.mark.parametrize(
    ("num_processes", "num_workers", "victim", "line"),
    [
        (1, 1, "worker", f"error: DataLoader worker died; {AFTER_A_KILL}"),
        pytest.param(2, 0, "process", KILLED, marks=pytest.mark.slow),
        pytest.param(1, 1, "Ctrl-C", "stopped by Ctrl-C", marks=pytest.mark.slow),
        pytest.param(2, 0, "Ctrl-C", "stopped by Ctrl-C", marks=pytest.mark.slow),
    ],
    ids=["worker", "one-of-two", "Ctrl-C", "Ctrl-C-of-two"],
)
def test_a_death_is_one_line_and_leaves_nothing(
    endless: Path, num_processes: int, num_workers: int, victim: str, line: str
) -> None:
    changes = {"num_processes": num_processes, "num_workers": num_workers, "num_threads": 1}
    set_params(endless, {f"train.{name}": value for name, value in changes.items()})
    set_params(endless, {"train.checkpoint_minutes": 0.0})  # which warns where it is interrupted
    log = endless / "log"
    with log.open("w") as output:
        stage = subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            cwd=endless,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment() | {"TRACKING": "off"},
            start_new_session=True,
        )
    wait_for(lambda: " 1/5000 " in log.read_text(), seconds=60)
    children = psutil.Process(stage.pid).children(recursive=True)
    if victim == "Ctrl-C":
        os.killpg(stage.pid, signal.SIGINT)
    else:
        is_victim = {"worker": lambda one: True, "process": lambda one: rank_of(one) == "1"}
        next(filter(is_victim[victim], children)).kill()
    assert stage.wait(15)
    lines = [one for one in log.read_text().splitlines() if "/5000" not in one]
    assert lines[-2] == HEADINGS
    assert re.sub(WORKER, "worker died", lines[-1]) == line
    assert not [one for one in children if one.is_running()]
    assert not (endless / "data/model").exists()


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_whose_death_is_not_known_yet_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: type[Exception],
) -> None:
    """Where PyTorch reads from a worker in the moment of its end."""

    class Broken(Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            raise error

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        running.run_stage(lambda: print(*DataLoader(Broken())))
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: DataLoader worker died; {AFTER_A_KILL}\n"


def rank_of(process: psutil.Process) -> str:
    """Return the rank that torchrun has given to a process."""
    return process.environ().get("RANK", "")


@pytest.mark.parametrize(
    "command",
    ["python -m stages.sample", "setsid --wait python -m stages.sample; true"],
    ids=["plain", "as-a-worker-of-torchrun"],
)
def test_a_program_that_uses_the_api_of_dvc_may_have_any_name(
    workspace: Path, command: str
) -> None:
    """torchrun starts its workers in sessions of their own."""
    code = f"""
import os, subprocess
subprocess.run(["sh", "-c", "{command}"], env=os.environ | {{"DVC_STAGE": "sample"}})
"""
    done = run(sys.executable, "-c", code, cwd=workspace)
    assert "data/raw/sample: " in done.stdout


def test_a_second_writer_waits_for_the_end_of_the_first(workspace: Path) -> None:
    lock = workspace / ".dvc/tmp/stages/sample.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        second = subprocess.Popen(
            ["python", "-m", "stages.sample"],
            cwd=workspace,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stdout
        assert "another process runs stage sample" in second.stdout.readline()
        assert second.poll() is None
    assert second.wait(60) == 0


def test_a_writer_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "SECONDS_TO_WAIT", 0.1)
    lock = tmp_path / ".dvc/tmp/stages/train.lock"
    lock.parent.mkdir(parents=True)
    expected = r"stage train: .*pgrep -f stages.train"
    with FileLock(lock), pytest.raises(UserError, match=expected), running._only_writer("train"):
        pytest.fail("both write")
    with running._only_writer("train"):
        pass


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ({}, "5000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
    ids=["default", "own-count", "own-policy"],
)
def test_threads_spin_for_a_short_time_unless_the_user_says_otherwise(
    workspace: Path, own: dict[str, str], seen: str
) -> None:
    """Set for a stage alone, before it imports torch."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    code = f"import os, sys; print(*(os.environ.get(name) for name in {names}))"
    (workspace / "stages/probe.py").write_text(f"{code}; assert 'torch' not in sys.modules")
    plain = {name: value for name, value in environment().items() if name not in names}
    for arguments, expected in (
        (["-m", "stages.probe"], seen),
        (["-c", f"import stages; {code}"], ""),
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=workspace,
            env=plain | own,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == (expected or seen.replace("5000", "None"))


@pytest.mark.parametrize(("version", "is_refused"), [((3, 10, 13), True), ((3, 11, 0), False)])
def test_an_older_python_is_refused_before_anything_is_installed(
    workspace: Path, version: tuple[int, int, int], is_refused: bool
) -> None:
    stub = workspace / "python-stub"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[2])"
    stub.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{code}" "$@"\nexit 7\n')
    stub.chmod(0o755)
    done = run("make", "repro", f"PYTHON={stub}", cwd=workspace, check=False)
    assert done.returncode
    refused = [line for line in done.stderr.splitlines() if "Python 3.11" in line]
    assert len(refused) == is_refused
    assert not (workspace / ".venv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc is that of Linux")
def test_memory_that_a_step_frees_is_kept_for_the_next_one() -> None:
    """Fetching it again from the system, a page of zeros at a time, takes half of the training."""
    code = """
import resource
import torch
from stages.lib.detector.hardware import set_up_hardware
set_up_hardware("cpu", 1)
for step in range(8):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = run("python", "-c", code, cwd=ROOT)
    assert int(done.stdout) < 10_000  # of 244,000 pages


def test_the_time_left_does_not_count_the_start_of_the_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.LogLines("train 1/3", total=100, unit="batches") as bar:
        for seconds in (40, 4, 4):  # the first batch waits for the workers
            now[0] += seconds
            bar.update()
    assert capsys.readouterr().err == (
        "train 1/3: 2 of 100 batches, 0.2 a second, 6.5 minutes left\n"
    )
