"""Train the detector and keep the epoch with the best validation AUC.

params.yaml: train; data/labels/{train,val}.csv, data/packed/{train,val}
  ->  data/model/{weights.safetensors, config.json, history.csv}, one MLflow run
Run: python -m stages.train            (starts torchrun itself where train.num_processes > 1)
     torchrun ... -m stages.train      (several machines)

`train.batch_size` counts the images of one optimizer step, over all processes and accumulated
micro-batches together, so the number of GPUs changes the speed and not the training.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from sklearn.metrics import roc_auc_score
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, distribute_bn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from stages.lib.competition import CLASS_NAMES, FAKE
from stages.lib.errors import UserError, did_you_mean, run_stage
from stages.lib.files import fresh_folder, sha256_of
from stages.lib.hardware import DeviceName, Hardware, Precision, processes_of
from stages.lib.images import Augmentation, LabelledImages, make_loader, sequential_batches
from stages.lib.labels import read_labels, write_table
from stages.lib.model import (
    WEIGHTS_FILE,
    Detector,
    DetectorConfig,
    count_parameters,
    create_model,
    fake_logit,
    input_size_args,
    provenance,
    resolve_preprocessing,
    save_detector,
)
from stages.lib.params import StageParams, load_params
from stages.lib.progress import progress_bar
from stages.lib.tracking import Tracker, training_run

LABELS = Path("data/labels")
PACKED = Path("data/packed")
MODEL = Path("data/model")
INPUTS = [LABELS / "train.csv", LABELS / "val.csv", PACKED / "train/facts.parquet",
          PACKED / "val/facts.parquet"]  # fmt: skip

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Quality = Annotated[int, Field(ge=1, le=100)]


class TrainParams(StageParams):
    """Section `train`; params.yaml says what each one means."""

    model: str
    model_args: dict[str, Any]
    weights: str
    image_size: Annotated[int, Field(ge=16, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] | None
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None
    reencode: Annotated[list[Quality], Field(min_length=2, max_length=2)] | None
    scaled_decoding: bool
    augmentation: Augmentation
    mixup: NonNegative
    cutmix: NonNegative
    label_smoothing: Share
    class_balance: Literal["none", "weights", "sampler"]
    epochs: Positive
    early_stopping: Positive | None
    batch_size: Positive
    accumulate: Positive
    optimizer: str
    lr: Annotated[float, Field(gt=0)]
    momentum: Share
    weight_decay: NonNegative
    schedule: Literal["cosine", "step", "constant"]
    warmup_epochs: Count
    min_lr: NonNegative
    decay_epochs: Positive
    decay_rate: Annotated[float, Field(gt=0, le=1)]
    clip_grad: Annotated[float, Field(gt=0)] | None
    ema_decay: Share
    precision: Precision
    channels_last: bool
    compile: bool
    device: DeviceName
    num_processes: Positive
    num_workers: Count
    num_threads: Positive
    seed: Count


def main() -> None:
    """Train, and write data/model whole or not at all."""
    params = load_params("train", TrainParams)
    labels = {name: read_labels(LABELS / f"{name}.csv") for name in ("train", "val")}
    _check(params, len(labels["train"]))
    with (
        processes_of(
            "train", params.num_processes, params.device, params.precision, params.num_threads
        ) as hardware,
        training_run(sha256_of(*INPUTS), hardware.rank == 0) as tracker,
    ):
        train(params, labels, hardware, tracker)


def _check(params: TrainParams, num_images: int) -> None:
    """Raise UserError for parameters that are right one by one and wrong together."""
    if params.optimizer not in list_optimizers():
        hint = did_you_mean(params.optimizer, list_optimizers())
        raise UserError(f"train.optimizer = '{params.optimizer}' is not one of timm's{hint}")
    if params.reencode and params.reencode[0] > params.reencode[1]:
        raise UserError(f"train.reencode = {params.reencode}: give the lowest quality first")
    world_size = int(os.environ.get("WORLD_SIZE", params.num_processes))
    micro_batch, rest = divmod(params.batch_size, world_size * params.accumulate)
    if rest or not micro_batch:
        raise UserError(
            f"train.batch_size = {params.batch_size} cannot be shared by {world_size} processes x "
            f"train.accumulate = {params.accumulate}; make it a multiple of "
            f"{world_size * params.accumulate}"
        )
    if micro_batch % 2 and (params.mixup or params.cutmix):
        raise UserError(f"train.mixup and train.cutmix need an even micro-batch, not {micro_batch}")
    if num_images < params.batch_size:
        raise UserError(
            f"train.batch_size = {params.batch_size} is more than the {num_images} images"
        )


# ---------------------------------------------------------------------------------------------
# The training run


@dataclass
class Best:
    """The best epoch so far and its weights."""

    epoch: int = 0
    auc: float = -1.0
    state: dict[str, torch.Tensor] | None = None


def train(
    params: TrainParams, labels: dict[str, pd.DataFrame], hardware: Hardware, tracker: Tracker
) -> None:
    """Train for params.epochs and write MODEL (first process only)."""
    torch.manual_seed(params.seed)  # the initial weights
    model_args = input_size_args(params.model, params.image_size) | params.model_args
    model = create_model(params.model, model_args, params.weights)
    preprocessing = resolve_preprocessing(
        model, image_size=params.image_size, interpolation=params.interpolation,
        mean=params.mean, std=params.std, reencode=params.reencode,
        scaled_decoding=params.scaled_decoding,
    )  # fmt: skip
    images = {
        "train": LabelledImages(
            labels["train"], PACKED, preprocessing, params.augmentation, params.seed
        ),
        "val": LabelledImages(labels["val"], PACKED, preprocessing),
    }
    detector = Detector(model, preprocessing).to(hardware.device)
    if params.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if hardware.rank == 0:
        _announce(params, detector, labels, hardware, tracker)

    loop = TrainingLoop(params, detector, images["train"], hardware)
    best = Best()
    history = []
    for epoch in range(params.epochs):
        trained, speed = loop.train_epoch(epoch)
        # The AUC first: MLflow's comparison of runs opens with the first metric.
        results = validate(loop.evaluated_detector, images["val"], params, hardware) | trained
        if not np.isfinite(results["train_loss"] + results["val_loss"]):
            raise UserError(
                f"training diverged in epoch {epoch + 1} (training loss {results['train_loss']}); "
                "lower train.lr, or set train.clip_grad"
            )
        if results["val_auc"] > best.auc:
            state = loop.evaluated_detector.model.state_dict()
            best = Best(epoch + 1, results["val_auc"], {k: v.clone() for k, v in state.items()})
        history.append({"epoch": epoch + 1, **results})
        if hardware.rank == 0:
            _report_epoch(params, epoch, results, speed, best, tracker)
        if params.early_stopping and epoch + 1 - best.epoch >= params.early_stopping:
            break
    if hardware.rank == 0:
        config = DetectorConfig(
            model=params.model,
            model_args=model_args,
            preprocessing=preprocessing,
            num_parameters=count_parameters(model),
            initial_weights=provenance(params.model, params.weights),
            best_epoch=best.epoch,
        )
        _write_model(best, config, history)
        tracker.log_metrics({"best_epoch": best.epoch})
        tracker.log_detector(MODEL, MODEL / WEIGHTS_FILE)


def _write_model(best: Best, config: DetectorConfig, history: list[dict[str, float]]) -> None:
    with fresh_folder(MODEL) as folder:
        save_detector(folder, best.state, config)
        write_table(pd.DataFrame(history), folder / "history.csv")


def _announce(
    params: TrainParams,
    detector: Detector,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
) -> None:
    num_parameters = count_parameters(detector)
    print(f"device: {hardware}")
    start = {"random": "random initialisation, no pretrained weights"}.get(params.weights)
    print(f"model: {params.model}, {num_parameters / 1e6:.1f} M parameters, ", end="")
    print(start or f"weights from {params.weights}")
    for name, table in labels.items():
        print(f"{name}: {len(table)} images, {(table['target'] == FAKE).mean():.0%} fake")
        tracker.log_dataset(table, name, LABELS / f"{name}.csv")
    tracker.log_tags({"device": str(hardware), "num_parameters": num_parameters})
    print(
        "epoch         lr  train loss  val loss  val acc  val AUC  images/s  waiting  memory GB",
        flush=True,
    )


def _report_epoch(
    params: TrainParams,
    epoch: int,
    results: dict[str, float],
    speed: dict[str, float],
    best: Best,
    tracker: Tracker,
) -> None:
    print(
        f"{epoch + 1:3d}/{params.epochs:<3d} {results['lr']:8.2e}  {results['train_loss']:10.4f}"
        f"  {results['val_loss']:8.4f}  {results['val_accuracy']:7.4f}  {results['val_auc']:7.4f}"
        f"  {speed['images_per_second']:8.1f}  {speed['waiting_share']:7.1%}"
        f"  {speed['peak_memory_gb']:9.2f}{'  best' if best.epoch == epoch + 1 else ''}",
        flush=True,
    )
    tracker.log_epoch(epoch + 1, results)
    tracker.log_metrics({f"speed/{name}": value for name, value in speed.items()}, step=epoch + 1)


# ---------------------------------------------------------------------------------------------
# One epoch


class TrainingLoop:
    """The network with all that changes while it trains."""

    def __init__(
        self, params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
    ) -> None:
        self.params, self.images, self.hardware = params, images, hardware
        self.detector = detector
        self.parallel: DistributedDataParallel | None = None
        if hardware.world_size > 1:
            if hardware.device.type == "cuda":
                detector.model = convert_sync_batchnorm(detector.model)
            self.parallel = DistributedDataParallel(detector.model)
        network = self.parallel or detector.model
        self.network = torch.compile(network) if params.compile else network
        self.steps_per_epoch = len(images) // params.batch_size
        self.optimizer = create_optimizer_v2(
            detector.model, opt=params.optimizer, lr=params.lr,
            weight_decay=params.weight_decay, momentum=params.momentum,
        )  # fmt: skip
        self.schedule = make_schedule(params, self.optimizer, self.steps_per_epoch)
        self.class_weights = self._class_weights().to(hardware.device)
        self.mix = make_mixup(params)
        self.ema = (
            ModelEmaV3(detector, decay=params.ema_decay, use_warmup=True)
            if params.ema_decay
            else None
        )

    @property
    def evaluated_detector(self) -> Detector:
        """The detector that validation judges and that is kept: the EMA's where there is one."""
        return self.ema.module if self.ema else self.detector

    def _class_weights(self) -> torch.Tensor:
        """Return float (2,), such that the mean weight of a training image is 1."""
        counts = np.bincount(self.images.targets, minlength=len(CLASS_NAMES))
        if self.params.class_balance != "weights":
            return torch.ones(len(CLASS_NAMES))
        return torch.from_numpy(len(self.images) / (len(CLASS_NAMES) * counts)).float()

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Train on every image once; return ({lr, train_loss}, speed)."""
        params, hardware = self.params, self.hardware
        batches = training_batches(params, self.images.targets, epoch, hardware)
        loader = make_loader(
            self.images, batches, params.num_workers, pin=hardware.device.type == "cuda"
        )
        self.detector.train()
        loss_sum = torch.zeros((), device=hardware.device)
        clock = Clock()
        updates = epoch * self.steps_per_epoch
        self.schedule.step_update(updates)
        lr = self.optimizer.param_groups[0]["lr"]
        for number, (images, targets) in enumerate(timed(loader, clock, f"epoch {epoch + 1}")):
            last_of_step = (number + 1) % params.accumulate == 0
            loss_sum += self._forward_backward(images, targets, (epoch, number), last_of_step)
            if last_of_step:
                self._update()
                updates += 1
                self.schedule.step_update(updates)
        if self.parallel:
            dist.all_reduce(loss_sum)
            # Each process has seen other images; the kept weights need one set of statistics.
            for detector in {self.detector, self.evaluated_detector}:
                distribute_bn(detector, hardware.world_size, reduce=True)
        total = loss_sum.item()
        num_batches = len(batches) * hardware.world_size
        speed = clock.speed(self.steps_per_epoch * params.batch_size)
        return {"lr": lr, "train_loss": total / num_batches}, speed

    def _forward_backward(
        self, images: torch.Tensor, targets: torch.Tensor, key: tuple[int, int], synchronise: bool
    ) -> torch.Tensor:
        """Add one micro-batch's gradient; return its mean loss, on the device, detached."""
        params, device = self.params, self.hardware.device
        images = self.detector.normalize(images.to(device, non_blocking=True))
        targets = targets.to(device, non_blocking=True)
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix:
            # timm's Mixup draws from NumPy's global generator: fixed by seed, epoch and batch.
            np.random.seed(np.random.SeedSequence([params.seed, *key]).generate_state(1))
            images, targets = self.mix(images, targets)
        if self.parallel:  # micro-batches before the last one of a step stay at home
            self.parallel.require_backward_grad_sync = synchronise
        with self.hardware.autocast():
            outputs = self.network(images)
        smoothing = 0.0 if self.mix else params.label_smoothing
        losses = F.cross_entropy(
            outputs.float(), targets, self.class_weights,
            label_smoothing=smoothing, reduction="none",
        )  # fmt: skip
        loss = losses.mean()
        (loss / params.accumulate).backward()
        return loss.detach()

    def _update(self) -> None:
        if self.params.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.params.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.detector)


@torch.inference_mode()
def validate(
    detector: Detector, images: LabelledImages, params: TrainParams, hardware: Hardware
) -> dict[str, float]:
    """Return AUC, accuracy at 0.5 and loss on images, the same in every process."""
    batches = sequential_batches(len(images), params.batch_size, hardware.rank, hardware.world_size)
    loader = make_loader(images, batches, params.num_workers, hardware.device.type == "cuda")
    detector.eval()
    logits = torch.zeros(len(images), device=hardware.device)
    for batch, _, indices in loader:
        with hardware.autocast():
            outputs = detector(batch.to(hardware.device, non_blocking=True))
        logits[indices.to(hardware.device)] = fake_logit(outputs)
    if hardware.world_size > 1:  # each process filled in its own images and left 0 elsewhere
        dist.all_reduce(logits)
    logits = logits.cpu().double()
    targets = torch.from_numpy(images.targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets.double())
    if not torch.isfinite(loss):
        return {"val_auc": 0.0, "val_accuracy": 0.0, "val_loss": float("nan")}
    scores = torch.sigmoid(logits).numpy()
    return {
        "val_auc": float(roc_auc_score(images.targets, scores)),
        "val_accuracy": float(((scores >= 0.5) == images.targets).mean()),
        "val_loss": float(loss),
    }


# ---------------------------------------------------------------------------------------------
# The parts of the loop


def training_batches(
    params: TrainParams, targets: np.ndarray, epoch: int, hardware: Hardware
) -> list[list[tuple[int, int]]]:
    """Return this process's micro-batches of (epoch, index) for one epoch.

    The order depends on the seed and the epoch alone; each step's images are dealt out over the
    processes, and the images left over after the last whole step sit this epoch out.
    """
    random = np.random.default_rng([params.seed, epoch])
    if params.class_balance == "sampler":
        weights = 1 / np.bincount(targets)[targets]
        order = random.choice(len(targets), len(targets), p=weights / weights.sum())
    else:
        order = random.permutation(len(targets))
    num_steps = len(order) // params.batch_size
    steps = order[: num_steps * params.batch_size].reshape(num_steps, params.batch_size)
    mine = steps[:, hardware.rank :: hardware.world_size].reshape(num_steps * params.accumulate, -1)
    return [[(epoch, int(index)) for index in batch] for batch in mine]


def make_schedule(
    params: TrainParams, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Scheduler:
    """Return timm's schedule, stepped once per update."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=params.schedule,
        num_epochs=params.epochs,
        warmup_epochs=params.warmup_epochs,
        warmup_lr=params.lr / 100,
        min_lr=params.min_lr,
        decay_epochs=params.decay_epochs,
        decay_rate=params.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


def make_mixup(params: TrainParams) -> Mixup | None:
    """Return timm's Mixup (Zhang 2018) / CutMix (Yun 2019) where either is on."""
    if not (params.mixup or params.cutmix):
        return None
    return Mixup(
        mixup_alpha=params.mixup, cutmix_alpha=params.cutmix,
        label_smoothing=params.label_smoothing, num_classes=len(CLASS_NAMES),
    )  # fmt: skip


class Clock:
    """Measures an epoch: its seconds, and those spent waiting for the next batch."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waiting = 0.0

    def speed(self, num_images: int) -> dict[str, float]:
        """Return images per second, the share of time spent waiting for data, peak memory."""
        seconds = time.perf_counter() - self.start
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "images_per_second": num_images / seconds,
            "waiting_share": self.waiting / seconds,
            "peak_memory_gb": memory / 1e9,
        }


def timed(
    loader: DataLoader, clock: Clock, desc: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images, targets), adding the time spent waiting for them to the clock."""
    with progress_bar(desc, len(loader), unit="batches") as bar:
        before = time.perf_counter()
        for images, targets, _ in loader:
            clock.waiting += time.perf_counter() - before
            yield images, targets
            bar.update()
            before = time.perf_counter()


if __name__ == "__main__":
    run_stage(main)
