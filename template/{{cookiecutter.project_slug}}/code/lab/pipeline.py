"""`lab pipeline`: from data to a model with its papers, in one folder. What CI runs, and what runs the same by hand.

The report comes before the gate, so that a model which does not pass leaves the page that says why; the card comes
after it, so that only one which passes has a card.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lab import (
    card,
    cli_data,
    demo,
    gate,
    limits,
    record,
    report,
    report_predict,
    report_run,
    resume,
    smoke,
    tasks,
)
from lab.errors import FAILED, INTERRUPTED, LabError
from lab.gate import Bar
from lab.job import say
from lab.options import Request, parse
from lab.project import Project
from lab.report_predict import Findings
from lab.report_run import Run

NAME = "pipeline.json"
RUN = ".run"  # holds the directory of the training
APART = ".smoke"  # made-up pictures and their training: no artifacts
# what is kept of a run, and from where in it
ARTIFACTS = {
    "weights/best.pt": "best.pt",
    "weights/best.onnx": "best.onnx",
    report.NAME: report.NAME,
    gate.NAME: gate.NAME,
    card.NAME: card.NAME,
    record.NAME: record.NAME,
    record.DIFF: record.DIFF,
    "results.csv": "results.csv",
}
REFUSED = {
    "resume": "a pipeline goes on by itself when --out names its folder",
    "evolve": "it searches hyper-parameters and leaves no checkpoint",
    "nodes": "it is one machine's work",
    "rdzv": "it is one machine's work",
    "node_rank": "it is one machine's work",
}
Least = tuple[float | None, float | None]  # mAP50 and mAP50-95 to reach
SMOKE_MAP50 = 0.5  # what an untrained network is far from, and seconds of training reach


@dataclass
class Pipeline:
    """One pipeline. `given` are the options of its training; `said` is what pipeline.json holds."""

    project: Project
    out: Path
    given: dict[str, Any]
    bar: Bar
    smoke: bool
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The data set's yaml file."""
        return str(self.given.get("data", self.project.data))

    @property
    def device(self) -> str | None:
        """Where to measure: the first of the training's devices."""
        return str(self.given.get("device", "")).partition(",")[0] or None

    @property
    def directory(self) -> Path | None:
        """The training's directory, None before it has one."""
        try:
            directory = Path((self.out / RUN).read_text(encoding="utf-8").partition("\n")[0])
        except OSError:
            return None
        return directory if directory.is_dir() else None

    @property
    def run(self) -> Run:
        """The training, read."""
        assert self.directory is not None, "the training comes first"
        return report_run.read(self.directory, self.project)

    @cached_property
    def found(self) -> Findings:
        """What the checkpoint finds, measured once. Raises LabError when that cannot be done."""
        found = report_predict.findings(self.run, self.project, self.device)
        if found.measured is None:
            raise LabError(f"{self.run.name} cannot be measured: {found.why_not}")
        return found

    def keep(self) -> None:
        """Copy what there is of ARTIFACTS, and is not here yet, into the folder."""
        directory = self.directory
        if directory is None:
            return
        for inside, name in ARTIFACTS.items():
            source, place = directory / inside, self.out / name
            if source.is_file() and not _same(source, place):
                shutil.copy2(source, place)


def main(project: Project, words: list[str], out: Path | None, least: Least, small: bool) -> int:
    """Run every step that is not done yet; returns 0 when the model passed. Raises LabError at the first that fails.

    `words` are options of `lab train`, which win over those of lab.yaml. `small` is a pipeline of made-up pictures, on
    which seconds of training are enough.
    """
    work = _begun(project, words, out, least, small)
    for number, (name, step) in enumerate(STEPS.items(), 1):
        say(f"pipeline {number}/{len(STEPS)} {name}")
        with _step(work, name):
            step(work)
    _write(work, "passed")
    print(f"lab: the pipeline passed; its artifacts are in {project.show(work.out)}", flush=True)
    return 0


# Beginning, and going on


def _begun(project: Project, words: list[str], out: Path | None, least: Least, small: bool) -> Pipeline:
    """A new pipeline, or the one that `out` holds. Raises LabError for options that do not fit."""
    limits.require_writable(project.runs)
    folder = _new(project) if out is None else Path(os.path.abspath(out))  # noqa: PTH100  links stay as they are
    before = _read(folder)
    small = bool(before.get("smoke", small))
    given = _options(project, words, small)
    if before and words and given != before.get("options"):
        raise LabError(
            f"{project.show(folder)} was begun with other options: leave them out to go on with it, or name another "
            "folder with --out"
        )
    given = dict(before.get("options", given))
    if small:
        project = replace(project, logger="none", map50=SMOKE_MAP50)
    kept = Bar(**(before.get("bar") or {}))
    bar = kept if least == (None, None) and before else gate.bar(project, *least)
    folder.mkdir(parents=True, exist_ok=True)
    work = Pipeline(project, folder, given, bar, small)
    work.said = {"lab": 1, "begun": record.now(), "steps": {}, **before}
    work.said |= {"smoke": small, "options": given, "bar": asdict(bar)}
    _write(work, "running")
    return work


def _new(project: Project) -> Path:
    """A folder of runs/pipeline that is not there yet: exp, exp2, …"""
    base = project.runs / "pipeline"
    number = 1
    while (folder := base / (f"exp{number}" if number > 1 else "exp")).exists():
        number += 1
    return folder


def _options(project: Project, words: list[str], small: bool) -> dict[str, Any]:
    """Options of the training: those of lab.yaml, unless it is small, and `words` over them. Raises LabError."""
    try:
        standing = parse("train", [] if small else shlex.split(project.pipeline)).given
    except (LabError, ValueError) as error:
        raise LabError(f"`pipeline` in {project.root / 'lab.yaml'}: {error}") from error
    given = {**standing, **parse("train", words).given}
    for key, why in REFUSED.items():
        if key in given:
            raise LabError(f"`lab pipeline` takes no --{key.replace('_', '-')}: {why}")
    return given


def _read(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise LabError(f"--out {folder} holds other files: name a folder that is empty or not there") from None
        return {}
    except (OSError, ValueError) as error:
        raise LabError(f"{folder / NAME} cannot be read: delete the folder, or name another one with --out") from error
    return said if isinstance(said, dict) else {}


def _write(work: Pipeline, status: str) -> None:
    work.said |= {"status": status, "ended": None if status == "running" else record.now()}
    record.write(work.out / NAME, json.dumps(work.said, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _step(work: Pipeline, name: str) -> Iterator[None]:
    """Keep how one step ended, and its files. A failure becomes one sentence that names the step and how to go on."""
    begun = time.monotonic()
    status, reason = "failed", None
    again = f"`lab pipeline --out {work.project.show(work.out)}` goes on from here"
    try:
        yield
        status = "done"
    except (LabError, KeyboardInterrupt) as error:
        status, reason = record.judge(error)
        if status == "stopped":
            raise LabError(f"stopped; {again}", INTERRUPTED) from error
        raise LabError(f"the pipeline stops at {name}: {reason}; {again}", FAILED) from error
    finally:
        seconds = round(time.monotonic() - begun, 1)
        work.said["steps"][name] = {"status": status, "seconds": seconds, "reason": reason}
        if work.directory is not None:
            work.said["run"] = work.project.show(work.directory)
        work.keep()
        _write(work, "running" if status == "done" else status)


# The steps. Each looks by itself whether its work is done; only training and export are worth not doing again.


def _check(work: Pipeline) -> None:
    if work.smoke:
        apart = work.out / APART
        demo.make(smoke.RECIPE, apart / "data")
        engine = str(work.given.get("engine", work.project.engine))
        made = {**smoke.training(engine, apart / "data" / "data.yaml"), "project": str(apart)}
        work.given = {**made, **work.given}
    page, problems = cli_data.check_and_tell(work.data, work.project)
    shutil.copy2(page, work.out / "data-check.html")
    if problems:
        raise LabError(f"{problems} problems in {work.data}: `lab data check --fix` moves aside what is broken")


def _train(work: Pipeline) -> None:
    directory = work.directory
    asked = resume.read_asked(directory) if directory is not None else None
    if asked is not None and asked.done:
        say(f"{work.project.show(work.run.directory)} is trained already")
    elif asked is not None:
        tasks.perform(Request("train", {"resume": str(directory), "engine": asked.engine}), work.project)
    else:
        with _told_where(work.out / RUN):
            tasks.perform(Request("train", work.given), work.project)


@contextmanager
def _told_where(file: Path) -> Iterator[None]:
    """A training writes its directory into `file` as soon as it has one, so that it is known after a kill too."""
    before = os.environ.get(tasks.RUN_FILE)
    file.unlink(missing_ok=True)
    os.environ[tasks.RUN_FILE] = str(file)
    try:
        yield
    finally:
        os.environ.pop(tasks.RUN_FILE)
        if before is not None:
            os.environ[tasks.RUN_FILE] = before


def _export(work: Pipeline) -> None:
    run = work.run
    if run.checkpoint is None:
        raise LabError(f"{run.name} saved no checkpoint")
    made = run.checkpoint.with_suffix(".onnx")
    if made.is_file() and made.stat().st_mtime >= run.checkpoint.stat().st_mtime:
        say(f"{work.project.show(made)} is there already")
        return
    options = {"engine": run.engine, "weights": [str(run.checkpoint)], "include": ["onnx"], "imgsz": [run.image_size]}
    tasks.perform(Request("export", {**options, "data": work.data}), work.project)


def _val(work: Pipeline) -> None:
    measured = work.found.measured
    assert measured is not None, "found raises"
    say(f"mAP50 {measured.ap50:.3f}, mAP50-95 {measured.ap:.3f} on {measured.pictures} pictures")


def _report(work: Pipeline) -> None:
    report.main(work.project, [str(work.directory)], work.device, True, None)


def _gate(work: Pipeline) -> None:
    for place in (work.out, work.run.directory):
        (place / card.NAME).unlink(missing_ok=True)  # of a pass under an easier bar
    gate.judge(work.run, work.found, work.bar, work.project)


def _card(work: Pipeline) -> None:
    assert work.directory is not None, "the training comes first"
    card.write(work.run, work.found, work.project, work.directory / card.NAME)


STEPS: dict[str, Callable[[Pipeline], None]] = {
    "check": _check,
    "train": _train,
    "export": _export,
    "val": _val,
    "report": _report,
    "gate": _gate,
    "card": _card,
}


def _same(a: Path, b: Path) -> bool:
    """Whether `b` is a copy of `a`, by size and time."""
    try:
        one, other = a.stat(), b.stat()
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
