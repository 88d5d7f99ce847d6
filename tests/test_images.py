"""From encoded bytes to the model's input: decoders agree, and chance depends on the seed alone."""

import hashlib
import shutil
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.detector.dataset import LabelledImages, make_loader, sequential_batches
from stages.lib.detector.preprocessing import (
    Normalize,
    Preprocessing,
    decode,
    input_of,
    reencode,
    resize,
)
from stages.lib.images import decoding
from stages.lib.running import DEAD_WORKER
from stages.lib.training.batches import PLAIN, Draw
from stages.lib.training.images import TrainingImages
from stages.lib.training.params import TrainParams
from tests.conftest import ROOT, run

PREPROCESSING = Preprocessing(
    image_size=24, interpolation="bicubic", mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3]
)
PARAMS = load_params("train", TrainParams, ROOT / "params.yaml")
BOTH_FLIPS = PARAMS.augmentation.model_copy(update={"horizontal_flip": 0.5, "vertical_flip": 0.5})


def photograph(size: tuple[int, int] = (60, 50), seed: int = 0) -> Image.Image:
    """Return a smooth colourful image, as a photograph is."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def same_image(whole: torch.Tensor, scaled: torch.Tensor) -> bool:
    """Say whether the model would see about the same, which is rough for tiny, stark images."""
    seen = [resize(image, PREPROCESSING).float().flatten().numpy() for image in (whole, scaled)]
    return np.corrcoef(seen[0], seen[1])[0, 1] > 0.99 and np.abs(seen[0] - seen[1]).mean() < 8


SCALED = PREPROCESSING.model_copy(update={"scaled_decoding": True})


@pytest.mark.parametrize(
    ("size", "shape"),
    [((47, 60), (60, 47)), ((48, 60), (30, 24)), ((97, 131), (33, 25)), ((500, 400), (50, 63))],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    content = encoded(photograph(size), "JPEG", quality=95)
    whole = decode(content, PREPROCESSING).tensor
    scaled = decode(memoryview(content), SCALED).tensor
    assert tuple(scaled.shape[1:]) == shape
    assert same_image(whole, scaled)


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")])
def test_scaled_decoding_takes_every_kind_of_image(format: str, mode: str) -> None:
    content = encoded(photograph((96, 96)).convert(mode), format)
    scaled, whole = decode(content, SCALED).tensor, decode(content, PREPROCESSING).tensor
    assert scaled.shape[0] == 3
    assert same_image(whole, scaled)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(60, 50), (300, 200), (10, 12)])
def test_resizing_agrees_with_pillow(interpolation: str, size: tuple[int, int]) -> None:
    image = photograph(size)
    chosen = PREPROCESSING.model_copy(update={"interpolation": interpolation})
    ours = resize(tv.pil_to_tensor(image), chosen)
    theirs = tv.pil_to_tensor(image.resize((24, 24), Image.Resampling[interpolation.upper()]))
    assert (ours.int() - theirs.int()).abs().max() <= 2


def reencoding(low: int, high: int) -> Preprocessing:
    return PREPROCESSING.model_copy(update={"reencode": [low, high]})


def test_reencoding_is_one_more_jpeg_at_the_models_size() -> None:
    image = tv.pil_to_tensor(photograph())
    resized = resize(image, PREPROCESSING)
    assert torch.equal(input_of(image, PREPROCESSING), resized)
    content = encoded(tv.to_pil_image(resized), "JPEG", quality=50)
    ours = input_of(image, reencoding(30, 70))  # the middle one
    theirs = decode(content, PREPROCESSING).tensor
    assert (ours.int() - theirs.int()).abs().max() <= 2
    assert not torch.equal(ours, resized)


def test_reencoding_hides_which_quality_an_image_came_with() -> None:
    """A coarse and a fine JPEG differ less after both have passed the same coarse one."""
    files = [encoded(photograph((24, 24)), "JPEG", quality=quality) for quality in (40, 95)]
    coarse, fine = [decode(file, PREPROCESSING).tensor for file in files]
    before = (coarse.float() - fine.float()).abs().mean()
    inputs = [input_of(image, reencoding(40, 40)).float() for image in (coarse, fine)]
    assert (inputs[0] - inputs[1]).abs().mean() < 0.75 * before


def test_the_quality_is_jittered_in_training_alone_and_by_the_seed() -> None:
    image = resize(tv.pil_to_tensor(photograph()), PREPROCESSING)
    draws = [reencode(image, reencoding(10, 95), np.random.default_rng(seed)) for seed in range(8)]
    again = [reencode(image, reencoding(10, 95), np.random.default_rng(seed)) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert len({draw.numpy().tobytes() for draw in draws}) > 4


def test_normalising_is_torchvisions() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    scaled = tv.to_dtype(images, torch.float32, scale=True)
    expected = tv.normalize(scaled, PREPROCESSING.mean, PREPROCESSING.std)
    torch.testing.assert_close(Normalize(PREPROCESSING)(images), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def labels(tmp_path: Path) -> pd.DataFrame:
    """Twenty packed images under tmp_path and their labels, in another order."""
    (tmp_path / "train").mkdir()
    contents = [encoded(photograph(seed=i), "JPEG") for i in range(20)]
    schema = pa.schema([("image", pa.binary())])
    with pa.ipc.new_file(str(tmp_path / "train/images-00000.arrow"), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(contents)], schema=schema))
    rows = np.random.default_rng(0).permutation(20)
    digests = [hashlib.sha256(contents[row]).hexdigest() for row in rows]
    return pd.DataFrame(
        {"img_name": "x.jpg", "target": pd.array(rows % 2, "Int8"), "set": "train", "row": rows}
        | {"sha256": digests}
    )


def load(images: LabelledImages, batches: list, num_workers: int) -> dict[int, torch.Tensor]:
    return {
        int(index): image
        for batch, _, indices in make_loader(images, batches, num_workers, pin=False)
        for image, index in zip(batch, indices, strict=True)
    }


def test_chance_depends_on_seed_epoch_and_image_alone(labels: pd.DataFrame, tmp_path: Path) -> None:
    def loaded(seed: int, epoch: int, order: list[int], num_workers: int) -> torch.Tensor:
        params = PARAMS.model_copy(update={"augmentation": BOTH_FLIPS, "seed": seed})
        images = TrainingImages(labels, tmp_path, PREPROCESSING, params)
        batches = [[Draw(epoch, i, PLAIN) for i in part] for part in (order[:7], order[7:])]
        inputs = load(images, batches, num_workers)
        return torch.stack([inputs[index] for index in range(20)])

    forwards, backwards = list(range(20)), list(range(20))[::-1]
    reference = loaded(0, 3, forwards, 0)
    assert torch.equal(loaded(0, 3, backwards, 2), reference)
    assert not torch.equal(loaded(0, 4, forwards, 0), reference)
    assert not torch.equal(loaded(1, 3, forwards, 0), reference)


def test_an_error_that_tells_of_a_dead_worker_comes_to_whoever_waits_for_a_batch(
    labels: pd.DataFrame, tmp_path: Path
) -> None:
    """PyTorch's handler would raise it anywhere, even where errors are lost."""
    images = LabelledImages(labels, tmp_path, PREPROCESSING)
    batches = iter(make_loader(images, [[index] for index in range(20)], 1, pin=False))
    psutil.Process().children()[0].kill()
    for _ in range(20):
        time.sleep(0.01)  # the signal comes
    with pytest.raises(RuntimeError, match=DEAD_WORKER):
        list(batches)


def test_packed_jpegs_do_not_take_the_detour_of_other_formats(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_to_rgb", lambda _: pytest.fail("Pillow has decoded"))
    for preprocessing in (PREPROCESSING, SCALED):
        images = LabelledImages(labels, tmp_path, preprocessing)
        assert images[0][0].shape == (3, 24, 24)


@pytest.mark.parametrize(("free_mb", "ahead"), [(1000, 4), (64, 3), (40, 1)])
def test_the_queue_of_the_workers_fits_into_shared_memory(
    labels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mb: int, ahead: int
) -> None:
    usage = shutil.disk_usage("/")._replace(free=free_mb * 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    large = PREPROCESSING.model_copy(update={"image_size": 400})
    images = LabelledImages(labels, tmp_path, large)
    batches = sequential_batches(len(images), 16)  # of 7.7 MB
    assert make_loader(images, batches, 2, pin=False).prefetch_factor == ahead
    assert make_loader(images, batches, 0, pin=False).prefetch_factor is None
    with pytest.raises(UserError, match=r"MB are free, 9 workers need \d+ MB; lower num_workers"):
        make_loader(images, batches, 9, pin=False, largest=None if free_mb < 100 else 160)


def test_a_worker_says_nothing_where_its_process_breaks_the_connection() -> None:
    """It listens at a socket, where the process that it loads for fetches tensors."""
    code = """
import psutil, socket, time
from multiprocessing.resource_sharer import DupFd
from stages.lib.detector.dataset import silence_lost_connections

def break_off():
    (listening,) = psutil.Process().net_connections("unix")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(listening.laddr)
    time.sleep(0.5)

DupFd(1)
break_off()
silence_lost_connections(0)
break_off()
"""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.stderr.count("in accept") == 1  # before


def test_an_image_is_the_one_that_its_label_names(labels: pd.DataFrame, tmp_path: Path) -> None:
    images = LabelledImages(labels, tmp_path, PREPROCESSING)
    for index, (target, row) in enumerate(zip(labels["target"], labels["row"], strict=True)):
        image, *others = images[index]
        expected = decode(encoded(photograph(seed=row), "JPEG"), PREPROCESSING).tensor
        assert torch.equal(image, resize(expected, PREPROCESSING))
        assert others == [target, index]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64, 65])
def test_every_image_goes_to_exactly_one_process(count: int, world_size: int) -> None:
    parts = [sequential_batches(count, 4, rank, world_size) for rank in range(world_size)]
    seen = [index for part in parts for batch in part for index in batch]
    assert sorted(seen) == list(range(count))
    assert all(0 < len(batch) <= 4 for part in parts for batch in part)
