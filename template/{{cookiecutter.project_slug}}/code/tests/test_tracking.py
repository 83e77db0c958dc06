"""Numbers reach the tracker of lab.yaml from both engines' results.csv; a tracker never stops a training."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_container import TRAIN, environment

from lab import cli, tracking, upstream
from lab.engines import ENGINES
from lab.errors import LabError
from lab.project import CODE, Project, open_project

CLASSIC = """\
     epoch,      train/box_loss,     metrics/mAP_0.5,metrics/mAP_0.5:0.95
         0,                0.11,                 nan,                 0.2
         1,                0.10,                 0.5,                 0.3
"""
PACKAGE = "epoch,time,train/box_loss,metrics/mAP50(B)\n1,3.2,0.11,0.5\n2,6"
MODULES = {"mlflow": "mlflow", "wandb": "wandb", "clearml": "clearml"}


class Recorder:
    place = "nowhere"

    def __init__(self, faulty: bool = False) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.failed: bool | None = None
        self.faulty = faulty

    def log(self, step: int, numbers: dict[str, float]) -> None:
        if self.faulty:
            raise ConnectionError("the server\nis gone")
        self.steps.append((step, numbers))

    def end(self, _: Path, failed: bool) -> None:
        self.failed = failed


def with_logger(project: Project, logger: str) -> Project:
    file = project.root / "lab.yaml"
    file.write_text(file.read_text(encoding="utf-8") + f"logger: {logger}\n", encoding="utf-8")
    return open_project()


def test_rows_of_both_engines(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    assert tracking.rows(file) == []
    file.write_text(CLASSIC, encoding="utf-8")
    assert tracking.rows(file) == [
        {"epoch": 0, "train/box_loss": 0.11, "metrics/mAP_0.5_0.95": 0.2},
        {"epoch": 1, "train/box_loss": 0.1, "metrics/mAP_0.5": 0.5, "metrics/mAP_0.5_0.95": 0.3},
    ]
    file.write_text(PACKAGE, encoding="utf-8")
    assert tracking.rows(file) == [{"epoch": 1, "time": 3.2, "train/box_loss": 0.11, "metrics/mAP50_B": 0.5}]


@pytest.mark.parametrize("faulty", [False, True])
def test_what_a_tracker_gets(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faulty: bool,
) -> None:
    recorder = Recorder(faulty)
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda *_: recorder)
    monkeypatch.setattr(tracking, "INTERVAL", 0.01)
    with tracking.follow(with_logger(project, "mlflow"), tmp_path, {}):
        (tmp_path / "results.csv").write_text(CLASSIC, encoding="utf-8")
        time.sleep(0.05)
    assert recorder.failed is False
    assert [step for step, _ in recorder.steps] == ([] if faulty else [0, 1])
    assert capsys.readouterr().err.count("mlflow fails, the training goes on: the server is gone") == int(faulty)
    with pytest.raises(ZeroDivisionError), tracking.follow(open_project(), tmp_path, {}):
        raise ZeroDivisionError
    assert recorder.failed is True


def test_nothing_is_followed_unasked(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "TRACKERS", {})
    assert project.logger == "none"
    with tracking.follow(project, tmp_path, {}):
        pass
    with tracking.follow(with_logger(project, "wandb"), None, {}):
        pass


@pytest.mark.parametrize("logger", MODULES)
def test_a_package_that_is_not_there_is_named(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[logger], None)
    with (
        pytest.raises(LabError, match=rf"logger: {logger}, and .* not in this image.*uv pip install"),
        tracking.follow(with_logger(project, logger), tmp_path, {}),
    ):
        raise AssertionError("never reached")


def test_another_logger_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match="logger is 'neptune'; it may be none, mlflow, wandb, clearml"):
        with_logger(project, "neptune")
    assert cli.main(["train"]) == 2


def test_the_engines_see_no_tracker() -> None:
    """YOLOv5 would use each one that it can import; in a process of its own, as engines run."""
    program = (
        "import importlib.util, sys; from lab import child; child.hide_trackers()\n"
        "for name in ('wandb', 'clearml', 'comet_ml', 'mlflow'):\n"
        "    try: __import__(name); print(name)\n"
        "    except ImportError: pass\n"
        "    assert importlib.util.find_spec(name) is None"
    )
    surroundings = {**os.environ, "PYTHONPATH": str(CODE)}
    done = subprocess.run([sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_options_of_another_logger_are_refused(project: Project) -> None:
    for key in ("entity", "upload_dataset", "bbox_interval"):
        for engine in ENGINES.values():
            with pytest.raises(LabError, match=r"lab\.yaml"):
                engine.refuse("train", {key: "x"})


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("logger", MODULES)
def test_a_real_tracker_without_a_server(
    engine: str, logger: str, project: Project, shapes: Path, tmp_path: Path
) -> None:
    """Everything stays in runs/, and no name is looked up."""
    if importlib.util.find_spec(MODULES[logger]) is None:
        pytest.skip(f"{logger} is not installed here")
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    with_logger(project, logger)
    log = tmp_path / "network.log"
    words = ["train", *TRAIN, "--epochs", "2", "--engine", engine]
    done = subprocess.run(
        [sys.executable, "-m", "lab", *words], env=environment(log), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"lab: {logger}: " in done.stderr
    assert "fails" not in done.stderr
    assert "is not used" not in done.stderr
    assert FOUND[logger](project.runs), [str(path) for path in project.runs.rglob("*")][:60]
    reached = [line for line in log.read_text().splitlines() if "loopback-" not in line] if log.exists() else []
    assert reached == []


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


FOUND: dict[str, Any] = {
    "mlflow": lambda runs: any(len(_lines(f)) == 2 for f in runs.glob("mlruns/*/*/metrics/metrics/mAP*")),
    "wandb": lambda runs: list(runs.glob("wandb/offline-run-*/*.wandb")),
    "clearml": lambda runs: any("mAP" in json.dumps(_lines(file)) for file in runs.glob("clearml/**/metrics.jsonl")),
}
