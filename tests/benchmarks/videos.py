"""How long a verdict on a video takes and how much memory, for short and long clips.

Run: python -m tests.benchmarks.videos [--model data/model] [--frames 32]
     (from the repository's root, after `make repro`)

The clips are a drawn face that moves before noise: 1080p of 1, 10 and 60 minutes, and 4K of one
minute, in H.264 with a key frame every 250 frames. Each verdict is given by a process of its own
with two threads: as `detect` does it, and with every frame decoded up to the last wanted one, as
`pack` did before. Memory is the largest of the process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.lib import paths
from stages.lib.data.videos import Packets
from stages.lib.drawing.portrait import draw_person, portrait
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.videos import FRAMES, examine_video
from tests.films import RATE, repeat_film, write_film

SECONDS = 20  # that are drawn
CLIPS = {"1080p": ((1920, 1080), (1, 10, 60)), "4K": ((3840, 2160), (1,))}  # size; minutes
THREADS = 2


def main() -> None:
    """Print a line for each clip, or examine one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(paths.MODEL))
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--clip", type=Path, help="examine this one, and print seconds and memory")
    parser.add_argument("--everything", action="store_true", help="decode every frame")
    options = parser.parse_args()
    if options.clip:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, lengths) in CLIPS.items():
            drawn = write_film(Path(folder) / f"{name}.mp4", draw(*size), options={"g": "250"})
            for minutes in lengths:
                clip = Path(folder) / f"{name}-{minutes}.mp4"
                repeat_film(drawn, clip, 60 * minutes // SECONDS)
                new, old = (run_one(options, clip, way) for way in ([], ["--everything"]))
                print(
                    f"{name} {minutes} min: {new['seconds']:.1f} s, {new['megabytes']:.0f} MB; "
                    f"everything decoded {old['seconds']:.1f} s, {old['megabytes']:.0f} MB; "
                    f"ratio {old['seconds'] / new['seconds']:.1f}",
                    flush=True,
                )
                clip.unlink()


def run_one(options: argparse.Namespace, clip: Path, way: list[str]) -> dict[str, float]:
    """Return the seconds of a verdict and the memory of its process."""
    command = [sys.executable, "-m", "tests.benchmarks.videos", "--clip", str(clip), *way]
    command += ["--model", options.model, "--frames", str(options.frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Examine a clip in this process."""
    examiner = load_examiner(options.model, "cpu", THREADS, crop=True, max_megapixels=100)
    if options.everything:
        Packets.start = lambda self, time: 0  # pyrefly: ignore
    start = time.monotonic()
    with options.clip.open("rb") as file:
        examine_video(examiner, file, options.frames)
    seconds = time.monotonic() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "megabytes": kilobytes / 1024}


def draw(width: int, height: int) -> Iterator[np.ndarray]:
    """Yield frames, uint8 (H, W, 3): a face on its way across noise."""
    random = np.random.default_rng(0)
    side = height // 3
    face = np.clip(portrait(draw_person(random), side), 0, 255).astype(np.uint8)
    noise = random.integers(60, 120, (height, width, 3), dtype=np.uint8)
    for number in range(SECONDS * RATE):
        pixels = np.roll(noise, number, axis=1)
        left = (width - side) * number // (SECONDS * RATE)
        pixels[side : 2 * side, left : left + side] = face
        yield pixels


if __name__ == "__main__":
    main()
