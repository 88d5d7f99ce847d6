"""The parameters of training."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from timm.optim import list_optimizers

from stages.lib.core.arithmetic import Arithmetic
from stages.lib.core.errors import did_you_mean
from stages.lib.core.params import Range, Seed, Share
from stages.lib.detector.hardware_params import ParallelHardwareParams
from stages.lib.training.augmentation import Augmentation
from stages.lib.training.pseudo_fakes import PseudoFakes


def _check_optimizer(name: str) -> str:
    if name not in list_optimizers():
        raise ValueError(f"not an optimizer of timm{did_you_mean(name, list_optimizers())}")
    return name


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[Share, Field(lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Quality = Annotated[int, Field(ge=1, le=100)]
Optimizer = Annotated[str, AfterValidator(_check_optimizer)]
EXPERT = "expert/"
Trainable = Literal["all", "norms", "head"]


class TrainParams(ParallelHardwareParams):
    """Section `train`; params.yaml explains each one."""

    model: str
    model_args: dict[str, Any]
    weights: str
    zero_head: bool
    image_size: Annotated[int, Field(ge=16, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] | None
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None
    reencode: Range[Quality] | None
    face_crop: Annotated[float, Field(ge=0.5, le=10)] | None
    scaled_decoding: bool
    decoded_gb: NonNegative
    augmentation: Augmentation
    pseudo_fakes: PseudoFakes
    mixup: NonNegative
    cutmix: NonNegative
    label_smoothing: BelowOne
    balance: Literal["none", "weights", "classes", "sources"]
    paired_batches: bool
    epochs: Positive
    early_stopping: Positive | None
    choose_epoch_by: Literal["pooled", "mean", "worst"]
    batch_size: Positive
    accumulate: Positive | Literal["auto"]
    optimizer: Optimizer
    lr: Annotated[float, Field(gt=0)]
    momentum: BelowOne
    weight_decay: NonNegative
    schedule: Literal["cosine", "step", "constant"]
    warmup_epochs: Count
    min_lr: NonNegative
    decay_epochs: Positive
    decay_rate: Factor
    layer_decay: Factor | None
    trainable: Trainable
    average_last: Count
    sam_rho: NonNegative
    clip_grad: Annotated[float, Field(gt=0)] | None
    ema_decay: BelowOne
    checkpoint_minutes: NonNegative
    arithmetic: Arithmetic
    channels_last: bool
    augment_on: Literal["auto", "cpu", "device"]
    gpu_images_gb: NonNegative
    gpu_decoding: bool
    seed: Seed

    @model_validator(mode="after")
    def _check_decoding(self) -> Self:
        if self.face_crop and self.scaled_decoding:
            raise ValueError(
                "scaled_decoding = True decodes an image to about train.image_size, and leaves "
                "too few pixels of a face for train.face_crop; use one of the two"
            )
        return self

    @model_validator(mode="after")
    def _check_graphs(self) -> Self:
        if self.compile == "reduce-overhead" and self.accumulate != 1:
            raise ValueError(
                f"accumulate = {self.accumulate}: the CUDA graphs of train.compile = "
                "reduce-overhead keep no gradient from one micro-batch to the next; set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _check_balance(self) -> Self:
        if self.paired_batches and self.balance == "weights":
            raise ValueError(
                "balance = weights: with train.paired_batches both classes are drawn equally "
                "often, which needs no weights; set it to none or sources"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu_images(self) -> Self:
        by_cpu = {
            "reencode": self.reencode,
            "pseudo_fakes.first_share": self.pseudo_fakes.first_share,
            "pseudo_fakes.last_share": self.pseudo_fakes.last_share,
        }
        refused = {
            "gpu_decoding": by_cpu
            | {"decoded_gb": self.decoded_gb, "scaled_decoding": self.scaled_decoding},
            "gpu_images_gb": by_cpu,
        }
        for option, others in refused.items():
            for name, value in others.items() if getattr(self, option) else ():
                if value:
                    raise ValueError(
                        f"{option} = {getattr(self, option)}: of no use, because the CPU makes "
                        f"the images for train.{name} = {value}; use one of the two"
                    )
        if self.gpu_images_gb and not self.decoded_gb:
            raise ValueError(
                f"gpu_images_gb = {self.gpu_images_gb}: the GPU keeps images that are decoded "
                "already; set train.decoded_gb, too"
            )
        return self

    def augments_in_batches(self, device: str) -> bool:
        """Return whether degradations are made of whole batches on this kind of device."""
        return self.augment_on == "device" or (self.augment_on == "auto" and device == "cuda")

    @property
    def networks(self) -> dict[str, "TrainParams"]:
        """The parameters of each network, by the prefix of its figures in history.csv.

        There is one, or a second as well, the expert, which sees pseudo-fakes and no other fakes.
        """
        networks = {"": self._of_network()}
        if self.pseudo_fakes.expert_weight:
            networks[EXPERT] = self._of_network(first_share=1.0, last_share=1.0)
        return networks

    def _of_network(self, **shares: float) -> "TrainParams":
        changes = {"expert_weight": 0.0, **shares}
        pseudo_fakes = self.pseudo_fakes.model_copy(update=changes)
        return self.model_copy(update={"pseudo_fakes": pseudo_fakes})

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per optimizer step, once find_accumulate has replaced `auto`."""
        assert self.accumulate != "auto"
        return self.accumulate

    @property
    def mixes_images(self) -> bool:
        """Whether each image of a micro-batch is mixed with another one."""
        return bool(self.mixup or self.cutmix)

    @property
    def needs_even_batches(self) -> bool:
        """Whether a micro-batch needs an even number of images."""
        return self.mixes_images or self.paired_batches

    def micro_batch_size(self, world_size: int) -> int:
        """Return how many images each process computes at a time."""
        return self.batch_size // (world_size * self.num_micro_batches)
