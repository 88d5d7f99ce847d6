"""Packing keeps every byte, knows every image, and says what is wrong with a bad one."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from stages import pack
from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.data import image_facts, packing, shards
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.data.params import PackParams
from stages.lib.images.packed_images import PackedImages, read_facts
from tests.conftest import ROOT, set_params
from tests.test_videos import write_video

TRAIN = "raw/phase1/trainset"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_params(tmp_path, {"data.root": "raw"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def encoded(seed: int, format: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def write_train(workspace: Path, contents: Mapping[str, bytes | None]) -> None:
    """Write the training set's files (None: listed only), all as old as 1970, and its list."""
    folder = workspace / TRAIN
    folder.mkdir(parents=True)
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
            os.utime(folder / name, (0, 0))
    rows = [f"{name},{number % 2}" for number, name in enumerate(contents)]
    text = "\n".join(["img_name,target", *rows]) + "\n"
    folder.with_name("trainset_label.txt").write_text(text)


def test_bytes_come_back_unchanged_and_in_order_from_many_files(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "IMAGES_PER_BATCH", 7)
    contents = {f"{i}.jpg": encoded(i) for i in range(50)}
    write_train(workspace, contents)
    params = PackParams.model_construct(
        shard_mb=0.02,
        max_megapixels=1.0,
        outside="refuse",
        frames_per_video=8,
        find_faces=True,
        num_threads=3,
    )
    monkeypatch.setattr(
        pack,
        "load_params",
        lambda section, model: load_params(section, model) if section == "data" else params,
    )
    pack.main()
    images = PackedImages(workspace / "data/packed/training/train")
    assert len(list((workspace / "data/packed/training/train").glob("*.arrow"))) > 2
    assert [bytes(images[row]) for row in range(len(images))] == list(contents.values())
    assert images[0][:2] == b"\xff\xd8"  # unsigned bytes, as decoders compare them
    again = pickle.loads(pickle.dumps(images))
    assert bytes(again[49]) == contents["49.jpg"]
    for row in (-1, 50):
        with pytest.raises(IndexError):
            images[row]


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4"])
def test_what_is_no_regular_file_is_never_read(tmp_path: Path, name: str) -> None:
    """A pipe would wait for ever, and /dev/zero would fill the memory."""
    params = PackParams.model_construct(
        max_megapixels=1.0, outside="allow", frames_per_video=2, find_faces=False
    )
    real = encoded(1) if name == "a.jpg" else write_video(tmp_path / "real.mp4", 4)
    (tmp_path / "real").write_bytes(real)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    errors = {}
    image_set = ImageSet("train", tmp_path, pd.DataFrame())
    for target in ("/dev/zero", "pipe", "folder", "gone", "real"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        (_, facts), *_ = packing.read_file(image_set, {"img_name": name}, params)
        errors[target] = facts.get("error")
    refused = "unreadable: no regular file"
    assert errors == {
        "/dev/zero": refused, "pipe": refused, "folder": refused, "gone": "no such file",
        "real": None,
    }  # fmt: skip


def test_the_facts_are_right(workspace: Path) -> None:
    write_train(workspace, {"a.jpg": encoded(1, quality=80), "b.png": encoded(2, "PNG", "L")})
    pack.main()
    facts = read_facts(workspace / "data/packed/training/train")
    assert facts["img_name"].tolist() == ["a.jpg", "b.png"]
    assert facts["target"].tolist() == [0, 1]
    assert facts["format"].tolist() == ["JPEG", "PNG"]
    assert facts["mode"].tolist() == ["RGB", "L"]
    assert (facts["width"] == 30).all()
    assert (facts["height"] == 40).all()
    assert facts["num_bytes"].tolist() == [len(encoded(1, quality=80)), len(encoded(2, "PNG", "L"))]
    assert facts["jpeg_quality"][0] == 80
    assert facts["error"].isna().all()


def test_the_quality_of_a_jpeg_is_read_off_its_tables() -> None:
    for quality in range(5, 101, 5):
        found = image_facts.image_facts(encoded(0, quality=quality))["jpeg_quality"]
        assert abs(found - quality) <= 1


def test_equal_tables_have_equal_digests() -> None:
    digests = [
        image_facts.image_facts(encoded(i, quality=q))["jpeg_tables"]
        for i, q in [(0, 80), (1, 80), (0, 81)]
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_bad_image_is_recorded_with_its_reason(workspace: Path) -> None:
    good = encoded(0)
    write_train(workspace, {"missing.jpg": None, "empty.jpg": b"", "text.jpg": b"no image",
                            "cut.jpg": good[: len(good) // 2], "good.jpg": good})  # fmt: skip
    pack.main()
    facts = read_facts(workspace / "data/packed/training/train").set_index("img_name")
    assert facts["error"]["missing.jpg"] == "no such file"
    assert facts["error"]["empty.jpg"] == "empty file"
    assert facts["error"]["text.jpg"] == "not an image of a known format"
    assert facts["error"]["cut.jpg"].startswith("damaged: image file is truncated")
    assert pd.isna(facts["error"]["good.jpg"])
    assert bytes(PackedImages(workspace / "data/packed/training/train")[4]) == good


def test_an_absent_set_is_packed_as_an_empty_one(workspace: Path) -> None:
    write_train(workspace, {"a.jpg": encoded(0)})
    pack.main()
    for name in ("training/val", "test"):
        assert len(read_facts(workspace / "data/packed" / name)) == 0
        assert len(PackedImages(workspace / "data/packed" / name)) == 0


def test_a_further_set_is_packed_beside_the_others(workspace: Path) -> None:
    content = encoded(7)
    folder = workspace / "celebrities/phase1/valset"
    folder.mkdir(parents=True)
    (folder / "x.jpg").write_bytes(content)
    (folder / "y.jpg").write_bytes(encoded(8))
    text = "img_name,target,source\nx.jpg,0,museum\ny.jpg,1,\n"
    folder.with_name("valset_label.txt").write_text(text)
    set_params(workspace, {"data.evaluation_sets": {"celeb": "celebrities", "gone": "nowhere"}})
    pack.main("celeb")
    write_train(workspace, {"a.jpg": encoded(0)})
    pack.main()
    packed = workspace / "data/packed/celeb.set"
    assert bytes(PackedImages(packed)[0]) == content
    assert read_facts(packed)["source"].fillna("").tolist() == ["museum", ""]
    for name, words in (
        ("other", r"a name of data.evaluation_sets \(celeb, gone\), not 'other'"),
        ("gone", "data.evaluation_sets.gone = 'nowhere' is not a folder"),
    ):
        with pytest.raises(UserError, match=words):
            pack.main(name)
    folder.with_name("valset_label.txt").unlink()
    with pytest.raises(UserError, match="the val set has no list"):
        pack.main("celeb")


@pytest.mark.parametrize("name", ["a;touch x", "$(touch x)", "../../raw", "a' b", "a b", "pooled"])
def test_the_name_of_a_set_is_checked_before_anything_is_written(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    set_params(workspace, {"data.evaluation_sets": {name: "raw"}})
    monkeypatch.setenv("DVC_STAGE", f"pack_set@{name}")
    monkeypatch.setattr(sys, "argv", ["stages.pack"])
    assert pack.wanted_set() == name
    with pytest.raises(UserError, match="name the set with letters"):
        pack.main(name)
    assert not list(workspace.glob("**/x")) and not (workspace / "data").exists()


def test_a_wrong_list_leaves_what_was_there(workspace: Path) -> None:
    write_train(workspace, {"a.jpg": encoded(0), "b.jpg": encoded(1)})
    pack.main()
    before = (workspace / "data/packed/training/train/facts.parquet").read_bytes()
    (workspace / "raw/phase1/trainset_label.txt").write_text("img_name,target\na.jpg,7\n")
    with pytest.raises(UserError, match="target '7'"):
        pack.main()
    assert (workspace / "data/packed/training/train/facts.parquet").read_bytes() == before
    assert [path.name for path in (workspace / "data").iterdir()] == ["packed"]


def packed_files() -> dict[str, bytes]:
    paths = sorted(path for path in Path("data/packed").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def count_reads(monkeypatch: pytest.MonkeyPatch, limit: int = 10**9) -> list[str]:
    """Return the list that fills with the names of the files that are read; stop at the limit."""
    names: list[str] = []
    real_read = packing.read_file

    def read(image_set: ImageSet, row: dict, params: PackParams) -> list[shards.Packed]:
        if len(names) == limit:
            raise KeyboardInterrupt
        names.append(row["img_name"])
        return real_read(image_set, row, params)

    monkeypatch.setattr(packing, "read_file", read)
    return names


def test_packing_again_reads_only_what_is_new_or_changed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {f"{i:03d}.jpg": encoded(i) for i in range(0, 100, 2)}
    write_train(workspace, contents | {"bad.jpg": b"x"})
    pack.main()
    shutil.rmtree("data/packed")  # as DVC does before it runs the stage
    contents |= {f"{i:03d}.jpg": encoded(i) for i in (1, 51)} | {"010.jpg": encoded(999)}
    del contents["020.jpg"]
    shutil.rmtree(workspace / "raw")
    write_train(workspace, dict(sorted(contents.items())) | {"bad.jpg": b"x"})
    os.utime(workspace / TRAIN / "010.jpg", (9, 9))
    names = count_reads(monkeypatch)
    pack.main()
    assert sorted(names) == ["001.jpg", "010.jpg", "051.jpg", "bad.jpg"]  # several threads read
    again = packed_files()
    shutil.rmtree(workspace / ".dvc")
    pack.main()
    assert packed_files() == again  # the bytes do not tell what was known
    images = PackedImages(Path("data/packed/training/train"))
    assert [bytes(images[row]) for row in range(51)] == list(
        dict(sorted(contents.items())).values()
    )


def test_interrupted_packing_goes_on_where_it_stopped(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "IMAGES_PER_BATCH", 5)
    monkeypatch.setattr(shards.ShardWriter, "write", small_shards(shards.ShardWriter.write))
    write_train(workspace, {f"{i:03d}.jpg": encoded(i) for i in range(60)})
    with monkeypatch.context() as patch:
        first = count_reads(patch, limit=42)
        with pytest.raises(KeyboardInterrupt):
            pack.main()
    assert not packed_files()
    second = count_reads(monkeypatch)
    pack.main()
    assert len(first) == 42
    assert 60 - 42 <= len(second) <= 60 - 42 + 10  # a shard that was not finished is read again
    again = packed_files()
    shutil.rmtree(workspace / ".dvc")
    pack.main()
    assert packed_files() == again


def small_shards(write: Callable[..., None]) -> Callable[..., None]:
    def write_small(self: shards.ShardWriter, batch: list[shards.Packed]) -> None:
        self.max_bytes = 8000
        write(self, batch)

    return write_small


def test_the_cues_are_right() -> None:
    flat = image_facts.image_cues(np.full((24, 32, 3), (200, 100, 100), np.uint8))
    assert flat["brightness"] == pytest.approx(0.299 * 200 + 0.701 * 100, abs=1)
    assert flat["saturation"] == pytest.approx(255 / 2, abs=1)
    assert flat["contrast"] == flat["sharpness"] == flat["high_frequency"] == 0
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    rough = image_facts.image_cues(noise)
    assert rough["contrast"] == pytest.approx(255 / 12**0.5, rel=0.02)
    assert rough["sharpness"] == pytest.approx(20 * rough["contrast"] ** 2, rel=0.05)
    assert rough["high_frequency"] == pytest.approx(3 / 4, abs=0.02)  # white: 3/4 of the spectrum
    wave = 128 + 100 * np.sin(np.arange(256) * 2 * np.pi / 32)
    smooth = image_facts.image_cues(np.tile(wave, (64, 1)).astype(np.uint8))
    assert smooth["high_frequency"] < 0.001


def test_packing_goes_on_after_a_delivery_that_was_interrupted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_train(workspace, {f"{i}.jpg": encoded(i) for i in range(20)})
    pack.main()
    expected = packed_files()
    (memory,) = {path.parent for path in Path(".dvc/tmp/pack").glob("*/*/old-*")}
    (memory / "old-00000").rename(memory / "old-00001")  # one of two had been forgotten
    (memory / "new").mkdir()
    (memory / ".old-00000.gone").mkdir()  # the other one half
    (memory / ".old-00000.gone/facts-00000.parquet").write_bytes(b"")
    other = memory.with_name("other code")
    other.mkdir()
    shutil.rmtree("data/packed")
    names = count_reads(monkeypatch)
    pack.main()
    assert names == []
    assert packed_files() == expected
    assert [path.name for path in memory.iterdir()] == ["old-00000"]
    assert not other.exists()


@pytest.mark.parametrize("outside", ["refuse", "allow"])
def test_a_link_that_leaves_its_folder_is_a_bad_image_unless_that_is_allowed(
    workspace: Path, outside: str
) -> None:
    write_train(workspace, {f"{i}.jpg": encoded(i) for i in range(4)})
    folder = workspace / TRAIN
    elsewhere = workspace / "outside.jpg"
    elsewhere.write_bytes(encoded(9))
    for name, target in (("1.jpg", elsewhere), ("2.jpg", folder / "3.jpg"), ("0.jpg", "0.jpg")):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    set_params(workspace, {"pack.outside": outside})
    pack.main()
    errors = read_facts(workspace / "data/packed/training/train")["error"].tolist()
    assert "unreadable" in errors[0]  # a circle
    assert pd.isna(errors[2]) and pd.isna(errors[3])
    if outside == "refuse":
        assert errors[1] == "outside of the data set's folder (see pack.outside)"
    else:
        assert pd.isna(errors[1])


@pytest.mark.parametrize("place", ["files/md5/ab", "ab"])
def test_links_of_dvc_into_its_cache_are_no_way_out_and_others_are(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    """The cache is on another disk, as `dvc cache dir --local` says."""
    write_train(workspace, {f"{i}.jpg": encoded(i) for i in range(7)})
    cache, elsewhere = (tmp_path_factory.mktemp(name) for name in ("cache", "elsewhere"))
    (workspace / ".dvc").mkdir()
    (workspace / ".dvc/config").write_text(
        f"[core]\n    no_scm = true\n[cache]\n    dir = {cache}\n"
    )
    (elsewhere / "secret.jpg").write_bytes(encoded(9))
    digest, folder = "0123456789" * 3, workspace / TRAIN
    targets = {
        "0.jpg": cache / place / digest, "1.jpg": cache / place / "notes.jpg",
        "2.jpg": elsewhere / "secret.jpg", "3.jpg": elsewhere / place / digest,
        "4.jpg": cache / place / f"{digest[:-1]}f",
    }  # fmt: skip
    for target in targets.values():
        target.parent.mkdir(parents=True, exist_ok=True)
        if target != elsewhere / "secret.jpg":
            target.write_bytes(encoded(3))
    targets["4.jpg"].unlink()
    targets["4.jpg"].symlink_to(elsewhere / "secret.jpg")  # a way out of the cache
    targets["5.jpg"] = Path("4.jpg")
    for name, target in targets.items():
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    packing.dvc_cache.cache_clear()
    pack.main()
    packing.dvc_cache.cache_clear()
    errors = read_facts(workspace / "data/packed/training/train")["error"]
    assert errors.isna().tolist() == [True, False, False, False, False, False, True]
    assert set(errors.dropna()) == {"outside of the data set's folder (see pack.outside)"}


def test_images_are_packed_once_after_a_run_that_was_stopped(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full run, one that is stopped, and another one: each image is known twice."""
    monkeypatch.setattr(packing, "IMAGES_PER_BATCH", 5)
    contents = {f"{i}.jpg": encoded(i) for i in range(30)}
    write_train(workspace, contents)
    set_params(workspace, {"pack.shard_mb": 1})
    pack.main()
    expected = packed_files()
    shutil.rmtree("data/packed")
    write = shards.ShardWriter.write
    written = []

    def stop(self: shards.ShardWriter, batch: list[shards.Packed]) -> None:
        if len(written) == 3:
            self.close()
            raise KeyboardInterrupt
        written.append(batch)
        write(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            pack.main()
    pack.main()
    assert packed_files() == expected


def test_sets_in_one_folder_are_remembered_beside_each_other(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("train/real", "train/fake", "val/real", "val/fake")):
        folder = workspace / "tree" / name
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(encoded(number))
    set_params(workspace, {"data.root": "tree", "data.evaluation_sets": {"same": "tree"}})
    pack.main()
    pack.main("same")
    names = count_reads(monkeypatch)
    pack.main()
    pack.main("same")
    assert names == []


def test_a_batch_of_any_size_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    contents = [bytes([i]) * size for i, size in enumerate((400, 400, 400, 3000, 10, 0))]
    writer = shards.ShardWriter(tmp_path, 10**6)
    writer.write([(one, {"img_name": str(i)}) for i, one in enumerate(contents)])
    writer.close()
    found = shards.ImageFile(tmp_path / "images-00000.arrow")
    assert [found.read(row) for row in range(6)] == contents
    with pa.memory_map(str(tmp_path / "images-00000.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches > 2
