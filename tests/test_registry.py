"""Which version of the model is called champion, and what is said about it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import gc
from mlflow.entities.model_registry import ModelVersion
from scipy.special import logit

from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json
from stages.lib.core.tables import read_table
from stages.lib.publishing import logged_model, registry
from stages.lib.publishing.find_run import find_or_make_run
from stages.lib.publishing.logged_model import log_served_model
from stages.lib.publishing.registry import register, registered_name
from stages.lib.tracking.mlflow_store import connect
from stages.lib.verdict.load import load_examiner
from stages.train import main as train
from tests.conftest import copy_file, set_params, store_of
from tests.test_verdict import RULES

NAME = "deepfake-detector"
TARGETS = np.arange(200) % 2


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model, and an empty store."""
    workspace = tmp_path_factory.mktemp("registry") / "workspace"
    shutil.copytree(prepared, workspace, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("TRACKING", "off")
        set_params(workspace, {"train.epochs": 1})
        train()
    weights = read_json(workspace / "data/model/config.json")["weights_sha256"]
    rules = RULES.model_copy(update={"weights_sha256": weights})
    (workspace / "data/verdict_rules.json").write_text(rules.model_dump_json())
    with store_of(workspace):
        connect()
    return workspace


@pytest.fixture
def client(trained: Path, tmp_path: Path) -> Iterator[MlflowClient]:
    workspace = tmp_path / "workspace"
    shutil.copytree(trained, workspace, symlinks=True, copy_function=copy_file)
    with store_of(workspace):
        yield connect()


def scores(noise: float, seed: int = 0) -> pd.DataFrame:
    """Return a table of validation scores, the worse the noisier."""
    random = np.random.default_rng(seed)
    score = np.clip(0.25 + 0.5 * TARGETS + random.normal(0, noise, 200), 0.01, 0.99)
    return pd.DataFrame(
        {
            "img_name": [f"{index:032x}.jpg" for index in range(200)],
            "target": TARGETS,
            "score": score,
            "group": np.arange(200),
        }
    )


def enter(
    client: MlflowClient, table: pd.DataFrame, folder: Path, number: int, useful: bool = True
) -> str:
    """Make the run of other weights with these scores, and register a model; return its id."""
    tracker = find_or_make_run(f"{number:064x}", read_table(folder / "data/model/history.csv"))
    path = folder / "val.csv"
    table.assign(logit=logit(table["score"])).to_csv(path, index=False)
    tracker.log_file(path, "scores")
    assert not tracker.is_off
    model_id = log_served_model(
        client, tracker.run_id, folder / "data/model", folder / "data/verdict_rules.json", 100.0
    )
    register(client, model_id, NAME, table, "auc", 0.9, useful)
    return model_id


def champion(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def test_the_champion_is_beaten_only_by_what_is_surely_better(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    first = enter(client, scores(0.3), here, 1)
    assert champion(client) == "1"
    assert f"{NAME} version 1 is @champion: there was no champion" in capsys.readouterr().out

    register(client, first, NAME, scores(0.3), "auc", 0.9, True)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    assert "version 1 is @champion: it was the champion before" in capsys.readouterr().out

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


def test_models_evaluated_on_other_images_are_not_compared(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(client, scores(0.3), Path.cwd(), 1)
    enter(client, scores(0.01).iloc[:150], Path.cwd(), 2)
    assert champion(client) == "1"
    assert "version 1 was evaluated on other validation images" in capsys.readouterr().out


def test_a_champion_that_a_person_has_chosen_elsewhere_stays(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_id = enter(client, scores(0.3), Path.cwd(), 1)
    theirs = client.create_model_version(NAME, str(tmp_path))
    client.set_registered_model_alias(NAME, "champion", theirs.version)
    register(client, model_id, NAME, scores(0.3), "auc", 0.9, True)
    assert champion(client) == "2"
    assert (
        "version 1 does not become @champion: version 2 is not of this" in capsys.readouterr().out
    )


def test_models_are_compared_by_their_logits() -> None:
    """A file's score is PyTorch's, labelled_scores makes it of the logit: other last digits."""
    table = scores(0.3).assign(logit=lambda t: logit(t["score"]))
    assert registry._compare("version 1", table.assign(score=0.5), table, "auc")[0] is False


def test_a_model_of_drawn_faces_has_a_name_of_its_own() -> None:
    assert registered_name(is_generated_sample=True) == f"{NAME}-generated-sample"
    assert registered_name(is_generated_sample=False) == NAME


def test_other_serving_code_is_another_version_and_takes_the_place_of_the_champion(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [enter(client, scores(0.3), Path.cwd(), 1) for _ in range(2)]
    assert models[0] == models[1]
    for code in ("other code", "newer code"):
        monkeypatch.setattr(logged_model, "_digest_of_code", lambda _, code=code: code)
        models.append(enter(client, scores(0.3), Path.cwd(), 1))
    assert len(client.search_model_versions(f"name = '{NAME}'")) == len(set(models)) == 3
    assert client.get_model_version_by_alias(NAME, "champion").source == f"models:/{models[-1]}"
    assert "the weights of the champion, and newer serving code" in capsys.readouterr().out


def test_a_detector_no_better_than_chance_is_never_champion(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    enter(client, scores(0.3), here, 1, useful=False)
    printed = capsys.readouterr().out
    assert "version 1 does not become @champion: it is no better than chance\n" in printed
    assert client.get_registered_model(NAME).aliases == {}
    assert client.get_model_version(NAME, "1").tags["better_than_chance"] == "no"

    second = enter(client, scores(0.3), here, 2)
    assert champion(client) == "2"
    assert client.get_model_version(NAME, "2").tags["better_than_chance"] == "yes"
    enter(client, scores(0.01), here, 1, useful=False)  # whatever its scores are
    assert champion(client) == "2"

    # An evaluation on other images says of the champion that it is no better than chance.
    run_id = client.get_model_version(NAME, "2").run_id
    client.set_tag(run_id, "better_than_chance", "no, this model is useless")
    enter(client, scores(0.3), here, 3)
    assert "version 3 is @champion: version 2 was champion, and it is no better than chance" in (
        capsys.readouterr().out
    )
    client.set_registered_model_alias(NAME, "champion", "2")
    register(client, second, NAME, scores(0.3), "auc", 0.5, False)
    assert "version 2 is no longer @champion: it is no better" in capsys.readouterr().out
    assert client.get_registered_model(NAME).aliases == {}


def remove_run(client: MlflowClient, version: ModelVersion) -> None:
    client.delete_run(version.run_id)
    collect_garbage("--run-ids", version.run_id)


def remove_model(client: MlflowClient, version: ModelVersion) -> None:
    model_id = version.source.removeprefix("models:/")
    client.delete_logged_model(model_id)
    collect_garbage("--logged-model-ids", model_id)


def collect_garbage(*what: str) -> None:
    done = CliRunner().invoke(gc, ["--backend-store-uri", mlflow.get_tracking_uri(), *what])
    assert done.exit_code == 0, done.output


def remove_scores(client: MlflowClient, version: ModelVersion) -> None:
    scores_of(version).unlink()


def damage_scores(client: MlflowClient, version: ModelVersion) -> None:
    scores_of(version).write_bytes(b"\xff\xfe\x00")


def scores_of(version: ModelVersion) -> Path:
    return Path("mlartifacts", version.run_id, "artifacts/scores/val.csv")


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (remove_run, "its run is gone"),
        (remove_model, "its model is gone"),
        (remove_scores, "its scores are gone"),
        (damage_scores, "its scores cannot be read"),
    ],
)
def test_a_champion_that_is_gone_counts_as_none(
    client: MlflowClient,
    capsys: pytest.CaptureFixture[str],
    remove: Callable[[MlflowClient, ModelVersion], None],
    words: str,
) -> None:
    enter(client, scores(0.1), Path.cwd(), 1)
    remove(client, client.get_model_version(NAME, "1"))
    enter(client, scores(0.3), Path.cwd(), 2)  # worse
    assert champion(client) == "2"
    assert f"version 2 is @champion: version 1 was champion, and {words}" in capsys.readouterr().out


def test_a_model_whose_files_are_gone_is_logged_again(client: MlflowClient) -> None:
    first = enter(client, scores(0.3), Path.cwd(), 1)
    shutil.rmtree(Path("mlartifacts/models", first))
    second = enter(client, scores(0.3), Path.cwd(), 1)
    remove_model(client, client.get_model_version(NAME, champion(client)))
    third = enter(client, scores(0.3), Path.cwd(), 1)
    assert len({first, second, third}) == 3
    mlflow.pyfunc.load_model(f"models:/{NAME}@champion")


def test_the_registered_model_loads_after_its_experiment_was_deleted(client: MlflowClient) -> None:
    enter(client, scores(0.3), Path.cwd(), 1)
    before = sorted(Path("mlartifacts").rglob("*"))
    client.delete_experiment(client.get_experiment_by_name("deepfake-detection").experiment_id)
    examiner = load_examiner(f"models:/{NAME}@champion", "cpu", 1, crop=False, max_megapixels=1.0)
    assert (
        examiner.digests["weights"] == read_json(Path("data/model/config.json"))["weights_sha256"]
    )
    assert sorted(Path("mlartifacts").rglob("*")) == before, "loading wrote into the store"


def test_what_was_removed_from_the_registry_is_refused_and_can_be_published_again(
    client: MlflowClient,
) -> None:
    enter(client, scores(0.3), Path.cwd(), 1)
    client.delete_model_version(NAME, "1")
    for model in (f"{NAME}@champion", f"{NAME}/1", f"{NAME}/7", "nobody/1"):
        refusal = rf"--model models:/{model}: cannot be loaded: .*make ui"
        with pytest.raises(UserError, match=refusal):
            load_examiner(f"models:/{model}", "cpu", 1, crop=False, max_megapixels=1.0)
    enter(client, scores(0.3), Path.cwd(), 1)
    assert champion(client) == "2"
    client.delete_registered_model(NAME)
    enter(client, scores(0.3), Path.cwd(), 1)
    assert champion(client) == "1"


def test_a_model_that_was_logged_half_is_never_registered(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow connects a model with its run before all of its files are there."""

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", full)
        with pytest.raises(OSError, match="No space"):
            enter(client, scores(0.3), Path.cwd(), 1)
    model_id = enter(client, scores(0.3), Path.cwd(), 1)
    assert client.get_model_version_by_alias(NAME, "champion").source == f"models:/{model_id}"
    mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
