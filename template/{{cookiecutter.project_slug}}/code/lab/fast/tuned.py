"""Settings that `lab tune` measured, one file for each host, model, data set and image size: runs/.lab/tuned/."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import limits, telemetry
from lab.errors import LabError
from lab.project import Project
from lab.record import write as write_whole

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Key:
    """What settings hold for. `host` is what `host()` says, `data` the data set's yaml file as the project shows it."""

    engine: str
    model: str
    data: str
    imgsz: int
    device: str  # as --device, resolved: "" for the first GPU, else the processor
    host: str

    @property
    def name(self) -> str:
        """The file's name."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.model}-{self.imgsz}-{digest}.json"


@dataclass(frozen=True)
class Settings:
    """`options` of `lab train` by key, those of `lab.fast.plan.Speed`, and what was measured."""

    options: dict[str, Any]
    speed: dict[str, Any]
    measured: dict[str, Any]


def host() -> str:
    """This machine as it matters for speed: its GPUs, its processor, and how many of its cores may be used."""
    gpus = telemetry.ask_gpus(("name", "uuid")) or []
    cards = ", ".join(sorted(f"{gpu['name']} {gpu['uuid']}" for gpu in gpus)) or "no GPU"
    return f"{limits.processors()} cores of {_processor()}, {cards}"


def _processor() -> str:
    try:
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model", "CPU part")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "an unknown processor"


def place(project: Project) -> Path:
    """Where the settings lie."""
    return project.runs / ".lab" / "tuned"


def write(project: Project, key: Key, settings: Settings) -> Path:
    """Keep `settings` for `key`; a kill in this moment leaves the former file. Returns the file."""
    file = place(project) / key.name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"lab": 1, "key": asdict(key), **asdict(settings)}, indent=1) + "\n")
    return file


def read(project: Project, key: Key) -> Settings:
    """The settings for `key`. Raises LabError when there are none, or only those of another host."""
    said = _load(place(project) / key.name)
    if said is not None:
        return Settings(said["options"], said["speed"], said["measured"])
    what = f"{key.model} at {key.imgsz} pixels on {key.data}"
    for file in sorted(place(project).glob(f"{key.model}-{key.imgsz}-*.json")):
        other = _load(file)
        if other is None:
            continue
        theirs = Key(**other["key"])
        if {**asdict(theirs), "host": key.host} == asdict(key):
            raise LabError(
                f"--tuned: the settings for {what} were measured on another machine ({theirs.host}): "
                "run `lab tune` here, with the same options"
            )
    raise LabError(f"--tuned: there are no settings for {what} with {key.engine}: run `lab tune` with the same options")


def _load(file: Path) -> dict[str, Any] | None:
    """What a file of settings says; None when it is absent, or none that can be understood."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        Key(**said["key"])
        parts = [said[name] for name in ("options", "speed", "measured")]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return said if all(isinstance(part, dict) for part in parts) else None
