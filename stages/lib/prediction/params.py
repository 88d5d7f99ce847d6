"""The parameters of prediction: views, perturbed images and the hardware."""

from typing import Annotated

from pydantic import Field

from stages.lib.core.params import one_of
from stages.lib.detector.hardware_params import ParallelHardwareParams
from stages.lib.detector.inference import SCORED_VIEWS


class PredictParams(ParallelHardwareParams):
    """Section `predict`."""

    views: Annotated[list[Annotated[str, one_of(SCORED_VIEWS)]], Field(min_length=1)]
    stability: bool
    robustness_images: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
