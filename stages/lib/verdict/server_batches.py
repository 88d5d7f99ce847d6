"""Examining images of several requests together, on one thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stages.lib.images.decoding import UnusableImage
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.results import ImageVerdict

T = TypeVar("T")
Verdict = ImageVerdict | UnusableImage  # of an image, or why it cannot be examined


class Batches:
    """Takes images one by one and examines those that wait in one batch.

    While a batch is examined, the next one gathers. An image whose request was cancelled meanwhile
    is left out.
    """

    def __init__(self, examiner: Examiner, batch_size: int) -> None:
        self.examiner = examiner
        self.batch_size = batch_size
        self.queue: asyncio.Queue[tuple[bytes, asyncio.Future[Verdict]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)  # the detector is not faster on several

    async def examine(self, content: bytes) -> Verdict:
        """Return the verdict of an image, or why it cannot be examined."""
        verdict = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((content, verdict))
        return await verdict

    async def run_between(self, work: Callable[[], T]) -> T:
        """Return what other work with the detector returns; it runs between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def run(self) -> None:
        """Examine what arrives, until this task is cancelled."""
        while True:
            waiting = [await self.queue.get()]
            while len(waiting) < self.batch_size and not self.queue.empty():
                waiting.append(self.queue.get_nowait())
            await self._examine(
                [(content, future) for content, future in waiting if not future.done()]
            )

    async def _examine(self, waiting: list[tuple[bytes, asyncio.Future[Verdict]]]) -> None:
        """Examine a batch and answer its requests."""
        contents = [content for content, _ in waiting]
        try:
            verdicts = await self.run_between(lambda: self.examiner.examine(contents))
        except Exception as error:  # a defect: each request gets it, and the server stays
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), verdict in zip(waiting, verdicts, strict=True):
            if not future.done():
                future.set_result(verdict)
