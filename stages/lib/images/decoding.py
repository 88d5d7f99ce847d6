"""From the bytes of an image file to the pixels that a viewer shows: one decoder for all stages.

What `pack` has accepted is decoded by this code wherever it is used later. Pillow reads the header
and decodes; simplejpeg decodes JPEGs without errors to the same pixels, faster; pillow-heif decodes
HEIC where it is installed. What has no certain meaning as 8-bit RGB is refused.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from stages.lib.core.errors import short

if TYPE_CHECKING:
    import torch

# Of all that Pillow knows: formats of images, none that starts another program or has pages.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".jp2", ".ppm", ".pgm", ".mpo", ".heic", ".heif",
}  # fmt: skip
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRANSPOSING = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
PLAIN_MODES = ("1", "L", "P", "RGB", "YCbCr", "CMYK")  # 8 bits, without transparency
CLEAR_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
GROUND = (255, 255, 255)  # what shows through where an image is transparent
LARGEST_SIDE = 2048  # pixels that middle_of leaves


class UnusableImage(ValueError):
    """An image file that cannot be decoded, or whose pixels have no certain meaning."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image file."""

    pixels: np.ndarray  # uint8 (H, W, 3), RGB, upright
    format: str  # Pillow's name, such as JPEG
    mode: str  # Pillow's name, of the file
    size: tuple[int, int]  # width and height of the file, upright; `pixels` may be fewer
    jpeg_tables: dict[int, list[int]] | None  # quantisation tables of a JPEG, by number

    @property
    def tensor(self) -> "torch.Tensor":
        """The pixels as PyTorch has them, uint8 (3, H, W), in the same memory."""
        import torch  # here, because other stages use this module without it

        return torch.from_numpy(self.pixels).permute(2, 0, 1)

    @property
    def jpeg_quality(self) -> int | None:
        """The quality, 1 to 100, whose luminance table in libjpeg is the closest; None: no JPEG."""
        if not self.jpeg_tables:
            return None
        luminance = self.jpeg_tables[min(self.jpeg_tables)]
        return 1 + int(np.abs(_libjpeg_tables() - luminance).sum(axis=1).argmin())


def decode_image(
    content: bytes | memoryview, max_pixels: int | None = None, at_least: int | None = None
) -> DecodedImage:
    """Decode an image file; raises UnusableImage with a reason in one line.

    max_pixels: a larger image is refused before it is decoded. at_least: a JPEG of twice as many
    pixels on its shorter side, or more, is decoded at a half, a quarter or an eighth of its size.
    """
    if not len(content):
        raise UnusableImage("empty file")
    # The limit is ours, before anything is decoded; Pillow's own one is a warning first.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(BytesIO(content), formats=formats_of(content)) as image:
            if max_pixels and image.width * image.height > max_pixels:
                raise UnusableImage(
                    f"{image.width} x {image.height} pixels are more than max_megapixels, "
                    f"{max_pixels / 1e6:g}"
                )
            tables = dict(getattr(image, "quantization", None) or {}) or None
            format, mode = str(image.format), image.mode  # converting it forgets them
            pixels = _decode_jpeg(content, image, at_least)
            if pixels is None:
                image.load()
                pixels = np.array(_to_rgb(image))
            turn = _turn(image)
            size = image.size[::-1] if turn in TRANSPOSING else image.size
            return DecodedImage(_turned(pixels, turn), format, mode, size, tables)
    except (UnusableImage, ImportError, MemoryError):
        raise
    except UnidentifiedImageError:
        if not _is_heic(content):
            raise UnusableImage("not an image of a known format") from None
        if not _knows_heic():
            raise UnusableImage("HEIC needs a package: pip install pillow-heif") from None
        raise UnusableImage("damaged HEIC") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = short(error, 150) or type(error).__name__
        raise UnusableImage(f"damaged: {reason}") from error


def is_plain_jpeg(content: bytes | memoryview) -> bool:
    """Return whether any decoder sees the file as a viewer does: an upright JPEG in YCbCr."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(BytesIO(content), formats=formats_of(content)) as image:
        return (
            image.format in ("JPEG", "MPO")
            and image.mode == "RGB"
            and image.info.get("adobe_transform", 1) == 1
            and _turn(image) is None
        )


def middle_of(pixels: np.ndarray) -> np.ndarray:
    """Return the middle of an image, (H, W, ...), of at most LARGEST_SIDE pixels each way.

    Nothing is scaled, because that would hide the traces that are looked for.
    """
    height, width = (min(side, LARGEST_SIDE) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def decoders() -> dict[str, str]:
    """Return the version of each package that decodes image files here."""
    versions = {name: version(name) for name in ("pillow", "simplejpeg")}
    try:
        return versions | {"pillow-heif": version("pillow-heif")}
    except PackageNotFoundError:  # then HEIC is refused
        return versions


def formats_of(content: bytes | memoryview) -> tuple[str, ...]:
    """Return the formats that Pillow may take an image file for."""
    return (*FORMATS, "HEIF") if _is_heic(content) and _knows_heic() else FORMATS


def _is_heic(content: bytes | memoryview) -> bool:
    return content[4:8] == b"ftyp" and bytes(content[8:12]) in HEIC_BRANDS


@cache
def _knows_heic() -> bool:
    """Teach Pillow to read HEIC; returns whether pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _decode_jpeg(
    content: bytes | memoryview, image: Image.Image, at_least: int | None
) -> np.ndarray | None:
    """Return uint8 (H, W, 3) of a JPEG, or None where Pillow has to decode the file."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    import simplejpeg  # here, so that all code can be imported without it

    factor = min(image.size) // at_least if at_least else 1
    divisor = 2 ** min(3, max(0, factor.bit_length() - 1))
    width, height = (-(-side // divisor) for side in image.size)
    try:
        return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, strict=True)
    except ValueError:  # an error that a viewer may overlook
        return None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn the image upright, by the EXIF orientation of the file."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # viewers show an image with damaged EXIF as it is
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turned(pixels: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as 8-bit RGB; raises UnusableImage where that has no certain meaning.

    Transparent parts show GROUND, so that hidden colours decide nothing.
    """
    if image.mode in CLEAR_MODES or "transparency" in image.info:
        clear = image.convert("RGBA")
        ground = Image.new("RGBA", clear.size, (*GROUND, 255))
        return Image.alpha_composite(ground, clear).convert("RGB")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every such JPEG for Adobe's, which are inverted.
        return image.point(lambda value: 255 - value).convert("RGB")
    if image.mode in PLAIN_MODES:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey = np.asarray(image).astype(np.float32) / 257  # from 65,535 levels to 255
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    kind = {"I": "32-bit integers", "F": "floating point numbers"}.get(image.mode, image.mode)
    raise UnusableImage(f"pixels are {kind}; save the image with 8 bits per channel in RGB")


@cache
def _libjpeg_tables() -> np.ndarray:
    """Return the luminance tables of libjpeg for the qualities 1 to 100: int (100, 64)."""
    tables = []
    for quality in range(1, 101):
        buffer = BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            tables.append(image.quantization[0])  # pyrefly: ignore[missing-attribute]
    return np.array(tables)
