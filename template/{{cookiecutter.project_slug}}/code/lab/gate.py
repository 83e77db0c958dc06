"""`lab gate`: whether a run's checkpoint is good enough, and metrics.json, its figures for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import devices, record, report, report_predict, report_run
from lab.errors import FAILED, LabError
from lab.project import Project
from lab.report_measure import Measured
from lab.report_predict import Findings
from lab.report_run import Run

NAME = "metrics.json"
CALLED = {"map50": "mAP50", "map": "mAP50-95"}  # as people say them


@dataclass(frozen=True)
class Bar:
    """The least values that pass, each from 0 to 1; None for what does not matter."""

    map50: float | None = None
    map: float | None = None

    def missed(self, measured: Measured) -> list[str]:
        """What is under the bar, in words."""
        reached = {"map50": measured.ap50, "map": measured.ap}
        # to the digits that are told, so that 0.500 is not under 0.5
        return [
            f"{CALLED[key]} is {reached[key]:.3f}, under {least:g}"
            for key, least in asdict(self).items()
            if least is not None and round(reached[key], 3) < least
        ]

    def __str__(self) -> str:
        return " and ".join(
            f"{CALLED[key]} of at least {least:g}" for key, least in asdict(self).items() if least is not None
        )


def bar(project: Project, map50: float | None, map: float | None) -> Bar:
    """The bar given on the command line, else that of lab.yaml. Raises LabError when there is none, or an odd one."""
    for option, least in (("--map50", map50), ("--map", map)):
        if least is not None and not 0 <= least <= 1:
            raise LabError(f"{option} {least:g}: give a number from 0 to 1")
    if map50 is None and map is None:
        map50 = project.map50
    if map50 is None and map is None:
        raise LabError("there is no bar to reach: give --map50 0.5, or write a line `map50: 0.5` into lab.yaml")
    return Bar(map50, map)


def main(project: Project, named: str, least: Bar, device: str | None) -> int:
    """Judge the run `named` (the newest when it is empty); returns 0 when it passes. Raises LabError when not."""
    directory = report_run.find(named, project)
    run = report_run.read(directory, project)
    if device:
        devices.resolve(device)  # refused before anything is measured
    found = report_predict.findings(run, project, device or None)
    judge(run, found, least, project)
    return 0


def judge(run: Run, found: Findings, least: Bar, project: Project) -> None:
    """Write metrics.json into the run, and raise LabError, with exit status 1, when it is under the bar."""
    if found.measured is None:
        raise LabError(f"{run.name} cannot be judged: {found.why_not}", FAILED)
    if not found.measured.boxes:
        raise LabError(f"{run.name} cannot be judged: the validation pictures have no labelled box", FAILED)
    missed = least.missed(found.measured)
    said = {**figures(run, found), "bar": asdict(least), "passed": not missed}
    record.write(run.directory / NAME, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    if missed:
        page = run.directory / report.NAME
        where = f"{project.show(page)} shows" if page.is_file() else f"`lab report {run.name}` shows"
        raise LabError(f"{run.name} does not pass: {' and '.join(missed)}; {where} where it errs", FAILED)
    print(
        f"lab: {run.name} passes: mAP50 {found.measured.ap50:.3f}, mAP50-95 {found.measured.ap:.3f}; asked was {least}"
    )


def figures(run: Run, found: Findings) -> dict[str, Any]:
    """What was measured, without the bar: the checkpoint on its validation pictures, and the epoch it is from."""
    measured = found.measured
    assert measured is not None, "the caller looks"
    best = run.best
    return {
        "run": run.name,
        "engine": run.engine,
        "epoch": run.epochs[best] if best is not None else None,
        "results_csv": {key: run.at(key, best) for key in report_run.METRICS},
        "images": measured.pictures,
        "boxes": measured.boxes,
        "map50": measured.ap50,
        "map": measured.ap,
        "precision": measured.precision,
        "recall": measured.recall,
        "confidence": measured.confidence,
        "classes": [
            {
                "name": found.names[score.number],
                "images": score.pictures,
                "boxes": score.boxes,
                "map50": score.ap50,
                "map": score.ap,
                "precision": score.precision,
                "recall": score.recall,
            }
            for score in measured.classes
        ],
        "milliseconds": found.speed,
        "device": found.device or None,
    }


def read(directory: Path) -> dict[str, Any]:
    """metrics.json of a run; {} when there is none that can be read."""
    try:
        said = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
