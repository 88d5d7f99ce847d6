"""Score images with the trained detector: P(fake) of every image that was not trained on.

params.yaml: predict; data/model, data/labels, data/packed
  ->  data/scores/{val,calibration,test,held_out,evaluation,robustness}.csv, data/scores/views.json
Run: python -m stages.predict          (starts torchrun itself where predict.num_processes > 1)
     torchrun ... -m stages.predict    (several machines)

A score file has one row per row of its label file, in the same order: img_name, logit
(log(P(fake) / P(real)), which keeps the digits that a score near 1 loses) and score (P(fake)).
low and high are the least and the most of the logits of slightly changed views (CHANGED_VIEWS in
stages/lib/detector/views.py), which a verdict has to stand; they are empty in splits without
labels, and where predict.stability is off. views.json says of which weights, views and label
tables the scores are.
robustness.csv has validation images, unchanged (perturbation `none`) and perturbed in every way of
stages/lib/prediction/perturbations.py: img_name, perturbation, level, logit, score. With more than
one of predict.views, the logit of an image is the mean over its views, which share one decoding.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, check_disk_space
from stages.lib.core.labels import read_labels
from stages.lib.core.params import load_params
from stages.lib.core.scores import write_views
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import Key, LabelledImages, make_loader, sequential_batches
from stages.lib.detector.hardware import (
    Hardware,
    check_compile,
    processes_of,
    wait_and_compare_files,
)
from stages.lib.detector.model import Detector, fake_logit, load_detector
from stages.lib.detector.preprocessing import seen_part, to_input
from stages.lib.detector.scoring import gather_logits
from stages.lib.detector.views import CHANGED_VIEWS, SCORED_VIEWS, plain_and_changed
from stages.lib.prediction.params import PredictParams
from stages.lib.prediction.perturbations import (
    VARIANTS,
    choose_images,
    perturbed_table,
    variants_of,
)
from stages.lib.running import run_stage

SPLITS = ("val", "calibration", "test", "held_out", "evaluation")
ROW_BYTES = 200  # of a score file, at most


def main() -> None:
    """Write the score files of all splits and of the perturbed images, or none."""
    params = load_params("predict", PredictParams)
    with processes_of(
        "predict", params.num_processes, params.device, params.num_threads
    ) as hardware:
        predict(params, hardware)


def predict(params: PredictParams, hardware: Hardware) -> None:
    """Score all images, this process its share of them; the first process writes."""
    detector, config = load_detector(paths.MODEL)
    detector = detector.to(hardware.device).to(memory_format=torch.channels_last)
    wait_and_compare_files(hardware, str(paths.MODEL), paths.WEIGHTS)
    if params.compile:
        check_compile("predict", params.compile, hardware)
        detector.compile(mode=params.compile)
    is_first = hardware.rank == 0
    labels = {split: read_labels(paths.LABELS / f"{split}.csv") for split in SPLITS}
    if is_first:
        check_disk_space(paths.SCORES.parent, ROW_BYTES * sum(map(len, labels.values())))
        print(f"device: {hardware}; model: {config.model}, epoch {config.best_epoch}", flush=True)
    tables = {}
    for split, table in labels.items():
        is_labelled = table["target"].notna().any()
        kind = ChangedImages if params.stability and is_labelled else LabelledImages
        images = kind(table, paths.PACKED, config.preprocessing)
        logits = predict_logits(detector, images, params, hardware, split)
        tables[split] = score_table(table["img_name"], logits.numpy())
    chosen = choose_images(labels["val"], params.robustness_images)
    images = PerturbedImages(chosen, paths.PACKED, config.preprocessing)
    logits = predict_logits(detector, images, params, hardware, "perturbed")
    tables["robustness"] = perturbed_table(chosen["img_name"], logits)
    if is_first:
        with atomic_folder(paths.SCORES) as folder:
            for name, table in tables.items():
                _write_scores(table, folder / f"{name}.csv")
                print(f"{name}: {len(table)} scores", flush=True)
            write_views(folder, config.weights_sha256, params.views)


def _write_scores(table: pd.DataFrame, path: Path) -> None:
    """Add the score to the logits and write; raises UserError where one is not finite."""
    logits = torch.tensor(table["logit"].to_numpy())
    if not torch.isfinite(logits).all():
        worst = table["img_name"][int((~torch.isfinite(logits)).nonzero()[0])]
        raise UserError(
            f"{path.stem}: the score of {worst} is not finite; train again with a lower train.lr"
        )
    write_table(table.assign(score=torch.sigmoid(logits)), path)


def predict_logits(
    detector: Detector, images: LabelledImages, params: PredictParams, hardware: Hardware, name: str
) -> torch.Tensor:
    """Return float64 (N, V): log(P(fake) / P(real)) of each image and variant, in every process.

    V is the number of variants that the images have. Each image is scored by exactly one process.
    """
    num_variants = images.num_variants if isinstance(images, Variants) else 1
    batch_size = max(1, params.batch_size // num_variants)
    batches = sequential_batches(len(images), batch_size, hardware.rank, hardware.world_size)
    loader = make_loader(images, batches, params.num_workers, hardware.device.type == "cuda")

    def score(batch: torch.Tensor) -> torch.Tensor:
        inputs = batch.flatten(0, -4)
        views = [fake_logit(detector(SCORED_VIEWS[view](inputs))) for view in params.views]
        return torch.stack(views).mean(dim=0).view(len(batch), num_variants)

    return gather_logits(score, loader, hardware, f"predict {name}", num_variants)


def score_table(names: pd.Series, logits: np.ndarray) -> pd.DataFrame:
    """Return img_name, logit, low and high; logits: (N, 1), or (N, 1 + changed views)."""
    table = pd.DataFrame({"img_name": names, "logit": logits[:, 0]})
    if logits.shape[1] > 1:
        return table.assign(low=logits[:, 1:].min(axis=1), high=logits[:, 1:].max(axis=1))
    return table.assign(low=np.nan, high=np.nan)


# ---------------------------------------------------------------------------------------------
# Variants of images, from one decoding


class Variants(LabelledImages):
    """Images of which each has several variants, the image itself first."""

    num_variants: int

    @property
    def item_bytes(self) -> int:
        """Size of the pixels of one item."""
        return self.num_variants * super().item_bytes

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int, int]:
        """Return (uint8 (V, 3, S, S), target, index)."""
        index = key[1]
        return self.variants(self.decoded_file(index), index), int(self.targets[index]), index

    def variants(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return the variants of a decoded image, uint8 (3, H, W) to (V, 3, S, S)."""
        raise NotImplementedError


class ChangedImages(Variants):
    """Images and what a little compression or resizing makes of what the model sees of them."""

    num_variants = 1 + len(CHANGED_VIEWS)

    def variants(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return the image and its changed views."""
        return plain_and_changed(seen_part(image, self.preprocessing), self.preprocessing)


class PerturbedImages(Variants):
    """Images with all their perturbed variants."""

    num_variants = 1 + len(VARIANTS)

    def variants(self, image: torch.Tensor, index: int) -> torch.Tensor:
        """Return the image and everything of VARIANTS."""
        variants = variants_of(image, index)
        return torch.stack([to_input(variant, self.preprocessing) for variant in variants])


if __name__ == "__main__":
    run_stage(main)
