"""What a training has reached: the epochs that are done, and the best weights so far."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from stages.lib.training.params import TrainParams

Weights = dict[str, torch.Tensor]  # what `state_dict` of a timm model returns


@dataclass
class Best:
    """The best epoch so far, or the average of the last ones, and its weights."""

    epoch: int = 0  # counted from 1
    auc: float = -1.0  # as choosing_auc returns it
    weights: Weights = field(default_factory=dict)
    averaged: int = 1  # epochs, up to this one


@dataclass
class TrainingResults:
    """What a training has reached."""

    prefix: str = ""  # of the figures of this network in history.csv and in MLflow
    history: list[dict[str, float]] = field(default_factory=list)  # a row for each epoch
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

    def add_epoch(self, figures: dict[str, float], weights: Weights, params: TrainParams) -> None:
        """Add the figures of an epoch, and a copy of its weights where they may be needed."""
        self.history.append({"epoch": self.epochs + 1, **figures})
        auc = choosing_auc(figures, params)
        is_better = auc > self.best.auc
        if not (is_better or params.average_last):
            return
        copy = {name: tensor.clone() for name, tensor in weights.items()}
        if is_better:
            self.best = Best(self.epochs, auc, copy)
        if params.average_last:
            self.last = [*self.last, copy][-params.average_last :]

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


def history_of(networks: list[TrainingResults]) -> pd.DataFrame:
    """Return history.csv: a row for each epoch, with the figures of all networks.

    The cells of a network that stopped before another one are empty.
    """
    columns = []
    for one in networks:
        columns.append(pd.DataFrame(one.history).set_index("epoch").add_prefix(one.prefix))
    return pd.concat(columns, axis=1).rename_axis("epoch").reset_index()


def choosing_auc(figures: dict[str, float], params: TrainParams) -> float:
    """Return that AUC of an epoch by which the best one is chosen; figures: what validate returns.

    It is the pooled one as well where val has fewer than two sources with both classes.
    """
    pooled = figures["val_auc"]
    if params.choose_epoch_by == "pooled":
        return pooled
    return figures.get(f"val_auc/{params.choose_epoch_by}", pooled)
