"""docs/pains.md promises a test for each of 38 pains: all rows are there, and every test that it names exists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Bake

ROWS = [
    line for line in (ROOT / "docs/pains.md").read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+ \|", line)
]


def functions(file: Path) -> dict[str, list[str]]:
    """The functions of a file by name, each with its decorators as they are written."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {function.name: [ast.unparse(one) for one in function.decorator_list] for function in functions}


def test_all_of_them_are_there_in_order() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 39))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_test_it_names_exists_and_always_runs(row: str) -> None:
    """What is marked `long` runs only where somebody asks for it: no promise may rest on that alone."""
    named = re.findall(r"`((?:code/)?tests/[\w/]+)::(test_\w+)`", row.rsplit("|", 2)[1])
    assert named
    for place, name in named:
        base = ROOT / "template/{{cookiecutter.project_slug}}" if place.startswith("code/") else ROOT
        decorators = functions(base / f"{place}.py").get(name)
        assert decorators is not None, f"{place}::{name}"
        assert "pytest.mark.long" not in decorators, f"{place}::{name}"


def test_no_torch_before_2_7_is_offered() -> None:
    """Pain 27."""
    offered = json.loads((ROOT / "template/cookiecutter.json").read_text(encoding="utf-8"))["torch_version"]
    releases = [tuple(map(int, release.split(".")[:2])) for release in offered if release != "auto"]
    assert min(releases) >= (2, 7)


def test_every_service_that_trains_has_shared_memory(bake: Bake) -> None:
    """Pain 1: Docker gives 64 MB."""
    services = yaml.safe_load((bake() / "compose.yaml").read_text(encoding="utf-8"))["services"]
    given = {name: services[name].get("shm_size") for name in ("dev", "train", "val", "jupyter", "ssh")}
    assert set(given.values()) == {"${SHM_SIZE:-8gb}"}
