"""Settings that `lab tune` keeps for this host, model, data set and image size."""

from dataclasses import replace

import pytest

from lab import cli
from lab.errors import LabError
from lab.fast import tuned
from lab.fast.tuned import Key, Settings
from lab.project import Project

HERE = Key("yolov5", "yolov5n", "data/demo/data.yaml", 640, "0", "8 cores of EPYC, NVIDIA L4 GPU-1")
SETTINGS = Settings({"workers": 6}, {"data": "store", "switches": ["loss"]}, {"images_per_second": 612.5})


def test_settings_come_back(project: Project) -> None:
    file = tuned.write(project, HERE, SETTINGS)
    assert file.parent == project.runs / ".lab" / "tuned"
    assert tuned.read(project, HERE) == SETTINGS
    tuned.write(project, HERE, replace(SETTINGS, options={"workers": 2}))
    assert tuned.read(project, HERE).options == {"workers": 2}
    assert len(list(file.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (replace(HERE, host="64 cores of Xeon, no GPU"), "measured on another machine (8 cores of EPYC, NVIDIA L4"),
        (replace(HERE, imgsz=320), "no settings for yolov5n at 320 pixels on data/demo/data.yaml"),
        (replace(HERE, data="data/mine.yaml"), "no settings for yolov5n at 640 pixels on data/mine.yaml"),
        (replace(HERE, engine="yolov5u"), "with yolov5u: run `lab tune`"),
    ],
)
def test_settings_of_another_training_are_refused(project: Project, other: Key, part: str) -> None:
    tuned.write(project, HERE, SETTINGS)
    with pytest.raises(LabError) as caught:
        tuned.read(project, other)
    assert part in caught.value.sentence


@pytest.mark.parametrize("text", ["", "{", '{"key": {}}', '{"key": 3}', "[]"])
def test_a_damaged_file_counts_as_none(project: Project, text: str) -> None:
    tuned.write(project, HERE, SETTINGS).write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match="run `lab tune`"):
        tuned.read(project, HERE)


def test_the_host_is_named_by_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned.telemetry, "ask_gpus", lambda _: [{"name": "NVIDIA L4", "uuid": "GPU-1"}])
    assert "cores of" in tuned.host()
    assert tuned.host().endswith("NVIDIA L4 GPU-1")


def test_tuned_without_settings_is_one_sentence(ready: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--tuned", "--weights", "", "--device", "cpu"]) == 2
    assert "run `lab tune` with the same options" in capfd.readouterr().err
    assert cli.main(["train", "--tuned", "--plain", "--weights", "", "--device", "cpu"]) == 2
    assert "leave out --plain or --tuned" in capfd.readouterr().err
