"""A small project to stand in, and the rule for tests that need the container."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lab import demo, devices, upstream
from lab.project import Project, open_project

LAB_YAML = "engine: yolov5\nmodel: yolov5n\nimage_size: 96\ndata: data/demo/data.yaml\n"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "container: needs torch and the engines, that is, the container")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("torch", "ultralytics", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"needs the container: {', '.join(missing)} not installed here")
        for item in items:
            if item.get_closest_marker("container"):
                item.add_marker(skip)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project, with the current directory in it."""
    (tmp_path / "lab.yaml").write_text(LAB_YAML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return open_project()


@pytest.fixture
def shapes(project: Project) -> Path:
    """The yaml file of a tiny demo data set in `project`."""
    demo.make(demo.Recipe(images=12, size=96, shapes=(1, 2), radius=(0.16, 0.26)), project.root / "data" / "demo")
    return project.root / "data" / "demo" / "data.yaml"


@pytest.fixture
def ready(project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    """A project with demo data, YOLOv5's source (its model yaml at least) and no GPU."""
    place = tmp_path / "code" / "yolov5"
    (place / "models").mkdir(parents=True)
    (place / "models" / "yolov5n.yaml").write_text("nc: 80\n", encoding="utf-8")
    (place / upstream.PINNED).write_text("", encoding="utf-8")
    monkeypatch.setattr(Project, "upstream", property(lambda _: place))
    monkeypatch.setattr(upstream, "changed", lambda _: [])
    monkeypatch.setattr(devices, "DEV", tmp_path / "dev")
    return project
