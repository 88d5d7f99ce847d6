"""The model that MLflow keeps: what it takes, what it gives, what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from stages.lib.core.packed_images import PackedImages
from stages.lib.detector.preprocessing import Preprocessing, decode

SEEN = Preprocessing(image_size=32, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3)


@pytest.fixture(scope="module")
def model(pipeline: Path) -> Iterator[PyFuncModel]:
    mlflow.set_tracking_uri(f"sqlite:///{pipeline / 'mlflow.db'}")
    yield mlflow.pyfunc.load_model("models:/deepfake-detector-generated-sample@champion")
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


def test_bytes_paths_and_arrays_get_the_scores_of_the_predict_stage(
    pipeline: Path, model: PyFuncModel, files: list[str], expected: Any
) -> None:
    images = PackedImages(pipeline / "data/packed/test")
    contents = [bytes(images[row]) for row in range(len(images))]
    pixels = [decode(content, SEEN).permute(1, 2, 0).numpy() for content in contents]
    for name, values in (
        ("image", contents),
        ("path", files),
        ("pixels", pixels),
        ("pixels", [array.tolist() for array in pixels]),
    ):
        found = model.predict(pd.DataFrame({name: values}))
        assert list(found.columns) == ["score"]
        assert found["score"].to_numpy() == expected, name


def test_rows_may_differ_in_what_they_give(
    model: PyFuncModel, files: list[str], expected: Any
) -> None:
    content = Path(files[0]).read_bytes()
    array = decode(Path(files[2]).read_bytes(), SEEN).permute(1, 2, 0).numpy()
    table = pd.DataFrame({
        "image": [content, None, None], "path": [None, files[1], None],
        "pixels": [None, None, array],
    })  # fmt: skip
    assert model.predict(table)["score"].tolist() == pytest.approx(list(expected.expected[:3]))


def test_the_schema_is_written_down(model: PyFuncModel) -> None:
    inputs = {column.name: str(column.type) for column in model.metadata.signature.inputs}
    assert inputs["image"] == "DataType.binary"
    assert inputs["path"] == "DataType.string"
    assert list(inputs) == ["image", "path", "pixels"]
    assert model.metadata.saved_input_example_info


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("image", b"no image", "cannot identify"),
        ("image", b"\xff\xd8 cut off", "truncated"),
        ("path", "nowhere.jpg", "nowhere.jpg"),
        ("pixels", np.zeros((4, 4), np.uint8), r"shape \(H, W, 3\), not uint8 \(4, 4\)"),
        ("pixels", np.zeros((4, 4, 3)), "must be integers"),
        ("pixels", np.full((4, 4, 3), 300), "0 to 255, not 300 to 300"),
        ("path", None, "fill one of image, path, pixels, not 0"),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(
    model: PyFuncModel, column: str, value: Any, problem: str
) -> None:
    with pytest.raises(MlflowException, match=f"row 0.*{problem}"):
        model.predict(pd.DataFrame({column: [value]}))


def test_a_table_without_images_is_refused(model: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match="no column of image, path, pixels"):
        model.predict(pd.DataFrame({"something": ["else"]}))


def test_a_row_with_two_images_is_refused(model: PyFuncModel, files: list[str]) -> None:
    content = Path(files[0]).read_bytes()
    with pytest.raises(MlflowException, match="row 0: fill one of .*, not 2"):
        model.predict(pd.DataFrame({"image": [content], "path": [files[0]]}))
