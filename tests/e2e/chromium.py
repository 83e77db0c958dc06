"""Chromium for tests of pages: it speaks the DevTools protocol over two pipes, so that no port is opened."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1280,900", "--remote-debugging-pipe", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip


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

    def open(self, page: Path | str, **medium: Any) -> list[dict[str, Any]]:
        """Load a file or an address to its end; returns what happened meanwhile."""
        self.ask("Emulation.setEmulatedMedia", **medium)
        self.said.clear()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.said):
            self.next()
        time.sleep(0.5)  # for whatever a page might do late
        self.ask("Runtime.evaluate", expression="1")
        return list(self.said)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, limit: float = 20) -> Any:
        """The value of a JavaScript expression, once it is true."""
        until = time.monotonic() + limit
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"{expression} is {value!r}"
            time.sleep(0.05)
        return value

    def screenshot(self, file: Path) -> None:
        """What is in the window, as PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def requests(events: list[dict[str, Any]]) -> list[str]:
    """What was asked for, but for the page itself and pictures inside it."""
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url[:100] for url in urls if not url.startswith(("data:", "file:")) or url.count("file:") > 1]


def complaints(events: list[dict[str, Any]]) -> list[Any]:
    """What stands in the console."""
    wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event["params"] for event in events if event["method"] in wanted]
