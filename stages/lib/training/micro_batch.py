"""Finding the largest micro-batch that fits into memory, by trying."""

from copy import deepcopy
from dataclasses import replace

import torch
import torch.distributed as dist
from timm.utils import check_batch_size_retry

from stages.lib.core.errors import UserError, short
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import Detector
from stages.lib.training.device_pixels import kept_bytes
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams


def find_accumulate(
    params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
) -> int:
    """Return the smallest number of micro-batches per step that fits into memory in all processes.

    It takes real steps on a copy of the detector, with the whole step first, then with ever smaller
    parts of it. Raises UserError where not even the smallest part fits.
    """
    share = params.batch_size // hardware.world_size
    step = 2 if params.needs_even_batches else 1
    sizes = [size for size in range(share, 0, -step) if share % size == 0]
    alone = replace(hardware, rank=0, world_size=1)
    problem = None
    for size in sizes:
        # A second micro-batch needs memory beside the gradients of the first.
        accumulate = min(2, share // size)
        changes = {
            "batch_size": size * accumulate,
            "accumulate": accumulate,
            "compile": None,
            "num_workers": 0,
        }
        problem = try_steps(params.model_copy(update=changes), detector, images, alone)
        if hardware.device.type == "cuda":  # the next try needs the memory back
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(hardware.device)
        if problem is None:
            break
    else:
        raise UserError(
            f"train.accumulate = auto: not even {sizes[-1]} of {share} images fit into memory at "
            f"once; lower train.image_size, or take a smaller train.model ({problem})"
        )
    smallest = torch.tensor(share // size, device=hardware.device)
    if hardware.world_size > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MAX)
    return int(smallest)


def try_steps(
    params: TrainParams, detector: Detector, images: LabelledImages, hardware: Hardware
) -> str | None:
    """Take two steps in 90 % of the free memory of a GPU; return what went wrong, or None.

    What gpu_images_gb will take is left free. The second step has the state of the optimizer in
    memory as well. Each library reports a lack of memory in its own words; timm knows them.
    """
    gpus = [hardware.device] if hardware.device.type == "cuda" else []
    size, side = params.batch_size // params.num_micro_batches, images.preprocessing.image_size
    place = "cpu"
    if params.augments_in_batches(hardware.device.type):
        place = hardware.device
    batch = torch.zeros((size, 3, side, side), dtype=torch.uint8, device=place)
    targets = torch.zeros(size, dtype=torch.long, device=place)
    for gpu in gpus:
        free, total = torch.cuda.mem_get_info(gpu)
        own = torch.cuda.memory_reserved(gpu) - kept_bytes(images, params.gpu_images_gb)
        torch.cuda.set_per_process_memory_fraction(max(0.0, 0.9 * (free + own) / total), gpu)
    try:
        with torch.random.fork_rng(gpus):
            loop = TrainingLoop(params, deepcopy(detector), images, hardware)
            loop.train_on([(batch, targets, targets)] * 2 * params.num_micro_batches, epoch=0)
    except (RuntimeError, MemoryError) as error:
        if not check_batch_size_retry(str(error)):
            raise
        return short(error, 100)
    finally:
        for gpu in gpus:
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    return None
