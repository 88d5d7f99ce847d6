"""Judging requests together that arrive together, on one thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stages.lib.images.decoding import UnusableImage
from stages.lib.verdict.examiner import Examiner, ImageVerdict

T = TypeVar("T")
Waiting = tuple[bytes, asyncio.Future[ImageVerdict | UnusableImage]]


class Batches:
    """Takes images one by one and judges those that wait together.

    While a batch is judged, the next one gathers. A request that was cancelled meanwhile is not
    judged.
    """

    def __init__(self, examiner: Examiner, batch_size: int) -> None:
        self.examiner, self.batch_size = examiner, batch_size
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)  # the detector is no quicker on several

    async def verdict(self, content: bytes) -> ImageVerdict | UnusableImage:
        """Return the verdict of an image, or why it cannot be judged."""
        found = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((content, found))
        return await found

    async def alone(self, work: Callable[[], T]) -> T:
        """Return what other work with the detector returns, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def run(self) -> None:
        """Judge what arrives, until this task is cancelled."""
        while True:
            waiting = [await self.queue.get()]
            while len(waiting) < self.batch_size and not self.queue.empty():
                waiting.append(self.queue.get_nowait())
            waiting = [one for one in waiting if not one[1].done()]
            contents = [content for content, _ in waiting]
            try:
                verdicts = await self.alone(lambda images=contents: self.examiner.examine(images))
            except Exception as error:  # a defect: each one that waits is told, the server stays
                for _, found in waiting:
                    if not found.done():
                        found.set_exception(error)
                continue
            for (_, found), verdict in zip(waiting, verdicts, strict=True):
                if not found.done():
                    found.set_result(verdict)
