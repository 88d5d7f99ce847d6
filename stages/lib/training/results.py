"""What a training has reached: the epochs that are done, and the best weights so far."""

from dataclasses import dataclass, field
from typing import Any

import torch

from stages.lib.training.params import TrainParams

Weights = dict[str, torch.Tensor]  # what `state_dict` of a timm model returns


@dataclass
class Best:
    """The best epoch so far, or the average of the last ones, and its weights."""

    epoch: int = 0  # counted from 1
    auc: float = -1.0
    weights: Weights = field(default_factory=dict)
    averaged: int = 1  # epochs, up to this one


@dataclass
class TrainingResults:
    """What a training has reached."""

    history: list[dict[str, float]] = field(default_factory=list)  # the rows of history.csv
    best: Best = field(default_factory=Best)
    last: list[Weights] = field(default_factory=list)  # of the last epochs, if they are averaged

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    def is_finished(self, params: TrainParams) -> bool:
        """Return whether no epoch is left, or the last ones were no better."""
        num_worse = self.epochs - self.best.epoch
        is_stopped = params.early_stopping is not None and num_worse >= params.early_stopping
        return is_stopped or self.epochs == params.epochs

    def add_epoch(self, results: dict[str, float], weights: Weights, average_last: int) -> None:
        """Add the results of an epoch, and a copy of its weights where they may be needed."""
        self.history.append({"epoch": self.epochs + 1, **results})
        is_better = results["val_auc"] > self.best.auc
        if not (is_better or average_last):
            return
        copy = {name: tensor.clone() for name, tensor in weights.items()}
        if is_better:
            self.best = Best(self.epochs, results["val_auc"], copy)
        if average_last:
            self.last = [*self.last, copy][-average_last:]

    def add_average(self, auc: float, weights: Weights) -> None:
        """Keep the mean of the weights of the last epochs if its AUC is better."""
        if auc > self.best.auc:
            self.best = Best(self.epochs, auc, weights, len(self.last))

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as a checkpoint keeps it."""
        return vars(self) | {"best": vars(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what state_dict has returned."""
        self.history, self.last = state["history"], state["last"]
        self.best = Best(**state["best"])
