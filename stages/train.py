"""Train the detector and keep the epoch with the best validation AUC.

params.yaml: train; data/labels/{train,val}.csv, data/packed/{train,val}
  ->  data/model/{weights.safetensors, config.json, history.csv}, one MLflow run
Run: python -m stages.train            (starts torchrun itself where train.num_processes > 1)
     torchrun ... -m stages.train      (several machines)

`train.batch_size` counts the images of one optimizer step, over all processes and micro-batches
together, so the number of GPUs changes the speed and not the training. A training that was stopped
goes on from its last checkpoint (stages/lib/training/checkpoint.py).
"""

import os
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from timm.optim import list_optimizers
from torch.utils.data import DataLoader

from stages.lib import paths
from stages.lib.core.digests import write_digest
from stages.lib.core.errors import UserError, did_you_mean
from stages.lib.core.files import atomic_folder, check_disk_space, sha256_of
from stages.lib.core.labels import FAKE, read_labels
from stages.lib.core.params import load_params
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import LabelledImages
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
from stages.lib.detector.preprocessing import CHANNELS_WITH_RESIDUALS
from stages.lib.images.packed_images import FACTS_FILE
from stages.lib.running import run_stage
from stages.lib.tracking.run import WEIGHTS_TAG, Tracker, training_run
from stages.lib.training.checkpoint import Checkpoints, State, training_digest
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.images import TrainingImages
from stages.lib.training.loop import TrainingLoop, validate, validation_loader
from stages.lib.training.micro_batch import find_accumulate
from stages.lib.training.optimization import average_states
from stages.lib.training.params import TrainParams
from stages.lib.training.summary import summarise_images

SPLITS = ("train", "val")
INPUTS = [
    *(paths.LABELS / f"{name}.csv" for name in SPLITS),
    *(paths.PACKED / name / FACTS_FILE for name in SPLITS),
]

HEADINGS = "epoch         lr  train loss  val loss  val acc  val AUC  images/s  waiting  memory GB"


def main() -> None:
    """Train, and write data/model whole or not at all."""
    params = load_params("train", TrainParams)
    labels = {name: read_labels(paths.LABELS / f"{name}.csv") for name in SPLITS}
    _check(params, len(labels["train"]))
    data = sha256_of(*INPUTS)
    with processes_of(
        "train", params.num_processes, params.device, params.num_threads,
        bf16=params.arithmetic == "native",
    ) as hardware:  # fmt: skip
        check_compile("train", params.compile, hardware)
        digest = training_digest(params, data, hardware)
        checkpoints = Checkpoints(digest, params.checkpoint_minutes, hardware)
        run_id = checkpoints.found["run_id"] if checkpoints.found else ""
        with training_run(data, hardware.rank == 0, run_id) as tracker:
            train(params, labels, hardware, tracker, checkpoints)


def _check(params: TrainParams, num_images: int) -> None:
    """Raise UserError for parameters that are valid alone and wrong together."""
    if params.optimizer not in list_optimizers():
        hint = did_you_mean(params.optimizer, list_optimizers())
        raise UserError(f"train.optimizer = '{params.optimizer}' is not an optimizer of timm{hint}")
    if params.reencode and params.reencode[0] > params.reencode[1]:
        raise UserError(f"train.reencode = {params.reencode}: give the lowest quality first")
    if params.face_crop and params.scaled_decoding:
        raise UserError(
            "train.scaled_decoding decodes an image to about train.image_size, and leaves too few "
            "pixels of a face for train.face_crop; use one of the two"
        )
    kinds = params.pseudo_fakes.kinds
    if max(params.pseudo_fakes.first_share, params.pseudo_fakes.last_share) and not any(
        kinds.model_dump().values()
    ):
        raise UserError("train.pseudo_fakes.kinds: every weight is 0; give one of them a weight")
    world_size = int(os.environ.get("WORLD_SIZE", params.num_processes))
    accumulate = 1 if params.accumulate == "auto" else params.accumulate
    micro_batch, rest = divmod(params.batch_size, world_size * accumulate)
    if rest or not micro_batch:
        raise UserError(
            f"train.batch_size = {params.batch_size} cannot be shared by {world_size} processes x "
            f"train.accumulate = {accumulate}; make it a multiple of {world_size * accumulate}"
        )
    if params.compile == "reduce-overhead" and params.accumulate != 1:
        raise UserError(
            f"train.accumulate = {params.accumulate}: the CUDA graphs of train.compile = "
            "reduce-overhead keep no gradient from one micro-batch to the next; set it to 1"
        )
    if micro_batch % 2 and (params.mixup or params.cutmix):
        raise UserError(f"train.mixup and train.cutmix need an even micro-batch, not {micro_batch}")
    if num_images < params.batch_size:
        raise UserError(
            f"train.batch_size = {params.batch_size} is more than the {num_images} images"
        )


# ---------------------------------------------------------------------------------------------
# The training run


@dataclass
class Best:
    """The best epoch so far, or the average of the last ones, and its weights."""

    epoch: int = 0
    auc: float = -1.0
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    averaged: int = 1  # epochs, up to this one


@dataclass
class Progress:
    """What a training has reached."""

    epochs: int = 0  # that are done
    best: Best = field(default_factory=Best)
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of history.csv
    last: list[dict[str, torch.Tensor]] = field(default_factory=list)  # weights of the last epochs

    def is_finished(self, params: TrainParams) -> bool:
        """Return whether no epoch is left, or the last ones were no better."""
        too_long = params.early_stopping and self.epochs - self.best.epoch >= params.early_stopping
        return self.epochs == params.epochs or bool(self.epochs and too_long)


def train(
    params: TrainParams,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> None:
    """Train for params.epochs and write data/model (first process only)."""
    detector, config = make_detector(params, hardware)
    images: dict[str, LabelledImages] = {
        "train": TrainingImages(
            labels["train"], paths.PACKED, config.preprocessing, params.augmentation,
            params.pseudo_fakes, params.seed,
        ),
        "val": LabelledImages(labels["val"], paths.PACKED, config.preprocessing),
    }  # fmt: skip
    if params.accumulate == "auto":
        if checkpoints.found:
            accumulate = checkpoints.found["accumulate"]
        else:
            accumulate = find_accumulate(params, detector, images["train"], hardware)
        params = params.model_copy(update={"accumulate": accumulate})
    is_first = hardware.rank == 0
    if is_first:
        check_disk_space(
            paths.MODEL.parent, 2 * 4 * config.num_parameters
        )  # fp32, and as much to spare
        _announce(params, detector, labels, hardware, tracker)
    fits = not params.decoded_gb or decode_ahead(images, params.decoded_gb, params.num_workers)
    wait_and_compare_files(hardware, "data/labels or data/packed", *INPUTS)
    if is_first and not fits:
        print(f"train.decoded_gb = {params.decoded_gb}, or the free space of the disk, is too "
              "small: decoding in every epoch")  # fmt: skip
    loop = TrainingLoop(params, detector, images["train"], hardware)
    progress = train_epochs(params, loop, images["val"], tracker, checkpoints)
    if is_first:
        best = progress.best
        with atomic_folder(paths.MODEL) as folder:
            summary = summarise_images(labels["train"], params.augmentation)
            found = {"best_epoch": best.epoch, "averaged_epochs": best.averaged}
            known = config.model_copy(update=found | {"trained_on": summary})
            weights = save_detector(folder, best.state, known)
            write_table(pd.DataFrame(progress.history), folder / paths.HISTORY.name)
            write_digest(folder / paths.HISTORY.name)
        tracker.log_metrics({"best_epoch": best.epoch})
        tracker.log_tags({WEIGHTS_TAG: weights, "trained_in": config.trained_in})


def make_detector(params: TrainParams, hardware: Hardware) -> tuple[Detector, DetectorConfig]:
    """Return the untrained detector on its device, and what is known of it before the training."""
    torch.manual_seed(params.seed)  # the initial weights
    model_args = input_size_args(params.model, params.image_size) | params.model_args
    if params.residuals:
        model_args["in_chans"] = CHANNELS_WITH_RESIDUALS
    model = create_model(params.model, model_args, params.weights)
    if params.zero_head:
        zero_head(model)
    preprocessing = resolve_preprocessing(
        model, image_size=params.image_size, interpolation=params.interpolation,
        mean=params.mean, std=params.std, reencode=params.reencode,
        scaled_decoding=params.scaled_decoding, residuals=params.residuals,
        face_crop=params.face_crop,
    )  # fmt: skip
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
    val: LabelledImages,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> Progress:
    """Train and validate epoch by epoch, from the beginning or from the last checkpoint."""
    hardware = loop.hardware
    loader = validation_loader(val, params, hardware)
    progress = _resumed(loop, checkpoints.found) if checkpoints.found else Progress()

    def state() -> tuple[State, State]:
        return _state(params, progress, loop, tracker)

    if checkpoints.found and tracker.run_id != checkpoints.found["run_id"]:
        for row in progress.history:  # the run that was stopped is gone
            tracker.log_epoch(int(row["epoch"]), {key: row[key] for key in row if key != "epoch"})
    if hardware.rank == 0:
        _say_where(progress, loop)
        print(HEADINGS, flush=True)
    while not progress.is_finished(params):
        epoch = progress.epochs
        trained, speed = loop.train_epoch(epoch, lambda: checkpoints.save_if_due(state))
        # The AUC first: the comparison of runs in MLflow opens with the first metric.
        results = validate(loop.evaluated_detector, loader, hardware) | trained
        if not np.isfinite(results["train_loss"] + results["val_loss"]):
            raise UserError(
                f"training diverged in epoch {epoch + 1} (training loss {results['train_loss']}); "
                "lower train.lr, or set train.clip_grad"
            )
        progress.epochs += 1
        progress.history.append({"epoch": progress.epochs, **results})
        is_better = results["val_auc"] > progress.best.auc
        if is_better or params.average_last:
            weights = loop.evaluated_detector.model.state_dict()
            progress.last.append({name: tensor.clone() for name, tensor in weights.items()})
            progress.last = progress.last[-max(1, params.average_last) :]
        if is_better:
            progress.best = Best(progress.epochs, results["val_auc"], progress.last[-1])
        if hardware.rank == 0:
            _report_epoch(params, epoch, results, speed, progress.best, tracker)
        checkpoints.save(*state())
    if params.average_last:
        _try_average(progress, loop, loader)
    return progress


def _try_average(progress: Progress, loop: TrainingLoop, loader: DataLoader) -> None:
    """Keep the mean of the weights of the last epochs where it is better than the best one."""
    average = average_states(progress.last)
    loop.evaluated_detector.model.load_state_dict(average)
    auc = validate(loop.evaluated_detector, loader, loop.hardware)["val_auc"]
    if loop.hardware.rank == 0:
        print(f"average of the last {len(progress.last)} epochs: val AUC {auc:.4f}", flush=True)
    if auc > progress.best.auc:
        progress.best = Best(progress.epochs, auc, average, len(progress.last))


# ---------------------------------------------------------------------------------------------
# Checkpoints


def _state(
    params: TrainParams, progress: Progress, loop: TrainingLoop, tracker: Tracker
) -> tuple[State, State]:
    """Return what a checkpoint keeps; at the end of the training, the results alone."""
    finished = progress.is_finished(params)
    shared, own = ({}, {}) if finished else loop.state()
    return {
        "finished": finished,
        "run_id": tracker.run_id,
        "accumulate": params.accumulate,
        "epochs": progress.epochs,
        "best": vars(progress.best),
        "history": progress.history,
        "last": progress.last,
        **shared,
    }, own


def _resumed(loop: TrainingLoop, state: State) -> Progress:
    """Bring the loop to where it was; return what the training had reached."""
    if not state["finished"]:
        loop.resume(state["epochs"], state, state["own"])
    return Progress(state["epochs"], Best(**state["best"]), state["history"], state["last"])


def _say_where(progress: Progress, loop: TrainingLoop) -> None:
    if loop.done:
        total = loop.steps_per_epoch * loop.params.num_micro_batches
        where = f"in epoch {progress.epochs + 1}, after {loop.done} of {total} batches"
    else:
        where = f"after epoch {progress.epochs}"
    if loop.done or progress.epochs:
        print(f"this training was stopped before; it goes on {where}")


def _announce(
    params: TrainParams,
    detector: Detector,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
) -> None:
    num_parameters = count_parameters(detector)
    print(f"device: {hardware}")
    start = {"random": "random initialisation, no pretrained weights"}.get(params.weights)
    print(f"model: {params.model}, {num_parameters / 1e6:.1f} M parameters, ", end="")
    print(start or f"weights from {params.weights}")
    for name, table in labels.items():
        print(f"{name}: {len(table)} images, {(table['target'] == FAKE).mean():.0%} fake")
        tracker.log_dataset(table, name, paths.LABELS / f"{name}.csv")
    micro_batch = params.micro_batch_size(hardware.world_size)
    print(
        f"a step: {params.batch_size} images, {micro_batch} at a time in each process", flush=True
    )
    tracker.log_tags(
        {"device": str(hardware), "num_parameters": num_parameters, "micro_batch": micro_batch}
    )


def _report_epoch(
    params: TrainParams,
    epoch: int,
    results: dict[str, float],
    speed: dict[str, float],
    best: Best,
    tracker: Tracker,
) -> None:
    print(
        f"{epoch + 1:3d}/{params.epochs:<3d} {results['lr']:8.2e}  {results['train_loss']:10.4f}"
        f"  {results['val_loss']:8.4f}  {results['val_accuracy']:7.4f}  {results['val_auc']:7.4f}"
        f"  {speed['images_per_second']:8.1f}  {speed['waiting_share']:7.1%}"
        f"  {speed['peak_memory_gb']:9.2f}{'  best' if best.epoch == epoch + 1 else ''}",
        flush=True,
    )
    tracker.log_epoch(epoch + 1, results)
    tracker.log_metrics({f"speed/{name}": value for name, value in speed.items()}, step=epoch + 1)


if __name__ == "__main__":
    run_stage(main)
