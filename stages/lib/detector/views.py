"""Views of an image that is scored, and slightly changed views that its verdict has to stand.

SCORED_VIEWS are test-time augmentation, on batches of inputs on the device. CHANGED_VIEWS change
what the model sees before it is resized, as sending an image on does.
"""

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.pixel_operations import PixelOperation, jpeg, rescale, webp
from stages.lib.detector.preprocessing import Preprocessing, part_to_input


def _zoomed(images: torch.Tensor) -> torch.Tensor:
    side = images.shape[-1]
    middle = tv.center_crop(images, [side * 7 // 8] * 2)
    return tv.resize(middle, [side, side], antialias=True)


def _smaller(image: torch.Tensor, factor: float, random: np.random.Generator) -> torch.Tensor:
    return rescale(image, factor, [InterpolationMode.BICUBIC] * 2)


LONGEST_SIDE = 4096  # pixels of an image that is changed; WebP has no more than 16,383

# uint8 (N, 3, S, S) to the same.
SCORED_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda images: images,
    "mirrored": tv.horizontal_flip,
    "zoomed": _zoomed,  # the middle seven eighths
}
CHANGED_VIEWS: dict[str, tuple[PixelOperation, float]] = {
    "JPEG 85": (jpeg, 85),
    "JPEG 70": (jpeg, 70),
    "WebP 80": (webp, 80),
    "three quarters": (_smaller, 0.75),  # of the size, and back
}


def plain_and_changed(part: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the inputs of one image unchanged and in CHANGED_VIEWS: uint8 (1 + V, 3, S, S).

    part: what the model sees of the image, uint8 (3, H, W).
    """
    random = np.random.default_rng(0)  # of which these views draw nothing
    source, longest = part, max(part.shape[1:])
    if longest > LONGEST_SIDE:
        size = [max(1, side * LONGEST_SIDE // longest) for side in part.shape[1:]]
        source = tv.resize(part, size, antialias=True)
    changed = [change(source, level, random) for change, level in CHANGED_VIEWS.values()]
    return torch.stack([part_to_input(view, preprocessing) for view in (part, *changed)])
