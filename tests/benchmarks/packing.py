"""Time packing and preparing of many small images, their memory, packing again, DVC's overhead.

Run: python -m tests.benchmarks.packing [--images 25000 50000 100000]   (from the repository's root)
     python -m tests.benchmarks.packing --videos 1000

For each number of generated 64 px JPEG files: seconds and peak memory of `python -m stages.pack`,
of `stages.prepare`, of packing again with nothing changed and after adding 1 % of files; then the
first `dvc repro prepare`, which reads every file once to know it, `dvc status` after it, and what
`dvc exp run --temp` takes beyond the stage that it runs. For videos, 2 s of 320 x 240 pixels each:
packing eight frames of each, and packing again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import clone_project, environment
from tests.test_videos import write_video

PYTHON = sys.executable
SMALL_PROCESS = """
import os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ,
                        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def main() -> None:
    """Print a line of JSON per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--videos", type=int, default=0)
    options = parser.parse_args()
    if options.videos:
        print(json.dumps(measure_videos(options.videos)), flush=True)
        return
    for count in options.images:
        print(json.dumps(measure(count)), flush=True)


def measure_videos(count: int) -> dict[str, float]:
    """Return seconds and megabytes for so many videos."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for number in range(count):
            kind = ("real", "fake")[number % 2]
            write_video(data / kind / f"{number}.mp4", 50, number % 50, (320, 240))
        clone = clone_project(Path(folder) / "clone", {"data.root": str(data)})
        figures: dict[str, float] = {"videos": count}
        figures |= timed(clone, "pack", PYTHON, "-m", "stages.pack")
        packed = clone / "data/packed"
        figures["packed_mb"] = round(
            sum(one.stat().st_size for one in packed.rglob("*.arrow")) / 1e6
        )
        shutil.rmtree(packed)  # as DVC does
        figures |= timed(clone, "pack_again", PYTHON, "-m", "stages.pack")
    return figures


def measure(count: int) -> dict[str, float]:
    """Return seconds and megabytes for so many images."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_images(data, 0, count)
        clone = clone_project(Path(folder) / "clone", {"data.root": str(data)})
        figures: dict[str, float] = {"images": count}
        figures |= timed(clone, "pack", PYTHON, "-m", "stages.pack")
        figures |= timed(clone, "prepare", PYTHON, "-m", "stages.prepare")
        shutil.rmtree(clone / "data/packed")  # as DVC does
        figures |= timed(clone, "pack_again", PYTHON, "-m", "stages.pack")
        write_images(data, count, count // 100)
        shutil.rmtree(clone / "data/packed")
        figures |= timed(clone, "pack_1_percent_more", PYTHON, "-m", "stages.pack")
        figures |= timed(clone, "first_repro", "dvc", "repro", "prepare")
        subprocess.run(["git", "commit", "-qam", "repro"], cwd=clone, env=environment(), check=True)
        figures |= timed(clone, "status", "dvc", "status")
        changed = ["-S", "prepare.seed=1", "prepare"]
        figures |= timed(clone, "experiment", "dvc", "exp", "run", "--temp", *changed)
        overhead = figures["experiment_seconds"] - figures["prepare_seconds"]
        figures["experiment_overhead_seconds"] = round(overhead, 1)
    return figures


def write_images(root: Path, first: int, count: int) -> None:
    """Write (more) 64 px JPEG files of noise in the competition's layout, val a tenth of them."""
    names = {"trainset": [], "valset": []}
    for index in range(first, first + count):
        name = "valset" if index % 10 == 0 else "trainset"
        folder = root / "phase1" / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:032x}.jpg", quality=85)
        names[name].append(f"{index:032x}.jpg,{index // 10 % 2}\n")
    for name, rows in names.items():
        path = root / f"phase1/{name}_label.txt"
        if not path.exists():
            path.write_text("img_name,target\n")
        with path.open("a") as file:
            file.writelines(rows)


def timed(clone: Path, name: str, *command: str) -> dict[str, float]:
    """Return a command's seconds and its own peak memory in megabytes."""
    start = time.perf_counter()
    # By a small process: on Linux a peak begins at the size of the process that starts this one.
    done = subprocess.run(
        (PYTHON, "-S", "-c", SMALL_PROCESS, *command),
        cwd=clone,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return {
        f"{name}_seconds": round(time.perf_counter() - start, 1),
        f"{name}_peak_mb": round(int(done.stdout) / 1024),
    }


if __name__ == "__main__":
    main()
