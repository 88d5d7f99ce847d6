"""Frames of videos, evenly spread, as PNG files: without another loss of quality."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image

from stages.lib.core.errors import short
from stages.lib.core.files import open_regular
from stages.lib.data.layouts.clips import spread
from stages.lib.images.decoding import UnusableImage

# Other formats may be lists, with which a file could name other files.
ONLY_VIDEOS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails
PNG_LEVEL = 1  # of zlib: three times faster than 6 and 10 % larger


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    number: int  # in the video, from 0
    seconds: float  # from its start
    codec: str  # of the video, such as h264
    content: bytes  # a PNG file, upright


def read_frames(path: Path, wanted: int, max_pixels: int | None) -> list[Frame]:
    """Return at most `wanted` frames of a video file, evenly spread.

    Raises UnusableImage where it is no video, has no frame, or one with too many pixels, and
    OSError where it cannot be opened. A video that is cut off gives frames of what can be decoded.
    """
    with open_regular(path) as file:  # FFmpeg itself would wait for a pipe
        try:
            frames = _read_frames(file, wanted, max_pixels)
        except UnusableImage:
            raise
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnusableImage(f"damaged video: {short(reason, 100)}") from None
    if not frames:
        raise UnusableImage("a video without a frame that can be decoded")
    return frames


def _read_frames(file: BinaryIO, wanted: int, max_pixels: int | None) -> list[Frame]:
    with _opened(file) as container:
        counts = _count(container)
    with _opened(file) as container:
        stream = max(_films(container), key=lambda film: _rank(film, counts[film.index]))
        if not stream.codec_context:
            raise UnusableImage("a video of an unknown codec")
        width, height = stream.codec_context.width, stream.codec_context.height
        if max_pixels and width * height > max_pixels:
            raise UnusableImage(
                f"{width} x {height} pixels are more than max_megapixels, {max_pixels / 1e6:g}"
            )
        numbers = set(spread(counts[stream.index], wanted))
        return list(_decoded(container, stream, numbers))


def _opened(file: BinaryIO) -> InputContainer:
    """Open a video that is open as a file, by its descriptor."""
    file.seek(0)
    return av.open("fd:", "r", options=ONLY_VIDEOS | {"fd": str(file.fileno())})


def _films(container: InputContainer) -> list[av.VideoStream]:
    """Return the videos in a file; raises UnusableImage where there is none.

    Its cover image and the thumbnails of its chapters are such streams too, often the first ones.
    """
    films = [film for film in container.streams.video if not film.disposition & STILLS]
    if not films:
        raise UnusableImage("no video in this file")
    return films


def _rank(film: av.VideoStream, count: int) -> tuple[bool, bool, int]:
    """Return how a video ranks for players: moving ones first, then the default, then size."""
    size = film.width * film.height if film.codec_context else 0
    return count > 1, bool(film.disposition & Disposition.default), size


def _count(container: InputContainer) -> Counter[int]:
    """Return how many frames each video in a file has, by its packets: its header can be wrong."""
    counts, packets = Counter[int](), container.demux(_films(container))
    with suppress(av.FFmpegError):  # cut off: what came before counts
        for packet in packets:
            counts[packet.stream.index] += bool(packet.size)
    return counts


def _decoded(
    container: InputContainer, stream: av.VideoStream, numbers: set[int]
) -> Iterator[Frame]:
    """Yield the frames with these numbers, until the last one or the end of what can be decoded."""
    last, start = max(numbers, default=-1), None
    for number, frame in enumerate(_frames(container, stream)):
        start = frame.time if start is None else start
        if number in numbers:
            pixels = _upright(frame.to_ndarray(format="rgb24"), frame)
            seconds = (frame.time or 0.0) - (start or 0.0)
            yield Frame(number, seconds, stream.codec_context.name, _png(pixels))
        if number >= last:
            return


def _frames(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames that can be decoded; a damaged one is passed over, as players do."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):  # the end, or what was cut off
            return
        with suppress(av.InvalidDataError):
            yield from packet.decode()


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Return uint8 (H, W, 3) turned and mirrored as the file says, by its display matrix.

    A pixel (x, y) is shown at (a x + c y, b x + d y), where the matrix begins with (a, b), (c, d).
    """
    if "DISPLAYMATRIX" not in frame.side_data:
        return pixels
    matrix: Any = frame.side_data["DISPLAYMATRIX"]  # nine numbers, as bytes
    (a, b), (c, d) = np.frombuffer(bytes(matrix), dtype=np.int32).reshape(3, 3)[:2, :2]
    across, down = a, d
    if abs(a) < abs(b):
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return pixels[::-1] if down < 0 else pixels


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
