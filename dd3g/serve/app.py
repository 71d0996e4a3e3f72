"""The HTTP of `dd3g serve`: a picture is posted, a file comes back; every error is JSON with one sentence."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

import dd3g
from dd3g.errors import UserError
from dd3g.results import PAGE
from dd3g.results import Request as Order
from dd3g.serve.worker import FORMATS, Made, Unwritten, Worker

MAX_REFINE = 10.0  # seconds of the one thread that a caller may ask for
TYPES = {"glb": "model/gltf-binary", "usdz": "model/vnd.usdz+zip", PAGE: "text/html; charset=utf-8"}
GONE = 499  # for the metrics alone: nobody is there to read it
# Inline, since the frame of the object inherits this policy, and it is one file.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
POLICY += "connect-src 'self'; frame-src 'self'; form-action 'none'; frame-ancestors 'self'; base-uri 'none'"


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    waiting: int = 32  # pictures that are read, wait or are worked on at the same time
    megabytes: float = 20.0  # of one picture file, 10^6 bytes
    seconds: float = 60.0  # from the first byte of a picture to its answer


class Parameters(BaseModel, extra="forbid"):
    """What a caller may say beside the picture; names and meanings of `dd3g infer`."""

    format: str = "ply"
    axes: str | None = None
    ply_layout: str = "compact"
    seed: int = 0
    elevation: str = "10"
    raw: bool = False
    refine: float = 0.0
    matte: Literal["auto", "none", "u2netp"] = "auto"
    foreground_ratio: float = 0.8
    fov: float = 49.1

    def order(self, worker: Worker) -> Order:
        """The same checks as those of the command line.

        Raises:
            UserError: names the wrong value.
        """
        if self.format not in FORMATS:
            raise UserError(f"unknown format {self.format!r}: give one of {', '.join(FORMATS)}")
        if self.refine > MAX_REFINE:
            raise UserError(f"refine {self.refine:g} is out of range: give 0 to {MAX_REFINE:g} seconds")
        if self.format == PAGE and (self.axes or self.ply_layout != "compact"):
            raise UserError(
                "axes and ply_layout are those of a splat file, and html is a page: leave them out"
            )
        if self.matte == "u2netp" and worker.matte == "none":
            raise UserError(
                "this server runs without matting models: leave matte out, or send a picture cut out"
            )
        own = self.model_dump(exclude={"format", "matte"})
        return Order(
            **own,
            formats=FORMATS[:1] if self.format == PAGE else (self.format,),
            viewer=self.format == PAGE,
            matte="none" if worker.matte == "none" else self.matte,
        )


def make_app(worker: Worker, about: dict[str, Any], limits: Limits = Limits()) -> FastAPI:
    """The server's application.

    Args:
        worker: makes the files; the application closes it when it ends.
        about: what /health tells beside the queue.
        limits: of pictures and of the queue.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    # No pages of documentation, which load scripts from elsewhere; no export of traces, whatever is there.
    silent: Any = dict.fromkeys(("auto_configure", "tracing", "metrics", "logs"), False)
    app = FastAPI(
        title="dd3g",
        version=dd3g.__version__,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        telemetry=silent,
    )
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    answers = Counter("dd3g_answers", "Answers to posted pictures.", ["status"], registry=registry)
    waiting = Gauge("dd3g_waiting", "Pictures being read, waiting or being worked on.", registry=registry)
    seconds = Histogram("dd3g_seconds", "Seconds from picture to file, waiting left out.", registry=registry)
    _answer_errors(app, answers)
    taken = 0  # of one event loop's thread alone, as all of this
    page = _page(limits)

    @app.post("/generate", response_class=Response)
    async def generate(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
        """The body is a picture file; the answer is a file of the object."""
        nonlocal taken
        status = 500
        try:
            names = [name for name, _ in request.query_params.multi_items()]
            if twice := [name for name in parameters.model_fields_set if names.count(name) > 1]:
                raise UserError(f"{twice[0]} is given {names.count(twice[0])} times: give it once")
            order = parameters.order(worker)
            # A picture whose turn would come too late is not taken, either.
            ahead = worker.mean_seconds * taken
            if taken >= limits.waiting or ahead > limits.seconds:
                retry = math.ceil(ahead / 2)
                message = f"{taken} pictures are waiting already: try again in {retry} seconds"
                raise HTTPException(503, message, {"Retry-After": str(retry)})
            taken += 1
            waiting.set(taken)
            try:
                made = await _make(request, parameters.format, order)
            finally:
                taken -= 1
                waiting.set(taken)
            seconds.observe(made.seconds)
            status = 200
            return _file(made, parameters.format)
        except HTTPException as error:
            status = error.status_code
            raise
        except UserError as error:  # the parameters'
            status = 400
            raise HTTPException(400, _plain(error)) from error
        finally:
            answers.labels(status).inc()

    async def _make(request: Request, format: str, order: Order) -> Made:
        try:
            async with asyncio.timeout(limits.seconds):
                picture = await _read(request, int(1e6 * limits.megabytes))
        except TimeoutError as error:
            message = f"the picture took longer than {limits.seconds:g} seconds to arrive: send it again"
            raise HTTPException(408, message, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise HTTPException(GONE, "the client has disconnected") from error
        queued = worker.submit(picture, format, order)
        job = asyncio.wrap_future(queued)
        left = asyncio.ensure_future(_left(request))
        try:
            both: set[asyncio.Future[Any]] = {job, left}
            await asyncio.wait(both, timeout=limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
        except UserError as error:
            raise HTTPException(422, _plain(error)) from error
        except Unwritten as error:
            raise HTTPException(507, f"the server could not write the object: {error}") from error
        finally:
            queued.cancel()  # one that waits still never starts; the loop would tell it late
            job.cancel()
            left.cancel()
        if left.done() and not left.cancelled():
            raise HTTPException(GONE, "the client has disconnected")
        message = f"no answer within {limits.seconds:g} seconds: try again later, or a smaller picture"
        raise HTTPException(504, message)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server is up, and what it serves."""
        return {"status": "ok", **about, "waiting": taken}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse)
    async def front() -> HTMLResponse:
        """A page to drop a picture on."""
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    return app


def _page(limits: Limits) -> str:
    values = {"formats": FORMATS, "megabytes": limits.megabytes, "page": PAGE}
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: json.dumps(values[match[1]]), template)


async def _read(request: Request, most: int) -> bytes:
    """The body; what is too long is read to its end, at most ten times the limit, and thrown away."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(
            415, "send the picture itself as the body, not a form: curl --data-binary @photo.jpg URL"
        )
    message = f"the picture is larger than {most / 1e6:g} MB: scale it down first"
    too_long = HTTPException(413, message, {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > 10 * most:
        raise too_long
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            parts.append(chunk)
        elif size > 10 * most:
            break
        else:
            parts.clear()
    if size > most:
        # Answered at once, a client that still sends would see a broken connection and not the reason.
        raise too_long
    return b"".join(parts)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _file(made: Made, format: str) -> Response:
    report = {name: getattr(made, name) for name in ("gaussians", "elevation", "warnings")}
    report["seconds"] = round(made.seconds, 3)
    headers = {"Dd3g-Report": json.dumps(report)}  # escaped to ASCII, as headers must be
    if format != PAGE:
        headers["Content-Disposition"] = f'attachment; filename="object.{format}"'
    kind = TYPES.get(format.rpartition(".")[2], "application/octet-stream")
    return Response(made.data, media_type=kind, headers=headers)


def _plain(error: UserError) -> str:
    words = str(error).replace(", in Python matte='none'", "").replace("--no-matte", "matte=none")
    # The others are called like the options, without the dashes.
    return re.sub(r"--(\w[\w-]*)", lambda match: match[1].replace("-", "_"), words)


def _answer_errors(app: FastAPI, answers: Counter) -> None:
    @app.exception_handler(AnyHTTPException)
    async def known(request: Request, error: AnyHTTPException) -> JSONResponse:
        message = str(error.detail)
        if message == "Not Found":  # of the router, as the next
            message = "nothing is at this address: use POST /generate, GET /, GET /health and GET /metrics"
        elif message == "Method Not Allowed":
            takes = (error.headers or {}).get("Allow", "another method")
            message = f"{request.url.path} takes {takes}, not {request.method}"
        return JSONResponse({"error": message}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = []
        for e in error.errors():
            given = e["input"] if e["type"] != "extra_forbidden" else None
            told = f", not {given[:60]!r}" if isinstance(given, str) else ""
            wrong.append(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}{told}")
        answers.labels(400).inc()  # `generate` never saw it
        names = ", ".join(Parameters.model_fields)
        return JSONResponse({"error": f"{'; '.join(wrong)} (parameters are {names})"}, 400)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger("dd3g.serve").error("".join(traceback.format_exception(error)))
        return JSONResponse({"error": "the server failed on this picture; its log says why"}, 500)
