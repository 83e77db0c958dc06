"""docker/start-serve: what cannot be served is said once and waited for. `lab` is a program of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "template" / "{{cookiecutter.project_slug}}" / "docker" / "start-serve"
LAB = """#!/bin/sh
echo "$*" >>"$CALLS"
if [ -e crash ]; then exit 1; fi
if [ -z "$(find runs -name '*.onnx')" ]; then echo 'lab: there is no exported model' >&2; exit 2; fi
trap 'echo drained; exit 0' TERM
echo serving
while :; do sleep 0.1; done
"""


class Service:
    def __init__(self, place: Path) -> None:
        (place / "bin").mkdir()
        (place / "runs" / "train" / "exp" / "weights").mkdir(parents=True)
        (place / "bin" / "lab").write_text(LAB)
        (place / "bin" / "lab").chmod(0o755)
        self.place = place
        environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "CALLS": str(place / "calls")}
        with (place / "said").open("wb") as said:
            self.process = subprocess.Popen(
                ["sh", str(SCRIPT), "--weights", ""], cwd=place, env=environment, stdout=said, stderr=said
            )

    @property
    def said(self) -> list[str]:
        return (self.place / "said").read_text().splitlines()

    @property
    def calls(self) -> list[str]:
        return (self.place / "calls").read_text().splitlines() if (self.place / "calls").exists() else []

    def until(self, text: str, limit: float = 20) -> None:
        deadline = time.monotonic() + limit
        while not any(text in line for line in self.said):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def export(self, age: float = 0) -> None:
        model = self.place / "runs" / "train" / "exp" / "weights" / "best.onnx"
        model.write_bytes(b"")
        os.utime(model, (time.time() - age,) * 2)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path)
    yield one
    one.process.kill()
    one.process.wait()


def test_it_waits_for_a_model_and_says_so_once(service: Service) -> None:
    service.until("serve: waiting")
    time.sleep(6)  # longer than it looks again
    assert service.process.poll() is None
    assert service.calls == ["serve --host 0.0.0.0 --weights "]
    assert [line.split(";")[0] for line in service.said] == ["lab: there is no exported model", "serve: waiting"]
    service.export(age=86400)  # a file that was copied keeps its date
    service.until("serving")
    assert len(service.calls) == 2
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(10) == 0
    assert service.said[-1] == "drained"


def test_it_ends_at_once_while_it_waits(service: Service) -> None:
    service.until("serve: waiting")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(3) is not None


def test_a_fault_of_the_service_is_left_to_compose(tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    service = Service(tmp_path)
    assert service.process.wait(10) == 1
    assert len(service.calls) == 1
