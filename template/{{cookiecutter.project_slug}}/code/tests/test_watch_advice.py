"""What `lab watch` advises: described looks at a training, and the sentences they lead to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.fast import plan, tune
from lab.nvml import BRAKE, HEAT, POWER, SLOWDOWN, Gpu, Slice
from lab.report_advice import Load
from lab.telemetry import Look
from lab.watch_advice import ADVICE, FAULT, NOTE, advise, larger_batch, waits
from lab.watch_facts import ENDED, KILLED, RUNNING, Feed, Other, Seen, Training

GIB = 1 << 30
CARD = Gpu(
    0, "RTX 4090", util=95, memory=16 * 1024, total=24 * 1024, power=300, power_limit=450, power_most=600, clock=2900,
    clock_most=3105, temperature=61, pcie_in=800, pcie_out=50, pcie_gen=4, pcie_gen_most=4, pcie_width=16,
    pcie_width_most=16, held=(), processes=(),
)  # fmt: skip
RUN = Training(
    Path("runs/train/exp"), "exp", RUNNING, "yolov5", "running", model="yolov5s", batch=64, workers=4, imgsz=640,
    device="0", epochs=3, planned=100, images=20_000,
)  # fmt: skip
WELL = Load(gpu=95, cpu=40, gpu_memory=16 * 1024, memory=9000, reading=3, gpus=1, host_cpu=45, rate=400, wait=2)
HUNGRY = replace(WELL, gpu=31, wait=70, rate=200)
HOST = tune.Host(
    cores=16, memory_free=100 * GIB, shm_free=32 * GIB, cache_free=500 * GIB, disk_rate=10e9, cache_rate=10e9,
    images=20_000, file_bytes=20_000 * 240_000, store_bytes=20_000 * 690_000, unstored_bytes=25_000 * 690_000,
    imgsz=640, gpus=1, gpu_bytes=24 * GIB,
)  # fmt: skip
FACTS = plan.Facts(
    "yolov5", "cuda", {}, store_bytes=HOST.store_bytes, unstored_bytes=HOST.unstored_bytes, cache="/cache",
    cache_free=HOST.cache_free, memory_free=HOST.memory_free, gpu_left=8 * GIB,
)  # fmt: skip
FEED = Feed(FACTS, HOST)


def seen(load: Load = WELL, card: Gpu | None = CARD, run: Training | None = RUN, **more: Any) -> Seen:
    cards = () if card is None else (card,)
    used = () if run is not None and run.device == "cpu" else cards
    look = Look(cards, load.cpu, load.memory, load.reading, load.host_cpu, None)
    return Seen(run, look, load, more.pop("used", used), **more)


def said(one: Seen) -> dict[str, str]:
    return {item.id: item.sentence for item in advise(one)}


CASES: dict[str, tuple[Seen, str, tuple[str, ...]]] = {
    "all is well": (seen(), "well", ("95 %", "it waits 2 %")),
    "lost": (seen(card=Gpu(1, lost=True)), "gpu.lost", ("GPU 1 fell off the bus", "dmesg", "--resume exp")),
    "lost, and the driver with it": (seen(card=None, lost=True), "gpu.lost", ("A GPU fell off the bus",)),
    "the driver tells nothing": (
        seen(card=None, silent=True, why="Unknown Error"), "gpu.silent", ("Unknown Error", "lab doctor"),
    ),
    "no GPU": (seen(card=None, run=replace(RUN, device="cpu")), "gpu.none", ("no GPU in this container",)),
    "no run": (seen(run=None), "idle", ("no run yet", "lab train")),
    "done": (seen(run=replace(RUN, state=ENDED, status="done", epochs=100)), "idle", ("exp is done after 100 of 100",)),
    "stopped": (
        seen(run=replace(RUN, state=ENDED, status="stopped", ended="2026-11-23T12:03:09+00:00")), "idle",
        ("was stopped after 3 of 100 epochs (2026-11-23 12:03 UTC)", "lab train --resume exp"),
    ),
    "failed": (
        seen(run=replace(RUN, state=ENDED, status="failed", reason="the disk is full.")), "idle",
        ("failed", "the disk is full; `lab train --resume exp`"),
    ),
    "killed": (seen(run=replace(RUN, state=KILLED)), "killed", ("was killed after 3 of 100 epochs", "--resume exp")),
    "the processors although there is a GPU": (
        seen(run=replace(RUN, device="cpu")), "gpu.unused", ("GPU 0 (RTX 4090)", "--device 0"),
    ),
    "too hot": (
        seen(card=replace(CARD, held=(HEAT,), clock=1200, temperature=88)), "clock.heat",
        ("too hot at 88 °C", "1200 of 3105 MHz"),
    ),
    "slowed by the hardware": (seen(card=replace(CARD, held=(SLOWDOWN,))), "clock.brake", ("by its hardware",)),
    "slowed by the hardware for heat": (seen(card=replace(CARD, held=(SLOWDOWN, HEAT))), "clock.heat", ("too hot",)),
    "braked": (seen(card=replace(CARD, held=(SLOWDOWN, BRAKE))), "clock.brake", ("the power supply or a cable",)),
    "a limit of power that can be lifted": (
        seen(card=replace(CARD, held=(POWER,), clock=2000)), "clock.power", ("450 W", "nvidia-smi -i 0 -pl 600"),
    ),
    "a limit of power that cannot": (
        seen(card=replace(CARD, held=(POWER,), clock=2000, power_most=450)), "clock.power", ("does what it can",),
    ),
    "others on the machine": (
        seen(replace(HUNGRY, host_cpu=98, cpu=20), feed=FEED), "machine.crowded", ("98 %", "20 %"),
    ),
    "waits, and nothing is known of the host": (seen(HUNGRY), "data.wait", ("31 %", "70 %", "lab tune")),
    "waits, and the fast path was left out": (
        seen(HUNGRY, run=replace(RUN, command=("lab", "train", "--plain", "--epochs", "9")), feed=FEED), "data.wait",
        ("Without --plain `lab train` is fed better: images are decoded once and painted on the GPU",),
    ),
    "waits, and the store does not fit": (
        seen(HUNGRY, feed=Feed(replace(FACTS, cache_free=GIB), replace(HOST, cache_free=GIB, store_obstacle=""))),
        "data.wait", ("/cache has 1.0 GiB free", "--workers 16 instead of 4", "about 667 images/s instead of 200"),
    ),
    "waits, and workers alone do not suffice": (
        seen(replace(HUNGRY, wait=92), feed=Feed(FACTS, replace(HOST, store_obstacle="x", cores=8))), "data.wait",
        ("--cache ram",),
    ),
    "waits, and every processor loads": (
        seen(
            replace(HUNGRY, wait=90), run=replace(RUN, workers=8, path=plan.STORE),
            feed=Feed(FACTS, replace(HOST, cores=8)),
        ),
        "data.wait", ("8 processors are the limit", "processors would be enough"),
    ),
    "waits for a disk": (
        seen(
            replace(HUNGRY, wait=90, cpu=10, reading=40),
            run=replace(RUN, workers=8),
            feed=Feed(
                replace(FACTS, cache_free=0),
                replace(HOST, file_bytes=200 * GIB, images=800_000, store_bytes=500 * GIB, disk_rate=40e6, cache_free=0,
                        memory_free=8 * GIB),
            ),
        ),
        "data.wait", ("The disk is the limit",),
    ),
    "waits on the device path": (
        seen(HUNGRY, run=replace(RUN, path=plan.DEVICE, workers=8), feed=FEED), "data.wait",
        ("16 processors are the limit",),
    ),
    "few threads copy on the device path": (
        seen(HUNGRY, run=replace(RUN, path=plan.DEVICE), feed=FEED), "data.wait", ("--workers 8 instead of 4",),
    ),
    "waits on MIG": (seen(replace(HUNGRY, gpu=None, untold=True)), "data.wait", ("The training waits 70 %",)),
    "idle, and nothing is waited for": (
        seen(replace(WELL, gpu=30)), "step.short", ("30 %", "lab bench --switches"),
    ),
    "another process, seen": (
        seen(others=(Other(0, "python3", 4242, 3277.0),)), "gpu.shared",
        ("python3 (pid 4242) with 3.2 GiB is on GPU 0 too, and takes",),
    ),
    "others, not seen": (
        seen(others=(Other(0, None, None, None), Other(0, None, None, 1024.0))), "gpu.shared",
        ("Another process with 1.0 GiB is on GPU 0 too, and 1 more", "nvidia-smi"),
    ),
    "memory nearly full": (
        seen(card=replace(CARD, memory=23.5 * 1024)), "memory.full", ("23.5 of 24.0 GiB", "--batch 32", "--batch auto"),
    ),
    "memory mostly empty": (
        seen(card=replace(CARD, memory=4 * 1024), run=replace(RUN, batch=16)), "memory.empty",
        ("Only 4.0 of 24.0 GiB", "--batch 64 instead of 16", "the learning stays the same"),
    ),
    "mostly empty past the nominal batch": (
        seen(replace(WELL, gpu=60), card=replace(CARD, memory=11 * 1024, total=80 * 1024)), "memory.empty",
        ("--batch 256 instead of 64", "compare the curves"),
    ),
    "a slice mostly empty": (
        seen(
            replace(WELL, gpu=None, untold=True),
            card=Gpu(0, "A100", mig=True, slices=(Slice("MIG 1g.10gb", 2048, 10240),)), run=replace(RUN, batch=8),
        ),
        "memory.empty", ("Only 2.0 of 10.0 GiB", "--batch 32"),
    ),
    "PCIe below its generation": (
        seen(card=replace(CARD, pcie_gen=1)), "pcie.slow", ("generation 1 of 4, although it is busy",),
    ),
    "PCIe with half its lanes": (seen(card=replace(CARD, pcie_width=8)), "pcie.slow", ("8 of 16 lanes",)),
    "between two epochs": (seen(replace(WELL, rate=None, wait=None), between=True), "between", ("validates",)),
    "not in its steps yet": (seen(replace(WELL, rate=None, wait=None)), "begins", ("it begins",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_said(case: str) -> None:
    one, rule, words = CASES[case]
    found = said(one)
    assert rule in found, found
    for word in words:
        assert word in found[rule], found[rule]
    assert not any(sentence.endswith(".") or "None" in sentence for sentence in found.values())


QUIET: dict[str, tuple[Seen, str]] = {
    "PCIe rests while the card does": (seen(card=replace(CARD, pcie_gen=1, util=10)), "pcie.slow"),
    "a GPU that is idle and lacks nothing is not starved": (seen(replace(WELL, gpu=30)), "data.wait"),
    "a busy GPU may wait": (seen(replace(WELL, wait=30)), "data.wait"),
    "at its power limit and yet near its clock": (seen(card=replace(CARD, held=(POWER,), clock=3000)), "clock.power"),
    "a larger batch does not feed a hungry GPU": (
        seen(HUNGRY, card=replace(CARD, memory=4 * 1024), run=replace(RUN, batch=16)), "memory.empty",
    ),
    "a busy GPU needs no batch beyond the nominal one": (
        seen(card=replace(CARD, memory=11 * 1024, total=80 * 1024)), "memory.empty",
    ),
    "memory of a run that has ended": (
        seen(card=replace(CARD, memory=100), run=replace(RUN, state=ENDED, status="done")), "memory.empty",
    ),
    "what the driver does not tell": (seen(card=Gpu(0)), "memory.empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", QUIET)
def test_what_is_not_said(case: str) -> None:
    one, rule = QUIET[case]
    assert rule not in said(one)


def test_levels_and_order() -> None:
    one = seen(HUNGRY, card=replace(CARD, held=(HEAT,), pcie_gen=1, util=80), others=(Other(0),))
    found = advise(one)
    assert [item.id for item in found] == ["clock.heat", "data.wait", "gpu.shared", "pcie.slow"]
    assert {item.level for item in found} == {ADVICE}
    assert advise(seen(card=Gpu(0, lost=True)))[0].level == FAULT
    assert advise(seen())[0].level == NOTE


def test_the_prescription_is_tunes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    prescribe = tune.prescribe
    monkeypatch.setattr(tune, "prescribe", lambda *given: asked.append(given) or prescribe(*given))
    advise(seen(HUNGRY, feed=FEED))
    (host, costs, shipped), = asked  # fmt: skip
    assert host == HOST
    assert shipped == tune.Candidate(plan.PLAIN, 4, 64, ())
    # what was seen comes out again: four workers that make 200 images a second, a network that could take 667
    now = tune.predict(shipped, host, costs)
    assert now.rate == pytest.approx(200)
    assert now.stages["network"] == pytest.approx(200 / 0.3)


def test_on_processors_what_was_seen_comes_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tune.Prescription] = []
    prescribe = tune.prescribe
    monkeypatch.setattr(tune, "prescribe", lambda *given: found.append(prescribe(*given)) or found[-1])
    run = replace(RUN, device="cpu", batch=16, workers=0)
    load = replace(HUNGRY, gpu=None, gpus=0, wait=40, rate=10)
    feed = Feed(replace(FACTS, device="cpu"), replace(HOST, gpus=0, cores=4))
    sentence = said(seen(load, card=None, run=run, feed=feed))["data.wait"]
    assert found[0].shipped.rate == pytest.approx(10)
    assert "--with store: about 15 images/s instead of 10" in sentence
    assert "--workers" not in sentence
    full = Feed(feed.facts, replace(feed.host, memory_free=GIB, cache_free=GIB))
    assert "a GPU lifts it" in said(seen(load, card=None, run=run, feed=full))["data.wait"]


def test_several_gpus_share_a_batch() -> None:
    run = replace(RUN, device="0,1", batch=8)
    one = seen(card=replace(CARD, memory=3 * 1024), run=run)
    two = replace(one, used=(*one.used, replace(CARD, number=1, memory=5 * 1024)))
    assert larger_batch(two) in (64, 128)
    assert larger_batch(replace(two, used=(*one.used, replace(CARD, number=1, memory=20 * 1024)))) is None


def test_who_waits() -> None:
    assert waits(seen(HUNGRY))
    assert not waits(seen(HUNGRY, run=replace(RUN, state=ENDED)))
    assert not waits(seen(replace(HUNGRY, wait=None)))
