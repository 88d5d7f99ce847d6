"""What stands before the server: limits, refusals in words, and headers that protect its page."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FORM_BYTES = 10_000  # of a request around its picture
PROTECTION = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src "
    "'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """What the server takes."""

    megabytes: float = 20.0  # of a picture's file
    requests: int = 64  # at once, from the first byte of their bodies
    seconds: float = 60.0  # for one request, with its upload
    batch_size: int = 16  # pictures that are judged together


class Guard:
    """An ASGI application around another one.

    A request that takes too long is cancelled, and so is its work where it has not begun.
    """

    def __init__(self, app: App, limits: Limits, hosts: list[str]) -> None:
        """Protect app; hosts: names under which it may be called, so that a page of a stranger
        whose name leads to this machine cannot call it."""
        self.app, self.limits, self.hosts = app, limits, hosts
        self.num_requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal:
            await refusal(scope, receive, send)
            return
        has_begun = False

        async def protected_send(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        self.num_requests += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, receive, protected_send)
        except TimeoutError:
            words = f"no answer within {self.limits.seconds:g} seconds; try again later"
            if not has_begun:
                await error(504, words)(scope, receive, send)
        finally:
            self.num_requests -= 1

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        """Return the answer to a request that is not let in."""
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if host not in self.hosts:
            return error(400, "this server does not answer under that name")
        if method != "POST":
            return None
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return error(403, "pages of other sites may not send pictures")
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not length.isdigit():
            return error(411, "send the length of the request in the header Content-Length")
        if int(length) > self.limits.megabytes * 1e6 + FORM_BYTES:
            return error(413, f"the file is larger than {self.limits.megabytes:g} MB")
        if self.num_requests >= self.limits.requests:
            words = f"{self.limits.requests} requests are waiting; try again in a moment"
            return error(503, words, {"Retry-After": "1"})
        return None


def error(status: int, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an answer with one sentence in `detail`."""
    return JSONResponse({"detail": words}, status, headers)
