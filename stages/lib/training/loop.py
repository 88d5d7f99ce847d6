"""The training loop: an epoch of steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3, distribute_bn
from torch.nn.parallel import DistributedDataParallel

from stages.lib.core.errors import UserError
from stages.lib.core.labels import CLASS_NAMES
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import Detector
from stages.lib.training.batches import TrainingSampler
from stages.lib.training.device_batches import training_loader
from stages.lib.training.optimization import (
    SharpnessAware,
    make_mixup,
    make_optimizer,
    make_schedule,
    set_trainable,
)
from stages.lib.training.params import TrainParams
from stages.lib.training.speed import Batches, Clock, timed

STEPS_BETWEEN_CHECKS = 50  # of the losses, each of which waits for the device


class TrainingLoop:
    """The network and everything that changes while it trains."""

    def __init__(
        self, params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
    ) -> None:
        self.params, self.images, self.hardware = params, images, hardware
        self.detector = detector
        is_cuda = hardware.device.type == "cuda"
        if hardware.world_size > 1 and is_cuda:
            detector.model = convert_sync_batchnorm(detector.model)
        self.steps_per_epoch = len(images) // params.batch_size
        self.done = 0  # micro-batches of the current epoch
        self.loss_sum = torch.zeros((), device=hardware.device)  # of those
        self.first_bad = torch.full((), -1, device=hardware.device)  # of those, not a finite loss
        self.sampler = TrainingSampler(params, images.labels, hardware)
        self.loader = training_loader(images, self.sampler, params, hardware)
        self.optimizer = make_optimizer(params, detector.model)
        self.schedule = make_schedule(params, self.optimizer, self.steps_per_epoch)
        set_trainable(detector.model, params.trainable)
        self.parallel: DistributedDataParallel | None = None
        if hardware.world_size > 1:
            self.parallel = DistributedDataParallel(detector.model)
        network = self.parallel or detector.model
        self.network = torch.compile(network, mode=params.compile) if params.compile else network
        self.class_weights = self._class_weights().to(hardware.device)
        self.mix = make_mixup(params)
        self.sam = SharpnessAware(detector.model, params.sam_rho) if params.sam_rho else None
        self.ema: ModelEmaV3 | None = None
        if params.ema_decay:
            self.ema = ModelEmaV3(detector, decay=params.ema_decay, use_warmup=True)

    @property
    def evaluated_detector(self) -> Detector:
        """The detector that is validated and kept: the moving average where there is one."""
        return self.ema.module if self.ema else self.detector

    def _class_weights(self) -> torch.Tensor:
        """Return float (2,), such that the mean weight of a training image is 1."""
        counts = np.bincount(self.images.targets, minlength=len(CLASS_NAMES))
        if self.params.balance != "weights":
            return torch.ones(len(CLASS_NAMES))
        return torch.from_numpy(len(self.images) / (len(CLASS_NAMES) * counts)).float()

    def train_epoch(
        self, epoch: int, after_step: Callable[[], None] | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train on every image once; return ({lr, train_loss}, speed)."""
        self.sampler.set_epoch(epoch, skip=self.done)
        return self.train_on(self.loader, epoch, after_step)

    def train_on(
        self,
        batches: Batches,
        epoch: int,
        after_step: Callable[[], None] | None = None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train on the micro-batches of this process that are left of an epoch.

        Nothing waits for the device before the end of the epoch, except SyncBatchNorm on several
        GPUs and what `after_step` does.
        """
        params, hardware = self.params, self.hardware
        self.detector.train()
        clock = Clock()
        updates = epoch * self.steps_per_epoch
        self.schedule.step_update(updates)
        lr = self.optimizer.param_groups[0]["lr"]
        updates += self.done // params.num_micro_batches
        self.schedule.step_update(updates)
        step: list[tuple[torch.Tensor, torch.Tensor]] = []  # its micro-batches, which SAM repeats
        for batch in timed(batches, clock, f"epoch {epoch + 1}"):
            self.loss_sum += self._forward_backward(*batch, epoch, self.done)
            self.done += 1
            if self.sam:
                step.append(batch)
            if self.done % params.num_micro_batches == 0:
                if self.sam:
                    self._take_gradient_nearby(step, epoch)
                    step = []
                updates += 1
                self._update(updates)
                if updates % STEPS_BETWEEN_CHECKS == 0:
                    self._check_losses(epoch)
                self.schedule.step_update(updates)
                if after_step:
                    after_step()
        if self.parallel:
            dist.all_reduce(self.loss_sum)
            # Each process has seen other images, but the kept weights need one set of statistics.
            for detector in [self.detector, *([self.ema.module] if self.ema else [])]:
                distribute_bn(detector, hardware.world_size, reduce=True)
        mean_loss = self.loss_sum.item() / (self.done * hardware.world_size)
        if not np.isfinite(mean_loss):
            self._check_losses(epoch)
        self.done = 0
        self.loss_sum.zero_()
        speed = clock.speed(len(batches) * params.batch_size // params.num_micro_batches)
        return {"lr": lr, "train_loss": mean_loss}, speed

    def _take_gradient_nearby(
        self, step: list[tuple[torch.Tensor, torch.Tensor]], epoch: int
    ) -> None:
        """Replace the gradient of a step by that of the worst weights nearby."""
        assert self.sam
        self.sam.climb()
        for number, batch in enumerate(step, self.done - len(step)):
            self._forward_backward(*batch, epoch, number)
        self.sam.descend()

    def _forward_backward(
        self, images: torch.Tensor, targets: torch.Tensor, epoch: int, number: int
    ) -> torch.Tensor:
        """Add the gradient of one micro-batch; return its mean loss, detached, on the device.

        number: that of the micro-batch in the epoch.
        """
        params, device = self.params, self.hardware.device
        images = self.detector.normalize(images.to(device, non_blocking=True))
        targets = targets.to(device, non_blocking=True)
        if params.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix:
            # Mixup of timm draws from the global generator of NumPy: set by seed, epoch and batch.
            seed = np.random.SeedSequence([params.seed, epoch, number]).generate_state(1)
            np.random.seed(seed)
            images, targets = self.mix(images, targets)
        if self.parallel:  # processes exchange gradients once a step, after its last micro-batch
            is_last_of_step = (number + 1) % params.num_micro_batches == 0
            self.parallel.require_backward_grad_sync = is_last_of_step
        with self.hardware.autocast():
            outputs = self.network(images)
        smoothing = 0.0 if self.mix else params.label_smoothing
        losses = F.cross_entropy(
            outputs.float(),
            targets,
            self.class_weights,
            label_smoothing=smoothing,
            reduction="none",
        )
        loss = losses.mean()
        is_first_bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(is_first_bad, number, self.first_bad)
        (loss / params.num_micro_batches).backward()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what all processes share, after any step."""
        state = {
            "model": self.detector.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.ema:
            state["ema"] = self.ema.module.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict has returned; load_process_state_dict must come next."""
        self.detector.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.model.load_state_dict(state["ema"])

    def process_state_dict(self) -> dict[str, Any]:
        """Return what only this process has, after any step."""
        state = {
            "done": self.done,
            "loss_sum": self.loss_sum.cpu(),
            "random": torch.get_rng_state(),
            # Batch statistics: on the CPU each process has its own until the end of the epoch.
            "buffers": _buffers(self.detector),
        }
        if self.ema:
            state["ema_buffers"] = _buffers(self.ema.module)
        if self.hardware.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.hardware.device)
        return state

    def load_process_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what process_state_dict has returned in this process."""
        self.done = state["done"]
        self.loss_sum.copy_(state["loss_sum"])
        torch.set_rng_state(state["random"])
        self.detector.model.load_state_dict(state["buffers"], strict=False)
        if self.ema:
            self.ema.module.model.load_state_dict(state["ema_buffers"], strict=False)
        if self.hardware.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.hardware.device)

    def _check_losses(self, epoch: int) -> None:
        """Raise UserError where a loss was not finite; the last checkpoint stays."""
        number = int(self.first_bad)
        if number < 0:
            return
        step = number // self.params.num_micro_batches + 1
        batch = self.sampler.batches[number] if self.sampler.batches else []
        names = ", ".join(str(self.images.names[draw.index]) for draw in batch[:3])
        lr = self.optimizer.param_groups[0]["lr"]
        raise UserError(
            f"training diverged in epoch {epoch + 1}, step {step}, at a learning rate of about "
            f"{lr:.2e}: the loss is not a finite number; images of that step: {names} and "
            f"{len(batch[3:])} more; lower train.lr, or set train.clip_grad"
        )

    def _update(self, updates: int) -> None:
        """Take one step; updates: how many there are with this one."""
        if self.params.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.params.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.detector, updates)  # without the number it would not warm up


def _buffers(detector: Detector) -> dict[str, torch.Tensor]:
    """Return the entries of the network's state_dict that are no parameters, on the CPU."""
    parameters = dict(detector.model.named_parameters())
    state = detector.model.state_dict()
    return {name: value.cpu() for name, value in state.items() if name not in parameters}
