"""Portable or native arithmetic: the same rounding on every x86-64 CPU, or the fastest kernels.

Libraries choose their kernels by the CPU, and other kernels round in another way, which changes the
last digits of every weight. They read the variables below when they are imported, so
stages/__init__.py sets them before that. `train.arithmetic` of params.yaml is the setting.
"""

import os
import platform
from typing import Literal

Arithmetic = Literal["portable", "native"]
# NumPy and OpenBLAS compute labels, thresholds and figures, which must not depend on the setting.
# OpenBLAS would also split sums among as many threads as there are cores.
PINNED_ALWAYS = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
}
# PyTorch (ATen, oneDNN and MKL) computes the network. COMPATIBLE is the only branch of MKL that is
# the same on CPUs of Intel and AMD: on those of AMD it takes no other one, and chooses by the CPU.
PINNED_IF_PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}


def pin_kernels(arithmetic: str) -> None:
    """Set the variables for an arithmetic; child processes inherit them."""
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ |= PINNED_ALWAYS | ({} if arithmetic == "native" else PINNED_IF_PORTABLE)


def arithmetic_in_use() -> Arithmetic:
    """Return what the network of this process is computed with; other CPUs have no portable one."""
    is_pinned = all(os.environ.get(name) == value for name, value in PINNED_IF_PORTABLE.items())
    return "portable" if is_pinned else "native"
