"""What the driver says of the GPUs, through its library NVML.

A process of its own asks (`python -m lab.nvml`): a stuck driver hangs that one, never the training nor `lab watch`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[1]
ASKER = (sys.executable, "-m", "lab.nvml")
LIMIT = 5.0  # seconds for an answer
MEBIBYTE = 1 << 20
LOST = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED
NOTHING = (9, 12)  # NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND: there is no GPU here
# nvmlClocksEventReason…: what holds the clocks down; the other bits are idleness and settings that somebody made
POWER, HEAT, BRAKE, SLOWDOWN = "power", "heat", "brake", "slowdown"
HELD = {0x04: POWER, 0x08: SLOWDOWN, 0x20: HEAT, 0x40: HEAT, 0x80: BRAKE}
OK, ABSENT, FAILED = "ok", "absent", "failed"


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU: its number as the driver counts it (that of the host), MiB or None."""

    pid: int
    memory: float | None = None


@dataclass(frozen=True)
class Slice:
    """A MIG instance: its profile, such as `MIG 1g.10gb`; MiB."""

    name: str
    memory: float | None = None
    total: float | None = None
    uuid: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU now: per cent, MiB, W, MHz, degrees, MB/s. None where the driver does not tell ([N/A])."""

    number: int
    name: str = ""
    lost: bool = False
    util: float | None = None
    memory: float | None = None
    total: float | None = None
    power: float | None = None
    power_limit: float | None = None
    power_most: float | None = None  # the highest limit that may be set
    clock: float | None = None
    clock_most: float | None = None
    temperature: float | None = None
    pcie_in: float | None = None  # into the GPU
    pcie_out: float | None = None
    pcie_gen: int | None = None
    pcie_gen_most: int | None = None  # of card and slot together
    pcie_width: int | None = None
    pcie_width_most: int | None = None
    held: tuple[str, ...] | None = None  # POWER, HEAT, BRAKE, SLOWDOWN
    processes: tuple[Process, ...] | None = None
    mig: bool = False
    slices: tuple[Slice, ...] = ()
    uuid: str = ""


@dataclass(frozen=True)
class Answer:
    """`state`: OK, ABSENT (no driver or no GPU here) or FAILED, `why` in the driver's words.

    `lost`: it failed because a GPU fell off the bus.
    """

    state: str
    why: str = ""
    gpus: tuple[Gpu, ...] = ()
    lost: bool = False


class _Lost(Exception):
    """The GPU that was asked is not there any more."""


def read(nvml: Any, traffic: bool = True) -> Answer:
    """Ask `nvml`, the module pynvml, for every GPU. `traffic` over PCIe takes 40 ms a GPU: so long it is counted."""
    try:
        nvml.nvmlInit()
    except Exception as error:
        return _refused(error)
    try:
        gpus = tuple(_gpu(nvml, number, traffic) for number in range(nvml.nvmlDeviceGetCount()))
    except Exception as error:
        return _refused(error)
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()
    return Answer(OK if gpus else ABSENT, "" if gpus else "the driver lists no GPU", gpus)


def _refused(error: Exception) -> Answer:
    code = getattr(error, "value", None)
    return Answer(ABSENT if code in NOTHING else FAILED, " ".join(str(error).split()), lost=code in LOST)


def _ask(call: Callable[..., Any], *words: Any) -> Any:
    """What NVML answers; None for what this GPU, this driver or this user does not get. Raises _Lost."""
    try:
        return call(*words)
    except Exception as error:  # pynvml raises more than its own class, for versions that do not go together
        if getattr(error, "value", None) in LOST:
            raise _Lost from error
        return None


def _gpu(nvml: Any, number: int, traffic: bool) -> Gpu:
    name = ""
    try:
        handle = _ask(nvml.nvmlDeviceGetHandleByIndex, number)
        if handle is None:
            return Gpu(number)
        name = _text(_ask(nvml.nvmlDeviceGetName, handle))
        return Gpu(number, name, **_facts(nvml, handle), **(_traffic(nvml, handle) if traffic else {}))
    except _Lost:
        return Gpu(number, name, lost=True)


def _text(said: Any) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said or "")


def _scaled(said: Any, unit: float) -> float | None:
    return None if said is None else said / unit


def _facts(nvml: Any, handle: Any) -> dict[str, Any]:
    busy = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    limits = _ask(nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    mode = _ask(nvml.nvmlDeviceGetMigMode, handle)
    split = bool(mode and mode[0])
    return {
        "util": None if busy is None else float(busy.gpu),
        "memory": None if memory is None else memory.used / MEBIBYTE,
        "total": None if memory is None else memory.total / MEBIBYTE,
        "power": _scaled(_ask(nvml.nvmlDeviceGetPowerUsage, handle), 1000),
        "power_limit": _scaled(_ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1000),
        "power_most": _scaled(limits[1] if limits else None, 1000),
        "clock": _ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "clock_most": _ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        "temperature": _ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "pcie_gen": _ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        "pcie_gen_most": _ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        "pcie_width": _ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "pcie_width_most": _ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        "held": _held(nvml, handle),
        "processes": _processes(nvml, handle),
        "mig": split,
        "slices": _slices(nvml, handle) if split else (),
        "uuid": _text(_ask(nvml.nvmlDeviceGetUUID, handle)),
    }


def _traffic(nvml: Any, handle: Any) -> dict[str, Any]:
    inward = _ask(nvml.nvmlDeviceGetPcieThroughput, handle, nvml.NVML_PCIE_UTIL_RX_BYTES)
    outward = _ask(nvml.nvmlDeviceGetPcieThroughput, handle, nvml.NVML_PCIE_UTIL_TX_BYTES)
    return {"pcie_in": _scaled(inward, 1000), "pcie_out": _scaled(outward, 1000)}


def _held(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    """Drivers before 535 know the question by its former name."""
    bits = _ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if bits is None:
        bits = _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return None if bits is None else tuple(dict.fromkeys(word for bit, word in HELD.items() if bits & bit))


def _processes(nvml: Any, handle: Any) -> tuple[Process, ...] | None:
    found = _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return None if found is None else tuple(Process(one.pid, _scaled(one.usedGpuMemory, MEBIBYTE)) for one in found)


def _slices(nvml: Any, handle: Any) -> tuple[Slice, ...]:
    """The instances that this container may see."""
    found = []
    for index in range(_ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        one = _ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if one is None:
            continue
        name, memory = _text(_ask(nvml.nvmlDeviceGetName, one)), _ask(nvml.nvmlDeviceGetMemoryInfo, one)
        used, total = (None, None) if memory is None else (memory.used / MEBIBYTE, memory.total / MEBIBYTE)
        uuid = _text(_ask(nvml.nvmlDeviceGetUUID, one))
        found.append(Slice(name[name.find("MIG ") :] if "MIG " in name else name, used, total, uuid))
    return tuple(found)


# The process that asks


def serve() -> None:
    """Answer each line of standard input with one of JSON; the line `traffic` also asks for that."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        pynvml = None
    for line in sys.stdin:
        said = (
            Answer(ABSENT, "nvidia-ml-py is not in this image") if pynvml is None else read(pynvml, "traffic" in line)
        )
        print(json.dumps(asdict(said)), flush=True)


def parse(line: str) -> Answer:
    """What `serve` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    said = json.loads(line)
    gpus = []
    for one in said["gpus"]:
        held, processes = one["held"], one["processes"]
        one |= {
            "held": None if held is None else tuple(held),
            "processes": None if processes is None else tuple(Process(**process) for process in processes),
            "slices": tuple(Slice(**part) for part in one["slices"]),
        }
        gpus.append(Gpu(**one))
    return Answer(said["state"], said["why"], tuple(gpus), said["lost"])


@dataclass
class Asker:
    """The process that asks NVML, started at the first question. One that hangs is given up, and left to the kernel."""

    command: Sequence[str] = ASKER
    _process: subprocess.Popen[bytes] | None = None
    _unread: bytes = field(default=b"", repr=False)

    def ask(self, traffic: bool = False, limit: float = LIMIT) -> Answer | None:
        """None when there is no answer in time, or none that can be understood."""
        if self._process is None:
            try:
                self._process = subprocess.Popen(
                    self.command, cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            except OSError:
                return None
            self._unread = b""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(b"traffic\n" if traffic else b"\n")
            self._process.stdin.flush()
            return parse(self._line(time.monotonic() + limit))
        except (OSError, TimeoutError, ValueError, TypeError, KeyError):
            self.close()
            return None

    def _line(self, until: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            got = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not got:
                raise TimeoutError
            self._unread += got
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """End the process, without waiting for one that cannot be ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
