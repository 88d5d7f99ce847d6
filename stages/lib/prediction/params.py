"""The parameters of prediction: views, perturbed images and the hardware."""

from typing import Annotated

from pydantic import Field

from stages.lib.core.params import Processes, StageParams, Threads, Workers, one_of
from stages.lib.detector.hardware import CompileMode, DeviceName
from stages.lib.detector.views import SCORED_VIEWS


class PredictParams(StageParams):
    """Section `predict`."""

    views: Annotated[list[Annotated[str, one_of(SCORED_VIEWS)]], Field(min_length=1)]
    stability: bool
    robustness_images: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    compile: CompileMode | None
    device: DeviceName
    num_processes: Processes
    num_workers: Workers
    num_threads: Threads
