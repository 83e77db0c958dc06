"""Your project's own promises: the data is in order, and the newest checkpoint is good enough. Add yours.

`pytest tests` runs them in the container, and CI does on every push. What is not here yet is skipped with its reason.
(`code/tests` are the scaffold's, which `cruft update` brings up to date: leave them alone.)
"""

import os
import re
import subprocess
import sys

import pytest

from lab import check, dataset
from lab.check_kinds import NOTE
from lab.errors import LabError
from lab.project import Project, open_project


@pytest.fixture(scope="session")
def project() -> Project:
    return open_project()


@pytest.fixture(scope="session")
def data(project: Project) -> dataset.Dataset:
    """The data set of lab.yaml."""
    if project.find(project.data) is None:
        pytest.skip(f"{project.data} is not here: `lab data demo` makes the demo set")
    return dataset.open_dataset(project.data, project)


@pytest.fixture(scope="session")
def checkpoint(project: Project) -> str:
    """$CHECKPOINT, else the newest best.pt."""
    runs = sorted(project.runs.glob("train/*/weights/best.pt"), key=lambda file: file.stat().st_mtime)
    found = os.environ.get("CHECKPOINT") or (str(runs[-1]) if runs else "")
    if not found:
        pytest.skip("there is no checkpoint yet: `lab train`, or CHECKPOINT=file.pt")
    return found


def test_the_data_is_in_order(project: Project, data: dataset.Dataset) -> None:
    """What `lab data check` looks for; the command also writes a page with the pictures."""
    result = check.run(data, project)
    wrong = [found for finding in result.findings if finding.level != NOTE for found in finding.examples]
    assert result.problems == 0, "\n".join(f"{found.path}: {found.kind}, {found.words}" for found in wrong)
    for split in ("train", "val"):
        classes = result.splits[split].classes
        absent = [data.names[number] for number, boxes in classes.items() if not boxes]
        assert not absent, f"classes without a box in {split}"


def test_no_picture_is_in_both_splits(data: dataset.Dataset) -> None:
    assert not set(data.images("train")) & set(data.images("val"))


def test_the_checkpoint_is_good_enough(project: Project, checkpoint: str, data: dataset.Dataset) -> None:
    """The bar is `map50` of lab.yaml: raise it as your models get better, and CI keeps a worse one out."""
    if project.map50 is None:
        pytest.skip("lab.yaml has no line map50")
    done = subprocess.run(
        [sys.executable, "-m", "lab", "val", "--weights", checkpoint, "--data", str(data.file), "--name", "test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # the engines' own table: class, images, boxes, precision, recall, mAP at 0.5, mAP from 0.5 to 0.95
    row = re.search(
        r"^\s+all\s+\d+\s+\d+\s+[\d.e-]+\s+[\d.e-]+\s+([\d.e-]+)\s", done.stdout + done.stderr, re.MULTILINE
    )
    assert row, done.stdout
    assert float(row[1]) >= project.map50


def test_a_wrong_file_is_told(project: Project) -> None:
    """An example of how the scaffold reports: one sentence, no traceback."""
    with pytest.raises(LabError, match="does not exist"):
        dataset.open_dataset("no/such/data.yaml", project)
