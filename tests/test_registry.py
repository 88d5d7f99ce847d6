"""Which version of the model is called champion, and what is said about it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from stages.lib.registry import register, registered_name
from stages.lib.store import connect
from stages.lib.tracking import tracker_of
from stages.train import main as train
from tests.conftest import set_params, store_of

NAME = "deepfake-detector"
TARGETS = np.arange(200) % 2


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model, and no store yet."""
    workspace = tmp_path_factory.mktemp("registry") / "workspace"
    shutil.copytree(prepared, workspace, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("TRACKING", "off")
        set_params(workspace, {"train.epochs": 1})
        train()
    return workspace


@pytest.fixture
def client(trained: Path, tmp_path: Path) -> Iterator[MlflowClient]:
    workspace = shutil.copytree(trained, tmp_path / "workspace", symlinks=True)
    with store_of(workspace):
        yield connect()


def scores(noise: float, seed: int = 0) -> pd.DataFrame:
    """Return a table of validation scores, the worse the noisier."""
    random = np.random.default_rng(seed)
    score = np.clip(0.25 + 0.5 * TARGETS + random.normal(0, noise, 200), 0.01, 0.99)
    return pd.DataFrame({
        "img_name": [f"{index:032x}.jpg" for index in range(200)],
        "target": TARGETS, "score": score, "group": np.arange(200),
    })  # fmt: skip


def enter(client: MlflowClient, table: pd.DataFrame, folder: Path, number: int) -> str:
    """Make a run with a model of its own and these scores, and register it; return its id."""
    weights = folder / "data/model/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] = number  # other weights, so another model
    weights.write_bytes(content)
    tracker = tracker_of(folder / "data/model")
    path = folder / "val.csv"
    table.to_csv(path, index=False)
    tracker.log_file(path, "scores")
    assert not tracker.lost
    register(client, tracker.run_id, table, "auc", 0.9)
    return tracker.run_id


def champion(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def test_the_champion_is_beaten_only_by_what_is_surely_better(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    first = enter(client, scores(0.3), here, 1)
    assert champion(client) == "1"
    assert f"{NAME} version 1 is @champion: there was none" in capsys.readouterr().out

    register(client, first, scores(0.3), "auc", 0.9)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    assert "version 1 is @champion: it was already" in capsys.readouterr().out

    enter(client, scores(0.3, seed=1), here, 2)  # as good, by other chance
    assert champion(client) == "1"
    shown = capsys.readouterr().out
    assert "version 2 does not become @champion: auc against version 1 " in shown
    assert "95 % interval, 100 real, 100 fake" in shown

    enter(client, scores(0.1), here, 3)
    assert champion(client) == "3"
    assert "version 3 is @champion: auc against version 1 +0.09" in capsys.readouterr().out
    tags = client.get_model_version(NAME, "3").tags
    assert tags["against_champion"].startswith("auc against version 1 +0.09")
    assert tags["val.auc"] == "0.900000"
    assert len(tags["weights_sha256"]) == 64


def test_models_judged_on_other_images_are_not_compared(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(client, scores(0.3), Path.cwd(), 1)
    enter(client, scores(0.01).iloc[:150], Path.cwd(), 2)
    assert champion(client) == "1"
    assert "version 1 was judged on other validation images" in capsys.readouterr().out


def test_what_learnt_from_drawn_faces_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("data:\n  root: data/raw/sample\n  evaluation_sets: {}\n")
    assert registered_name() == f"{NAME}-generated-sample"
    (tmp_path / "params.yaml").write_text("data:\n  root: /data/ffdi\n  evaluation_sets: {}\n")
    assert registered_name() == NAME
