"""benchmarks/kills.py works in a folder of its own, and nothing that was there before is touched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import kills  # noqa: E402

CSV = "epoch,metrics/mAP50(B),metrics/mAP50-95(B),val/box_loss,val/cls_loss\n" + "1,0.9,0.8,0.4,0.3\n" * kills.EPOCHS


class Ended:
    """A `lab` that has ended well."""

    def wait(self) -> int:
        return 0

    def poll(self) -> int:
        return 0


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A project in the current directory, and what `lab` is asked there; a training leaves its results at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code/configs").mkdir(parents=True)
    (tmp_path / "code/configs/hyp.small.yaml").write_text("lr0: 0.01\n", encoding="utf-8")
    asked: list[list[str]] = []

    def lab(words: list[str], log: Path) -> Any:
        asked.append(words)
        log.write_text("first lines\n      1/6      0.5G    4 images\n", encoding="utf-8")
        if words[0] == "train":
            run = Path(words[words.index("--project") + 1]) / words[words.index("--name") + 1]
            (run / "weights").mkdir(parents=True)
            (run / "weights/last.pt").touch()
            (run / "results.csv").write_text(CSV, encoding="utf-8")
        return Ended()

    monkeypatch.setattr(kills, "lab", lab)
    monkeypatch.setattr(kills.time, "sleep", lambda _: None)
    return asked


def everything(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_what_is_there_stays(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("runs/train/exp/weights/best.pt", "runs/kills/exp/before.log", "data/kills/data.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    before = everything(tmp_path)
    result = tmp_path / "result.json"
    words = ["kills.py", "--engine", "yolov5u", "--kills", "3", "--undisturbed", "2", "--result", str(result)]
    monkeypatch.setattr(sys, "argv", words)
    kills.main()
    after = everything(tmp_path)
    assert {path: after.get(path) for path in before} == before
    made = set(after) - set(before) - {result}
    assert {path.relative_to(tmp_path).parts[:3] for path in made} == {("runs", "kills", "exp2")}
    trained = [words[words.index("--name") + 1] for words in commands if words[0] == "train"]
    assert trained == ["before", "whole0", "whole1", "killed0", "killed1", "killed2"]
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (found["finished"], found["outside_noise"]) == ("3 of 3", [])
    assert "3 of 3" in capsys.readouterr().out


def test_the_folder_may_be_chosen(commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--kills", "1", "--undisturbed", "1", "--result", "r.json", "--project", "elsewhere", "--name", "mine"]
    monkeypatch.setattr(sys, "argv", ["kills.py", *words])
    kills.main()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["mine"]
    folder = str(tmp_path / "elsewhere/mine")
    assert all(folder in " ".join(words) for words in commands)
