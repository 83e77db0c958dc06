"""run.json and telemetry.csv: there from the start, right at the end, and never in the way of a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab import dataset, record, tasks, telemetry, training
from lab.engines import Call
from lab.errors import FAILED, LabError
from lab.launch import Interrupted
from lab.options import parse
from lab.project import Project

SMI = """#!{python}
import sys
query = next(word for word in sys.argv if word.startswith("--query-gpu="))[12:].split(",")
{more}
known = {{"index": "0", "name": "NVIDIA H200", "compute_cap": "9.0", "memory.total": "143771", "uuid": "GPU-1",
  "driver_version": "570.86.10", "utilization.gpu": "[N/A]", "memory.used": "512", "power.draw": "75.5"}}
print(", ".join(known[field] for field in query))
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an nvidia-smi on PATH; `more` are further lines of it."""

    def install(more: str = "") -> Path:
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        program = place / "nvidia-smi"
        program.write_text(SMI.format(python=sys.executable, more=more), encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
        return program

    return install


# --- the record -------------------------------------------------------------------------------------------------------


def kept(project: Project, directory: Path, **more: Any) -> Any:
    directory.mkdir(parents=True, exist_ok=True)
    return record.kept(directory, project, ["lab", "train"], "train", "yolov5", **more)


def test_a_record_is_there_at_once_and_complete_at_the_end(project: Project, shapes: Path, smi: Any) -> None:
    smi()
    directory = project.runs / "train" / "exp"
    data = dataset.open_dataset(str(shapes), project)
    with kept(project, directory, dataset=data, seed=3) as one:
        assert record.read(directory)["status"] == "running"
        with one.attempt(16):
            assert record.read(directory)["attempts"][0]["status"] == "running"
        one.update(plan={"batch": 16})
    said = record.read(directory)
    assert (said["lab"], said["status"], said["seed"], said["plan"]) == (1, "done", 3, {"batch": 16})
    assert said["attempts"][0] | {"started": "", "ended": ""} == {
        "batch": 16, "started": "", "ended": "", "status": "done", "reason": None,
    }  # fmt: skip
    assert said["data"]["images"] == {"train": 10, "val": 2}
    assert said["data"]["names"] == ["circle", "square", "triangle"]
    assert said["data"]["file"] == "data/demo/data.yaml"
    assert said["host"]["gpus"] == [
        {"name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 143771 << 20, "uuid": "GPU-1"}
    ]
    assert said["versions"]["driver"] == "570.86.10"
    assert said["versions"]["numpy"]
    assert said["host"]["name"] is None
    assert [file.name for file in directory.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (LabError("the disk is full", FAILED), "failed", "the disk is full"),
        (Interrupted(), "stopped", "stopped"),
        (KeyboardInterrupt(), "stopped", None),
        (ValueError("a secret"), "failed", "ValueError"),
    ],
)
def test_how_a_run_ended_is_recorded(project: Project, error: BaseException, status: str, reason: str | None) -> None:
    directory = project.runs / "exp"
    with pytest.raises(type(error)), kept(project, directory) as one, one.attempt(-1):
        raise error
    said = record.read(directory)
    assert (said["status"], said["attempts"][0]["status"], said["attempts"][0]["reason"]) == (status, status, reason)
    assert said["ended"]


def test_a_resumed_run_goes_on_with_its_record(project: Project) -> None:
    directory = project.runs / "exp"
    with kept(project, directory) as one, one.attempt(16):
        one.update(plan="kept", started="2020-01-01T00:00:00+00:00")
    with kept(project, directory, resumed_from="runs/exp/weights/last.pt") as two, two.attempt(None):
        assert record.read(directory)["status"] == "running"
    said = record.read(directory)
    assert (said["plan"], said["started"][:4], len(said["attempts"])) == ("kept", "2020", 2)
    assert said["resumed_from"] == "runs/exp/weights/last.pt"


def test_no_environment_variable_is_written_down(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell")
    monkeypatch.setenv("LAB_HOSTNAME", "box-7")
    with kept(project, project.runs / "exp") as one, one.attempt(16):
        pass
    text = (project.runs / "exp" / record.NAME).read_text(encoding="utf-8")
    assert "do-not-tell" not in text
    assert json.loads(text)["host"]["name"] == "box-7"


def test_a_record_that_cannot_be_written_stops_nothing(project: Project) -> None:
    with record.kept(project.root / "gone", project, ["lab"], "train", "yolov5") as one, one.attempt(16):
        pass
    assert not (project.root / "gone").exists()
    with record.kept(None, project, ["lab"], "export", "yolov5") as one, one.attempt(None):
        pass


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_commit_and_difference(project: Project) -> None:
    out = project.root / "out"
    out.mkdir()
    assert record.git(project.root, out) is None
    git(project.root, "init", "-q")
    assert record.git(project.root, out) is None  # nothing committed yet
    (project.root / ".gitignore").write_text("out/\n", encoding="utf-8")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", "start")
    clean = record.git(project.root, out)
    assert clean is not None
    assert (clean["commit"], clean["dirty"], clean["diff"]) == (git(project.root, "rev-parse", "HEAD"), False, None)
    before = (project.root / "lab.yaml").read_text(encoding="utf-8")
    (project.root / "lab.yaml").write_text(before + "# changed\n", encoding="utf-8")
    (project.root / "new.txt").write_text("new\n", encoding="utf-8")
    dirty = record.git(project.root, out)
    assert dirty is not None
    assert (dirty["dirty"], dirty["diff"], dirty["untracked"], dirty["cut"]) == (True, "diff.patch", 1, False)
    git(project.root, "checkout", "-q", "lab.yaml")
    git(project.root, "apply", "out/diff.patch")
    assert (project.root / "lab.yaml").read_text(encoding="utf-8").endswith("# changed\n")


def test_a_huge_difference_is_cut(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "DIFF_LIMIT", 1000)
    git(project.root, "init", "-q")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", "start")
    (project.root / "lab.yaml").write_text("# line\n" * 10_000, encoding="utf-8")
    said = record.git(project.root, project.root)
    assert said is not None
    assert said["cut"]
    assert (project.root / record.DIFF).stat().st_size == 1000


def test_the_builds_version_is_read_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    lines = ["from typing import Optional", "__version__ = '2.8.0+cu128'", "cuda: Optional[str] = '12.8'", "hip = None"]
    (package / "version.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    said = record.versions()
    assert (said["torch"], said["cuda"], record.torch_build(said["torch"])) == ("2.8.0+cu128", "12.8", "cu128")
    assert record.torch_build("2.8.0") is record.torch_build(None) is None


def test_training_writes_the_record(project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(call: Call, project: Project, directory: Path, *more: Any) -> None:
        (directory / "results.csv").write_text("epoch\n", encoding="utf-8")

    monkeypatch.setattr(training, "run", work)
    words = [
        "--engine",
        "yolov5u",
        "--weights",
        "",
        "--cfg",
        "yolov5n.yaml",
        "--epochs",
        "1",
        "--batch",
        "4",
        "--seed",
        "7",
    ]
    directory = tasks.perform(parse("train", words), project)
    assert directory is not None
    said = record.read(directory)
    assert said["command"][:4] == ["lab", "train", "--engine", "yolov5u"]
    assert parse("train", said["command"][2:]) == parse("train", words)
    assert (said["status"], said["seed"], said["attempts"][0]["batch"]) == ("done", 7, 4)


def test_a_run_that_fails_at_once_leaves_no_directory(
    project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LabError("no", FAILED)

    monkeypatch.setattr(training, "run", fail)
    with pytest.raises(LabError):
        tasks.perform(parse("train", ["--engine", "yolov5u", "--weights", "", "--cfg", "yolov5n.yaml"]), project)
    assert list((project.runs / "train").iterdir()) == []


# --- the samples ------------------------------------------------------------------------------------------------------


def test_placeholders_and_refused_fields_of_nvidia_smi(smi: Any) -> None:
    refuse = """
if "compute_cap" in query:
    print('Field "compute_cap" is not a valid field to query.')
    sys.exit(2)
print("a warning that is no row")"""
    smi(refuse)
    assert telemetry.ask_gpus(("index", "compute_cap", "utilization.gpu", "memory.used")) == [
        {"index": "0", "utilization.gpu": "", "memory.used": "512"}
    ]


def test_an_nvidia_smi_that_hangs(smi: Any) -> None:
    smi("import time; time.sleep(600)")
    assert telemetry.ask_gpus(("index",), limit=0.3) is None


def test_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry.shutil, "which", lambda *_, **__: None)
    assert telemetry.ask_gpus(("index",)) == []


def sampled(directory: Path, program: str, seconds: float = 1.5) -> list[telemetry.Sample]:
    child = subprocess.Popen([sys.executable, "-c", program])
    sampler = telemetry.Sampler(directory / telemetry.NAME, child.pid, period=0.1)
    thread = telemetry.threading.Thread(target=sampler.run)
    thread.start()
    try:
        time.sleep(seconds)
    finally:
        sampler.stop()
        thread.join(10)
        for pid in telemetry.family(child.pid):
            os.kill(pid, signal.SIGKILL)
        child.wait()
    assert not thread.is_alive()
    return telemetry.read(directory / telemetry.NAME)


def test_samples_of_a_busy_process_and_its_children(tmp_path: Path, smi: Any) -> None:
    smi()
    # the work is done by a grandchild in a session of its own, as torchrun's ranks are
    inner = "x = bytearray(64 << 20)\nwhile True: pass"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {outer!r}])"
    found = sampled(tmp_path, program, 3.0)
    assert found
    assert max(sample.cpu_util or 0 for sample in found) > 5
    assert all(sample.gpu == 0 and sample.gpu_util is None and sample.gpu_memory == 512 for sample in found)
    assert all((sample.memory or 0) > 1 for sample in found)
    again = sampled(tmp_path, "import time; time.sleep(60)", 0.8)
    times = [sample.time for sample in again]
    assert times == sorted(times)
    assert len(again) > len(found)
    lines = (tmp_path / telemetry.NAME).read_text(encoding="utf-8").splitlines()
    assert lines.count(",".join(telemetry.COLUMNS)) == 1


def test_without_a_gpu_its_columns_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "ask_gpus", lambda *_: [])
    found = sampled(tmp_path, "import time; time.sleep(60)", 0.8)
    assert found
    assert all(sample.gpu is None and sample.gpu_util is None and sample.cpu_util is not None for sample in found)


def test_a_stuck_driver_is_asked_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(telemetry, "ask_gpus", lambda *_: asked.append(1))
    assert len(sampled(tmp_path, "import time; time.sleep(60)", 1.5)) > len(asked) == telemetry.SMI_TRIES


def test_samples_survive_a_directory_that_goes(tmp_path: Path) -> None:
    with telemetry.sampling(tmp_path / "gone", os.getpid()), telemetry.sampling(None, os.getpid()):
        pass
    assert telemetry.read(tmp_path / "gone" / telemetry.NAME) == []


def test_a_torn_telemetry_file(tmp_path: Path) -> None:
    file = tmp_path / telemetry.NAME
    head = ",".join(telemetry.COLUMNS[:9])
    file.write_text(f"{head}\n2.0,0,50,100,75,10,100,0,20\n4.0,0,nan,,,10,100,0,20\n6.0,0,5", encoding="utf-8")
    found = telemetry.read(file)
    assert [(sample.time, sample.gpu_util) for sample in found] == [(2.0, 50.0), (4.0, None)]
    file.write_bytes(b"\x00\xff\n")
    assert telemetry.read(file) == []


def test_telemetry_without_the_newest_columns(tmp_path: Path) -> None:
    file = tmp_path / telemetry.NAME
    file.write_text(",".join(telemetry.COLUMNS[: telemetry.FIRST]) + "\n2.0,0,50,100,75,10,100,0\n", encoding="utf-8")
    assert telemetry.read(file) == [telemetry.Sample(2.0, 0, 50, 100, 75, 10, 100, 0, None)]
