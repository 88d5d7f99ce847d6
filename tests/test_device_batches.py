"""Micro-batches that the device completes: the same images whoever loads them, on the CPU here."""

import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory as pin_as_the_loader_does

from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.data.layouts.image_set import ROW_TYPES, ImageSet
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.drawing.photograph import photograph as drawn_face
from stages.lib.drawing.portrait import draw_person
from stages.lib.training import device_pixels
from stages.lib.training.augmentation import OPERATIONS
from stages.lib.training.batched_augmentation import BatchChanges
from stages.lib.training.batches import PAIR_FAKE, PAIR_REAL, PLAIN, Draw
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.device_batches import DeviceBatches, training_loader, unchanged_loader
from stages.lib.training.device_pixels import (
    DecodedPixels,
    KeptPixels,
    check_decoder,
    kept_bytes,
)
from stages.lib.training.host_batches import HostBatch, host_batch, host_image, pin_memory
from stages.lib.training.images import TrainingImages
from stages.lib.training.mark_cache import find_faces_ahead
from stages.lib.training.params import TrainParams
from stages.lib.training.thread_loader import ThreadLoader
from tests.conftest import ROOT
from tests.packed import pack_set
from tests.test_augmentation import photograph

CPU = torch.device("cpu")
ALONE = Hardware(CPU, False)
SIDE, COUNT = 40, 12
SEEN = Preprocessing(image_size=SIDE, interpolation="bilinear", mean=[0.5] * 3, std=[0.5] * 3)
BATCHES = [[Draw(2, index, PLAIN) for index in range(first, first + 6)] for first in (6, 0)]


def params_with(**changes: Any) -> TrainParams:
    """Return params.yaml with many degradations, made on the device, and changes."""
    params = load_params("train", TrainParams, ROOT / "params.yaml").model_dump()
    augmentation = params["augmentation"]
    for name in OPERATIONS:
        augmentation[name]["probability"] = 0.4
    fixed = {"augment_on": "device", "batch_size": 6, "num_workers": 2, "num_threads": 2}
    return TrainParams.model_validate(params | fixed | changes)


def pack_files(folder: Path, files: list[bytes]) -> pd.DataFrame:
    """Pack image files into folder/packed/train; returns their labels, real and fake in turn."""
    (folder / "files").mkdir()
    names = [f"{number:02d}.jpg" for number in range(len(files))]
    for name, content in zip(names, files, strict=True):
        (folder / "files" / name).write_bytes(content)
    columns = {"img_name": names, "target": np.arange(len(files)) % 2}
    rows = pd.DataFrame(columns, columns=list(ROW_TYPES)).astype(ROW_TYPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        return pack_set(folder, ImageSet("train", folder / "files", rows))


def encoded(number: int, format: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """Return an image file of one of three sizes."""
    side = 48 + 16 * (number % 3)
    pixels = photograph(number).repeat(1, 2, 2)[:, :side, :64].permute(1, 2, 0).numpy()
    buffer = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
    image.save(buffer, format, quality=95, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder with packed JPEGs of several sizes, one of them turned, one grey, and a PNG."""
    folder = tmp_path_factory.mktemp("device")
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [encoded(number) for number in range(COUNT)]
    files[3:6] = encoded(3, exif=turned), encoded(4, mode="L"), encoded(5, "PNG")
    return folder, pack_files(folder, files)


def images_of(
    packed: tuple[Path, pd.DataFrame], params: TrainParams, seen: Preprocessing = SEEN
) -> TrainingImages:
    folder, labels = packed
    return TrainingImages(labels, folder / "packed", seen, params)


@pytest.fixture
def decoded(
    packed: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainingImages:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    images = images_of(packed, params_with(decoded_gb=1))
    assert decode_ahead({"train": images}, 1, 0)
    return images


def batches_of(loader: Any) -> list[torch.Tensor]:
    """Return the images of all batches, and check what comes with them."""
    found = []
    for draws, (images, targets, indices) in zip(BATCHES, loader, strict=True):
        assert indices.tolist() == [draw.index for draw in draws]
        assert targets.tolist() == [draw.index % 2 for draw in draws]
        assert images.shape == (6, 3, SIDE, SIDE) and images.dtype == torch.uint8
        found.append(images)
    return found


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("reencode", [None, [50, 90]])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_threads_and_the_device_hand_over_the_same_images(
    packed: tuple[Path, pd.DataFrame],
    decoded: TrainingImages,
    num_workers: int,
    reencode: list[int] | None,
) -> None:
    params = params_with(decoded_gb=1, num_workers=num_workers, reencode=reencode)
    decoded.preprocessing = SEEN.model_copy(update={"reencode": reencode})
    undecoded = images_of(packed, params, decoded.preprocessing)
    by_workers = training_loader(undecoded, BATCHES, params, ALONE)
    by_threads = training_loader(decoded, BATCHES, params, ALONE)
    expected = batches_of(by_workers)
    assert isinstance(by_threads, DeviceBatches) and isinstance(by_threads.loader, ThreadLoader)
    assert same(batches_of(by_threads), expected) and same(batches_of(by_threads), expected)
    decoded.on_device = KeptPixels(decoded, CPU)
    assert same(batches_of(training_loader(decoded, BATCHES, params, ALONE)), expected)


def test_workers_read_decoded_images_beside_pairs(decoded: TrainingImages, recwarn: Any) -> None:
    shares = {"first_share": 0.5, "last_share": 0.5}
    fakes = decoded.params.pseudo_fakes.model_dump() | shares
    params = params_with(decoded_gb=1, pseudo_fakes=fakes, num_workers=1)
    draws = [Draw(0, 2, PAIR_REAL), Draw(0, 2, PAIR_FAKE), Draw(0, 1, PLAIN), Draw(0, 7, PLAIN)]
    ((found, targets, _),) = training_loader(decoded, [draws], params, ALONE)
    alone = torch.stack([decoded[draw][0] for draw in draws])
    assert targets.tolist() == [0, 1, 1, 1]
    assert torch.equal(found[:2], alone[:2])
    assert (found.int() - alone.int()).abs().float().mean() < 1


def test_a_batch_of_workers_can_be_pinned(
    decoded: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch pins what it knows: here it must know all parts, on machines without a GPU too."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self)
    batch = host_batch([host_image(decoded, draw) for draw in BATCHES[0]])
    by_loader = pin_as_the_loader_does(batch)
    assert isinstance(by_loader, HostBatch) and isinstance(by_loader.changes, BatchChanges)
    assert len(pinned) == 6
    assert pin_memory(batch).changes.groups == batch.changes.groups
    assert len(pinned) == 6 + 5  # the pixels are pinned already


def test_the_draws_are_those_of_the_cpu(decoded: TrainingImages) -> None:
    """So an image is the same but for rounding, and without rounding it is the same."""
    loader = training_loader(decoded, BATCHES, decoded.params, ALONE)
    flips_only = decoded.params.augmentation.model_dump()
    for name in OPERATIONS:
        flips_only[name]["probability"] = 0.0
    for draws, images in zip(BATCHES, batches_of(loader), strict=True):
        alone = torch.stack([decoded[draw][0] for draw in draws])
        assert not torch.equal(alone, torch.stack([decoded.resized(draw.index) for draw in draws]))
        assert (alone.int() - images.int()).abs().float().mean() < 0.4
    augmentation = decoded.params.augmentation.model_validate(flips_only)
    params = decoded.params.model_copy(update={"augmentation": augmentation})
    decoded.params = params
    loader = training_loader(decoded, BATCHES, params, ALONE)
    alone = [torch.stack([decoded[draw][0] for draw in draws]) for draws in BATCHES]
    assert same(batches_of(loader), alone)


def test_what_the_device_has_is_not_sent_there(decoded: TrainingImages) -> None:
    decoded.on_device = kept = KeptPixels(decoded, CPU)
    images = [host_image(decoded, draw, kept) for draw in BATCHES[0]]
    batch = host_batch(images, kept)
    on_cpu = [{change.name for change in decoded.changes_of(draw)} for draw in BATCHES[0]]
    is_sent = [bool(names & {"jpeg", "webp", "noise"}) for names in on_cpu]
    assert [image.pixels is not None for image in images] == is_sent
    assert 0 < len(batch.pixels) == sum(is_sent) < 6


def test_pairs_are_changed_at_the_pixels_of_their_files(packed: tuple[Path, pd.DataFrame]) -> None:
    shares = {"first_share": 1.0, "last_share": 1.0}
    defaults = params_with().pseudo_fakes.model_dump()
    params = params_with(pseudo_fakes=defaults | shares, num_workers=0)
    images = images_of(packed, params)
    draws = [Draw(0, 2, PAIR_REAL), Draw(0, 2, PAIR_FAKE)]
    ((found, targets, _),) = training_loader(images, [draws], params, ALONE)
    assert targets.tolist() == [0, 1]
    assert torch.equal(found, torch.stack([images[draw][0] for draw in draws]))


def test_validation_reads_what_is_decoded_in_threads(
    packed: tuple[Path, pd.DataFrame], decoded: TrainingImages
) -> None:
    folder, labels = packed
    val = LabelledImages(labels, folder / "packed", SEEN)
    batches = [list(range(7)), list(range(7, COUNT))]
    by_workers = unchanged_loader(val, batches, decoded.params, ALONE)
    expected = [batch[0] for batch in by_workers]
    val.decoded = decoded.decoded
    by_threads = unchanged_loader(val, batches, decoded.params, ALONE)
    assert isinstance(by_threads, DeviceBatches) and by_threads.dataset is val
    assert same([batch[0] for batch in by_threads], expected)


# ---------------------------------------------------------------------------------------------
# The device decodes


def test_the_device_decodes_upright_rgb_jpegs_alone(packed: tuple[Path, pd.DataFrame]) -> None:
    params = params_with(gpu_decoding=True)
    images = images_of(packed, params)
    source = DecodedPixels(images, CPU)
    assert [source.has(index) for index in range(COUNT)] == [
        n not in (3, 4, 5) for n in range(COUNT)
    ]
    plain = params_with(augmentation=params.augmentation.model_dump())
    theirs = batches_of(training_loader(images, BATCHES, params, ALONE))
    ours = batches_of(training_loader(images, BATCHES, plain, ALONE))
    for one, other in zip(theirs, ours, strict=True):  # two builds of libjpeg-turbo
        assert (one.int() - other.int()).abs().float().mean() < 1


def test_the_device_crops_to_the_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    files = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        files.append(drawn_face(draw_person(random), "", 160, random))
    labels = pack_files(tmp_path, [*files, encoded(0)])
    params = params_with(face_crop=1.2, gpu_decoding=True)
    seen = SEEN.model_copy(update={"face_crop": 1.2})
    images = TrainingImages(labels, tmp_path / "packed", seen, params)
    find_faces_ahead(images, 0)
    assert "found 3 faces for crops in 4 images" in capsys.readouterr().out
    source = DecodedPixels(images, CPU)
    found = source.pixels_of(np.arange(4))
    for index in range(4):
        assert (found[index].int() - images.resized(index).int()).abs().float().mean() < 1
    whole = DecodedPixels(TrainingImages(labels, tmp_path / "packed", SEEN, params), CPU)
    assert (whole.pixels_of(np.arange(3)).int() - found[:3].int()).abs().float().mean() > 5


@pytest.fixture
def failing(
    packed: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], DecodedPixels]:
    """Return a decoder that fails on the image 1, in these words."""

    def with_words(words: str) -> DecodedPixels:
        images = images_of(packed, params_with(gpu_decoding=True))
        bad, real_decode = images.content(1), device_pixels.decode_on

        def decode(device: torch.device, files: list[np.ndarray]) -> list[torch.Tensor]:
            if any(file.tobytes() == bad for file in files):
                raise RuntimeError(f"Error while decoding JPEG images: {words}")
            return real_decode(device, files)

        monkeypatch.setattr(device_pixels, "decode_on", decode)
        return DecodedPixels(images, CPU)

    return with_words


def test_what_the_device_cannot_decode_the_cpu_does(
    failing: Callable[[str], DecodedPixels],
    packed: tuple[Path, pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = images_of(packed, params_with(gpu_decoding=True))
    expected = DecodedPixels(images, CPU).pixels_of(np.array([0, 1, 2]))
    source = failing("not supported")
    assert source.has(1)
    found = source.pixels_of(np.array([0, 1, 2]))
    assert torch.equal(found[::2], expected[::2])
    assert torch.equal(found[1], images.resized(1))  # as whoever asks `has` next loads it
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "01.jpg" in out and "not supported; the CPU decodes it" in out
    assert source.has(0) and not source.has(1)


def test_an_error_of_the_device_is_not_one_of_a_file(
    failing: Callable[[str], DecodedPixels],
) -> None:
    source = failing("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="out of memory"):
        source.pixels_of(np.array([0, 1, 2]))
    assert source.num_failures == 0


def test_a_device_that_cannot_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, files: list[np.ndarray]) -> list[torch.Tensor]:
        raise RuntimeError("torchvision was not compiled with nvJPEG support")

    check_decoder(CPU)
    monkeypatch.setattr(device_pixels, "decode_on", refuse)
    with pytest.raises(UserError, match="gpu_decoding = True: cpu cannot decode here: torchvision"):
        check_decoder(CPU)


# ---------------------------------------------------------------------------------------------
# A GPU


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("keep", [False, True])
def test_a_gpu_hands_over_what_the_cpu_does(decoded: TrainingImages, keep: bool) -> None:
    expected = batches_of(training_loader(decoded, BATCHES, decoded.params, ALONE))
    gpu = torch.device("cuda", 0)
    if keep:
        decoded.on_device = KeptPixels(decoded, gpu)
    loader = training_loader(decoded, BATCHES, decoded.params, Hardware(gpu, True))
    for one, other in zip(loader, expected, strict=True):
        assert (one[0].cpu().int() - other.int()).abs().float().mean() < 0.05


# ---------------------------------------------------------------------------------------------
# Threads


def test_an_error_of_a_thread_comes_where_its_batch_would(decoded: TrainingImages) -> None:
    assert decoded.decoded is not None
    content = bytearray(decoded.decoded[0])
    content[5] ^= 1
    real = decoded.decoded

    class Damaged:
        folder = "cache"

        def __getitem__(self, row: int) -> memoryview:
            return memoryview(bytes(content)) if row == 0 else real[row]

    decoded.decoded = Damaged()  # pyrefly: ignore[bad-assignment]
    batches = iter(training_loader(decoded, BATCHES, decoded.params, ALONE).loader)  # pyrefly: ignore
    next(batches)
    with pytest.raises(UserError, match=r"00.jpg is damaged; remove this folder"):
        next(batches)


def test_whoever_stops_early_leaves_no_thread(decoded: TrainingImages) -> None:
    before = threading.active_count()
    batches = iter(training_loader(decoded, BATCHES * 20, decoded.params, ALONE))
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before


# ---------------------------------------------------------------------------------------------
# Parameters


def test_images_are_kept_where_they_fit(decoded: TrainingImages) -> None:
    num_bytes = COUNT * 3 * SIDE * SIDE
    assert kept_bytes(decoded, num_bytes / 1e9) == num_bytes
    assert kept_bytes(decoded, 0.99 * num_bytes / 1e9) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu_decoding": True, "decoded_gb": 1.0}, "train.decoded_gb = 1.0; use one of the two"),
        ({"gpu_decoding": True, "reencode": [60, 95]}, r"train.reencode = \[60, 95\]; use one"),
        ({"gpu_images_gb": 1.0, "reencode": [60, 95]}, r"train.reencode = \[60, 95\]; use one"),
        ({"gpu_decoding": True, "scaled_decoding": True}, "train.scaled_decoding = True; use one"),
        ({"gpu_images_gb": 2.0}, "set train.decoded_gb, too"),
    ],
)
def test_parameters_that_exclude_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        params_with(**changes)
