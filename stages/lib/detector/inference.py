"""From the pixels of an image to its score: the one path of every stage and command that scores.

decode -> crop_of (both in preprocessing.py) -> inputs_of_views -> Inference.logits and distances
-> score_table.

The logit of an input is the mean over some of SCORED_VIEWS (test-time augmentation), which are made
of batches of inputs on the device. CHANGED_VIEWS change what a detector sees before it is resized,
as sending an image on does; a verdict has to stand them. The distance to the training images is
that of the plain, unchanged input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.dataset import LabelledImages, Loader, make_loader, sequential_batches
from stages.lib.detector.distance import TrainingDistance, early_features, load_distance
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import Detector, DetectorConfig, fake_logit, load_detector
from stages.lib.detector.pixel_operations import PixelOperation, jpeg, rescale, webp
from stages.lib.detector.preprocessing import Preprocessing, crop_of, input_of
from stages.lib.progress import progress_bar

# From uint8 (N, 3, S, S), RGB, on its device to log(P(fake) / P(real)), float32 (N,).
Network = Callable[[torch.Tensor], torch.Tensor]
LONGEST_SIDE = 4096  # pixels of an image that is changed; WebP has no more than 16,383
BATCH_SIZE = 32  # inputs that a command scores at a time


def _zoomed(inputs: torch.Tensor) -> torch.Tensor:
    side = inputs.shape[-1]
    middle = tv.center_crop(inputs, [side * 7 // 8] * 2)
    return tv.resize(middle, [side, side], antialias=True)


def _smaller(image: torch.Tensor, factor: float, random: np.random.Generator) -> torch.Tensor:
    return rescale(image, factor, [InterpolationMode.BICUBIC] * 2)


# uint8 (N, 3, S, S) to the same.
SCORED_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda inputs: inputs,
    "mirrored": tv.horizontal_flip,
    "zoomed": _zoomed,  # the middle seven eighths
}
CHANGED_VIEWS: dict[str, tuple[PixelOperation, float]] = {
    "JPEG 85": (jpeg, 85),
    "JPEG 70": (jpeg, 70),
    "WebP 80": (partial(webp, method=0), 80),  # larger files in half the time
    "three quarters": (_smaller, 0.75),  # of the size, and back
}


def inputs_of_views(crop: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the inputs of an image, unchanged and in CHANGED_VIEWS: uint8 (1 + V, 3, S, S).

    crop: what the detector sees of the image, uint8 (3, H, W), as crop_of returns it.
    """
    random = np.random.default_rng(0)  # from which these views draw nothing
    source, longest = crop, max(crop.shape[1:])
    if longest > LONGEST_SIDE:
        size = [max(1, side * LONGEST_SIDE // longest) for side in crop.shape[1:]]
        source = tv.resize(crop, size, antialias=True)
    changed = [change(source, level, random) for change, level in CHANGED_VIEWS.values()]
    return torch.stack([input_of(view, preprocessing) for view in (crop, *changed)])


class ChangedImages(LabelledImages):
    """The images of a label table, each with its inputs in CHANGED_VIEWS, from one decoding."""

    num_inputs = 1 + len(CHANGED_VIEWS)

    def inputs(self, index: int) -> torch.Tensor:
        """Return uint8 (1 + V, 3, S, S)."""
        crop = crop_of(self.decoded_file(index), self.preprocessing)
        return inputs_of_views(crop, self.preprocessing)


@dataclass(frozen=True)
class Inference:
    """A detector on its hardware, with all that turns the inputs of images into scores."""

    detector: Detector
    config: DetectorConfig
    hardware: Hardware
    network: Network  # the detector, or what it was exported to
    distance: TrainingDistance | None = None  # from the early blocks of the detector itself
    views: Sequence[str] = ("plain",)  # of SCORED_VIEWS
    batch_size: int = BATCH_SIZE  # inputs at a time

    @classmethod
    def load(cls, folder: Path, hardware: Hardware) -> "Inference":
        """Return the detector in a folder; raises UserError as load_detector does."""
        detector, config = load_detector(folder)
        detector = detector.to(hardware.device).to(memory_format=torch.channels_last)
        distance = load_distance(folder, config.distance_sha256)
        if distance:
            distance = distance.to(hardware.device)
        return cls(
            detector, config, hardware, lambda inputs: fake_logit(detector(inputs)), distance
        )

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of all inputs of images: uint8 (N, V, 3, S, S) to float64 (N, V)."""
        batches = inputs.flatten(0, 1).split(self.batch_size)
        logits = [_run(self.mean_logit, batch, self.hardware).cpu() for batch in batches]
        return torch.cat(logits).view(inputs.shape[:2]).double()

    def distances(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return how far plain inputs are from the training images, NaN where that is not known.

        uint8 (N, 3, S, S) to float64 (N,).
        """
        batches = inputs.split(self.batch_size)
        parts = [_run(self.distance_of, batch, self.hardware).cpu() for batch in batches]
        return torch.cat(parts).double()

    def scores_of(
        self, images: LabelledImages, num_workers: int, title: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of all images of a data set and their distances, in every process.

        float64 (N, V), and float64 (N,) as `distances` returns them. Each image is scored by
        exactly one process.
        """
        size = max(1, self.batch_size // images.num_inputs)
        rank, world_size = self.hardware.rank, self.hardware.world_size
        batches = sequential_batches(len(images), size, rank, world_size)
        loader = make_loader(images, batches, num_workers, self.hardware.device.type == "cuda")
        columns = gather(self._scores_of_batch, loader, 1 + images.num_inputs, self.hardware, title)
        return columns[:, 1:], columns[:, 0]

    def logits_of(self, images: LabelledImages, num_workers: int, title: str) -> torch.Tensor:
        """Return the logits of all images of a data set, float64 (N, V), in every process."""
        logits, _ = replace(self, distance=None).scores_of(images, num_workers, title)
        return logits

    def mean_logit(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean over the scored views, uint8 (N, 3, S, S) to float32 (N,)."""
        logits = [self.network(SCORED_VIEWS[view](inputs)) for view in self.views]
        return torch.stack(logits).mean(dim=0)

    def distance_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what `distances` does of one batch on the device, float32 (N,)."""
        if self.distance is None:
            return torch.full((len(inputs),), torch.nan, device=inputs.device)
        return self.distance(early_features(self.detector, inputs))

    def _scores_of_batch(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return distance and logits of images, uint8 (N, V, 3, S, S) to float32 (N, 1 + V)."""
        logits = self.mean_logit(inputs.flatten(0, 1)).view(inputs.shape[:2])
        return torch.cat([self.distance_of(inputs[:, 0])[:, None], logits], dim=1)


def gather_logits(network: Network, loader: Loader, hardware: Hardware, title: str) -> torch.Tensor:
    """Return the logits of all images of a loader's data set, float64 (N, 1), in every process."""
    return gather(lambda inputs: network(inputs[:, 0])[:, None], loader, 1, hardware, title)


def gather(
    score: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    num_columns: int,
    hardware: Hardware,
    title: str,
) -> torch.Tensor:
    """Return numbers of all images of a loader's data set, float64 (N, C), in every process.

    score: from the inputs of images, uint8 (B, V, 3, S, S), to float32 (B, C), on the device. The
    loader loads the share of this process (sequential_batches).
    """
    rows = torch.zeros((len(loader.dataset), num_columns), device=hardware.device)
    with progress_bar(title, sum(map(len, loader.batch_sampler))) as bar:
        for batch, _, indices in loader:
            inputs = batch if batch.ndim == 5 else batch[:, None]
            places = indices.to(hardware.device, non_blocking=True)
            rows[places] = _run(score, inputs, hardware)
            bar.update(len(batch))
    if hardware.world_size > 1:  # each process filled in its own images and left 0 elsewhere
        dist.all_reduce(rows)
    return rows.cpu().double()


def _run(network: Network, inputs: torch.Tensor, hardware: Hardware) -> torch.Tensor:
    """Return what a function makes of one batch, on the device."""
    with torch.inference_mode(), hardware.autocast():
        return network(inputs.to(hardware.device, non_blocking=True))


def score_table(logits: np.ndarray, distances: np.ndarray) -> pd.DataFrame:
    """Return logit, low and high, the least and the most of the changed views, and distance.

    logits: float64 (N, 1 + changed views), or (N, 1), for which low and high are empty.
    distances: of the unchanged images, float64 (N,), NaN where they are not known.
    """
    table = pd.DataFrame({"logit": logits[:, 0], "low": np.nan, "high": np.nan})
    if logits.shape[1] > 1:
        table["low"], table["high"] = logits[:, 1:].min(axis=1), logits[:, 1:].max(axis=1)
    return table.assign(distance=distances)
