"""Where the fast path enters a child script: the loader of images and the switches of the step."""

from __future__ import annotations

import importlib
from typing import Any

from lab.fast import switches

PLAIN, DEVICE = "plain", "device"


def install(request: dict[str, Any], engine: str) -> None:
    """Replace what `request["speed"]` says (a `lab.fast.plan.Speed` as a dictionary), before the engine trains."""
    speed: dict[str, Any] = request.get("speed") or {}
    if speed.get("data", PLAIN) != PLAIN:
        importlib.import_module(f"lab.fast.loader_{engine}").install(speed)
        if speed["data"] == DEVICE and engine == "yolov5":  # the loader of yolov5u does this itself
            importlib.import_module("lab.fast.device_yolov5").install(speed)
    switches.apply(speed.get("switches", ()), engine, request)
    period = int(speed.get("val_period", 1))
    if period > 1:
        importlib.import_module(f"lab.fast.step_{engine}").validate_each(period)
