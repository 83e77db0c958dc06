"""What `lab serve` answers over HTTP: pictures in, boxes out, within limits that keep it alive."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from lab.onnx_model import Network
from lab.serve_docs import docs_page
from lab.serve_picture import MEGAPIXEL, Refusal
from lab.serve_queue import Found, Queue, Watchers, Wish

PAGE = Path(__file__).with_name("serve_page.html")
MEBIBYTE = 1 << 20
RAW = ("image/jpeg", "image/png", "image/bmp", "image/x-ms-bmp", "image/webp", "application/octet-stream")
BOUNDARY = re.compile(r"[\w'()+,./:=?-][\w'()+,./:=? -]{0,69}", re.ASCII)
PATHS = ("/", "/predict", "/health", "/metrics", "/docs", "/openapi.json")
ASK_FOR_TOKEN = "without a token (LAB_SERVE_TOKEN, --token-file)"
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
Message = dict[str, Any]  # of ASGI


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take. `body` and `held` in bytes, `timeout` in seconds."""

    body: int = 20 * MEBIBYTE
    pixels: int = 50 * MEGAPIXEL
    images: int = 16
    timeout: float = 30.0
    room: int = 64  # pictures let in at once
    held: int = 256 * MEBIBYTE  # of all bodies that are being read or worked upon


class Box(BaseModel):
    """One detection. `xyxy`: left, top, right, bottom in pixels of the picture; `xyxyn`: the same, from 0 to 1."""

    label: int = Field(alias="class")
    name: str
    confidence: float
    xyxy: tuple[float, float, float, float]
    xyxyn: tuple[float, float, float, float]


class Timing(BaseModel):
    """Milliseconds: waiting for its turn, decoding and scaling, the model (its whole batch)."""

    waited: float
    decode: float
    inference: float


class Image(BaseModel):
    """One picture, in the order they were sent. Width and height as it is shown, EXIF orientation applied."""

    file: str
    width: int
    height: int
    boxes: list[Box]
    timing: Timing


class Model(BaseModel):
    """The model; `size` is height and width of its input."""

    file: str
    size: tuple[int, int]
    provider: str


class Answer(BaseModel):
    """What POST /predict answers. `ms`: milliseconds from the first byte of the request to this."""

    model: Model
    images: list[Image]
    ms: float


class Problem(BaseModel):
    """Every answer that is none: one sentence."""

    error: str


class Meters:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own: Any = {"registry": self.registry}
        self.requests = Counter("lab_serve_requests", "Requests answered.", ["path", "status"], **own)
        self.seconds = Histogram("lab_serve_request_seconds", "Whole requests to /predict.", buckets=SECONDS, **own)
        self.decoding = Histogram("lab_serve_decode_seconds", "Decoding and scaling a picture.", buckets=SECONDS, **own)
        self.inference = Histogram("lab_serve_inference_seconds", "The model, a batch.", buckets=SECONDS, **own)
        self.batch = Histogram("lab_serve_batch_images", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32), **own)
        self.waiting = Gauge("lab_serve_queue_images", "Pictures that wait for the model.", **own)
        self.places = Gauge("lab_serve_images_in_flight", "Pictures let in and not answered.", **own)
        self.ready = Gauge("lab_serve_ready", "1 when the last inference succeeded.", **own)

    def watchers(self) -> Watchers:
        """What the queue reports to."""
        return Watchers(self.batch.observe, self.decoding.observe, self.inference.observe)


class Service:
    """The handlers, and what they share."""

    def __init__(self, network: Network, queue: Queue, limits: Limits, meters: Meters, token: str) -> None:
        self.network, self.queue, self.limits, self.meters = network, queue, limits, meters
        self.token = token.encode()
        self.held = 0  # bytes of all bodies
        self.model = {"file": network.file, "size": network.size, "provider": network.provider}
        self.page, self.policy = _page()

    async def predict(
        self,
        request: Request,
        conf: Annotated[float, Query(ge=0.001, le=1, description="least confidence of a box")] = 0.25,
        iou: Annotated[float, Query(ge=0, le=1, description="most overlap of two boxes of a class")] = 0.45,
        max_det: Annotated[int, Query(ge=1, le=1000, description="most boxes in a picture")] = 300,
    ) -> Response:
        """Boxes in one picture or in several: as files of a multipart form, or one as the body itself."""
        begun = time.monotonic()
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" and kind not in RAW:
            raise Refusal(
                415, f"Content-Type {kind[:80] or 'is missing'}: send multipart/form-data, or one of {', '.join(RAW)}"
            )
        body = _Body(request, self, self._length(request))
        self.queue.require(1, self.limits.timeout)  # before the body comes; a place is taken when it has come
        places = 0
        try:
            read = self._files(body) if kind == "multipart/form-data" else self._raw(body)
            try:
                files = await asyncio.wait_for(read, self.limits.timeout)
            except asyncio.TimeoutError:
                raise Refusal(408, f"the body did not come within {self.limits.timeout:g} s") from None
            left = self.limits.timeout - (time.monotonic() - begun)
            self.queue.enter(len(files), left)
            places = len(files)
            found = await self._found(request, [data for _, data in files], Wish(conf, iou, max_det), left)
        finally:
            self.queue.leave(places)
            self.held -= body.length
        took = time.monotonic() - begun
        self.meters.seconds.observe(took)
        images = [self._told(name, one) for (name, _), one in zip(files, found, strict=True)]
        return _json({"model": self.model, "images": images, "ms": round(took * 1000, 1)})

    async def health(self) -> Response:
        """Whether it lives and is ready: 200, or 503 with the reason. A model that was idle is asked."""
        failure = await self.queue.ready()
        said = {"live": True, "ready": not failure, "model": self.model, "error": failure or None}
        return _json(said, 503 if failure else 200)

    async def metrics(self, request: Request) -> Response:
        """Counts and durations, for Prometheus."""
        self._admit(request)
        self.meters.waiting.set(self.queue.waiting())
        self.meters.places.set(self.queue.places)
        self.meters.ready.set(not self.queue.failure)
        return Response(generate_latest(self.meters.registry), media_type=CONTENT_TYPE_LATEST)

    async def home(self) -> Response:
        """A page to try the model with pictures or a camera."""
        headers = {"Content-Security-Policy": self.policy, "Permissions-Policy": "camera=(self)"}
        return HTMLResponse(self.page, headers=headers)

    def _admit(self, request: Request) -> None:
        """Raises Refusal (401) when a token is wanted and not given."""
        if not self.token:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token)
        if scheme.lower() != "bearer" or not right:
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _length(self, request: Request) -> int:
        """Bytes that the body may have; as many as any may when its length is not told. Raises Refusal (413)."""
        told = request.headers.get("content-length", "")
        length = int(told) if told.isdecimal() else self.limits.body
        if length > self.limits.body:
            raise _too_long(self.limits.body)
        return length

    async def _raw(self, body: _Body) -> list[tuple[str, bytes]]:
        data = b"".join([part async for part in body.parts()])
        if not data:
            raise Refusal(400, "the body is empty: send a picture")
        return [("", data)]

    async def _files(self, body: _Body) -> list[tuple[str, bytes]]:
        """Names and contents of a form's files, in memory: their names never meet a file system."""
        images = self.limits.images
        parser = MultiPartParser(_form_type(body.request), body.parts(), max_files=images, max_fields=0)
        parser.spool_max_size = body.most + 1
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if len(parser.items) >= images:
                raise Refusal(413, f"more than {images} pictures in a request: send several requests") from error
            if error.message.startswith("Too many fields"):
                raise Refusal(
                    400, "the form has a field that is no file: options belong in the address, ?conf=0.4"
                ) from error
            raise Refusal(400, f"the form cannot be read: {error.message}") from error
        files = []
        for _, part in form.multi_items():
            if not isinstance(part, str):
                name = re.split(r"[/\\]", part.filename or "")[-1][:200]
                files.append((name, await part.read()))
                await part.close()
        if not files:
            raise Refusal(400, "the form holds no file: send one, as curl --form file=@picture.jpg does")
        return files

    async def _found(self, request: Request, pictures: list[bytes], wish: Wish, within: float) -> list[Found]:
        """What is in each picture. Raises Refusal; also when the client has gone, so that nobody works for it."""
        waiting = [self.queue.submit(data, wish) for data in pictures]
        every: asyncio.Future[Any] = asyncio.gather(*waiting)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({every, gone}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if every.done():
                every.exception()  # heard: asyncio would print it
                for number, one in enumerate(waiting, 1):
                    error = one.exception() if one.done() else None
                    if isinstance(error, Refusal) and error.status < 500:
                        which = (
                            f"picture {number} of {len(waiting)}" if len(waiting) > 1 else "the picture cannot be used"
                        )
                        raise Refusal(error.status, f"{which}: {error.sentence}")
                return list(every.result())
            if gone.done():
                raise Refusal(499, "the client has gone")
            raise Refusal(503, f"it took more than {self.limits.timeout:g} s", {"Retry-After": "1"})
        finally:
            every.cancel()
            gone.cancel()

    def _told(self, name: str, found: Found) -> dict[str, Any]:
        sides = (found.width, found.height) * 2
        boxes = [
            {
                "class": label,
                "name": self.network.name(label),
                "confidence": round(score, 5),
                "xyxy": [round(x, 2) for x in box],
                "xyxyn": [round(x / side, 6) for x, side in zip(box, sides, strict=True)],
            }
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ]
        stages = {"waited": found.waited, "decode": found.decoding, "inference": found.inference}
        timing = {stage: round(seconds * 1000, 1) for stage, seconds in stages.items()}
        return {"file": name, "width": found.width, "height": found.height, "boxes": boxes, "timing": timing}


def make_app(service: Service, log: bool = False) -> Any:
    """The ASGI application; `log`: one line a request on stdout."""
    app = FastAPI(title="lab serve", version="1", docs_url=None, redoc_url=None, description=_about(service))
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "no picture in the request"},
        401: {"model": Problem, "description": "a token is needed"},
        408: {"model": Problem, "description": "the body came too slowly"},
        413: {"model": Problem, "description": "too many bytes, pixels or pictures"},
        415: {"model": Problem, "description": "no picture of a known kind"},
        421: {"model": Problem, "description": "without a token: by another name, or from another page"},
        422: {"model": Problem, "description": "a damaged picture, or a parameter out of range"},
        429: {"model": Problem, "description": "busy; Retry-After says for how many seconds"},
        503: {"model": Problem, "description": "the model does not answer, or not in time"},
    }
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": {"type": "array", "items": file}}}
    content = {"multipart/form-data": {"schema": form}, **{kind: {"schema": file} for kind in RAW}}
    extra = {"requestBody": {"required": True, "content": content}}
    app.add_api_route(
        "/predict", service.predict, methods=["POST"], openapi_extra=extra,
        responses={200: {"model": Answer, "description": "boxes"}, **problems},
    )  # fmt: skip
    app.add_api_route("/health", service.health, responses={503: {"description": "not ready, with the reason"}})
    app.add_api_route("/metrics", service.metrics)
    app.add_api_route("/", service.home, include_in_schema=False)

    async def docs() -> Response:
        page = docs_page(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    return _Counted(app, service, log)


class _Counted:
    """Around the application: counts what was answered, logs it when asked to, and closes what browsers leave open."""

    def __init__(self, app: Any, service: Service, log: bool) -> None:
        self.app, self.meters, self.log = app, service.meters, log
        self.open = not service.token

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fixed = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *fixed]}
            await send(message)

        try:
            strange = self.open and _strange_page(Headers(scope=scope))
            answer: Any = _json({"error": strange}, 421) if strange else self.app
            await answer(scope, receive, told)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.meters.requests.labels(path, str(status)).inc()
            if self.log:  # no query, no header, nothing of a body
                address = (scope.get("client") or ("-",))[0]
                took = (time.monotonic() - begun) * 1000
                print(
                    f"{time.strftime('%H:%M:%S')} {address} {scope['method']} {path} {status} {took:.0f} ms", flush=True
                )


def _strange_page(headers: Headers) -> str:
    """Why a request seems to come from somebody else's page in a browser that reaches this port; "" when it does not.

    Such a page needs a name of its owner's that leads here (DNS rebinding), which has a dot and is no address, or it
    sends a form across, with an Origin. Where a token is wanted it has none, and neither matters.
    """
    host = headers.get("host", "").lower()
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    plain = "." not in name.rstrip(".") or name.endswith(".localhost")
    if not plain and not name.startswith("[") and not re.fullmatch(r"\d+(\.\d+){3}", name):
        return f"{ASK_FOR_TOKEN} this answers to addresses and plain names, not to {name[:80]}"
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        return f"{ASK_FOR_TOKEN} this answers to no page of another origin"
    return ""


class _Body:
    """A body on its way: at most `most` bytes, of which `length` have come and count as held."""

    def __init__(self, request: Request, service: Service, most: int) -> None:
        self.request, self.service, self.most, self.length = request, service, most, 0

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """What comes. Raises Refusal: 413 when it is too long, 429 when all bodies together hold too much."""
        async for part in self.request.stream():
            self.length += len(part)
            self.service.held += len(part)
            if self.length > self.most:
                raise _too_long(self.most)
            if self.service.held > self.service.limits.held and self.service.held > self.length:
                raise Refusal(429, "busy: too many bytes are on their way, try again in 1 s", {"Retry-After": "1"})
            yield part


def _form_type(request: Request) -> Headers:
    """The Content-Type of a form, with its boundary and nothing else. Raises Refusal (400).

    The parser decodes names by the `charset` that it finds there: some of Python's take minutes for a megabyte, others
    make text that is none.
    """
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        raise Refusal(400, "the form cannot be read: its Content-Type needs a boundary of 1 to 70 plain characters")
    return Headers({"Content-Type": f'multipart/form-data; boundary="{boundary}"'})


async def _gone(request: Request) -> None:
    """Until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_long(most: int) -> Refusal:
    return Refusal(413, f"the body is over {most / MEBIBYTE:g} MiB, which is the limit: send less")


def _json(said: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json({"error": error.sentence}, error.status, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{fault['loc'][-1]}: {str(fault['msg'])[:100].lower()}" for fault in error.errors()]
    return _json({"error": "; ".join(faults)}, 422)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing here: POST /predict, GET /health, /metrics, /docs, or / for a page"}
    sentence = words.get(error.status_code, str(error.detail))
    return _json({"error": sentence}, error.status_code, dict(error.headers or {}))


def _about(service: Service) -> str:
    limits, network = service.limits, service.network
    token = " Send `Authorization: Bearer TOKEN` with /predict and /metrics." if service.token else ""
    return (
        f"Detection with {network.file} at {network.size[1]} x {network.size[0]} pixels. A request may have "
        f"{limits.body / MEBIBYTE:g} MiB, {limits.images} pictures of {limits.pixels / MEGAPIXEL:g} million pixels "
        f"each, and {limits.timeout:g} s.{token}"
    )


def _page() -> tuple[str, str]:
    """The page, and the policy that lets run what is in it and nothing else."""
    page = PAGE.read_text(encoding="utf-8")

    def digests(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)

    return page, (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; img-src blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
