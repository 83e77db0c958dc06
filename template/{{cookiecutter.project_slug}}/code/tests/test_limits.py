import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lab import devices, limits
from lab.errors import LabError

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ({}, 6),
    ],
)
def test_processors_respect_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert limits.processors() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"memory.max": "max", "memory.current": "1", "memory.stat": ""}, 64),
        ({"memory.max": f"{8 << 30}", "memory.current": f"{6 << 30}", "memory.stat": "anon 5"}, 2),
        ({"memory.max": f"{8 << 30}", "memory.current": f"{8 << 30}",
          "memory.stat": f"inactive_file {3 << 30}\nactive_file {1 << 30}"}, 4),
        ({"memory/memory.limit_in_bytes": f"{8 << 30}", "memory/memory.usage_in_bytes": f"{7 << 30}",
          "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {2 << 30}"}, 3),
        ({"memory/memory.limit_in_bytes": f"{1 << 62}", "memory/memory.usage_in_bytes": "1"}, 64),
        ({"memory.max": f"{1 << 30}", "memory.current": f"{1 << 30}"}, 0),
    ],
)  # fmt: skip
def test_free_memory_respects_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {64 << 20} kB\n")
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    assert limits.memory_free() == expected << 30
    monkeypatch.setattr(limits.platform, "release", lambda: "6.1.0-amd64")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert limits.pinnable() == expected << 28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert limits.pinnable() == expected << 26
    monkeypatch.setattr(limits.platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert limits.pinnable() == min(expected << 28, 384 << 20) // 4


def test_dockers_64_mb_of_shared_memory_feed_no_worker_at_640(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 64 << 20))
    assert limits.workers_that_fit(8, 16, 640) == 0
    assert limits.workers_that_fit(8, 16, 96) == 8
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 8 << 30))
    assert limits.workers_that_fit(8, 16, 640) == 8


def test_a_small_disk_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1 << 30))
    limits.require_room(tmp_path, limits.parameters_of("yolov5n"))
    with pytest.raises(LabError, match="1024 MiB free"):
        limits.require_room(tmp_path, limits.parameters_of("yolov5x6"))


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DEV", tmp_path)
    assert devices.resolve("cpu") == "cpu"
    assert devices.resolve("") == ""
    with pytest.raises(LabError, match="--device cpu"):
        devices.resolve("0")


def test_device_numbers_count_among_the_visible_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.resolve("cuda:0, 1") == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert devices.resolve("0") == "1"
    assert devices.resolve("0,1") == "1,3"
    for wrong in ("2", "0,0", "gpu", "0,"):
        with pytest.raises(LabError):
            devices.resolve(wrong)
