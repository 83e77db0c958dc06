"""What NVML says, on described drivers, and the process that asks it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from made_nvml import GIB, LOST, Nvml, gpu

from lab import devices, nvml, telemetry
from lab.nvml import ABSENT, BRAKE, FAILED, HEAT, OK, POWER, SLOWDOWN, Answer, Asker, Gpu, Process


def only(module: Nvml) -> Gpu:
    found = nvml.read(module)
    assert found.state == OK
    assert module.open == 0
    return found.gpus[0]


def test_a_card_at_work() -> None:
    one = only(Nvml(gpu()))
    assert one == Gpu(
        0, "NVIDIA GeForce RTX 4090", util=34, memory=5 * 1024, total=24 * 1024, power=120, power_limit=450,
        power_most=600, clock=2520, clock_most=3105, temperature=61, pcie_in=1200, pcie_out=90, pcie_gen=4,
        pcie_gen_most=4, pcie_width=16, pcie_width_most=16, held=(), processes=(Process(4242, 3 * 1024),),
    )  # fmt: skip
    assert nvml.read(Nvml(gpu()), traffic=False).gpus[0].pcie_in is None


def test_what_is_not_supported_is_unknown() -> None:
    bare = only(Nvml({"Name": b"NVIDIA A100"}))
    assert bare == Gpu(0, "NVIDIA A100")
    vgpu = only(Nvml(gpu(PowerUsage=-3, ComputeRunningProcesses=[SimpleNamespace(pid=7, usedGpuMemory=None)])))
    assert (vgpu.power, vgpu.processes) == (None, (Process(7, None),))


def test_slices_of_a_card_that_is_split() -> None:
    part = {"Name": "NVIDIA A100 MIG 1g.10gb", "MemoryInfo": SimpleNamespace(used=GIB, total=10 * GIB)}
    one = only(Nvml(gpu(MigMode=[1, 1], UtilizationRates=-3, MemoryInfo=-4, slices=[part, {"Name": "MIG 2g.20gb"}])))
    assert (one.mig, one.util, one.memory) == (True, None, None)
    assert [(each.name, each.memory, each.total) for each in one.slices] == [
        ("MIG 1g.10gb", 1024, 10240), ("MIG 2g.20gb", None, None),
    ]  # fmt: skip
    assert telemetry.held(one) == 1024


@pytest.mark.parametrize("lost", [{"lost": True}, gpu(UtilizationRates=-LOST)], ids=["at once", "in between"])
def test_a_lost_card_is_told_and_the_others_too(lost: dict[str, Any]) -> None:
    first, second = nvml.read(Nvml(lost, gpu())).gpus
    assert (first.number, first.lost, first.util) == (0, True, None)
    assert (second.number, second.lost, second.util) == (1, False, 34)


@pytest.mark.parametrize(
    ("bits", "held"),
    [(0x1, ()), (0x4, (POWER,)), (0x20, (HEAT,)), (0x60, (HEAT,)), (0x88, (SLOWDOWN, BRAKE)), (0x2 | 0x10 | 0x100, ())],
)
def test_what_holds_the_clocks_down(bits: int, held: tuple[str, ...]) -> None:
    assert only(Nvml(gpu(CurrentClocksEventReasons=bits))).held == held
    assert only(Nvml(gpu(CurrentClocksEventReasons=-13, CurrentClocksThrottleReasons=bits))).held == held


@pytest.mark.parametrize(
    ("module", "state", "lost"),
    [
        (Nvml(init=12), ABSENT, False),
        (Nvml(init=9), ABSENT, False),
        (Nvml(), ABSENT, False),
        (Nvml(init=LOST), FAILED, True),
        (Nvml(init=999), FAILED, False),
    ],
)
def test_a_driver_that_tells_nothing(module: Nvml, state: str, lost: bool) -> None:
    found = nvml.read(module)
    assert (found.state, found.lost, found.gpus) == (state, lost, ())
    assert found.why


def test_an_answer_survives_its_way() -> None:
    part = {"Name": "MIG 1g.10gb"}
    said = nvml.read(Nvml(gpu(), gpu(MigMode=[1, 1], slices=[part]), {"lost": True}))
    assert nvml.parse(json.dumps(asdict(said))) == said


def asker(program: str) -> Asker:
    return Asker((sys.executable, "-u", "-c", program))


def test_the_process_that_asks() -> None:
    answer = json.dumps(asdict(nvml.read(Nvml(gpu()))))
    one = asker(f"import sys\nfor line in sys.stdin: print({answer!r})")
    first, second = one.ask(), one.ask(traffic=True)
    assert first is not None
    assert first == second
    assert first.gpus[0].util == 34
    one.close()
    assert one.ask() == first  # it is started again
    one.close()


@pytest.mark.parametrize(
    "program", ["import time; time.sleep(600)", "print('no JSON')", "print('{}')", "raise SystemExit"]
)
def test_a_driver_that_hangs_or_babbles(program: str) -> None:
    one = asker(program)
    assert one.ask(limit=0.5) is None
    assert one.ask(limit=0.2) is None  # and once more


def test_the_module_itself_answers() -> None:
    one = Asker()
    found = one.ask(limit=20)
    one.close()
    assert found is not None
    assert found.state in (OK, ABSENT, FAILED)


def test_where_nvml_tells_of_no_gpu_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"index": "1", "utilization.gpu": "50", "memory.used": "", "power.draw": "70.5"}
    monkeypatch.setattr(devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(Asker, "ask", lambda *_: Answer(ABSENT, "nvidia-ml-py is not in this image"))
    monkeypatch.setattr(telemetry, "ask_gpus", lambda *_: [row])
    assert telemetry.Cards().look() == (Gpu(1, util=50, power=70.5),)


def test_a_card_that_falls_silent_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [nvml.read(Nvml(gpu())), None]
    monkeypatch.setattr(devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(Asker, "ask", lambda *_: answers.pop(0))
    cards = telemetry.Cards()
    assert cards.look()[0].util == 34
    assert cards.look() == (Gpu(0, "NVIDIA GeForce RTX 4090"),)
    assert cards.why == "the driver does not answer"
