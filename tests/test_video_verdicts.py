"""Verdicts on videos: persons and not frames, the scores of predict, and every kind of bad file."""

import csv
import json
import struct
import sys
from io import BytesIO, StringIO
from pathlib import Path

import av
import c2pa
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from stages.lib.core.labels import FAKE, REAL
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.packing import pack_images
from stages.lib.data.params import PackParams
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.inference import ChangedImages
from stages.lib.evaluation.verdict_rules import VideoRules
from stages.lib.evaluation.verdicts import VerdictParams, verdict_table, with_verdicts
from stages.lib.evaluation.video_verdicts import choose_video_rules, videos_of
from stages.lib.images.decoding import UnusableImage
from stages.lib.images.faces import Face
from stages.lib.images.packed_images import read_facts
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.persons import MOST_MISSED, follow
from stages.lib.verdict.results import VideoVerdict
from stages.lib.verdict.video_provenance import read_video_provenance
from stages.lib.verdict.videos import examine_video
from stages.tools import detect
from tests.conftest import copy_detector
from tests.films import faces_of, repeat_film, scene, write_film
from tests.test_verdict import RULES, THRESHOLDS, signer_and_manifest
from tests.test_videos import box, write_sound, write_video

FOR_VIDEOS = VideoRules(
    thresholds=THRESHOLDS.model_copy(
        update={"fake_from": 0.9, "real_below": 0.1, "middle": 0.5, "counted": "videos"}
    ),
    farthest=2.0,
)


@pytest.fixture(scope="module")
def detector(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector that is believed."""
    return copy_detector(pipeline, tmp_path_factory.mktemp("video") / "detector", doubt=None)


@pytest.fixture(scope="module")
def examiner(detector: Path) -> Examiner:
    return Examiner(detector, set_up_hardware("cpu", 1), crop=True, max_pixels=10_000_000)


@pytest.fixture(scope="module")
def films(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of one person and one of two."""
    folder = tmp_path_factory.mktemp("films")
    first, second, third = faces_of(pipeline, 3)
    write_film(folder / "one.mp4", scene([(first, 40, 3)], 50))
    write_film(folder / "two.mp4", scene([(second, 20, 2), (third, 400, -2)], 50))
    return folder


def examined(examiner: Examiner, path: Path, wanted: int = 8) -> VideoVerdict:
    with path.open("rb") as file:
        return examine_video(examiner, file, wanted)


def face(left: float, top: float = 0.0, size: float = 100.0) -> Face:
    points = np.array([(0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.8)])
    return Face(left, top, size, size, np.array([left, top]) + size * points, 0.9)


def test_a_person_is_followed_by_the_place_of_the_face() -> None:
    walking = [[face(10 * number), face(800 - 15 * number)] for number in range(8)]
    swapped = [faces[::-1] if number % 2 else faces for number, faces in enumerate(walking)]
    for frames in (walking, swapped):
        persons = follow(frames)
        assert [len(person) for person in persons] == [8, 8]
        for person in persons:
            steps = np.diff([seen.face.left for seen in person])
            assert np.allclose(steps, steps[0])
    near = [[face(0), face(60)], [face(50), face(110)]]  # each overlaps with both
    assert [[seen.face.left for seen in person] for person in follow(near)] == [[0, 50], [60, 110]]


def test_a_person_who_is_not_seen_for_a_while_is_the_same_one_and_elsewhere_another_one() -> None:
    gap: list[list[Face]] = [[]] * MOST_MISSED
    assert len(follow([[face(0)], *gap, [face(10)]])) == 1
    assert len(follow([[face(0)], *gap, [], [face(10)]])) == 2
    assert len(follow([[face(0)], [face(500)]])) == 2
    assert len(follow([[face(0)], [face(20, size=60)]])) == 1
    assert follow([]) == follow([[], []]) == []


def test_each_person_has_a_verdict_from_the_mean_logit_of_its_frames(
    examiner: Examiner, films: Path
) -> None:
    verdict = examined(examiner, films / "two.mp4")
    assert (verdict.format, verdict.width, verdict.height) == ("h264", 640, 240)
    assert (verdict.num_frames, verdict.frames_wanted, verdict.frames_judged) == (50, 8, 8)
    assert verdict.seconds == pytest.approx(49 / 25, abs=1e-3)
    left, right = sorted(verdict.persons, key=lambda person: person.frames[0].box or [])
    for person in (left, right):
        logits = np.array([frame.logit for frame in person.frames])
        assert len(logits) == 8 and person.logit == pytest.approx(logits.mean())
        assert person.score == pytest.approx(expit(person.logit))
        assert person.deviation == pytest.approx(logits.std()) and person.deviation > 0
        sides = logits >= logit(examiner.rules.thresholds.middle)
        assert person.same_side == max(sides.mean(), 1 - sides.mean())
        assert person.lowest <= person.score <= person.highest
    assert np.diff([frame.box[0] for frame in left.frames if frame.box]).min() > 0
    assert np.diff([frame.box[0] for frame in right.frames if frame.box]).max() < 0
    ranking = ["real", "unsure", "fake"]
    assert verdict.verdict == max((left.verdict, right.verdict), key=ranking.index)
    assert verdict.probability == max(left.probability or 0, right.probability or 0)


def test_the_scores_are_those_of_pack_and_predict_for_the_same_frames(
    examiner: Examiner, films: Path, tmp_path: Path
) -> None:
    columns = ("label", "family", "source", "group", "video", "split")
    rows = pd.DataFrame([{"img_name": "one.mp4", "target": FAKE} | dict.fromkeys(columns)])
    params = PackParams(
        shard_mb=9, max_megapixels=9, outside="refuse", frames_per_video=8, find_faces=True,
        num_threads=1,
    )  # fmt: skip
    packed = tmp_path / "training/train"
    packed.mkdir(parents=True)
    pack_images(ImageSet("train", films, rows, None), packed, params)
    facts = read_facts(packed).assign(set="training/train", row=range(8))
    images = ChangedImages(facts, tmp_path, examiner.preprocessing)
    logits, distances = examiner.inference.scores_of(images, 0, "scores")
    (person,) = examined(examiner, films / "one.mp4").persons
    assert [frame.number for frame in person.frames] == [
        int(name.rpartition("#")[2]) for name in facts["img_name"]
    ]
    assert [frame.logit for frame in person.frames] == pytest.approx(
        logits[:, 0].tolist(), abs=1e-4
    )
    assert person.logit == pytest.approx(float(logits[:, 0].mean()), abs=1e-4)
    assert person.lowest == pytest.approx(
        expit(float(logits[:, 1:].min(dim=1)[0].mean())), abs=1e-4
    )
    assert person.distance == pytest.approx(float(distances.mean()), abs=1e-4)


def test_the_thresholds_of_videos_apply_where_there_are_some(
    examiner: Examiner, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examined(examiner, films / "one.mp4").thresholds_of == "images"
    monkeypatch.setattr(examiner, "rules", examiner.rules.model_copy(update={"videos": FOR_VIDEOS}))
    verdict = examined(examiner, films / "one.mp4")
    assert verdict.thresholds_of == "videos"
    (person,) = verdict.persons
    temperature = FOR_VIDEOS.thresholds.temperature
    assert person.probability == pytest.approx(expit(person.logit / temperature))
    assert "calibration videos of reals" in FOR_VIDEOS.thresholds.in_words("fake")


def frames_table(num_videos: int) -> pd.DataFrame:
    """Return four scored frames of each of some videos, real and fake ones, and two images."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(num_videos):
        target = number % 2
        for _ in range(4):
            value = random.normal(3 * target - 1.5, 2)
            rows.append({"video": f"{number}.mp4", "target": target, "logit": value,
                         "group": number})  # fmt: skip
    rows += [{"video": None, "target": target, "logit": 0.0, "group": -1} for target in (0, 1)]
    table = pd.DataFrame(rows)
    return table.assign(
        set="val", low=table["logit"] - 0.1, high=table["logit"] + 0.1, distance=1.0, face=100.0,
        width=200, height=200, jpeg_quality=np.nan, family=None, source=None,
        score=expit(table["logit"]),
    )  # fmt: skip


def test_thresholds_of_videos_are_chosen_where_there_are_enough() -> None:
    params = VerdictParams(false_alarms=0.02, misses=0.05)
    table = frames_table(400)
    rules = choose_video_rules(table, params, "balanced_accuracy")
    assert rules and rules.thresholds.counted == "videos" and rules.farthest == 1.0
    limits, videos = rules.thresholds, videos_of(table)
    assert (limits.num_real, limits.num_fake) == (200, 200) and len(videos) == 400
    reals, fakes = videos[videos["target"] == REAL], videos[videos["target"] == FAKE]
    assert (reals["score"] >= limits.fake_from).mean() <= 0.02
    assert (fakes["score"] < limits.real_below).mean() <= 0.05
    frame = table[table["video"] == "0.mp4"]
    video = videos[videos["video"] == "0.mp4"].iloc[0]
    for name in ("logit", "low", "high", "distance"):
        assert video[name] == pytest.approx(frame[name].mean())
    assert video["score"] == pytest.approx(expit(frame["logit"].mean()))
    assert choose_video_rules(frames_table(98), params, "balanced_accuracy") is None  # 49 reals
    assert choose_video_rules(frames_table(100), params, "balanced_accuracy")
    assert choose_video_rules(table.assign(video=None), params, "balanced_accuracy") is None


def test_the_table_of_verdicts_has_the_videos_of_each_set() -> None:
    rules, table = RULES.model_copy(update={"videos": FOR_VIDEOS}), frames_table(40)
    decided = {"val": with_verdicts(table, rules), "images": with_verdicts(table, rules)}
    videos = {"val": with_verdicts(videos_of(table), rules.for_videos())}
    verdicts = verdict_table(decided, videos, rules, [128], [50])
    rows = verdicts[verdicts["slice"] == "videos"]
    assert rows["set"].tolist() == ["val"]
    assert rows[["num_real", "num_fake"]].to_numpy().tolist() == [[20, 20]]
    called = videos_of(table)["score"] >= FOR_VIDEOS.thresholds.middle
    expected = (called != videos_of(table)["target"]).mean()
    assert rows["wrong"].item() == pytest.approx(expected)


def test_bad_and_unusual_files_get_the_right_answer_or_one_line(
    examiner: Examiner, films: Path, pipeline: Path, tmp_path: Path
) -> None:
    whole = (films / "one.mp4").read_bytes()
    bad = {
        "text.mp4": b"text" * 99,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 2],  # its index is at the end
        "image.mp4": next((pipeline / "data/raw/sample/phase1/valset").iterdir()).read_bytes(),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnusableImage, match="damaged video"):
            examined(examiner, tmp_path / name)
    with pytest.raises(UnusableImage, match="no video in this file"):
        examined(examiner, write_sound(tmp_path / "sound.mp4"))
    (tmp_path / "zero.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    with pytest.raises(UnusableImage, match="a video of an unknown codec"):
        examined(examiner, tmp_path / "zero.mp4")
    face, *_ = faces_of(pipeline, 1)
    moving = scene([(face, 40, 3)], 30)
    hevc = write_film(tmp_path / "a.mov", moving, "libx265", {"x265-params": "log-level=none"})
    assert examined(examiner, hevc, 4).format == "hevc"
    early = write_film(tmp_path / "b.webm", moving * 4, "libvpx-vp9", {"deadline": "realtime"})
    content = early.read_bytes()
    early.write_bytes(content[: 2 * len(content) // 3])
    assert 1 <= examined(examiner, early, 4).frames_judged <= 4
    times = [40 * number + (900 if number > 20 else 0) for number in range(30)]
    varying = examined(examiner, write_film(tmp_path / "c.mkv", moving, times=times), 4)
    assert varying.frames_judged == 4 and varying.seconds == pytest.approx(2.06, abs=0.01)
    long = repeat_film(films / "one.mp4", tmp_path / "long.mp4", 1200)
    assert examined(examiner, long, 4).num_frames == 60_000


def test_a_video_without_a_face_is_examined_whole_and_unsure(
    examiner: Examiner, films: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "bars.mp4")
    verdict = examined(examiner, tmp_path / "bars.mp4")
    (person,) = verdict.persons
    assert verdict.verdict == "unsure" and "no_face" in verdict.reasons
    assert len(person.frames) == 8 and {frame.box for frame in person.frames} == {None}
    # Frames without a face count for nobody where another frame has one.
    moving = scene([(faces, 40, 3) for faces in [np.full((160, 160, 3), 9, np.uint8)]], 20)
    with av.open(str(films / "one.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:20]
    half = examined(examiner, write_film(tmp_path / "half.mp4", moving + shown), 8)
    assert half.frames_judged == 4 and all(frame.box for frame in half.persons[0].frames)


def test_a_telephone_held_upright_is_seen_upright(
    examiner: Examiner, films: Path, pipeline: Path, tmp_path: Path
) -> None:
    (face, *_) = faces_of(pipeline, 1)
    turned = [np.rot90(pixels).copy() for pixels in scene([(face, 40, 3)], 20)]
    path = write_film(tmp_path / "turned.mp4", turned)
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])
    verdict = examined(examiner, path, 4)
    assert (verdict.width, verdict.height) == (640, 240)
    assert verdict.frames_judged == 4 and verdict.persons[0].face_size > 100


def run_detect(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["detect", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        detect.main()
    captured = capfd.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_command_takes_videos_beside_images(
    detector: Path,
    films: Path,
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, record = tmp_path / "mixed", tmp_path / "record.jsonl"
    folder.mkdir()
    for name in ("one.mp4", "two.mp4"):
        (folder / name).write_bytes((films / name).read_bytes())
    (folder / "bad.mov").write_bytes(b"no video")
    photo = min((pipeline / "data/raw/sample/phase1/valset").iterdir())
    (folder / "a.jpg").write_bytes(photo.read_bytes())
    (folder / "notes.txt").write_text("left out")
    command = (folder, "--model", detector, "--frames", 4, "--record", record)
    code, out, err = run_detect(monkeypatch, capfd, *command, "--explain", tmp_path / "pages")
    first, _, *lines = out.splitlines()
    assert "learnt from 60 images" in first and code == detect.SOME_FAILED
    assert [line.split()[-1] for line in err.splitlines() if "left out" in line] == ["video"]
    assert [next(word for word in line.split() if folder.name in word) for line in lines] == [
        str(folder / name) for name in ("a.jpg", "bad.mov", "one.mp4", "two.mp4")
    ]
    assert "1 person in 4 of 50 frames" in lines[2] and "persons in 4 of 50 frames" in lines[3]
    assert "damaged video" in lines[1] and "thresholds of images" in lines[2]
    records = [json.loads(line) for line in record.read_text().splitlines()]
    assert [len(one.get("persons", [])) for one in records] == [0, 1, 2]
    seconds = [frame["seconds"] for frame in records[1]["persons"][0]["frames"]]
    assert seconds == sorted(seconds) and len(seconds) == 4
    pages = {page.name[:3]: page.read_text() for page in (tmp_path / "pages").iterdir()}
    assert set(pages) == {"a-" + records[0]["sha256"][:1], "one", "two"}
    assert "P(fake) of each person over time" in pages["two"]
    assert "learnt from 60 images" in pages["one"] and "frames that speak most" in pages["one"]
    doubted = copy_detector(pipeline, tmp_path / "doubted", doubt="no better than chance")
    run_detect(monkeypatch, capfd, folder / "one.mp4", "--model", doubted, "--explain", doubted)
    (page,) = doubted.glob("*.html")
    assert "over time" not in page.read_text() and "P(fake)" not in page.read_text()
    more = (films / "one.mp4", "--model", detector, "--record", tmp_path / "more.jsonl")
    for frames, num_lines in ((4, 1), (5, 2), (5, 2), (4, 2)):
        run_detect(monkeypatch, capfd, *more, "--frames", frames, "--resume")
        assert len((tmp_path / "more.jsonl").read_text().splitlines()) == num_lines
    # One row a clip; what is recorded is not examined again, another number of frames is.
    again = UnusableImage("again")
    monkeypatch.setattr(detect, "examine_files", lambda _e, _d, new, _f: dict.fromkeys(new, again))
    files = [folder / name for name in ("a.jpg", "one.mp4", "two.mp4")]
    resumed = (*files, *command[1:], "--resume", "--csv")
    rows = list(csv.DictReader(StringIO(run_detect(monkeypatch, capfd, *resumed)[1])))
    assert [row["num_persons"] for row in rows] == ["", "1", "2"]
    assert [row["num_frames"] for row in rows] == ["", "4", "4"]
    others = csv.DictReader(StringIO(run_detect(monkeypatch, capfd, *resumed, "--frames", 5)[1]))
    assert [row["why"] == "again" for row in others] == [False, True, True]
    monkeypatch.undo()
    (folder / "one.mp4").rename(folder / "without suffix")
    code, out, _ = run_detect(
        monkeypatch, capfd, "--verify", record, folder / "without suffix", "--model", detector
    )
    assert code == 0 and out.count("same ") == 3
    changed = record.read_text().replace('"num_frames":50', '"num_frames":51', 1)
    record.write_text(changed)
    code, out, _ = run_detect(
        monkeypatch, capfd, "--verify", record, folder / "without suffix", "--model", detector
    )
    assert code == detect.SOME_FAILED and "num_frames: 50, not 51" in out


def test_a_video_says_where_it_comes_from(films: Path, tmp_path: Path) -> None:
    signer, manifest = signer_and_manifest()
    plain, result = BytesIO((films / "one.mp4").read_bytes()), BytesIO()
    c2pa.Builder(json.dumps(manifest)).sign(signer, "video/mp4", plain, result)
    path = tmp_path / "signed.mp4"
    path.write_bytes(result.getvalue())
    with path.open("rb") as file:
        provenance = read_video_provenance(file)
    assert provenance.c2pa and provenance.c2pa.state == "valid"
    assert provenance.c2pa.source_types == ["digitalCapture"]
    changed = bytearray(result.getvalue())
    changed[-200] ^= 1
    path.write_bytes(changed)
    with path.open("rb") as file:
        broken = read_video_provenance(file).c2pa
    assert broken and broken.state == "broken"


def test_a_video_has_the_source_type_in_its_xmp_and_the_tags_of_its_camera(
    films: Path, tmp_path: Path
) -> None:
    uri = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a Iptc4xmpExt:DigitalSourceType="%s"/>' % uri
    path = tmp_path / "a.mp4"
    content = (films / "one.mp4").read_bytes()
    uuid = box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), xmp)
    place = content.rindex(b"moov") - 4
    in_moov = box(b"moov", content[place + 8 :], box(b"udta", box(b"XMP_", xmp)))
    for with_xmp in (content + uuid, content[:place] + in_moov):
        path.write_bytes(with_xmp)
        with path.open("rb") as file:
            provenance = read_video_provenance(file)
        assert provenance.source_types == ["trainedAlgorithmicMedia"]
        assert str(provenance).startswith("IPTC says trainedAlgorithmicMedia; header software Lav")
    tags = {"make": "Phone Maker", "model": "Phone 1", "creation_time": "2026-01-02T03:04:05Z"}
    write_film(path, [np.full((48, 64, 3), 99, np.uint8)], tags=tags)
    with path.open("rb") as file:
        assert read_video_provenance(file).camera["taken"].startswith("2026-01-02")
    short_box = box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3"))
    for damaged in (b"", b"\0\0\0\x10uuid", content[:900], content + short_box):
        path.write_bytes(damaged)
        with path.open("rb") as file:
            assert read_video_provenance(file).source_types == []
