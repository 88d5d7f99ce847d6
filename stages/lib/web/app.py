"""The server of verdicts: a JSON interface and a page, for this machine alone.

POST /detect    a picture as the form field `file`: the record of its verdict, as the command prints
POST /explain   the same: the record, and pictures that explain it
GET  /model     which detector judges, its rules and what it was trained on
GET  /health    that it answers
GET  /          the page
GET  /openapi.json   all of this for programs

Errors are JSON with one sentence in `detail`: 400 the file cannot be judged, 411 or 413 the request
has no stated length or is too large, 422 no form field `file`, 503 too many requests wait, 504 it
took too long. No request can name a file of the server.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stages.lib.core.errors import short
from stages.lib.core.pictures import UnusableImage
from stages.lib.verdict.judge import Judge
from stages.lib.verdict.record import Record, facts_of, make_record
from stages.lib.verdict.rules import REASONS
from stages.lib.web.batches import Batches, Busy
from stages.lib.web.drawings import Explanation, explain

PAGE = Path(__file__).with_name("page.html")
FORM_BYTES = 10_000  # of a request around its picture
POLICY = ("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; "
          "base-uri 'none'; frame-ancestors 'none'")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the server takes."""

    megabytes: float = 20.0  # of a picture's file
    requests: int = 64  # that wait at once
    seconds: float = 60.0  # for one request
    batch_size: int = 16  # pictures that are judged together


def make_app(judge: Judge, limits: Limits, hosts: list[str]) -> FastAPI:
    """Return the server; hosts: names under which it may be called."""
    batches, detector = Batches(judge, limits.requests, limits.batch_size), facts_of(judge)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()

    app = FastAPI(
        title="Deepfake detector", version=judge.config.weights_sha256[:12], lifespan=lifespan,
        docs_url=None, redoc_url=None,  # their pages need a network
    )  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.middleware("http")
    async def limit(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        problem = _too_large(request, limits)
        if problem:
            return problem
        try:
            response = await asyncio.wait_for(answer(request), limits.seconds)
        except TimeoutError:
            return _error(504, f"no verdict within {limits.seconds:g} seconds; try again later")
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def record_of(file: UploadFile) -> tuple[Record, bytes]:
        content = await file.read()
        try:
            found = await batches.verdict(content)
        except Busy:
            words = f"{limits.requests} requests are waiting; try again in a moment"
            raise HTTPException(503, words, {"Retry-After": "1"}) from None
        if isinstance(found, UnusableImage):
            raise HTTPException(400, str(found))
        name = short(file.filename or "upload", 200)
        return make_record(name, found, detector, content), content

    @app.exception_handler(RequestValidationError)
    async def no_file(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "send the picture as the form field `file`")

    @app.post("/detect")
    async def detect(file: UploadFile) -> Record:
        """Judge a picture."""
        record, _ = await record_of(file)
        return record

    @app.post("/explain")
    async def explain_upload(file: UploadFile) -> Explanation:
        """Judge a picture, and draw what explains the verdict."""
        record, content = await record_of(file)
        return await batches.alone(lambda: explain(judge, record, content))

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Say which detector judges."""
        return {
            "detector": detector.model_dump(),
            "preprocessing": judge.config.preprocessing.model_dump(),
            "trained_on": judge.rules.trained_on.model_dump(),
            "reasons": REASONS,
        }

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """Return the page."""
        return PAGE.read_text(encoding="utf-8")

    return app


def _too_large(request: Request, limits: Limits) -> JSONResponse | None:
    """Return the answer to a request whose body is too large, or of unknown length."""
    if request.method != "POST":
        return None
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        return _error(411, "send the length of the request in the header Content-Length")
    if int(length) > limits.megabytes * 1e6 + FORM_BYTES:
        return _error(413, f"the file is larger than {limits.megabytes:g} MB")
    return None


def _error(status: int, words: str) -> JSONResponse:
    return JSONResponse({"detail": words}, status)
