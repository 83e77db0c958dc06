"""The service over real sockets, with a model made by hand; and in the container against both engines' checkpoints."""

import asyncio
import contextlib
import gc
import http.client
import json
import os
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import made_onnx
import numpy as np
import pytest
from made_pictures import huge_png
from test_container import lab

from lab import cli, demo, devices, onnx_model, serve, serve_connection, serve_queue, upstream
from lab.errors import LabError
from lab.onnx_detect import candidates, decode, distinct, fit, iou, letterbox, suppress
from lab.onnx_model import Network
from lab.project import CODE, ENGINES, Project
from lab.serve_app import Limits, Meters, Service, make_app
from lab.serve_picture import Refusal
from lab.serve_picture import decode as decode_picture
from lab.serve_queue import Queue

TOKEN = "correct-horse-battery"


class Session:
    """Stands for onnxruntime's: the numbers of `made_onnx`, slowly or not at all when told so."""

    def __init__(self) -> None:
        self.seconds, self.broken = 0.0, False
        self.batches: list[int] = []

    def run(self, _: None, fed: dict[str, Any]) -> list[Any]:
        self.batches.append(len(fed["images"]))
        time.sleep(self.seconds)
        if self.broken:
            raise RuntimeError("CUDA failure 719: unspecified launch failure")
        return [made_onnx.run(fed["images"])]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    port: int
    session: Session
    queue: Queue
    service: Service
    output: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, limit: float = 20
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def predict(
        self, body: bytes, kind: str = "image/png", query: str = "", limit: float = 20, **headers: str
    ) -> Answer:
        return self.ask("POST", f"/predict{query}", body, {"Content-Type": kind, **headers}, limit)


@contextlib.contextmanager
def run_service(
    limits: Limits | None = None, token: str = "", batch: int = 1, workers: int = 2, log: bool = False
) -> Iterator[Running]:
    limits = limits or Limits()
    session, meters = Session(), Meters()
    size = (made_onnx.SIZE, made_onnx.SIZE)
    network = Network("made.onnx", session, "images", False, size, None, "yolov5u", made_onnx.NAMES, "numpy")
    queue = Queue(network, workers, batch, limits.room, limits.pixels, meters.watchers())
    service = Service(network, queue, limits, meters, token)
    server = serve.server(make_app(service, log))
    bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Running(bound.getsockname()[1], session, queue, service)
    finally:
        server.should_exit = True
        thread.join(20)
        queue.close()
        bound.close()
        assert not thread.is_alive()


@pytest.fixture
def running() -> Iterator[Running]:
    with run_service() as one:
        yield one


def picture(width: int = 128, height: int = 128, red: tuple[int, int, int, int] = (32, 32, 64, 64)) -> Any:
    """Black, with a red rectangle (left, top, right, bottom), in BGR."""
    image = np.zeros((height, width, 3), np.uint8)
    image[red[1] : red[3], red[0] : red[2], 2] = 255
    return image


def encoded(image: Any, form: str = ".png") -> bytes:
    return bytes(cv2.imencode(form, image)[1].tobytes())


def form(*files: tuple[str, bytes], name: str = "file") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode() + data + b"\r\n"
        for file, data in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def crowd(port: int, message: bytes, count: int, limit: float = 60) -> list[int]:
    """The statuses of so many requests, all of whose connections stand before the first one is sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4 * count), hard), hard))
    statuses = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as chooser:
        everybody = [stack.enter_context(socket.create_connection(("127.0.0.1", port), limit)) for _ in range(count)]
        for one in everybody:
            one.sendall(message)
            chooser.register(one, selectors.EVENT_READ, b"")
        until = time.monotonic() + limit
        while chooser.get_map() and time.monotonic() < until:
            for key, _ in chooser.select(1):
                one: Any = key.fileobj
                data = one.recv(1 << 16)
                chooser.modify(one, selectors.EVENT_READ, key.data + data)
                if b"\r\n" in key.data + data or not data:
                    statuses.append(int((key.data + data).split()[1]))
                    chooser.unregister(one)
    return statuses


def eventually(true: Callable[[], object]) -> None:
    """Wait for it, ten seconds at most."""
    until = time.monotonic() + 10
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    assert true()


def posted(body: bytes, kind: str = "image/png") -> bytes:
    """A whole request to /predict."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".png", ".bmp", ".webp", ".jpg"])
def test_boxes_are_in_pixels_of_the_picture_that_was_sent(running: Running, kind: str) -> None:
    image = picture(512, 256, (256, 0, 384, 128))  # scaled by 1/4 and padded by 32 rows above and below
    answer = running.predict(encoded(image, kind), "application/octet-stream")
    assert answer.status == 200
    [found] = answer.said["images"]
    assert (found["width"], found["height"]) == (512, 256)
    [box] = found["boxes"]
    assert (box["class"], box["name"]) == (0, "red")
    assert box["confidence"] > 0.9
    assert box["xyxy"] == [256, 0, 384, 128]
    assert box["xyxyn"] == [0.5, 0, 0.75, 0.5]
    assert answer.said["model"] == {"file": "made.onnx", "size": [128, 128], "provider": "numpy"}


def test_several_files_are_answered_in_their_order(running: Running) -> None:
    files = [(f"{n}.png", encoded(picture(red=(32 * n, 0, 32 * n + 32, 32)))) for n in range(4)]
    answer = running.predict(*form(*files))
    assert [one["file"] for one in answer.said["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [one["boxes"][0]["xyxy"][0] for one in answer.said["images"]] == [0, 32, 64, 96]


def test_the_query_chooses_boxes(running: Running) -> None:
    image = picture(red=(0, 0, 128, 128))
    assert len(running.predict(encoded(image)).said["images"][0]["boxes"]) == 16
    assert len(running.predict(encoded(image), query="?max_det=3").said["images"][0]["boxes"]) == 3
    image[:, :, 2] = 100
    assert len(running.predict(encoded(image), query="?conf=0.5").said["images"][0]["boxes"]) == 0
    for query, named in {"conf=0": "conf", "conf=x": "conf", "iou=1.1": "iou", "max_det=0": "max_det"}.items():
        answer = running.predict(encoded(image), query=f"?{query}")
        assert answer.status == 422
        assert answer.said["error"].startswith(f"{named}: ")


def test_waiting_pictures_make_a_batch() -> None:
    with run_service(batch=4, workers=1) as one:
        one.session.seconds = 0.2
        files = [(f"{n}.png", encoded(picture(red=(32 * (n % 4), 0, 32 * (n % 4) + 32, 32)))) for n in range(9)]
        answer = one.predict(*form(*files))
        assert [found["boxes"][0]["xyxy"][0] for found in answer.said["images"]] == [0, 32, 64, 96] * 2 + [0]
        assert max(one.session.batches) == 4
        assert sum(one.session.batches) == 9


# --- who and what is refused ------------------------------------------------------------------------------------------


PHOTO = demo.draw(demo.Recipe(images=2), "val", 0)[0]
REFUSED = {
    "truncated JPEG": (encoded(PHOTO, ".jpg")[:3000], "image/jpeg", 422, "cut short"),
    "truncated PNG": (encoded(PHOTO)[:3000], "image/png", 422, "cut short"),
    "garbage": (bytes(range(256)) * 64, "image/jpeg", 415, "no picture"),
    "bomb": (huge_png(30_000, 30_000), "image/png", 413, "pixels"),
    "larger bomb": (huge_png(1_000_000, 1_000_000), "image/png", 413, "pixels"),
    "over the limit": (huge_png(8_000, 7_000), "image/png", 413, "8000 x 7000"),
    "no bytes": (b"", "image/png", 400, "empty"),
    "SVG": (b"<svg/>", "image/svg+xml", 415, "image/svg+xml"),
    "a script that says it is a picture": (b"<script>", "image/png", 415, "no picture"),
    "curl's own type": (b"x", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
    "no boundary": (b"x", "multipart/form-data", 400, "boundary"),
    "a form without files": (form()[0], form()[1], 400, "no file"),
    "a broken form": (b"--edge\r\nnonsense", "multipart/form-data; boundary=edge", 400, "form"),
    "one of several is bad": (
        *form(("a.png", encoded(picture())), ("b.png", b"no")), 415, "picture 2 of 2"
    ),
    "an option as a field": (
        b'--edge\r\nContent-Disposition: form-data; name="conf"\r\n\r\n0.5\r\n' + form(("a.png", b"x"))[0],
        form()[1], 400, "?conf=0.4",
    ),
    "a boundary that is none": (form()[0], 'multipart/form-data; boundary="a\\"b"', 400, "boundary"),
    "too many files": (*form(*[("a.png", b"x")] * 17), 413, "16 pictures"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_a_sentence(running: Running, case: str, caplog: pytest.LogCaptureFixture) -> None:
    body, kind, status, words = REFUSED[case]
    answer = running.predict(body, kind)
    assert (answer.status, words in answer.said["error"]) == (status, True), answer
    assert running.queue.places == 0
    assert running.service.held == 0
    assert running.predict(encoded(picture())).status == 200
    gc.collect()  # a future whose exception nobody heard says so when it goes
    assert not caplog.records


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "undefined", "idna", "utf-7", "utf-16", "latin-1"])
def test_a_form_says_nothing_about_how_it_is_decoded(running: Running, charset: str) -> None:
    """Some of Python's take minutes for a megabyte, in which nobody else is served; others make half characters."""
    names = ["\\ud800.png", "a" * 1000, "+2AA-", "ä.png"]
    for said in (f"charset={charset}", f"charset=utf-8; charset={charset}", f"charset*=utf-8''{charset}"):
        body, kind = form(*[(name, encoded(picture())) for name in names])
        answer = running.predict(body, f"{kind}; {said}")
        assert answer.status == 200
        assert [one["file"] for one in answer.said["images"]] == ["ud800.png", "a" * 200, "+2AA-", "ä.png"]
        long = b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"a" * 1_000_000 + b"\r\n--edge--\r\n"
        assert running.predict(long, f"{kind}; {said}").status == 400
    assert running.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "serve:8000"}, 200),
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 421),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 421),
        ({"Host": "localhost:8000", "Origin": "null"}, 421),
    ],
)
def test_pages_of_others_use_it_with_a_token_or_not_at_all(headers: dict[str, str], status: int) -> None:
    """A browser on this machine reaches the port for them: by a name of theirs that leads here, or by a form."""
    body, kind = encoded(picture()), {"Content-Type": "image/png"}
    with run_service() as one:
        answer = one.ask("POST", "/predict", body, {**kind, **headers})
        assert answer.status == status
        assert status == 200 or "LAB_SERVE_TOKEN" in answer.said["error"]
        assert one.ask("GET", "/", headers=headers).status == status
    with run_service(token=TOKEN) as one:
        assert one.ask("POST", "/predict", body, {**kind, **headers}).status == 401
        headers = {**headers, "Authorization": f"Bearer {TOKEN}"}
        assert one.ask("POST", "/predict", body, {**kind, **headers}).status == 200


def test_50_mb_of_garbage_is_refused_and_forgotten(running: Running) -> None:
    garbage = os.urandom(1 << 20) * 50
    for kind in ("image/jpeg", "multipart/form-data; boundary=edge"):
        answer = running.predict(garbage, kind)
        assert answer.status == 413
        assert "20 MiB" in answer.said["error"]
    # without a length: cut where the limit is
    answer = running.ask("POST", "/predict", iter([garbage[: 1 << 20]] * 50), {"Content-Type": "image/jpeg"})
    assert answer.status == 413
    assert running.predict(encoded(picture())).status == 200


def test_names_of_files_never_meet_the_file_system(running: Running, project: Project) -> None:
    before = sorted(project.root.rglob("*"))
    for name in ("../../etc/passwd", "/etc/shadow", "..\\..\\evil.png", "a\x00b.png", "%2e%2e%2fx.png"):
        answer = running.predict(*form((name, encoded(picture()))))
        assert answer.status == 200
        assert not set("/\\") & set(answer.said["images"][0]["file"])
    assert sorted(project.root.rglob("*")) == before


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/etc/passwd", "/static/x", "/predict/../.env", "//etc/passwd"]
)
def test_no_path_leads_to_a_file(running: Running, path: str) -> None:
    answer = running.ask("GET", path)
    assert answer.status == 404
    assert "there is nothing here" in answer.said["error"]
    assert running.ask("GET", "/predict").status == 405


def test_a_token() -> None:
    with run_service(token=TOKEN) as one:
        data = encoded(picture())
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Authorization": "Basic " + TOKEN},
        ):
            answer = one.ask("POST", "/predict", data, {"Content-Type": "image/png", **given})
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert one.ask("GET", "/metrics").status == 401
        assert one.predict(data, Authorization="Bearer " + "é" * 9).status == 401
        assert one.predict(data, Authorization=f"Bearer {TOKEN}").status == 200
        assert one.ask("GET", "/health").status == one.ask("GET", "/").status == 200
        assert TOKEN not in one.ask("GET", "/openapi.json").body.decode()


def test_the_log_holds_neither_token_nor_query_nor_names(capfd: pytest.CaptureFixture[str]) -> None:
    with run_service(token=TOKEN, log=True) as one:
        body, kind = form(("secret-name.png", encoded(picture())))
        assert one.predict(body, kind, "?conf=0.5&token=" + TOKEN, Authorization=f"Bearer {TOKEN}").status == 200
        one.ask("GET", f"/{TOKEN}")
    said = capfd.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d\d:\d\d:\d\d 127\.0\.0\.1 POST /predict 200 \d+ ms", lines[0])
    assert TOKEN not in said.out + said.err
    assert "secret-name" not in said.out + said.err


@pytest.mark.parametrize(
    ("text", "words"), [("short", "16 characters"), ("", "16 characters"), ("two words are not good", "16 characters")]
)
def test_a_bad_token_file(project: Project, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("token").write_text(text)
    Path("a.onnx").touch()
    assert cli.main(["serve", "--weights", "a.onnx", "--token-file", "token"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert not text or text not in said


# --- under load -------------------------------------------------------------------------------------------------------


def test_a_thousand_at_once_are_served_or_told_to_come_back() -> None:
    with run_service(Limits(room=32)) as one:
        one.session.seconds = 0.01
        data = encoded(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8))
        statuses = crowd(one.port, posted(data), 1000)
        assert len(statuses) == 1000
        assert set(statuses) == {200, 429}
        assert (one.queue.places, one.service.held) == (0, 0)
        assert one.predict(data).status == 200


def test_who_is_told_to_come_back_hears_when() -> None:
    with run_service(Limits(room=1), workers=1) as one:
        one.session.seconds = 0.5
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: one.predict(encoded(picture())), range(8)))
        assert {answer.status for answer in answers} == {200, 429}
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status == 429)


def test_more_connections_than_it_keeps_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CONNECTIONS", 50)
    with run_service() as one:
        statuses = crowd(one.port, posted(encoded(picture())), 80)
        assert len(statuses) == 80
        assert set(statuses) <= {200, 429, 503}
        assert 503 in statuses
        assert one.predict(encoded(picture())).status == 200


def test_an_address_has_its_share_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_connection, "SHARE", 3)
    with run_service() as one, contextlib.ExitStack() as stack:
        asked = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", one.port), 10)) for _ in range(5)]
        for connection in opened:
            with contextlib.suppress(ConnectionError):
                connection.sendall(asked)
        answers = []
        for connection in opened:
            with contextlib.suppress(ConnectionError):
                answers.append(connection.recv(4096)[:12])
        assert [answer for answer in answers if answer] == [b"HTTP/1.1 200"] * 3
        for connection in opened:
            connection.close()
        eventually(lambda: not serve_connection.ImpatientProtocol.peers)
        assert one.ask("GET", "/health").status == 200


@pytest.mark.parametrize("times", [1, 4000])
def test_who_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Requests in a row whose answers nobody takes, so that the next one waits for room; or one, and then silence."""
    monkeypatch.setattr(serve_connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(serve_connection, "READ_SECONDS", 0.3)
    with run_service() as one, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if times == 1:  # an answer that is longer than what the kernel keeps
            one.service.page = "x" * 20_000_000
        deaf.connect(("127.0.0.1", one.port))
        deaf.settimeout(1)
        path = b"/" if times == 1 else b"/openapi.json"
        with contextlib.suppress(OSError):
            for _ in range(times):
                deaf.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: not serve_connection.ImpatientProtocol.peers)
        assert one.ask("GET", "/health").status == 200


def test_memory_does_not_grow_with_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Largest pictures from everybody at once: some are decoded, the others wait for their turn."""
    pixels = {"now": 0, "most": 0}
    lock = threading.Lock()

    def counted(data: bytes, most: int) -> Any:
        with lock:
            pixels["now"] += 1_000_000
            pixels["most"] = max(pixels.values())
        time.sleep(0.1)
        image = decode_picture(data, most)
        with lock:
            pixels["now"] -= 1_000_000
        return image

    monkeypatch.setattr(serve_queue, "decode", counted)
    with run_service(Limits(pixels=1_000_000, room=32), workers=16) as one:
        statuses = crowd(one.port, posted(encoded(picture(1000, 1000))), 32)
        assert statuses == [200] * 32
        assert pixels == {"now": 0, "most": serve_queue.DECODED * 1_000_000}
        # a damaged one gives its pixels back
        for _ in range(8):
            assert one.predict(encoded(picture(1000, 1000))[:600]).status == 422
        assert one.predict(encoded(picture(1000, 1000))).status == 200


def test_bytes_that_are_held_are_bounded() -> None:
    with run_service(Limits(body=1 << 20, held=2 << 20)) as one, contextlib.ExitStack() as stack:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1048576\r\n\r\n"
        slow = []
        for _ in range(2):  # two bodies of a mebibyte whose last bytes do not come
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", one.port))))
            slow[-1].sendall(head + bytes((1 << 20) - 10))
        until = time.monotonic() + 10
        while one.service.held < (2 << 20) - 20 and time.monotonic() < until:
            time.sleep(0.01)
        answer = one.predict(encoded(picture()))
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        for connection in slow:
            connection.close()
        while one.service.held and time.monotonic() < until:
            time.sleep(0.01)
        assert one.predict(encoded(picture())).status == 200


def test_bodies_that_do_not_come_keep_nobody_out() -> None:
    with run_service(Limits(room=4)) as one, contextlib.ExitStack() as stack:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 20000000\r\n\r\n"
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", one.port))).sendall(head + b"x")
        until = time.monotonic() + 10
        while one.service.held < 100 and time.monotonic() < until:
            time.sleep(0.01)
        assert one.service.held == 100
        assert one.predict(encoded(picture())).status == 200


def test_what_takes_too_long_is_given_up() -> None:
    with run_service(Limits(timeout=0.5), workers=1) as one:
        with socket.create_connection(("127.0.0.1", one.port), 10) as slow:  # a body that does not come
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
            assert b" 408 " in slow.recv(4096)
        one.session.seconds = 1.0
        answer = one.predict(encoded(picture()))
        assert (answer.status, "0.5 s" in answer.said["error"]) == (503, True)
        assert (one.queue.places, one.service.held) == (0, 0)


def test_nobody_works_for_a_client_that_has_gone() -> None:
    with run_service(workers=1) as one:
        one.session.seconds = 0.3
        body = encoded(picture())
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", one.port), 10) as hasty:
                hasty.sendall(head.encode() + body)
                time.sleep(0.02)
        assert one.predict(body).status == 200
        assert len(one.session.batches) <= 3
        assert one.queue.places == 0


def test_a_request_that_would_wait_too_long_is_not_let_in() -> None:
    queue = Queue.__new__(Queue)
    queue.places, queue.room, queue.seconds, queue.workers = 10, 64, 2.0, 1
    with pytest.raises(Refusal) as refusal:
        queue.enter(1, within=10)
    assert refusal.value.status == 429
    assert int(refusal.value.headers["Retry-After"]) == 10
    queue.enter(1, within=30)
    assert queue.places == 11


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /predict HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["nothing", "half", "idle"],
)
def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(serve_connection, "HEAD_SECONDS", 0.5)
    with run_service() as one, socket.create_connection(("127.0.0.1", one.port), 10) as slow:
        slow.sendall(sent)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(40):  # a byte now and then does not help
                if sent.startswith(b"POST"):
                    slow.sendall(b"x")
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if slow.recv(4096) == b"":
                        break
        assert time.monotonic() - begun < 4


# --- health and metrics -----------------------------------------------------------------------------------------------


def test_a_lost_gpu_is_noticed_also_when_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with run_service() as one:
        assert one.ask("GET", "/health").said["ready"] is True
        one.session.broken = True
        answer = one.predict(encoded(picture()))
        assert answer.status == 503
        assert "719" not in answer.said["error"]
        health = one.ask("GET", "/health")
        assert (health.status, health.said["live"], health.said["ready"]) == (503, True, False)
        assert "CUDA failure 719" in health.said["error"]
        one.session.broken = False
        assert one.ask("GET", "/health").status == 200
        one.session.broken = True
        monkeypatch.setattr(serve_queue, "PROBE_SECONDS", 0.0)
        one.queue.seconds = 0.0
        assert one.ask("GET", "/health").status == 503
        one.session.broken, one.session.seconds = False, 3.0
        monkeypatch.setattr(serve_queue, "PROBE_LIMIT", 0.2)
        assert "no inference ended" in one.ask("GET", "/health").said["error"]
    assert capfd.readouterr().err.count("lab: inference fails") == 2


def test_metrics(running: Running) -> None:
    data = encoded(picture())
    running.predict(*form(("a", data), ("b", data)))
    running.predict(b"no")
    text = running.ask("GET", "/metrics").body.decode()
    for line in (
        'lab_serve_requests_total{path="/predict",status="200"} 1.0',
        'lab_serve_requests_total{path="/predict",status="415"} 1.0',
        "lab_serve_request_seconds_count 1.0",
        "lab_serve_batch_images_sum 2.0",
        "lab_serve_decode_seconds_count 2.0",
        "lab_serve_queue_images 0.0",
        "lab_serve_images_in_flight 0.0",
        "lab_serve_ready 1.0",
    ):
        assert line in text.splitlines(), text
    assert "lab_serve_inference_seconds_bucket" in text


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_ask_for_nothing_from_elsewhere(running: Running, path: str) -> None:
    answer = running.ask("GET", path)
    assert answer.status == 200
    text = answer.body.decode()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert path != "/" or "unsafe-inline" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_description_tells_every_answer(running: Running) -> None:
    described = running.ask("GET", "/openapi.json").said
    predict = described["paths"]["/predict"]["post"]
    assert {"200", "400", "401", "413", "415", "422", "429", "503"} <= set(predict["responses"])
    assert "multipart/form-data" in predict["requestBody"]["content"]
    assert [parameter["name"] for parameter in predict["parameters"]] == ["conf", "iou", "max_det"]
    docs = running.ask("GET", "/docs").body.decode()
    assert all(word in docs for word in ("/predict", "/health", "/metrics", "max_det", "429", "xyxyn", "curl"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_size_is_read_without_decoding() -> None:
    with pytest.raises(Refusal, match="9000 x 9000 pixels, and 50 million are the limit"):
        decode_picture(huge_png(9_000, 9_000), 50_000_000)


def test_a_chunk_that_claims_gigabytes_takes_no_memory() -> None:
    """OpenCV 5 allocated 3.6 GB for a PNG of 57 kB, one byte of which had been changed."""
    data = encoded(picture())
    at = data.index(b"IDAT") - 4
    claimed = data[:at] + struct.pack(">I", 0x7FFFFFF0) + data[at + 4 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refusal, match="damaged or cut short"):
        decode_picture(claimed, 50_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_picture_is_seen_as_it_is_shown() -> None:
    """EXIF orientation 6: the camera was held upright, the file is 64 wide and shown 32 wide."""
    data = encoded(np.zeros((32, 64, 3), np.uint8), ".jpg")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert decode_picture(data, 10_000).shape == (64, 32, 3)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no exported model in runs/train: train one"),
        (["--weights", "nowhere.onnx"], "nowhere.onnx does not exist"),
        (["--weights", "best.pt"], "`lab export --weights best.pt --include onnx`"),
        (["--weights", "done.pt"], "use --weights done.onnx"),
        (["--weights", "lab.yaml"], "must be an .onnx file"),
        (["--weights", "done.onnx", "--port", "99999"], "--port"),
        (["--weights", "done.onnx", "--host", "256.0.0.1"], "cannot listen"),
    ],
)  # fmt: skip
def test_bad_input(project: Project, words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("best.pt", "done.pt", "done.onnx"):
        Path(name).touch()
    assert cli.main(["serve", *words]) in (1, 2)
    assert part in capsys.readouterr().err


def test_a_port_that_is_taken(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.onnx").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert cli.main(["serve", "--weights", "a.onnx", "--port", str(other.getsockname()[1])]) == 1
    assert "SERVE_PORT in .env" in capsys.readouterr().err


# --- in the container -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Running, list[str]]]:
    """`lab serve` as a process of its own; what it said first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "serve", "--port", "0", *words],
        env={**os.environ, "PYTHONPATH": str(CODE), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    said = [process.stdout.readline(), process.stdout.readline()]
    try:
        assert said[1].startswith("lab: http://"), (said, process.stderr and process.stderr.read())
        port = int(re.findall(r":(\d+)", said[1])[0])
        yield process, Running(port, Session(), None, None), said  # type: ignore[arg-type]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.container
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_what_it_has_begun_and_ends(project: Project, end: signal.Signals) -> None:
    made_onnx.write("made.onnx")
    with started("--weights", "made.onnx", "--device", "cpu") as (process, one, said):
        assert "made.onnx (yolov5u, 128 x 128 pixels, 2 classes) on the processor" in said[0]
        assert "for this machine only" in said[1]
        body = encoded(picture())
        slow = socket.create_connection(("127.0.0.1", one.port), 10)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        process.send_signal(end)
        time.sleep(0.3)
        slow.sendall(body[10:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")
        assert process.wait(10) == (0 if end == signal.SIGTERM else 130)


@pytest.mark.container
@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_serve_runs_both_layouts_and_batches(project: Project, anchors: bool, fixed: bool) -> None:
    made_onnx.write("made.onnx", fixed, anchors)
    with started("--weights", "made.onnx", "--batch", "4", LAB_SERVE_TOKEN=TOKEN) as (_, one, said):
        assert ("yolov5," if anchors else "yolov5u,") in said[0]
        assert ("up to 4 in a batch" in said[0]) is not fixed
        files = [(f"{n}.png", encoded(picture(red=(32 * n, 0, 32 * n + 32, 32)))) for n in range(4)]
        answer = one.predict(*form(*files), Authorization=f"Bearer {TOKEN}")
        assert [found["boxes"][0]["xyxy"][0] for found in answer.said["images"]] == [0, 32, 64, 96]
        assert one.predict(*form(*files)).status == 401


def test_without_a_gpu_cuda_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNXRUNTIME=gpu on a host without a GPU: one reason, not onnxruntime's lines about each library."""
    monkeypatch.setattr(devices, "DEV", tmp_path)
    wheel = SimpleNamespace(get_available_providers=lambda: [onnx_model.CUDA, onnx_model.CPU])
    monkeypatch.setitem(sys.modules, "onnxruntime", wheel)
    opened: list[str] = []
    monkeypatch.setattr(onnx_model, "_open", lambda *given: opened.append(given[2]))
    assert onnx_model.open_network(Path("best.onnx"))[1] == "on the processor: this container has no GPU"
    assert opened == [onnx_model.CPU]
    with pytest.raises(LabError, match=r"--device 0: this container has no GPU; .* --device cpu does without"):
        onnx_model.open_network(Path("best.onnx"), "0")


@pytest.mark.container
def test_serve_says_what_cannot_be_served(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.onnx").write_bytes(b"no model")
    assert cli.main(["serve", "--weights", "bad.onnx", "--port", "0"]) == 2
    assert "export it again" in capsys.readouterr().err
    made_onnx.write("made.onnx")
    assert cli.main(["serve", "--weights", "made.onnx", "--port", "0", "--device", "0"]) == 2
    assert "no CUDA provider" in capsys.readouterr().err
    assert cli.main(["serve", "--weights", "made.onnx", "--port", "0", "--img", "64"]) == 2
    assert "leave out --img" in capsys.readouterr().err


@pytest.mark.container
def test_serve_keeps_its_memory_under_a_thousand_requests(project: Project) -> None:
    made_onnx.write("made.onnx")
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    body = encoded(noise, ".bmp")  # a mebibyte, so that a thousand of them would be a gibibyte
    with started("--weights", "made.onnx") as (process, one, _):
        one.predict(body, "image/bmp")
        statuses = set(crowd(one.port, posted(body, "image/bmp"), 1000, limit=120))
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert statuses <= {200, 429}
        assert 200 in statuses
        assert int(status.split("VmHWM:")[1].split()[0]) < 512 << 10
        assert one.ask("GET", "/health").status == 200


@pytest.mark.container
@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_serve_finds_what_the_checkpoint_finds(engine: str, project: Project, tmp_path: Path) -> None:
    """Against the engine's own `detect` on square pictures, and against the .pt by way of torchvision on others."""
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    import torch
    import torchvision

    from lab.export_check import checkpoint_predictions

    done = lab(["smoke", "--engine", engine, "--keep"], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = project.runs.glob("smoke-*")
    weights = run / "train" / "weights" / "best.pt"
    pictures = sorted((run / "data" / "images" / "val").glob("*"))
    square = {file.stem: file for file in pictures}
    words = [
        "--weights",
        str(weights),
        "--source",
        str(pictures[0].parent),
        "--img",
        "96",
        "--engine",
        engine,
        "--nosave",
    ]
    words += ["--conf", "0.25", "--iou", "0.45", "--save-txt", "--save-conf"]
    done = lab(["detect", *words], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    told = {file.stem: file.read_text() for file in project.runs.glob("detect/exp/labels/*.txt")}
    compared = 0
    with started("--weights", str(weights.with_suffix(".onnx"))) as (_, one, said):
        assert f"best.onnx ({engine}, 96 x 96 pixels, 3 classes)" in said[0]
        for stem, file in square.items():
            found = one.predict(file.read_bytes(), "application/octet-stream").said["images"][0]
            width, height = found["width"], found["height"]
            rows = [[float(word) for word in line.split()] for line in told.get(stem, "").splitlines()]
            theirs = [
                (int(c), score, np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * ([width, height] * 2))
                for c, x, y, w, h, score in rows
            ]
            compared += agree(found["boxes"], theirs)
        # not square: scaled and padded by us, judged by torch
        wide = [cv2.imread(str(file)) for file in pictures[:6]]
        wide = [cv2.resize(image[12:84], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for image in wide]
        blobs = np.stack([letterbox(image, 96) for image in wide])
        boxes, scores = decode(checkpoint_predictions(project, engine, weights, blobs, tmp_path, None), engine)
        for image, box, score in zip(wide, boxes, scores, strict=True):
            best, label = torch.from_numpy(score).max(1)
            sure = best >= 0.25
            some = torch.from_numpy(box)[sure]
            kept = torchvision.ops.batched_nms(some, best[sure], label[sure], 0.45)
            gain = min(96 / image.shape[0], 96 / image.shape[1])
            pad = np.array([(96 - image.shape[1] * gain) / 2, (96 - image.shape[0] * gain) / 2] * 2)
            real = np.clip((some[kept].numpy() - pad) / gain, 0, [*image.shape[1::-1]] * 2)
            theirs = list(zip(label[sure][kept].tolist(), best[sure][kept].tolist(), real, strict=True))
            found = one.predict(encoded(image), "image/png").said["images"][0]
            compared += agree(found["boxes"], theirs)
    assert compared >= 15


def agree(ours: list[dict[str, Any]], theirs: list[tuple[int, float, Any]]) -> int:
    """Each box has its like in the other list; how many there are. Those at the very threshold may be missing."""
    left = list(theirs)
    for box in ours:
        near = [(iou(np.array(box["xyxy"]), other[2]), n) for n, other in enumerate(left) if other[0] == box["class"]]
        overlap, index = max(near, default=(0.0, -1))
        if overlap < 0.5 and box["confidence"] < 0.255:
            continue
        assert overlap > 0.97, (box, theirs)
        assert box["confidence"] == pytest.approx(left[index][1], abs=0.005)
        del left[index]
    assert all(score < 0.255 for _, score, _ in left), (ours, left)
    return len(ours)


# --- one post-processing ----------------------------------------------------------------------------------------------


def test_the_few_are_the_same_as_all() -> None:
    random = np.random.default_rng(0)
    count, classes = 500, 5
    boxes = np.concatenate([random.uniform(0, 100, (count, 2)), random.uniform(5, 60, (count, 2))], 1)
    scores = random.uniform(0, 1, (count, classes)) ** 2
    objectness = random.uniform(0, 1, (count, 1))
    rows = {
        "yolov5": np.concatenate([boxes, objectness, scores], 1).astype(np.float32),
        "yolov5u": np.concatenate([boxes, scores], 1).astype(np.float32).T,
    }
    for engine, raw in rows.items():
        every, sums = decode(raw[None], engine)
        wanted = suppress(every[0], sums[0], 0.3, 0.5)
        some, best, labels = candidates(raw, engine, 0.3)
        kept = distinct(some, labels, 0.5)
        assert [d.label for d in wanted] == labels[kept].tolist()
        assert [d.box for d in wanted] == [tuple(box) for box in some[kept].tolist()]
        assert [d.score for d in wanted] == best[kept].tolist()
        for a in kept:
            for b in kept:
                assert a == b or labels[a] != labels[b] or iou(some[a], some[b]) <= 0.5 + 1e-6
        assert len(distinct(some, labels, 0.5, 7)) == 7


def test_a_letterbox_is_undone() -> None:
    to = fit((100, 300), (640, 640))
    inside = np.array([[to.left, to.top, to.left + to.width, to.top + to.height], [-5, 0, 700, 640]], np.float32)
    assert to.restore(inside, (100, 300)).tolist() == [
        pytest.approx([0, 0, 300, 100], abs=1e-3),
        [0, 0, 300, 100],
    ]


def test_probes_share_one_inference() -> None:
    with run_service(workers=1) as one:
        one.queue.failure = "inference fails: once"
        one.session.seconds = 0.3

        async def many() -> list[str]:
            return await asyncio.gather(*[one.queue.ready() for _ in range(20)])

        assert asyncio.run(many()) == [""] * 20
        assert one.session.batches == [1]
