"""Race packing again with packing from nothing, and DVC on packed images with DVC on files.

Run: python -m tests.benchmarks.data [--images 10000] [--repeats 5]   (from the repository's root)
"""

import shutil
import subprocess
from pathlib import Path

from tests.benchmarks.packing import PYTHON, timed, write_images
from tests.benchmarks.race import Rates, race, run_races
from tests.conftest import clone_project, environment


def compare_packing(folder: Path, count: int, repeats: int) -> Rates:
    """Race packing from nothing, the baseline, with packing again, when nothing has changed."""
    write_images(folder / "data", 0, count)
    clone = clone_project(folder / "clone", {"data.root": str(folder / "data")})

    def pack(*forgotten: str) -> None:
        for name in ("data/packed", *forgotten):
            shutil.rmtree(clone / name, ignore_errors=True)
        timed(clone, "pack", PYTHON, "-m", "stages.pack")

    return race({"baseline": lambda: pack(".dvc/tmp/pack"), "again": pack}, count, repeats)


def compare_tracking(folder: Path, count: int, repeats: int) -> Rates:
    """Race DVC's share of an experiment: on image files, the baseline, and on packed images."""
    write_images(folder / "data", 0, count)
    project = clone_project(folder / "project", {"data.root": str(folder / "data")})
    timed(project, "pack", PYTHON, "-m", "stages.pack")
    clones = {}
    for name, source in {"baseline": folder / "data", "packed": project / "data/packed"}.items():
        clones[name] = folder / name
        shutil.copytree(source, clones[name] / "images")
        (clones[name] / "dvc.yaml").write_text("stages: {look: {cmd: 'true', deps: [images]}}\n")
        for command in ("git init -q", "dvc init -q", "dvc add -q images", "dvc repro -q",
                        "git add -A", "git commit -qm start"):  # fmt: skip
            subprocess.run(command.split(), cwd=clones[name], env=environment(), check=True)

    def experiment(name: str) -> None:
        timed(clones[name], "experiment", "dvc", "exp", "run", "-q", "--temp", "--force")

    return race({name: lambda name=name: experiment(name) for name in clones}, count, repeats)


if __name__ == "__main__":
    run_races(__doc__, 10_000, {"packing": compare_packing, "DVC experiment": compare_tracking})
