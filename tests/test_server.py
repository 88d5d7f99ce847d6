"""A real MLflow server on loopback: everything lands there, and a browser shows it."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.conftest import TINY, clone_project, environment, run, runs_of, wait_for

pytestmark = pytest.mark.slow
NAME = "deepfake-detector-generated-sample"


@contextmanager
def serving(folder: Path, *command: str, **env: str) -> Iterator[str]:
    """Run an `mlflow` command that serves on a free port of loopback; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=environment() | env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/health").status == 200)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_a_server_gets_runs_artifacts_and_versions(tmp_path: Path) -> None:
    clone = clone_project(tmp_path / "clone", TINY)
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(folder, "server", "--artifacts-destination", str(folder / "artifacts")) as address:
        done = run("dvc", "repro", cwd=clone, MLFLOW_TRACKING_URI=address)
        assert "WARNING: MLflow" not in done.stdout
        assert "version 1 does not become @champion: it is no better than chance" in done.stdout
        experiment = ["dvc", "exp", "run", "--temp", "-n", "remote", "-S", "train.lr=1e-3"]
        run(*experiment, cwd=clone, MLFLOW_TRACKING_URI=address)
        client = MlflowClient(address)
        latest, first = runs_of(client)
        assert (latest.info.status, first.info.status) == ("FINISHED", "FINISHED")
        assert latest.info.run_name == "remote"
        files = {file.path for file in client.list_artifacts(latest.info.run_id)}
        assert {"figures", "explanations", "scores", "submission.csv", "params.yaml"} <= files
        mlflow.set_tracking_uri(address)
        test_set = clone / "data/raw/sample/phase2/testset1_seen"
        config = {"path_root": str(test_set)}
        model = mlflow.pyfunc.load_model(f"models:/{NAME}/1", model_config=config)
        scores = pd.read_csv(clone / "data/scores/test.csv").head(3)
        paths = [str(test_set / name) for name in scores["img_name"]]
        predicted = model.predict(pd.DataFrame({"path": paths}))["score"]
        assert predicted.tolist() == pytest.approx(scores["score"].tolist(), abs=1e-6)
        mlflow.set_tracking_uri(None)
    assert not (clone / "mlflow.db").exists()


def test_a_registered_model_is_served_over_rest(team: Path, tmp_path: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{team / 'mlflow.db'}"}
    model = f"models:/{NAME}/1"
    image = next((team / "data/raw/sample/phase2/testset1_seen").glob("*.jpg"))
    table = {"columns": ["image"], "data": [[base64.b64encode(image.read_bytes()).decode()]]}
    with serving(tmp_path, "models", "serve", "-m", model, "--env-manager", "local", **env) as url:
        request = urllib.request.Request(
            f"{url}/invocations",
            json.dumps({"dataframe_split": table}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            (row,) = json.load(answer)["predictions"]
    mlflow.set_tracking_uri(env["MLFLOW_TRACKING_URI"])
    expected = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"path": [str(image)]}))
    mlflow.set_tracking_uri(None)
    assert row["score"] == pytest.approx(expected["score"][0], abs=1e-9)


# ---------------------------------------------------------------------------------------------
# What a person sees


@pytest.fixture(scope="module")
def address(team: Path) -> Iterator[str]:
    with serving(
        team, "server", "--backend-store-uri", f"sqlite:///{team / 'mlflow.db'}"
    ) as address:
        yield address


def finished(address: str) -> tuple[str, list[Any]]:
    """Return the experiment's id and its finished runs."""
    client = MlflowClient(address)
    experiment_id = client.get_experiment_by_name("deepfake-detection").experiment_id
    query = "attributes.status = 'FINISHED'"
    return experiment_id, client.search_runs([experiment_id], query)


def text_of(browser: webdriver.Chrome, *expected: str) -> str:
    """Return the page's text once it holds everything expected."""

    def look() -> str:
        text = browser.find_element(By.TAG_NAME, "body").text
        missing = [word for word in expected if word not in text]
        assert not missing, f"{missing} not in:\n{text}"
        return text

    return wait_for(look, seconds=40)


def test_the_runs_are_listed_by_their_experiments_names(
    address: str, browser: webdriver.Chrome, screenshots: Path
) -> None:
    experiment_id, runs = finished(address)
    browser.get(f"{address}/#/experiments/{experiment_id}?workflowType=machine_learning")
    text_of(browser, "Run Name", *(run.info.run_name for run in runs[:6]))
    browser.save_screenshot(str(screenshots / "runs.png"))


def test_a_run_shows_where_it_comes_from_and_its_parameters(
    address: str, browser: webdriver.Chrome, screenshots: Path
) -> None:
    experiment_id, runs = finished(address)
    chosen = next(run for run in runs if run.info.run_name == "aside")
    page = f"{address}/#/experiments/{experiment_id}/runs/{chosen.info.run_id}"
    browser.get(page)
    text_of(browser, "dvc exp apply aside", "train.lr", "0.003", "Finished", NAME)
    text = text_of(browser, "weights_sha256", "Train", "val.auc")
    assert "Registered models" in text
    browser.save_screenshot(str(screenshots / "run.png"))


def test_the_page_of_plots_is_drawn_without_a_network(
    team: Path, browser: webdriver.Chrome, screenshots: Path
) -> None:
    run("python", "-m", "stages.chores.plots", "diff", "here", "aside", cwd=team)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
    page = team / "dvc_plots/index.html"
    assert re.findall(r"wrong_real\.png", page.read_text())
    browser.get(page.as_uri())
    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".vega-embed canvas")) >= 8)
    browser.save_screenshot(str(screenshots / "plots.png"))
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


def test_a_run_shows_its_curves(address: str, browser: webdriver.Chrome, screenshots: Path) -> None:
    experiment_id, runs = finished(address)
    browser.get(f"{address}/#/experiments/{experiment_id}/runs/{runs[0].info.run_id}/model-metrics")
    text_of(browser, "epoch", "speed", "train_loss", "val_auc")
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer path"))
    browser.save_screenshot(str(screenshots / "curves.png"))


@pytest.mark.parametrize(
    "name",
    [
        "figures/roc",
        "figures/precision_recall",
        "figures/confusion",
        "figures/calibration",
        "explanations/wrong_real",
    ],
)
def test_a_run_shows_its_figures(
    address: str, browser: webdriver.Chrome, screenshots: Path, name: str
) -> None:
    experiment_id, runs = finished(address)
    page = f"{address}/#/experiments/{experiment_id}/runs/{runs[0].info.run_id}/artifacts"
    browser.get("about:blank")  # a mere change after the # would leave the last image there
    browser.get(f"{page}/{name}.png")
    text_of(browser, f"{name}.png")
    widths = "return [...document.images].map(image => image.naturalWidth)"
    wait_for(lambda: max(browser.execute_script(widths), default=0) > 300)
    time.sleep(1)  # until it is painted
    browser.save_screenshot(str(screenshots / f"{name.split('/')[1]}.png"))


def test_six_runs_are_compared_in_parallel_coordinates(
    address: str, browser: webdriver.Chrome, screenshots: Path
) -> None:
    experiment_id, runs = finished(address)
    six = json.dumps([run.info.run_id for run in runs[:6]], separators=(",", ":"))
    browser.get(f"{address}/#/compare-runs?runs={six}&experiments=[%22{experiment_id}%22]")
    text_of(browser, "Comparing 6 Runs", "Parallel Coordinates Plot", "train.lr")
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, ".parcoords"))
    browser.save_screenshot(str(screenshots / "compare.png"))


def test_the_registry_shows_the_champion(
    address: str, browser: webdriver.Chrome, screenshots: Path
) -> None:
    MlflowClient(address).set_registered_model_alias(NAME, "champion", "1")  # as a person may
    browser.get(f"{address}/#/models/{NAME}")
    text_of(browser, "champion", "better_than_chance", "Version 1")
    browser.save_screenshot(str(screenshots / "registry.png"))
