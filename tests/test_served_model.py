"""The model that MLflow keeps: what it takes, what it gives, what it refuses."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from stages.lib.detector.preprocessing import Preprocessing, decode
from stages.lib.evaluation.verdict_rules import DOUBTS
from tests.test_decoding import REFUSED

SEEN = Preprocessing(image_size=32, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3)
MODEL = "models:/deepfake-detector-generated-sample/1"  # no better than chance, so no champion


@pytest.fixture(scope="module")
def model(pipeline: Path) -> Iterator[PyFuncModel]:
    mlflow.set_tracking_uri(f"sqlite:///{pipeline / 'mlflow.db'}")
    yield mlflow.pyfunc.load_model(MODEL, model_config={"path_root": str(pipeline / "data")})
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def files(pipeline: Path) -> list[str]:
    folder = pipeline / "data/raw/sample/phase2/testset1_seen"
    names = pd.read_csv(pipeline / "data/scores/test.csv")["img_name"]
    return [str(folder / name) for name in names]


@pytest.fixture(scope="module")
def expected(pipeline: Path) -> Any:
    scores = pd.read_csv(pipeline / "data/scores/test.csv")["score"]
    return pytest.approx(scores.to_numpy(), abs=1e-6)


def test_verdicts_begin_with_what_the_detector_is_worth(
    model: PyFuncModel, files: list[str]
) -> None:
    answer = model.predict(pd.DataFrame({"path": files}), params={"verdicts": True})
    assert list(answer.columns) == ["score", "doubt", "verdict", "probability", "reasons"]
    assert answer["score"].between(0, 1).all()
    assert set(answer["doubt"]) == {DOUBTS["trained on drawn faces alone"]}
    assert set(answer["verdict"]) <= {"real", "fake", "unsure"}
    assert answer["probability"].isna().all() and answer["probability"].dtype == float


def test_rows_may_differ_in_what_they_give(
    model: PyFuncModel, files: list[str], expected: Any
) -> None:
    content = Path(files[0]).read_bytes()
    array = decode(Path(files[2]).read_bytes(), SEEN).pixels
    columns = {
        "image": [content, None, None],
        "path": [None, files[1], None],
        "pixels": [None, None, array],
    }
    assert model.predict(pd.DataFrame(columns))["score"].tolist() == pytest.approx(
        list(expected.expected[:3])
    )


def test_the_schema_is_written_down(model: PyFuncModel) -> None:
    inputs = {column.name: str(column.type) for column in model.metadata.signature.inputs}
    assert inputs["image"] == "DataType.binary"
    assert inputs["path"] == "DataType.string"
    assert list(inputs) == ["image", "path", "pixels"]
    assert model.metadata.saved_input_example_info


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("image", b"no image", "not an image of a known format"),
        ("image", b"\xff\xd8 cut off", "not an image"),
        ("path", "nowhere.jpg", "nowhere.jpg"),
        ("pixels", np.zeros((4, 4), np.uint8), r"shape \(H, W, 3\), not uint8 \(4, 4\)"),
        ("pixels", np.zeros((4, 4, 3)), "must be integers"),
        ("pixels", np.full((4, 4, 3), 300), "0 to 255, not 300 to 300"),
        ("pixels", np.zeros((0, 4, 3), np.uint8), "is empty"),
        ("pixels", np.zeros((1, 200_000_000, 3), np.uint8), "more than 100000000 pixels"),
        ("image", REFUSED["half a jpeg"][0], "damaged: image file is truncated"),
        ("image", REFUSED["half an avif"][0], "not an image"),
        ("image", REFUSED["jpeg claims 30,000 x 30,000"][0], "30000 x 30000 pixels are more than"),
        ("image", REFUSED["tiff lab"][0], "pixels are LAB"),
        ("path", None, "fill one of image, path, pixels, not 0"),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(
    model: PyFuncModel, column: str, value: Any, problem: str
) -> None:
    with pytest.raises(MlflowException, match=f"row 0.*{problem}"):
        model.predict(pd.DataFrame({column: [value]}))


@pytest.mark.parametrize("verdicts", [False, True])
def test_bad_images_are_rows_with_their_reason_where_that_is_wanted(
    model: PyFuncModel, files: list[str], verdicts: bool
) -> None:
    content = Path(files[0]).read_bytes()
    table = pd.DataFrame({"image": [b"no image", content, b"", content]})
    params = {"verdicts": verdicts, "bad_images": "report"}
    answer = model.predict(table, params=params)
    right = model.predict(table.iloc[[1, 3]], params={"verdicts": verdicts}).fillna({"doubt": ""})
    assert list(answer.columns) == [*right.columns, "error"]
    pd.testing.assert_frame_equal(
        answer.iloc[[1, 3]][list(right.columns)].reset_index(drop=True), right, check_dtype=False
    )
    assert answer["score"].isna().tolist() == [True, False, True, False]
    assert "not an image of a known format" in answer["error"][0] and answer["error"][2]
    assert answer["error"][1] == answer["error"][3] == ""
    alone = model.predict(table.iloc[:1], params=params)
    assert list(alone.columns) == list(answer.columns) and alone["score"].dtype == float
    with pytest.raises(MlflowException, match="bad_images = 'drop': give one of refuse, report"):
        model.predict(table, params={"bad_images": "drop"})


def test_a_path_says_nothing_of_files_that_are_not_below_its_folder(
    pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.jpg").symlink_to(pipeline / "params.yaml")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    mlflow.set_tracking_uri(f"sqlite:///{pipeline / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(MODEL, model_config={"path_root": str(tmp_path)})
    names = ["../params.yaml", "/etc/passwd", "", "link.jpg", "pipe", "x\0y", "circle", "folder"]
    for name in names:
        with pytest.raises(MlflowException) as error:
            model.predict(pd.DataFrame({"path": [name]}))
        assert error.value.message == f"row 0: path: no file {name!r} that can be read"


def test_paths_are_off_unless_a_folder_is_named(
    pipeline: Path, files: list[str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{pipeline / 'mlflow.db'}")
    with pytest.raises(MlflowException, match="row 0: the column path is off"):
        mlflow.pyfunc.load_model(MODEL).predict(pd.DataFrame({"path": files}))
    monkeypatch.setenv("DETECTOR_PATH_ROOT", str(pipeline / "data/raw"))
    answer = mlflow.pyfunc.load_model(MODEL).predict(pd.DataFrame({"path": files}))
    assert answer["score"].to_numpy() == expected


def test_a_table_without_images_is_refused(model: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match="no column of image, path, pixels"):
        model.predict(pd.DataFrame({"something": ["else"]}))


def test_a_row_with_two_images_is_refused(model: PyFuncModel, files: list[str]) -> None:
    content = Path(files[0]).read_bytes()
    with pytest.raises(MlflowException, match="row 0: fill one of .*, not 2"):
        model.predict(pd.DataFrame({"image": [content], "path": [files[0]]}))


def test_models_of_different_code_and_a_package_of_the_same_name_live_in_one_process(
    pipeline: Path, tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [module for module in sys.modules if module.split(".")[0] == "stages"]:
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it gets an ImportError
    logged = next((pipeline / "mlartifacts/models").glob("*/artifacts"))
    for name in "AB":
        shutil.copytree(logged, tmp_path / name)
    (inference,) = (tmp_path / "B/code").rglob("inference.py")
    inference.write_text(inference.read_text().replace(".mean(dim=0)", ".mean(dim=0) * 0 + 5.0"))

    def score(name: str) -> float:
        model = mlflow.pyfunc.load_model(str(tmp_path / name))
        return model.predict(pd.DataFrame({"image": [Path(files[0]).read_bytes()]}))["score"][0]

    first = score("A")
    assert 0 < first < 0.99
    assert score("B") == pytest.approx(1 / (1 + np.exp(-5)))
    assert score("A") == first
    assert not [
        path for path in sys.path if Path(path, "stages").is_dir() and tmp_path.name in path
    ]
    # The same code from another place is not imported again, and needs no file of the first place.
    shutil.copytree(logged, tmp_path / "C")
    before = set(sys.modules)
    shutil.rmtree(tmp_path / "A")
    assert score("C") == first
    new = {module for module in set(sys.modules) - before if "deepfake" in module}
    assert not new
