"""`lab report`: the page of a run, or of several side by side."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lab import devices, record, report_predict, report_run
from lab.errors import LabError
from lab.project import Project

NAME = "report.html"
MOST = 24  # runs side by side


def main(project: Project, named: list[str], device: str | None, val: bool, out: Path | None) -> int:
    """Write the page for the runs `named` (the newest when none is), and say where it is. Raises LabError."""
    directories = list(dict.fromkeys(report_run.find(name, project) for name in named or [""]))
    if len(directories) > MOST:
        raise LabError(f"{len(directories)} runs do not fit beside each other: name {MOST} at most")
    if device is not None:
        devices.resolve(device)  # refused before anything is measured
    runs = [report_run.read(directory, project) for directory in directories]
    found = [report_predict.findings(run, project, device, val) for run in runs]
    for run, one in zip(runs, found, strict=True):
        if val and one.why_not:
            print(f"lab: {run.name} was not measured: {one.why_not}", file=sys.stderr)
    if len(runs) == 1:
        from lab.report_page import run_page  # noqa: PLC0415

        text, place = run_page(runs[0], found[0], project), directories[0] / NAME
    else:
        from lab.report_compare import compare_page  # noqa: PLC0415

        text = compare_page(runs, found)
        names = "-".join(re.sub(r"[^\w.]+", "_", run.name) for run in runs)[:80]
        place = project.runs / f"compare-{names}.html"
    file = out or place
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write(file, text)
    print(f"lab: {project.show(file.absolute())} ({len(text.encode()) / 1e6:.1f} MB), one file: open it in a browser")
    return 0
