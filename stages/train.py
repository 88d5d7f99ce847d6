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
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.lib import paths
from stages.lib.core.digests import write_digest
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
)
from stages.lib.images.packed_images import FACTS_FILE
from stages.lib.running import run_stage
from stages.lib.tracking.run import WEIGHTS_TAG, Tracker, training_run
from stages.lib.training.batches import check_batch_size
from stages.lib.training.checkpoint import Checkpoints, training_digest
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.device_batches import check_gpu_images, loads_in_threads
from stages.lib.training.device_pixels import check_gpu_memory, keep_on_device
from stages.lib.training.epochs import train_epochs
from stages.lib.training.images import TrainingImages
from stages.lib.training.joining import TrainedNetwork, join
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.mark_cache import find_faces_ahead, mark_ahead
from stages.lib.training.micro_batch import find_accumulate
from stages.lib.training.optimization import zero_head
from stages.lib.training.params import TrainParams
from stages.lib.training.reporting import announce
from stages.lib.training.results import TrainingResults, history_of
from stages.lib.training.summary import summarise_images
from stages.lib.training.training_distance import fit_distance

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
        check_gpu_images(params, hardware)
        training = training_digest(params, data, hardware)
        checkpoints = []
        for network in params.networks.values():
            digest = training_digest(network, data, hardware)
            checkpoints.append(Checkpoints(digest, training, params.checkpoint_minutes, hardware))
        run_id = next((one.run_id for one in checkpoints if one.run_id), "")
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
    checkpoints: list[Checkpoints],
) -> None:
    """Train one network after the other, and write data/model (first process only)."""
    trained = []
    for (prefix, network), of_network in zip(params.networks.items(), checkpoints, strict=True):
        results = TrainingResults(prefix)
        trained.append(train_network(network, labels, hardware, tracker, of_network, results))
    detector, config = trained[0].detector, trained[0].config
    if len(trained) > 1:
        detector, config = join(trained[0], trained[1], params, hardware, tracker)
    if hardware.rank == 0:
        distance = fit_distance(detector, trained[0].images["train"], params)
        history = history_of([one.results for one in trained])
        write_model(params, detector, config, labels["train"], distance, history, tracker)


def train_network(
    params: TrainParams,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
    checkpoints: Checkpoints,
    results: TrainingResults,
) -> TrainedNetwork:
    """Train for params.epochs, and return the network as it was after the best one."""
    detector, config = make_detector(params, hardware)
    train_images = TrainingImages(labels["train"], paths.PACKED, config.preprocessing, params)
    val_images = LabelledImages(labels["val"], paths.PACKED, config.preprocessing)
    check_gpu_memory(train_images, params.gpu_images_gb, hardware.device)
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
        announce(params, detector, labels, hardware, tracker, results)
    if params.pseudo_fakes.are_wanted:
        mark_ahead(train_images, params.num_workers)
    if params.gpu_decoding and params.face_crop and loads_in_threads(train_images, params):
        find_faces_ahead(train_images, params.num_workers)
    if params.decoded_gb:
        sets = {"train": train_images, "val": val_images}
        has_decoded = decode_ahead(sets, params.decoded_gb, params.num_workers)
        if is_first and not has_decoded:
            print(
                f"train.decoded_gb = {params.decoded_gb}, or the free space of the disk, is too "
                "small: decoding in every epoch"
            )
    wait_and_compare_files(hardware, "data/labels or data/packed", *input_files(labels))
    if params.gpu_images_gb and loads_in_threads(train_images, params):
        keep_on_device(train_images, params.gpu_images_gb, hardware)
    loop = TrainingLoop(params, detector, train_images, hardware)
    train_epochs(params, results, loop, val_images, tracker, checkpoints)
    detector.model.load_state_dict(results.best.weights)
    plain = LabelledImages(labels["train"], paths.PACKED, config.preprocessing)
    plain.decoded = train_images.decoded
    best = {"best_epoch": results.best.epoch, "averaged_epochs": results.best.averaged}
    config = config.model_copy(update=best)
    return TrainedNetwork(detector.eval(), config, results, {"train": plain, "val": val_images})


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


def write_model(
    params: TrainParams,
    detector: Detector,
    config: DetectorConfig,
    labels: pd.DataFrame,
    distance: TrainingDistance | None,
    history: pd.DataFrame,
    tracker: Tracker,
) -> None:
    """Write data/model, and to MLflow which weights the run belongs to."""
    changes: dict[str, Any] = {"trained_on": summarise_images(labels, params.augmentation)}
    with atomic_folder(paths.MODEL) as folder:
        if distance:
            changes["distance_sha256"] = save_distance(folder, distance)
        config = config.model_copy(update=changes)
        weights_sha256 = save_detector(folder, detector.model.state_dict(), config)
        write_table(history, folder / paths.HISTORY.name)
        write_digest(folder / paths.HISTORY.name)
    tracker.log_metrics({"best_epoch": config.best_epoch})
    tracker.log_tags(
        {
            WEIGHTS_TAG: weights_sha256,
            "trained_in": config.trained_in,
            "num_parameters": config.num_parameters,
        }
    )


if __name__ == "__main__":
    run_stage(main)
