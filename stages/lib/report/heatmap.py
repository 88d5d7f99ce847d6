"""Heatmaps of a verdict: what happens to the score where a window covers the image.

Occlusion (Zeiler and Fergus 2014), by Captum. It only asks the detector for scores, so it works for
every architecture.
"""

import numpy as np
import torch
from captum.attr import Occlusion
from scipy.stats import rankdata

from stages.lib.detector.model import Detector, fake_logit

WINDOW, STRIDE = 0.25, 0.125  # of the commands; those of the stage are in params.yaml


@torch.inference_mode()
def occlusion_map(
    detector: Detector, image: torch.Tensor, window: float, stride: float, batch_size: int
) -> np.ndarray:
    """Return float (S, S): by how much the logit falls where a window covers the pixel.

    image: the input of the detector, uint8 (3, S, S). window and stride: side and step of the
    window, as shares of S. batch_size: of the covered images at a time. The value of a pixel is the
    mean over the windows that cover it. A window has the mean colour of the normalisation, which is
    0 after it.
    """
    side = max(1, round(window * image.shape[1]))
    step = min(side, max(1, round(stride * image.shape[1])))
    occlusion = Occlusion(lambda inputs: fake_logit(detector.model(inputs)))
    effect = occlusion.attribute(
        detector.normalize(image[None].to(detector.device)),
        sliding_window_shapes=(3, side, side),
        strides=(3, step, step),
        perturbations_per_eval=batch_size,
    )
    return effect[0, 0].cpu().numpy()


def rank_correlation(trained: np.ndarray, random: np.ndarray) -> float:
    """Return Spearman's correlation of the pixels of two maps, -1 to 1; 0 where one map is flat."""
    ranks = [rankdata(values) for values in (trained, random)]
    if 0 in (np.ptp(ranks[0]), np.ptp(ranks[1])):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
