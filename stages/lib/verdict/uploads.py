"""Bodies of requests that are on their way: they take no place among those that are judged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile

from starlette.types import Message, Receive

IN_MEMORY = 1 << 20  # bytes of a body; a larger one is in a temporary file
AT_A_TIME = 1 << 16  # bytes that are read of it


class Uploads:
    """Takes bodies until they are whole. Where too many bytes are on their way, the oldest end."""

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes = most_bytes
        self.sizes: dict[asyncio.Timeout, int] = {}  # as they were announced

    @asynccontextmanager
    async def whole(
        self, receive: Receive, size: int, deadline: float
    ) -> AsyncIterator[Receive | None]:
        """Yield what gives a whole body of `size` bytes, or None where the caller has gone.

        Raises TimeoutError where it is not there before the deadline, or has to end for others.
        """
        with SpooledTemporaryFile(IN_MEMORY) as body:
            is_read = False

            async def receive_again() -> Message:
                nonlocal is_read
                if is_read:
                    return await receive()
                part = body.read(AT_A_TIME)
                is_read = body.tell() >= size
                return {"type": "http.request", "body": part, "more_body": not is_read}

            async with asyncio.timeout_at(deadline) as time:
                self.sizes[time] = size
                try:
                    self._end_the_oldest()
                    is_whole = await _store(receive, body)
                finally:
                    self.sizes.pop(time, None)
            body.seek(0)
            yield receive_again if is_whole else None

    def _end_the_oldest(self) -> None:
        while sum(self.sizes.values()) > self.most_bytes:
            oldest = next(iter(self.sizes))
            del self.sizes[oldest]
            if not oldest.expired():
                oldest.reschedule(0)


async def _store(receive: Receive, body: SpooledTemporaryFile[bytes]) -> bool:
    """Store a body; return whether it is whole, or the caller has gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        body.write(message.get("body", b""))
        if not message.get("more_body"):
            return True
