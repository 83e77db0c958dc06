"""A checkpoint as the engines save it, as far as `lab` reads one; made without torch, whose names alone are in it."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest.mock import patch

NAMES = {
    "yolov5": {"models.yolo": ("DetectionModel", "Detect"), "models.common": ("Conv",)},
    "yolov5u": {"ultralytics.nn.tasks": ("DetectionModel",), "ultralytics.nn.modules": ("Conv", "Detect")},
}
TORCH = {
    "torch": ("HalfStorage", "FloatStorage"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
}


class _Call:
    """Pickled as a call of something of torch's."""

    def __init__(self, call: Any, *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.given


class _Storage:
    """Numbers that lie in a member of the archive."""

    def __init__(self, kind: Any, key: str, count: int) -> None:
        self.about = ("storage", kind, key, "cpu", count)


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        return thing.about if isinstance(thing, _Storage) else None


def write(file: Path, parameters: int, stride: int, engine: str = "yolov5", live: bool = False) -> Path:
    """A network with so many parameters, in two layers, and a largest stride.

    `live` of a run that goes on: the network, its average, and tensors of the optimiser.
    """
    modules, names = {}, {}
    for module, inside in {**TORCH, **NAMES[engine]}.items():
        for end in range(module.count(".") + 1):  # its packages as well
            package = ".".join(module.split(".")[: end + 1])
            modules.setdefault(package, types.ModuleType(package))
        for name in inside:
            names[name] = type(name, (), {"__module__": module})
            setattr(modules[module], name, names[name])
    members: dict[str, bytes] = {}

    def tensor(kind: str, *size: int) -> _Call:
        key = str(len(members))
        members[key] = b""
        storage = _Storage(names[kind], key, size[0])
        return _Call(names["_rebuild_tensor_v2"], storage, 0, size, (1,) * len(size), False, OrderedDict())

    def made(name: str, parts: dict[str, Any], *sizes: tuple[int, ...], **more: Any) -> Any:
        one = names[name]()
        own = [_Call(names["_rebuild_parameter"], tensor("HalfStorage", *size), True, OrderedDict()) for size in sizes]
        one.__dict__ |= {"_modules": OrderedDict(parts), "_parameters": dict(enumerate([*own, None])), **more}
        return one

    def network() -> Any:
        strides = [side for side in (8, 16, 32, 64, 128) if side <= stride]
        shared = tensor("FloatStorage", len(strides))
        members[shared.given[0].about[2]] = struct.pack(f"<{len(strides)}f", *strides)
        whole = parameters // 8
        layers = {"0": made("Conv", {}, (whole, 2, 4)), "1": made("Detect", {}, (parameters % 8,), stride=shared)}
        return made("DetectionModel", {"model": made("Conv", layers)}, stride=shared, yaml={"nc": 80})

    held = {"epoch": 3 if live else -1, "model": network(), "ema": network() if live else None, "optimizer": None}
    if live:
        held["optimizer"] = {"state": {0: {"momentum_buffer": tensor("FloatStorage", parameters)}}}
    content = io.BytesIO()
    with patch.dict(sys.modules, modules):
        _Pickler(content, 2).dump(held)
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{file.stem}/data.pkl", content.getvalue())
        for key, numbers in members.items():
            archive.writestr(f"{file.stem}/data/{key}", numbers)
    return file
