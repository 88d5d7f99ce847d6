"""The training loop: an epoch of steps, its validation, and what a step is made of."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from sklearn.metrics import roc_auc_score
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, check_batch_size_retry, distribute_bn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from stages.lib.competition import CLASS_NAMES
from stages.lib.errors import UserError
from stages.lib.hardware import CompileMode, DeviceName, Hardware, Precision
from stages.lib.images import Augmentation, LabelledImages, make_loader, sequential_batches
from stages.lib.model import Detector, fake_logit
from stages.lib.params import StageParams
from stages.lib.progress import progress_bar

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # uint8 (N, 3, S, S), targets, indices

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
    decoded_gb: NonNegative
    augmentation: Augmentation
    mixup: NonNegative
    cutmix: NonNegative
    label_smoothing: Share
    class_balance: Literal["none", "weights", "sampler"]
    epochs: Positive
    early_stopping: Positive | None
    batch_size: Positive
    accumulate: Positive | Literal["auto"]
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
    compile: CompileMode | None
    device: DeviceName
    num_processes: Positive
    num_workers: Count
    num_threads: Positive
    seed: Count


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
        self.network = torch.compile(network, mode=params.compile) if params.compile else network
        self.steps_per_epoch = len(images) // params.batch_size
        self.batches: list[list[tuple[int, int]]] = []  # of the epoch at hand
        pin = hardware.device.type == "cuda"
        self.loader = make_loader(images, self.batches, params.num_workers, pin)
        self.optimizer = make_optimizer(params, detector.model)
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
        self.batches[:] = training_batches(self.params, self.images.targets, epoch, self.hardware)
        return self.train_on(self.loader, epoch)

    def train_on(
        self, batches: Sequence[Batch] | DataLoader, epoch: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train on this process's micro-batches of one epoch.

        Nothing waits for the device before the epoch ends, but for several GPUs' SyncBatchNorm.
        """
        params, hardware = self.params, self.hardware
        self.detector.train()
        loss_sum = torch.zeros((), device=hardware.device)
        clock = Clock()
        updates = epoch * self.steps_per_epoch
        self.schedule.step_update(updates)
        lr = self.optimizer.param_groups[0]["lr"]
        for number, (images, targets) in enumerate(timed(batches, clock, f"epoch {epoch + 1}")):
            last_of_step = (number + 1) % params.accumulate == 0
            loss_sum += self._forward_backward(images, targets, (epoch, number), last_of_step)
            if last_of_step:
                self._update()
                updates += 1
                self.schedule.step_update(updates)
        if self.parallel:
            dist.all_reduce(loss_sum)
            # Each process has seen other images; the kept weights need one set of statistics.
            for detector in [self.detector, *([self.ema.module] if self.ema else [])]:
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


def validation_loader(
    images: LabelledImages, params: TrainParams, hardware: Hardware
) -> DataLoader:
    """Load this process's share of the images, each one once."""
    size = params.batch_size // (hardware.world_size * params.accumulate)  # which is known to fit
    batches = sequential_batches(len(images), size, hardware.rank, hardware.world_size)
    return make_loader(images, batches, params.num_workers, pin=hardware.device.type == "cuda")


@torch.inference_mode()
def validate(detector: Detector, loader: DataLoader, hardware: Hardware) -> dict[str, float]:
    """Return AUC, accuracy at 0.5 and loss on a validation_loader's images, in every process."""
    images = loader.dataset
    detector.eval()
    logits = torch.zeros(len(images), device=hardware.device)
    for batch, _, indices in loader:
        with hardware.autocast():
            outputs = detector(batch.to(hardware.device, non_blocking=True))
        logits[indices.to(hardware.device, non_blocking=True)] = fake_logit(outputs)
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
# Memory


def find_accumulate(
    params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
) -> int:
    """Return into how few micro-batches a step must be cut to fit into memory, in all processes.

    Found by taking steps on a copy of the detector. Raises UserError where nothing fits.
    """
    share = params.batch_size // hardware.world_size
    step = 2 if params.mixup or params.cutmix else 1  # which need an even number of images
    alone = replace(hardware, rank=0, world_size=1)
    for size in (size for size in range(share, 0, -step) if share % size == 0):
        accumulate = min(2, share // size)  # from the second on, gradients are there already
        changes = {"batch_size": size * accumulate, "accumulate": accumulate, "compile": None}
        problem = try_steps(params.model_copy(update=changes), detector, images, alone)
        if hardware.device.type == "cuda":  # others than this allocator need the memory, too
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(hardware.device)
        if problem is None:
            break
    else:
        raise UserError(
            f"train.accumulate = auto: not even {size} of {share} images fit into memory at once; "
            f"lower train.image_size, or take a smaller train.model ({problem})"
        )
    found = torch.tensor(share // size, device=hardware.device)
    if hardware.world_size > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def try_steps(
    params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
) -> str | None:
    """Take two steps, the second beside the optimizer's state, in 90 % of a GPU's free memory.

    Returns what went wrong: libraries have many words for a lack of memory.
    """
    gpus = [hardware.device] if hardware.device.type == "cuda" else []
    size, side = params.batch_size // params.accumulate, images.preprocessing.image_size
    batch = torch.zeros((size, 3, side, side), dtype=torch.uint8)
    targets = torch.zeros(size, dtype=torch.long)
    for gpu in gpus:
        free, total = torch.cuda.mem_get_info(gpu)
        own = torch.cuda.memory_reserved(gpu)
        torch.cuda.set_per_process_memory_fraction(0.9 * (free + own) / total, gpu)
    try:
        with torch.random.fork_rng(gpus):
            loop = TrainingLoop(params, deepcopy(detector), images, hardware)
            loop.train_on([(batch, targets, targets)] * 2 * params.accumulate, epoch=0)
    except (RuntimeError, MemoryError) as error:
        if not check_batch_size_retry(str(error)):
            raise
        return str(error).split("\n")[0]
    finally:
        for gpu in gpus:
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    return None


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


def make_optimizer(params: TrainParams, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimizer, fused into one kernel for all tensors where it is PyTorch's own."""
    fusible = (torch.optim.Adam, torch.optim.SGD)
    kind = get_optimizer_class(params.optimizer, bind_defaults=False)
    return create_optimizer_v2(
        model, opt=params.optimizer, lr=params.lr,
        weight_decay=params.weight_decay, momentum=params.momentum,
        **({"fused": True} if issubclass(kind, fusible) else {}),
    )  # fmt: skip


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
    batches: Sequence[Batch] | DataLoader, clock: Clock, desc: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (images, targets), adding the time spent waiting for them to the clock."""
    with progress_bar(desc, len(batches), unit="batches") as bar:
        before = time.perf_counter()
        for images, targets, _ in batches:
            clock.waiting += time.perf_counter() - before
            yield images, targets
            bar.update()
            before = time.perf_counter()
