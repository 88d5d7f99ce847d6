"""Views of an image that is scored: test-time augmentation, on batches on the device."""

from collections.abc import Callable

import torch
from torchvision.transforms.v2 import functional as tv


def _zoomed(images: torch.Tensor) -> torch.Tensor:
    side = images.shape[-1]
    middle = tv.center_crop(images, [side * 7 // 8] * 2)
    return tv.resize(middle, [side, side], antialias=True)


# uint8 (N, 3, S, S) to the same.
SCORED_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda images: images,
    "mirrored": tv.horizontal_flip,
    "zoomed": _zoomed,  # the middle seven eighths
}
