"""The epochs of a training: from the first, or from where a checkpoint has it, to the last."""

from functools import partial
from typing import Any

import numpy as np

from stages.lib.core.errors import UserError
from stages.lib.detector.dataset import LabelledImages
from stages.lib.tracking.run import Tracker
from stages.lib.training.checkpoint import Checkpoints
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.optimization import average_states
from stages.lib.training.params import TrainParams
from stages.lib.training.reporting import log_row, report_epoch, report_start
from stages.lib.training.results import TrainingResults, choosing_auc
from stages.lib.training.validation import validate, validation_loader


def train_epochs(
    params: TrainParams,
    results: TrainingResults,
    loop: TrainingLoop,
    val_images: LabelledImages,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> None:
    """Train and validate epoch by epoch, from the beginning or from the last checkpoint.

    results: new; this function fills it.
    """
    hardware = loop.hardware
    val_loader = validation_loader(val_images, params, hardware)
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
            log_row(row, results.prefix, tracker)
