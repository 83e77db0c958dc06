"""Where the project is and what its `lab.yaml` says."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError

CODE = Path(__file__).resolve().parents[1]
ENGINES = ("yolov5", "yolov5u")
LOGGERS = ("none", "mlflow", "wandb", "clearml")
MODEL = re.compile(r"yolov5[nsmlx]6?")


@dataclass(frozen=True)
class Project:
    """`lab.yaml` of the project at `root`. `image_size` is in pixels; `data` is relative to `root`.

    `pipeline` holds options of `lab train` for `lab pipeline`; `map50` is the least mAP50 that `lab gate` lets pass.
    """

    root: Path
    engine: str = "yolov5"
    model: str = "yolov5s"
    image_size: int = 640
    data: str = "data/demo/data.yaml"
    logger: str = "none"
    scratch: Path | None = None  # in the place of the cache, for images that nobody shall keep
    pipeline: str = ""
    map50: float | None = None

    @property
    def runs(self) -> Path:
        """Where runs go, unless --project says otherwise."""
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        """Where decoded images are kept: CACHE_DIR, a fast local disk, else below `runs`."""
        if self.scratch is not None:
            return self.scratch
        place = os.environ.get("CACHE_DIR", "")
        return Path(place) if place else self.runs / ".lab" / "cache"

    @property
    def wheelhouse(self) -> Path:
        """Where wheels and archives for hosts without a network lie."""
        return self.root / "wheelhouse"

    @property
    def upstream(self) -> Path:
        """Where `lab fetch` puts YOLOv5's own source."""
        return CODE / "yolov5"

    def find(self, name: str) -> Path | None:
        """A file or directory named on the command line: as the shell sees it, else from the project's root, else a
        checkpoint that was brought along in wheelhouse/."""
        for base in (Path.cwd(), self.root, self.wheelhouse / "weights"):
            path = base / Path(name).expanduser()
            if path.exists():
                return Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow links that the user made
        return None

    def show(self, path: Path) -> str:
        """`path` as a person would type it: from the project's root where it lies inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def open_project() -> Project:
    """The project around the current directory, else the one that holds this code.

    Raises LabError when neither has a `lab.yaml`, or when the file says something it cannot mean.
    """
    for directory in _candidates():
        file = directory / "lab.yaml"
        if file.is_file():
            return _read(file)
    raise LabError(f"there is no lab.yaml here or in {CODE.parent}: run this inside the project")


def _candidates() -> Iterator[Path]:
    here = Path.cwd()
    yield here
    yield from here.parents
    yield CODE.parent


KEYS = ("engine", "model", "image_size", "data", "logger", "pipeline", "map50")


def _read(file: Path) -> Project:
    try:
        said: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise LabError(f"{file} must hold `key: value` lines, such as `engine: yolov5`")
    strange = next((str(key) for key in said if str(key) not in KEYS), "")
    if strange:
        near = difflib.get_close_matches(strange, KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(KEYS)}"
        raise LabError(f"{file} has no key {strange}: {hint}")
    engine, model = str(said.get("engine", "yolov5")), str(said.get("model", "yolov5s"))
    size = said.get("image_size", 640)
    if engine not in ENGINES:
        raise LabError(f"{file}: engine is {engine!r}; it may be {' or '.join(ENGINES)}")
    if not MODEL.fullmatch(model):
        raise LabError(f"{file}: model is {model!r}; it may be yolov5n, s, m, l or x, with or without a 6 at the end")
    logger = str(said.get("logger", "none"))
    if logger not in LOGGERS:
        raise LabError(f"{file}: logger is {logger!r}; it may be {', '.join(LOGGERS)}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 32:
        raise LabError(f"{file}: image_size is {size!r}; it must be a whole number of pixels, 32 or more")
    least = said.get("map50")
    if least is not None and (isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 1):
        raise LabError(f"{file}: map50 is {least!r}; it must be a number from 0 to 1")
    return Project(
        root=file.parent,
        engine=engine,
        model=model,
        image_size=size,
        data=str(said.get("data", "data/demo/data.yaml")),
        logger=logger,
        pipeline=str(said.get("pipeline") or ""),
        map50=least,
    )
