"""The report of a run in Chromium, from file://: no request, no word in the console, and it can be read.

Chromium speaks the DevTools protocol over two pipes here, so no port is opened and nothing else is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1280,900", "--remote-debugging-pipe",
)  # fmt: skip
PAGES = """
import os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from made_run import make_run, predicted, write_pictures
from lab import report, report_predict
from lab.project import open_project
root = Path.cwd()
(root / "lab.yaml").write_text("engine: yolov5\\n")
report_predict._predict = lambda run, project, weights, images, data, device: (predicted(images, data), {"network": 2})
three = write_pictures(root / "data" / "three", 24)
make_run(root / "runs" / "train" / "a", three)
make_run(root / "runs" / "train" / "b", three, "yolov5u", epochs=40, gpus=0)
many = write_pictures(root / "data" / "many", 200, tuple(f"class {n}" for n in range(80)), size=640)
make_run(root / "runs" / "train" / "large", many, epochs=300, gpus=8, samples=6000)
hostile = write_pictures(root / "data" / "hostile", 12, ("<script>alert(1)</script>", "<img src=//x.example/i>", "&"))
make_run(root / "runs" / "train" / "hostile", hostile)
for name, runs in {"one": ["a"], "large": ["large"], "hostile": ["hostile"], "compared": ["a", "b", "large"]}.items():
    report.main(open_project(), runs, None, True, root / f"{name}.html")
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with reports of made-up runs."""
    pytest.importorskip("cv2")
    place = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, "-c", PAGES, str(CODE)], cwd=place, check=True)
    return place


class Browser:
    """Chromium with one tab, over DevTools pipes. `said` are all events of the tab."""

    def __init__(self, profile: Path) -> None:
        read, self.write = os.pipe()
        self.read, write = os.pipe()

        def connect() -> None:
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}"],
            preexec_fn=connect,  # noqa: PLW1509  the protocol wants file descriptors 3 and 4
            pass_fds=(3, 4, read, write),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(read)
        os.close(write)
        self.rest, self.count, self.session = b"", 0, ""
        self.said: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def next(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self.rest:
            more = os.read(self.read, 1 << 20)
            assert more, "chromium has ended"
            self.rest += more
        first, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "method" in message:
            self.said.append(message)
        return message

    def open(self, file: Path, **medium: Any) -> list[dict[str, Any]]:
        """Load a page to its end; returns what happened meanwhile."""
        self.ask("Emulation.setEmulatedMedia", **medium)
        self.said.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.said):
            self.next()
        time.sleep(0.5)  # for whatever a page might do late
        self.ask("Runtime.evaluate", expression="1")
        return list(self.said)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def requests(events: list[dict[str, Any]]) -> list[str]:
    """What was asked for, but for the page itself and pictures inside it."""
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url[:100] for url in urls if not url.startswith(("data:", "file:")) or url.count("file:") > 1]


def complaints(events: list[dict[str, Any]]) -> list[Any]:
    """What stands in the console."""
    wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event["params"] for event in events if event["method"] in wanted]


@pytest.mark.parametrize("name", ["one", "large", "hostile", "compared"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_a_file(pages: Path, browser: Browser, name: str, scheme: str) -> None:
    events = browser.open(pages / f"{name}.html", features=[{"name": "prefers-color-scheme", "value": scheme}])
    assert complaints(events) == []
    assert requests(events) == []
    files = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    assert sum(event["params"]["request"]["url"].startswith("file:") for event in files) == 1
    assert browser.evaluate("document.querySelectorAll('svg polyline').length") >= 4
    assert browser.evaluate("document.querySelectorAll('script, iframe, img').length") == 0
    # nothing sticks out to the right
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_a_bad_page_would_be_noticed(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>throw new Error('no')</script>", encoding="utf-8")
    events = browser.open(page)
    assert requests(events) == ["http://127.0.0.1:9/x.png"]
    assert complaints(events)


def test_its_pictures_are_shown(pages: Path, browser: Browser) -> None:
    browser.open(pages / "one.html")
    assert browser.evaluate("document.querySelectorAll('svg.shot image').length") >= 8
    code = "[...document.querySelectorAll('svg.shot')].every(s => s.getBoundingClientRect().height > 100)"
    assert browser.evaluate(code)
    # a name over a box is inside its picture
    code = """[...document.querySelectorAll('svg.shot')].every(s => { const around = s.getBoundingClientRect();
      return [...s.querySelectorAll('text')].every(t => { const b = t.getBoundingClientRect();
        return b.left >= around.left - 2 && b.right <= around.right + 2 && b.top >= around.top - 2 }) })"""
    assert browser.evaluate(code)


def test_it_is_readable_on_a_narrow_screen_and_prints(pages: Path, browser: Browser) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=False)
    browser.open(pages / "large.html")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.ask("Emulation.clearDeviceMetricsOverride")
    browser.open(pages / "one.html")
    assert len(browser.ask("Page.printToPDF", printBackground=True)["data"]) > 20_000
