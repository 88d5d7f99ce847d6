"""The detector: a timm model with two outputs and its preprocessing, in memory and on disk."""

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pydantic
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.data import resolve_model_data_config

from stages.lib import paths
from stages.lib.core.errors import UserError, did_you_mean, short
from stages.lib.core.files import sha256_of, write_text
from stages.lib.core.labels import CLASS_NAMES
from stages.lib.core.schema import FrozenModel, TrainingSummary
from stages.lib.detector.ensemble import Ensemble
from stages.lib.detector.preprocessing import Normalize, Preprocessing

# Arguments of timm.create_model that load weights, or say which ones.
LOADS_WEIGHTS = (
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "cache_dir",
)
WEIGHTS_FILE, CONFIG_FILE = paths.WEIGHTS.name, paths.CONFIG.name


class Expert(FrozenModel):
    """The second network of an ensemble."""

    weight: float  # of its odds; that of the first network is 1 - weight
    best_epoch: int
    averaged_epochs: int


class DetectorConfig(FrozenModel):
    """config.json: what is needed, in addition to the weights, to use them."""

    model: str  # timm's name
    model_args: dict[str, Any]
    preprocessing: Preprocessing
    num_parameters: int
    initial_weights: str  # what `provenance` returns
    trained_in: str  # "portable fp32", "native fp32" or "native bf16", see core/arithmetic.py
    best_epoch: int  # counted from 1
    averaged_epochs: int = 1  # the weights are the mean of this number of epochs, up to best_epoch
    expert: Expert | None = None  # None: the detector is a single network
    trained_on: TrainingSummary | None = None  # known after the training
    distance_sha256: str = ""  # of distance.safetensors; empty: the network has no early blocks
    weights_sha256: str = ""  # of weights.safetensors, set by save_detector
    classes: tuple[str, ...] = CLASS_NAMES  # the score is P(classes[1])
    config_sha256: str = ""  # of all the above, set by save_detector

    def digest(self) -> str:
        """Return what config_sha256 must be."""
        content = self.model_dump_json(exclude={"config_sha256"})
        return hashlib.sha256(content.encode()).hexdigest()


def create_model(name: str, model_args: dict[str, Any], weights: str) -> torch.nn.Module:
    """Create a timm model with 2 classes; weights: "random", "hub" or the path of a file.

    Raises UserError for an unknown model, for arguments that it does not accept, and for weights
    that cannot be loaded or do not fit: no model ever starts from scratch in silence, or from
    weights that `weights` does not name.
    """
    _refuse_other_weights(name, model_args)
    if ":" not in name and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models() + timm.list_pretrained())
        raise UserError(f"train.model = '{name}' is not a model of timm{hint}")
    random_state = torch.get_rng_state()
    try:
        untrained = timm.create_model(name, num_classes=len(CLASS_NAMES), **model_args)
    except Exception as error:  # timm's models have many ways to refuse an argument
        raise UserError(
            f"train.model_args = {short(model_args)}: {name} does not accept it: "
            f"{short(error, 100) or type(error).__name__}"
        ) from error
    if weights == "random":
        return untrained
    overlay = None if weights == "hub" else {"file": weights}
    if overlay and not Path(weights).is_file():
        raise UserError(
            f"train.weights = '{weights}' is not a file; give random, hub, or the path of a "
            ".safetensors or .pth file"
        )
    torch.set_rng_state(random_state)
    try:
        model = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=len(CLASS_NAMES),
            **model_args,
        )
    except Exception as error:  # anything that the client of the hub, the reader or timm raises
        reason = short(error, 150)
        raise UserError(
            f"train.weights = '{weights}': cannot load weights for {name}: {reason}"
        ) from error
    _check_all_loaded(model, untrained, f"train.weights = '{weights}' do not fit {name}")
    return model


def _refuse_other_weights(name: str, model_args: dict[str, Any]) -> None:
    """Raise UserError where an argument or the name of a model brings other weights.

    No digest and no record would know them, and a model that is loaded again would need their file.
    """
    if refused := [name for name in LOADS_WEIGHTS if name in model_args]:
        raise UserError(
            f"train.model_args.{refused[0]}: weights come from train.weights alone: give it "
            "random, hub, or the path of a .safetensors or .pth file"
        )
    if name.lower().startswith("local-dir:"):
        raise UserError(
            f"train.model = '{short(name)}': give the name of the architecture, and the file with "
            "the weights in train.weights"
        )


def untrained(config: DetectorConfig) -> torch.nn.Module:
    """Create the network of a detector with random weights, or both of an ensemble."""
    networks = []
    for _ in range(2 if config.expert else 1):
        networks.append(create_model(config.model, config.model_args, "random"))
    return Ensemble(*networks) if config.expert else networks[0]


def check_input(detector: "Detector", name: str, side: int) -> None:
    """Raise UserError where a detector cannot turn images of this size into two logits.

    A copy tries it, as in training and as in use, so that neither the running means of the network
    nor the random numbers to come change.
    """
    trial = deepcopy(detector)
    images = torch.zeros((2, 3, side, side), dtype=torch.uint8)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial.train()(images)
            shape = tuple(trial.eval()(images).shape)
    except Exception as error:  # whatever a model raises for a size, channels or its arguments
        raise UserError(
            f"train.image_size = {side}: {name} cannot take such images, or not with these "
            f"train.model_args: {short(error, 100)}"
        ) from error
    if shape != (2, len(CLASS_NAMES)):
        raise UserError(
            f"train.model = '{name}' returns {shape[1:]} numbers for an image, not the two of a "
            "classifier; take another one, or other train.model_args"
        )


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def provenance(name: str, weights: str) -> str:
    """Say where the first weights came from: random, hub:TAG (a tag of timm) or sha256:DIGEST."""
    if weights == "random":
        return weights
    if weights == "hub":
        config = timm.get_pretrained_cfg(name)
        return f"hub:{config.tag if config else name}"
    return f"sha256:{sha256_of(Path(weights))}"


def _check_all_loaded(model: torch.nn.Module, untrained: torch.nn.Module, problem: str) -> None:
    """Raise UserError where a tensor still has its random values from before loading.

    With another number of classes timm loads what fits and says nothing about the rest, so weights
    of a different model would pass. Both models began with the same random numbers.
    """
    before = dict(untrained.named_parameters())
    config: Any = model.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    tensors = {
        name: tensor
        for name, tensor in model.named_parameters()
        if tensor.ndim > 1 and before[name].std() > 0 and not name.startswith(heads)
    }
    left = [name for name, tensor in tensors.items() if torch.equal(tensor, before[name])]
    if left:
        raise UserError(
            f"{problem}: {len(left)} of {len(tensors)} tensors are missing, such as {left[0]}"
        )


def input_size_args(name: str, image_size: int) -> dict[str, int]:
    """Return the argument that sets the input size of a model where it is fixed, as in a ViT."""
    config = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if config and config.fixed_input_size else {}


def resolve_preprocessing(model: torch.nn.Module, **chosen: Any) -> Preprocessing:
    """Return the preprocessing that the model was made for, except where `chosen` is not None."""
    own = resolve_model_data_config(model)
    own = {"interpolation": own["interpolation"], "mean": own["mean"], "std": own["std"]}
    return Preprocessing(**own | {key: value for key, value in chosen.items() if value is not None})


def save_detector(folder: Path, state: dict[str, torch.Tensor], config: DetectorConfig) -> str:
    """Write weights.safetensors and config.json, the same bytes for the same detector.

    Returns the SHA-256 of the weights, which config.json has as well.
    """
    content = save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
    (folder / WEIGHTS_FILE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    config = config.model_copy(update={"weights_sha256": digest})
    config = config.model_copy(update={"config_sha256": config.digest()})
    write_text(folder / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
    return digest


def load_detector(folder: Path) -> tuple["Detector", DetectorConfig]:
    """Load what save_detector wrote; raises UserError where it is absent, damaged or mixed up."""
    weights, config_file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    for file in (weights, config_file):
        if not file.is_file():
            raise UserError(f"{folder}: no {file.name} in it; train a model with `dvc repro train`")
    try:
        config = DetectorConfig.model_validate_json(config_file.read_bytes())
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole file"
        raise UserError(
            f"{config_file}: not a detector's configuration: {where}: {short(problem['msg'])}; "
            f"bring it back: `dvc checkout --force {folder}`"
        ) from None
    if config.config_sha256 != config.digest():
        raise UserError(
            f"{config_file}: changed since it was written, or of another version of this project; "
            f"bring it back (`dvc checkout --force {folder}`), or train again (`dvc repro train`)"
        )
    if config.weights_sha256 != sha256_of(weights):
        raise UserError(
            f"{weights}: not the weights that {config_file.name} names, or damaged; bring back "
            f"what belongs together (`dvc checkout --force {folder}`), or, where DVC's cache has "
            "the damage too, train again (`dvc repro --force train`)"
        )
    model = untrained(config)
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights}: do not fit {config.model}: {short(error, 100)}") from None
    return Detector(model, config.preprocessing).eval(), config


class Detector(torch.nn.Module):
    """Normalisation and network together: from uint8 images to the logits of the two classes.

    model: a timm model, or an Ensemble of two.
    """

    def __init__(self, model: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.normalize.scale.device

    @property
    def timm_model(self) -> Any:
        """The network, of an ensemble the first one."""
        return self.model.networks[0] if isinstance(self.model, Ensemble) else self.model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, S, S) -> float (N, 2)."""
        return self.model(self.normalize(images))


def fake_logit(outputs: torch.Tensor) -> torch.Tensor:
    """Turn the logits of the two classes (N, 2) into log(P(fake) / P(real)), float32 (N,)."""
    outputs = outputs.float()
    return outputs[:, 1] - outputs[:, 0]
