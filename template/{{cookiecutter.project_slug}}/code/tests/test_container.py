"""Inside the container: both engines from training to ONNX, without one look-up, and through Ctrl-C."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import upstream
from lab.project import CODE, ENGINES, Project

pytestmark = pytest.mark.container
TRAIN = ["--weights", "", "--cfg", "yolov5n.yaml", "--img", "96", "--batch", "8", "--workers", "0", "--noplots"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    return str(request.param)


def environment(log: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(CODE), str(CODE / "tests" / "network_log")])
    return {**os.environ, "PYTHONPATH": paths, "NETWORK_LOG": str(log)}


def lab(words: list[str], log: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *words], env=environment(log), capture_output=True, text=True, check=False
    )


def last_map50(run: Path) -> float:
    with (run / "results.csv").open(encoding="utf-8") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return float(next(value for key, value in rows[-1].items() if re.match(r"metrics/mAP_?(0\.)?50?(\(B\))?$", key)))


def test_every_task_without_the_network(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    log = tmp_path / "network.log"
    commands = [
        ["train", *TRAIN, "--epochs", "1"],
        ["val", "--weights", "runs/train/exp/weights/best.pt"],
        ["detect", "--weights", "runs/train/exp/weights/best.pt", "--source", "data/demo/images/val"],
        ["export", "--weights", "runs/train/exp/weights/best.pt", "--include", "onnx"],
        ["train", *TRAIN, "--epochs", "1"],
    ]
    for words in commands:
        done = lab([*words, "--engine", engine], log)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Traceback" not in done.stdout + done.stderr
    assert (project.root / "runs/train/exp/weights/best.onnx").is_file()
    assert len(list((project.root / "runs/detect/exp").glob("*.jpg"))) == 2
    assert (project.root / "runs/train/exp2/weights/last.pt").is_file()
    reached = [line for line in log.read_text().splitlines() if "loopback-" not in line] if log.exists() else []
    assert reached == []


def test_the_network_log_sees_look_ups(tmp_path: Path) -> None:
    log = tmp_path / "network.log"
    program = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 0.1)\nexcept OSError: pass\n"
    subprocess.run([sys.executable, "-c", program], env=environment(log), check=True)
    assert "lookup 192.0.2.1" in log.read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lab", "train", *TRAIN, "--epochs", "4", "--engine", engine]
    running = subprocess.Popen(
        words, env=environment(tmp_path / "log"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    last = project.root / "runs/train/exp/weights/last.pt"
    until = time.monotonic() + 180
    while not last.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert "--resume runs/train/exp/weights/last.pt" in said
    assert "Traceback" not in said
    record = project.root / "runs/train/exp/run.json"
    assert json.loads(record.read_text(encoding="utf-8"))["status"] == "stopped"
    done = lab(["train", "--resume", "runs/train/exp", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len((project.root / "runs/train/exp/results.csv").read_text().splitlines()) == 5
    resumed = json.loads(record.read_text(encoding="utf-8"))
    assert [attempt["status"] for attempt in resumed["attempts"]] == ["stopped", "done"]
    assert resumed["resumed_from"] == "runs/train/exp/weights/last.pt"


def test_it_learns_and_the_report_counts_as_the_engine_does(engine: str, project: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert lab(["data", "demo", "--images", "160", "--size", "96", "--out", "data/demo96"], log).returncode == 0
    words = ["train", "--weights", "", "--cfg", "yolov5n.yaml", "--data", "data/demo96/data.yaml", "--engine", engine]
    words += ["--hyp", "hyp.small.yaml", "--optimizer", "AdamW", "--img", "96", "--batch", "16", "--epochs", "60"]
    done = lab([*words, "--cache", "ram", "--noplots", "--noval"], log)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last_map50(project.root / "runs/train/exp") >= 0.5
    words = ["--weights", "runs/train/exp/weights/best.pt", "--data", "data/demo96/data.yaml", "--img", "96"]
    val = lab(["val", *words, "--engine", engine], log)
    own = re.findall(r"\ball +(\d+) +(\d+) +[\d.]+ +[\d.]+ +([\d.]+) +([\d.]+)", val.stdout + val.stderr)[-1]
    assert lab(["report"], log).returncode == 0
    ours = json.loads((project.root / "runs/train/exp/report.json").read_text(encoding="utf-8"))["measured"]
    assert [str(ours["pictures"]), str(ours["boxes"])] == [own[0], own[1]]
    assert [ours["ap50"], ours["ap"]] == [pytest.approx(float(figure), abs=0.01) for figure in own[2:]]


def test_smoke(engine: str, project: Project, tmp_path: Path) -> None:
    done = lab(["smoke", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(
        rf"smoke: {engine} ok in \d+ s \(data .*\): \d+ of \d+ shapes found, \.pt and ONNX agree to \de-\d\d\n",
        done.stdout,
    ), done.stdout
    assert not any((project.root / "runs").glob("smoke-*"))


def test_a_quick_smoke_runs_every_stage_and_reaches_nothing(engine: str, project: Project, tmp_path: Path) -> None:
    done = lab(["smoke", "--quick", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-3000:]
    agreed = r"(?:\de-\d\d|0e\+00)"  # zero exactly, where both give the same bytes
    assert re.fullmatch(
        rf"smoke: {engine} ok in \d+ s \(data .*, onnxruntime .*\): one epoch, \.pt and ONNX agree to {agreed}\n",
        done.stdout,
    )
    log = tmp_path / "log"
    reached = [line for line in log.read_text().splitlines() if "loopback-" not in line] if log.exists() else []
    assert reached == []


def test_a_run_is_recorded_and_reported(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    log = tmp_path / "network.log"
    done = lab(["train", *TRAIN, "--epochs", "2", "--engine", engine], log)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = project.root / "runs/train/exp"
    said = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (said["status"], said["engine"], said["data"]["images"]) == ("done", engine, {"train": 10, "val": 2})
    assert said["versions"]["torch"]
    assert (run / "telemetry.csv").is_file()
    before = sorted(path.name for path in (project.root / "data/demo").rglob("*"))
    made = lab(["report"], log)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "was not measured" not in made.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('class="shot"') == 2
    for words in ("circle", "How to repeat it", f"lab train --engine {engine}", "What limited it"):
        assert words in page
    assert sorted(path.name for path in (project.root / "data/demo").rglob("*")) == before
