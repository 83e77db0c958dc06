"""How fast a training is and how long it waits: counted in its loop, written once a second, read from outside."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lab import pace, telemetry
from lab.nvml import Gpu
from lab.pace import Meter, Pace, Paced

HERE = Pace(1000.0, True, 640, 32.0, 0.25, 20.0, 0.5, "box", 7)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(meter: Meter, clock: Clock, count: int, seconds: float, waited: float, images: int = 16) -> None:
    for _ in range(count):
        clock.now += seconds
        meter.took(images, waited)


def test_rate_and_wait_of_the_last_half_minute(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(tmp_path, clock=clock)
    meter.begin()
    steps(meter, clock, 2, 20.0, 19.0)  # workers start: not counted
    steps(meter, clock, 40, 0.5, 0.1)
    said = pace.read(tmp_path)
    assert said is not None
    assert (said.training, said.images) == (True, 42 * 16)
    assert said.rate == pytest.approx(32)
    assert said.wait == pytest.approx(0.2)
    assert said.step == pytest.approx(0.5)
    steps(meter, clock, 200, 0.5, 0.4)
    later = pace.read(tmp_path)
    assert later is not None
    assert later.wait == pytest.approx(0.8)
    assert 30 <= later.window < 35


def test_validation_between_epochs_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(tmp_path, ranks=4, clock=clock)
    for _ in range(3):
        meter.begin()
        steps(meter, clock, 10, 1.0, 0.0)
        meter.end()
        between = pace.read(tmp_path)
        assert between is not None
        assert not between.training
        clock.now += 600
    meter.begin()
    steps(meter, clock, 10, 1.0, 0.0)
    said = pace.read(tmp_path)
    assert said is not None
    assert said.rate == pytest.approx(64)


def test_it_is_written_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(), []
    meter = Meter(tmp_path, clock=clock)
    monkeypatch.setattr("lab.record.write", lambda *_: written.append(clock.now))
    meter.begin()
    steps(meter, clock, 1000, 0.01, 0.0)
    assert 9 <= len(written) <= 11


def test_a_full_disk_stops_no_training(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(tmp_path / "gone", clock=clock)
    meter.begin()
    steps(meter, clock, 5, 1.0, 0.0)
    meter.end()
    assert pace.read(tmp_path / "gone") is None


class Loader:
    """Two batches of four, and something that the engine asks for."""

    batch_size = 4

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize("batch", [{"img": [0, 1, 2, 3]}, ([0, 1, 2, 3], "labels", "paths", "shapes")])
def test_a_loader_of_either_engine_is_what_it_was(tmp_path: Path, batch: Any) -> None:
    meter = Meter(tmp_path)
    loader = Paced(Loader([batch, batch]), meter)
    assert (len(loader), loader.batch_size) == (2, 4)
    assert list(loader) == [batch, batch]
    assert list(loader) == [batch, batch]
    said = pace.read(tmp_path)
    assert said is not None
    assert (said.images, said.training) == (16, False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": 1}', json.dumps({**asdict(HERE), "rate": None})])
def test_a_torn_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / pace.NAME).write_text(text, encoding="utf-8")
    found = pace.read(tmp_path)
    assert found is None or found == replace(HERE, rate=None)


def test_old_news_is_none() -> None:
    assert HERE.steps_now(1004)
    assert not HERE.steps_now(1006)
    assert replace(HERE, step=60.0).steps_now(1100)
    assert replace(HERE, training=False).steps_now(1004)
    assert not replace(HERE, training=False).steps_now(1006)
    assert not HERE.here()


def test_the_samples_carry_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / telemetry.NAME
    (tmp_path / pace.NAME).write_text(json.dumps(asdict(replace(HERE, time=time.time()))), encoding="utf-8")
    card = Gpu(1, util=50, memory=100, clock=1500)
    monkeypatch.setattr(telemetry.Cards, "look", lambda *_: (card,))
    before = "time_s,gpu,gpu_util_pct,gpu_mem_mib,gpu_power_w,cpu_util_pct,rss_mib,read_mb_s,host_cpu_pct\n"
    for head, known in (("", (32.0, 25.0, 1500.0)), (before, (None, None, None))):  # a resumed run keeps its columns
        file.write_text(head, encoding="utf-8")
        if not head:
            file.unlink()
        sampler = telemetry.Sampler(file, 1, period=0.05)
        thread = telemetry.threading.Thread(target=sampler.run)
        thread.start()
        time.sleep(0.4)
        sampler.stop()
        thread.join(5)
        found = telemetry.read(file)
        assert found
        assert {(one.gpu, one.gpu_util, one.gpu_memory) for one in found} == {(1, 50.0, 100.0)}
        assert {(one.rate, one.wait, one.gpu_clock) for one in found} == {known}


def test_a_run_that_ends_leaves_no_pace(tmp_path: Path) -> None:
    with telemetry.sampling(tmp_path, 1):
        (tmp_path / pace.NAME).write_text("{}", encoding="utf-8")
    assert not (tmp_path / pace.NAME).exists()
