"""Checkpoints: which file an option means, and which engine wrote it."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from lab import pickles
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
