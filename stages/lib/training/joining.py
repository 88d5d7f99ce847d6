"""Joining a trained network and its expert into one detector, an ensemble."""

from dataclasses import dataclass

import torch

from stages.lib.core.labels import REAL
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.ensemble import Ensemble
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import (
    Detector,
    DetectorConfig,
    Expert,
    count_parameters,
)
from stages.lib.tracking.run import Tracker
from stages.lib.training.params import TrainParams
from stages.lib.training.results import TrainingResults
from stages.lib.training.validation import figures_of, logits_of, validation_loader


@dataclass(frozen=True)
class TrainedNetwork:
    """A network as it was after its best epoch."""

    detector: Detector  # in evaluation mode, on its device
    config: DetectorConfig
    results: TrainingResults
    images: dict[str, LabelledImages]  # train and val, unaugmented


def join(
    first: TrainedNetwork,
    expert: TrainedNetwork,
    params: TrainParams,
    hardware: Hardware,
    tracker: Tracker,
) -> tuple[Detector, DetectorConfig]:
    """Return the ensemble of both networks as one detector; all processes call it together."""
    weight, val_images = params.pseudo_fakes.expert_weight, first.images["val"]
    loader = validation_loader(val_images, params, hardware)
    detectors = (first.detector, expert.detector)
    logits = torch.stack([logits_of(detector, loader, hardware) for detector in detectors])
    ensemble = Ensemble(first.detector.model, expert.detector.model)
    is_real = torch.from_numpy(val_images.targets == REAL)
    ensemble.standardise(logits[:, is_real], weight)
    figures = figures_of(ensemble.joined(logits), val_images)
    detector = first.detector
    detector.model = ensemble.to(detector.device).eval()
    if hardware.rank == 0:
        print(f"ensemble, the expert at {weight}: val AUC {figures['val_auc']:.4f}", flush=True)
    tracker.log_metrics({f"ensemble/{name}": value for name, value in figures.items()})
    best = expert.results.best
    facts = Expert(weight=weight, best_epoch=best.epoch, averaged_epochs=best.averaged)
    changes = {"expert": facts, "num_parameters": count_parameters(detector)}
    return detector, first.config.model_copy(update=changes)
