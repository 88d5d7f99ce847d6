"""What the digest of an image costs, against the time from its bytes to the input of the model.

Run: python -m tests.benchmarks.digests
"""

import hashlib
from collections.abc import Callable
from io import BytesIO
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from stages.lib.detector.preprocessing import Preprocessing, decode, resize

ROUNDS = 9
CASES = ((512, 256, False), (512, 256, True), (64, 64, False))  # side, wanted side, scaled decoding


def main() -> None:
    """Print a line for each kind of image."""
    torch.set_num_threads(1)
    for side, wanted, scaled in CASES:
        content = photograph(side)
        preprocessing = Preprocessing(
            image_size=wanted,
            interpolation="bilinear",
            mean=[0.5] * 3,
            std=[0.2] * 3,
            scaled_decoding=scaled,
        )

        def load(content: bytes = content, how: Preprocessing = preprocessing) -> object:
            return resize(decode(content, how).tensor, how)

        def digest(content: bytes = content) -> object:
            return hashlib.sha256(content).hexdigest()

        times = np.array([[milliseconds(load), milliseconds(digest)] for _ in range(ROUNDS)])
        loading, hashing = np.median(times, axis=0)
        low, high = times[:, 0].min(), times[:, 0].max()
        print(
            f"{len(content) / 1e3:.1f} KB, {side} px to {wanted} px, scaled_decoding {scaled}: "
            f"load {loading:.3f} ms ({low:.3f} to {high:.3f}), digest {hashing:.4f} ms, "
            f"{hashing / loading:.2%}"
        )


def photograph(side: int) -> bytes:
    """Return smooth noise as a JPEG, of about the size that a photograph has."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.normal(0, 240, (side, side, 3)), (2, 2, 0))
    pixels = (128 + smooth + random.normal(0, 2, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=68)
    return buffer.getvalue()


def milliseconds(work: Callable[[], object], repeats: int = 30) -> float:
    """Return how long one piece of work takes."""
    start = perf_counter()
    for _ in range(repeats):
        work()
    return (perf_counter() - start) / repeats * 1e3


if __name__ == "__main__":
    main()
