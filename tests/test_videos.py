"""Videos: frames evenly spread, in every container, packed once, and judged as videos."""

import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from av.stream import Disposition
from PIL import Image

from stages import pack
from stages.lib.core.labels import FAKE, REAL
from stages.lib.data import packing, videos
from stages.lib.data.layouts.clips import spread
from stages.lib.evaluation.tables import video_rows
from stages.lib.images.decoding import UnusableImage, decode_image
from stages.lib.images.packed_images import PackedImages, read_facts
from tests.conftest import ROOT, set_params
from tests.films import RATE, repeat_film, write_film

CODECS = {"mp4": "libx264", "mov": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9"}


def read_frames(path: Path, wanted: int, max_pixels: int | None) -> list[videos.Frame]:
    return [frame for frame, _ in videos.read_frames(path, wanted, max_pixels)]


def write_video(
    path: Path,
    num_frames: int = 40,
    first: int = 0,
    size: tuple[int, int] = (160, 120),
    corner: bool = False,
) -> bytes:
    """Write a video of 25 frames a second, each brighter than the last one.

    size: width and height. corner: whether the right upper corner is dark.
    """
    width, height = size
    frames = []
    for number in range(num_frames):
        pixels = np.full((height, width, 3), min(255, first + 5 * number), np.uint8)
        pixels[: height // 4] = 250  # a bar that shows which side is up
        pixels[: height // 4, width // 2 :] = 5 if corner else 250
        frames.append(pixels)
    write_film(path, frames, CODECS[path.suffix[1:]], options={})
    return path.read_bytes()


def test_numbers_are_evenly_spread() -> None:
    assert spread(40, 4) == (5, 15, 25, 35)
    assert spread(3, 8) == (0, 1, 2)
    assert spread(0, 8) == ()
    assert spread(1, 1) == (0,)


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_of_every_container_are_those_of_the_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path)
    found = read_frames(path, 4, None)
    assert [frame.number for frame in found] == [5, 15, 25, 35]
    assert [frame.seconds for frame in found] == pytest.approx([0.2, 0.6, 1.0, 1.4], abs=1e-2)
    for frame in found:
        pixels = frame.pixels
        assert pixels.shape == (120, 160, 3)
        assert np.median(pixels[60:]) == pytest.approx(5 * frame.number, abs=4)
        assert np.median(pixels[:20]) == pytest.approx(250, abs=4)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda pixels: pixels),
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # clockwise, as telephones are held
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    ],
)
def test_a_turned_or_mirrored_video_is_shown_as_players_do(
    tmp_path: Path, matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The display matrix of an MP4 file, which is in the header of its track."""
    content, path = write_video(tmp_path / "a.mp4", 2, corner=True), tmp_path / "b.mp4"
    place = content.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    header = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + header + content[place + len(header) :])
    plain, found = (read_frames(one, 1, None)[0].pixels for one in (tmp_path / "a.mp4", path))
    assert np.array_equal(found, shown(plain))
    assert not np.array_equal(plain, plain[:, ::-1]) and not np.array_equal(plain, plain[::-1])


FILM, COVER = ("libx264", (160, 120), 12), ("mjpeg", (640, 480), 1)
Track = tuple[str, tuple[int, int], int]  # codec, size and number of frames


def write_tracks(path: Path, tracks: list[Track], default: int | None = None) -> Path:
    """Write a file with several videos, of which one may be the default one."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec, _, _ in tracks]
        for number, (stream, (codec, size, _)) in enumerate(zip(streams, tracks, strict=True)):
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if default is not None:
                stream.disposition = Disposition(number == default)
        for stream, (_, (width, height), count) in zip(streams, tracks, strict=True):
            assert isinstance(stream, av.VideoStream)
            grey = np.full((height, width, 3), 99, np.uint8)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box of an MP4 file."""
    content = b"".join(parts)
    return struct.pack(">I", len(content) + 8) + kind + content


def with_cover(path: Path) -> Path:
    """Put a cover image into an MP4 file, as music and download programs do."""
    image = BytesIO()
    Image.new("RGB", (100, 80), "lime").save(image, "JPEG")
    data = box(b"data", struct.pack(">II", 13, 0), image.getvalue())
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    cover = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", data))))
    content = path.read_bytes()
    place = content.rindex(b"moov") - 4  # the last box, so no offset changes
    path.write_bytes(content[:place] + box(b"moov", cover, content[place + 8 :]))
    return path


def test_a_cover_image_is_no_video(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", 12)
    found = read_frames(with_cover(tmp_path / "film.mp4"), 4, None)
    assert len(found) == 4 and {one.pixels.shape for one in found} == {(120, 160, 3)}
    with pytest.raises(UnusableImage, match="no video in this file"):
        read_frames(with_cover(write_sound(tmp_path / "sound.mp4")), 4, None)
    with pytest.raises(UnusableImage, match="no video in this file"):
        read_frames(write_sound(tmp_path / "sound.mov"), 4, None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_of_several_videos_the_one_that_moves_is_read(tmp_path: Path, suffix: str) -> None:
    """A cover may be a track like any other one."""
    for tracks in ([COVER, FILM], [FILM, COVER]):
        found = read_frames(write_tracks(tmp_path / f"a.{suffix}", tracks), 4, None)
        assert len(found) == 4 and {one.pixels.shape for one in found} == {(120, 160, 3)}
    (only,) = read_frames(write_tracks(tmp_path / f"b.{suffix}", [COVER]), 4, None)
    assert only.pixels.shape == (480, 640, 3)


def test_of_several_videos_the_default_one_is_read_and_else_the_largest(tmp_path: Path) -> None:
    tracks = [FILM, ("libx264", (320, 240), 9), ("libx264", (80, 60), 9)]
    for default, size in ((0, (160, 120)), (1, (320, 240)), (2, (80, 60)), (9, (320, 240))):
        path = write_tracks(tmp_path / f"{default}.mkv", tracks, default)
        assert read_frames(path, 1, None)[0].pixels.shape == (*size[::-1], 3)


def test_a_video_of_an_unknown_codec_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(write_video(path).replace(b"avc1", b"zzzz"))
    with pytest.raises(UnusableImage, match="a video of an unknown codec"):
        read_frames(path, 4, None)


def test_a_bad_video_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    content = write_video(path)
    for bad, words in (
        (b"", "damaged video: Invalid data"),
        (b"text" * 99, "damaged video"),
        (content[: len(content) // 2], "damaged video"),
    ):
        path.write_bytes(bad)
        with pytest.raises(UnusableImage, match=words):
            read_frames(path, 4, None)
    path.write_bytes(content)
    with pytest.raises(UnusableImage, match="160 x 120 pixels are more than max_megapixels, 0.01"):
        read_frames(path, 4, 10_000)


def test_a_title_in_another_encoding_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    grey = np.full((48, 64, 3), 99, np.uint8)
    write_film(path, [grey], "mpeg4", tags={"title": "Title"})
    assert b"Title" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"Title", b"T\xedtle"))
    assert len(read_frames(path, 1, None)) == 1


def test_a_list_in_place_of_a_video_reads_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "list.avi").write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    with pytest.raises(UnusableImage, match="damaged video"):
        read_frames(tmp_path / "list.avi", 4, None)


def test_a_damaged_frame_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    content = bytearray(write_video(path))
    middle = content.index(b"00dc", len(content) // 3) + 8
    content[middle : middle + 60] = bytes(60)
    path.write_bytes(content)
    assert len(read_frames(path, 8, None)) >= 7


GROUPS = {  # how frames depend on others: key frames, and frames that come before they are shown
    "h264": ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    "h264, open groups": ("a.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "hevc": ("a.mp4", "libx265", {"x265-params": "open-gop=1:keyint=12:log-level=none"}),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime"}),
    "mkv": ("a.mkv", "libx264", {"g": "12", "bf": "2"}),
    "without times": ("a.avi", "mpeg4", {"g": "12"}),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_frames_are_those_that_decoding_everything_gives(tmp_path: Path, kind: str) -> None:
    name, codec, options = GROUPS[kind]
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (6, 8, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
             for _ in range(60)]  # fmt: skip
    path = write_film(tmp_path / name, noise, codec, options)
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(everything) == 60
    for wanted in (3, 7, 60):
        found = read_frames(path, wanted, None)
        assert [frame.number for frame in found] == list(spread(60, wanted))
        for frame in found:
            assert np.array_equal(frame.pixels, everything[frame.number])
            assert frame.seconds == pytest.approx(frame.number / RATE, abs=2e-3)


def test_of_a_long_video_only_what_leads_to_a_wanted_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = [np.full((48, 64, 3), 4 * number, np.uint8) for number in range(50)]
    short = write_film(tmp_path / "short.mp4", grey, options={"g": "25", "bf": "2"})
    path = repeat_film(short, tmp_path / "long.mp4", 1200)
    decoded = []
    real = videos._frames_of
    monkeypatch.setattr(videos, "_frames_of", lambda packet: decoded.append(1) or real(packet))
    found = read_frames(path, 32, None)
    assert len(found) == 32 and found[-1].number == 59_062 and len(decoded) < 32 * 32
    assert found[-1].seconds == pytest.approx(59_062 / RATE, abs=0.1)
    for frame in found:
        assert np.median(frame.pixels) == pytest.approx(4 * (frame.number % 50), abs=4)


def test_frames_are_spread_over_their_number_where_their_times_vary(tmp_path: Path) -> None:
    times = [0, 40, 80, 1000, 1040, 3000, 3400, 3410, 3500, 9000]
    grey = [np.full((48, 64, 3), 20 * number, np.uint8) for number in range(10)]
    path = write_film(tmp_path / "a.mkv", grey, times=times)
    found = read_frames(path, 5, None)
    assert [frame.number for frame in found] == [1, 3, 5, 7, 9]
    assert [frame.seconds for frame in found] == pytest.approx([0.04, 1, 3, 3.41, 9], abs=2e-3)
    assert [np.median(frame.pixels) for frame in found] == pytest.approx(
        [20, 60, 100, 140, 180], abs=4
    )


def test_a_frame_that_is_larger_than_its_stream_says_is_refused(tmp_path: Path) -> None:
    """A stream may change its size; the first size alone would let a large frame in."""
    both = [tmp_path / "small.webm", tmp_path / "large.webm"]
    write_video(both[0], 20)
    write_video(both[1], 20, size=(640, 480))
    streams = []
    for path in both:
        with av.open(str(path)) as container:
            streams.append([bytes(packet) for packet in container.demux(video=0) if packet.size])
    with av.open(str(both[0])) as first, av.open(str(tmp_path / "a.mkv"), "w") as result:
        copy = result.add_stream_from_template(first.streams.video[0])
        for number, content in enumerate([*streams[0], *streams[1]]):
            packet = av.Packet(content)
            packet.pts = packet.dts = 40 * number
            packet.time_base, packet.stream = Fraction(1, 1000), copy
            packet.is_keyframe = number in (0, len(streams[0]))
            result.mux(packet)
    assert {frame.pixels.shape for frame in read_frames(tmp_path / "a.mkv", 4, None)} == {
        (120, 160, 3), (480, 640, 3),
    }  # fmt: skip
    with pytest.raises(UnusableImage, match="640 x 480 pixels are more than max_megapixels"):
        read_frames(tmp_path / "a.mkv", 4, 30_000)


def test_what_is_left_of_a_cut_video_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    content = write_video(path)
    path.write_bytes(content[: len(content) // 2])
    numbers = [frame.number for frame in read_frames(path, 4, None)]
    assert len(numbers) == 4 and max(numbers) < 30


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of videos in folders, which the params.yaml of the current folder names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    root = tmp_path / "videos"
    for number in range(4):
        write_video(root / f"real/{number}.mp4", first=number)
        write_video(root / f"fake/swap/{number}.avi", first=40 + number)
    (root / "fake/swap/bad.mp4").write_bytes(b"no video")
    set_params(tmp_path, {"data.root": "videos", "pack.frames_per_video": 3})
    return root


def test_videos_are_packed_as_frames_and_read_once(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack.main()
    packed = Path("data/packed/training/train")
    facts = read_facts(packed)
    good = facts[facts["error"].isna()]
    assert len(facts) == 25 and len(good) == 24
    assert facts.loc[facts["error"].notna(), "img_name"].tolist() == ["fake/swap/bad.mp4"]
    first = facts.iloc[0]
    assert (first["img_name"], first["video"]) == ("fake/swap/0.avi#6", "fake/swap/0.avi")
    assert (first["format"], first["family"], first["target"]) == ("mpeg4", "swap", FAKE)
    assert first["frame_seconds"] == pytest.approx(0.24, abs=0.01)
    assert set(good["video"].value_counts()) == {3}
    assert decode_image(bytes(PackedImages(packed)[0])).size == (160, 120)
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    shutil.rmtree("data/packed")
    read = []
    real_read = packing.read_file
    monkeypatch.setattr(
        packing,
        "read_file",
        lambda folder, row, params: read.append(row["img_name"]) or real_read(folder, row, params),
    )
    write_video(folders / "real/2.mp4", num_frames=30)
    pack.main()
    assert sorted(read) == ["fake/swap/bad.mp4", "real/2.mp4"]
    assert "packed 25 images of videos, 21 of them by an earlier run" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in packed.iterdir()}
    assert set(after) == set(before) and after != before


def test_frames_that_an_interrupted_run_has_lost_are_read_again(folders: Path) -> None:
    """A shard may end between the frames of a video."""
    pack.main()
    memory = next(Path(".dvc/tmp/pack").glob("*/*/old-00000"))
    expected = read_facts(Path("data/packed/training/train"))
    for path in memory.glob("facts-*.parquet"):
        table = pd.read_parquet(path)
        is_lost = table["img_name"] == "fake/swap/0.avi#20"
        assert is_lost.sum() == 1
        table["error"] = table["error"].mask(is_lost, "lost")
        table.to_parquet(path)
    shutil.rmtree("data/packed")
    pack.main()
    assert read_facts(Path("data/packed/training/train")).equals(expected)


def test_of_a_folder_of_frames_as_many_are_taken_as_of_a_video() -> None:
    table = pd.DataFrame(
        {"img_name": [f"{i}.png" for i in range(12)], "video": ["a"] * 10 + [None] * 2}
    )
    shuffled = table.iloc[[3, 11, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10]]
    for rows in (table, shuffled):
        chosen = packing.choose_frames(rows, 2)["img_name"]
        assert set(chosen) == {"2.png", "7.png", "10.png", "11.png"}
    many = pd.DataFrame(
        {"img_name": [f"{i}.png" for i in sorted(range(100), key=str)], "video": "a"}
    )
    assert set(packing.choose_frames(many, 2)["img_name"]) == {"25.png", "75.png"}


def test_a_video_has_the_mean_score_of_its_frames() -> None:
    table = pd.DataFrame(
        {
            "set": ["val"] * 7,
            "video": ["a", "a", "b", "b", "c", "d", None],
            "target": [REAL, REAL, FAKE, FAKE, FAKE, REAL, REAL],
            "score": [0.1, 0.7, 0.3, 0.6, 0.2, 0.1, 0.99],
            "group": [0, 0, 1, 1, 2, 3, 4],
        }
    )
    (row,) = video_rows(table)  # a 0.4, b 0.45, c 0.2, d 0.1: three of four pairs are right
    assert (row["metric"], row["value"]) == ("video_auc", 0.75)
    assert (row["num_real"], row["num_fake"]) == (2, 2)
    shared = pd.concat([table, table.assign(set="test", score=1 - table["score"])])
    assert video_rows(shared)[0]["num_real"] == 4  # another set may have the same names
    same = table.assign(video=["033"] * 6 + [None])
    assert (video_rows(same)[0]["num_real"], video_rows(same)[0]["num_fake"]) == (1, 1)
    assert video_rows(table[table["target"] == REAL]) == []
    assert video_rows(table.assign(video=None)) == []
