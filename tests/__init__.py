"""The tests compute as the stages do: this file runs before anything imports PyTorch."""

from stages.lib.core.arithmetic import pin_kernels

pin_kernels("portable")
