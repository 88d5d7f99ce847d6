"""Harmless edits: what people and their apps do to real photographs, which stay real after it.

A detector that calls an edited photograph a fake raises a false alarm, so reals alone are edited.
Every edit takes a decoded image, uint8 (3, H, W), and a level, and returns uint8 (3, H, W), though
perhaps of another size. Nothing is random. The operations are those of OpenCV, Pillow and
torchvision; OpenCV's give the same bytes with its kernels for AVX2 and for AVX-512.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.images.faces import crop_largest_face
from stages.lib.prediction.variants import inputs_of_variants, variant_table

Edit = Callable[[torch.Tensor, float], torch.Tensor]

LONGEST_SIDE = 1024  # pixels of an image that is edited; one of 12 megapixels would take 10 s
SURROUNDINGS = 2.0  # of a face in a larger image, in what the detector sees of it
REACH = 0.01  # of the longest side: how far smoothing skin looks


def denoise(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Remove noise as the night mode of a phone does (non-local means, Buades et al. 2005)."""
    denoised = _opencv().fastNlMeansDenoisingColored(
        _pixels(image), h=strength, hColor=strength, templateWindowSize=5, searchWindowSize=9
    )
    return _tensor(denoised)


def smooth(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth skin and keep edges as a beauty mode does (bilateral filter, Tomasi 1998).

    sigma: levels of 255 that are smoothed away.
    """
    radius = max(1, round(REACH * max(image.shape[1:])))
    smoothed = _opencv().bilateralFilter(_pixels(image), 2 * radius + 1, sigma, radius)
    return _tensor(smoothed)


def grade(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Grade colours as a preset of Lightroom does: stronger, shadows teal and lights orange."""
    strong = tv.adjust_contrast(tv.adjust_saturation(image, 1 + strength), 1 + strength / 2)
    light = tv.rgb_to_grayscale(image).float() / 255 - 0.5
    orange = torch.tensor([60.0, 0.0, -60.0]).view(3, 1, 1)
    return _as_bytes(strong + strength * light * orange)


def sharpen(image: torch.Tensor, percent: float) -> torch.Tensor:
    """Sharpen by an unsharp mask, as cameras and Photoshop do."""
    mask = ImageFilter.UnsharpMask(radius=2, percent=round(percent), threshold=0)
    return tv.pil_to_tensor(tv.to_pil_image(image).filter(mask))


def enlarge(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarge as an app for printing does (Lanczos), and shrink again as a messenger does."""
    original = tv.to_pil_image(image)
    size = [round(factor * side) for side in original.size]
    large = original.resize(size, Image.Resampling.LANCZOS)
    return tv.pil_to_tensor(large.resize(original.size, Image.Resampling.BILINEAR))


def screenshot(image: torch.Tensor, side: float) -> torch.Tensor:
    """Show on a phone, whose screen has this many pixels on a side, and save that as a PNG.

    Graphics hardware resizes by plain bilinear interpolation. The screen is darker in the middle
    tones, and its profile of wide colours, which the next app ignores, leaves them paler.
    """
    shown = tv.adjust_saturation(tv.adjust_gamma(image, 1.1), 0.9)
    scale = side / max(image.shape[1:])
    size = [max(1, round(length * scale)) for length in image.shape[1:]]
    return tv.resize(shown, size, InterpolationMode.BILINEAR, antialias=False)


def photo_filter(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Apply a filter as Instagram has them: an S-curve, warm colours and dark corners."""
    height, width = image.shape[1:]
    shares = image.float() / 255
    curve = shares.lerp(3 * shares**2 - 2 * shares**3, strength)
    warm = torch.tensor([1 + 0.1 * strength, 1.0, 1 - 0.1 * strength]).view(3, 1, 1)
    down, right = torch.linspace(-1, 1, height).view(-1, 1), torch.linspace(-1, 1, width)
    vignette = 1 - strength * (down**2 + right**2) / 4
    return _as_bytes(255 * curve * warm * vignette)


LEVELS: dict[Edit, list[float]] = {
    denoise: [6],
    smooth: [20, 40],
    grade: [0.2, 0.4],
    sharpen: [50, 120],
    enlarge: [1.5, 3],
    screenshot: [1080, 360],
    photo_filter: [0.5, 1],
}
VARIANTS = [(edit, level) for edit, levels in LEVELS.items() for level in levels]


def variants_of(image: torch.Tensor) -> list[torch.Tensor]:
    """Return an image unchanged, then after every one of VARIANTS."""
    return [image, *(edit(image, level) for edit, level in VARIANTS)]


def editable(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return an image of at most LONGEST_SIDE pixels; a larger one is cut and made smaller first.

    It is cut to the surroundings of its face where a detector sees the face alone.
    """
    if max(image.shape[1:]) <= LONGEST_SIDE:
        return image
    if preprocessing.face_crop:
        image = crop_largest_face(image, SURROUNDINGS * preprocessing.face_crop)
    scale = min(1.0, LONGEST_SIDE / max(image.shape[1:]))
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return tv.resize(image, size, antialias=True)


class EditedImages(LabelledImages):
    """The images of a label table, each with the inputs of all its variants, from one decoding."""

    num_inputs = 1 + len(VARIANTS)

    def inputs(self, index: int) -> torch.Tensor:
        """Return uint8 (1 + V, 3, S, S)."""
        image = editable(self.decoded_file(index), self.preprocessing)
        return inputs_of_variants(variants_of(image), self.preprocessing)


def edited_table(names: pd.Series, logits: np.ndarray) -> pd.DataFrame:
    """Return one row per image and variant, the unedited (`none`) first; float64 (N, 1 + V)."""
    return variant_table("edit", VARIANTS, names, logits)


def _opencv() -> Any:
    """Import OpenCV here, so that all other code runs without it."""
    import cv2

    cv2.setNumThreads(1)  # the callers are several processes already
    return cv2


def _pixels(image: torch.Tensor) -> np.ndarray:
    """Return an image as OpenCV wants it, uint8 (H, W, 3) in BGR."""
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).flip(0)


def _as_bytes(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
