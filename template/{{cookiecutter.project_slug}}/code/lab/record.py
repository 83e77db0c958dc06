"""`run.json`: what a run was made from and how it ended, so that it can be repeated.

It is there from the first second (status "running") and rewritten, in one step each time, at every attempt and at the
end. Environment variables are not written down: they hold secrets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from lab import limits, pace, telemetry
from lab.dataset import Dataset, original
from lab.errors import INTERRUPTED, LabError
from lab.project import Project

NAME, DIFF = "run.json", "diff.patch"
DIFF_LIMIT = 1 << 20  # bytes; a larger difference is a data file committed by mistake
SECRETS = (
    "*.env",
    ".env.local",
    ".netrc",
    "*.pem",
    "*.key",
)  # files that are in no difference, even when git follows them
GIT_LIMIT = 20.0  # seconds
PATIENCE = 60.0  # seconds that the end of a run waits for the data's fingerprint
HASTE = 3.0  # seconds of the same, after Ctrl-C or a failure
FILES = (NAME, DIFF, telemetry.NAME, pace.NAME)
PACKAGES = {"ultralytics": "ultralytics", "numpy": "numpy", "opencv": "opencv-python-headless"}
Said = dict[str, Any]


def now() -> str:
    """The time, in UTC, as ISO 8601 has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Record:
    """A run's record on disk. Keys that others add are kept. Without a directory nothing is written."""

    def __init__(self, directory: Path | None, said: Said) -> None:
        self.directory = directory
        self.said = said
        self._lock = threading.Lock()
        self.update()

    def update(self, **more: Any) -> None:
        """Add or replace keys, and write. A full disk is the training's to report, not the record's."""
        with self._lock:
            self.said |= more
            if self.directory is not None:
                with contextlib.suppress(OSError):
                    write(self.directory / NAME, json.dumps(self.said, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def attempt(self, batch: int | None) -> Iterator[None]:
        """One start of the engine, with the images a step that it was given."""
        this: Said = {"batch": batch, "started": now(), "ended": None, "status": "running", "reason": None}
        self.update(attempts=[*self.said.get("attempts", []), this])
        try:
            yield
        except BaseException as error:
            self._end(this, *judge(error))
            raise
        self._end(this, "done", None)

    def _end(self, attempt: Said, status: str, reason: str | None) -> None:
        attempt |= {"ended": now(), "status": status, "reason": reason}
        self.update()


def judge(error: BaseException) -> tuple[str, str | None]:
    """Status and reason of a run that `error` ended."""
    if isinstance(error, LabError):
        return ("stopped" if error.status == INTERRUPTED else "failed"), error.sentence
    if isinstance(error, KeyboardInterrupt):
        return "stopped", None
    return "failed", type(error).__name__


def write(file: Path, text: str) -> None:
    """Write `file` in one step: a reader sees the old content or the new one."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read(directory: Path) -> Said:
    """The record in `directory`; {} when there is none, or none that can be read."""
    try:
        said = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


@contextmanager
def kept(  # a run has so many sides
    directory: Path | None,
    project: Project,
    command: list[str],
    task: str,
    engine: str,
    dataset: Dataset | None = None,
    seed: int = 0,
    resumed_from: str | None = None,
) -> Iterator[Record]:
    """Keep the record of one run in `directory` while the block runs it.

    What takes a moment to find out (GPU, git, the data's fingerprint) is found beside the run, by a thread. A resumed
    run goes on with its record; its `command` is then the one that would make the whole run at once.
    """
    before = read(directory) if directory is not None and resumed_from else {}
    for one in before.get("attempts", []):
        if one.get("status") == "running":  # nobody was left to say how it ended
            one.update(status="failed", reason="killed")
    begin: Said = {
        "lab": 1,
        "command": command,
        "engine": engine,
        "task": task,
        "started": now(),
        "ended": None,
        "status": "running",
        "attempts": [],
        "seed": seed,
    }
    again = {"status": "running", "ended": None, "resumed_from": resumed_from, "command": command}
    record = Record(directory, {**begin, "resumed_from": None, **before, **(again if resumed_from else {})})
    finder = threading.Thread(target=_find, args=(record, project, dataset), name="record", daemon=True)
    if directory is not None:
        finder.start()
    status = "failed"
    try:
        yield record
        status = "done"
    except BaseException as error:
        status = judge(error)[0]
        raise
    finally:
        if directory is not None:
            finder.join(PATIENCE if status == "done" else HASTE)
            record.update(status=status, ended=now())


def _find(record: Record, project: Project, dataset: Dataset | None) -> None:
    """Fill in what takes a moment, quickest first; what cannot be had is null."""
    gpus = telemetry.ask_gpus(("name", "compute_cap", "memory.total", "uuid", "driver_version")) or []
    driver = gpus[0].get("driver_version") or None if gpus else None
    installed = versions()
    record.update(
        versions={**installed, "driver": driver}, torch_build=torch_build(installed["torch"]), host=host(gpus)
    )
    assert record.directory is not None
    record.update(git=git(project.root, record.directory))
    if dataset is not None and record.said.get("task") == "train":
        named = project.show(original(dataset.file) or dataset.file)  # not the run's own copy, from which it goes on
        about: Said = {"file": named, "fingerprint": None, "names": list(dataset.names.values())}
        about["images"] = {split: sum(1 for _ in dataset.images(split)) for split in dataset.sources}
        record.update(data=about)
        record.update(data={**about, "fingerprint": fingerprint(dataset)})


def fingerprint(dataset: Dataset) -> str | None:
    """The data's content in 16 hexadecimal digits; None when a file could not be read."""
    from lab.fingerprint import fingerprint as of  # noqa: PLC0415

    try:
        return str(of(dataset))
    except (OSError, LabError):
        return None


# What is installed, without importing it: torch would take seconds


def versions() -> dict[str, str | None]:
    """Versions of what computes; None for what is not installed."""
    python = ".".join(map(str, sys.version_info[:3]))
    torch = _version_file("torch")
    return {
        "python": python,
        "torch": torch.get("__version__"),
        "torchvision": _version_file("torchvision").get("__version__"),
        **{key: _installed(package) for key, package in PACKAGES.items()},
        "cuda": torch.get("cuda"),
        "cudnn": _installed(f"nvidia-cudnn-cu{(torch.get('cuda') or '').split('.')[0]}") if torch.get("cuda") else None,
    }


def torch_build(version: str | None) -> str | None:
    """The build that a version names: cu128 of 2.8.0+cu128; None when it does not."""
    return version.partition("+")[2] or None if version else None


def _version_file(package: str) -> dict[str, str]:
    """The strings in a package's version.py: its real version, with the CUDA build that the metadata may lack."""
    try:
        found = importlib.util.find_spec(package)
        assert found is not None and found.origin is not None
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except (AssertionError, OSError, ValueError):
        return {}
    return dict(re.findall(r"^(\w+)\s*(?::[^=\n]+)?=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Where it ran


def host(gpus: list[dict[str, str]]) -> Said:
    """Processors and bytes of memory that the container may use, and its GPUs; a name only from LAB_HOSTNAME."""
    return {
        "name": os.environ.get("LAB_HOSTNAME") or None,
        "cpus": limits.processors(),
        "memory_bytes": _memory(),
        "gpus": [
            {
                "name": gpu["name"],
                "capability": gpu.get("compute_cap") or None,
                "memory_bytes": int(gpu["memory.total"]) << 20 if gpu.get("memory.total", "").isdigit() else None,
                "uuid": gpu.get("uuid") or None,
            }
            for gpu in gpus
        ],
    }


def _memory() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int((limits.CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # "max" is no number
        return total


# The code


def git(root: Path, directory: Path) -> Said | None:
    """The commit that `root` is at, and what differs from it, written into `directory`; None outside a repository.

    Only files that git follows are in the difference; `untracked` counts the others.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = (_git(root, "status", "--porcelain", "--untracked-files=all", "--", ".") or b"").decode(errors="replace")
    lines = status.splitlines()
    untracked = sum(line.startswith("??") for line in lines)
    about: Said = {
        "commit": commit.decode().strip(),
        "dirty": bool(lines),
        "diff": None,
        "untracked": untracked,
        "cut": False,
    }
    if len(lines) > untracked:
        # only what is below `root`: a project inside a larger repository answers for itself
        kept_out = [f":(exclude,glob)**/{name}" for name in SECRETS]
        diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", ".", *kept_out) or b""
        about["cut"] = len(diff) > DIFF_LIMIT
        with contextlib.suppress(OSError):
            (directory / DIFF).write_bytes(diff[:DIFF_LIMIT])
            about["diff"] = DIFF
    return about


def _git(root: Path, *words: str) -> bytes | None:
    """What git prints, a little more than DIFF_LIMIT of it at most; None when it fails, hangs or is not there."""
    # a mounted folder may belong to somebody else; a repository's own settings could start programs
    command = ["git", "-C", str(root), "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment
        )
    except OSError:
        return None
    alarm = threading.Timer(GIT_LIMIT, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        out = process.stdout.read(DIFF_LIMIT + 1)
        if len(out) > DIFF_LIMIT:
            process.kill()
            process.wait()
            return out
        return out if process.wait() == 0 else None
    finally:
        alarm.cancel()
        process.stdout.close()  # type: ignore[union-attr]
