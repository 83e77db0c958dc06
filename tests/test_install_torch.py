"""docker/install-torch: where torch comes from in each situation. uv is a program of the test that notes its calls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import Bake

UV = """#!/bin/bash
printf '%s\\n' "$*" >>"$CALLS"
for part in "$@"; do
    [ "$part" != "$UNREACHABLE" ] || exit 2
    [ "$part" != --constraints ] || [ -z "$CONFLICT" ] || exit 1
    [ "$part" != --no-index ] || exit "$INCOMPLETE" # what the wheelhouse holds is not enough
done
"""


class Outcome:
    """What one run asked uv for, said and returned."""

    def __init__(self, done: subprocess.CompletedProcess[str], calls: list[str]) -> None:
        self.status, self.said = done.returncode, done.stderr
        self.asked = [call for call in calls if "torch==" in call]


@pytest.fixture
def install(bake: Bake, tmp_path: Path):
    def run(
        wheels: tuple[str, ...] = (),
        unreachable: str = "-",
        complete: bool = False,
        conflict: bool = False,
        **settings: str,
    ) -> Outcome:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/uv").write_text(UV)
        (tmp_path / "bin/uv").chmod(0o755)
        wheelhouse = tmp_path / "wheelhouse"
        wheelhouse.mkdir()
        for wheel in wheels:
            (wheelhouse / wheel).touch()
        calls = tmp_path / "calls"
        calls.touch()
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "UNREACHABLE": unreachable,
            "CONFLICT": "yes" if conflict else "",
            "INCOMPLETE": "0" if complete else "1",
            "WHEELHOUSE": str(wheelhouse),
            "TORCH_VERSION": "2.8.0",
            "TORCHVISION_VERSION": "0.23.0",
            "TORCH_BUILD": "",
            "TORCH_INDEX": "",
            **settings,
        }
        done = subprocess.run(
            [bake() / "docker/install-torch"], env=environment, capture_output=True, text=True, check=False
        )
        return Outcome(done, calls.read_text().splitlines())

    return run


def test_the_default_index(install) -> None:
    outcome = install(TORCH_BUILD="cu128")
    assert outcome.status == 0
    (call,) = outcome.asked
    assert call.endswith("torch===2.8.0 torchvision===0.23.0")
    assert "--index " not in call


def test_another_index(install) -> None:
    outcome = install(TORCH_BUILD="cu126", TORCH_INDEX="https://wheels.example/cu126")
    (call,) = outcome.asked
    assert "--index https://wheels.example/cu126" in call
    assert call.endswith("torch==2.8.0+cu126 torchvision==0.23.0+cu126")


def test_a_wheel_in_the_wheelhouse_comes_first(install) -> None:
    outcome = install(
        ("torch-2.8.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl",),
        TORCH_BUILD="cu126",
        TORCH_INDEX="https://wheels.example/cu126",
    )
    alone, call = outcome.asked
    assert "--no-index" in alone
    assert "--index " not in call
    assert call.endswith("torch==2.8.0+cu126 torchvision==0.23.0+cu126")
    assert "from wheelhouse/" in outcome.said


def test_a_complete_wheelhouse_needs_no_index(install) -> None:
    outcome = install(
        ("torch-2.8.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl",),
        complete=True,
        TORCH_BUILD="cu126",
        TORCH_INDEX="https://wheels.example/cu126",
    )
    assert outcome.status == 0
    (call,) = outcome.asked
    assert "--no-index" in call
    assert "wheelhouse: all of it was there" in outcome.said


def test_a_wheel_of_another_build_is_not_taken_for_the_default_one(install) -> None:
    outcome = install(("torch-2.8.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl",), TORCH_BUILD="cu128")
    _, call = outcome.asked
    assert call.endswith("torch===2.8.0 torchvision===0.23.0")


def test_a_cpu_host_takes_the_default_build_that_lies_in_the_wheelhouse(install) -> None:
    outcome = install(
        ("torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl",),
        complete=True,
        TORCH_BUILD="cpu",
        TORCH_INDEX="https://wheels.example/cpu",
    )
    assert outcome.status == 0
    (call,) = outcome.asked
    assert "--no-index" in call
    assert call.endswith("torch===2.8.0 torchvision===0.23.0")
    assert "it runs on the CPU too" in outcome.said


def test_an_unreachable_cpu_index_falls_back_and_says_so(install) -> None:
    index = "https://wheels.example/cpu"
    outcome = install(TORCH_BUILD="cpu", TORCH_INDEX=index, unreachable=index)
    assert outcome.status == 0
    assert outcome.asked[-1].endswith("torch===2.8.0 torchvision===0.23.0")
    assert "it runs on the CPU too" in outcome.said


def test_an_unreachable_cuda_index_stops_with_the_mend(install) -> None:
    index = "https://wheels.example/cu126"
    outcome = install(TORCH_BUILD="cu126", TORCH_INDEX=index, unreachable=index)
    assert outcome.status == 1
    assert len(outcome.asked) == 1
    assert "TORCH_INDEX_BASE" in outcome.said
    assert "wheelhouse/" in outcome.said


def test_a_release_that_conflicts_with_the_lock_gets_what_it_asks_for(install) -> None:
    outcome = install(conflict=True, TORCH_VERSION="2.6.0", TORCHVISION_VERSION="0.21.0", TORCH_BUILD="cu124")
    assert outcome.status == 0
    held, free = outcome.asked
    assert "--constraints" in held
    assert "--constraints" not in free
    assert "other versions than docker/torch.lock" in outcome.said
