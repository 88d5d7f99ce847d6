"""The parameters of training."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stages.lib.core.arithmetic import Arithmetic
from stages.lib.core.params import Processes, Seed, StageParams, Threads, Workers
from stages.lib.detector.hardware import CompileMode, DeviceName
from stages.lib.training.augmentation import Augmentation
from stages.lib.training.pseudo_fakes import PseudoFakes

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Quality = Annotated[int, Field(ge=1, le=100)]


Trainable = Literal["all", "norms", "head"]


class TrainParams(StageParams):
    """Section `train`; params.yaml explains each one."""

    model: str
    model_args: dict[str, Any]
    weights: str
    zero_head: bool
    image_size: Annotated[int, Field(ge=16, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] | None
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None
    reencode: Annotated[list[Quality], Field(min_length=2, max_length=2)] | None
    face_crop: Annotated[float, Field(ge=0.5, le=10)] | None
    scaled_decoding: bool
    residuals: Literal["srm"] | None
    decoded_gb: NonNegative
    augmentation: Augmentation
    pseudo_fakes: PseudoFakes
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
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    trainable: Trainable
    frozen_epochs: Count
    average_last: Count
    clip_grad: Annotated[float, Field(gt=0)] | None
    ema_decay: Share
    checkpoint_minutes: NonNegative
    arithmetic: Arithmetic
    channels_last: bool
    compile: CompileMode | None
    device: DeviceName
    num_processes: Processes
    num_workers: Workers
    num_threads: Threads
    seed: Seed

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per optimizer step, once find_accumulate has replaced `auto`."""
        assert self.accumulate != "auto"
        return self.accumulate

    def micro_batch_size(self, world_size: int) -> int:
        """Return how many images each process computes at a time."""
        return self.batch_size // (world_size * self.num_micro_batches)
