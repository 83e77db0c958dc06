"""A described NVML: a module object with the functions that `lab.nvml` calls, and GPUs of our choice behind them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB = 1 << 30
NOT_SUPPORTED, LOST = 3, 15


class NVMLError(Exception):
    """As pynvml's: `value` is NVML's number for it."""

    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 12: "NVML Shared Library Not Found", 15: "GPU is lost"}.get(value, "?"))
        self.value = value


def gpu(**changed: Any) -> dict[str, Any]:
    """A card at work; a value that is an int below zero is the error of that number."""
    said: dict[str, Any] = {
        "Name": "NVIDIA GeForce RTX 4090",
        "UtilizationRates": SimpleNamespace(gpu=34, memory=20),
        "MemoryInfo": SimpleNamespace(used=5 * GIB, total=24 * GIB),
        "PowerUsage": 120_000, "EnforcedPowerLimit": 450_000, "PowerManagementLimitConstraints": [100_000, 600_000],
        "ClockInfo": 2520, "MaxClockInfo": 3105, "Temperature": 61,
        "PcieThroughput": {0: 90_000, 1: 1_200_000},
        "CurrPcieLinkGeneration": 4, "MaxPcieLinkGeneration": 4, "CurrPcieLinkWidth": 16, "MaxPcieLinkWidth": 16,
        "CurrentClocksEventReasons": 0,
        "ComputeRunningProcesses": [SimpleNamespace(pid=4242, usedGpuMemory=3 * GIB)],
        "MigMode": -NOT_SUPPORTED,
    }  # fmt: skip
    return {**said, **changed}


class Nvml:
    """The module. `init` is the number of the error of nvmlInit, 0 for none."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    NVMLError = NVMLError

    def __init__(self, *gpus: dict[str, Any], init: int = 0) -> None:
        self.gpus, self.init, self.open = gpus, init, 0

    def nvmlInit(self) -> None:
        if self.init:
            raise NVMLError(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> dict[str, Any]:
        if self.gpus[number].get("lost"):
            raise NVMLError(LOST)
        return self.gpus[number]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return 7 if "slices" in handle else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> dict[str, Any]:
        slices: list[dict[str, Any]] = handle["slices"]
        if index >= len(slices):
            raise NVMLError(6)
        return slices[index]

    def __getattr__(self, name: str) -> Any:
        what = name.removeprefix("nvmlDeviceGet")

        def ask(handle: dict[str, Any], *words: Any) -> Any:
            value = handle.get(what, -NOT_SUPPORTED)
            if isinstance(value, int) and value < 0:
                raise NVMLError(-value)
            return value[words[0]] if what == "PcieThroughput" else value

        if what == name:
            raise AttributeError(name)
        return ask
