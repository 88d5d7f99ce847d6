"""A published detector to stand beside ours: MesoNet (Afchar et al. 2018, arXiv 1809.00888).

Run: MESONET_WEIGHTS=FOLDER python -m stages.tools.score tests.mesonet:meso4 --out m.csv
     (or tests.mesonet:meso_inception), then `python -m stages.tools.judge m.csv`

FOLDER has Meso4_DF.safetensors and MesoInception_DF.safetensors: the authors' weights, trained on
their deepfakes (github.com/DariusAf/MesoNet, Apache-2.0), under the names and in the shapes that
Keras gave them. The networks are written anew from the paper. MESONET_CROP is the side of the
square around the face in sizes of the face, else 1.3; 0 for images that show the face alone.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms.v2 import functional as tv

from stages.lib.images.faces import crop_largest_face

SIDE = 256  # pixels of the input
EPSILON = 1e-3  # of Keras' batch normalisation; PyTorch's is 1e-5
SLOPE = 0.1  # of the leaky ReLU
Weights = dict[str, torch.Tensor]
# PyTorch's layers: the name of the kind in Keras, and of each array by its name in PyTorch.
KERAS: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    nn.Conv2d: ("conv2d", {"weight": "kernel", "bias": "bias"}),
    nn.Linear: ("dense", {"weight": "kernel", "bias": "bias"}),
    nn.BatchNorm2d: ("batch_normalization", {
        "weight": "gamma", "bias": "beta",
        "running_mean": "moving_mean", "running_var": "moving_variance",
    }),
}  # fmt: skip
# Axes in PyTorch's order: kernels are (height, width, in, out) in Keras, and (in, out).
ORDERS = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def meso4(images: Sequence[np.ndarray]) -> list[float]:
    """Return P(fake) of each image, uint8 (H, W, 3) in RGB, by the smaller network."""
    return fake_probabilities(published("Meso4_DF"), images)


def meso_inception(images: Sequence[np.ndarray]) -> list[float]:
    """Return P(fake) of each image, uint8 (H, W, 3) in RGB, by the network of inception blocks."""
    return fake_probabilities(published("MesoInception_DF"), images)


def fake_probabilities(network: nn.Module, images: Sequence[np.ndarray]) -> list[float]:
    """Cut out the face of each image and score it, with the digits that 1 - P(real) would lose."""
    share = float(os.environ.get("MESONET_CROP", 1.3))
    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    faces = [crop_largest_face(image, share) if share else image for image in pixels]
    inputs = torch.stack([tv.resize(face, [SIDE, SIDE], antialias=True) for face in faces])
    with torch.inference_mode():
        inputs = (inputs / 255).to(memory_format=torch.channels_last)  # five times as fast
        return torch.sigmoid(-network(inputs)[:, 0].double()).tolist()


class Inception(nn.Module):
    """A convolution of 1 x 1 beside three of 3 x 3, of which two are dilated; all keep the size."""

    def __init__(self, num_inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        branches = [convolution(num_inputs, channels[0], 1)]
        for dilation, num_outputs in enumerate(channels[1:], 1):
            narrow = convolution(num_inputs, num_outputs, 1)
            wide = convolution(num_outputs, num_outputs, 3, dilation)
            branches.append(nn.Sequential(narrow, wide))
        self.branches = nn.ModuleList(branches)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return float (N, sum of channels, H, W) of float (N, C, H, W)."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class FlattenAsKeras(nn.Module):
    """Flatten float (N, C, H, W) in the order height, width, channel."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return float (N, H * W * C)."""
        return features.permute(0, 2, 3, 1).flatten(1)


def convolution(num_inputs: int, num_outputs: int, side: int, dilation: int = 1) -> nn.Module:
    """Return a convolution that keeps the size, and its ReLU."""
    layer = nn.Conv2d(num_inputs, num_outputs, side, padding="same", dilation=dilation)
    return nn.Sequential(layer, nn.ReLU())


def mesonet(first: nn.Module, second: nn.Module, channels: Sequence[int]) -> nn.Module:
    """Return a network from float (N, 3, 256, 256) of 0 to 1 to the logit of P(real), (N, 1).

    Its first two blocks are given, with the numbers of their channels.
    """
    layers: list[nn.Module] = []
    third, fourth = convolution(channels[1], 16, 5), convolution(16, 16, 5)
    widths, pools = (*channels, 16, 16), (2, 2, 2, 4)
    for block, width, pool in zip((first, second, third, fourth), widths, pools, strict=True):
        layers += [block, nn.BatchNorm2d(width, eps=EPSILON), nn.MaxPool2d(pool)]
    head = [nn.Linear(16 * 8 * 8, 16), nn.LeakyReLU(SLOPE), nn.Linear(16, 1)]
    return nn.Sequential(*layers, FlattenAsKeras(), *head).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Meso4_DF": lambda: mesonet(convolution(3, 8, 3), convolution(8, 8, 5), [8, 8]),
    "MesoInception_DF": lambda: mesonet(
        Inception(3, [1, 4, 4, 2]), Inception(11, [2, 4, 4, 2]), [11, 12]
    ),
}


@cache
def published(name: str) -> nn.Module:
    """Return one of NETWORKS with the authors' weights; each is read once."""
    network = NETWORKS[name]()
    load_keras(network, load_file(Path(os.environ["MESONET_WEIGHTS"]) / f"{name}.safetensors"))
    return network


def load_keras(network: nn.Module, weights: Weights) -> None:
    """Fill a network with arrays of Keras, whose layers of a kind are numbered in their order."""
    num_loaded = 0
    for kind, (keras, names) in KERAS.items():
        layers = [module for module in network.modules() if isinstance(module, kind)]
        numbers = sorted({int(n) for n in re.findall(rf"\b{keras}_(\d+)\.", " ".join(weights))})
        for layer, number in zip(layers, numbers, strict=True):
            state = {}
            for ours, theirs in names.items():
                array = weights[f"{keras}_{number}.{theirs}"]
                state[ours] = array.permute(ORDERS[array.ndim])
            layer.load_state_dict(state, strict=False)  # which counts batches, too
            num_loaded += len(state)
    assert num_loaded == len(weights)
