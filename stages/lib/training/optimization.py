"""Optimizer, schedule and mixup, all from timm, SAM, what learns, and how the head begins."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.nn.modules.batchnorm import _BatchNorm

from stages.lib.core.errors import UserError
from stages.lib.core.labels import CLASS_NAMES
from stages.lib.training.params import Trainable, TrainParams


def make_optimizer(params: TrainParams, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer; PyTorch's own ones update all tensors in one fused kernel."""
    kind = get_optimizer_class(params.optimizer, bind_defaults=False)
    is_fusible = issubclass(kind, (torch.optim.Adam, torch.optim.SGD))
    return create_optimizer_v2(
        model,
        opt=params.optimizer,
        lr=params.lr,
        weight_decay=params.weight_decay,
        momentum=params.momentum,
        layer_decay=params.layer_decay,
        **({"fused": True} if is_fusible else {}),
    )


def zero_head(model: torch.nn.Module) -> None:
    """Let a timm model begin with P(fake) of nearly 0.5 for every image, and so a loss of ln 2.

    Large first logits of a new head on pretrained features give losses far above that, and
    gradients that spoil the features. Raises UserError for a model without such a head.
    """
    timm_model: Any = model
    head = timm_model.get_classifier()
    heads = head if isinstance(head, tuple) else (head,)  # DeiT has a second, for distillation
    parameters = [parameter for head in heads for parameter in head.parameters()]
    if not parameters:
        raise UserError("train.zero_head: this model has no head with weights; set it to false")
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(0.01)


def set_trainable(model: torch.nn.Module, which: Trainable) -> None:
    """Let a timm model learn all parameters, those of the norms and the head, or the head alone."""
    timm_model: Any = model
    learning = set(timm_model.get_classifier().parameters())
    if which == "norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                learning |= set(module.parameters(recurse=False))
    for parameter in model.parameters():
        parameter.requires_grad_(which == "all" or parameter in learning)


class SharpnessAware:
    """Sharpness-aware minimization (SAM): steps along the gradient of the worst weights nearby.

    The weights move by rho along the gradient (`climb`), where the gradient is computed once more,
    and come back before the step (`descend`). Foret et al. 2021, arXiv 2010.01412.
    """

    def __init__(self, model: torch.nn.Module, rho: float) -> None:
        self.model, self.rho = model, rho
        self.before: dict[torch.nn.Parameter, torch.Tensor] = {}
        self.momenta: dict[_BatchNorm, float | None] = {}

    @torch.no_grad()
    def climb(self) -> None:
        """Move the weights, remove their gradients, and freeze the running means of batch norms."""
        gradients = {one: one.grad for one in self.model.parameters() if one.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        for one, gradient in gradients.items():
            self.before[one] = one.clone()
            one.add_(gradient * (self.rho / norm.clamp(min=1e-12)))
            one.grad = None
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                self.momenta[module], module.momentum = module.momentum, 0.0

    @torch.no_grad()
    def descend(self) -> None:
        """Move the weights back; the gradients stay, and running means go on."""
        for one, weights in self.before.items():
            one.copy_(weights)
        for module, momentum in self.momenta.items():
            module.momentum = momentum
        self.before, self.momenta = {}, {}


def average_states(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of the weights of several epochs (Izmailov et al. 2018), in their dtypes."""
    means = {}
    for name, tensor in states[-1].items():
        values = torch.stack([state[name].cpu().double() for state in states])
        means[name] = values.mean(dim=0).to(tensor.dtype)
    return means


def make_schedule(
    params: TrainParams, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Scheduler:
    """Return the schedule of the learning rate, with one step per update."""
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
    """Return Mixup (Zhang 2018) or CutMix (Yun 2019) or both, or None where they are off."""
    if not params.mixes_images:
        return None
    return Mixup(
        mixup_alpha=params.mixup,
        cutmix_alpha=params.cutmix,
        label_smoothing=params.label_smoothing,
        num_classes=len(CLASS_NAMES),
    )
