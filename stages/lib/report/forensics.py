"""Views of an image that help people to find manipulations by eye; no detector is involved.

Every view takes uint8 (H, W, 3), RGB, and returns float (H, W), 0 and larger.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

ERROR_LEVEL_QUALITY = 90
LIGHT_SCALE = 16  # the light is the image blurred by this fraction of its side


def _luma(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)


def blend_edges(image: np.ndarray) -> np.ndarray:
    """Return how fast the colour changes, without brightness, in chroma levels per pixel.

    Where one face was blended into another, the seam is a line that follows nothing in the scene.
    """
    chroma = np.asarray(Image.fromarray(image).convert("YCbCr"), dtype=np.float64)[..., 1:]
    gradients = [ndimage.gaussian_gradient_magnitude(chroma[..., i], sigma=1) for i in (0, 1)]
    return np.hypot(*gradients)


def light(image: np.ndarray) -> np.ndarray:
    """Return the brightness on a large scale, 0 to 255: light and shadow without detail.

    A face that is lit from another side than its neck and ears was photographed elsewhere.
    """
    luma = _luma(image)
    return ndimage.gaussian_filter(luma, sigma=max(luma.shape) / LIGHT_SCALE)


def noise_residual(image: np.ndarray) -> np.ndarray:
    """Return what a 3x3 median filter removes from the brightness, without sign, 0 to 255.

    A camera leaves the same noise all over: a smoother or rougher patch is from elsewhere.
    """
    luma = _luma(image)
    return np.abs(luma - ndimage.median_filter(luma, size=3))


def error_level(image: np.ndarray) -> np.ndarray:
    """Return the change that one more JPEG compression makes, mean over RGB, 0 to 255.

    Regions with another compression history change by a different amount (Krawetz 2007).
    """
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=ERROR_LEVEL_QUALITY)
    with Image.open(buffer) as again:
        difference = np.asarray(again, dtype=np.float64) - image
    return np.abs(difference).mean(axis=2)


def spectrum(image: np.ndarray) -> np.ndarray:
    """Return log(1 + amplitude) of the brightness's frequencies, the lowest in the middle.

    Generators that enlarge small maps leave regular points or a raised rim (Durall et al. 2020).
    """
    luma = _luma(image)
    window = np.outer(np.hanning(luma.shape[0]), np.hanning(luma.shape[1]))
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2((luma - luma.mean()) * window)))
    return np.log1p(amplitude)


def white_level(view: np.ndarray) -> float:
    """Return the level of a view that is drawn as the brightest one.

    A few bright pixels, half a percent, would hide the rest.
    """
    return float(np.quantile(view, 0.995)) or 1.0


FORENSIC_VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blend edges": blend_edges,
    "light": light,
    "noise residual": noise_residual,
    "error level": error_level,
    "spectrum": spectrum,
}
