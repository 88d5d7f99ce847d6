"""Videos for the tests: moving faces, and streams of every awkward kind."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image

RATE = 25  # frames a second


def write_film(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write frames, uint8 (H, W, 3), as a video; times: of each frame, in 1/1000 s.

    options: of the codec; those of the fastest H.264 where there are none. tags: of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata.update(tags or {})
        stream = None
        for number, pixels in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=RATE)
                assert isinstance(stream, av.VideoStream)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {**({"preset": "ultrafast"} if options is None else options)}
                if times:
                    stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        assert stream
        container.mux(stream.encode())
    return path


def repeat_film(source: Path, target: Path, repeats: int) -> Path:
    """Write a long video of the packets of a short one, without encoding it again."""
    with av.open(str(source)) as container, av.open(str(target), "w") as result:
        stream = container.streams.video[0]
        copy = result.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = sorted(packet.pts or 0 for packet in packets)
        length = len(times) * (times[1] - times[0])
        for turn in range(repeats):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts = (packet.pts or 0) + turn * length
                again.dts = (packet.dts or 0) + turn * length
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                again.time_base = packet.time_base
                result.mux(again)
    return target


def faces_of(pipeline: Path, count: int, side: int = 160) -> list[np.ndarray]:
    """Return drawn faces that YuNet finds, uint8 (side, side, 3)."""
    labels = pd.read_csv(pipeline / "data/labels/val.csv")
    folder = pipeline / "data/raw/sample/phase1/valset"
    names = labels.sort_values("face", ascending=False)["img_name"].iloc[:count]
    images = [Image.open(folder / name).convert("RGB").resize((side, side)) for name in names]
    return [np.array(image) for image in images]


def scene(
    faces: Sequence[tuple[np.ndarray, int, int]],
    num_frames: int,
    size: tuple[int, int] = (640, 240),
) -> list[np.ndarray]:
    """Return frames in which faces move; faces: each with its first left edge and its steps."""
    width, height = size
    frames = []
    for number in range(num_frames):
        pixels = np.full((height, width, 3), 90, np.uint8)
        for face, left, step in faces:
            side, start = face.shape[0], left + step * number
            pixels[20 : 20 + side, start : start + side] = face
        frames.append(pixels)
    return frames
