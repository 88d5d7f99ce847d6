"""The server of verdicts: a JSON interface and a page, only for this machine.

POST /detect         an image as the form field `file`; returns the record of its verdict
POST /explain        the same image; returns the record, what it means in words, and drawings
GET  /model          returns the detector, its rules and what it was trained on
GET  /health         returns {"status": "ok"}, also for HEAD and under any name of the server
GET  /               returns the page
GET  /openapi.json   returns a description of this interface

An error is JSON with one sentence in `detail`. 400: the file is not an image that can be examined,
or the request names another server. 403: a page of another site asks. 404: there is no such page.
408: the image did not arrive in time. 411, 413: the request does not state its length, or is too
large. 422: the form is not one image as `file`. 500: a defect. 503: too many requests wait.
504: the answer took too long. No request can name a file of the server.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from stages.lib.core.errors import short
from stages.lib.evaluation.verdict_rules import DOUBTS, REASONS
from stages.lib.images.decoding import UnusableImage
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.record import Record, identity_of, make_record
from stages.lib.verdict.server_batches import Batches
from stages.lib.verdict.server_drawings import Explanation, explain
from stages.lib.verdict.server_guard import OPEN_TO_ALL, Guard, Limits, error_response

PAGE = Path(__file__).with_name("server_page.html")
ONE_IMAGE = "send one image as the form field `file`, and nothing else"


def make_app(examiner: Examiner, limits: Limits, hosts: list[str]) -> Guard:
    """Return the server; hosts: names under which it may be called."""
    batches = Batches(examiner, limits.batch_size)
    detector = identity_of(examiner)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()

    app = FastAPI(
        title="Deepfake detector",
        version=examiner.config.weights_sha256[:12],
        lifespan=lifespan,
        docs_url=None,  # these two pages need a network
        redoc_url=None,
    )

    async def record_of(request: Request, file: UploadFile) -> tuple[Record, bytes]:
        fields = [name for name, _ in (await request.form()).multi_items()]
        if fields != ["file"]:
            raise HTTPException(422, f"{ONE_IMAGE}; the form has {short(', '.join(fields), 200)}")
        content = await file.read()
        verdict = await batches.examine(content)
        if isinstance(verdict, UnusableImage):
            raise HTTPException(400, str(verdict))
        name = short(file.filename or "upload", 200)
        record = await run_in_threadpool(make_record, name, verdict, detector, content)
        return record, content

    @app.exception_handler(RequestValidationError)
    async def no_file(request: Request, problem: RequestValidationError) -> JSONResponse:
        return error_response(422, ONE_IMAGE)

    @app.exception_handler(Exception)
    async def defect(request: Request, problem: Exception) -> JSONResponse:
        return error_response(500, "an error inside the server; its log has the details")

    @app.post("/detect")
    async def detect(request: Request, file: UploadFile) -> Record:
        """Return the record of an image."""
        record, _ = await record_of(request, file)
        return record

    @app.post("/explain")
    async def explain_upload(request: Request, file: UploadFile) -> Explanation:
        """Return the record of an image, with drawings that explain its verdict."""
        record, content = await record_of(request, file)
        return await batches.run_between(lambda: explain(examiner, record, content))

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Return the detector, its rules and what it was trained on."""
        return {
            "detector": detector.model_dump(),
            "preprocessing": examiner.config.preprocessing.model_dump(),
            "trained_on": examiner.rules.trained_on.model_dump(),
            "doubt": examiner.rules.doubt and DOUBTS[examiner.rules.doubt],
            "reasons": REASONS,
        }

    @app.head(OPEN_TO_ALL, include_in_schema=False)
    @app.get(OPEN_TO_ALL)
    async def health() -> dict[str, str]:
        """Return that the server answers."""
        return {"status": "ok"}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """Return the page."""
        return PAGE.read_text(encoding="utf-8")

    return Guard(app, limits, hosts)
