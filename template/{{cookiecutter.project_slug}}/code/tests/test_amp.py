"""Whether a training computes in half precision, and that it is said loudly when it does not."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lab import child, upstream
from lab.project import CODE, ENGINES, Project

GTX_1650, A100 = "NVIDIA GeForce GTX 1650", "NVIDIA A100-SXM4-40GB"
TRAIN = ["--cfg", "yolov5n.yaml", "--img", "64", "--batch", "8", "--workers", "0", "--noplots", "--device", "cpu"]


def judged(
    monkeypatch: pytest.MonkeyPatch, name: str, passes: bool, gap: float | None, device: str = "cuda", rank: str = "0"
) -> tuple[bool, list[str]]:
    """What becomes of AMP on a card of this name, and what was asked. `gap` is None for NaN."""
    asked: list[str] = []

    def check(_: Any) -> bool:
        asked.append("engine")
        return passes

    def look(*_: Any) -> float | None:
        asked.append("network")
        return gap

    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(get_device_name=lambda _: name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(child, "half_precision_gap", look)
    monkeypatch.setattr(child, "NOTES", {})
    monkeypatch.setenv("RANK", rank)
    place = types.SimpleNamespace(type=device)
    network = types.SimpleNamespace(parameters=lambda: iter([types.SimpleNamespace(device=place)]))
    return child.watch_amp(check)(network), asked


OFF = {
    "a card that is known": (GTX_1650, True, 0.01, f"AMP IS OFF: {GTX_1650} computes wrong values in half precision."),
    "a workstation's": ("NVIDIA T1000 8GB", True, 0.01, "AMP IS OFF: NVIDIA T1000 8GB computes wrong values"),
    "the engine's check": (A100, False, 0.3, f"AMP IS OFF: half precision on {A100} does not agree with full"),
    "NaN": (A100, False, None, f"AMP IS OFF: in half precision {A100} computes numbers that are none (NaN)."),
    "NaN that the engine did not look for": (A100, True, None, "computes numbers that are none (NaN)."),
}


@pytest.mark.parametrize(("name", "passes", "gap", "words"), OFF.values(), ids=OFF)
def test_it_is_said_loudly_when_amp_is_off(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    passes: bool,
    gap: float | None,
    words: str,
) -> None:
    on, asked = judged(monkeypatch, name, passes, gap)
    assert not on
    assert asked == ([] if name != A100 else ["engine", "network"])
    frame, said, consequence, end = capsys.readouterr().err.splitlines()
    assert words in said
    assert "slower and needs about twice the memory" in consequence
    assert frame == end == "lab: " + "=" * 76
    assert child.NOTES["amp"] is False
    assert child.NOTES["amp_reason"] in said


def test_amp_that_is_on_makes_no_noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(monkeypatch, A100, True, 0.01) == (True, ["engine", "network"])
    assert (capsys.readouterr().err, child.NOTES) == ("", {"amp": True})
    assert judged(monkeypatch, A100, False, 0.01)[0]  # the engine wanted a checkpoint that is not here
    assert capsys.readouterr().err.splitlines() == [
        "lab: the engine's check of half precision found no answer, ours did (differs by 1%): AMP stays on"
    ]


def test_it_is_said_once_and_not_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(monkeypatch, GTX_1650, True, 0.01, rank="1") == (False, [])  # off on each of several GPUs
    assert judged(monkeypatch, "", False, None, device="cpu") == (False, ["engine"])
    assert (capsys.readouterr().err, child.NOTES) == ("", {})


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "gap", "words"),
    [
        (GTX_1650, "0", f"AMP IS OFF: {GTX_1650} computes wrong values"),
        pytest.param(A100, "0.3", f"AMP IS OFF: half precision on {A100} does not agree", marks=pytest.mark.long),
    ],
)
def test_a_training_of_each_engine_says_it(
    engine: str, name: str, gap: str, words: str, project: Project, shapes: Path
) -> None:
    """The engines ask through what is tested above, and train on without; the card is described."""
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    paths = os.pathsep.join(map(str, (CODE, CODE / "tests" / "described_gpu")))
    done = subprocess.run(
        [sys.executable, "-m", "lab", "train", *TRAIN, "--epochs", "1", "--engine", engine],
        env={**os.environ, "PYTHONPATH": paths, "DESCRIBED_GPU": name, "DESCRIBED_GAP": gap},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert words in done.stderr
    assert done.stderr.count("AMP IS OFF") == 1
    kept = json.loads((project.runs / "train" / "exp" / "run.json").read_text(encoding="utf-8"))
    assert kept["plan"]["amp"] is False
