"""A result as benchmarks keep it: what was measured, when, and on what."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import cv2


def write(file: Path, figures: Mapping[str, object]) -> None:
    """Write `figures`, below the date, the machine and the versions that decode pictures, and print it all."""
    said = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {processor()}",
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **figures,
    }
    text = json.dumps(said, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
    print(text)


def processor() -> str:
    """The processor's name, as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
