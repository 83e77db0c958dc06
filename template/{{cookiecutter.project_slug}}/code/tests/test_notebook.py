"""The notebook runs from its first cell to its last, offline; what is committed holds no outputs."""

import json
import os
import sys
from pathlib import Path

import pytest
from test_container import environment

from lab.project import CODE, Project

NOTEBOOK = CODE.parent / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def cells() -> list[str]:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_no_outputs_are_committed() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_every_cell_is_python(cells: list[str]) -> None:
    for number, cell in enumerate(cells):
        compile(cell, f"cell {number}", "exec")


@pytest.mark.container
def test_the_notebook_runs(
    cells: list[str],
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By nbclient where it is installed, as VS Code and Jupyter would; else cell after cell in this process."""
    log = tmp_path / "network.log"
    for name, value in environment(log).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.syspath_prepend(str(CODE))
    try:
        import nbclient
        import nbformat
    except ImportError:
        monkeypatch.setenv("MPLBACKEND", "Agg")
        shown: dict[str, object] = {"__name__": "__main__"}
        for number, cell in enumerate(cells):
            exec(compile(cell, f"cell {number}", "exec"), shown)
        said = capsys.readouterr().out
    else:
        book = nbformat.read(NOTEBOOK, as_version=4)
        nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(project.root)}}).execute()
        said = json.dumps(book)
        assert said.count('"image/png"') >= 3  # data, curves, detections
    assert "onnx agrees with runs/train/quickstart/weights/best.pt" in said
    assert len(list((project.root / "runs/detect/quickstart").glob("*.jpg"))) >= 6
    reached = [line for line in log.read_text().splitlines() if "loopback-" not in line] if log.exists() else []
    assert reached == []
    assert os.getcwd() == str(project.root)  # noqa: PTH109
    assert "matplotlib" in sys.modules or "nbclient" in sys.modules
