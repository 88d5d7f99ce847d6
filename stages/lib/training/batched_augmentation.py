"""The augmentation of whole batches, on the device that trains.

Chance decides as in stages/lib/training/augmentation.py, and the order of the changes of an image
is the same. The pixels differ by up to three levels of 255 here and there, because the CPU resizes
in integers and a device in floats.

Three changes are made on the CPU: `jpeg` and `webp`, because no library for GPUs makes exact ones
with a quality for each image, and `noise`, whose numbers are drawn there. With one of them an
image goes through all its changes up to the last one of these on the CPU.

Scaling, blurring and cropping are products with two matrices, one for the rows and one for the
columns, and so are done for all images of a batch at once, whatever their levels.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.training.augmentation import FLIPS, INTERPOLATIONS, Change

ON_CPU = ("jpeg", "webp", "noise")
NEAREST, BICUBIC = (
    INTERPOLATIONS.index(mode) for mode in (InterpolationMode.NEAREST, InterpolationMode.BICUBIC)
)


class BatchChanges(NamedTuple):
    """The changes of a batch of N images, in groups that undergo the same one at the same time."""

    groups: list[tuple[str, int, int]]  # of each the name, the images n and the numbers k of each
    rows: torch.Tensor  # int64: of each group the places of its images (n,), and where each image
    # of the batch is afterwards (N,): in the batch, or in the changed images, which come after it
    numbers: torch.Tensor  # float32: of each group those of Operation.draw, (n * k,)

    def to(self, device: torch.device) -> "BatchChanges":
        """Return the changes on a device."""
        tensors = (one.to(device, non_blocking=True) for one in (self.rows, self.numbers))
        return BatchChanges(self.groups, *tensors)


def split(changes: list[Change]) -> tuple[list[Change], list[Change]]:
    """Return the changes of an image that the CPU has to make, and those that come after them."""
    on_cpu = [number for number, change in enumerate(changes, 1) if change.name in ON_CPU]
    first = max(on_cpu, default=0)
    return changes[:first], changes[first:]


def grouped(changes: list[list[Change]]) -> BatchChanges:
    """Return the changes of the images of a batch, those first that come first."""
    members: dict[tuple[int, str], list[tuple[int, np.ndarray]]] = {}
    for place, of_image in enumerate(changes):
        for turn, change in _turns(of_image):
            members.setdefault((turn, change.name), []).append((place, change.numbers))
    groups, rows, numbers = [], [np.empty(0, np.int64)], [np.empty(0)]
    for (_, name), of_group in sorted(members.items()):
        places = np.array([place for place, _ in of_group])
        afterwards = np.arange(len(changes))
        afterwards[places] = len(changes) + np.arange(len(places))
        rows += [places, afterwards]
        numbers += [of_image for _, of_image in of_group]
        groups.append((name, len(places), len(of_group[0][1])))
    flat = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(numbers)).float()
    return BatchChanges(groups, *flat)


def _turns(changes: list[Change]) -> Iterable[tuple[int, Change]]:
    """Yield the changes of an image with their turns; flips share the first one."""
    turn = 0
    for change in changes:
        turn += change.name not in FLIPS
        yield turn, change


def change_batch(images: torch.Tensor, changes: BatchChanges) -> torch.Tensor:
    """Return the changed images, uint8 (N, 3, S, S), on their device."""
    sizes = [size for _, count, _ in changes.groups for size in (count, len(images))]
    rows = iter(changes.rows.split(sizes))
    all_numbers = iter(changes.numbers.split([count * k for _, count, k in changes.groups]))
    for name, count, k in changes.groups:
        places, afterwards, numbers = next(rows), next(rows), next(all_numbers)
        changed = BATCHED[name](images[places], numbers.view(count, k))
        images = torch.cat([images, changed])[afterwards]  # deterministic, unlike an assignment
    return images


# ---------------------------------------------------------------------------------------------
# Changes of uint8 (N, 3, S, S) by numbers, float32 (N, k), as augmentation.py has them for an image


def rescale(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Scale to a smaller size and back again."""
    height, width, down, up = numbers[:, :, None, None].unbind(1)
    side, start = images.shape[-1], torch.zeros_like(height)
    whole = torch.full_like(height, side)
    small = _separable(
        images,
        resizing(side, start, whole, height, down),
        resizing(side, start, whole, width, down),
    )
    return _separable(
        small,
        resizing(side, start, height, whole, up),
        resizing(side, start, width, whole, up),
    )


def crop(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Keep a square, enlarged to the whole."""
    top, left, height, width = numbers[:, :, None, None].unbind(1)
    side, bilinear = images.shape[-1], torch.ones_like(top)
    whole = torch.full_like(top, side)
    rows = resizing(side, top, height, whole, bilinear)
    return _separable(images, rows, resizing(side, left, width, whole, bilinear))


def blur(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Blur with a Gaussian."""
    matrices = blurring(images.shape[-1], numbers[:, :, None])
    return _separable(images, matrices, matrices)


def shift(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Move what is seen; the border is repeated."""
    along = torch.arange(images.shape[-1], device=images.device)
    x, y = numbers.long()[:, :, None].unbind(1)
    rows = (along + y).clamp(0, len(along) - 1)[:, None, :, None]
    columns = (along + x).clamp(0, len(along) - 1)[:, None, None, :]
    moved = images.gather(2, rows.expand(images.shape))
    return moved.gather(3, columns.expand(images.shape))


def erase(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Cover a rectangle with its mean colour."""
    along = torch.arange(images.shape[-1], device=images.device)
    top, left, height, width = numbers[:, :, None].unbind(1)
    rows = (along >= top) & (along < top + height)
    columns = (along >= left) & (along < left + width)
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    total = (images * covered).sum(dim=(2, 3), keepdim=True, dtype=torch.float32)
    mean = total / (height * width)[:, :, None, None]
    return torch.where(covered, mean.round().byte(), images)


def grey(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Remove a share of the colours."""
    gone = tv.rgb_to_grayscale(images, num_output_channels=3).float()
    return torch.lerp(images.float(), gone, numbers[:, :, None, None]).round().byte()


def colour(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue, as torchvision does by one number each."""
    brightness, contrast, saturation, hue = numbers[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 255).byte()
    images = _mixed(images, _luma(images).mean(dim=(1, 2, 3), keepdim=True), contrast)
    images = _mixed(images, _luma(images), saturation)
    return _with_hue_moved(images, (hue - 1) / 4)


BATCHED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "horizontal_flip": lambda images, _: tv.horizontal_flip(images),
    "vertical_flip": lambda images, _: tv.vertical_flip(images),
    "rescale": rescale,
    "blur": blur,
    "colour": colour,
    "grey": grey,
    "crop": crop,
    "shift": shift,
    "erase": erase,
}


# ---------------------------------------------------------------------------------------------
# Matrices


def _separable(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return rows @ image @ columns^T of each channel; the matrices are float32 (N, S, S)."""
    changed = rows[:, None] @ images.float() @ columns[:, None].mT
    return changed.round().clamp(0, 255).byte()


def resizing(
    side: int,
    start: torch.Tensor,
    length: torch.Tensor,
    target: torch.Tensor,
    mode: torch.Tensor,
) -> torch.Tensor:
    """Return matrices, float32 (N, S, S), that resize a part of S pixels.

    Of each: the pixels from start, as many as length, become the first `target` ones; all others
    are 0. mode: the number of one of INTERPOLATIONS. All are float32 (N, 1, 1). The weights are
    those of Pillow and PyTorch, with antialiasing but for the nearest pixel.
    """
    along = torch.arange(side, device=start.device)
    row, column = along[:, None], along[None, :]
    scale = length / target
    away = (column + 0.5 - start - (row + 0.5) * scale) / scale.clamp(min=1)
    weights = torch.where(mode == BICUBIC, _cubic(away.abs()), (1 - away.abs()).clamp(min=0))
    nearest = column == start + (row * scale).floor()
    weights = torch.where(mode == NEAREST, nearest.float(), weights)
    weights = weights * ((column >= start) & (column < start + length))
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return weights * (row < target)


def _cubic(away: torch.Tensor) -> torch.Tensor:
    """Return the cubic kernel of Keys (1981) with a = -0.5, for distances of at least 0."""
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((2.5 - 0.5 * away) * away - 4) * away + 2
    return torch.where(away < 1, near, torch.where(away < 2, far, 0.0))


def blurring(side: int, sigma: torch.Tensor) -> torch.Tensor:
    """Return matrices, float32 (N, S, S), that blur S pixels by a sigma, float32 (N, 1, 1).

    Beyond the border are the pixels reflected by it.
    """
    along = torch.arange(side, device=sigma.device)
    row, column = along[:, None], along[None, :]
    radius = (3 * sigma).ceil().clamp(max=side - 1)

    def weight(away: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * (away / sigma).square()) * (away.abs() <= radius)

    before = weight(-column - row) * (column > 0)
    after = weight(2 * (side - 1) - column - row) * (column < side - 1)
    weights = weight(column - row) + before + after
    return weights / weights.sum(dim=-1, keepdim=True)


# ---------------------------------------------------------------------------------------------
# Colours


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return the brightness in whole levels, float32 (N, 1, S, S)."""
    return tv.rgb_to_grayscale(images).float()


def _mixed(images: torch.Tensor, others: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return (images * share + others * (1 - share)).clamp(0, 255).byte()


def _with_hue_moved(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue by a share of the circle; value and saturation of HSV stay."""
    red, green, blue = images.float().unbind(1)
    lowest, value = images.float().aminmax(dim=1)
    chroma = value - lowest
    safe = chroma.clamp(min=1)  # of a grey pixel any hue is right
    of_green, of_blue = 2 + (blue - red) / safe, 4 + (red - green) / safe
    sixths = torch.where(value == green, of_green, of_blue)
    sixths = torch.where(value == red, (green - blue) / safe, sixths) + 6 * turn[:, 0]
    channels = []
    for corner in (5, 3, 1):
        place = (corner + sixths).remainder(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    # As torchvision turns floats into levels.
    return (torch.stack(channels, dim=1) * (255.999 / 255)).clamp(0, 255).byte()
