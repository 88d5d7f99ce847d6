"""The hardware of a stage: which device, in which precision, in how many processes."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

from stages.lib.core.arithmetic import arithmetic_in_use
from stages.lib.core.errors import UserError
from stages.lib.core.files import sha256_of

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
CompileMode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"]  # PyTorch's


@dataclass(frozen=True)
class Hardware:
    """What one process computes on: its device, precision and rank among world_size processes."""

    device: torch.device
    bf16: bool
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        name = self.device.type
        if name == "cuda":
            name = f"cuda ({torch.cuda.get_device_name(self.device)})"
        return f"{name}, {self.arithmetic}, {self.world_size} process(es)"

    @property
    def arithmetic(self) -> str:
        """In what the network is computed: portable fp32, native fp32 or native bf16."""
        kernels = arithmetic_in_use() if self.device.type == "cpu" else "native"
        return f"{kernels} {'bf16' if self.bf16 else 'fp32'}"


def set_up_hardware(device: DeviceName, num_threads: int, bf16: bool = False) -> Hardware:
    """Join the process group where torchrun started one, and make results repeatable.

    bf16: train in it where the device computes it itself. Scores are always computed in fp32: bf16
    gives other scores, and not every machine that examines images computes it. Raises UserError
    where the wanted device is missing.
    """
    # cuBLAS reads this when it is first used; without it, results differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(num_threads)  # their number decides the order of sums, and so rounding
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new tensors only helps to find code that reads them too early, and costs 3 % of time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    name = _find_device(device)
    if name == "cpu":
        keep_freed_memory()
    process: dict[str, Any] = {"device": name, "global_rank": 0, "world_size": 1}
    if "RANK" in os.environ:  # set by torchrun; timm goes by variables of Slurm's jobs as well
        process = init_distributed_device_so(name)
    own_device = torch.device(process["device"])
    if own_device.type == "cuda" and own_device.index is None:  # torch.cuda may need the number
        own_device = torch.device("cuda", torch.cuda.current_device())
    return Hardware(
        own_device,
        bf16=bf16 and has_native_bf16(name),
        rank=process["global_rank"],
        world_size=process["world_size"],
    )


def check_compile(stage: str, mode: CompileMode | None, hardware: Hardware) -> None:
    """Raise UserError where code compiled for this CPU would not round as other CPUs do."""
    if mode and hardware.device.type == "cpu" and arithmetic_in_use() == "portable":
        raise UserError(
            f"{stage}.compile = {mode} makes code only for this CPU, and train.arithmetic = "
            "portable promises the same numbers on all CPUs; set train.arithmetic: native"
        )


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step has freed, for the next step.

    By default it gives large blocks back to the system at once, so each step on the CPU waits for
    new pages of zeros. Without that wait training is 1.7 times as fast, and needs an eighth more
    memory (`python -m tests.benchmarks.memory`). Other C libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def processes_of(
    stage: str, num_processes: int, device: DeviceName, num_threads: int, bf16: bool = False
) -> Iterator[Hardware]:
    """Yield the hardware of this process; torchrun starts the num_processes of a stage if needed.

    The process leaves its group at the end, also after an error. Raises UserError as
    set_up_hardware does.
    """
    if num_processes > 1 and "RANK" not in os.environ:
        _become_torchrun(stage, num_processes)
    try:
        yield set_up_hardware(device, num_threads, bf16)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def wait_and_compare_files(hardware: Hardware, what: str, *paths: Path) -> None:
    """Wait for all processes, up to a day, and compare the files that each one reads.

    Decoding ahead may take longer on one machine than on another, and longer than the collectives
    of PyTorch wait. Raises UserError where the files differ.
    """
    if hardware.world_size == 1:
        return
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    digests: list[str | None] = [None] * hardware.world_size
    own = sha256_of(*(path for path in paths if path.is_file()))  # the reader reports a missing one
    dist.all_gather_object(digests, own, group)
    if len(set(digests)) > 1:
        raise UserError(
            f"{what} differs between the machines; put the clone on a file system that they share"
        )


def _become_torchrun(stage: str, num_processes: int) -> None:
    launcher = [sys.executable, "-m", "stages.lib.torchrun"]
    sys.stdout.flush()
    os.execv(sys.executable, [*launcher, f"stages.{stage}", str(num_processes)])


def _find_device(wanted: DeviceName) -> str:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, is_available in available.items() if is_available)
    if not available[wanted]:
        raise UserError(f"device = '{wanted}' is missing on this machine; set it to auto or cpu")
    return wanted


def has_native_bf16(device: str) -> bool:
    """Return whether the device computes bf16 itself; emulation is many times slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
