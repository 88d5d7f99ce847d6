"""How far an image is from the training images, by what the early blocks of the network see of it.

The last layers of a fine-tuned network map every image to what it knows, and do not tell a strange
one. Early blocks keep noise, sharpness and colour: the mean of each of their channels over the
image (Lee et al. 2018, arXiv 1807.03888) is whitened, and compared with the nearest of a bank of
training images (deep nearest neighbours: Sun et al. 2022, arXiv 2204.06507). How far those are from
their own neighbours is the measure, for one source may be more varied than another (local outlier
factor: Breunig et al. 2000; simplified as by Schubert et al. 2014).
"""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load, save

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.detector.model import Detector

DISTANCE_FILE = paths.DISTANCE.name
NUM_NEAREST = 10  # images of the bank
NUM_BLOCKS = 2  # the first ones whose maps have at most a quarter of the side of the input
LEAST_REDUCTION = 4


class TrainingDistance(torch.nn.Module):
    """The distance to the nearest training images; 1: as far as these are from their nearest."""

    mean: torch.Tensor  # float32 (D,), of the features of training images
    projection: torch.Tensor  # float32 (D, K), which whitens them
    bank: torch.Tensor  # float16 (N, K), whitened features of N training images
    spread: torch.Tensor  # float32 (N,), the mean distance of each to its nearest in the bank

    def __init__(
        self,
        mean: torch.Tensor,
        projection: torch.Tensor,
        bank: torch.Tensor,
        spread: torch.Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        self.register_buffer("bank", bank)
        self.register_buffer("spread", spread)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the distances of images: what early_features returns to float32 (N,)."""
        whitened = (features - self.mean) @ self.projection
        # Without the faster product of matrices, which loses digits.
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(whitened, self.bank.float(), compute_mode=exact)
        nearest = distances.topk(min(NUM_NEAREST, len(self.bank)), largest=False)
        return nearest.values.mean(dim=1) / self.spread[nearest.indices].mean(dim=1)


def early_blocks(detector: Detector) -> list[int]:
    """Return which blocks of the network the features are from; none: it does not return them."""
    if not hasattr(detector.timm_model, "forward_intermediates"):
        return []
    reductions = [block["reduction"] for block in detector.timm_model.feature_info]
    early = [index for index, side in enumerate(reductions) if side >= LEAST_REDUCTION]
    return early[:NUM_BLOCKS]


def early_features(detector: Detector, inputs: torch.Tensor) -> torch.Tensor:
    """Return the mean of each early channel, float32 (N, D).

    inputs: uint8 (N, 3, S, S), on the device of the detector, whose model has early blocks.
    """
    maps = detector.timm_model.forward_intermediates(
        detector.normalize(inputs),
        indices=early_blocks(detector),
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    return torch.cat([channels.mean(dim=(2, 3)) for channels in maps], dim=1).float()


def save_distance(folder: Path, distance: TrainingDistance) -> str:
    """Write distance.safetensors, the same bytes for the same distance; return its SHA-256."""
    content = save(distance.state_dict())
    (folder / DISTANCE_FILE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_distance(folder: Path, sha256: str) -> TrainingDistance | None:
    """Load what save_distance wrote; sha256: as config.json has it, empty where there is none.

    Raises UserError where the file is absent, damaged or of another detector.
    """
    if not sha256:
        return None
    file = folder / DISTANCE_FILE
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{file}: absent, damaged, or of another detector than config.json; bring it back "
            f"(`dvc checkout --force {folder}`), or train again (`dvc repro --force train`)"
        )
    return TrainingDistance(**load(content))
