"""The parameters that say how a stage uses the machine."""

from typing import Annotated

from pydantic import Field

from stages.lib.core.params import StageParams, Threads
from stages.lib.detector.hardware import CompileMode, DeviceName


class HardwareParams(StageParams):
    """What every stage that runs a detector has among its parameters."""

    device: DeviceName
    num_threads: Threads


class ParallelHardwareParams(HardwareParams):
    """The same for a stage that can run in several processes, each with workers that decode."""

    compile: CompileMode | None
    num_processes: Annotated[int, Field(ge=1, le=1024)]
    num_workers: Annotated[int, Field(ge=0, le=1024)]
