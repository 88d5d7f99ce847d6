"""Count what one image costs, and from that how fast a machine could be at best.

Run: python -m tests.benchmarks.floor   (from the repository's root; half a minute)

Operations are counted by PyTorch's FlopCounterMode (a multiplication with its addition is two).
The CPU's rate is measured here, by a matrix product in fp32 on all its cores; those of the GPUs are
their manufacturers' figures for dense bf16 and for memory. A floor is what no loop can go below.
"""

import os
import time

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

MODELS = {"resnet18": 256, "convnext_base": 384}
JPEG_BYTES = 32_000  # of FFDI's 512 px images, 24 to 41 KB
GPUS = {"H100 SXM": (989e12, 3.35e12), "H200 SXM": (989e12, 4.8e12)}  # FLOP/s, bytes/s
BF16_BYTES = 2


def main() -> None:
    """Print a table of costs and one of floors."""
    cpu = matrix_rate()
    print(f"this CPU, {os.cpu_count()} threads, fp32 matrix product: {cpu / 1e9:.0f} GFLOP/s\n")
    print(
        "| model, px | parameters | inference GFLOP | training GFLOP | JPEG KB | uint8 KB | "
        "activations MB (bf16) |"
    )
    print("|---|---|---|---|---|---|---|")
    costs = {name: cost(name, size) for name, size in MODELS.items()}
    for name, numbers in costs.items():
        print(
            f"| {name}, {MODELS[name]} | {numbers['parameters'] / 1e6:.1f} M | "
            f"{numbers['forward'] / 1e9:.1f} | {numbers['training'] / 1e9:.1f} | "
            f"{JPEG_BYTES / 1e3:.0f} | {numbers['input_bytes'] / 1e3:.0f} | "
            f"{numbers['activation_bytes'] / 1e6:.0f} |"
        )
    print("\n| at most, images/s | " + " | ".join(MODELS) + " |")
    print("|---|" + "---|" * len(MODELS))
    machines = {"this CPU, fp32": (cpu, None)} | {f"{k}, bf16": v for k, v in GPUS.items()}
    for machine, (rate, memory) in machines.items():
        for kind in ("training", "forward"):
            cells = [f"{at_most(numbers, kind, rate, memory):,.1f}" for numbers in costs.values()]
            print(
                f"| {machine}, {'inference' if kind == 'forward' else kind} | "
                + " | ".join(cells)
                + " |"
            )


def matrix_rate(side: int = 3000, repeats: int = 5) -> float:
    """Return this CPU's best rate in FLOP/s."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def cost(name: str, size: int) -> dict[str, float]:
    """Return operations and bytes of one image; nothing is computed, shapes alone are."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=2)
        image = torch.empty(1, 3, size, size)
    kept: list[int] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *call: kept.append(call[2].numel()))
    with FlopCounterMode(display=False) as forward:
        model(image)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "forward": forward.get_total_flops(),
        # Backward is two products for each of forward's; PyTorch's counter of it takes grouped
        # convolutions, as ConvNeXt's, for dense ones.
        "training": 3 * forward.get_total_flops(),
        "input_bytes": 3 * size * size,
        "activation_bytes": BF16_BYTES * sum(kept),
    }


def at_most(numbers: dict[str, float], kind: str, rate: float, memory: float | None) -> float:
    """Return images per second that neither arithmetic nor, where given, memory allows to exceed.

    Each layer's result is written once and read once in inference; training reads and writes it,
    and its gradient, once more.
    """
    seconds = numbers[kind] / rate
    if memory:
        passes = 2 if kind == "forward" else 5
        seconds = max(seconds, passes * numbers["activation_bytes"] / memory)
    return 1 / seconds


if __name__ == "__main__":
    main()
