"""What every request passes first: limits, refusals, and headers that protect the page."""

import asyncio
import re
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.lib.verdict.server_uploads import Uploads
from stages.lib.verdict.videos import FRAMES

FORM_BYTES = 10_000  # of a request, around its image
OPEN_TO_ALL = "/health"  # under any name: a load balancer knows the address alone
HOST = re.compile(r"(\[[^]]*\]|[^:]*)(:\d*)?")  # a name or an address, and a port
PROTECTION = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; media-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    megabytes: float = 20.0  # of an image's file
    video_megabytes: float = 200.0  # of a video's file
    requests: int = 64  # at once, with whole bodies
    seconds: float = 120.0  # for one request, with its upload
    batch_size: int = 16  # images that are examined together
    frames: int = FRAMES  # of a video that are judged

    @property
    def max_bytes(self) -> float:
        """Return how many bytes the body of a request may have."""
        return max(self.megabytes, self.video_megabytes) * 1e6 + FORM_BYTES

    @property
    def stored_bytes(self) -> float:
        """Return how many bytes may be on their way: images of all requests, and two videos."""
        return self.requests * self.megabytes * 1e6 + 2 * self.max_bytes


class Guard:
    """An ASGI application that passes requests to another one, within limits.

    A request that takes too long is cancelled, and so is its work if that has not begun.
    """

    def __init__(self, app: ASGIApp, limits: Limits, hosts: list[str]) -> None:
        """Protect an app; hosts: the names under which it may be called.

        A foreign page whose name leads to this machine (DNS rebinding) cannot call it.
        """
        self.app = app
        self.limits = limits
        self.hosts = {plain_host(host) for host in hosts} - {""}
        self.num_requests = 0
        self.uploads = Uploads(limits.stored_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        method = scope["method"]
        headers = Headers(scope=scope)
        is_open = scope["path"] == OPEN_TO_ALL and method in ("GET", "HEAD")
        refusal = None if is_open else self._refusal(method, headers)
        if refusal:
            await refusal(scope, receive, send)
        elif method != "POST":
            await self._answer(scope, receive, send, deadline)
        else:
            size = int(headers["content-length"])
            await self._answer_post(scope, receive, send, deadline, size)

    async def _answer_post(
        self, scope: Scope, receive: Receive, send: Send, deadline: float, size: int
    ) -> None:
        """Answer a request with a body of `size` bytes.

        It takes one of the places when its body is whole: a silent caller keeps nobody out.
        """
        try:
            async with self.uploads.store(receive, size, deadline) as receive_again:
                if receive_again:
                    await self._answer_in_turn(scope, receive_again, send, deadline)
        except TimeoutError:
            words = "the file did not arrive in time; send it again"
            await error_response(408, words, {"Connection": "close"})(scope, receive, send)

    async def _answer_in_turn(
        self, scope: Scope, receive: Receive, send: Send, deadline: float
    ) -> None:
        """Answer a request if a place is free."""
        if self.num_requests >= self.limits.requests:
            words = f"{self.limits.requests} requests are waiting; try again in a moment"
            await error_response(503, words, {"Retry-After": "1"})(scope, receive, send)
            return
        self.num_requests += 1
        try:
            await self._answer(scope, receive, send, deadline)
        finally:
            self.num_requests -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, deadline: float) -> None:
        """Answer a request before the deadline, or say that it took too long."""
        has_begun = False

        async def protected_send(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        try:
            async with asyncio.timeout_at(deadline):
                await self.app(scope, receive, protected_send)
        except TimeoutError:
            words = f"no answer within {self.limits.seconds:g} seconds; try again later"
            if not has_begun:
                await error_response(504, words)(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        """Return the answer to a request that is refused, or None."""
        if plain_host(headers.get("host", "")) not in self.hosts:
            return error_response(400, "this server does not answer under that name")
        if method != "POST":
            return None
        if not self._is_own_page(headers):
            return error_response(403, "pages of other sites may not send files")
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not length.isdigit():
            return error_response(
                411, "send the length of the request in the header Content-Length"
            )
        if int(length) > self.limits.max_bytes:
            most = max(self.limits.megabytes, self.limits.video_megabytes)
            return error_response(413, f"the file is larger than {most:g} MB")
        return None

    def _is_own_page(self, headers: Headers) -> bool:
        """Return whether the caller is a page of this server, or a program without an origin."""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or plain_host(origin.partition("://")[2]) in self.hosts


def plain_host(text: str) -> str:
    """Return a name or address of a host in one form, without its port; "" for anything else.

    A name may have capital letters, and an address of IPv6 has brackets where a port follows.
    """
    is_bare_ipv6 = text.count(":") > 1 and not text.startswith("[")
    match = HOST.fullmatch(f"[{text}]" if is_bare_ipv6 else text)
    name = match[1].strip("[]").lower().rstrip(".") if match else ""
    try:
        return str(ip_address(name))
    except ValueError:
        return name


def error_response(status: int, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an answer with one sentence in `detail`."""
    return JSONResponse({"detail": words}, status, headers)
