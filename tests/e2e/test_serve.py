"""The service `serve` of compose.yaml on a real engine: used over HTTP, attacked, and looked at in Chromium.

The model is made by hand (code/tests/made_onnx.py): it finds red and blue squares, so that nothing need be trained.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import selectors
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import CHROMIUM, Browser, complaints
from conftest import Opened

PORT = 18000
TOKEN = "correct-horse-battery-staple"
MODEL = "runs/made.onnx"


def picture(width: int = 640, height: int = 640) -> np.ndarray:
    """Grey with a red square in the upper right and a blue one in the lower left quarter, each a cell of the model."""
    image = np.full((height, width, 3), 60, np.uint8)
    image[: height // 4, -width // 4 :] = (0, 0, 255)
    image[-height // 4 :, : width // 4] = (255, 0, 0)
    return image


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image)[1].tobytes())


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header is true."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))


def crowd(data: bytes, count: int, limit: float = 120) -> list[int]:
    """The statuses of so many requests, all of whose connections stand before the first one is sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * count), hard), hard))
    fields = f"Host: x\r\nContent-Type: image/png\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(data)}"
    message = f"POST /predict HTTP/1.1\r\n{fields}\r\n\r\n".encode() + data
    statuses = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as chooser:
        everybody = [stack.enter_context(socket.create_connection(("127.0.0.1", PORT), limit)) for _ in range(count)]
        for one in everybody:
            one.setblocking(False)
            chooser.register(one, selectors.EVENT_READ | selectors.EVENT_WRITE, (message, b""))
        until = time.monotonic() + limit
        while chooser.get_map() and time.monotonic() < until:
            for key, events in chooser.select(1):
                one: Any = key.fileobj
                left, come = key.data
                if events & selectors.EVENT_WRITE:
                    with contextlib.suppress(OSError):  # refused before it was all sent: the answer is there
                        left = left[one.send(left) :]
                if events & selectors.EVENT_READ:
                    with contextlib.suppress(OSError):
                        come += one.recv(1 << 16)
                    if b"\r\n" in come:
                        statuses.append(int(come.split()[1]))
                        chooser.unregister(one)
                        continue
                chooser.modify(one, selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0), (left, come))
    return statuses


@dataclass(frozen=True)
class Serving:
    """The service, started by Compose."""

    opened: Opened
    container: str
    since: float

    def ask(self, method: str, path: str, body: Any = None, limit: float = 60, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or bytes) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=limit)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if "json" in answer.headers["content-type"] else said
        finally:
            connection.close()

    def predict(self, body: bytes, kind: str = "image/png", token: str = TOKEN) -> tuple[int, Any]:
        return self.ask("POST", "/predict", body, Content_Type=kind, Authorization=f"Bearer {token}")

    def inspect(self, what: str) -> str:
        words = ["docker", "inspect", "--format", f"{{{{{what}}}}}", self.container]
        return subprocess.check_output(words, text=True).strip()

    def memory(self) -> int:
        """Largest resident set of the service so far, in MiB."""
        status = subprocess.check_output(
            ["docker", "exec", self.container, "sh", "-c", "cat /proc/[0-9]*/status"], text=True
        )
        return max(map(int, re.findall(r"VmHWM:\s+(\d+)", status))) >> 10


def test_without_a_model_it_waits_and_is_not_started_again(opened: Opened) -> None:
    runs = opened.folder / "data" / "no-runs"
    weights = runs / "train" / "exp" / "weights"
    opened.user.run("mkdir", "--parents", weights)
    assert opened.run("python", "code/tests/made_onnx.py", "data/made.onnx").returncode == 0

    def compose(*words: str) -> str:
        environment = {"SERVE_PORT": str(PORT), "SERVE_WEIGHTS": "", "RUNS_DIR": str(runs)}
        return opened.user.run("docker", "compose", *words, cwd=opened.folder, env=environment).stdout

    try:
        compose("up", "--detach", "serve")
        container = compose("ps", "--all", "--quiet", "serve").strip()
        one = Serving(opened, container, time.monotonic())
        while "serve: waiting" not in compose("logs", "serve"):
            assert time.monotonic() < one.since + 60, compose("logs", "serve")
            time.sleep(0.5)
        time.sleep(15)  # Compose would have started it again by now, and more than once
        assert (one.inspect(".RestartCount"), one.inspect(".State.Status")) == ("0", "running")
        assert one.inspect(".State.Health.Status") != "healthy"
        said = compose("logs", "--no-log-prefix", "serve").splitlines()
        assert [line for line in said if "there is no exported model in runs/train" in line] == said[:1]
        assert len(said) == 2
        opened.user.run("cp", "--preserve", opened.folder / "data" / "made.onnx", weights / "best.onnx")
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if one.ask("GET", "/health", limit=5)[0] == 200:
                    break
            assert time.monotonic() < until, compose("logs", "serve")
            time.sleep(0.5)
        assert one.inspect(".RestartCount") == "0"
    finally:
        compose("rm", "--stop", "--force", "serve")


def test_the_image_for_a_service_on_the_gpu(opened: Opened) -> None:
    """Built beside the other one. Here it has no GPU, says so, and serves on the processor."""
    name = f"{opened.image.partition(':')[0]}-gpu"
    environment = {"ONNXRUNTIME": "gpu", "COMPOSE_PROJECT_NAME": name}
    words = ("docker", "compose", "--progress", "plain", "build", "serve")
    done = opened.user.run(*words, cwd=opened.folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    said = re.findall(r"onnxruntime: (\S+) for CUDA 12, with all libraries that it needs", log)
    [step] = re.findall(r"^#(\d+) \[.*install-onnxruntime", log, re.MULTILINE)
    made_before = re.search(rf"^#{step} CACHED$", log, re.MULTILINE) is not None
    image = f"{name}:{opened.image.partition(':')[2]}"
    try:
        script = (
            "import onnxruntime as o; print(o.__version__);"
            "assert 'CUDAExecutionProvider' in o.get_available_providers();"
            "from pathlib import Path; from lab.onnx_model import open_network;"
            f"print(open_network(Path('{MODEL}'))[1])"
        )
        assert opened.run("python", "code/tests/made_onnx.py", MODEL).returncode == 0
        mount = ("--volume", f"{opened.folder}:/workspace", "--network", "none")
        tried = opened.user.run("docker", "run", "--rm", *mount, image, "python", "-c", script)
        assert tried.returncode == 0, tried.stderr
        version = tried.stdout.splitlines()[0]
        assert said == ([] if made_before else [version])
        assert f"onnxruntime-gpu=={version} " in (opened.folder / "docker/onnxruntime-cu12.lock").read_text()
        assert tried.stdout.splitlines()[-1] == "on the processor: this container has no GPU"
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)


@pytest.fixture(scope="module")
def serving(opened: Opened) -> Iterator[Serving]:
    made = opened.run("python", "code/tests/made_onnx.py", MODEL)
    assert made.returncode == 0, made.stderr
    environment = {"SERVE_PORT": str(PORT), "SERVE_WEIGHTS": MODEL, "LAB_SERVE_TOKEN": TOKEN}
    up = opened.user.run("docker", "compose", "up", "--detach", "serve", cwd=opened.folder, env=environment)
    assert up.returncode == 0, up.stderr
    since = time.monotonic()
    container = opened.user.run("docker", "compose", "ps", "--quiet", "serve", cwd=opened.folder).stdout.strip()
    one = Serving(opened, container, since)
    try:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if one.ask("GET", "/health", limit=5)[0] == 200:
                    break
            log = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False)
            assert time.monotonic() < since + 60, log.stdout + log.stderr
            time.sleep(0.2)
        print(f"serving after {time.monotonic() - since:.1f} s")
        yield one
    finally:
        opened.user.run("docker", "compose", "rm", "--stop", "--force", "serve", cwd=opened.folder)


def test_boxes_over_http(serving: Serving) -> None:
    status, said = serving.predict(png(picture(1280, 1280)))
    assert status == 200, said
    [found] = said["images"]
    assert {(box["name"], *box["xyxy"]) for box in found["boxes"]} == {
        ("red", 960, 0, 1280, 320),
        ("blue", 0, 960, 320, 1280),
    }
    assert said["model"]["file"] == "made.onnx"


def test_who_is_not_let_in(serving: Serving) -> None:
    data = png(picture())
    assert serving.ask("POST", "/predict", data, Content_Type="image/png")[0] == 401
    assert serving.predict(data, token="wrong" * 5)[0] == 401
    assert serving.ask("GET", "/metrics")[0] == 401
    assert serving.inspect("json .HostConfig.PortBindings").count("127.0.0.1") == 1
    # from this machine's other address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        with contextlib.suppress(OSError):
            one.connect(("192.0.2.1", 9))
        address = one.getsockname()[0]
    if address not in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, PORT), 5)


def test_what_is_refused(serving: Serving) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    cases = {
        "truncated JPEG": (jpeg[: len(jpeg) // 2], "image/jpeg", 422),
        "garbage of 50 MB": (os.urandom(50 << 20), "image/jpeg", 413),
        "garbage of 10 MB": (os.urandom(10 << 20), "image/jpeg", 415),
        "bomb": (bomb(100_000, 100_000), "image/png", 413),
        "page": (b"<script>alert(1)</script>", "text/html", 415),
    }
    for name, (body, kind, status) in cases.items():
        answered = serving.predict(body, kind)
        assert answered[0] == status, (name, answered)
        assert answered[1]["error"]
    form = (
        b'--e\r\nContent-Disposition: form-data; name="file"; filename="../../../workspace/evil.png"\r\n\r\n'
        + png(picture())
        + b"\r\n--e--\r\n"
    )
    status, said = serving.predict(form, "multipart/form-data; boundary=e")
    assert (status, said["images"][0]["file"]) == (200, "evil.png")
    changes = subprocess.check_output(["docker", "diff", serving.container], text=True)
    assert "evil" not in changes
    assert not list(serving.opened.folder.rglob("evil*"))
    assert serving.ask("GET", "/../../etc/passwd")[0] == 404
    assert serving.predict(png(picture()))[0] == 200


def test_a_thousand_at_once(serving: Serving) -> None:
    data = png(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))  # about 200 kB
    statuses = crowd(data, 1000)
    assert len(statuses) == 1000
    print({status: statuses.count(status) for status in set(statuses)}, f"{serving.memory()} MiB")
    assert set(statuses) <= {200, 429}
    assert 200 in statuses
    assert serving.memory() < 1024
    assert serving.ask("GET", "/health")[0] == 200
    metrics = serving.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}")[1].decode()
    assert 'lab_serve_requests_total{path="/predict",status="200"}' in metrics
    assert "lab_serve_images_in_flight 0.0" in metrics


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page(serving: Serving, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "squares.png").write_bytes(png(picture(640, 480)))
    (tmp_path / "text.png").write_text("no picture")
    browser = Browser(tmp_path / "profile")
    try:
        medium = [{"name": "prefers-color-scheme", "value": scheme}]
        events = browser.open(f"http://127.0.0.1:{PORT}/", features=medium)
        assert complaints(events) == []
        assert browser.evaluate("document.querySelectorAll('[src], link:not([href^=\"data:\"])').length") == 0
        dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")

        def choose(name: str) -> None:
            root = browser.ask("DOM.getDocument")["root"]["nodeId"]
            node = browser.ask("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
            browser.ask("DOM.setFileInputFiles", files=[str(tmp_path / name)], nodeId=node)

        said = "document.getElementById('said').textContent"
        choose("squares.png")  # the service wants a token, and the page asks for it
        browser.wait(f"{said}.includes('token')")
        for word in ("wrong", TOKEN):
            browser.evaluate("document.activeElement.value = ''")
            browser.ask("Input.insertText", text=word)
            for kind in ("keyDown", "keyUp"):
                browser.ask(
                    "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
                )
            browser.wait(f"{said}.includes('{'not the right one' if word == 'wrong' else 'box'}')")
        rows = "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent).sort().join()"
        assert set(browser.wait(rows).split(",")) == {"blue", "red"}
        # a frame of the box's colour stands where the answer says: the red square's left edge at 480
        colour = "[...document.getElementById('canvas').getContext('2d').getImageData(480, 60, 1, 1).data].join()"
        assert browser.evaluate(colour) == "229,72,77,255"
        assert "red" in browser.evaluate("document.getElementById('canvas').getAttribute('aria-label')")
        browser.evaluate("conf.value = 0.95; conf.dispatchEvent(new Event('input'))")
        assert browser.evaluate(f"{said}").startswith("No boxes, ")
        browser.evaluate("conf.value = 0.25; conf.dispatchEvent(new Event('input'))")
        browser.screenshot(tmp_path / "page.png")
        assert len(np.unique(cv2.imread(str(tmp_path / "page.png")).reshape(-1, 3), axis=0)) > 50
        choose("text.png")
        browser.wait(f"{said}.includes('cannot read this file as a picture')")
        browser.evaluate("camera.click()")  # Chromium's own made-up one
        browser.wait("camera.textContent.startsWith('Stop') && canvas.width > 640")
        browser.evaluate("camera.click()")
        browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=False)
        assert browser.wait("document.documentElement.scrollWidth <= 390")
        asked = [e["params"]["request"]["url"] for e in browser.said if e["method"] == "Network.requestWillBeSent"]
        assert asked
        own = (f"http://127.0.0.1:{PORT}/", "data:", "blob:")
        assert [url[:80] for url in asked if not url.startswith(own)] == []
    finally:
        browser.close()


def test_it_is_found_healthy_and_ends_in_time(serving: Serving) -> None:
    while (state := serving.inspect(".State.Health.Status")) == "starting" and time.monotonic() < serving.since + 90:
        time.sleep(1)
    assert state == "healthy"
    assert serving.inspect(".HostConfig.RestartPolicy.Name") == "unless-stopped"
    began = time.monotonic()
    stopped = serving.opened.user.run("docker", "compose", "stop", "serve", cwd=serving.opened.folder)
    assert stopped.returncode == 0, stopped.stderr
    assert time.monotonic() - began < 10
    assert serving.inspect(".State.ExitCode") == "0"
    log = subprocess.run(["docker", "logs", serving.container], capture_output=True, text=True, check=True)
    assert TOKEN not in log.stdout + log.stderr
    assert "Traceback" not in log.stdout + log.stderr
    assert log.stdout.count("\n") == 2  # what is served and where; no line for a request
