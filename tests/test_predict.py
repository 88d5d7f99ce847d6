"""Scores: the same in one process and in two, every image once, several views from one decoding."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import predict, train
from stages.lib.core.files import sha256_of
from stages.lib.detector import dataset as dataset_module
from tests.conftest import change_preprocessing, run, set_params


@pytest.fixture
def trained(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    set_params(workspace, {"train.epochs": 1})
    train.main()
    return workspace


def scores() -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in sorted(Path("data/scores").glob("*.csv"))}


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(trained: Path) -> None:
    predict.main()
    alone = scores()
    set_params(trained, {"predict.num_processes": 2, "predict.batch_size": 7})
    done = run("python", "-m", "stages.predict", cwd=trained, TRACKING="off")
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("val: 46 scores") == 1
    together = scores()
    assert set(together) == {*predict.SETS, "robustness", "edits"}
    for name, table in alone.items():
        names = [column for column in table if table[column].dtype != float]
        assert table[names].equals(together[name][names])
        assert together[name]["logit"].to_numpy() == pytest.approx(
            table["logit"].to_numpy(), abs=1e-4
        )


def test_every_image_is_decoded_once_also_for_several_views(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    real_decode = dataset_module.decode
    monkeypatch.setattr(
        dataset_module, "decode", lambda c, p: decoded.append(bytes(c)) or real_decode(c, p)
    )
    logits = {}
    for views in (["plain"], ["mirrored"], ["plain", "mirrored"]):
        decoded.clear()
        set_params(trained, {"predict.views": views, "predict.robustness_images": 0})
        predict.main()
        logits["+".join(views)] = scores()["val"]["logit"].to_numpy()
        assert len(decoded) == len(set(decoded)) == 60 + 10
    written = json.loads(Path("data/scores/views.json").read_text())
    assert written["views"] == ["plain", "mirrored"]
    assert written["weights_sha256"] == sha256_of(Path("data/model/weights.safetensors"))
    assert set(written["scores"]) == {*predict.SETS, "robustness", "edits"}
    both = (logits["plain"] + logits["mirrored"]) / 2
    assert logits["plain+mirrored"] == pytest.approx(both, abs=1e-5)
    assert np.abs(logits["plain"] - logits["mirrored"]).max() > 1e-4


@pytest.mark.slow
def test_a_compiled_network_agrees_with_the_plain_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")  # native
    set_params(trained, {"predict.robustness_images": 20})
    predict.main()
    plain = scores()
    set_params(trained, {"predict.compile": "default"})
    predict.main()
    for name, table in scores().items():
        assert table["score"].to_numpy() == pytest.approx(plain[name]["score"], abs=1e-4)
        assert len(table) == len(plain[name])
    assert (scores()["val"]["logit"] != plain["val"]["logit"]).any()


def test_scaled_decoding_changes_scores_by_little(trained: Path) -> None:
    """Whole and scaled decoding differ by the filter that makes the images smaller."""
    set_params(trained, {"train.image_size": 16, "train.epochs": 3})
    train.main()
    predict.main()
    whole = scores()["val"]["score"].to_numpy()
    change_preprocessing(trained, scaled_decoding=True)
    predict.main()
    scaled = scores()["val"]["score"].to_numpy()
    assert scaled == pytest.approx(whole, abs=0.02)
    assert (scaled != whole).any()
