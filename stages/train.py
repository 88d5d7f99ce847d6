"""Train the detector and keep the epoch with the best validation AUC (train.choose_epoch_by).

params.yaml: train; data/labels/{train,val}.csv, data/packed/training
  ->  data/model/{weights.safetensors, distance.safetensors, config.json, history.csv},
      one MLflow run
Run: python -m stages.train            (starts torchrun itself where train.num_processes > 1)
     torchrun ... -m stages.train      (several machines)

`train.batch_size` counts the images of one optimizer step, over all processes and micro-batches
together, so the number of GPUs changes the speed and not the training. A training that was stopped
goes on from its last checkpoint (stages/lib/training/checkpoint.py).
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, check_disk_space, sha256_of
from stages.lib.core.labels import read_labels
from stages.lib.core.params import load_params
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.distance import TrainingDistance, save_distance
from stages.lib.detector.hardware import (
    Hardware,
    check_compile,
    processes_of,
    wait_and_compare_files,
)
from stages.lib.detector.model import (
    Detector,
    DetectorConfig,
    check_input,
    count_parameters,
    create_model,
    input_size_args,
    provenance,
    resolve_preprocessing,
    save_detector,
    zero_head,
)
from stages.lib.images.packed_images import FACTS_FILE
from stages.lib.running import run_stage
from stages.lib.tracking.run import WEIGHTS_TAG, Tracker, training_run
from stages.lib.training.batches import check_batch_size
from stages.lib.training.checkpoint import Checkpoints, training_digest
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.images import TrainingImages
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.mark_cache import mark_ahead
from stages.lib.training.micro_batch import find_accumulate
from stages.lib.training.optimization import average_states
from stages.lib.training.params import TrainParams
from stages.lib.training.reporting import announce, log_row, report_epoch, report_start
from stages.lib.training.results import TrainingResults, choosing_auc
from stages.lib.training.summary import summarise_images
from stages.lib.training.training_distance import fit_distance
from stages.lib.training.validation import validate, validation_loader

SETS = ("train", "val")


def main() -> None:
    """Train, and write data/model whole or not at all."""
    params = load_params("train", TrainParams)
    labels = {name: read_labels(paths.LABELS / f"{name}.csv") for name in SETS}
    world_size = int(os.environ.get("WORLD_SIZE", params.num_processes))  # set by torchrun
    check_batch_size(params, len(labels["train"]), world_size)
    data = sha256_of(*input_files(labels))
    bf16 = params.arithmetic == "native"
    with processes_of(
        "train", params.num_processes, params.device, params.num_threads, bf16
    ) as hardware:
        check_compile("train", params.compile, hardware)
        digest = training_digest(params, data, hardware)
        checkpoints = Checkpoints(digest, params.checkpoint_minutes, hardware)
        run_id = checkpoints.loaded["run_id"] if checkpoints.loaded else ""
        with training_run(data, hardware.rank == 0, run_id) as tracker:
            train(params, labels, hardware, tracker, checkpoints)


def input_files(labels: dict[str, pd.DataFrame]) -> list[Path]:
    """Return the label tables, and the facts of all packed sets that they name."""
    packed_sets = sorted({name for table in labels.values() for name in table["set"].unique()})
    tables = [paths.LABELS / f"{name}.csv" for name in SETS]
    return [*tables, *(paths.PACKED / name / FACTS_FILE for name in packed_sets)]


def train(
    params: TrainParams,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> None:
    """Train for params.epochs and write data/model (first process only)."""
    detector, config = make_detector(params, hardware)
    train_images = TrainingImages(labels["train"], paths.PACKED, config.preprocessing, params)
    val_images = LabelledImages(labels["val"], paths.PACKED, config.preprocessing)
    if params.accumulate == "auto":
        if checkpoints.loaded:
            accumulate = checkpoints.loaded["accumulate"]
        else:
            accumulate = find_accumulate(params, detector, train_images, hardware)
        params = params.model_copy(update={"accumulate": accumulate})
    is_first = hardware.rank == 0
    if is_first:
        # The weights are fp32; as much again is to spare.
        check_disk_space(paths.MODEL.parent, 2 * 4 * config.num_parameters)
        announce(params, detector, labels, hardware, tracker)
    if params.pseudo_fakes.are_wanted:
        mark_ahead(train_images, params.num_workers)
    if params.decoded_gb:
        sets = {"train": train_images, "val": val_images}
        has_decoded = decode_ahead(sets, params.decoded_gb, params.num_workers)
        if is_first and not has_decoded:
            print(
                f"train.decoded_gb = {params.decoded_gb}, or the free space of the disk, is too "
                "small: decoding in every epoch"
            )
    wait_and_compare_files(hardware, "data/labels or data/packed", *input_files(labels))
    loop = TrainingLoop(params, detector, train_images, hardware)
    results = train_epochs(params, loop, val_images, tracker, checkpoints)
    if is_first:
        detector.model.load_state_dict(results.best.weights)
        plain = LabelledImages(labels["train"], paths.PACKED, config.preprocessing)
        plain.decoded = train_images.decoded
        distance = fit_distance(detector.eval(), plain, labels["train"], params)
        write_model(params, results, config, labels["train"], distance, tracker)


def make_detector(params: TrainParams, hardware: Hardware) -> tuple[Detector, DetectorConfig]:
    """Return the untrained detector on its device, and what is known of it before the training."""
    torch.manual_seed(params.seed)  # the initial weights
    model_args = input_size_args(params.model, params.image_size) | params.model_args
    model = create_model(params.model, model_args, params.weights)
    if params.zero_head:
        zero_head(model)
    preprocessing = resolve_preprocessing(
        model,
        image_size=params.image_size,
        interpolation=params.interpolation,
        mean=params.mean,
        std=params.std,
        reencode=params.reencode,
        scaled_decoding=params.scaled_decoding,
        face_crop=params.face_crop,
    )
    config = DetectorConfig(
        model=params.model,
        model_args=model_args,
        preprocessing=preprocessing,
        num_parameters=count_parameters(model),
        initial_weights=provenance(params.model, params.weights),
        trained_in=hardware.arithmetic,
        best_epoch=0,
    )
    detector = Detector(model, preprocessing)
    check_input(detector, params.model, params.image_size)
    detector = detector.to(hardware.device)
    if params.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return detector, config


def train_epochs(
    params: TrainParams,
    loop: TrainingLoop,
    val_images: LabelledImages,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> TrainingResults:
    """Train and validate epoch by epoch, from the beginning or from the last checkpoint."""
    hardware = loop.hardware
    val_loader = validation_loader(val_images, params, hardware)
    results = TrainingResults()
    if checkpoints.loaded:
        resume(results, loop, tracker, checkpoints.loaded)

    state = partial(state_of, params, results, loop, tracker)
    if hardware.rank == 0:
        report_start(results, loop)
    while not results.is_finished(params):
        epoch = results.epochs
        trained, speed = loop.train_epoch(epoch, lambda: checkpoints.save_if_due(state))
        # The AUC first: the comparison of runs in MLflow opens with the first metric.
        figures = validate(loop.evaluated_detector, val_loader, hardware) | trained
        if not np.isfinite(figures["train_loss"] + figures["val_loss"]):
            raise UserError(
                f"training diverged in epoch {epoch + 1} (training loss {figures['train_loss']}); "
                "lower train.lr, or set train.clip_grad"
            )
        weights = loop.evaluated_detector.model.state_dict()
        results.add_epoch(figures, weights, params)
        if hardware.rank == 0:
            report_epoch(params, results, speed, tracker)
        checkpoints.save(*state())
    if params.average_last:
        average = average_states(results.last)
        loop.evaluated_detector.model.load_state_dict(average)
        auc = choosing_auc(validate(loop.evaluated_detector, val_loader, hardware), params)
        results.add_average(auc, average)
        if hardware.rank == 0:
            kind = "val" if params.choose_epoch_by == "pooled" else params.choose_epoch_by
            print(
                f"average of the last {len(results.last)} epochs: {kind} AUC {auc:.4f}", flush=True
            )
    return results


def state_of(
    params: TrainParams, results: TrainingResults, loop: TrainingLoop, tracker: Tracker
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a checkpoint keeps: of all processes, and of this one; see Checkpoints.

    At the end of the training the results are enough.
    """
    is_finished = results.is_finished(params)
    state = {
        "is_finished": is_finished,
        "run_id": tracker.run_id,
        "accumulate": params.accumulate,
        "results": results.state_dict(),
    }
    if is_finished:
        return state, {}
    return state | {"loop": loop.state_dict()}, loop.process_state_dict()


def resume(
    results: TrainingResults, loop: TrainingLoop, tracker: Tracker, state: dict[str, Any]
) -> None:
    """Bring the results and the loop to where they were in a checkpoint."""
    results.load_state_dict(state["results"])
    if not state["is_finished"]:
        loop.load_state_dict(state["loop"])
        loop.load_process_state_dict(state["process"])
    if tracker.run_id != state["run_id"]:  # the run of the stopped training has been deleted
        for row in results.history:
            log_row(row, tracker)


def write_model(
    params: TrainParams,
    results: TrainingResults,
    config: DetectorConfig,
    labels: pd.DataFrame,
    distance: TrainingDistance | None,
    tracker: Tracker,
) -> None:
    """Write data/model, and to MLflow which weights the run belongs to."""
    best = results.best
    summary = summarise_images(labels, params.augmentation)
    changes: dict[str, Any] = {
        "best_epoch": best.epoch,
        "averaged_epochs": best.averaged,
        "trained_on": summary,
    }
    with atomic_folder(paths.MODEL) as folder:
        if distance:
            changes["distance_sha256"] = save_distance(folder, distance)
        config = config.model_copy(update=changes)
        weights_sha256 = save_detector(folder, best.weights, config)
        write_table(pd.DataFrame(results.history), folder / paths.HISTORY.name)
        write_digest(folder / paths.HISTORY.name)
    tracker.log_metrics({"best_epoch": best.epoch})
    tracker.log_tags({WEIGHTS_TAG: weights_sha256, "trained_in": config.trained_in})


if __name__ == "__main__":
    run_stage(main)
