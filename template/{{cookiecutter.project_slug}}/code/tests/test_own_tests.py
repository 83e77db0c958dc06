"""The project's own `pytest tests`: it runs with data and without, and what is wrong with the data fails it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import demo
from lab.dataset import label_file
from lab.project import CODE, Project

OWN = CODE.parent / "tests"


@pytest.fixture
def own(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The tests in a small project, with its lab.yaml and without a checkpoint."""
    shutil.copytree(OWN, project.root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (project.root / "pytest.ini").write_text(f"[pytest]\npythonpath = {CODE}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    monkeypatch.delenv("CHECKPOINT", raising=False)
    return project


@pytest.fixture
def made(own: Project) -> Path:
    """The directory of a demo set in which every class is in both splits."""
    demo.make(demo.Recipe(images=40, size=96), own.root / "data" / "demo")
    return own.root / "data" / "demo"


def ran(own: Project) -> tuple[dict[str, str], str]:
    """The outcome of each test, and all that pytest says."""
    words = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=own.root, capture_output=True, text=True, check=False)
    return dict(re.findall(r"::(test_\w+) (PASSED|FAILED|SKIPPED|ERROR)", done.stdout)), done.stdout + done.stderr


def test_with_sound_data_they_pass(own: Project, made: Path) -> None:
    outcomes, said = ran(own)
    assert outcomes == {
        "test_the_data_is_in_order": "PASSED",
        "test_no_picture_is_in_both_splits": "PASSED",
        "test_the_checkpoint_is_good_enough": "SKIPPED",
        "test_a_wrong_file_is_told": "PASSED",
    }, said


def test_without_data_they_are_skipped_with_the_reason(own: Project) -> None:
    outcomes, said = ran(own)
    assert outcomes["test_the_data_is_in_order"] == "SKIPPED", said
    assert "lab data demo" in said


def test_broken_data_fails_and_is_named(own: Project, made: Path) -> None:
    picture = next((made / "images/train").iterdir())
    label_file(picture).write_text("9 .5 .5 .2 .2\n", encoding="utf-8")
    outcomes, said = ran(own)
    assert outcomes["test_the_data_is_in_order"] == "FAILED", said
    assert f"{label_file(picture)}: class" in said


def test_a_class_without_boxes_fails(own: Project, made: Path) -> None:
    for label in (made / "labels/val").iterdir():
        label.write_text("0 .5 .5 .2 .2\n", encoding="utf-8")
    outcomes, said = ran(own)
    assert outcomes["test_the_data_is_in_order"] == "FAILED", said
    assert "classes without a box in val" in said
