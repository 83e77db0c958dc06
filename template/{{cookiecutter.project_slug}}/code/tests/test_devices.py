"""Which GPU `--device` means where a person, Slurm or Kubernetes names them by UUID, on described hosts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_nvml import GIB, Nvml, gpu

from lab import devices, doctor_facts, gpu_list, nvml, plan, telemetry, watch_facts
from lab.doctor_facts import Child, Gpu, Slice, Smi
from lab.errors import LabError
from lab.gpu_list import listed, those

SMI = """#!/bin/sh
if [ "$1" = -L ]; then
    echo "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa1111-0000)"
    echo "  MIG 1g.10gb     Device  0: (UUID: MIG-5d5b-0000)"
    echo "  MIG 3g.40gb     Device  1: (UUID: MIG-c6d4-1111)"
    echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb2222-0000)"
else
    echo "0, NVIDIA A100-SXM4-80GB, 570.86.10, 81920, 5, Enabled, GPU-aaaa1111-0000"
    echo "1, NVIDIA H100 80GB HBM3, 570.86.10, 81559, 2048, Disabled, GPU-bbbb2222-0000"
fi
"""
SECOND = "GPU-bbbb2222-0000"


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A container with GPUs and no program nvidia-smi; yields a directory on PATH."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(devices, "DEV", tmp_path / "dev")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed.cache_clear()
    yield tmp_path / "bin"
    listed.cache_clear()


def program(place: Path, text: str) -> None:
    (place / "nvidia-smi").write_text(text, encoding="utf-8")
    (place / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize(
    ("left", "device", "resolved"),
    [
        ("GPU-bbbb2222-0000,GPU-aaaa1111-0000", "0", "GPU-bbbb2222-0000"),
        ("GPU-bbbb2222-0000,GPU-aaaa1111-0000", "1,0", "GPU-aaaa1111-0000,GPU-bbbb2222-0000"),
        ("MIG-c6d4-1111", "0", "MIG-c6d4-1111"),
        ("MIG-GPU-aaaa1111-0000/1/0", "cuda", "MIG-GPU-aaaa1111-0000/1/0"),
        ("2,3", "cuda:1", "3"),
        ("2,3", "cuda", "2"),
        ("2,-1,3", "0", "2"),  # CUDA reads no further than a word that names no GPU
        ("GPU-bbbb2222-0000", "GPU-bbbb", "GPU-bbbb"),  # CUDA takes the beginning of one
        (None, "GPU-bbbb2222-0000", "GPU-bbbb2222-0000"),
        ("GPU-bbbb2222-0000", "", ""),
    ],
)
def test_number_0_is_the_first_gpu_that_is_to_be_seen(
    monkeypatch: pytest.MonkeyPatch, left: str | None, device: str, resolved: str
) -> None:
    if left is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
    assert devices.resolve(device) == resolved


@pytest.mark.parametrize(
    ("left", "device", "part"),
    [
        ("GPU-bbbb2222-0000", "1", "may use 1 GPU"),
        ("GPU-bbbb2222-0000", "GPU-aaaa", "leaves GPU-bbbb2222-0000 only"),
        ("GPU-bbbb2222-0000", "0,0", "names a GPU twice"),
        ("MIG-5d5b-0000,MIG-c6d4-1111", "0,1", "CUDA gives a training one MIG instance"),
        ("", "0", "hides every GPU"),
        ("NoDevFiles", "0", "CUDA_VISIBLE_DEVICES=NoDevFiles hides every GPU"),
        (None, "gpu", "UUIDs as `nvidia-smi -L` lists them"),
    ],
)
def test_a_gpu_that_is_not_to_be_seen(
    monkeypatch: pytest.MonkeyPatch, left: str | None, device: str, part: str
) -> None:
    if left is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
    with pytest.raises(LabError, match=part):
        devices.resolve(device)


FOUR = tuple(Gpu(number, "V100", "570", 16384, 0, uuid=f"GPU-{number}") for number in range(4))


def test_the_gpus_that_device_means(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.number for one in those("1,3", FOUR)] == [1, 3]
    assert [one.number for one in those("GPU-3", FOUR)] == [3]
    assert [one.number for one in those("", FOUR)] == [0]
    assert those("cpu", FOUR) == ()
    for left, number in (("2,3", [2]), ("GPU-3,GPU-1", [3]), ("", []), ("NoDevFiles", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
        assert [one.number for one in those("", FOUR)] == number


def test_by_uuid_from_nvidia_smi(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(host, SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", SECOND)
    (card,) = those(devices.resolve("0"), listed())
    assert (card.number, card.name, card.total) == (1, "NVIDIA H100 80GB HBM3", 81559)
    assert those("", listed()) == (card,)


@pytest.mark.parametrize(
    ("left", "name", "total"),
    [("MIG-c6d4-1111", "MIG 3g.40gb", 40 << 10), ("0", "MIG 1g.10gb", 10 << 10), (None, "MIG 1g.10gb", 10 << 10)],
)
def test_a_mig_instance_is_a_part_with_its_own_memory(
    host: Path, monkeypatch: pytest.MonkeyPatch, left: str | None, name: str, total: int
) -> None:
    program(host, SMI)
    if left is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
    for device in ("", devices.resolve("0")):
        (part,) = those(device, listed())
        assert (part.number, part.name, part.total) == (0, f"NVIDIA A100-SXM4-80GB {name}", total)


def test_an_instance_as_older_drivers_name_it(host: Path) -> None:
    program(host, SMI)
    assert [one.number for one in those("MIG-GPU-aaaa1111-0000/1/0", listed())] == [0]


@pytest.mark.parametrize("smi", ["", "exit 9", "exec sleep 60"], ids=["absent", "silent", "stuck"])
def test_where_nvidia_smi_is_absent_or_silent_nvml_tells(host: Path, monkeypatch: pytest.MonkeyPatch, smi: str) -> None:
    part = {"Name": "A100 MIG 1g.10gb", "UUID": "MIG-5d5b", "MemoryInfo": SimpleNamespace(used=0, total=10 * GIB)}
    told = nvml.read(Nvml(gpu(UUID="GPU-aaaa", MigMode=[1, 1], slices=[part]), gpu(UUID=b"GPU-bbbb")))
    monkeypatch.setattr(doctor_facts, "SMI_LIMIT", 0.5)
    monkeypatch.setattr(nvml.Asker, "ask", lambda *_: told)
    monkeypatch.setattr(gpu_list, "ask_torch", lambda: pytest.fail("torch takes seconds"))
    if smi:
        program(host, f"#!/bin/sh\n{smi}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb,MIG-5d5b")
    assert those("", listed())[0].number == 1
    assert those(devices.resolve("1"), listed()) == (
        Gpu(0, "NVIDIA GeForce RTX 4090 MIG 1g.10gb", "", 10 << 10, uuid="MIG-5d5b"),
    )


SEEN = {"devices": [{"number": 0, "name": "NVIDIA H100", "memory_mib": 81559}]}


@pytest.mark.parametrize(("left", "number"), [(SECOND, 0), ("3", 3), (None, 0)])
def test_where_both_are_silent_torch_tells(monkeypatch: pytest.MonkeyPatch, left: str | None, number: int) -> None:
    monkeypatch.setattr(gpu_list, "ask_smi", lambda: Smi("hangs"))
    monkeypatch.setattr(nvml.Asker, "ask", lambda *_: None)
    monkeypatch.setattr(doctor_facts, "_child", lambda *_: Child({"devices": {"ok": True, **SEEN}}))
    if left is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", left)
    for device in ("", devices.resolve("0")):
        (card,) = those(device, listed())
        assert (card.number, card.name, card.total) == (number, "NVIDIA H100", 81559)


def test_without_a_device_file_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DEV", tmp_path / "bin")
    monkeypatch.setattr(gpu_list, "ask_smi", lambda: pytest.fail("asked"))
    assert listed() == ()


def test_the_plan_speaks_of_the_gpu_that_trains(
    host: Path, monkeypatch: pytest.MonkeyPatch, facts_of_a_training: plan.Facts
) -> None:
    """Its memory line said that the processor trains."""
    program(host, SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", SECOND)
    device = devices.resolve("0")
    said = dict(plan.lines(replace(facts_of_a_training, device=device, gpus=those(device, listed()))))
    assert "of 79.6 GiB on NVIDIA H100 80GB HBM3" in said["memory"]
    assert said["amp"].startswith("on, ")


@pytest.fixture
def facts_of_a_training() -> plan.Facts:
    return plan.Facts(
        weights="none", model="yolov5s", engine="yolov5", images={"train": 9, "val": 3}, checked="", batch=16,
        imgsz=640, workers=2, disk_free=1 << 40, disk_need=1 << 30, shm_free=1 << 33, memory_free=1 << 34,
    )  # fmt: skip


def test_watch_finds_the_gpu_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = nvml.read(Nvml(gpu(UUID="GPU-aaaa"), gpu(UUID="GPU-bbbb"))).gpus
    bare = tuple(nvml.Gpu(one.number, one.name, processes=(), uuid=one.uuid) for one in cards)
    running: Any = SimpleNamespace(state=watch_facts.RUNNING, device="GPU-bbbb")
    assert watch_facts.used(bare, running, set()) == bare[1:]


def test_nvidia_smi_tells_telemetry_the_uuid(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(host, "#!/bin/sh\necho '1, 50, 100, 70.5, GPU-bbbb'\n")
    monkeypatch.setattr(nvml.Asker, "ask", lambda *_: nvml.Answer(nvml.ABSENT))
    (card,) = telemetry.Cards().look()
    assert (card.number, card.uuid) == (1, "GPU-bbbb")


def test_slices_without_a_size_in_their_name() -> None:
    text = "GPU 3: X (UUID: GPU-1)\n  MIG odd Device 0: (UUID: MIG-2)\n"
    assert doctor_facts._slices(text) == {3: (Slice("odd", "MIG-2"),)}


def test_what_the_container_toolkit_was_told_is_no_narrowing_for_cuda(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA_VISIBLE_DEVICES decided which GPUs came in: they are numbered from 0, and CUDA never reads it."""
    program(host, "#!/bin/sh\necho '0, NVIDIA H100 80GB HBM3, 570.86.10, 81559, 2048, Disabled, GPU-bbbb2222-0000'\n")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", SECOND)
    assert devices.resolve("0") == "0"
    assert [card.uuid for card in those("0", listed())] == [SECOND]
