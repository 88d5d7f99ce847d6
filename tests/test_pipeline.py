"""The pipeline run for real, with DVC, in a temporary clone, and what it leaves in MLflow."""

import csv
import hashlib
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from stages.explain import SHEET_TITLES
from stages.lib.core.labels import read_labels
from stages.lib.core.params import StageParams
from stages.lib.core.tables import read_table
from stages.lib.data.layouts.manifest import ManifestParams
from stages.lib.evaluation.verdicts import VerdictParams
from stages.lib.training.augmentation import Augmentation, Degradation
from stages.lib.training.pseudo_fakes import Kinds, PseudoFakes
from stages.publish import flatten
from tests.conftest import (
    TINY,
    client_of,
    clone_project,
    draw_dataset,
    run,
    runs_of,
    set_params,
    store_of,
)
from tests.test_design import STAGES, loaded_params
from tests.test_hub_layouts import write_hub_parquet

SPLITS = ("val", "calibration", "test")


@pytest.fixture(scope="session")
def client(pipeline: Path) -> MlflowClient:
    return client_of(pipeline)


@pytest.fixture(scope="session")
def mlflow_run(client: MlflowClient) -> Run:
    (found,) = runs_of(client)  # train and publish share it
    return found


def test_a_second_repro_does_nothing(pipeline: Path) -> None:
    done = run("dvc", "repro", cwd=pipeline)
    assert "Data and pipelines are up to date." in done.stdout
    assert "Running stage" not in done.stdout


def test_git_sees_only_what_it_owns(pipeline: Path) -> None:
    changed = run("git", "status", "--porcelain", "-uall", cwd=pipeline).stdout.split("\n")
    names = {line[3:] for line in changed if line} - {"repro.log"}
    allowed = {"dvc.lock", "metrics/data.json", "metrics/evaluation.json", "metrics/model_card.md"}
    folders = ("metrics/plots/", "metrics/tables/")
    assert {name for name in names if not name.startswith(folders)} <= allowed


def test_training_and_evaluation_agree(pipeline: Path) -> None:
    """The best epoch's AUC in the history is that of the scores from the saved weights."""
    history = pd.read_csv(pipeline / "data/model/history.csv")
    metrics = json.loads((pipeline / "metrics/evaluation.json").read_text())
    assert metrics["val"]["auc"] == pytest.approx(history["val_auc"].max(), rel=1e-8)
    best = history.loc[history["val_auc"].idxmax()]
    assert metrics["val"]["log_loss"] == pytest.approx(best["val_loss"], rel=1e-6)


def test_every_figure_has_its_interval_and_n(pipeline: Path) -> None:
    metrics = json.loads((pipeline / "metrics/evaluation.json").read_text())
    intervals = pd.read_csv(pipeline / "metrics/tables/intervals.csv")
    for row in intervals[intervals["slice"] == "all"].itertuples():
        found = metrics[row.set]
        assert row.value == pytest.approx(found[row.metric], abs=1e-6)
        if row.metric not in ("tpr", "fpr"):
            assert (row.num_real, row.num_fake) == (found["num_real"], found["num_fake"])
    aucs = intervals[(intervals["set"] == "val") & (intervals["metric"] == "auc")]
    families = aucs[aucs["slice"].str.startswith("family=")].set_index("slice")["value"]
    assert dict(families) == pytest.approx(
        {f"family={name}": one["auc"] for name, one in metrics["val"]["families"].items()}, abs=1e-6
    )
    assert "tpr_at_fpr_1e-4" not in metrics["val"]  # too few reals for it
    assert {"brier", "ece", "ece_scaled"} <= set(metrics["val"])


def test_a_further_set_has_its_own_row_and_is_pooled_and_crossed(pipeline: Path) -> None:
    metrics = json.loads((pipeline / "metrics/evaluation.json").read_text())
    assert (metrics["drawn"]["num_real"], metrics["drawn"]["num_fake"]) == (20, 20)
    for count in ("num_real", "true_real", "num_fake", "true_fake"):
        assert metrics["pooled"][count] == metrics["val"][count] + metrics["drawn"][count]
    cross = pd.read_csv(pipeline / "metrics/tables/cross_auc.csv").set_index(
        ["reals_of", "fakes_of"]
    )
    assert len(cross) == 4
    for name in ("val", "drawn"):
        assert cross["auc"][name, name] == pytest.approx(metrics[name]["auc"], abs=1e-6)
    across = [cross["auc"]["val", "drawn"], cross["auc"]["drawn", "val"]]
    assert metrics["cross"]["worst_auc"] == pytest.approx(min(across), abs=1e-6)
    points = pd.read_csv(pipeline / "metrics/tables/operating_points.csv")
    assert set(points["set"]) == {"val", "drawn", "pooled"}
    assert points.groupby("wanted_fpr")["threshold"].nunique().eq(1).all()
    audit = json.loads((pipeline / "metrics/data.json").read_text())
    assert audit["sets"]["drawn"]["real"] == 20


def test_the_submission_is_the_list_with_its_scores(pipeline: Path) -> None:
    listed = (pipeline / "data/raw/sample/phase2/testset1_seen_nolabel.txt").read_text().split()[1:]
    with (pipeline / "data/submission/submission.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["img_name", "y_pred"]
    assert [name for name, _ in rows[1:]] == listed
    scores = np.array([float(score) for _, score in rows[1:]])
    assert ((scores >= 0) & (scores <= 1)).all()
    predicted = pd.read_csv(pipeline / "data/scores/test.csv")
    assert scores.tolist() == predicted["score"].tolist()


def test_scores_and_labels_go_together(pipeline: Path) -> None:
    for split in SPLITS:
        labels = pd.read_csv(pipeline / f"data/labels/{split}.csv")
        scores = pd.read_csv(pipeline / f"data/scores/{split}.csv")
        assert labels["img_name"].tolist() == scores["img_name"].tolist()


def test_outputs_hold_no_clock_and_no_run_id(pipeline: Path, mlflow_run: Run) -> None:
    clock = rb"20\d\d-[01]\d-[0-3]\d|[0-2]\d:[0-5]\d:[0-5]\d"
    files = [path for name in ("data", "metrics") for path in (pipeline / name).rglob("*.*")]
    for path in (path for path in files if path.is_file()):
        content = path.read_bytes()
        assert mlflow_run.info.run_id.encode() not in content, path
        if path.suffix in (".json", ".csv", ".md", ".html", ".txt"):
            assert not re.search(clock, content), path


def test_the_run_knows_its_parameters(pipeline: Path, mlflow_run: Run) -> None:
    params = mlflow_run.data.params
    assert params["train.model"] == TINY["train.model"]
    assert params["train.lr"] == "0.002"
    assert params["sample.num_train"] == str(TINY["sample.num_train"])
    assert not [name for name in params if name.startswith(("evaluate.", "submit.", "predict."))]


def test_the_run_knows_where_it_comes_from(pipeline: Path, mlflow_run: Run) -> None:
    tags = mlflow_run.data.tags
    weights = (pipeline / "data/model/weights.safetensors").read_bytes()
    assert tags["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert tags["git_commit"] == run("git", "rev-parse", "HEAD", cwd=pipeline).stdout.strip()
    assert tags["initial_weights"] == "random"
    assert tags["trained_in"] == "portable fp32"
    assert len(tags["data_sha256"]) == 64
    assert tags["device"]
    assert mlflow_run.info.status == "FINISHED"


def test_the_run_has_the_metrics_of_every_epoch(
    pipeline: Path, client: MlflowClient, mlflow_run: Run
) -> None:
    history = pd.read_csv(pipeline / "data/model/history.csv")
    for name in ("train_loss", "val_loss", "val_auc", "val_accuracy", "lr"):
        logged = client.get_metric_history(mlflow_run.info.run_id, f"epoch/{name}")
        assert [metric.step for metric in logged] == history["epoch"].tolist()
        assert [metric.value for metric in logged] == pytest.approx(history[name].tolist())


def test_the_run_has_the_final_metrics(pipeline: Path, mlflow_run: Run) -> None:
    metrics = flatten(json.loads((pipeline / "metrics/evaluation.json").read_text()))
    for name, value in metrics.items():
        assert mlflow_run.data.metrics[name] == pytest.approx(value)
    assert [name for name in mlflow_run.data.metrics if name.startswith("system/")]


def test_the_run_has_figures_files_and_data_sets(client: MlflowClient, mlflow_run: Run) -> None:
    run_id = mlflow_run.info.run_id
    files = {file.path for file in client.list_artifacts(run_id)}
    assert {
        "params.yaml",
        "evaluation.json",
        "data.json",
        "submission.csv",
        "model_card.md",
        "model_card.html",
        "figures",
        "scores",
        "intervals.csv",
        "operating_points.csv",
        "cross_auc.csv",
        "robustness.csv",
        "false_alarms.csv",
    } <= files
    figures = {Path(file.path).stem for file in client.list_artifacts(run_id, "figures")}
    assert figures == {"roc", "precision_recall", "scores", "confusion", "calibration", "loss",
                       "val_auc", "robustness", "risk_coverage"}  # fmt: skip
    shown = {Path(file.path).name for file in client.list_artifacts(run_id, "explanations")}
    assert shown == {"images.csv", "page.html", *(f"{name}.png" for name in SHEET_TITLES)}
    assert {one.dataset.name for one in mlflow_run.inputs.dataset_inputs} == {"train", "val"}


def test_no_pickle_is_logged(pipeline: Path) -> None:
    names = [path.name for path in (pipeline / "mlartifacts").rglob("*") if path.is_file()]
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pth", ".pt", ".pickle"))]


def test_dvc_shows_plots_and_metrics(pipeline: Path, tmp_path: Path) -> None:
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=pipeline).stdout)
    assert "val" in shown[""]["data"]["metrics/evaluation.json"]["data"]
    run("dvc", "plots", "show", "-o", str(tmp_path), cwd=pipeline)
    page = (tmp_path / "index.html").read_text()
    for title in ("ROC", "Precision", "Scores", "Confusion", "Calibration", "Loss per epoch",
                  "Validation AUC", "Wrong calls", "wrong_real.png"):  # fmt: skip
        assert title in page


def write_manifest(root: Path) -> Path:
    """Write a data set with a manifest into a folder; return it."""
    root.mkdir()
    (root / "list.csv").write_text("path,label\na.png,real\nb.png,fake\n")
    for name, colour in (("a", "teal"), ("b", "navy")):
        Image.new("RGB", (40, 40), colour).save(root / f"{name}.png")
    return root


def test_every_stage_gives_the_same_bytes_again(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = shutil.copytree(pipeline, tmp_path / "clone", symlinks=True)
    before = outputs(clone)
    for name in before:
        # The further set stays, and what a chore writes.
        if not name.startswith("data/packed/drawn.set") and name != "metrics/left_out.csv":
            (clone / name).unlink()
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.setenv("TRACKING", "off")
    read = record_parameters(monkeypatch)
    sections: dict[type, str] = {
        Augmentation: "train.augmentation",
        Degradation: "train.augmentation",
        PseudoFakes: "train.pseudo_fakes",
        Kinds: "train.pseudo_fakes",
        VerdictParams: "evaluate.verdicts",
        ManifestParams: "data.manifest",
    }
    for stage in ("sample", "pack", "prepare", "train", "predict", "explain",
                  "evaluate", "card", "submit", "publish"):  # fmt: skip
        before_stage = {model: set(names) for model, names in read.items()}
        import_module(f"stages.{stage}").main()
        sections |= {model: section for section, model in loaded_params(stage).items()}
        declared = STAGES[stage].get("params", [])
        for model, names in read.items():
            for name in names - before_stage.get(model, set()):
                dotted = f"{sections[model]}.{name}"
                assert any(f"{dotted}.".startswith(f"{one}.") for one in declared), (stage, dotted)
    assert outputs(clone) == before
    set_params(clone, {"data.root": str(draw_dataset(clone / "drawn", {"train": 60}))})
    for stage in ("pack", "prepare"):  # a set without a validation set reads one more parameter
        import_module(f"stages.{stage}").main()
    set_params(
        clone,
        {"data.root": str(write_manifest(clone / "listed")), "data.manifest.file": "list.csv"},
    )
    import_module("stages.pack").main()  # a manifest reads more parameters
    write_hub_parquet(clone / "hub/train.parquet", range(4))
    set_params(clone, {"data.root": str(clone / "hub"), "data.manifest.file": None})
    import_module("stages.pack").main()  # and so do images in a table
    models = {
        model for model in models_below(StageParams) if model.__module__.startswith("stages.")
    }
    assert models == set(sections)
    for model in models:
        assert set(model.model_fields) == read.get(model, set()), f"{model}: not read"


def test_the_page_of_plots_needs_no_network(pipeline: Path) -> None:
    """A browser draws it in tests/test_server.py."""
    run("python", "-m", "stages.chores.plots", cwd=pipeline)
    page = (pipeline / "dvc_plots/index.html").read_text()
    assert page.count("vegaEmbed('#") >= 8 and "window.vegaEmbed=" in page
    assert not re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']?[^>]*//""", page)


@pytest.mark.slow
def test_the_name_of_a_set_leads_dvc_to_no_folder_of_the_user(workspace: Path) -> None:
    """DVC removes the outputs of a stage before the stage can check anything."""
    precious = workspace / "precious/file"
    precious.parent.mkdir()
    precious.touch()
    set_params(workspace, {"data.evaluation_sets": {"../../../precious": "data/raw/sample"}})
    done = run("dvc", "repro", cwd=workspace, check=False)
    assert done.returncode
    assert "error: params.yaml: data.evaluation_sets.../../../precious" in done.stderr
    assert precious.exists()


def models_below(base: type[StageParams]) -> set[type[StageParams]]:
    """Return the models of parameters, without those that are only bases of others."""
    models: set[type[StageParams]] = set()
    for model in base.__subclasses__():
        models |= models_below(model) or {model}
    return models


def record_parameters(monkeypatch: pytest.MonkeyPatch) -> dict[type, set[str]]:
    """Return the fields of each model of parameters that are read from now on."""
    read: dict[type, set[str]] = {}

    def get(self: StageParams, name: str) -> Any:
        if name in type(self).model_fields:
            read.setdefault(type(self), set()).add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(StageParams, "__getattribute__", get)
    return read


def outputs(clone: Path) -> dict[str, bytes]:
    """Return what dvc.lock has digests of."""
    files = [path for name in ("data", "metrics") for path in (clone / name).rglob("*")]
    by_hand = ("README.md", "example.png", ".gitignore")
    return {
        str(path.relative_to(clone)): path.read_bytes()
        for path in files
        if path.is_file() and path.name not in by_hand
    }


@pytest.mark.slow
def test_other_data_is_read_with_nothing_else_to_edit(tmp_path: Path) -> None:
    """No test list, no family, no validation set, a relative path, a bad image, as in the README.

    `dvc repro` ends well although there is nothing to submit; what can be published is.
    """
    clone = clone_project(tmp_path / "clone", TINY | {"prepare.bad_images": "drop"})
    root = draw_dataset(tmp_path / "own", {"train": 120})
    empty = sorted((root / "phase1/trainset").iterdir())[7]
    empty.write_bytes(b"")
    done = run("dvc", "exp", "run", "publish", "-S", "data.root=../own", cwd=clone)
    assert "Running stage 'sample'" not in done.stdout
    assert "nothing to submit" in done.stdout
    assert (clone / "data/submission/submission.csv").read_text() == "img_name,y_pred\n"
    parts = [
        pd.read_csv(clone / f"data/labels/{name}.csv") for name in ("train", "val", "calibration")
    ]
    groups = [set(part["group"]) for part in parts]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sum(map(len, parts)) == 119
    audit = json.loads((clone / "metrics/data.json").read_text())
    assert audit["bad_images"]["first"] == [
        {"set": "train", "img_name": empty.name, "error": "empty file"}
    ]
    client = client_of(clone)
    (version,) = client.search_model_versions("name = 'deepfake-detector'")
    files = {file.path for file in client.list_artifacts(version.run_id)}
    assert "model_card.md" in files and "submission.csv" not in files


@pytest.mark.slow
def test_a_data_set_without_a_test_list_has_nothing_to_submit(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = workspace / "drawn"
    set_params(workspace, {"data.root": str(root)})
    (root / "phase2/testset1_seen_nolabel.txt").unlink()
    shutil.rmtree(root / "phase2/testset1_seen")
    with store_of(workspace):
        for stage in ("pack", "prepare", "train", "predict", "explain", "evaluate", "card",
                      "submit", "publish", "publish"):  # fmt: skip
            import_module(f"stages.{stage}").main()
        (made,) = MlflowClient().search_runs(["1"])
        files = {file.path for file in MlflowClient().list_artifacts(made.info.run_id)}
        assert Path("data/submission/submission.csv").read_text() == "img_name,y_pred\n"
    assert capsys.readouterr().out.count("nothing to submit") == 1
    assert "model_card.md" in files and "submission.csv" not in files


@pytest.mark.parametrize("bad", [b"", b"no image"])
def test_a_bad_image_is_left_out_up_to_the_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    """A set with a bad image has a missing hash, which must not turn the others into floats."""
    clone = clone_project(tmp_path / "clone", TINY)
    root = draw_dataset(clone / "own", {"train": 60, "val": 60, "test": 10})
    for folder in ("phase1/trainset", "phase1/valset", "phase2/testset1_seen"):
        (root / folder / f"{4:032x}.jpg").write_bytes(bad)
    changes = {"data.root": "own", "prepare.bad_images": "drop", "submit.missing_score": 0.25}
    set_params(clone, changes)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.setenv("TRACKING", "off")
    for stage in ("pack", "prepare", "train", "predict", "submit"):
        import_module(f"stages.{stage}").main()
    submission = pd.read_csv("data/submission/submission.csv").set_index("img_name")["y_pred"]
    assert len(submission) == 10
    assert submission[f"{4:032x}.jpg"] == 0.25
    assert len(pd.read_csv("data/labels/train.csv")) == 59


def test_words_that_pandas_takes_for_missing_reach_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source NA (North America), a family None, images called null and nan."""
    clone = clone_project(tmp_path / "clone", TINY)
    root = draw_dataset(clone / "own", {"train": 60, "val": 80, "test": 10})
    for name, old in (("null", 3), ("nan", 5)):
        (root / f"phase2/testset1_seen/{old:032x}.jpg").rename(root / "phase2/testset1_seen" / name)
    listed = root / "phase2/testset1_seen_nolabel.txt"
    names = listed.read_text().replace(f"{3:032x}.jpg", "null").replace(f"{5:032x}.jpg", "nan")
    listed.write_text(names)
    labels = root / "phase1/valset_label.txt"
    rows = labels.read_text().split()[1:]
    words = [
        f"{row},{('NA', 'EU')[i // 2 % 2]},{('', 'None')[i % 2]}" for i, row in enumerate(rows)
    ]
    labels.write_text("\n".join(["img_name,target,source,family", *words]) + "\n")
    set_params(clone, {"data.root": "own", "data.evaluation_sets": {"NA": "own"}})
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.setenv("TRACKING", "off")
    import_module("stages.pack").main()
    import_module("stages.pack").main("NA")
    for stage in ("prepare", "train", "predict", "explain", "evaluate", "card", "submit"):
        import_module(f"stages.{stage}").main()
    submitted = Path("data/submission/submission.csv").read_text().split()[1:]
    assert [line.split(",")[0] for line in submitted] == names.split()[1:]
    assert submitted[3].startswith("null,")
    for split in ("val", "calibration", "evaluation"):
        found = read_labels(Path(f"data/labels/{split}.csv"))
        assert found["source"].isin(["NA", "EU"]).all()
        assert found.loc[found["target"] == 1, "family"].eq("None").all()
        assert found.loc[found["target"] == 0, "family"].isna().all()
    intervals = read_table(Path("metrics/tables/intervals.csv"))
    assert {"source=NA", "source=EU", "family=None"} <= set(intervals["slice"])
    assert set(intervals["set"]) == {"val", "NA", "pooled"}
    card = Path("metrics/model_card.md").read_text()
    assert "| val | NA |" in card and "fakes of NA" in card


def test_a_mistake_ends_a_stage_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    clone = clone_project(tmp_path / "clone", {"data.root": "nowhere"})
    done = run("python", "-m", "stages.pack", cwd=clone, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.root = 'nowhere' is not a folder; give the folder with the data set"
    ]
    assert not list((clone / "data/packed").glob("*"))
