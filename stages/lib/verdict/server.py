"""The server of verdicts: a JSON interface and a page, only for this machine.

POST /detect         an image or video as the form field `file`; returns the record of its verdict
POST /explain        the same; returns the record, what it means in words, and drawings
POST /csv            records and errors, one JSON object a line; returns them as a table
GET  /model          returns the detector, its rules and what it was trained on
GET  /health         returns {"status": "ok"}, also for HEAD and under any name of the server
GET  /               returns the page
GET  /openapi.json   returns a description of this interface

An error is JSON with one sentence in `detail`. 400: the file cannot be examined, or the request
names another server. 403: a page of another site asks. 404: there is no such page.
408: the file did not arrive in time. 411, 413: the request does not state its length, or is too
large. 422: the form is not one `file`, or
a line is no record. 500: a defect. 503: too many requests wait.
504: the answer took too long. No request can name a file of the server.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import pydantic
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from stages.lib.core.errors import short
from stages.lib.data.layouts.image_set import MEDIA_SUFFIXES, is_video
from stages.lib.evaluation.verdict_rules import DOUBTS, REASONS, learnt_from
from stages.lib.images.decoding import UnusableImage
from stages.lib.images.ignored_files import IGNORED
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.printing import parse_result, write_csv
from stages.lib.verdict.record import (
    AnyRecord,
    VideoRecord,
    identity_of,
    make_record,
    make_video_record,
)
from stages.lib.verdict.server_batches import Batches
from stages.lib.verdict.server_drawings import Explanation, explain
from stages.lib.verdict.server_guard import OPEN_TO_ALL, Guard, Limits, error_response
from stages.lib.verdict.videos import examine_video

PAGE = Path(__file__).with_name("server_page.html")
ONE_FILE = "send one image or video as the form field `file`, and nothing else"


def make_app(examiner: Examiner, limits: Limits, hosts: list[str]) -> Guard:
    """Return the server; hosts: names under which it may be called."""
    batches = Batches(examiner, limits.batch_size)
    detector = identity_of(examiner)
    doubt = DOUBTS[examiner.rules.doubt] if examiner.rules.doubt else None

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

    async def record_of(request: Request, file: UploadFile) -> AnyRecord:
        fields = [name for name, _ in (await request.form()).multi_items()]
        if fields != ["file"]:
            raise HTTPException(422, f"{ONE_FILE}; the form has {short(', '.join(fields), 200)}")
        name, are_frames = short(file.filename or "upload", 200), is_video(file.filename or "")
        most = limits.video_megabytes if are_frames else limits.megabytes
        if (file.size or 0) > most * 1e6:
            raise HTTPException(413, f"the file is larger than {most:g} MB")
        if are_frames:
            is_over = Event()  # whether nobody waits for the answer
            try:
                return await batches.run_between(lambda: video_record(name, file, is_over))
            finally:
                is_over.set()
        content = await file.read()
        verdict = await batches.examine(content)
        if isinstance(verdict, UnusableImage):
            raise verdict
        return await run_in_threadpool(make_record, name, verdict, detector, content)

    def video_record(name: str, file: UploadFile, is_over: Event) -> VideoRecord:
        with stored(file) as content:
            verdict = examine_video(examiner, content, limits.frames, is_over)
            return make_video_record(name, verdict, detector, examiner.rules, content)

    @app.exception_handler(UnusableImage)
    async def unusable(request: Request, problem: UnusableImage) -> JSONResponse:
        return error_response(400, str(problem))

    @app.exception_handler(RequestValidationError)
    async def no_file(request: Request, problem: RequestValidationError) -> JSONResponse:
        return error_response(422, ONE_FILE)

    @app.exception_handler(Exception)
    async def defect(request: Request, problem: Exception) -> JSONResponse:
        return error_response(500, "an error inside the server; its log has the details")

    @app.post("/detect")
    async def detect(request: Request, file: UploadFile) -> AnyRecord:
        """Return the record of an image or a video."""
        return await record_of(request, file)

    @app.post("/explain")
    async def explain_upload(request: Request, file: UploadFile) -> Explanation:
        """Return the record of an image or a video, with drawings that explain its verdict."""
        record = await record_of(request, file)

        def work() -> Explanation:
            with stored(file) as content:
                return explain(examiner, record, content)

        return await batches.run_between(work)

    @app.post("/csv", response_class=PlainTextResponse)
    async def table(request: Request) -> str:
        """Return records and errors, as /detect gives them, as the table of `detect --csv`."""
        output, lines = StringIO(), (await request.body()).splitlines()
        try:
            await run_in_threadpool(write_csv, output, map(parse_result, lines), doubt)
        except (pydantic.ValidationError, LookupError, TypeError, ValueError, RecursionError):
            raise HTTPException(422, "send one record, or one error, as JSON a line") from None
        return output.getvalue()

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Return the detector, its rules and what it was trained on."""
        return {
            "detector": detector.model_dump(),
            "preprocessing": examiner.config.preprocessing.model_dump(),
            "trained_on": examiner.rules.trained_on.model_dump(),
            "learnt_from": learnt_from(examiner.rules.trained_on),
            "doubt": doubt,
            "reasons": REASONS,
            "suffixes": sorted(MEDIA_SUFFIXES),
            "ignored": sorted(IGNORED),
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


@contextmanager
def stored(file: UploadFile) -> Iterator[BinaryIO]:
    """Yield an upload as an open file with a descriptor."""
    upload: Any = file.file
    upload.rollover()
    upload.seek(0)
    with os.fdopen(os.dup(upload.fileno()), "rb") as content:
        yield content
