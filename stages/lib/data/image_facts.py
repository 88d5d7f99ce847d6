"""What one look at an image file tells: its header, its hashes and the cues of its pixels."""

import hashlib
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image
from scipy import ndimage

from stages.lib.images.decoding import decode_image, middle_of

# Numbers for a whole image that say nothing about manipulation: what a lazy detector would learn.
IMAGE_CUES = ("brightness", "contrast", "saturation", "sharpness", "high_frequency")
FACTS_SCHEMA = pa.schema(
    [
        ("img_name", pa.string()),
        ("target", pa.int8()),  # 0 real, 1 fake, null unknown
        ("family", pa.string()),  # the manipulation method of a fake, where the list names it
        ("source", pa.string()),  # the collection that an image is from, where the list names it
        ("given_group", pa.string()),  # images of one person or source share it, where it is known
        ("video", pa.string()),  # frames of one video share it, null for a single image
        ("frame_seconds", pa.float32()),  # from the start of the video, null where not known
        ("error", pa.string()),  # why the image cannot be used, null for a good one
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("phash", pa.uint64()),  # 64-bit perceptual hash (Zauner 2010, as in ImageHash)
        ("jpeg_tables", pa.string()),  # digest of the quantisation tables, null for other formats
        ("jpeg_quality", pa.int8()),  # 1 to 100 on libjpeg's scale, from the luminance table
        ("face", pa.float32()),  # size of the largest face in pixels, 0 none, null not looked for
        *[(cue, pa.float32()) for cue in IMAGE_CUES],
    ]
)


def image_facts(
    content: bytes, max_pixels: int | None = None, find_faces: bool = True
) -> dict[str, Any]:
    """Decode an encoded image fully and return the columns of FACTS_SCHEMA that follow from it.

    Raises UnusableImage where no stage could use it. Width, height, hash, face and cues are those
    of the pixels that a model sees.
    """
    decoded = decode_image(content, max_pixels)
    image, tables = Image.fromarray(decoded.pixels), decoded.jpeg_tables
    return {
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": decoded.format,
        "mode": decoded.mode,
        "width": image.width,
        "height": image.height,
        "phash": int(str(imagehash.phash(image)), 16),
        "jpeg_tables": _tables_digest(tables) if tables else None,
        "jpeg_quality": decoded.jpeg_quality,
        "face": face_size(decoded.pixels) if find_faces else None,
        **image_cues(decoded.pixels),
    }


def face_size(pixels: np.ndarray) -> float:
    """Return the size of the largest face in an image, uint8 (H, W, 3), in pixels; 0: no face."""
    import torch  # here, because other stages use this module without it

    from stages.lib.images.faces import largest_face

    face = largest_face(torch.from_numpy(pixels).permute(2, 0, 1))
    return face.size if face else 0.0


def image_cues(pixels: np.ndarray) -> dict[str, float]:
    """Return IMAGE_CUES of an image, uint8 (H, W, 3), one number each for the whole image.

    Brightness, contrast (standard deviation) and saturation on a scale of 0 to 255, sharpness as
    the variance of the Laplacian (Pech-Pacheco et al. 2000), and the share of the spectrum's energy
    beyond half the highest frequency. Of a large image the middle counts.
    """
    image = Image.fromarray(middle_of(pixels))
    luma = np.asarray(image.convert("L"), dtype=np.float32)
    energy = np.abs(np.fft.rfft2(luma - luma.mean())) ** 2
    vertical, horizontal = np.fft.fftfreq(luma.shape[0]), np.fft.rfftfreq(luma.shape[1])
    is_high = np.maximum(np.abs(vertical)[:, None], horizontal[None]) > 0.25
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(np.asarray(image.convert("HSV"))[..., 1].mean()),
        "sharpness": float(ndimage.laplace(luma).var()),
        "high_frequency": float(energy[is_high].sum() / max(energy.sum(), 1e-9)),
    }


def _tables_digest(tables: dict[int, list[int]]) -> str:
    text = str([(number, list(table)) for number, table in sorted(tables.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
