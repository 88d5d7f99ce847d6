"""What the tests share: a temporary clone of the project, tiny data, and a way to run commands."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import settings
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from stages.lib.core.params import read_yaml
from stages.lib.detector.model import DetectorConfig

ROOT = Path(__file__).parents[1]
TINY = {
    "sample.num_train": 60,
    "sample.num_val": 48,
    "sample.num_test": 10,
    "sample.image_size": 64,
    "train.model": "test_resnet",
    "train.image_size": 32,
    "train.epochs": 2,
    "train.batch_size": 20,
    "train.num_workers": 0,
    "train.num_threads": 1,
    "predict.num_workers": 0,
    "predict.num_threads": 1,
    "predict.robustness_images": 20,
    "explain.num_images": 2,
    "explain.num_threads": 1,
    "explain.stride": 0.25,
}
# The two processes of `make test` begin with the files that take longest. While one of them makes
# the pipeline, the other one has files that do not wait for it.
LONGEST = ("pipeline", "train", "registry", "running", "tracking", "checkpoints", "judge", "detect",
           "web", "damage", "design", "score")  # fmt: skip
# Of generated inputs: the same ones in each run, as many as the variable EXAMPLES says.
EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", 300)),
    derandomize=True,
    database=None,
    deadline=None,
)
# Options of Chromium, which otherwise asks other machines for things.
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--window-size=1700,1400")  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """Return an environment with this Python first, a Git identity and nothing of the user's."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "DVC_", "TRACKING", "HF_", "MAKE"))
    }
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }


def run(
    *command: str, cwd: Path, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; fails with all it printed where `check` and it does not succeed."""
    # Into files: at a pipe one would wait for what the command leaves in the background, too.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment() | env,
            stdout=out,
            stderr=err,
            text=True,
            check=False,
        )
        out.seek(0)
        err.seek(0)
        done.stdout, done.stderr = out.read(), err.read()
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def clone_project(target: Path, changes: dict[str, Any] | None = None) -> Path:
    """Copy the project's files, uncommitted ones too, into a new repository with one commit."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    set_params(target, changes or {})
    run("git", "init", "-q", cwd=target)
    run("git", "add", "-A", cwd=target)
    run("git", "commit", "-qm", "start", cwd=target)
    return target


def set_params(folder: Path, changes: dict[str, Any]) -> None:
    """Change dotted parameters in folder's params.yaml."""
    params = read_yaml(folder / "params.yaml")
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[key] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def change_preprocessing(folder: Path, **changes: Any) -> None:
    """Change the config.json of the detector in folder/data/model, as if it had been trained so."""
    file = folder / "data/model/config.json"
    config = DetectorConfig.model_validate_json(file.read_text())
    preprocessing = config.preprocessing.model_copy(update=changes)
    config = config.model_copy(update={"preprocessing": preprocessing})
    config = config.model_copy(update={"config_sha256": config.digest()})
    file.write_text(config.model_dump_json())


def copy_detector(clone: Path, target: Path, **rules: Any) -> Path:
    """Copy the detector of a clone with its rules, some of them changed; return the folder."""
    target.mkdir(exist_ok=True)
    for file in (clone / "data/model").iterdir():
        shutil.copy2(file, target / file.name)
    known = json.loads((clone / "data/verdict_rules.json").read_text())
    (target / "verdict_rules.json").write_text(json.dumps(known | rules))
    return target


def easy_pixels(random: np.random.Generator, target: int, size: int = 48) -> np.ndarray:
    """Return noise, uint8 (size, size, 3), with a bright square where the target is a fake."""
    pixels = random.integers(0, 120, (size, size, 3), dtype=np.uint8)
    if target:
        pixels[8:30, 8:30] += 100
    return pixels


def draw_dataset(root: Path, counts: dict[str, int], size: int = 48) -> Path:
    """Draw an easy data set in the competition's layout: fakes have a bright square in noise."""
    folders = {"train": "phase1/trainset", "val": "phase1/valset", "test": "phase2/testset1_seen"}
    for number, (name, count) in enumerate(counts.items()):
        folder = root / folders[name]
        folder.mkdir(parents=True)
        rows = []
        for index in range(count):
            random = np.random.default_rng([number, index])
            target = index % 2
            Image.fromarray(easy_pixels(random, target, size)).save(
                folder / f"{index:032x}.jpg", quality=90
            )
            rows.append(f"{index:032x}.jpg" + ("" if name == "test" else f",{target}"))
        header = "img_name" if name == "test" else "img_name,target"
        kind = "nolabel" if name == "test" else "label"
        list_file = folder.with_name(f"{folder.name}_{kind}.txt")
        list_file.write_text("\n".join([header, *rows]) + "\n")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no process works alone at the end."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` fills, once for all processes of this run of the tests."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            (root / name).mkdir()
            make(root / name)
            (root / f"{name}.made").touch()
    return root / name


def run_stages(folder: Path, *names: str) -> None:
    """Run stages in this folder and in this process, without MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        patch.setenv("TRACKING", "off")
        for name in names:
            import_module(f"stages.{name}").main()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute in one thread, because the processes of the tests share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `dvc repro` has run on a tiny sample and a further set; only look at it."""
    return made_once(tmp_path_factory, "pipeline", make_pipeline)


def make_pipeline(clone: Path) -> None:
    drawn = draw_dataset(clone.with_name("drawn"), {"val": 40})
    more = {
        "data.evaluation_sets": {"drawn": str(drawn)},
        "train.augmentation.jpeg.probability": 0.5,
        "train.pseudo_fakes.first_share": 0.2,
    }
    clone_project(clone, TINY | more)
    # MLflow looks at the machine every 10 s by default; this training takes one second.
    done = run("dvc", "repro", cwd=clone, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.05")
    (clone / "repro.log").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a prepared easy data set and an empty store; copy before changing."""
    return made_once(tmp_path_factory, "prepared", make_prepared)


def make_prepared(clone: Path) -> None:
    root = draw_dataset(clone / "drawn", {"train": 80, "val": 60, "test": 10})
    clone_project(clone, TINY | {"data.root": str(root)})
    run_stages(clone, "pack", "prepare")
    client_of(clone).search_experiments()  # makes the tables, which takes seconds


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared clone, to train in."""
    return shutil.copytree(prepared, tmp_path / "workspace", symlinks=True, copy_function=copy_file)


def copy_file(source: str, target: str) -> None:
    """Copy a file, but link what Git never changes."""
    (os.link if "/.git/objects/" in source else shutil.copy2)(source, target)


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the experiments of the README have been run, eleven of them (slow)."""
    clone = clone_project(tmp_path_factory.mktemp("team"), TINY)
    run("dvc", "repro", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "baseline", cwd=clone)
    for command in readme_commands("dvc exp run -n here"):
        run("bash", "-c", command, cwd=clone)
    wait_for_queue(clone)
    return clone


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not programs[0] or not programs[1]:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in QUIET:
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the screenshots go, for people to look at."""
    folder = Path(os.environ.get("SCREENSHOTS", "/tmp/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def readme_commands(beginning: str) -> list[str]:
    """Return the commands of the block that begins so, in one of the README files."""
    (block,) = [block for block in readme_blocks("sh") if block.startswith(beginning)]
    return block.splitlines()


def readme_blocks(language: str) -> list[str]:
    """Return the blocks of code in this language in the README files."""
    files = [ROOT / "README.md", *ROOT.glob("*/README.md")]
    text = "\n".join(file.read_text() for file in files)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def wait_for(look: Callable[[], Any], seconds: int = 90) -> Any:
    """Return what `look` returns once it is true and raises nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := look():
                return found
        except Exception:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def wait_for_queue(clone: Path) -> str:
    """Return `dvc queue status` once nothing is queued or running."""

    def look() -> str:
        # DVC itself fails now and then while an experiment writes the file that it looks at.
        done = run("dvc", "queue", "status", cwd=clone, check=False)
        assert not done.returncode, done.stderr
        assert "Running" not in done.stdout and "Queued" not in done.stdout, done.stdout
        return done.stdout

    return wait_for(look, seconds=900)


def client_of(workspace: Path) -> MlflowClient:
    """Return a client of the store in this folder."""
    return MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")


def runs_of(client: MlflowClient) -> list[MlflowRun]:
    """Return the runs of the project's experiment, the latest first."""
    experiment = client.get_experiment_by_name("deepfake-detection")
    return client.search_runs([experiment.experiment_id])


@contextmanager
def store_of(workspace: Path) -> Iterator[None]:
    """Work in this folder, with MLflow's default store in it, as a stage under DVC does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("DVC_ROOT", str(workspace))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKING"):
            patch.delenv(name, raising=False)
        yield
    mlflow.set_tracking_uri(None)
