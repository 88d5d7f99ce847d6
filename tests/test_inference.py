"""There is one path from an image to its score: whoever scores an image gets the same."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.inference import SCORED_VIEWS
from stages.lib.images.decoding import decode_image
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.results import ImageVerdict
from tests.test_served_model import MODEL


def test_the_stage_the_examiner_and_the_served_model_give_an_image_one_score(
    pipeline: Path,
) -> None:
    """Batches of another size may change the seventh digit."""
    scores = pd.read_csv(pipeline / "data/scores/val.csv")
    labels = pd.read_csv(pipeline / "data/labels/val.csv")
    expected = pytest.approx(scores["score"].to_numpy(), abs=1e-6)
    folder = pipeline / "data/raw/sample/phase1/valset"
    contents = [(folder / name).read_bytes() for name in scores["img_name"]]

    examiner = Examiner(pipeline / "data/model", set_up_hardware("cpu", 1), False, 1_000_000)
    verdicts = [one for one in examiner.examine(contents) if isinstance(one, ImageVerdict)]
    faces = [verdict.faces[0] for verdict in verdicts]
    assert [face.score for face in faces] == expected
    views = np.array([list(face.views.values()) for face in faces])
    assert views.min(axis=1) == pytest.approx(expit(scores["low"]), abs=1e-6)
    assert views.max(axis=1) == pytest.approx(expit(scores["high"]), abs=1e-6)
    assert [face.face_size for face in faces] == pytest.approx(labels["face"].tolist(), abs=1e-3)
    distances = [face.distance for face in faces]
    assert distances == pytest.approx(scores["distance"].tolist(), rel=1e-4)
    columns = ["logit", "low", "high", "distance"]
    decided, _ = examiner.rules.apply(labels.assign(**scores[columns]))
    assert [face.verdict for face in faces] == decided.tolist()
    table = pd.read_csv(pipeline / "metrics/tables/verdicts.csv")
    of_val = table[(table["set"] == "val") & (table["slice"] == "all")].iloc[0]
    assert of_val["unsure"] == pytest.approx((decided == "unsure").mean(), abs=1e-6)

    mlflow.set_tracking_uri(f"sqlite:///{pipeline / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model(MODEL, model_config={"path_root": str(folder)})
    pixels = [decode_image(content).pixels for content in contents]
    given = {"image": contents, "path": list(scores["img_name"]), "pixels": pixels}
    for column, values in given.items():
        answer = served.predict(pd.DataFrame({column: values}))
        assert list(answer.columns) == ["score"]
        assert answer["score"].to_numpy() == expected, column
    lists = pd.DataFrame({"pixels": [array.tolist() for array in pixels]})
    answer = served.predict(lists, params={"verdicts": True})
    assert answer["score"].to_numpy() == expected
    assert answer["verdict"].tolist() == decided.tolist()

    perturbed = pd.read_csv(pipeline / "data/scores/robustness.csv")
    plain = perturbed[perturbed["perturbation"] == "none"].set_index("img_name")["score"]
    same = scores.set_index("img_name")["score"][plain.index]
    assert plain.to_numpy() == pytest.approx(same.to_numpy(), abs=1e-6)


def test_the_views_keep_shape_and_type() -> None:
    inputs = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.uint8)
    for view in SCORED_VIEWS.values():
        assert view(inputs).shape == inputs.shape
        assert view(inputs).dtype == torch.uint8
    flat = torch.full((1, 3, 16, 16), 9, dtype=torch.uint8)
    assert torch.equal(SCORED_VIEWS["zoomed"](flat), flat)


def test_a_job_of_slurm_is_not_taken_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sets these for each command of a job with two tasks."""
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    hardware = set_up_hardware("cpu", 1)
    assert (hardware.rank, hardware.world_size) == (0, 1)
