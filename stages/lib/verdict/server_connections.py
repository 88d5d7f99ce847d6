"""Ending connections that ask nothing, for which uvicorn has no option."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.lib.verdict.server_guard import Guard


def server_config(guard: Guard, **options: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn for a guarded server; options: more of uvicorn.Config."""

    class Connection(TimedConnection):
        seconds = guard.limits.seconds

    return uvicorn.Config(guard, http=Connection, ws="none", **options)


class TimedConnection(H11Protocol):
    """Ends a connection where the headers of its next request are not complete in time.

    The time starts with the connection, and again after each answer; bytes alone do not renew it.
    Guard limits how long a request may take after its headers.
    """

    seconds: float  # until the headers are complete
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyrefly: ignore
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def handle_events(self) -> None:
        """Take what has arrived; when all headers of a request are there, stop waiting."""
        super().handle_events()
        if self.deadline and self.cycle and not self.cycle.response_complete:
            self.deadline.cancel()

    def on_response_complete(self) -> None:
        """Start to wait for the next request, which may be there already."""
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        if self.deadline:
            self.deadline.cancel()

    def _wait(self) -> None:
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(self.seconds, self.transport.abort)
