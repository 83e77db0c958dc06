"""docker/install-onnxruntime: which onnxruntime goes with which torch. uv and ldd are programs of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "template" / "{{cookiecutter.project_slug}}" / "docker" / "install-onnxruntime"
UV = """#!/bin/bash
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
*"pip install"*.lock*)
    [ -n "$NO_WHEEL" ] || { mkdir -p "$PROVIDER" && touch "$PROVIDER/libonnxruntime_providers_cuda.so"; }
    ;;
*"pip list"*) echo 'onnxruntime-gpu 1.26.0' ;;
esac
"""
LDD = """#!/bin/sh
printf '%s\\n' "$LD_LIBRARY_PATH" >>"$CALLS"
printf '\\tlibcuda.so.1 => not found\\n\\tlibc.so.6 => /lib/libc.so.6 (0x1)\\n'
for name in $LACKS; do printf '\\t%s => not found\\n' "$name"; done
"""


class Outcome:
    def __init__(self, done: subprocess.CompletedProcess[str], calls: list[str]) -> None:
        self.status, self.said, self.calls = done.returncode, done.stderr, calls
        self.installed = [call for call in calls if "pip install" in call]


@pytest.fixture
def exchange(tmp_path: Path):
    def run(wish: str, cuda: str | None, lacks: str = "", no_wheel: str = "") -> Outcome:
        packages, programs, calls = tmp_path / "packages", tmp_path / "bin", tmp_path / "calls"
        for place in (packages / "torch", packages / "nvidia" / "cudnn" / "lib", packages / "nvidia" / "cufft" / "lib"):
            place.mkdir(parents=True)
        (packages / "torch" / "__init__.py").write_text("raise SystemExit('imported')")  # seconds of a build
        (packages / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n")
        programs.mkdir()
        (programs / "python").symlink_to(sys.executable)
        for name, text in (("uv", UV), ("ldd", LDD)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        calls.touch()
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(packages), "CALLS": str(calls),
            "WHEELHOUSE": str(tmp_path), "PROVIDER": str(packages / "onnxruntime" / "capi"), "ONNXRUNTIME": wish,
            "LACKS": lacks, "NO_WHEEL": no_wheel,
        }  # fmt: skip
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
        return Outcome(done, calls.read_text().splitlines())

    return run


@pytest.mark.parametrize(("cuda", "lock"), [("12.8", "onnxruntime-cu12.lock"), ("13.0", "onnxruntime-cu13.lock")])
def test_the_build_for_torchs_cuda_takes_the_place_of_the_other(exchange, cuda: str, lock: str) -> None:
    outcome = exchange("gpu", cuda)
    assert outcome.status == 0, outcome.said
    assert outcome.calls[0] == "pip uninstall --quiet onnxruntime"  # both are the same module
    (call,) = outcome.installed
    assert call.endswith(f"--no-deps --require-hashes --requirement {SCRIPT.parent / lock}")
    assert outcome.calls[2].endswith("packages/nvidia/cudnn/lib:" + outcome.calls[2].rpartition(":")[2])
    assert f"1.26.0 for CUDA {cuda[:2]}, with all libraries" in outcome.said


@pytest.mark.parametrize("wish", ["cpu", ""])
def test_nothing_changes_unasked(exchange, wish: str) -> None:
    outcome = exchange(wish, "12.8")
    assert (outcome.status, outcome.calls, outcome.said) == (0, [], "")


def test_a_torch_for_the_processor_keeps_its_onnxruntime(exchange) -> None:
    outcome = exchange("gpu", None)
    assert (outcome.status, outcome.calls) == (0, [])
    assert "torch is the build for the processor here" in outcome.said


@pytest.mark.parametrize(
    ("wish", "cuda", "changes", "sentence"),
    [
        ("yes", "12.8", {}, "ONNXRUNTIME=yes is neither cpu nor gpu: correct it"),
        ("gpu", "11.8", {}, "docker/ has no onnxruntime for CUDA 11: choose another TORCH_BUILD"),
        ("gpu", "12.8", {"no_wheel": "yes"}, "onnxruntime for CUDA 12 has no wheel for this Python or machine"),
        ("gpu", "12.4", {"lacks": "libcudnn.so.9 libcufft.so.11"}, "wants libcudnn.so.9, libcufft.so.11, which"),
    ],
)
def test_what_does_not_go_together_stops_the_build(exchange, wish, cuda, changes, sentence) -> None:
    outcome = exchange(wish, cuda, **changes)
    assert outcome.status == 2
    (said,) = [line for line in outcome.said.splitlines() if line.startswith("STOP: ")]
    assert sentence in said
    assert said.endswith(", or remove ONNXRUNTIME from .env")
