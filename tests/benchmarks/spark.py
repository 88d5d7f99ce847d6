"""Verdicts under Apache Spark on one core and on two, beside `detect` on the same images.

Run: python -m tests.benchmarks.spark [--images 1000] [--model models:/NAME@champion]
     (from the repository's root, with pyspark and Java, after `make repro`)

The images are noisy JPEG files of 512 px. The seconds of Spark are those of the job, on a session
that has started and has scored a few images, so that its workers have loaded the detector; those of
`detect` are the whole command less those of one that examines a single image. Each core of Spark is
a process with one thread of PyTorch; `detect` uses two threads.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from tests.benchmarks.notebook import draw_photographs
from tests.conftest import run

COLUMNS = "score double, verdict string, error string"
HOW = {"verdicts": True, "bad_images": "report"}


def main() -> None:
    """Print one line of JSON: images per second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", default="models:/deepfake-detector-generated-sample@champion")
    options = parser.parse_args()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        draw_photographs(images, options.images)
        figures: dict[str, float] = {"images": options.images}
        figures["detect, 2 threads"] = options.images / seconds_of_detect(images, Path(folder))
        for cores in (1, 2):
            seconds = seconds_of_spark(images, cores, options.model)
            figures[f"spark, {cores} core(s)"] = options.images / seconds
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


def seconds_of_detect(images: Path, folder: Path) -> float:
    """Return the seconds of a command on all images, less those on one."""
    command = [sys.executable, "-m", "stages.tools.detect", "--no-crop", "--csv", "--threads", "2"]
    seconds = []
    for place in (images, next(images.iterdir())):
        start = time.perf_counter()
        run(*command, str(place), cwd=Path.cwd())
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def seconds_of_spark(images: Path, cores: int, model: str) -> float:
    """Return the seconds of a job on all images."""
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, struct

    builder = SparkSession.builder.master(f"local[{cores}]").config("spark.ui.enabled", False)
    spark = builder.getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 64)
    spark.conf.set("spark.sql.files.openCostInBytes", 0)  # as many files to a task as fit into it
    spark.conf.set("spark.sql.files.maxPartitionBytes", 16 * 2**20)
    examine = mlflow.pyfunc.spark_udf(spark, model, COLUMNS, params=HOW)
    files = spark.read.format("binaryFile").load(str(images))
    verdicts = files.select("path", examine(struct(col("content").alias("image"))).alias("of"))
    verdicts.limit(8 * cores).collect()
    start = time.perf_counter()
    rows = verdicts.collect()
    seconds = time.perf_counter() - start
    assert not [row for row in rows if row["of"]["error"]]
    spark.stop()
    return seconds


if __name__ == "__main__":
    main()
