"""Uploads on their way: they take no place among the requests that wait for a verdict."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile

from starlette.types import Message, Receive

IN_MEMORY = 1 << 20  # bytes of a body; a larger one is in a temporary file
PART = 1 << 16  # bytes that are read of it at a time


class Uploads:
    """Stores the bodies of requests until they are whole.

    Where more bytes are announced than may be on their way, the oldest uploads end.
    """

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.sizes: dict[asyncio.Timeout, int] = {}  # announced by each upload, the oldest first
        self.whole_bytes = 0  # of those that are whole and not answered yet

    @asynccontextmanager
    async def store(
        self, receive: Receive, size: int, deadline: float
    ) -> AsyncIterator[Receive | None]:
        """Yield a Receive that gives a stored body of `size` bytes, or None if the caller has gone.

        Raises TimeoutError where the body is not whole before the deadline, or makes room for
        newer uploads.
        """
        with SpooledTemporaryFile(IN_MEMORY) as body:
            is_read = False

            async def receive_again() -> Message:
                nonlocal is_read
                if is_read:
                    return await receive()
                part = body.read(PART)
                is_read = body.tell() >= size
                return {"type": "http.request", "body": part, "more_body": not is_read}

            async with asyncio.timeout_at(deadline) as timeout:
                self.sizes[timeout] = size
                try:
                    self._end_oldest()
                    is_whole = await _store(receive, body)
                finally:
                    self.sizes.pop(timeout, None)
            body.seek(0)
            self.whole_bytes += size
            try:
                yield receive_again if is_whole else None
            finally:
                self.whole_bytes -= size

    def _end_oldest(self) -> None:
        while self.sizes and sum(self.sizes.values()) + self.whole_bytes > self.max_bytes:
            oldest = next(iter(self.sizes))
            del self.sizes[oldest]
            if not oldest.expired():
                oldest.reschedule(0)


async def _store(receive: Receive, body: SpooledTemporaryFile[bytes]) -> bool:
    """Store a body; return whether it is whole. If not, the caller has gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        body.write(message.get("body", b""))
        if not message.get("more_body"):
            return True
