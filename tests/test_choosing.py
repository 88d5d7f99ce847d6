"""The epoch that is kept: chosen by the AUC of all images, or by those of the sources of val."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.utils.validation import _validate_metric_name

from stages.lib import paths
from stages.lib.core.files import read_json
from stages.lib.core.labels import read_labels, write_labels
from stages.lib.core.params import load_params
from stages.lib.core.tables import read_history
from stages.lib.tracking.run import Tracker
from stages.lib.training.params import TrainParams
from stages.lib.training.results import TrainingResults, choosing_auc
from stages.lib.training.validation import source_aucs
from stages.train import main
from tests.conftest import ROOT, set_params

PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
# The AUC of three sources in three epochs, by hand; the pooled one is best in the first.
EPOCHS = [
    {"val_auc": 0.95, "val_auc/mean": 0.80, "val_auc/worst": 0.60},
    {"val_auc": 0.90, "val_auc/mean": 0.85, "val_auc/worst": 0.50},
    {"val_auc": 0.85, "val_auc/mean": 0.82, "val_auc/worst": 0.70},
]


def params_with(**changes: Any) -> TrainParams:
    return PARAMS.model_copy(update=changes)


def weights(epoch: int) -> dict[str, torch.Tensor]:
    return {"epoch": torch.tensor(float(epoch))}


@pytest.mark.parametrize(
    ("by", "best", "auc"), [("pooled", 1, 0.95), ("mean", 2, 0.85), ("worst", 3, 0.70)]
)
def test_the_epoch_with_the_best_figure_is_kept(by: str, best: int, auc: float) -> None:
    params = params_with(choose_epoch_by=by, epochs=9, early_stopping=2, average_last=2)
    results = TrainingResults()
    finished = []
    for epoch, figures in enumerate(EPOCHS, 1):
        results.add_epoch(figures, weights(epoch), params)
        finished.append(results.is_finished(params))
        resumed = TrainingResults()  # from a checkpoint
        resumed.load_state_dict(results.state_dict())
        results = resumed
    assert (results.best.epoch, results.best.auc) == (best, auc)
    assert results.best.weights == weights(best)
    assert finished == [False, False, best == 1]
    results.add_average(auc, weights(0))  # no better
    assert results.best.averaged == 1
    results.add_average(auc + 0.01, weights(0))
    assert (results.best.averaged, results.best.weights) == (2, weights(0))


def test_with_one_source_all_ways_are_the_same() -> None:
    for by in ("pooled", "mean", "worst"):
        assert choosing_auc({"val_auc": 0.7}, params_with(choose_epoch_by=by)) == 0.7


def test_the_figures_of_sources_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.2, 0.8, 0.6, 0.4, 0.3, 0.5, 0.7, 0.5])
    targets = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 0])
    sources = pd.Series(["a"] * 4 + ["b"] * 4 + ["fakes", None])
    assert source_aucs(sources, targets, scores) == {
        "val_auc/a": 1.0,
        "val_auc/b": 0.5,  # (0.6, 0.3) against (0.4, 0.5): two of four pairs
        "val_auc/mean": 0.75,
        "val_auc/worst": 0.5,
    }
    assert source_aucs(sources[:4], targets[:4], scores[:4]) == {}
    assert source_aucs(pd.Series([None] * 8, dtype="str"), targets[:8], scores[:8]) == {}


@pytest.mark.parametrize("name", ["/data/faces", "a//b:c", "../été", "x/", "  (1) [all], données"])
def test_mlflow_takes_the_name_of_any_source(name: str) -> None:
    sources = pd.Series([name, name, "b", "b"])
    figures = source_aucs(sources, np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.9, 0.1]))
    assert len(figures) == 4
    for key in figures:
        _validate_metric_name(f"epoch/{key}")


def name_sources(workspace: Path) -> None:
    """Let the images of a workspace be of two sources."""
    for name in ("train", "val"):
        path = workspace / paths.LABELS / f"{name}.csv"
        labels = read_labels(path)
        order = np.arange(len(labels))
        write_labels(labels.assign(source=np.where(order % 10 < 4, "a:1", "b")), path)


def test_a_training_on_sources(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"balance": "sources", "paired_batches": True, "choose_epoch_by": "worst"}
    set_params(workspace, {f"train.{name}": value for name, value in options.items()})
    name_sources(workspace)
    logged = []  # what MLflow gets
    monkeypatch.setattr(Tracker, "log_epoch", lambda _, epoch, row: logged.append(row))
    monkeypatch.setenv("TRACKING", "off")
    monkeypatch.chdir(workspace)
    main()
    history = read_history()
    pd.testing.assert_frame_equal(pd.DataFrame(logged), history.drop(columns="epoch"))
    aucs = history[["val_auc/a_1", "val_auc/b"]]
    assert history["val_auc/mean"].tolist() == pytest.approx(aucs.mean(axis=1).tolist())
    assert history["val_auc/worst"].tolist() == aucs.min(axis=1).tolist()
    assert read_json(paths.CONFIG)["best_epoch"] == history["val_auc/worst"].idxmax() + 1
    shown = capsys.readouterr().out.splitlines()
    assert "  a:1: 16 real, 16 fake" in shown
    (heading,) = [line for line in shown if line.startswith("epoch")]
    place = heading.index("worst AUC")
    for number, worst in enumerate(history["val_auc/worst"], 1):
        (line,) = [line for line in shown if line.strip().startswith(f"{number}/2")]
        assert line[place : place + 9].strip() == f"{worst:.4f}"
        assert len(line.removesuffix("  best")) == len(heading)
