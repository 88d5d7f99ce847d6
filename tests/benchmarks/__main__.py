"""Run the benchmarks one after the other: the notebooks' loop and ours side by side.

Run: make bench   or   python -m tests.benchmarks [--images 120] [--packed 10000] [--repeats 5]

Prints a line per contestant, and writes .bench/bench.json and .bench/bench.png.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from tests.benchmarks import data, inference, loading, training
from tests.benchmarks.race import Rates, ratios, run_race

FOLDER = Path(".bench")


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=120, help="a multiple of 40")
    parser.add_argument("--packed", type=int, default=10_000, help="images to pack")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    number, packed, repeats = arguments.images, arguments.packed, arguments.repeats
    races = {
        "loading 512 px, one core": lambda folder: loading.compare(folder, 40, repeats, 512),
        "loading 600 px, one core": lambda folder: loading.compare(folder, 40, repeats, 600),
        "training": lambda folder: training.compare(folder, number, repeats),
        "inference": lambda folder: inference.compare(folder, number, repeats),
        "packing": lambda folder: data.compare_packing(folder, packed, repeats),
        "DVC experiment": lambda folder: data.compare_tracking(folder, packed, repeats),
    }
    results = {name: run_race(name, compare) for name, compare in races.items()}
    # In a process of its own: a child's peak memory is counted from that of its parent.
    command = [sys.executable, "-m", "tests.benchmarks.packing", "--images", str(packed)]
    sizes = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    print(f"packing: {json.dumps(sizes)}")
    FOLDER.mkdir(exist_ok=True)
    everything = {"machine": machine(), "images_per_second": results, "packing": sizes}
    (FOLDER / "bench.json").write_text(json.dumps(everything, indent=2) + "\n")
    draw(results).savefig(FOLDER / "bench.png")
    print(f"{FOLDER / 'bench.json'}, {FOLDER / 'bench.png'}")


def machine() -> dict[str, str]:
    """Say what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"processor": platform.processor() or platform.machine(), "device": device,
            "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads()),
            "torch": torch.__version__, "python": platform.python_version()}  # fmt: skip


def draw(results: dict[str, Rates]) -> Figure:
    """Draw how many times the baseline each contestant was, every repetition a point."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    rows = [(race, name) for race, rates in results.items() for name in rates if name != "baseline"]
    for place, (race, name) in enumerate(rows):
        times = ratios(results[race], name)
        axes.plot(times, [place] * len(times), "o", color="C0", alpha=0.4)
        axes.plot([statistics.median(times)], [place], "|", color="C0", markersize=18)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{race}: {name}" for race, name in rows])
    axes.set(xlabel="times the notebooks' images per second", xscale="log")
    axes.invert_yaxis()
    return figure


if __name__ == "__main__":
    main()
