"""Send a training's numbers to MLflow, Weights & Biases or ClearML, when lab.yaml says so (`logger: …`).

It reads the run's results.csv from outside, so it works the same for both engines, and what goes wrong with a tracker
(no server, a full quota) never stops a training. Without a server named by you everything stays in runs/.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from lab.credentials import hidden
from lab.errors import LabError
from lab.project import Project

INTERVAL = 2.0  # seconds between two looks at results.csv
PICTURES = ("results.png", "confusion_matrix.png", "val_batch0_pred.jpg")


class Tracker(Protocol):
    """One run in a tracking service."""

    place: str  # where it can be seen

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of one epoch."""

    def end(self, run: Path, failed: bool) -> None:
        """Hand over pictures and the best checkpoint where that is usual, and close."""


class Mlflow:
    """A tracking server when $MLFLOW_TRACKING_URI names one, else the directory runs/mlruns."""

    def __init__(self, project: Project, run: Path, options: dict[str, Any]) -> None:
        # since version 3 mlflow wants a database and warns of plain files, which need no other package
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow  # noqa: PLC0415  installed by the answer only

        self.mlflow: Any = mlflow
        self.place = os.environ.get("MLFLOW_TRACKING_URI") or (project.runs / "mlruns").as_uri()
        mlflow.set_tracking_uri(self.place)
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or project.root.name)
        mlflow.start_run(run_name=run.name)
        mlflow.log_params({key: str(value)[:500] for key, value in options.items()})

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """See Tracker."""
        self.mlflow.log_metrics(numbers, step=step)

    def end(self, run: Path, failed: bool) -> None:
        """See Tracker."""
        for file in _pictures(run):
            self.mlflow.log_artifact(str(file))
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class Wandb:
    """The service, when $WANDB_API_KEY or $WANDB_BASE_URL is set; else the directory runs/wandb, for `wandb sync`."""

    def __init__(self, project: Project, run: Path, options: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own faults, to its makers
        import wandb  # noqa: PLC0415

        online = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_BASE_URL"))
        mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project.root.name,
            name=run.name,
            dir=str(project.runs),
            config=options,
            mode=mode,
        )
        self.image = wandb.Image
        self.place = str(self.run.url) if mode == "online" else str(project.runs / "wandb")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """See Tracker."""
        self.run.log(numbers, step=step)

    def end(self, run: Path, failed: bool) -> None:
        """See Tracker."""
        pictures = {file.stem: self.image(str(file)) for file in _pictures(run)}
        if pictures:
            self.run.log(pictures)
        self.run.finish(exit_code=int(failed))


class Clearml:
    """The server that $CLEARML_API_HOST names; else an archive in runs/clearml, for `clearml-data`'s import."""

    def __init__(self, project: Project, run: Path, options: dict[str, Any]) -> None:
        offline = not os.environ.get("CLEARML_API_HOST")
        if offline:
            os.environ.setdefault("CLEARML_CACHE_DIR", str(project.runs / "clearml"))
        from clearml import Task  # noqa: PLC0415

        if offline:
            from clearml.utilities.check_updates import CheckPackageUpdates  # noqa: PLC0415

            CheckPackageUpdates._package_version_checked = True  # it has no other switch, and asks its makers' server
            Task.set_offline(offline_mode=True)
        self.task: Any = Task.init(
            project_name=os.environ.get("CLEARML_PROJECT") or project.root.name,
            task_name=run.name,
            reuse_last_task_id=False,
            auto_connect_frameworks=False,
            auto_connect_arg_parser=False,
            auto_resource_monitoring=False,
        )
        self.task.connect(dict(options))
        self.place = str(project.runs / "clearml") if offline else str(self.task.get_output_log_web_page())

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """See Tracker."""
        for name, value in numbers.items():
            title, _, series = name.partition("/")
            self.task.get_logger().report_scalar(title, series or title, value=value, iteration=step)

    def end(self, run: Path, failed: bool) -> None:
        """See Tracker."""
        for file in _pictures(run):
            self.task.get_logger().report_image("plots", file.stem, iteration=0, local_path=str(file))
        if failed:
            self.task.mark_failed(ignore_errors=True)
        self.task.close()


TRACKERS: dict[str, Callable[[Project, Path, dict[str, Any]], Tracker]] = {
    "mlflow": Mlflow,
    "wandb": Wandb,
    "clearml": Clearml,
}


def _pictures(run: Path) -> list[Path]:
    return [file for name in PICTURES if (file := run / name).is_file()]


@contextlib.contextmanager
def follow(project: Project, run: Path | None, options: dict[str, Any]) -> Iterator[None]:
    """Hand each new row of `run`/results.csv to the logger of lab.yaml, while the body runs.

    Raises LabError when the logger's package is not in the image, before anything else.
    """
    if run is None or project.logger == "none":
        yield
        return
    try:
        tracker = TRACKERS[project.logger](project, run, options)
    except ImportError as error:
        package = "mlflow-skinny" if project.logger == "mlflow" else project.logger
        raise LabError(
            f"lab.yaml says logger: {project.logger}, and its package is not in this image: LOGGER={project.logger} in "
            f".env and Rebuild Container put it in, `uv pip install {package}` adds it to this container"
        ) from error
    except Exception as error:  # a server that refuses, a name it does not like: the training matters more
        _say(f"{project.logger} is not used for this run: {' '.join(str(error).split())[:200]}")
        yield
        return
    _say(f"{project.logger}: {tracker.place}")
    over = threading.Event()
    follower = _Follower(project.logger, tracker, run / "results.csv", over)
    follower.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        over.set()
        follower.join(timeout=60)
        follower.guard(lambda: tracker.end(run, failed))


class _Follower(threading.Thread):
    """Reads results.csv while it grows."""

    def __init__(self, name: str, tracker: Tracker, file: Path, over: threading.Event) -> None:
        super().__init__(daemon=True, name="tracking")
        self.called, self.tracker, self.file, self.over = name, tracker, file, over
        self.sent = len(rows(file))  # a resumed run has rows already
        self.complained = False

    def run(self) -> None:
        """See threading.Thread."""
        while not self.over.wait(INTERVAL):
            self._send()
        self._send()

    def _send(self) -> None:
        fresh = rows(self.file)[self.sent :]
        for numbers in fresh:
            step = int(numbers.pop("epoch", self.sent))
            numbers.pop("time", None)
            self.guard(lambda step=step, numbers=numbers: self.tracker.log(step, numbers))  # type: ignore[misc]
            self.sent += 1

    def guard(self, work: Callable[[], None]) -> None:
        """Do `work`; a fault is said once and the training goes on."""
        try:
            work()
        except Exception as error:
            if not self.complained:
                _say(f"{self.called} fails, the training goes on: {' '.join(str(error).split())[:200]}")
            self.complained = True


def rows(file: Path) -> list[dict[str, float]]:
    """The finished rows of a results.csv as numbers, with names that every tracker takes."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    found = []
    for row in csv.DictReader(whole.splitlines()):
        numbers = {}
        for key, value in row.items():
            with contextlib.suppress(TypeError, ValueError):
                number = float(value)
                if math.isfinite(number):
                    numbers[re.sub(r"[^\w/.-]+", "_", str(key).strip()).rstrip("_")] = number
        found.append(numbers)
    return found


def _say(sentence: str) -> None:
    print(f"lab: {hidden(sentence)}", file=sys.stderr, flush=True)
