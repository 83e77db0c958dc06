"""Where the fast path enters a child script: the loader of images and the switches of the step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lab.fast import switches

PLAIN, DEVICE = "plain", "device"
Wrap = Callable[[Any, Callable[[], Any]], Any]


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


def around_training_loader(engine: str, wrap: Wrap) -> None:
    """Have every training of this process iterate over `wrap(loader, device)` instead of its loader.

    `device()` is the training's, once the engine has chosen it. Call it when all else is installed.
    """
    {"yolov5": _around_yolov5, "yolov5u": _around_yolov5u}[engine](wrap)


def _around_yolov5(wrap: Wrap) -> None:
    import utils.dataloaders  # noqa: PLC0415  upstream's package
    import utils.torch_utils  # noqa: PLC0415

    create, select = utils.dataloaders.create_dataloader, utils.torch_utils.select_device
    chosen: list[Any] = []

    def select_device(*words: Any, **named: Any) -> Any:
        chosen.append(select(*words, **named))
        return chosen[-1]

    def create_dataloader(*words: Any, **named: Any) -> Any:
        loader, dataset = create(*words, **named)
        return (wrap(loader, lambda: chosen[-1]) if named.get("augment") else loader), dataset

    utils.torch_utils.select_device = select_device
    utils.dataloaders.create_dataloader = create_dataloader


def _around_yolov5u(wrap: Wrap) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: PLC0415

    get = DetectionTrainer.get_dataloader

    def get_dataloader(self: Any, path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = get(self, path, batch_size, rank, mode)
        return wrap(loader, lambda: self.device) if mode == "train" else loader

    DetectionTrainer.get_dataloader = get_dataloader
