"""The validation of an epoch: on all images, and on those of each source."""

import posixpath
import re

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from stages.lib.core.labels import whole_sources
from stages.lib.detector.dataset import LabelledImages, Loader, sequential_batches
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.inference import gather_logits
from stages.lib.detector.model import Detector, fake_logit
from stages.lib.training.device_batches import unchanged_loader
from stages.lib.training.params import TrainParams


def validation_loader(images: LabelledImages, params: TrainParams, hardware: Hardware) -> Loader:
    """Return a loader of the images that this process validates; each image is loaded once."""
    size = params.micro_batch_size(hardware.world_size)  # which fits into memory
    batches = sequential_batches(len(images), size, hardware.rank, hardware.world_size)
    return unchanged_loader(images, batches, params, hardware)


def validate(detector: Detector, loader: Loader, hardware: Hardware) -> dict[str, float]:
    """Return the figures of figures_of, in every process; the loader is from validation_loader."""
    return figures_of(logits_of(detector, loader, hardware), loader.dataset)


def logits_of(detector: Detector, loader: Loader, hardware: Hardware) -> torch.Tensor:
    """Return log(P(fake) / P(real)) of all images, float64 (N,), in every process."""
    detector.eval()
    columns = gather_logits(
        lambda inputs: fake_logit(detector(inputs)), loader, hardware, "validate"
    )
    return columns[:, 0]


def figures_of(logits: torch.Tensor, images: LabelledImages) -> dict[str, float]:
    """Return AUC, accuracy at 0.5, loss and what source_aucs does of logits, float64 (N,)."""
    targets = images.targets
    loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets).double())
    if not torch.isfinite(loss):
        return {"val_auc": 0.0, "val_accuracy": 0.0, "val_loss": float("nan")}
    scores = torch.sigmoid(logits).numpy()
    return {
        "val_auc": float(roc_auc_score(targets, scores)),
        "val_accuracy": float(((scores >= 0.5) == targets).mean()),
        "val_loss": float(loss),
        **source_aucs(images.labels["source"], targets, scores),
    }


def source_aucs(sources: pd.Series, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return val_auc/NAME of each source, val_auc/mean and val_auc/worst.

    A source counts if it has a name and both classes. Where fewer than two count, there are none.
    """
    table = pd.DataFrame({"source": sources.to_numpy(), "target": targets, "score": scores})
    figures = {}
    for name in whole_sources(table):
        rows = table[table["source"] == name]
        figures[metric_name(str(name))] = float(roc_auc_score(rows["target"], rows["score"]))
    if len(figures) < 2:
        return {}
    aucs = list(figures.values())
    figures |= {"mean": float(np.mean(aucs)), "worst": min(aucs)}
    return {f"val_auc/{name}": auc for name, auc in figures.items()}


def metric_name(source: str) -> str:
    """Return the name of a source as MLflow takes it in that of a metric, a path."""
    path = re.sub(r"[^\w\-./ ]", "_", source)
    return posixpath.normpath(f"/./{path}").strip("/")
