"""Batches that threads of this process load: nothing passes through a pipe or shared memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from stages.lib.detector.dataset import LabelledImages
from stages.lib.training.host_batches import HostBatch

BATCHES_AHEAD = 2  # loaded and waiting, beside those that the threads are loading


class ThreadLoader:
    """Loads batches in their order, each by one of some threads.

    It suits work that waits for memory, the disk or a library: while one thread computes in Python,
    the others wait for it. batch_sampler: the keys of each batch, anew in each pass.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        batch_sampler: Any,
        num_threads: int,
        load: Callable[[list[Any]], HostBatch],
        device: torch.device,
    ) -> None:
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.num_threads, self.load = max(1, num_threads), load
        self.device = device

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[HostBatch]:
        """Load all batches once; an error of a thread is raised where its batch would come."""
        pool = ThreadPoolExecutor(self.num_threads, initializer=self._prepare)
        ahead: deque[Future[HostBatch]] = deque()
        try:
            for keys in self.batch_sampler:
                ahead.append(pool.submit(self.load, keys))
                if len(ahead) == self.num_threads + BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self) -> None:
        """Let a thread use its own GPU, and one core, as a worker does; the number counts for all.

        Where the CPU trains, it keeps its threads.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.set_num_threads(1)
