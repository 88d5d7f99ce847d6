"""Exporting the network of a detector, and the choice between it and its exports.

Each has the normalisation inside, takes uint8 (N, 3, S, S), RGB, and returns
log(P(fake) / P(real)), float32 (N,). An int8 network rounds weights and activations to 256 levels,
which is faster and changes scores.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import torch

from stages.lib.core.errors import UserError
from stages.lib.core.files import sha256_of
from stages.lib.core.schema import FrozenModel
from stages.lib.detector.inference import Inference, Network
from stages.lib.detector.model import Detector, fake_logit

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_FILE, TORCH_FILE, INT8_FILE = "detector.onnx", "detector.pt2", "detector.int8.onnx"
EXPORT_FILE = "export.json"  # their digests, and how well they agree with the detector


class FakeLogit(torch.nn.Module):
    """A detector that returns one number for each image."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, S, S) -> float32 (N,)."""
        return fake_logit(self.detector(images))


class Export(FrozenModel):
    """export.json: which detector was exported, and how well the networks agree with it."""

    weights_sha256: str
    config_sha256: str
    sha256: dict[str, str]  # of the exported networks
    largest_difference_of_logits: dict[str, float]
    num_images: int  # on which they were compared
    auc: dict[str, float]  # on those images
    changed_verdicts: dict[str, float]  # share of them whose score gives another verdict


@dataclass(frozen=True)
class ChosenNetwork:
    """The network that an examiner runs."""

    run: Network
    runtime: str  # torch or onnxruntime
    sha256: str  # of its file
    quantised: bool  # to int8


def choose_network(folder: Path, inference: Inference) -> ChosenNetwork:
    """Return the fastest network of the detector in a folder.

    That is the ONNX file of an exported detector on the CPU, and the one in int8 where there is
    one. Raises UserError where it is damaged, or not that of the detector.
    """
    config, file = inference.config, folder / INT8_FILE
    if not file.is_file():
        file = folder / ONNX_FILE
    if inference.hardware.device.type != "cpu" or not file.is_file():
        return ChosenNetwork(inference.network, "torch", config.weights_sha256, quantised=False)
    digest = sha256_of(file)
    wanted = (config.weights_sha256, config.config_sha256, digest)
    try:
        export = Export.model_validate_json((folder / EXPORT_FILE).read_bytes())
        stored = (export.weights_sha256, export.config_sha256, export.sha256.get(file.name))
    except (OSError, pydantic.ValidationError):
        stored = None
    if stored != wanted:
        raise UserError(
            f"{file}: damaged, or not of the detector beside it, as {EXPORT_FILE} says; export it "
            "again with `python -m stages.tools.export`"
        )
    run = onnx_network(file, torch.get_num_threads())
    return ChosenNetwork(run, "onnxruntime", digest, quantised=file.name == INT8_FILE)


def onnx_session(file: Path, num_threads: int) -> "InferenceSession":
    """Load an ONNX file to run it on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])


def onnx_network(file: Path, num_threads: int) -> Network:
    """Return an exported network as a function on the CPU."""
    session = onnx_session(file, num_threads)

    def run(images: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def export_network(detector: Detector, side: int, folder: Path) -> None:
    """Write TORCH_FILE and ONNX_FILE, for any number of images at a time; side: S in pixels."""
    images = torch.zeros((2, 3, side, side), dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=65536)}}
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns of its own code here
        program = torch.export.export(FakeLogit(detector).eval(), (images,), dynamic_shapes=shapes)
        torch.export.save(program, folder / TORCH_FILE)
        torch.onnx.export(
            program,
            f=folder / ONNX_FILE,
            input_names=["images"],
            output_names=["logit"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def quantise(source: Path, target: Path, images: torch.Tensor, batch_size: int) -> None:
    """Write an int8 version of an ONNX network, with ranges as they are on some images.

    images: uint8 (N, 3, S, S). Weights are rounded channel by channel, activations to unsigned
    numbers (static quantisation of ONNX Runtime).
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[torch.Tensor] = iter(images.split(batch_size))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    logging.getLogger().setLevel(logging.ERROR)  # it advises to do what is done here
    quant_pre_process(source, target)
    quantization.quantize_static(
        target,
        target,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
