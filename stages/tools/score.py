"""Score the images of the pipeline with any detector that can be called.

Run: python -m stages.tools.score DETECTOR --out theirs.csv [--perturbed theirs_perturbed.csv]

DETECTOR is a Python function, `module:function`, an ONNX file, or a model of MLflow
(`models:/NAME@ALIAS`); stages/lib/score_files/callables.py says what each one takes and returns.

  data/labels, data/packed, params.yaml: predict.robustness_images
    ->  OUT, one row per labelled image; --perturbed: the same images and perturbations as
        stages.predict has them

`python -m stages.tools.judge` judges what this writes.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import write_text
from stages.lib.core.labels import read_labels
from stages.lib.core.packed_images import PackedImages
from stages.lib.core.params import load_params
from stages.lib.core.pictures import UnusableImage, read_picture
from stages.lib.core.progress import progress_bar
from stages.lib.core.running import run_command
from stages.lib.prediction.params import PredictParams
from stages.lib.prediction.perturbations import (
    VARIANTS,
    choose_images,
    perturbed_table,
    variants_of,
)
from stages.lib.score_files.callables import CallableDetector, load_callable
from stages.lib.score_files.matching import JUDGED_SPLITS
from stages.lib.verdict.command import Parser, count


def main() -> None:
    """Score what the command line names, and write the files or none."""
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("detector", help="module:function, FILE.onnx or models:/NAME@ALIAS")
    add("--out", type=Path, required=True, metavar="CSV", help="where the scores go")
    add("--perturbed", type=Path, metavar="CSV", help="score perturbed images too, into this file")
    add("--batch-size", type=count, default=16, help="pictures at a time")
    add("--threads", type=count, default=2, help="of the CPU, for an ONNX file")
    options = parser.parse_args()
    for path in (options.out, options.perturbed):
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"{path}: its folder does not exist; name another file")
    detector = load_callable(options.detector, options.threads)
    tables = {options.out: score_images(detector, options.batch_size)}
    if options.perturbed:
        tables[options.perturbed] = score_perturbed(detector)
    for path, table in tables.items():
        write_text(path, table.to_csv(index=False, lineterminator="\n"))
        print(f"{path}: {len(table)} scores of {detector.name}")


def score_images(detector: CallableDetector, batch_size: int) -> pd.DataFrame:
    """Return img_name, set and a column named as the scale, for every labelled image once."""
    splits = [read_labels(paths.LABELS / f"{split}.csv") for split in JUDGED_SPLITS]
    labels = pd.concat(splits, ignore_index=True).dropna(subset=["target"])
    scores: list[float] = []
    with progress_bar("score", len(labels)) as bar:
        pictures = pictures_of(labels)
        while batch := list(islice(pictures, batch_size)):
            scores += detector.score(batch).tolist()
            bar.update(len(batch))
    return labels[["img_name", "set"]].assign(**{detector.scale: scores})


def score_perturbed(detector: CallableDetector) -> pd.DataFrame:
    """Return img_name, perturbation, level and the scale; images are chosen as by predict."""
    num_images = load_params("predict", PredictParams).robustness_images
    chosen = choose_images(read_labels(paths.LABELS / "val.csv"), num_images)
    scores = np.empty((len(chosen), 1 + len(VARIANTS)))
    with progress_bar("score perturbed", len(chosen)) as bar:
        for index, picture in enumerate(pictures_of(chosen)):
            pixels = torch.from_numpy(picture).permute(2, 0, 1)
            variants = variants_of(pixels, index)
            scores[index] = detector.score([one.permute(1, 2, 0).numpy() for one in variants])
            bar.update()
    table = perturbed_table(chosen["img_name"], torch.from_numpy(scores))
    return table.rename(columns={"logit": detector.scale})


def pictures_of(labels: pd.DataFrame) -> Iterator[np.ndarray]:
    """Yield the picture of each row of a label table, uint8 (H, W, 3); raises UserError."""
    packs = {name: PackedImages(paths.PACKED / name) for name in labels["set"].unique()}
    for name, row, image in zip(labels["set"], labels["row"], labels["img_name"], strict=True):
        try:
            yield read_picture(packs[name][row]).pixels
        except (UnusableImage, IndexError) as error:
            raise UserError(
                f"{paths.PACKED / name}: {short(image)}: {error}; pack it again: "
                "dvc repro --force pack"
            ) from None


if __name__ == "__main__":
    run_command(main)
