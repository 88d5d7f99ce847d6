"""Scoring all images of a loader, each one in exactly one process."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from stages.lib.detector.hardware import Hardware
from stages.lib.progress import progress_bar

# From a batch of inputs on the device, uint8, to log(P(fake) / P(real)), float (N, V).
Scorer = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def gather_logits(
    score: Scorer, loader: DataLoader, hardware: Hardware, desc: str, num_variants: int = 1
) -> torch.Tensor:
    """Return float64 (N, V): the logits of all images of the loader's data set, in every process.

    The loader loads the share of this process (sequential_batches). V is num_variants, the number
    of logits that the scorer returns for each image.
    """
    dataset: Any = loader.dataset
    logits = torch.zeros((len(dataset), num_variants), device=hardware.device)
    batches: Any = loader.batch_sampler
    with progress_bar(desc, sum(map(len, batches))) as bar:
        for batch, _, indices in loader:
            with hardware.autocast():
                found = score(batch.to(hardware.device, non_blocking=True))
            logits[indices.to(hardware.device, non_blocking=True)] = found
            bar.update(len(batch))
    if hardware.world_size > 1:  # each process filled in its own images and left 0 elsewhere
        dist.all_reduce(logits)
    return logits.cpu().double()
