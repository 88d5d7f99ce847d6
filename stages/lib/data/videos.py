"""Frames of videos, evenly spread, decoded one after the other.

Only what lies between a wanted frame and the key frame before it is decoded, so that a long video
takes little more time than a short one. The file is read from its beginning to its end all the
same, twice, because an index can be missing or wrong.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from stages.lib.core.errors import short
from stages.lib.core.files import open_regular
from stages.lib.data.layouts.clips import spread
from stages.lib.images.decoding import UnusableImage

# Other formats may be lists, with which a file could name other files.
ONLY_VIDEOS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    number: int  # in the video, from 0
    seconds: float  # from the first frame
    pixels: np.ndarray  # uint8 (H, W, 3), RGB, upright


@dataclass
class Packets:
    """The packets of one video in a file: when their frames are shown, and where decoding starts.

    Without a time for each packet, frames are counted as they come.
    """

    times: list[int] = field(default_factory=list)  # of the packets with a time
    key_frames: list[tuple[int, int]] = field(default_factory=list)  # number of the packet, time
    count: int = 0

    def add(self, packet: av.Packet) -> None:
        """Count a packet; one whose frame is not shown only has a number."""
        if packet.pts is not None and not packet.is_discard:
            self.times.append(packet.pts)
            if packet.is_keyframe:
                self.key_frames.append((self.count, packet.pts))
        self.count += 1

    def close(self) -> None:
        """Sort the times, or forget them where they are no order of the frames."""
        self.times.sort()
        if len(set(self.times)) < len(self.times) or not self.key_frames:
            self.times, self.key_frames = [], []

    @property
    def num_frames(self) -> int:
        """How many frames are shown, if all can be decoded."""
        return len(self.times) or self.count

    def time(self, number: int) -> int:
        """Return when a frame is shown, or its number."""
        return self.times[number] if self.times else number

    def number(self, time: int) -> int:
        """Return the number of the frame that is shown at a time."""
        return bisect_left(self.times, time) if self.times else time

    def start(self, time: int) -> int:
        """Return the number of the packet from which the frame of a time can be decoded.

        A frame that follows a key frame in the file and is shown before it needs an earlier one.
        """
        return max((packet for packet, shown in self.key_frames if shown <= time), default=0)


@dataclass(frozen=True)
class Video:
    """A video whose file is open."""

    container: InputContainer
    stream: av.VideoStream
    packets: Packets
    max_pixels: int | None  # of a frame

    @property
    def codec(self) -> str:
        """Name of the codec, such as h264."""
        return self.stream.codec_context.name

    @property
    def num_frames(self) -> int:
        """How many frames the file has."""
        return self.packets.num_frames

    @property
    def seconds(self) -> float:
        """Time from the first frame to the last one."""
        last = self.packets.time(self.num_frames - 1)
        return self.seconds_of(last - self.packets.time(0)) if self.num_frames else 0.0

    def seconds_of(self, time: int) -> float:
        """Return a time since the first frame, or a number of frames, in seconds."""
        if self.packets.times:
            return float(time * (self.stream.time_base or 0))
        return time / float(self.stream.average_rate or 1)

    def frames(self, wanted: int) -> Iterator[Frame]:
        """Yield at most `wanted` frames, evenly spread; can be called once.

        In the place of a damaged one comes the next one that can be decoded. Raises UnusableImage
        where no frame can be.
        """
        has_some = False
        with _as_unusable():
            for frame in _decoded(self, spread(self.num_frames, wanted)):
                has_some = True
                yield frame
        if not has_some:
            raise UnusableImage("a video without a frame that can be decoded")


@contextmanager
def open_video(file: BinaryIO, max_pixels: int | None) -> Iterator[Video]:
    """Yield the video in a file, which is open and has a descriptor.

    Raises UnusableImage where there is no video, or one with more than max_pixels.
    """
    with _as_unusable(), _opened(file) as container:
        packets = _read_packets(container)
    with _as_unusable():
        container = _opened(file)
    with container:
        stream = max(_films(container), key=lambda film: _rank(film, packets[film.index]))
        if not stream.codec_context:
            raise UnusableImage("a video of an unknown codec")
        _check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
        yield Video(container, stream, packets[stream.index], max_pixels)


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise UnusableImage for a frame that is too large; frames of one video may differ in size."""
    if max_pixels and width * height > max_pixels:
        raise UnusableImage(
            f"{width} x {height} pixels are more than max_megapixels, {max_pixels / 1e6:g}"
        )


def read_frames(path: Path, wanted: int, max_pixels: int | None) -> Iterator[tuple[Frame, str]]:
    """Yield the frames of a video file as Video.frames does, each with the codec of the video.

    Raises UnusableImage as open_video and Video.frames do, and OSError where the file cannot be
    opened. A video that is cut off gives frames of what can be decoded.
    """
    with (
        open_regular(path) as file,  # FFmpeg itself would wait for a pipe
        open_video(file, max_pixels) as video,
    ):
        for frame in video.frames(wanted):
            yield frame, video.codec


def tags_of(file: BinaryIO) -> dict[str, str]:
    """Return what a video file says about itself, by FFmpeg's names in small letters."""
    with suppress(av.FFmpegError, ValueError), _opened(file) as container:
        return {name.lower(): value for name, value in container.metadata.items()}
    return {}


@contextmanager
def _as_unusable() -> Iterator[None]:
    """Turn errors of FFmpeg into UnusableImage."""
    try:
        yield
    except UnusableImage:
        raise
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnusableImage(f"damaged video: {short(reason, 100)}") from None


def _opened(file: BinaryIO) -> InputContainer:
    """Open a video that is open as a file, by its descriptor."""
    file.seek(0)
    options = ONLY_VIDEOS | {"fd": str(file.fileno())}
    return av.open("fd:", "r", options=options, metadata_errors="replace")


def _films(container: InputContainer) -> list[av.VideoStream]:
    """Return the videos in a file; raises UnusableImage where there is none.

    Its cover image and the thumbnails of its chapters are such streams too, often the first ones.
    """
    films = [film for film in container.streams.video if not film.disposition & STILLS]
    if not films:
        raise UnusableImage("no video in this file")
    return films


def _rank(film: av.VideoStream, packets: Packets) -> tuple[bool, bool, int]:
    """Return how a video ranks for players: moving ones first, then the default, then size."""
    size = film.width * film.height if film.codec_context else 0
    return packets.num_frames > 1, bool(film.disposition & Disposition.default), size


def _read_packets(container: InputContainer) -> dict[int, Packets]:
    """Return the packets of each video in a file, by its number: the file's header can be wrong."""
    found = defaultdict[int, Packets](Packets)
    with suppress(av.FFmpegError):  # cut off: what came before counts
        for packet in container.demux(_films(container)):
            if packet.size:
                found[packet.stream.index].add(packet)
    for packets in found.values():
        packets.close()
    return found


def _decoded(video: Video, numbers: tuple[int, ...]) -> Iterator[Frame]:
    """Yield the frames with these numbers, until the last one or the end of what can be decoded."""
    packets, decoder = video.packets, video.stream.codec_context
    wanted = [packets.time(number) for number in numbers]
    starts = [packets.start(time) for time in wanted]
    first = packets.time(0)
    position, num_shown, is_decoding = 0, 0, False  # position: among the packets of the video
    for packet in _packets_until_cut(video):
        if not wanted:
            return
        if packet.size and not is_decoding and position < starts[0]:
            position += 1
            continue
        is_decoding = True
        position += bool(packet.size)
        for frame in _frames_of(packet):
            time = frame.pts if packets.times else num_shown
            num_shown += 1
            if wanted and time is not None and time >= wanted[0]:
                while wanted and wanted[0] <= time:
                    del wanted[0], starts[0]
                _check_size(frame.width, frame.height, video.max_pixels)
                pixels = _upright(frame.to_ndarray(format="rgb24"), frame)
                yield Frame(packets.number(time), video.seconds_of(time - first), pixels)
        if wanted and position < starts[0]:
            decoder.flush_buffers()
            is_decoding = False


def _packets_until_cut(video: Video) -> Iterator[av.Packet]:
    packets = video.container.demux(video.stream)
    with suppress(av.FFmpegError):
        yield from packets


def _frames_of(packet: av.Packet) -> list[av.VideoFrame]:
    """Return the frames that a packet completes; a damaged one is passed over, as players do."""
    with suppress(av.InvalidDataError):
        return packet.decode()
    return []


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
