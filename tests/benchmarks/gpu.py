"""Measure what a GPU waits for, the ways of before and of today side by side, in one run.

Run: python -m tests.benchmarks.gpu [--images 1024] [--copies 8] [--repeats 3]
     python -m tests.benchmarks.gpu --images 160 --copies 2 --loading   (without a GPU)
     python -m tests.benchmarks.gpu --images 64 --copies 2 --rehearse   (to see that all of it runs)

On drawn 512 px JPEG photographs, each in the label table `copies` times, it prints

- how many images a second each way of loading hands over, with no network, for the augmentations of
  the presets `baseline` and `strong` (--loading: this alone, on a CPU without the device's part, so
  that it says what a CPU can feed)
- how many images a second the CPU makes the views of stability of, against those of before
- images per second of training resnet18 at 256 px, against the notebooks' loop
- images per second of training the preset `strong`, against today's workers, and the share of the
  time that it waits for images; with `compile`, too
- images per second of scoring with the views of stability, against those of before
- by how much the pixels of nvJPEG and the scores of them differ from those of the CPU
- what a step of `strong` spends its time on, by PyTorch's profiler, in .bench/strong_profile.txt

On one H200 with 16 cores this is made to take about eight minutes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from stages.lib.core.params import read_yaml
from stages.lib.detector.dataset import make_loader, sequential_batches
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.inference import CHANGED_VIEWS, ChangedImages, Inference
from stages.lib.detector.model import create_model, fake_logit, resolve_preprocessing
from stages.lib.detector.pixel_operations import webp
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.device_batches import DeviceBatches
from stages.lib.training.device_pixels import DecodedPixels, keep_on_device
from stages.lib.training.images import TrainingImages
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from stages.train import make_detector
from tests.benchmarks import notebook
from tests.benchmarks.inference import save_random
from tests.benchmarks.notebook import draw_photographs, pack
from tests.benchmarks.race import Rates, race, report
from tests.benchmarks.training import on_the_device

ROOT = Path(__file__).parents[2]
# Ways of loading: parameters of `train`. The first is what there was before.
WAYS: dict[str, dict[str, Any]] = {
    "workers": {"augment_on": "cpu"},
    "workers, augmented on the device": {"augment_on": "device"},
    "the device decodes": {"augment_on": "device", "gpu_decoding": True},
    "workers, decoded": {"augment_on": "cpu", "decoded_gb": 100.0},
    "threads, decoded": {"augment_on": "device", "decoded_gb": 100.0},
    "kept on the device": {"augment_on": "device", "decoded_gb": 100.0, "gpu_images_gb": 100.0},
}
STRONG_STEPS = 12  # in an epoch of the race of `strong`
CHANGED: dict[str, Any] = {}  # parameters of all trainings, in a rehearsal


def main() -> None:
    """Measure all, or the loading alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loading", action="store_true", help="nothing else")
    parser.add_argument("--rehearse", action="store_true", help="with tiny networks and images")
    given = parser.parse_args()
    if given.rehearse:
        CHANGED.update({"model": "test_convnext", "image_size": 64, "batch_size": 16})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = draw_photographs(folder / "photographs", given.images)
        labels = pd.concat([pack(folder, table)] * given.copies, ignore_index=True)
        for preset in ("baseline", "strong"):
            report(f"loading for {preset}", race_loading(folder, labels, preset, given.repeats))
        report("views of stability", race_views(folder, labels[: given.images], given.repeats))
        if not given.loading:
            table = pd.concat([table] * given.copies, ignore_index=True)
            report("training", race_training(folder, labels, table, given.repeats))
            report("strong", race_strong(folder, labels, given.repeats))
            report("scoring", race_scoring(folder, labels[: given.images], given.repeats))
            print_differences(folder, labels[: given.images])
            profile_strong(folder, labels)
    print(f"all of it: {time.perf_counter() - start:.0f} s")


def params_of(preset: str, **changes: Any) -> TrainParams:
    """Return the section `train` of params.yaml with a preset and changes, from random weights.

    Not by stages.chores.preset, because the machine with a GPU may lack ruamel.yaml.
    """
    section = read_yaml(ROOT / "params.yaml")["train"]
    chosen = read_yaml(ROOT / f"stages/presets/{preset}.yaml")["train"]
    for name, value in chosen.items():
        section[name] = section[name] | value if isinstance(value, dict) else value
    machine = {"num_workers": os.cpu_count() or 2, "num_threads": torch.get_num_threads()}
    fixed = {"weights": "random", "accumulate": 1, "arithmetic": "native", "clip_grad": None}
    return TrainParams.model_validate(section | machine | fixed | changes | CHANGED)


def ways_for(preset: str) -> dict[str, dict[str, Any]]:
    """Return the ways that are of use: `strong` re-encodes, which the CPU does with every image."""
    gpu_only = ("gpu_decoding", "gpu_images_gb")
    is_reencoded = params_of(preset).reencode is not None
    return {
        way: changes
        for way, changes in WAYS.items()
        if not (is_reencoded and any(name in changes for name in gpu_only))
    }


def loop_of(folder: Path, labels: pd.DataFrame, params: TrainParams) -> TrainingLoop:
    """Return stages.train's loop, with images as the parameters say."""
    hardware = set_up_hardware(params.device, params.num_threads, bf16=True)
    detector, config = make_detector(params, hardware)
    images = TrainingImages(labels, folder / "packed", config.preprocessing, params)
    if params.decoded_gb:
        assert decode_ahead({"train": images}, params.decoded_gb, params.num_workers)
    if params.gpu_images_gb:
        keep_on_device(images, params.gpu_images_gb, hardware)
    return TrainingLoop(params, detector, images, hardware)


def race_loading(folder: Path, labels: pd.DataFrame, preset: str, repeats: int) -> Rates:
    """Return images per second that each way hands over, with no network."""
    runs: dict[str, Callable[[], object]] = {}
    for way, changes in ways_for(preset).items():
        if "gpu_decoding" in changes and not torch.cuda.is_available():
            continue
        loop = loop_of(folder, labels, params_of(preset, batch_size=32, **changes))
        runs["baseline" if way == "workers" else way] = lambda loop=loop: hand_over(loop)
    return race(runs, len(labels), repeats)


def hand_over(loop: TrainingLoop) -> None:
    """Load an epoch, and do nothing with it; without a GPU the device does not complete it."""
    loop.sampler.set_epoch(0)
    loader: Any = loop.loader
    if loop.hardware.device.type == "cpu" and isinstance(loader, DeviceBatches):
        loader = loader.loader
    for batch in loader:
        batch[0].to(loop.hardware.device, non_blocking=True)


def race_training(folder: Path, labels: pd.DataFrame, table: pd.DataFrame, repeats: int) -> Rates:
    """Return images per second of training resnet18, and of the notebooks' loop."""
    batch = {"batch_size": notebook.BATCH_SIZE}
    loops = {
        way: loop_of(folder, labels, params_of("baseline", **batch, **changes))
        for way, changes in WAYS.items()
    }
    device = loops["workers"].hardware.device
    runs: dict[str, Callable[[], object]] = {
        "baseline": notebook.training(folder / "photographs", table, device)
    }
    for way, loop in loops.items():
        runs[way] = lambda loop=loop: loop.train_epoch(0)
    runs["nothing to load"] = nothing_to_load(loops["workers"])
    return race(runs, len(labels), repeats)


def nothing_to_load(loop: TrainingLoop) -> Callable[[], object]:
    """Return an epoch whose batches are on the device already."""
    batches = on_the_device(loop)
    return lambda: loop.train_on(batches, 0)


def race_strong(folder: Path, labels: pd.DataFrame, repeats: int) -> Rates:
    """Return images per second of the preset `strong`; print what each way waits for."""
    labels = labels[: STRONG_STEPS * params_of("strong").batch_size]
    ways = ways_for("strong")
    ways["threads, decoded, compiled"] = ways["threads, decoded"] | {"compile": "default"}
    runs: dict[str, Callable[[], object]] = {}
    waiting: dict[str, list[float]] = {}
    for way, changes in ways.items():
        loop = loop_of(folder, labels, params_of("strong", **changes))

        def epoch(loop: TrainingLoop = loop, way: str = way) -> None:
            _, speed = loop.train_epoch(0)
            waiting.setdefault(way, []).append(speed["waiting_share"])

        runs["baseline" if way == "workers" else way] = epoch
        if way == "workers":
            runs["nothing to load"] = nothing_to_load(loop)
    rates = race(runs, len(labels), repeats)
    for way, shares in waiting.items():
        print(f"strong: {way}: waits {np.median(shares[1:]):.1%} of the time")
    return rates


def changed_images(folder: Path, labels: pd.DataFrame, model: torch.nn.Module) -> ChangedImages:
    """Return the images with their views of stability."""
    how = resolve_preprocessing(model, image_size=notebook.IMAGE_SIZE)
    return ChangedImages(labels, folder / "packed", how)


def race_scoring(folder: Path, labels: pd.DataFrame, repeats: int) -> Rates:
    """Return images per second of scoring with the views of stability, of before and of today."""
    params = params_of("baseline")
    model = create_model("resnet18", {}, "random")
    images = changed_images(folder, labels, model)
    save_random(folder, model, images.preprocessing)
    hardware = set_up_hardware(params.device, params.num_threads)
    ours = replace(Inference.load(folder, hardware), batch_size=64)
    return race_webp(lambda: ours.scores_of(images, params.num_workers, ""), len(labels), repeats)


def race_views(folder: Path, labels: pd.DataFrame, repeats: int) -> Rates:
    """Return images per second of making the views of stability, with no network."""
    params = params_of("baseline")
    images = changed_images(folder, labels, create_model("resnet18", {}, "random"))

    def load() -> None:
        batches = sequential_batches(len(images), 12)
        for _ in make_loader(images, batches, params.num_workers, pin=False):
            pass

    return race_webp(load, len(labels), repeats)


def race_webp(run: Callable[[], object], num_images: int, repeats: int) -> Rates:
    """Let a run with the default method of WebP, as it was, take turns with one of today."""

    def before() -> None:
        with patch.dict(CHANGED_VIEWS, {"WebP 80": (webp, 80)}):
            run()

    return race({"baseline": before, "ours": run}, num_images, repeats)


def print_differences(folder: Path, labels: pd.DataFrame) -> None:
    """Print how pixels and scores differ where the device decodes."""
    loop = loop_of(folder, labels, params_of("baseline", **WAYS["the device decodes"]))
    images, device = loop.images, loop.hardware.device
    assert isinstance(images, TrainingImages)
    source, indices = DecodedPixels(images, device), np.arange(min(256, len(labels)))
    theirs = source.pixels_of(indices)
    ours = torch.stack([images.resized(int(index)) for index in indices]).to(device)
    levels = (theirs.int() - ours.int()).abs().float()
    print(
        f"the device decodes: {levels.mean():.3f} levels of 255 away on the mean, at most "
        f"{int(levels.max())}, {(levels > 2).float().mean():.2%} of them more than 2"
    )
    detector = loop.detector.eval()
    with torch.inference_mode():
        logits = [fake_logit(detector(pixels)) for pixels in (ours, theirs)]
    away = (logits[1] - logits[0]).abs() / logits[0].std()
    print(
        f"logits of a random network: {away.mean():.4f} standard deviations away, at most "
        f"{away.max():.4f}"
    )


def profile_strong(folder: Path, labels: pd.DataFrame) -> None:
    """Write what a few steps of `strong` spend their time on."""
    changes = WAYS["threads, decoded"]
    params = params_of("strong", **changes)
    loop = loop_of(folder, labels[: 4 * params.batch_size], params)
    loop.train_epoch(0)
    activities = [ProfilerActivity.CPU]
    sort_by = "self_cpu_time_total"
    if loop.hardware.device.type == "cuda":
        activities, sort_by = [*activities, ProfilerActivity.CUDA], "self_cuda_time_total"
    with profile(activities=activities) as profiler:
        loop.train_epoch(0)
    table = profiler.key_averages().table(sort_by=sort_by, row_limit=25)
    path = Path(".bench/strong_profile.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
