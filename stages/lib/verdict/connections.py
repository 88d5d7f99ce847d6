"""How uvicorn serves. It has no option that ends silent connections, so they end here."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.lib.verdict.guard import Guard


def server_config(guard: Guard, **options: Any) -> uvicorn.Config:
    """Return how to serve; options: of uvicorn.Config."""

    class Connection(TimedConnection):
        seconds = guard.limits.seconds

    return uvicorn.Config(guard, http=Connection, ws="none", **options)


class TimedConnection(H11Protocol):
    """Ends a connection whose next request is not there in time, with all of its headers.

    The time begins with the connection, and again with each answer: bytes alone do not renew it.
    How long a request with headers may take is the matter of Guard.
    """

    seconds: float
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def handle_events(self) -> None:
        """Take what has arrived; a request that has begun is waited for no longer."""
        super().handle_events()
        if self.deadline and self.cycle and not self.cycle.response_complete:
            self.deadline.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, which may be there already."""
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self.deadline:
            self.deadline.cancel()

    def _wait(self) -> None:
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(self.seconds, self.transport.abort)
