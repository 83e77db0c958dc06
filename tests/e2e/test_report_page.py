"""The report of a run in Chromium, from file://: no request, no word in the console, and it can be read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser, complaints, requests

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


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
