"""Read a finished, failed or running training from its directory: curves, options, record, telemetry. Both engines."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import record, telemetry
from lab.dataset import original
from lab.errors import LabError
from lab.project import Project

METRICS = ("precision", "recall", "map50", "map")
# the headings of results.csv: YOLOv5's, then those of ultralytics
HEADINGS = {
    "metrics/precision": "precision",
    "metrics/recall": "recall",
    "metrics/mAP_0.5": "map50",
    "metrics/mAP_0.5:0.95": "map",
    "metrics/precision(B)": "precision",
    "metrics/recall(B)": "recall",
    "metrics/mAP50(B)": "map50",
    "metrics/mAP50-95(B)": "map",
}
LOSS = re.compile(r"(train|val)/(\w+?)_loss")
RATE = re.compile(r"(?:x/lr|lr/pg)(\d+)")
# where a run is, not what it is
PLACES = frozenset(
    ("project", "name", "exist_ok", "save_dir", "local_rank", "resume", "data", "model", "mode", "task", "save_json")
)
Value = float | None


@dataclass(frozen=True)
class Run:
    """A training. `columns` has a value for each of `epochs` (counted from 1), None where nothing was measured.

    Keys: precision, recall, map50, map; train/box, val/cls, … for losses; lr0, … for learning rates; seconds since
    the start where the engine tells (time).
    """

    directory: Path
    name: str
    engine: str
    said: dict[str, Any]  # run.json
    options: dict[str, Any]  # opt.yaml, or args.yaml, and the hyper-parameters
    epochs: list[int]
    columns: dict[str, list[Value]]
    samples: list[telemetry.Sample] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        """Index of the epoch that best.pt is from.

        yolov5 keeps the one with the highest 0.1 mAP50 + 0.9 mAP50-95, yolov5u the highest mAP50-95.
        """
        share = 0.1 if self.engine == "yolov5" else 0.0
        fitness = [
            share * (a or 0) + (1 - share) * b if b is not None else -1.0
            for a, b in zip(self.columns["map50"], self.columns["map"], strict=True)
        ]
        return max(range(len(fitness)), key=lambda i: fitness[i]) if fitness and max(fitness) >= 0 else None

    @property
    def checkpoint(self) -> Path | None:
        """best.pt, else last.pt, else None."""
        places = (self.directory / "weights" / name for name in ("best.pt", "last.pt"))
        return next((file for file in places if file.is_file()), None)

    @property
    def data_file(self) -> Path | None:
        """The data set's yaml file with absolute paths, as the run used it."""
        own, stored = self.directory / "data.yaml", Path(str(self.options.get("data") or "-"))
        return own if own.is_file() else stored if stored.is_file() else None

    @property
    def data_name(self) -> str:
        """The data set's yaml file as the user named it, "" when nothing tells."""
        file = (self.said.get("data") or {}).get("file")
        if file:
            return str(file)
        return str(original(self.directory / "data.yaml") or self.options.get("data") or "")

    @property
    def planned(self) -> int | None:
        """Epochs that were asked for."""
        value = self.options.get("epochs")
        return value if isinstance(value, int) else None

    @property
    def image_size(self) -> int:
        """Pixels."""
        value = self.options.get("imgsz", 640)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) else 640

    def at(self, key: str, index: int | None) -> Value:
        """One value, None where there is none."""
        return self.columns[key][index] if index is not None and key in self.columns else None


def find(named: str, project: Project) -> Path:
    """The run directory that `named` means: a path to it or into it, its name, or, when empty, the newest training.

    Raises LabError when there is no run.
    """
    if not named:
        runs = sorted(project.runs.glob("train/*/results.csv"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise LabError(f"there is no run in {project.show(project.runs / 'train')} yet: train one with `lab train`")
        return runs[-1].parent
    place = project.find(named) or project.find(f"runs/train/{named}")
    if place is None:
        known = sorted(project.runs.glob("train/*/results.csv"), key=lambda file: file.stat().st_mtime)
        newest = f": the newest is {project.show(known[-1].parent)}" if known else ""
        raise LabError(f"there is no run {named}{newest}")
    for directory in (place, *place.parents[:2]):
        if (directory / "results.csv").is_file() or (directory / record.NAME).is_file():
            return directory
    raise LabError(f"{named} is no training run: it has neither results.csv nor {record.NAME}")


def read(directory: Path, project: Project) -> Run:
    """Everything that `directory` tells; what is missing or cut short is left out."""
    said = record.read(directory)
    options = {**_yaml(directory / "args.yaml"), **_yaml(directory / "opt.yaml")}
    hyper = options.pop("hyp", None)
    options |= hyper if isinstance(hyper, dict) else _yaml(directory / "hyp.yaml")
    if speed := said.get("speed"):
        options |= {"speed": speed.get("data"), "switches": " ".join(speed.get("switches", []))}
        options["val_period"] = speed.get("val_period", 1)
    if "batch" in options:
        options["batch_size"] = options.pop("batch")  # YOLOv5's name for it, in both engines
    epochs, columns = curves(directory / "results.csv")
    engine = str(said.get("engine") or ("yolov5u" if (directory / "args.yaml").is_file() else "yolov5"))
    name = project.show(directory).removeprefix("runs/train/")
    samples = telemetry.read(directory / telemetry.NAME)
    return Run(directory, name, engine, said, options, epochs, columns, samples)


def _yaml(file: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return said if isinstance(said, dict) else {}


def curves(file: Path) -> tuple[list[int], dict[str, list[Value]]]:
    """Epochs from 1, and the columns of results.csv under the names of `Run`.

    A line that a crash cut short is left out; of an epoch that a resumed run did again, the later line counts.
    """
    rows: dict[int, dict[str, Value]] = {}
    for raw in _lines(file):
        row = {_column(key): _number(value) for key, value in raw.items() if key}
        epoch = row.get("epoch")
        if epoch is not None:
            rows[int(epoch)] = {key: value for key, value in row.items() if key}
    keys = dict.fromkeys([*METRICS, *(key for row in rows.values() for key in row if key != "epoch")])
    numbers = sorted(rows)
    for number in numbers:
        _forget_unmeasured(rows[number])
    columns = {key: [rows[number].get(key) for number in numbers] for key in keys}
    shift = 1 - min(numbers) if numbers and min(numbers) == 0 else 0  # YOLOv5 counts from 0, ultralytics from 1
    return [number + shift for number in numbers], columns


def _lines(file: Path) -> Iterator[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            for row in csv.DictReader((line.replace("\0", "") for line in opened), skipinitialspace=True):
                if None not in row.values() and None not in row:
                    yield {key.strip(): value for key, value in row.items()}
    except (OSError, csv.Error):
        return


def _column(heading: str) -> str:
    if heading in HEADINGS:
        return HEADINGS[heading]
    if loss := LOSS.fullmatch(heading):
        return f"{loss[1]}/{loss[2]}"
    if rate := RATE.fullmatch(heading):
        return f"lr{rate[1]}"
    return heading if heading in ("epoch", "time") else ""


def _number(value: str) -> Value:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _forget_unmeasured(row: dict[str, Value]) -> None:
    """With --noval an epoch has zeros for everything that validation would have measured."""
    measured = [key for key in row if key in METRICS or key.startswith("val/")]
    if all(not row[key] for key in measured) and any(row[key] == 0 for key in measured if key.startswith("val/")):
        for key in measured:
            row[key] = None


def seconds(run: Run) -> float | None:
    """How long the run computed, over all its attempts; from the record, else as the engine counted."""
    total = 0.0
    for attempt in run.said.get("attempts", []):
        begun, ended = _time(attempt.get("started")), _time(attempt.get("ended"))
        if begun is not None and ended is not None:
            total += max(0.0, ended - begun)
    if total:
        return total
    if run.samples:
        return run.samples[-1].time
    times = [value for value in run.columns.get("time", []) if value is not None]
    return times[-1] if times else None


def _time(said: Any) -> float | None:
    from datetime import datetime  # noqa: PLC0415

    try:
        return datetime.fromisoformat(str(said)).timestamp()
    except ValueError:
        return None


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """Options that are not the same in all `runs`, with each run's value; what only says where a run lies left out."""
    keys = dict.fromkeys(key for run in runs for key in run.options if key not in PLACES)
    found = {key: [run.options.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if len({str(value or "") for value in values}) > 1}
