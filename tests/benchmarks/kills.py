"""Kill the pipeline at random moments, and see that nothing is lost.

Run: python -m tests.benchmarks.kills [--kills 60] [--seed 0]     (from the repository's root)

Two clones of the project run `dvc repro` on a tiny sample, one with one process for training and
scoring, one with two. Then, again and again, a stage is started anew by DVC, and one of these is
killed with SIGKILL: DVC, the stage, one of its workers, or the whole process group. A third of the
kills fall into the first second of the stage, the others anywhere in its usual time. After that
`dvc repro` must end with the same dvc.lock, and so with the same bytes of all outputs.

It prints a line of JSON for each kill, and a table at the end:

- wrong: dvc.lock differs, or `dvc repro` failed
- damaged_lock: DVC was killed while it wrote dvc.lock, which `git checkout dvc.lock` put right
- left: processes that were still there 15 s after the kill
- lines: most lines of error of ours; DVC adds its own "failed to reproduce"
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from tests.conftest import TINY, clone_project, environment, run

STAGES = ("sample", "pack", "prepare", "train", "predict", "explain", "evaluate",
          "card", "submit", "publish")  # fmt: skip
VICTIMS = ("dvc", "stage", "worker", "group")
SECONDS_TO_END = 15
OURS = r"^(?!ERROR: failed to repro).*(?:Error|Traceback|ERROR)\b.*$"
MARK = "KILLED_RUN"  # variable of the environment by which the processes of a run are found


def main() -> None:
    """Kill, repair and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        clones = [finished_clone(Path(folder), number) for number in (1, 2)]
        for number in range(options.kills):
            clone, seconds = clones[number % 2]
            stage = STAGES[number // 2 % len(STAGES)]
            early = number % 3 == 0
            delay = chance.uniform(0, 1 if early else seconds[stage])
            victim = chance.choice(VICTIMS)
            result = kill(clone, stage, victim, delay) | {"processes": 1 + number % 2}
            results.append(result)
            print(json.dumps(result), flush=True)
    table = pd.DataFrame(results)
    summary = table.groupby("stage", sort=False).agg(
        kills=("stage", "size"),
        wrong=("wrong", "sum"),
        damaged_lock=("damaged_lock", "sum"),
        left=("left", "sum"),
        lines=("lines", "max"),
    )
    print(summary.to_markdown())


def finished_clone(folder: Path, num_processes: int) -> tuple[Path, dict[str, float]]:
    """Return a clone in which everything has run, and the seconds that each stage takes."""
    clone = clone_project(folder / str(num_processes), TINY | {
        "train.epochs": 6,
        "train.checkpoint_minutes": 0.01,
        "train.num_workers": 1,
        "train.num_processes": num_processes,
        "predict.num_workers": 1,
        "predict.num_processes": num_processes,
    })  # fmt: skip
    seconds = {}
    for stage in STAGES:
        start = time.perf_counter()
        run("dvc", "repro", stage, cwd=clone)
        seconds[stage] = time.perf_counter() - start
    run("git", "commit", "-qam", "all has run", cwd=clone)
    return clone, seconds


def kill(clone: Path, stage: str, victim: str, delay: float) -> dict[str, Any]:
    """Start a stage, kill, run the pipeline again; return what was seen."""
    lock = (clone / "dvc.lock").read_text()
    log = clone.with_suffix(".log")
    with log.open("w") as output:
        dvc = subprocess.Popen(
            ["dvc", "repro", "--force", "--single-item", stage],
            cwd=clone,
            env=environment() | {MARK: clone.name},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started = wait_for_stage(dvc, stage)
        time.sleep(delay)
        hit = strike(dvc, started, victim)
        left = wait_for_end(dvc, clone.name)
    words = log.read_text()
    ours = re.findall(OURS, words, re.MULTILINE)
    again = run("dvc", "repro", cwd=clone, check=False)
    damaged = again.returncode != 0 and "dvc.lock' validation failed" in again.stderr
    if damaged:  # DVC does not write it in one step
        run("git", "checkout", "dvc.lock", cwd=clone)
        again = run("dvc", "repro", cwd=clone, check=False)
    wrong = again.returncode != 0 or (clone / "dvc.lock").read_text() != lock
    if wrong:
        print(words, again.stdout, again.stderr, sep="\n")
        run("dvc", "repro", cwd=clone)
    return {
        "stage": stage, "victim": hit, "delay": round(delay, 2), "wrong": wrong,
        "damaged_lock": damaged, "left": left, "lines": len(ours), "error": ours[:3],
    }  # fmt: skip


def wait_for_stage(dvc: subprocess.Popen, stage: str) -> psutil.Process | None:
    """Return the process of the stage as soon as it is there, or None where DVC ends before."""
    while dvc.poll() is None:
        for process in children_of(psutil.Process(dvc.pid)):
            if f"stages.{stage}" in command_of(process) and "python" in command_of(process)[0]:
                return process
        time.sleep(0.02)
    return None


def strike(dvc: subprocess.Popen, stage: psutil.Process | None, victim: str) -> str:
    """Kill the victim; return whom it hit, or "nobody" where the run had ended."""
    if dvc.poll() is not None or stage is None:
        return "nobody"
    try:
        if victim == "dvc":
            dvc.kill()
        elif victim == "group":
            os.killpg(dvc.pid, signal.SIGKILL)
        else:
            workers = children_of(stage) if victim == "worker" else []
            victim = "worker" if workers else "stage"
            (random.choice(workers) if workers else stage).kill()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return "nobody"
    return victim


def wait_for_end(dvc: subprocess.Popen, mark: str) -> int:
    """Wait until all processes of the run have ended; return how many have not, and end them."""
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end and (dvc.poll() is None or any(marked(mark))):
        time.sleep(0.1)
    left = list(marked(mark))
    for process in left:
        process.kill()
    dvc.wait()
    return len(left)


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yield the running processes of the run with this mark."""
    for process in psutil.process_iter():
        try:
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if not zombie and process.environ().get(MARK) == mark:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """Return all processes below this one."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def command_of(process: psutil.Process) -> list[str]:
    """Return the words of its command."""
    try:
        return process.cmdline() or [""]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return [""]


if __name__ == "__main__":
    main()
