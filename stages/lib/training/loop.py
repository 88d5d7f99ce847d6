"""The training loop: an epoch of steps, and its validation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3, distribute_bn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from stages.lib.core.labels import CLASS_NAMES
from stages.lib.detector.dataset import LabelledImages, make_loader, sequential_batches
from stages.lib.detector.model import Detector, fake_logit
from stages.lib.detector.runtime import Hardware
from stages.lib.detector.scoring import gather_logits
from stages.lib.training.batches import Key, training_batches
from stages.lib.training.optimization import (
    make_mixup,
    make_optimizer,
    make_schedule,
    set_trainable,
)
from stages.lib.training.params import Trainable, TrainParams
from stages.lib.training.speed import Batch, Clock, timed


class TrainingLoop:
    """The network and everything that changes while it trains."""

    def __init__(
        self, params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
    ) -> None:
        self.params, self.images, self.hardware = params, images, hardware
        self.detector = detector
        if hardware.world_size > 1 and hardware.device.type == "cuda":
            detector.model = convert_sync_batchnorm(detector.model)
        self.steps_per_epoch = len(images) // params.batch_size
        self.batches: list[list[Key]] = []  # of the current epoch
        pin = hardware.device.type == "cuda"
        self.loader = make_loader(images, self.batches, params.num_workers, pin)
        self.optimizer = make_optimizer(params, detector.model)
        self.schedule = make_schedule(params, self.optimizer, self.steps_per_epoch)
        self._let_learn("head" if params.frozen_epochs else params.trainable)
        self.class_weights = self._class_weights().to(hardware.device)
        self.mix = make_mixup(params)
        self.ema = (
            ModelEmaV3(detector, decay=params.ema_decay, use_warmup=True)
            if params.ema_decay
            else None
        )

    def _let_learn(self, which: Trainable) -> None:
        """Set which parameters learn; processes and the compiler must know before the next step."""
        set_trainable(self.detector.model, which)
        self.parallel: DistributedDataParallel | None = None
        if self.hardware.world_size > 1:
            self.parallel = DistributedDataParallel(self.detector.model)
        network = self.parallel or self.detector.model
        mode = self.params.compile
        self.network = torch.compile(network, mode=mode) if mode else network

    @property
    def evaluated_detector(self) -> Detector:
        """The detector that validation judges and that is kept: the EMA where there is one."""
        return self.ema.module if self.ema else self.detector

    def _class_weights(self) -> torch.Tensor:
        """Return float (2,), such that the mean weight of a training image is 1."""
        counts = np.bincount(self.images.targets, minlength=len(CLASS_NAMES))
        if self.params.class_balance != "weights":
            return torch.ones(len(CLASS_NAMES))
        return torch.from_numpy(len(self.images) / (len(CLASS_NAMES) * counts)).float()

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        """Train on every image once; return ({lr, train_loss}, speed)."""
        if epoch and epoch == self.params.frozen_epochs:
            self._let_learn(self.params.trainable)
        self.batches[:] = training_batches(self.params, self.images.targets, epoch, self.hardware)
        return self.train_on(self.loader, epoch)

    def train_on(
        self, batches: Sequence[Batch] | DataLoader, epoch: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train on the micro-batches of this process for one epoch.

        Nothing waits for the device before the end of the epoch, except SyncBatchNorm on several
        GPUs.
        """
        params, hardware = self.params, self.hardware
        self.detector.train()
        loss_sum = torch.zeros((), device=hardware.device)
        clock = Clock()
        updates = epoch * self.steps_per_epoch
        self.schedule.step_update(updates)
        lr = self.optimizer.param_groups[0]["lr"]
        for number, (images, targets) in enumerate(timed(batches, clock, f"epoch {epoch + 1}")):
            last_of_step = (number + 1) % params.num_micro_batches == 0
            loss_sum += self._forward_backward(images, targets, (epoch, number), last_of_step)
            if last_of_step:
                self._update()
                updates += 1
                self.schedule.step_update(updates)
        if self.parallel:
            dist.all_reduce(loss_sum)
            # Each process has seen other images, but the kept weights need one set of statistics.
            for detector in [self.detector, *([self.ema.module] if self.ema else [])]:
                distribute_bn(detector, hardware.world_size, reduce=True)
        total = loss_sum.item()
        num_batches = len(batches) * hardware.world_size
        speed = clock.speed(self.steps_per_epoch * params.batch_size)
        return {"lr": lr, "train_loss": total / num_batches}, speed

    def _forward_backward(
        self, images: torch.Tensor, targets: torch.Tensor, key: tuple[int, int], synchronise: bool
    ) -> torch.Tensor:
        """Add the gradient of one micro-batch; return its mean loss, detached, on the device."""
        params, device = self.params, self.hardware.device
        images = self.detector.normalize(images.to(device, non_blocking=True))
        targets = targets.to(device, non_blocking=True)
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix:
            # Mixup of timm draws from the global generator of NumPy: set by seed, epoch and batch.
            np.random.seed(np.random.SeedSequence([params.seed, *key]).generate_state(1))
            images, targets = self.mix(images, targets)
        if self.parallel:  # processes exchange gradients once a step, after its last micro-batch
            self.parallel.require_backward_grad_sync = synchronise
        with self.hardware.autocast():
            outputs = self.network(images)
        smoothing = 0.0 if self.mix else params.label_smoothing
        losses = F.cross_entropy(
            outputs.float(), targets, self.class_weights,
            label_smoothing=smoothing, reduction="none",
        )  # fmt: skip
        loss = losses.mean()
        (loss / params.num_micro_batches).backward()
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
    """Return a loader of the images that this process validates; each image is loaded once."""
    size = params.batch_size // (
        hardware.world_size * params.num_micro_batches
    )  # which is known to fit
    batches = sequential_batches(len(images), size, hardware.rank, hardware.world_size)
    return make_loader(images, batches, params.num_workers, pin=hardware.device.type == "cuda")


def validate(detector: Detector, loader: DataLoader, hardware: Hardware) -> dict[str, float]:
    """Return AUC, accuracy at 0.5 and loss on the images of validation_loader, in every process."""
    detector.eval()
    logits = gather_logits(
        lambda inputs: fake_logit(detector(inputs))[:, None], loader, hardware, "validate"
    )[:, 0]
    images: Any = loader.dataset
    targets = images.targets
    loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets).double())
    if not torch.isfinite(loss):
        return {"val_auc": 0.0, "val_accuracy": 0.0, "val_loss": float("nan")}
    scores = torch.sigmoid(logits).numpy()
    return {
        "val_auc": float(roc_auc_score(targets, scores)),
        "val_accuracy": float(((scores >= 0.5) == targets).mean()),
        "val_loss": float(loss),
    }
