"""The network of a detector as a function, in PyTorch or in ONNX Runtime, and its export.

Both take uint8 (N, 3, S, S), RGB, with the normalisation inside, and return log(P(fake) / P(real)),
float32 (N,).
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json, sha256_of
from stages.lib.detector.model import Detector, fake_logit
from stages.lib.detector.runtime import Hardware

ONNX_FILE, TORCH_FILE = "detector.onnx", "detector.pt2"
EXPORT_FILE = "export.json"  # their digests, and how well they agree with the detector
TOLERANCE = 1e-3  # of an exported network's logits
Network = Callable[[torch.Tensor], torch.Tensor]


class FakeLogit(torch.nn.Module):
    """A detector that returns one number for each image."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, S, S) -> float32 (N,)."""
        return fake_logit(self.detector(images))


def torch_network(detector: Detector, hardware: Hardware) -> Network:
    """Return the detector as a function on its hardware."""
    network = FakeLogit(detector)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), hardware.autocast():
            return network(images.to(hardware.device)).cpu()

    return run


def network_of(folder: Path, detector: Detector, hardware: Hardware) -> tuple[Network, str]:
    """Return the fastest network in a folder, and the name of what runs it.

    That is the ONNX file of an exported detector on the CPU. Raises UserError where it is damaged.
    """
    if hardware.device.type != "cpu" or not (folder / ONNX_FILE).is_file():
        return torch_network(detector, hardware), "torch"
    known = read_json(folder / EXPORT_FILE)["sha256"].get(ONNX_FILE)
    if known != sha256_of(folder / ONNX_FILE):
        raise UserError(
            f"{folder / ONNX_FILE}: not what {EXPORT_FILE} names, or damaged; export it again with "
            "`python -m stages.tools.export`"
        )
    return onnx_network(folder / ONNX_FILE, torch.get_num_threads()), "onnxruntime"


def onnx_network(file: Path, num_threads: int) -> Network:
    """Return an exported network as a function on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

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
            program, f=folder / ONNX_FILE, input_names=["images"], output_names=["logit"],
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
