"""Kinds of image files: each gets the pixels that a viewer shows, or a reason, at every door."""

import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from stages.lib.data.image_facts import image_facts
from stages.lib.detector.preprocessing import Preprocessing, decode
from stages.lib.images import decoding
from stages.lib.images.decoding import GROUND, UPRIGHT, UnusableImage, decode_image

SEEN = Preprocessing(image_size=16, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3)
pillow_heif.register_heif_opener()  # to write such files
MEGAPIXEL = 1_000_000
Kind = tuple[str, bytes, Image.Image, float]  # name, file, what a viewer shows, mean error at most


def photograph() -> Image.Image:
    """Return a smooth colourful image, as a photograph is; no two of its corners are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PHOTO = photograph()
GREY = PHOTO.convert("L")
LEVELS = np.asarray(GREY)
LEVELS_16 = Image.fromarray(LEVELS.astype(np.uint16) * 257)
PNG = encoded(PHOTO, "PNG")
JPEG = encoded(PHOTO, "JPEG", quality=95)
GIF = encoded(GREY, "GIF")


def with_orientation(format: str, number: int, **options: object) -> bytes:
    """Return PHOTO as a camera stores it that was held in this way."""
    exif = Image.Exif()
    exif[0x0112] = number
    back = UPRIGHT.get({6: 8, 8: 6}.get(number, number))
    stored = PHOTO if back is None else PHOTO.transpose(back)
    return encoded(stored, format, exif=exif.tobytes(), **options)


def half_clear(hidden: tuple[int, int, int], mode: str = "RGBA") -> Image.Image:
    """Return an image of which the upper half is transparent and hides a colour."""
    pixels = np.asarray(PHOTO.convert("RGBA")).copy()
    pixels[:25] = (*hidden, 0)
    return Image.fromarray(pixels).convert(mode)


def on_ground(grey: bool = False) -> Image.Image:
    pixels = np.asarray((GREY if grey else PHOTO).convert("RGB")).copy()
    pixels[:25] = GROUND
    return Image.fromarray(pixels)


def palette_with(**options: object) -> tuple[bytes, Image.Image]:
    """Return a PNG with a palette of which entry 0 is transparent, and what it looks like."""
    image = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    clear = np.asarray(image) == 0
    shown = np.asarray(image.convert("RGB")).copy()
    shown[clear] = GROUND
    return encoded(image, "PNG", **options), Image.fromarray(shown)


def png_of(depth: int, colour: int, rows: np.ndarray) -> bytes:
    """Return a PNG of raw rows, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 60, 50, depth, colour, 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def heic_of(levels: np.ndarray) -> bytes:
    """Return a HEIC of 10 bits per channel, from 16 bits, as some telephones write it."""
    buffer = BytesIO()
    raw = levels.tobytes()
    pillow_heif.from_bytes("RGB;16", (60, 50), raw).save(buffer, quality=95, chroma=444)
    return buffer.getvalue()


def without_segment(jpeg: bytes, marker: int) -> bytes:
    """Return a JPEG without its first segment of this kind."""
    start = jpeg.index(bytes([0xFF, marker]))
    length = struct.unpack(">H", jpeg[start + 2 : start + 4])[0]
    return jpeg[:start] + jpeg[start + 2 + length :]


def with_table_numbers(jpeg: bytes) -> bytes:
    """Return a grey JPEG whose only quantisation table has number 2."""
    found = bytearray(jpeg)
    found[jpeg.index(b"\xff\xdb") + 4] = 2
    found[jpeg.index(b"\xff\xc0") + 12] = 2
    return bytes(found)


def claiming(content: bytes, width: int, height: int) -> bytes:
    """Return a JPEG or PNG that claims another size."""
    found = bytearray(content)
    if content[:2] == b"\xff\xd8":
        place = content.index(b"\xff\xc0") + 5
        found[place : place + 4] = struct.pack(">HH", height, width)
        return bytes(found)
    found[16:24] = struct.pack(">II", width, height)
    found[29:33] = struct.pack(">I", zlib.crc32(bytes(found[12:29])))
    return bytes(found)


def accepted() -> Iterator[Kind]:
    """Yield files that every viewer shows."""
    cmyk = encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)
    # Without Adobe's marker the same numbers mean the opposite.
    plain = encoded(PHOTO.convert("CMYK").point(lambda value: 255 - value), "JPEG", quality=95)
    yield "jpeg", JPEG, PHOTO, 3
    yield "jpeg grey", encoded(GREY, "JPEG", quality=95), GREY, 3
    yield "jpeg cmyk of adobe", cmyk, PHOTO, 4
    yield "jpeg cmyk without marker", without_segment(plain, 0xEE), PHOTO, 4
    yield "jpeg rgb", encoded(PHOTO, "JPEG", quality=95, keep_rgb=True), PHOTO, 3
    for name, options in {
        "progressive": {"progressive": True}, "optimised": {"optimize": True},
        "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2},
        "restart": {"restart_marker_blocks": 2}, "comment": {"comment": b"a comment"},
        "profile": {"icc_profile": b"no profile"}, "damaged exif": {"exif": b"Exif\0\0II*\0\xff"},
    }.items():  # fmt: skip
        yield f"jpeg {name}", encoded(PHOTO, "JPEG", quality=95, **options), PHOTO, 4
    yield "jpeg coarse", encoded(PHOTO, "JPEG", quality=5), PHOTO, 25
    yield "jpeg with bytes after its end", JPEG + b"more" * 100, PHOTO, 3
    yield "jpeg without end", JPEG[:-2] + bytes(16), PHOTO, 3
    yield "jpeg with table 2", with_table_numbers(encoded(GREY, "JPEG", quality=95)), GREY, 3
    yield "jpeg of two images", encoded(PHOTO, "MPO", save_all=True, append_images=[GREY],
                                          quality=95), PHOTO, 3  # fmt: skip
    for number in range(1, 9):
        yield f"jpeg orientation {number}", with_orientation("JPEG", number, quality=95), PHOTO, 3
        yield f"png orientation {number}", with_orientation("PNG", number), PHOTO, 0
        lossless = with_orientation("WEBP", number, lossless=True)
        yield f"webp orientation {number}", lossless, PHOTO, 0
        yield f"tiff orientation {number}", with_orientation("TIFF", number), PHOTO, 0
        turned = with_orientation("HEIF", number, quality=95, chroma=444)
        yield f"heic orientation {number}", turned, PHOTO, 3
    yield "jpeg orientation 9", with_orientation("JPEG", 9, quality=95), PHOTO, 3
    for mode in ("RGB", "L", "1", "P"):
        image = PHOTO.convert(mode)
        for format in ("PNG", "BMP", "TIFF"):
            yield f"{format.lower()} {mode}", encoded(image, format), image, 0
    yield "png 16-bit grey", encoded(LEVELS_16, "PNG"), GREY, 0
    wide = np.asarray(PHOTO).astype(">u2") * 257
    yield "png 16-bit rgb", png_of(16, 2, wide.astype(">u2")), PHOTO, 0
    yield "png rgba opaque", encoded(PHOTO.convert("RGBA"), "PNG"), PHOTO, 0
    for name, colour in {"white": (255, 255, 255), "magenta": (255, 0, 255)}.items():
        for format, options in {"PNG": {}, "WEBP": {"lossless": True, "exact": True},
                                "TIFF": {}, "AVIF": {"quality": 100}}.items():  # fmt: skip
            content = encoded(half_clear(colour), format, **options)
            yield f"{format.lower()} hides {name}", content, on_ground(), 4
        yield f"png grey hides {name}", encoded(half_clear(colour, "LA"), "PNG"), on_ground(True), 1
    yield "png palette with a clear entry", *palette_with(transparency=0), 0
    yield "png palette with clear bytes", *palette_with(transparency=bytes([0] + [255] * 15)), 0
    yield "png rgb with a clear colour", encoded(PHOTO, "PNG", transparency=(1, 2, 3)), PHOTO, 1
    yield "png grey with a clear level", encoded(GREY, "PNG", transparency=256), GREY, 0
    yield "png interlaced none", png_of(8, 2, np.asarray(PHOTO)), PHOTO, 0
    yield "png animated", encoded(PHOTO, "PNG", save_all=True, append_images=[GREY]), PHOTO, 0
    yield "webp", encoded(PHOTO, "WEBP", quality=95), PHOTO, 4
    yield "webp grey", encoded(GREY.convert("RGB"), "WEBP", lossless=True), GREY, 0
    yield "webp animated", encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO],
                                   lossless=True), PHOTO, 0  # fmt: skip
    shown = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE)
    yield "gif", encoded(shown, "GIF"), shown, 0
    yield "gif grey", encoded(GREY, "GIF"), GREY, 0
    yield "gif animated", encoded(shown, "GIF", save_all=True, append_images=[GREY]), shown, 0
    yield "tiff 16-bit grey", encoded(LEVELS_16, "TIFF"), GREY, 0
    yield "tiff cmyk", encoded(PHOTO.convert("CMYK"), "TIFF"), PHOTO, 1
    yield "tiff lzw", encoded(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO, 0
    yield "tiff deflate", encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"), PHOTO, 0
    yield "tiff jpeg", encoded(PHOTO, "TIFF", compression="jpeg", quality=95), PHOTO, 4
    pages = encoded(PHOTO, "TIFF", save_all=True, append_images=[GREY])
    yield "tiff of two pages", pages, PHOTO, 0
    yield "avif", encoded(PHOTO, "AVIF", quality=95), PHOTO, 4
    yield "jpeg 2000", encoded(PHOTO, "JPEG2000"), PHOTO, 1
    yield "jpeg 2000 grey", encoded(GREY, "JPEG2000"), GREY, 1
    yield "heic grey", encoded(GREY, "HEIF", quality=95), GREY, 3
    yield "heic 10-bit", heic_of(wide.astype("<u2")), PHOTO, 5
    clear = half_clear((0, 0, 255))
    yield "heic clear", encoded(clear, "HEIF", quality=95, chroma=444), on_ground(), 3
    yield "heic of two images", encoded(PHOTO, "HEIF", save_all=True, append_images=[GREY],
                                          quality=95, chroma=444), PHOTO, 3  # fmt: skip
    yield "ppm", encoded(PHOTO, "PPM"), PHOTO, 0
    yield "pgm", encoded(GREY, "PPM"), GREY, 0
    deep = (LEVELS.astype(">u2") * 257).astype(">u2").tobytes()
    yield "pgm 16-bit", b"P5 60 50 65535\n" + deep, GREY, 0
    for size in ((1, 1), (3, 2), (1, 200)):
        small = PHOTO.resize(size)
        yield f"png {size}", encoded(small, "PNG"), small, 0
        yield f"jpeg {size}", encoded(small, "JPEG", quality=95, subsampling=0), small, 8


REFUSED = {
    "nothing": (b"", "empty file"),
    "text": (b"no image", "not an image"),
    "page": (b"<!doctype html><html></html>", "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "pdf": (encoded(PHOTO, "PDF"), "not an image"),
    "postscript": (encoded(PHOTO, "EPS"), "not an image"),  # would start another program
    "icon": (encoded(PHOTO, "ICO"), "not an image"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "damaged HEIC"),
    "half a heic": (encoded(PHOTO, "HEIF")[:600], "damaged: "),
    "zip": (b"PK\x03\x04" + bytes(60), "not an image"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "damaged: image file is truncated"),
    "start of a jpeg": (JPEG[:3], "not an image"),
    "half a png": (PNG[: len(PNG) // 2], "damaged"),
    "start of a png": (PNG[:8], "not an image"),
    "png with a wrong sum": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "half a webp": (encoded(PHOTO, "WEBP")[:300], "damaged"),
    "half a gif": (GIF[:900], "damaged"),
    "half a tiff": (encoded(PHOTO, "TIFF")[:900], "damaged"),
    "half a bmp": (encoded(PHOTO, "BMP")[:900], "damaged"),
    "half an avif": (encoded(PHOTO, "AVIF")[:300], ""),
    "half a jpeg 2000": (encoded(PHOTO, "JPEG2000")[:900], "damaged"),
    "half a ppm": (encoded(PHOTO, "PPM")[:900], "damaged"),
    "tiff 32-bit": (encoded(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), "32-bit integers"),
    "tiff float": (encoded(Image.fromarray(LEVELS / np.float32(255)), "TIFF"), "floating point"),
    "tiff lab": (encoded(Image.new("LAB", (20, 20)), "TIFF"), "pixels are LAB"),
    "png claims 13,000 x 13,000": (claiming(PNG, 13_000, 13_000), "13000 x 13000 pixels are more"),
    "jpeg claims 30,000 x 30,000": (claiming(JPEG, 30_000, 30_000), "30000 x 30000 pixels"),
    "gif claims 60,000 x 60,000": (GIF[:6] + struct.pack("<HH", 60_000, 60_000) + GIF[10:],
                                   "60000 x 60000 pixels"),
    "ppm claims 50,000 x 50,000": (b"P6 50000 50000 255\n" + bytes(99), "50000 x 50000 pixels"),
}  # fmt: skip
ACCEPTED = list(accepted())


def test_without_its_package_heic_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(PHOTO, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding._knows_heic.cache_clear()
    with pytest.raises(UnusableImage, match="HEIC needs a package: pip install pillow-heif"):
        decode_image(content)
    monkeypatch.undo()
    decoding._knows_heic.cache_clear()
    assert decode_image(content).format == "HEIF"


def test_there_are_many_kinds() -> None:
    assert len({name for name, *_ in ACCEPTED}) == len(ACCEPTED)
    assert len(ACCEPTED) + len(REFUSED) >= 95


@pytest.mark.parametrize(
    ("content", "shown", "tolerance"),
    [kind[1:] for kind in ACCEPTED],
    ids=[kind[0] for kind in ACCEPTED],
)
def test_pixels_are_what_a_viewer_shows_at_every_door(
    content: bytes, shown: Image.Image, tolerance: float
) -> None:
    expected = np.asarray(shown.convert("RGB")).astype(int)
    pixels = decode_image(content, MEGAPIXEL).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() <= tolerance
    assert np.array_equal(decode(memoryview(content), SEEN).pixels, pixels)
    scaled = decode(content, SEEN.model_copy(update={"scaled_decoding": True})).tensor
    assert abs(scaled.float().mean() - pixels.mean()) <= 3
    facts = image_facts(content, MEGAPIXEL)
    assert (facts["height"], facts["width"]) == pixels.shape[:2]
    assert facts["brightness"] == pytest.approx(grey_of(pixels), abs=1)


def grey_of(pixels: np.ndarray) -> float:
    return float(np.asarray(Image.fromarray(pixels).convert("L")).mean())


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_refused_has_one_reason_at_every_door(content: bytes, reason: str) -> None:
    scaled = SEEN.model_copy(update={"scaled_decoding": True})
    for door in (
        lambda: decode_image(content, MEGAPIXEL),
        lambda: decode(content, SEEN, MEGAPIXEL),
        lambda: decode(content, scaled, MEGAPIXEL),
        lambda: image_facts(content, MEGAPIXEL),
    ):
        with pytest.raises(UnusableImage, match=reason) as error:
            door()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_a_jpeg_padded_with_zeros_is_the_same_at_every_door() -> None:
    """A viewer shows its upper part. What counts is that no stage dies of it."""
    content = JPEG[: len(JPEG) * 9 // 10] + bytes(4096)
    pixels = decode_image(content).pixels
    assert np.array_equal(decode(content, SEEN).pixels, pixels)
    assert np.abs(pixels[:30].astype(int) - np.asarray(PHOTO)[:30]).mean() < 4


def test_mutated_files_are_decoded_or_refused() -> None:
    random = np.random.default_rng(0)
    files = [
        JPEG,
        PNG,
        *(encoded(PHOTO, name) for name in ("WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")),
    ]
    refused = 0
    for number in range(1400):
        content = bytearray(files[number % len(files)])
        for place in random.integers(0, len(content), random.integers(1, 8)):
            content[place] = random.integers(256)
        if number % 3 == 0:
            del content[random.integers(1, len(content)) :]
        try:
            pixels = decode_image(bytes(content), MEGAPIXEL).pixels
            assert pixels.ndim == 3
        except UnusableImage as error:
            refused += 1
            assert "\n" not in str(error)
    assert 300 < refused < 1300
