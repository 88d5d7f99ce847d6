"""The usual baseline of papers to stand beside ours: Xception of DeepfakeBench.

Run: XCEPTION_WEIGHTS=FILE python -m stages.tools.score tests.xception:score --out x.csv
     then `python -m stages.tools.judge x.csv`

The weights were trained on FaceForensics++ (github.com/SCLBD/DeepfakeBench, CC BY-NC 4.0, for
non-commercial use). The crop is like theirs, 1.3 times the face, but not turned upright by the
eyes.
"""

import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import timm
import torch
from torchvision.transforms.v2 import functional as tv

from stages.lib.images.faces import crop_largest_face

SHARE = 1.3  # side of the square around the face, in sizes of the face
SIDE = 256  # pixels of the input


def score(images: Sequence[np.ndarray]) -> list[float]:
    """Return P(fake) of each image, uint8 (H, W, 3) in RGB."""
    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    faces = [crop_largest_face(image, SHARE) for image in pixels]
    inputs = torch.stack([tv.resize(face, [SIDE, SIDE], antialias=True) for face in faces])
    with torch.inference_mode():
        return published()(inputs / 127.5 - 1).softmax(dim=1)[:, 1].tolist()


@cache
def published() -> torch.nn.Module:
    """Return the network with the published weights."""
    file = os.environ.get("XCEPTION_WEIGHTS", "xception_best.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix("backbone.").replace("last_linear", "fc"): value
        for name, value in weights.items()
        if "adjust_channel" not in name  # a layer that this detector does not use
    }
    model = timm.create_model("legacy_xception", num_classes=2).eval()
    model.load_state_dict(weights)
    return model
