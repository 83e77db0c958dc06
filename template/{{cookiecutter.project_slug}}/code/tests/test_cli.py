"""Bad input: one sentence on stderr, exit status 2, nothing left behind. None of these needs torch."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import cli
from lab.project import CODE, Project


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("train --btach 3", "did you mean --batch?"),
        ("train --data nope.yaml", "nope.yaml does not exist"),
        ("train --weights yolov5s.pt", "--weights '' --cfg yolov5s.yaml"),
        ("train --weights mine.pt", "mine.pt does not exist"),
        ("train --cfg nope.yaml", "nope.yaml does not exist"),
        ("train --hyp nope.yaml", "nope.yaml does not exist"),
        ("train --img 100", "use 96 or 128"),
        ("train --img 96 --cfg yolov5n6.yaml", "use 64 or 128"),
        ("train --device 0", "--device cpu"),
        ("train --batch 0", "give 1 or more"),
        ("train --epochs 0", "give 1 or more"),
        ("train --resume", "no run of yolov5 to resume"),
        ("train --resume --epochs 3 --batch 4", "no run of yolov5 to resume"),
        ("train --resume --hyp a.yaml --seed 4", "takes --hyp, --seed from the run itself"),
        ("train --resume nope.pt", "nope.pt does not exist"),
        ("train --engine yolov5u --evolve", "no --evolve"),
        ("train --engine yolov7", "'yolov5u'"),
        ("val", "--weights is missing"),
        ("val --weights nope.pt", "nope.pt does not exist"),
        ("detect --weights nope.pt --source .", "nope.pt does not exist"),
        ("detect --source nowhere", "nowhere does not exist"),
        ("export --include onnx", "--weights is missing"),
        ("smoke --engine yolov7", "yolov5 or yolov5u"),
        ("data demo --images 1", "from 2 to"),
        ("data demo --size 64", "--force"),
        ("data demo --out .", "did not make"),
        ("data check nope.yaml", "nope.yaml does not exist"),
        ("preflight --device cpu --data nope.yaml", "nope.yaml does not exist"),
        ("nonsense", "nonsense"),
        ("data demo --nonsense", "--nonsense"),
    ],
)
def test_bad_input(ready: Project, capsys: pytest.CaptureFixture[str], words: str, part: str) -> None:
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert part in said[-1]
    assert said[-1].startswith("lab: ")
    assert not (ready.runs / "train").exists() or not any((ready.runs / "train").iterdir())


def test_without_the_source_the_mend_is_named(
    project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Project, "upstream", property(lambda _: tmp_path / "absent"))
    assert cli.main(["train"]) == 2
    assert "lab fetch" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_cache_on_a_read_only_disk_is_refused(ready: Project, capsys: pytest.CaptureFixture[str]) -> None:
    images = ready.root / "data" / "demo" / "images" / "train"
    images.chmod(0o555)
    assert cli.main(["train", "--cache", "disk"]) == 2
    assert "--cache ram" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["engine: yolov9\n", "model: resnet\n", "image_size: big\n", "a: [\n", "[1]\n"])
def test_a_wrong_lab_yaml_is_told(project: Project, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (project.root / "lab.yaml").write_text(text, encoding="utf-8")
    assert cli.main(["train"]) == 2
    assert "lab.yaml" in capsys.readouterr().err


def test_check_counts_and_finds_faults(ready: Project, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check"]) == 0
    (shapes.parent / "labels" / "val" / "000000.txt").write_text("9 1 1 1 1\n", encoding="utf-8")
    assert cli.main(["data", "check", str(shapes)]) == 1
    assert "000000.txt: line 1: class 9" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["train", "val", "detect", "export"])
def test_help_lists_the_options(capsys: pytest.CaptureFixture[str], task: str) -> None:
    assert cli.main([task, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"lab {task}" in said
    assert "--weights" in said


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, lab.cli; lab.cli.main(['--help']); lab.cli.main(['train', '--help']);"
        "print('heavy:', [m for m in ('torch', 'ultralytics', 'cv2', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "heavy: []" in done.stdout, time.monotonic() - begun


def test_a_front_door_is_the_same_command(project: Project) -> None:
    for task in ("train", "val", "detect", "export"):
        done = subprocess.run(
            [sys.executable, str(CODE / f"{task}.py"), "--nonsense"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("lab: there is no option --nonsense")
