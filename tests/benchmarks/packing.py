"""Time packing and preparing of many small images, their memory, packing again, DVC's overhead.

Run: python -m tests.benchmarks.packing [--images 25000 50000 100000]   (from the repository's root)
     python -m tests.benchmarks.packing --videos 1000
     python -m tests.benchmarks.packing --hub 100000

For each number of generated 64 px JPEG files: seconds and peak memory of `python -m stages.pack`,
of `stages.prepare`, of packing again with nothing changed and after adding 1 % of files; then the
first `dvc repro prepare`, which reads every file once to know it, `dvc status` after it, and what
`dvc exp run --temp` takes beyond the stage that it runs. For videos, 2 s of 320 x 240 pixels each:
packing eight frames of each, and packing again. --hub packs the same images without a search for
faces from files, from Parquet files of 10,000 rows in groups of 100, and from tar archives.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.conftest import clone_project, environment
from tests.test_videos import write_video

PYTHON = sys.executable
PER_FILE = 10_000  # images in a file of many
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
    parser.add_argument("--hub", type=int, default=0)
    options = parser.parse_args()
    if options.hub:
        print(json.dumps(measure_hub(options.hub)), flush=True)
        return
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


def measure_hub(count: int) -> dict[str, float]:
    """Return seconds and megabytes for so many images as files, in Parquet and in archives."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "files", 0, count)
        write_hub_files(Path(folder))
        figures: dict[str, float] = {"images": count}
        for name in ("files", "parquet", "tar"):
            data = {"data.root": f"{folder}/{name}", "pack.find_faces": False}
            clone = clone_project(Path(folder) / f"clone_{name}", data)
            figures |= timed(clone, name, PYTHON, "-m", "stages.pack")
    return figures


def write_hub_files(folder: Path) -> None:
    """Write folder/files, in the competition's layout, as folder/parquet and folder/tar too."""
    (folder / "parquet").mkdir()
    (folder / "tar").mkdir()
    for set_name in ("train", "val"):
        place = folder / "files/phase1"
        lines = (place / f"{set_name}set_label.txt").read_text().splitlines()[1:]
        for first in range(0, len(lines), PER_FILE):
            rows = [line.rsplit(",", 1) for line in lines[first : first + PER_FILE]]
            files = [place / f"{set_name}set" / name for name, _ in rows]
            shard = f"{set_name}-{first // PER_FILE:05d}"
            images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
            table = pa.table({"image": images, "label": [int(label) for _, label in rows]})
            parquet.write_table(table, folder / f"parquet/{shard}.parquet", row_group_size=100)
            with tarfile.open(folder / f"tar/{shard}.tar", "w") as archive:
                for file, (_, label) in zip(files, rows, strict=True):
                    archive.add(file, file.name)
                    member = tarfile.TarInfo(f"{file.stem}.cls")
                    member.size = len(label)
                    archive.addfile(member, io.BytesIO(label.encode()))


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
