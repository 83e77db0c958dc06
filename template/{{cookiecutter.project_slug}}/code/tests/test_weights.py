"""What a checkpoint says of its network, read without running anything of it, and what follows from that."""

import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import made_checkpoint
import pytest

from lab import cli, limits, plan, training, weights
from lab.engines import ENGINES as INTERFACES
from lab.errors import LabError
from lab.job import Job
from lab.options import Request
from lab.project import CODE, ENGINES, Project

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("live", [False, True])
def test_parameters_and_stride_are_read(tmp_path: Path, engine: str, live: bool) -> None:
    """Each parameter once: a run that goes on keeps the network twice, and the optimiser's numbers."""
    file = made_checkpoint.write(tmp_path / "best.pt", 7_235_389, 32, engine, live)
    assert weights.architecture(file) == weights.Architecture(7_235_389, 32)
    weights.require_checkpoint(file, file.name)
    assert weights.engine_of(file) == engine


@pytest.mark.parametrize(
    ("millions", "stride", "model"),
    [
        *((1.87, 32, "yolov5n"), (2.65, 32, "yolov5n"), (7.2, 32, "yolov5s"), (9.2, 32, "yolov5s")),
        *((21.2, 32, "yolov5m"), (25.1, 32, "yolov5m"), (46.5, 32, "yolov5l"), (86.7, 32, "yolov5x")),
        *((3.2, 64, "yolov5n6"), (4.3, 64, "yolov5n6"), (12.6, 64, "yolov5s6"), (35.7, 64, "yolov5m6")),
        *((76.8, 64, "yolov5l6"), (86.1, 64, "yolov5l6"), (140.7, 64, "yolov5x6"), (155.5, 64, "yolov5x6")),
    ],
)
def test_the_nearest_published_model(millions: float, stride: int, model: str) -> None:
    assert weights.Architecture(round(millions * 1e6), stride).model == model


def test_what_tells_nothing_of_a_network(tmp_path: Path) -> None:
    whole = made_checkpoint.write(tmp_path / "whole.pt", 1000, 32).read_bytes()
    files = {"absent.pt": None, "cut.pt": whole[:-40], "bare.pt": pickle.dumps({"epoch": 1}, 2), "page.pt": b"<html>"}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert weights.architecture(tmp_path / name) is None
    for number, held in enumerate(({}, [], {"model": None}, {"model": [1]}, {"ema": {"a": 1}, "model": None})):
        with zipfile.ZipFile(tmp_path / f"{number}.pt", "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(held, 2))
        assert weights.architecture(tmp_path / f"{number}.pt") is None
    assert weights.architecture(made_checkpoint.write(tmp_path / "odd.pt", 1000, 4)) is None


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    made_checkpoint.write(tmp_path / "best.pt", 1000, 32)
    assert weights.architecture(tmp_path / "best.pt") == weights.Architecture(1000, 32)
    made_checkpoint.write(tmp_path / "best.pt", 2000, 64, live=True)
    assert weights.architecture(tmp_path / "best.pt") == weights.Architecture(2000, 64)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_with_a_p6_head_wants_multiples_of_64(
    ready: Project, shapes: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the file is called."""
    made_checkpoint.write(ready.root / "mine.pt", 12_600_000, 64, engine)
    made_checkpoint.write(ready.root / "yolov5n6.pt", 1_900_000, 32, engine)
    made_checkpoint.write(ready.root / "yolov5n6u.pt", 1_900_000, 32, engine)
    words = ["detect", "--source", str(shapes.parent / "images/val"), "--img", "96", "--engine", engine]
    assert cli.main([*words, "--weights", "mine.pt"]) == 2
    assert "--img 96 is not a multiple of 64, the model's stride: use 64 or 128" in capsys.readouterr().err
    assert weights.stride_of("yolov5n6.pt", ready, engine) == 32
    assert weights.stride_of("yolov5s6.pt", ready, engine) == 64  # is not here
    assert weights.stride_of("yolov5s6.yaml", ready, engine) == 64
    assert weights.stride_of("", ready, engine) == 32


def test_a_disk_too_small_for_the_checkpoints_own_size_is_refused(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_checkpoint.write(ready.root / "best.pt", 86_700_000, 32)
    monkeypatch.setattr(training, "run", lambda *_, **__: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, GIB))
    words = ["train", "--weights", "best.pt", "--device", "cpu", "--workers", "0"]
    assert cli.main(words) == 2
    assert "1024 MiB free and this run needs about 4032 MiB for its checkpoints" in capsys.readouterr().err
    made_checkpoint.write(ready.root / "best.pt", 1_900_000, 32)
    assert cli.main(words) == 0
    assert "best.pt, 0 MiB, 1.9 million parameters, whole and written by engine yolov5" in capsys.readouterr().err


def test_the_plan_counts_with_the_checkpoints_own_size(project: Project) -> None:
    job = Job(project, INTERFACES["yolov5u"], Request("train", {}))
    file = made_checkpoint.write(project.root / "best.pt", 155_500_000, 64, "yolov5u")
    assert plan.model_of(job, [str(file)], None) == "yolov5x6"
    assert plan.model_of(job, [str(file)], "yolov5s.yaml") == "yolov5s"  # trains that one, from these numbers
    assert plan.model_of(job, [""], None) == "yolov5n"
    fixed = plan.memory_gib("yolov5x6", 8, 640, parameters=155_500_000) - plan.memory_gib("yolov5x6", 8, 640)
    assert fixed == pytest.approx(plan.STATE * (155_500_000 - limits.parameters_of("yolov5x6")) / GIB)


def test_a_checkpoint_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    file, ran = tmp_path / "best.pt", tmp_path / "ran"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"cos\nsystem\n(Vtouch " + str(ran).encode() + b"\ntR.")
    assert weights.architecture(file) is None
    assert not ran.exists()
    with pytest.raises(LabError, match=r"os\.system"):
        weights.require_checkpoint(file, file.name)


MODELS = """
import sys, torch
engine, out = sys.argv[1:]
if engine == "yolov5":
    sys.path.insert(0, "code/yolov5")
    from models.yolo import DetectionModel
    names = ("code/yolov5/models/yolov5n.yaml", "code/yolov5/models/hub/yolov5n6.yaml")
else:
    from ultralytics.nn.tasks import DetectionModel
    names = ("yolov5n.yaml", "yolov5n-p6.yaml")
for number, name in enumerate(names):
    model = DetectionModel(name)
    print("counted", sum(p.numel() for p in model.parameters()), int(model.stride.max()))
    torch.save({"epoch": 1, "model": model.half(), "ema": None}, f"{out}/{number}.pt")
"""


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_engines_save(engine: str, tmp_path: Path) -> None:
    if engine == "yolov5" and not (CODE / "yolov5" / "models").is_dir():
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    done = subprocess.run(
        [sys.executable, "-c", MODELS, engine, str(tmp_path)],
        cwd=CODE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counted = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("counted")]
    read = [weights.architecture(tmp_path / f"{number}.pt") for number in range(2)]
    assert [[str(one.parameters), str(one.stride)] for one in read if one] == counted
    assert [one.model for one in read if one] == ["yolov5n", "yolov5n6"]
