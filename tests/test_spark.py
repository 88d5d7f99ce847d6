"""The registered model under a real Apache Spark on two cores, as the README shows (slow)."""

import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import environment, readme_blocks, run

MODEL = "models:/deepfake-detector-generated-sample/1"  # no better than chance, so no champion
FILES = 'spark.read.format("binaryFile").load("/data/images")'
TABLE = 'spark.read.parquet("/data/faces")'
SMALL = 'SparkSession.builder.master("local[2]").config("spark.ui.enabled", False)'


def examined(pipeline: Path, folder: Path, source: str, output: Path) -> pd.DataFrame:
    """Run the README's lines with this source of images; return what they write."""
    (code,) = [block for block in readme_blocks("python") if "SparkSession" in block]
    assert code.count(FILES) == 1
    code = code.replace(FILES, source).replace("SparkSession.builder", SMALL)
    code = code.replace("models:/deepfake-detector@champion", MODEL)
    code = code.replace("/data/verdicts", str(output))
    store = f"import mlflow\nmlflow.set_tracking_uri('sqlite:///{pipeline}/mlflow.db')\n"
    (folder / "script.py").write_text(store + code.replace("/data/", f"{folder}/"))
    env = environment() | {"PYSPARK_PYTHON": sys.executable}
    subprocess.run([sys.executable, "script.py"], cwd=folder, env=env, check=True)
    table = pd.read_parquet(output)
    return table.assign(name=table["path"].map(lambda path: Path(path).name)).set_index("name")


@pytest.mark.slow
def test_spark_gives_the_verdicts_of_detect(pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if not shutil.which("java"):
        pytest.skip("Java is not installed")
    images = tmp_path / "images"
    shutil.copytree(pipeline / "data/raw/sample/phase2/testset1_seen", images)
    (images / "broken.jpg").write_bytes(b"no image")
    paths = sorted(images.iterdir())
    contents = [path.read_bytes() for path in paths]
    (tmp_path / "faces").mkdir()
    table = pa.table({"path": [path.name for path in paths], "content": contents})
    parquet.write_table(table, tmp_path / "faces/0000.parquet", row_group_size=5)

    found = examined(pipeline, tmp_path, FILES, tmp_path / "of_files")
    bad = found[found["error"] != ""]
    assert list(bad.index) == ["broken.jpg"] and bad["score"].isna().all()
    assert "not an image" in bad["error"].iloc[0]
    scores = pd.read_csv(pipeline / "data/scores/test.csv").set_index("img_name")["score"]
    assert found["score"].drop("broken.jpg").sub(scores).abs().max() < 1e-4
    command = ["python", "-m", "stages.tools.detect", "--no-crop", "--csv", str(images)]
    detected = pd.read_csv(StringIO(run(*command, cwd=pipeline, check=False).stdout))
    detected.index = detected["file"].map(lambda file: Path(file).name)
    assert len(detected) == len(found)
    same = found["verdict"] == detected["verdict"].reindex(found.index)
    assert same.drop("broken.jpg").all()

    of_table = examined(pipeline, tmp_path, TABLE, tmp_path / "of_table")
    pd.testing.assert_frame_equal(
        of_table.drop(columns="path").sort_index(), found.drop(columns="path").sort_index()
    )
