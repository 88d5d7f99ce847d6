"""Score the images of the pipeline with any detector that can be called.

Run: python -m stages.tools.score DETECTOR --out theirs.csv [--perturbed theirs_perturbed.csv]

DETECTOR is a Python function, `module:function`, an ONNX file, or a model of MLflow
(`models:/NAME@ALIAS`); stages/lib/score_files/callables.py says what each one takes and returns.

  data/labels, data/packed, params.yaml: predict.robustness_images
    ->  OUT, one row per labelled image, with a column named as the scale of the scores
    ->  --perturbed, the same images and perturbations as stages.predict has them

`python -m stages.tools.judge` judges what this writes. Exit code: 0, or 1 for a mistake in the
command, in the detector or in what it returns.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import check_disk_space, write_text
from stages.lib.core.labels import read_labels
from stages.lib.core.params import load_params
from stages.lib.detector.hardware import keep_freed_memory
from stages.lib.images.decoding import UnusableImage, decode_image
from stages.lib.images.packed_images import PackedImages
from stages.lib.prediction.params import PredictParams
from stages.lib.prediction.perturbations import (
    VARIANTS,
    choose_images,
    perturbed_table,
    variants_of,
)
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.lib.score_files.callables import CallableDetector, load_callable
from stages.lib.score_files.matching import JUDGED_TABLES
from stages.lib.score_files.own_process import run_in_own_process
from stages.lib.score_files.reading import LOGIT, PROBABILITY
from stages.tools.command_line import add_threads, count, parser_of

ROW_BYTES = 200  # of one image or variant in a file, about


def main() -> None:
    """Score what the command line names: OUT, then the file of --perturbed.

    Each file is written whole or not at all, as soon as its images are scored. So OUT stays where
    perturbed images cannot be scored.
    """
    options = parse(sys.argv[1:])
    labels = labelled_images()
    check_target(options.out, len(labels))
    chosen = None
    if options.perturbed:
        chosen = images_to_perturb()
        check_target(options.perturbed, len(chosen) * (1 + len(VARIANTS)))
    keep_freed_memory()  # otherwise a network on the CPU waits for new memory
    detector = load_callable(options.detector, options.threads, options.scale)
    write_scores(options.out, score_images(detector, labels, options.batch_size), detector)
    if chosen is not None:
        table = score_perturbed(detector, chosen, options.batch_size)
        write_scores(options.perturbed, table, detector)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises UserError for a wrong command."""
    parser = parser_of(__doc__, "stages.tools.score")
    add = parser.add_argument
    add("detector", help="module:function, FILE.onnx or models:/NAME@ALIAS")
    add("--out", type=Path, required=True, metavar="CSV", help="where the scores go")
    add("--perturbed", type=Path, metavar="CSV", help="score perturbed images too, into this file")
    add(
        "--scale",
        choices=(PROBABILITY, LOGIT),
        help="of what it returns; without it, logit for an ONNX file, else probability",
    )
    add("--batch-size", type=count, default=16, help="images at a time, at most")
    add_threads(parser, "of the CPU, for an ONNX file")
    options = parser.parse_args(arguments)
    if options.perturbed and options.perturbed.resolve() == options.out.resolve():
        raise UserError(f"--perturbed {options.perturbed}: is the file of --out; name another file")
    return options


def labelled_images() -> pd.DataFrame:
    """Return the rows of all judged label tables that have a label; raises UserError."""
    tables = [read_labels(paths.LABELS / f"{name}.csv") for name in JUDGED_TABLES]
    return pd.concat(tables, ignore_index=True).dropna(subset=["target"])


def images_to_perturb() -> pd.DataFrame:
    """Return the label rows that stages.predict perturbs; raises UserError where it has none."""
    num_images = load_params("predict", PredictParams).robustness_images
    if num_images < 2:
        raise UserError(
            f"{paths.PARAMS}: predict.robustness_images = {num_images}: no images for --perturbed, "
            "half of which are real; set 2 or more, or leave --perturbed out"
        )
    return choose_images(read_labels(paths.LABELS / "val.csv"), num_images)


def check_target(path: Path, num_rows: int) -> None:
    """Raise UserError where a file cannot be written, before hours of work."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; name another file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: exists and is no plain file; name another file")
    check_disk_space(path.parent, num_rows * ROW_BYTES)


def write_scores(path: Path, table: pd.DataFrame, detector: CallableDetector) -> None:
    """Write a table of scores in one step, and say so."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    print(f"{path}: {len(table)} scores of {detector.name}", flush=True)


def score_images(detector: CallableDetector, labels: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Return img_name, set and a column named as the scale, one row per label; raises UserError."""
    scores = score_all(detector, images_of(labels), len(labels), batch_size, "score")
    if warning := detector.doubt(scores):
        print(warning, file=sys.stderr)
    return labels[["img_name", "set"]].assign(**{detector.scale: scores})


def score_perturbed(
    detector: CallableDetector, chosen: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Return img_name, perturbation, level and the scale, for all variants; raises UserError."""
    num_images, num_variants = len(chosen), 1 + len(VARIANTS)
    images, total = perturbed_images(chosen), num_images * num_variants
    scores = score_all(detector, images, total, batch_size, "score perturbed")
    table = perturbed_table(chosen["img_name"], scores.reshape(num_images, num_variants))
    return table.rename(columns={"logit": detector.scale})


def score_all(
    detector: CallableDetector,
    images: Iterable[np.ndarray],
    total: int,
    batch_size: int,
    title: str,
) -> np.ndarray:
    """Return the scores of images, float64 (total,), at most batch_size at a time."""
    scores: list[float] = []
    rest = iter(images)
    with progress_bar(title, total) as bar:
        while batch := list(islice(rest, batch_size)):
            scores += detector.score(batch).tolist()
            bar.update(len(batch))
    return np.array(scores)


def perturbed_images(chosen: pd.DataFrame) -> Iterator[np.ndarray]:
    """Yield the variants of each image, uint8 (H, W, 3); raises UserError."""
    for index, image in enumerate(images_of(chosen)):
        for variant in variants_of(torch.from_numpy(image).permute(2, 0, 1), index):
            # A copy: some share memory, and a detector may write into what it gets.
            yield variant.permute(1, 2, 0).numpy().copy()


def images_of(labels: pd.DataFrame) -> Iterator[np.ndarray]:
    """Yield the image of each row of a label table, uint8 (H, W, 3); raises UserError."""
    packs = {name: PackedImages(paths.PACKED / name) for name in labels["set"].unique()}
    for row in labels.itertuples():
        try:
            content = packs[row.set].labelled(row.row, row.img_name, row.sha256)
            yield decode_image(content).pixels
        except UnusableImage as error:
            raise UserError(
                f"{paths.PACKED / row.set}: {short(row.img_name)}: {error}; pack it again: "
                "dvc repro --force pack"
            ) from None


if __name__ == "__main__":
    run_command(lambda: parse(sys.argv[1:]))  # --help and a wrong command end here
    run_in_own_process(main)
