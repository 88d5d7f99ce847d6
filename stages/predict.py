"""Score images with the trained detector: P(fake) of every image that was not trained on.

params.yaml: predict; data/model, data/labels, data/packed
  ->  data/scores/{val,calibration,test,held_out,held_out_sources,evaluation}.csv,
      data/scores/{robustness,edits}.csv, data/scores/views.json
Run: python -m stages.predict          (starts torchrun itself where predict.num_processes > 1)
     torchrun ... -m stages.predict    (several machines)

A score file has one row per row of its label file, in the same order: img_name, logit
(log(P(fake) / P(real)), which keeps the digits that a score near 1 loses) and score (P(fake)).
low and high are the least and the most of the logits of slightly changed views (CHANGED_VIEWS in
stages/lib/detector/inference.py), which a verdict has to stand; they are empty in sets without
labels, and where predict.stability is off. distance is that of the unchanged image to the training
images (stages/lib/detector/distance.py), empty in sets without labels, and where the detector
measures none. views.json says which weights, views and label tables gave the scores.
robustness.csv has validation images, unchanged (perturbation `none`) and perturbed in every way of
stages/lib/prediction/perturbations.py: img_name, perturbation, level, logit, score. edits.csv has
the reals of them, unedited (edit `none`) and after every harmless edit of
stages/lib/prediction/edits.py: img_name, edit, level, logit, score. With more than one of
predict.views, the logit of an image is the mean over its views, which share one decoding.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, check_disk_space
from stages.lib.core.labels import REAL, read_labels
from stages.lib.core.params import load_params
from stages.lib.core.scores import write_views
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import (
    Hardware,
    check_compile,
    processes_of,
    wait_and_compare_files,
)
from stages.lib.detector.inference import ChangedImages, Inference, score_table
from stages.lib.prediction.edits import EditedImages, edited_table
from stages.lib.prediction.params import PredictParams
from stages.lib.prediction.perturbations import PerturbedImages, choose_images, perturbed_table
from stages.lib.running import run_stage

SETS = ("val", "calibration", "test", "held_out", "held_out_sources", "evaluation")
ROW_BYTES = 200  # of a score file, at most


def main() -> None:
    """Write the score files of all sets and of the perturbed images, or none."""
    params = load_params("predict", PredictParams)
    with processes_of(
        "predict", params.num_processes, params.device, params.num_threads
    ) as hardware:
        predict(params, hardware)


def predict(params: PredictParams, hardware: Hardware) -> None:
    """Score all images, this process its share of them; the first process writes."""
    # First: a machine whose model is damaged would stop, and the others would wait for it.
    wait_and_compare_files(hardware, str(paths.MODEL), paths.WEIGHTS, paths.DISTANCE)
    inference = Inference.load(paths.MODEL, hardware)
    inference = replace(inference, views=params.views, batch_size=params.batch_size)
    config = inference.config
    if params.compile:
        check_compile("predict", params.compile, hardware)
        inference.detector.compile(mode=params.compile)
    is_first = hardware.rank == 0
    labels = {name: read_labels(paths.LABELS / f"{name}.csv") for name in SETS}
    if is_first:
        check_disk_space(paths.SCORES.parent, ROW_BYTES * sum(map(len, labels.values())))
        print(f"device: {hardware}; model: {config.model}, epoch {config.best_epoch}", flush=True)
    tables = {}
    for name, table in labels.items():
        is_labelled = table["target"].notna().any()
        kind = ChangedImages if params.stability and is_labelled else LabelledImages
        images = kind(table, paths.PACKED, config.preprocessing)
        scorer = inference if is_labelled else replace(inference, distance=None)
        logits, distances = scorer.scores_of(images, params.num_workers, f"predict {name}")
        scored = score_table(logits.numpy(), distances.numpy())
        tables[name] = pd.concat([table["img_name"], scored], axis=1)
    chosen = choose_images(labels["val"], params.robustness_images)
    images = PerturbedImages(chosen, paths.PACKED, config.preprocessing)
    logits = inference.logits_of(images, params.num_workers, "predict perturbed").numpy()
    tables["robustness"] = perturbed_table(chosen["img_name"], logits)
    reals = chosen[chosen["target"] == REAL].reset_index(drop=True)
    images = EditedImages(reals, paths.PACKED, config.preprocessing)
    logits = inference.logits_of(images, params.num_workers, "predict edited").numpy()
    tables["edits"] = edited_table(reals["img_name"], logits)
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


if __name__ == "__main__":
    run_stage(main)
