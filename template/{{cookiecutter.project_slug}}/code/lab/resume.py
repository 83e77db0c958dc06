"""What a run left behind when it ended too early: which checkpoint is whole, its epoch, and what is half-written.

A SIGKILL can fall between any two writes. Each file is therefore either written beside its place and renamed
(checkpoints, request.json), or mended before the run goes on (results.csv).
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import math
import os
import pickletools
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError

REQUEST = "request.json"  # what the run was asked for, everything resolved; enough to start it anew
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
# what may be given beside --resume; the rest would make another experiment of it
HONOURED = frozenset(
    (
        "epochs",
        "batch_size",
        "imgsz",
        "device",
        "workers",
        "cache",
        "patience",
        "save_period",
        "noval",
        "noplots",
    )
)
DEFAULTS = {"epochs": 100, "batch_size": 16}  # of both engines, where the run does not say


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do: YOLOv5's options by key, resolved, as in engines.Prepared."""

    engine: str
    options: dict[str, Any]
    weights: list[str] = field(default_factory=lambda: [""])
    cfg: str | None = None
    done: bool = False
    attempts: list[dict[str, Any]] = field(default_factory=list)  # as in run.json
    plan: dict[str, Any] = field(default_factory=dict)  # as in run.json
    speed: dict[str, Any] = field(default_factory=dict)  # a lab.fast.plan.Speed

    def get(self, key: str) -> Any:
        """An option's value, or the engines' default."""
        return self.options.get(key, DEFAULTS.get(key))


def write_asked(directory: Path, asked: Asked) -> None:
    """Keep `asked` in the run's directory; a kill in this moment leaves the former file."""
    text = json.dumps({"lab": 1, **vars(asked)}, indent=1)
    part = directory / f".{REQUEST}.{os.getpid()}"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(directory / REQUEST)


def read_asked(directory: Path) -> Asked | None:
    """What the run was asked for; of a run without request.json, what the engine wrote down. None when neither is."""
    try:
        said = json.loads((directory / REQUEST).read_text(encoding="utf-8"))
        return Asked(**{key: said[key] for key in Asked.__dataclass_fields__ if key in said})
    except (OSError, ValueError, TypeError):
        pass
    for name, engine, batch in (("opt.yaml", "yolov5", "batch_size"), ("args.yaml", "yolov5u", "batch")):
        try:
            said = yaml.safe_load((directory / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(said, dict):
            options = {key: said[key] for key in ("epochs", "imgsz", "device", "workers", "data") if key in said}
            options["device"] = str(options.get("device") or "")
            return Asked(engine, options | {"batch_size": said.get(batch, 16)})
    return None


@dataclass(frozen=True)
class GoingOn:
    """What node 0 tells the other machines of the run that goes on: they have no request.json, and perhaps no run.

    Paths are as the project shows them, so they mean the same on machines whose projects lie in different places.
    """

    run: str
    data: str
    epochs: int  # finished
    digest: str  # of last.pt; "" when no epoch was finished and it begins anew
    asked: dict[str, Any]  # an Asked
    changed: dict[str, Any] = field(default_factory=dict)  # options that were given beside --resume
    closing: bool = False  # only the closing measurement is left, which node 0 does alone


def digest(file: Path) -> str:
    """SHA-256 of the content of `file`; "" where it is not there."""
    whole = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                whole.update(part)
    except OSError:
        return ""
    return whole.hexdigest()


# Checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. `epoch` is the last one finished, counted from 0; -1 when it was stripped: the run ended."""

    file: Path
    epoch: int


def read_checkpoint(file: Path) -> Checkpoint | None:
    """The checkpoint in `file`; None when it is absent, cut short or damaged. Nothing is unpickled.

    Raises LabError when it cannot be read: a disk that is away for a moment must not cost the run.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return None
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            epoch = _epoch(archive.read(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LabError(f"{file} cannot be read ({error.strerror}): nothing was changed, mend that first") from error
    except (StopIteration, zipfile.BadZipFile, EOFError, ValueError):
        return None
    return None if epoch is None else Checkpoint(file, epoch)


def _epoch(pickle: bytes) -> int | None:
    """The number behind the first "epoch" of a pickle; checkpoints of both engines are dictionaries with that key."""
    found = False
    for opcode, argument, _ in pickletools.genops(pickle):
        if (
            found and "INT" in opcode.name and argument is not None
        ):  # the string is put into the memo first, hence not simply the next one
            return int(argument)
        found = found or argument == "epoch"
    return None


@dataclass(frozen=True)
class Standing:
    """How far a run got. `checkpoint` is the newest whole one with the optimiser's state, None without any."""

    directory: Path
    checkpoint: Checkpoint | None
    ended: bool  # last.pt was stripped: every epoch is done
    torn: tuple[Path, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs finished and kept."""
        return self.checkpoint.epoch + 1 if self.checkpoint else 0


def look(directory: Path) -> Standing:
    """How far the run in `directory` got; changes nothing."""
    weights = directory / "weights"
    files = [weights / LAST, weights / PREVIOUS, weights / BEST, *sorted(weights.glob("epoch*.pt"))]
    read = {file: read_checkpoint(file) for file in files if file.is_file()}
    last = read.get(weights / LAST)
    whole = [found for found in read.values() if found is not None and found.epoch >= 0]
    newest = last if last in whole else max(whole, key=lambda found: found.epoch, default=None)
    torn = tuple(file for file, found in read.items() if found is None)
    return Standing(directory, newest, last is not None and last.epoch < 0, torn)


def prepare(standing: Standing) -> Path | None:
    """Make the directory ready to go on: last.pt whole, results.csv without lines that the checkpoint does not know.

    Returns last.pt, or None when there is no checkpoint and the run starts anew.
    """
    weights = standing.directory / "weights"
    sweep(standing.directory)
    mend_results(standing.directory / "results.csv", standing.epochs)
    if standing.checkpoint is None:
        for file in standing.torn:  # somebody may know how to save them
            file.replace(file.with_name(f"{file.name}.damaged"))
        return None
    last, source = weights / LAST, standing.checkpoint.file
    if source.name == PREVIOUS:
        source.replace(last)
    elif source != last:
        part = weights / f".{LAST}.{os.getpid()}"
        shutil.copyfile(source, part)
        part.replace(last)
    for file in standing.torn:
        if file != last:
            file.unlink(missing_ok=True)
    return last


def sweep(directory: Path) -> None:
    """Remove checkpoints that were being written when the run was killed."""
    for part in (directory / "weights").glob(".*.pt.*"):
        part.unlink(missing_ok=True)


def mend_results(file: Path, epochs: int) -> None:
    """Keep the header and the whole lines of the first `epochs` epochs of results.csv.

    Both engines write an epoch's line before its checkpoint, so a kill in between would leave that epoch twice; and a
    line may be cut short.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    header, kept = _whole_lines(text, epochs)
    if epochs == 0 or not header:
        file.unlink()
        return
    mended = header + "".join(kept[number] for number in sorted(kept))
    if mended != text:
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_text(mended, encoding="utf-8")
        part.replace(file)


def lost_results(file: Path, epochs: int) -> list[int]:
    """Which of the first `epochs` epochs, counted from 1, have no whole line in results.csv, because it was cut."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    _, kept = _whole_lines(text, epochs)
    return [number + 1 for number in range(epochs) if number not in kept]


def _whole_lines(text: str, epochs: int) -> tuple[str, dict[int, str]]:
    """The header, "" when it is cut short too, and the whole lines of the first `epochs` epochs, counted from 0.

    YOLOv5 counts epochs from 0, yolov5u from 1; lines begin with a plain number either way.
    """
    header, *lines = text.splitlines(keepends=True) or [""]
    if not header.endswith("\n"):
        return "", {}
    columns = header.count(",")
    first = 0 if re.match(r"\s+epoch", header) else 1  # YOLOv5 pads its header
    kept: dict[int, str] = {}
    for line in lines:
        number = re.match(r"\s*(\d+),", line)
        if number and line.endswith("\n") and line.count(",") == columns and int(number[1]) < epochs + first:
            kept[int(number[1]) - first] = line  # of an epoch that was repeated, the later one
    return header, kept


def best_so_far(file: Path) -> tuple[int, float] | None:
    """The epoch of YOLOv5's results.csv with the best fitness, a tenth mAP50 and nine tenths mAP50-95."""
    best: tuple[int, float] | None = None
    try:
        with file.open(encoding="utf-8") as opened:
            for row in csv.DictReader(opened, skipinitialspace=True):
                said = {str(key).strip(): value for key, value in row.items()}
                fitness = 0.1 * float(said["metrics/mAP_0.5"]) + 0.9 * float(said["metrics/mAP_0.5:0.95"])
                if math.isnan(fitness):  # an epoch without validation
                    continue
                if best is None or fitness > best[1]:
                    best = int(said["epoch"]), fitness
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best


# Which run


def runs(base: Path) -> list[Path]:
    """Directories of trainings below `base`, the one that wrote last first."""
    found = {}
    for directory in base.iterdir() if base.is_dir() else ():
        marks = [directory / REQUEST, directory / "weights" / LAST, directory / "weights" / PREVIOUS]
        times = [mark.stat().st_mtime for mark in marks if mark.is_file()]
        if times:
            found[directory] = max(times)
    return sorted(found, key=lambda directory: found[directory], reverse=True)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the run's directory; the kernel lets go of it when this process ends, however that happens.

    Raises LabError when another process of this machine holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"{directory} is still being trained by another process: wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def held(directory: Path) -> bool:
    """Whether a process of this machine, in whatever container, trains in `directory`."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False
