"""Inside the container, with both engines: seeds, kills, memory that runs out, runs that are trained longer."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import resume, upstream
from lab.engines import Call
from lab.launch import run as run_child
from lab.project import CODE, ENGINES, Project

pytestmark = pytest.mark.container
TESTED = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
TRAIN = ["--cfg", "yolov5n.yaml", "--img", "64", "--batch", "8", "--workers", "0", "--noplots", "--device", "cpu"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    return str(request.param)


def command(words: list[str], **environment: str) -> dict[str, Any]:
    paths = [str(CODE)] + ([str(CODE / "tests" / "no_memory")] if environment else [])
    return {
        "args": [sys.executable, "-m", "lab", "train", *words],
        # the ultralytics package writes no TensorBoard files when it finds itself tested
        "env": {**TESTED, "PYTHONPATH": os.pathsep.join(paths), **environment},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }


def train(*words: str, **environment: str) -> str:
    done = subprocess.run(**command(list(words), **environment), check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return str(done.stdout)


def results(run: Path) -> list[dict[str, str]]:
    """results.csv, without the column that holds times."""
    with (run / "results.csv").open(encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)]


def test_a_seed_repeats_a_run_and_a_finished_run_is_trained_longer(engine: str, project: Project, shapes: Path) -> None:
    for name in ("one", "two"):
        train(*TRAIN, "--engine", engine, "--epochs", "2", "--seed", "3", "--name", name)
    one, two = (project.runs / "train" / name for name in ("one", "two"))
    assert results(one) == results(two)
    assert list(one.glob("events.out.tfevents.*"))
    said = train("--resume", "runs/train/one", "--epochs", "3", "--batch", "4", "--patience", "7", "--img", "96")
    assert "after 2 of 3 epochs" in said
    assert results(one)[:2] == results(two)
    assert len(results(one)) == 3
    assert ("Image sizes 96 train, 96 val" if engine == "yolov5" else "at imgsz=96") in said  # the engine's own words
    file, key = ("opt.yaml", "batch_size") if engine == "yolov5" else ("args.yaml", "batch")
    stored = yaml.safe_load((one / file).read_text(encoding="utf-8"))
    assert (stored[key], stored["epochs"], stored["patience"], stored["imgsz"]) == (4, 3, 7, 96)


def epochs_saved(run: Path) -> int:
    last = run / "weights" / resume.LAST
    found = resume.read_checkpoint(last) if last.exists() else None
    return 0 if found is None else 9 if found.epoch < 0 else found.epoch + 1


# a kill before the first checkpoint, one between two, one after the last epoch
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "begins anew": lambda run: (run / "weights").is_dir(),
    "after 1 of 3 epochs": lambda run: epochs_saved(run) == 1,
    "closing measurement": lambda run: epochs_saved(run) in (3, 9),
}


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=[] if words.startswith("after") else pytest.mark.long) for words in MOMENTS]
)
def test_a_killed_run_goes_on(engine: str, project: Project, shapes: Path, words: str) -> None:
    run, until = project.runs / "train" / "exp", time.monotonic() + 240
    running = subprocess.Popen(
        **{**command([*TRAIN, "--epochs", "3", "--engine", engine]), "stdout": subprocess.DEVNULL}
    )
    while not MOMENTS[words](run) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1)
    if (
        words.startswith("closing")
        and epochs_saved(run) == 9
        and json.loads((run / "request.json").read_text())["done"]
    ):
        pytest.skip("the run was faster than the kill")
    said = train("--resume")
    assert words in said or epochs_saved(run) > 1, said[-2000:]
    rows = results(run)
    assert len(rows) == 3
    assert len({next(iter(row.values())) for row in rows}) == 3
    assert resume.look(run).ended
    assert not list((run / "weights").glob(".*"))


@pytest.mark.long
def test_memory_that_runs_out_after_an_epoch_costs_no_finished_epoch(
    engine: str, project: Project, shapes: Path
) -> None:
    # ten pictures: two steps of eight and two an epoch; the second epoch's first step is too large
    said = train(*TRAIN, "--epochs", "3", "--engine", engine, NO_MEMORY_ABOVE="4", NO_MEMORY_AFTER="1")
    assert "goes on after 1 finished epoch with --batch 4" in said
    run = project.runs / "train" / "exp"
    assert len(results(run)) == 3
    asked = resume.read_asked(run)
    assert asked is not None
    assert [attempt["batch"] for attempt in asked.attempts] == [8, 4]


@pytest.mark.long
def test_the_worst_step_of_batch_auto_runs(engine: str, project: Project, tmp_path: Path) -> None:
    result = tmp_path / "batch.json"
    cfg = "yolov5n.yaml" if engine == "yolov5u" else str(project.upstream / "models" / "yolov5n.yaml")
    payload = {
        "task": "batch", "upstream": str(project.upstream), "result": str(result), "weights": "", "cfg": cfg,
        "classes": 3, "imgsz": 64, "multi_scale": True, "labels": 40, "most": 500, "optimizer": "SGD",
        "devices": "0,1", "pretended": {"total": 16 << 30, "base": 1 << 30, "per_image": 70 << 20},
        "beside": (2 << 30, 5 << 20),
    }  # fmt: skip
    run_child(Call(CODE / "lab" / f"run_{engine}.py", payload), project, None)
    devices = json.loads(result.read_text(encoding="utf-8"))["devices"]
    assert [device["device"] for device in devices] == ["0", "1"]
    assert all(0.08 <= 1 - device["measured"] / (16 << 30) < 0.12 for device in devices)
    assert all(device["beside"] == (2 << 30) + (5 << 20) * device["batch"] for device in devices)


def test_amp_is_judged_by_the_networks_own_numbers() -> None:
    program = (
        "import torch, lab.child as child\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.SiLU())\n"
        "gap = child.half_precision_gap(torch, model, torch.device('cpu'))\n"
        "assert gap is not None and 0 < gap < 0.1, gap\n"
        "model[0].weight.data.fill_(float('nan'))\n"
        "assert child.half_precision_gap(torch, model, torch.device('cpu')) is None\n"
        "assert model.training\n"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(CODE)}, check=True)
