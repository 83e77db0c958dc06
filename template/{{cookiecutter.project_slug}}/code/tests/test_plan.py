"""The estimate before a training, and its lines."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from lab import cli, limits, plan, training
from lab.dataset import open_dataset
from lab.doctor_facts import Gpu
from lab.project import Project

Usage = namedtuple("Usage", "total used free")
FACTS = plan.Facts(
    weights="none, from scratch",
    model="yolov5s",
    engine="yolov5",
    images={"train": 410, "val": 102},
    checked="not checked yet",
    batch=16,
    imgsz=640,
    workers=8,
    disk_free=9 << 30,
    disk_need=1 << 30,
    shm_free=1 << 30,
    memory_free=8 << 30,
)
V100 = Gpu(0, "Tesla V100-PCIE-16GB", "580.1", 16384, 3)


@pytest.mark.parametrize(
    ("model", "batch"), [("yolov5n", 128), ("yolov5s", 64), ("yolov5m", 40), ("yolov5l", 24), ("yolov5x", 16)]
)
def test_yolov5s_own_batch_sizes_for_16_gb_fill_16_gb(model: str, batch: int) -> None:
    assert 12.9 <= plan.memory_gib(model, batch, 640) <= 15.6
    assert plan.memory_gib(model, batch, 640, amp=False) > 20


def test_p6_models_and_other_names() -> None:
    assert 28 <= plan.memory_gib("yolov5x6u", 8, 1280) <= 32
    assert plan.size_of("yolov5l-p6") == "l"
    assert plan.size_of("mine") == "n"
    assert limits.parameters_of("yolov5l-p6") == 83_700_000


@pytest.mark.parametrize(
    ("batch", "words"),
    [(16, "16 images a step, 4 steps gathered: 64 an update"), (64, "64 images an update"), (300, "300 images an up")],
)
def test_the_effective_batch(batch: int, words: str) -> None:
    assert plan.accumulation(batch).startswith(words)


def said(facts: plan.Facts, what: str) -> str:
    return dict(plan.lines(facts))[what]


def test_on_a_processor() -> None:
    lines = plan.sentences(FACTS)
    assert [line.split()[0] for line in lines] == ["weights", "data", "batch", "disk", "shm", "memory", "amp"]
    assert len({line.index(line.split()[1]) for line in lines}) == 1  # aligned
    assert said(FACTS, "amp") == "off: a processor trains in full precision"
    assert "410 pictures to train on, 102 to validate; not checked yet" in said(FACTS, "data")


def test_memory_against_the_plan() -> None:
    fits = replace(FACTS, gpus=(V100,))
    assert said(fits, "memory") == "about 3.9 of 16.0 GiB on Tesla V100-PCIE-16GB"
    assert said(replace(fits, batch=128), "memory").startswith("TIGHT: about 25.2 of 16.0 GiB")
    assert said(replace(fits, gpus=(V100._replace(used=14000),)), "memory").startswith("TIGHT: ")
    two = replace(fits, batch=128, device="0,1", gpus=(V100, V100._replace(number=1)))
    assert said(two, "memory") == "about 13.0 of 16.0 GiB on each GPU"
    assert "measures it first" in said(replace(fits, batch=-1), "memory")


@pytest.mark.parametrize(
    ("name", "off"),
    [("NVIDIA GeForce GTX 1660 Ti", True), ("NVIDIA GeForce GTX 1650", True), ("NVIDIA T1000 8GB", True),
     ("NVIDIA GeForce RTX 4090", False), ("NVIDIA GeForce GTX 1080 Ti", False), ("NVIDIA A100-SXM4-40GB", False)],
)  # fmt: skip
def test_cards_without_amp_are_told_loudly(name: str, off: bool) -> None:
    facts = replace(FACTS, gpus=(V100._replace(name=name),))
    assert said(facts, "amp").startswith("OFF: " if off else "on")
    assert said(facts, "memory").startswith("about 6." if off else "about 3.9")


def test_pictures_are_counted_by_name(shapes: Path, project: Project) -> None:
    dataset = open_dataset("data/demo/data.yaml", project)
    (shapes.parent / "images" / "train" / "notes.txt").touch()
    assert plan.count(dataset, "train") == sum(1 for _ in dataset.images("train"))


def test_caches_are_weighed(shapes: Path, project: Project) -> None:
    dataset = open_dataset("data/demo/data.yaml", project)
    need = plan.cache_bytes(dataset, {"train": 1000, "val": 0}, "ram", 640)
    assert need == 1000 * 3 * 640 * 640
    small = replace(FACTS, cache="ram", cache_need=7 << 30)
    assert said(small, "cache").startswith("TOO LITTLE: --cache ram takes about 7.0 GiB of 8.0 GiB")
    assert said(replace(FACTS, disk_free=1 << 29), "disk").startswith("TOO LITTLE: 0.5 GiB free")


def test_predicted_against_measured() -> None:
    notes = {"peak_bytes": 20 << 30, "total_bytes": 24 << 30}
    assert plan.compared({**notes, "predicted_bytes": 21 << 30}) == (
        "the GPU's memory was filled to 20.0 GiB; predicted were 21.0 GiB (+5 %), 17 % of 24.0 GiB stayed free"
    )
    assert plan.compared({}) == ""


def test_free_memory_respects_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", encoding="ascii")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    assert limits.memory_free() == 8000 << 10
    (tmp_path / "memory.max").write_text("5000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000000\n", encoding="ascii")
    assert limits.memory_free() == 4_000_000


def test_the_lines_come_before_a_training(
    project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "run", lambda *_, **__: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 8 << 30))
    options = {"engine": "yolov5u", "cfg": "yolov5n.yaml", "batch": "auto", "device": "cpu", "workers": "2"}
    assert cli.main(["train", *(f"--{key}={value}" for key, value in options.items())]) == 0
    lines = capsys.readouterr().err.splitlines()
    begin = lines.index("lab: before training")
    assert [line.split()[0] for line in lines[begin + 1 : begin + 8]] == [
        "weights", "data", "batch", "disk", "shm", "memory", "amp",
    ]  # fmt: skip
    assert "lab: --batch auto fills a GPU, and there is none here: 16, as without the option" in lines
