"""Checkpoints: which file an option means, and which engine wrote it."""

from __future__ import annotations

import functools
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import limits, pickles
from lab.errors import LabError
from lab.project import Project

TRUST = "LAB_TRUST_CHECKPOINTS"
OFFICIAL = re.compile(r"(yolov5[nsmlx]6?)u?\.pt")


def locate(name: str, project: Project, engine: str) -> Path:
    """The checkpoint that `--weights name` means. Raises LabError when it is not here.

    Asking first matters: YOLOv5 itself would look on the network for minutes. For yolov5u the published name
    yolov5s.pt means yolov5su.pt, as in the ultralytics package.
    """
    official = OFFICIAL.fullmatch(name)
    if official and engine == "yolov5u":
        name = f"{official[1]}u.pt"
    found = project.find(name)
    if found is not None:
        return found
    mend = f"train from scratch with --weights '' --cfg {official[1]}.yaml" if official else recent(project)
    raise LabError(
        f"the checkpoint {name} does not exist and nothing is downloaded here: put the file there, or {mend}"
    )


def newest(name: str, project: Project) -> Path | None:
    """What `best` or `last` means, where no file has that name: best.pt or last.pt of the run that wrote it last."""
    if name not in ("best", "last") or project.find(name) is not None:
        return None
    written = [(file.stat().st_mtime, file) for file in project.runs.glob(f"train/*/weights/{name}.pt")]
    return max(written)[1] if written else None


def require_checkpoint(file: Path, name: str) -> None:
    """Raises LabError when a .pt file is none, or would run what no checkpoint of the engines needs.

    torch writes a zip archive, or, long ago, a bare pickle.
    """
    if file.is_dir():
        raise LabError(f"--weights {name} is a directory: name the checkpoint in it, such as {name}/best.pt")
    if file.suffix == ".pt":
        with file.open("rb") as opened:
            begin = opened.read(2)
        if begin != b"PK" and begin[:1] != b"\x80":
            raise LabError(
                f"{name} is no checkpoint: it may be cut short, or a page saved in its place; use another one"
            )
        if not os.environ.get(TRUST):
            _require_harmless(file, name)


def _require_harmless(file: Path, name: str) -> None:
    try:
        strange = pickles.strangers(file)
    except ValueError as error:
        raise LabError(f"{name} is no whole checkpoint ({error}): use another one") from error
    if strange:
        some = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise LabError(
            f"{name} would call {some} when it is loaded, which no checkpoint of the engines needs, so it may be an "
            f"attack: use another one; if it is your own, with classes of yours, {TRUST}=1 before the command loads it"
        )


def at_hand(project: Project, engine: str) -> Path | None:
    """The checkpoint of lab.yaml's model, when its file lies in the current directory or the project's root."""
    return project.find(f"{project.model}{'u' if engine == 'yolov5u' else ''}.pt")


def recent(project: Project) -> str:
    """Half a sentence that names the newest checkpoint of this project."""
    checkpoints = sorted(project.runs.glob("train/*/weights/best.pt"), key=lambda file: file.stat().st_mtime)
    if not checkpoints:
        return "train one with `lab train`"
    return f"use the newest one here, --weights {project.show(checkpoints[-1])}"


def engine_of(checkpoint: Path) -> str | None:
    """Which engine wrote a .pt file, from the class names in its pickle (nothing is unpickled); None when unsure."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            pickle = archive.read(name)
    except (OSError, StopIteration, zipfile.BadZipFile):
        return None
    if b"cmodels.yolo\n" in pickle:
        return "yolov5"
    return "yolov5u" if b"cultralytics.nn." in pickle else None


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint says of its network: the number of parameters, and the largest stride in pixels."""

    parameters: int
    stride: int

    @property
    def model(self) -> str:
        """The published model that is nearest in size: yolov5s, or yolov5s6 with a P6 head."""
        p6 = self.stride >= 64
        millions = self.parameters / 1e6 / (limits.P6 if p6 else 1)
        near = min(limits.PARAMETERS, key=lambda letter: abs(math.log(limits.PARAMETERS[letter] / millions)))
        return f"yolov5{near}{'6' if p6 else ''}"


def architecture(checkpoint: Path) -> Architecture | None:
    """The network in a .pt file of either engine, read without running anything of it; None when it cannot be told."""
    try:
        status = checkpoint.stat()
    except OSError:
        return None
    return _architecture(checkpoint, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _architecture(checkpoint: Path, _changed: int, _size: int) -> Architecture | None:
    try:
        held, storage = pickles.described(checkpoint)
        model = held.get("ema") or held["model"]
        found = Architecture(_parameters(model), int(max(_numbers(model.state["stride"], storage))))
    except Exception:  # a damaged or foreign file fails in its own ways, and what loads it afterwards says so
        return None
    sensible = found.parameters > 0 and found.stride in (8, 16, 32, 64, 128)
    return found if sensible else None


def _parameters(module: Any) -> int:
    """Parameters of a network and all its parts, each once."""
    number = 0
    seen: set[int] = set()
    left = [module]
    while left:
        one = left.pop()
        if not isinstance(one, pickles.Thing) or id(one) in seen or not isinstance(one.state, dict):
            continue
        seen.add(id(one))
        left += _items(one.state["_modules"]).values()
        for parameter in _items(one.state["_parameters"]).values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                number += math.prod(parameter.given[0].given[2])  # of torch._utils._rebuild_parameter(tensor, ...)
    return number


def _items(held: Any) -> dict[Any, Any]:
    items: dict[Any, Any] = held if isinstance(held, dict) else held.items
    return items


def _numbers(tensor: Any, storage: Callable[[str, int], bytes]) -> tuple[float, ...]:
    """The few numbers of a small tensor, from torch._utils._rebuild_tensor_v2(storage, offset, size, ...)."""
    (_, kind, key, *_), offset, (count, *_) = tensor.given[0].given, tensor.given[1], tensor.given[2]
    letter, width = {"FloatStorage": ("f", 4), "HalfStorage": ("e", 2), "DoubleStorage": ("d", 8)}[kind.said[1]]
    if not 0 < offset + count <= 16:
        raise ValueError("no strides")
    return struct.unpack_from(f"<{count}{letter}", storage(key, width * (offset + count)), width * offset)


def stride_of(name: str, project: Project, engine: str) -> int:
    """The largest stride of the network that --weights or --cfg `name` means, "" for lab.yaml's model.

    Read from a checkpoint that is here; else by the published name, and 32 for any other.
    """
    if OFFICIAL.fullmatch(name) and engine == "yolov5u":
        name = f"{Path(name).stem.removesuffix('u')}u.pt"
    file = project.find(name) if name else at_hand(project, engine)
    if file is not None and file.suffix == ".pt" and (found := architecture(file)) is not None:
        return found.stride
    return 64 if re.fullmatch(r"yolov5[nsmlx](6|-p6)u?", Path(name or project.model).stem) else 32


def parameters_of(name: str, project: Project) -> int:
    """Parameters of the network that --weights or --cfg `name` means; by its name where no checkpoint tells."""
    file = project.find(name) if name.endswith(".pt") else None
    found = architecture(file) if file is not None else None
    return found.parameters if found else limits.parameters_of(Path(name).stem)
