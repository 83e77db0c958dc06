"""`lab gate`, `lab card` and `lab pipeline` on runs written by hand, with an engine that is none."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_run import NAMES, make_run, predicted, write_pictures

from lab import card, cli, gate, pipeline, report_predict, report_run, tasks
from lab.errors import LabError
from lab.options import Request
from lab.project import Project
from lab.resume import Asked, write_asked


@pytest.fixture
def data(project: Project) -> Path:
    return write_pictures(project.root / "data" / "x", 40)


@pytest.fixture(autouse=True)
def detector(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Finds most of the boxes; the list counts how often it was asked."""
    asked: list[int] = []

    def predict(run: Any, project: Any, weights: Any, images: Any, dataset: Any, device: Any) -> Any:
        asked.append(len(images))
        return predicted(images, dataset), {"preparing": 0.5, "network": 2.5}

    monkeypatch.setattr(report_predict, "_predict", predict)
    return asked


def settings(project: Project, **more: Any) -> None:
    """Lines of lab.yaml replaced or added."""
    file = project.root / "lab.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **more}), encoding="utf-8")


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_the_gate_writes_what_it_judged(
    project: Project, data: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(project.runs / "train" / "exp", data, engine, epochs=12, peak=9)
    assert cli.main(["gate", "--map50", "0.3"]) == 0
    assert re.search(r"lab: exp passes: mAP50 0\.\d{3}, .* asked was mAP50 of at least 0.3", capsys.readouterr().out)
    said = json.loads((run / "metrics.json").read_text())
    assert said["passed"] is True
    assert said["bar"] == {"map50": 0.3, "map": None}
    assert (said["images"], said["boxes"], [one["name"] for one in said["classes"]]) == (40, 80, list(NAMES))
    assert said["map50"] == pytest.approx(sum(one["map50"] for one in said["classes"]) / 3)
    assert said["epoch"] == 9
    epochs, columns = report_run.curves(run / "results.csv")
    assert said["results_csv"]["map"] == columns["map"][epochs.index(9)]
    assert said["milliseconds"] == {"preparing": 0.5, "network": 2.5}
    assert "processors" in said["device"]


def test_under_the_bar_is_one_sentence_and_status_1(
    project: Project, data: Path, capsys: pytest.CaptureFixture[str], detector: list[int]
) -> None:
    run = make_run(project.runs / "train" / "exp", data)
    assert cli.main(["gate", "exp", "--map50", "1", "--map", "0.99"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"lab: exp does not pass: mAP50 is 0\.\d+, under 1 and mAP50-95 is 0\.\d+, under 0.99; `lab report exp` shows "
        "where it errs",
        said,
    )
    assert json.loads((run / "metrics.json").read_text())["passed"] is False
    assert cli.main(["gate", "exp", "--map50", "0.1"]) == 0
    assert detector == [40], "what was measured is known"


def test_the_bar_is_that_of_lab_yaml_unless_given(project: Project) -> None:
    assert gate.bar(replace(project, map50=0.7), None, None) == gate.Bar(0.7, None)
    assert gate.bar(replace(project, map50=0.7), 0.2, None) == gate.Bar(0.2, None)
    assert gate.bar(replace(project, map50=0.7), None, 0.2) == gate.Bar(None, 0.2)
    with pytest.raises(LabError, match=r"a line `map50: 0.5` into lab.yaml"):
        gate.bar(project, None, None)
    with pytest.raises(LabError, match=r"--map50 50: give a number from 0 to 1"):
        gate.bar(project, 50, None)
    with pytest.raises(LabError, match=r"--map nan"):
        gate.bar(project, None, float("nan"))


def test_a_value_that_is_told_as_the_bar_reaches_it(project: Project, data: Path) -> None:
    run = report_run.read(make_run(project.runs / "train" / "exp", data), project)
    measured = report_predict.findings(run, project, None).measured
    assert measured is not None
    assert gate.Bar(map50=0.5).missed(replace(measured, ap50=0.49996)) == []
    assert gate.Bar(map50=0.5).missed(replace(measured, ap50=0.4994)) == ["mAP50 is 0.499, under 0.5"]


def test_what_cannot_be_measured_does_not_pass(
    project: Project, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(project.runs / "train" / "exp", data)
    for label in (project.root / "data/x/labels").iterdir():
        label.write_text("")
    assert cli.main(["gate", "--map50", "0"]) == 1
    assert "no labelled box" in capsys.readouterr().err
    (run / "weights/best.pt").unlink()
    assert cli.main(["gate", "--map50", "0"]) == 1
    assert "exp cannot be judged: the run saved no checkpoint" in capsys.readouterr().err
    assert cli.main(["card"]) == 1
    assert not (run / "README.md").exists()


@pytest.mark.parametrize("value", ["50", "-1", "high", "true"])
def test_an_odd_bar_in_lab_yaml(project: Project, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings(project, map50=yaml.safe_load(value))
    assert cli.main(["gate"]) == 2
    assert "must be a number from 0 to 1" in capsys.readouterr().err


# --- the card ---------------------------------------------------------------------------------------------------------


def made_card(project: Project, run: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a run's card."""
    assert cli.main(["card", str(run)]) == 0
    _, front, text = (run / card.NAME).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The rows below `heading`, by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in text.split(heading)[1].splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_the_card_says_what_the_records_say(project: Project, data: Path, engine: str) -> None:
    run = make_run(project.runs / "train" / "exp", data, engine, epochs=12, peak=9)
    (run / "weights/best.onnx").write_bytes(b"no network")
    front, text = made_card(project, run)
    assert front["license"] == "agpl-3.0"
    assert front["pipeline_tag"] == "object-detection"
    assert front["library_name"] == {"yolov5": "yolov5", "yolov5u": "ultralytics"}[engine]
    [entry] = front["model-index"]
    [result] = entry["results"]
    kept = json.loads((run / "report.json").read_text())
    assert result["dataset"] == {"type": "x", "name": "data/x.yaml", "split": "val", "revision": "00112233aabbccdd"}
    assert {one["name"]: one["value"] for one in result["metrics"]} == {
        "mAP@0.5": round(kept["measured"]["ap50"], 5),
        "mAP@0.5:0.95": round(kept["measured"]["ap"], 5),
        "precision": round(kept["measured"]["precision"], 5),
        "recall": round(kept["measured"]["recall"], 5),
    }
    figures = table(text, "## Evaluation")
    for score in kept["measured"]["classes"]:
        assert figures[NAMES[score["number"]]][-2:] == [f"{score['ap50']:.3f}", f"{score['ap']:.3f}"]
    epochs, columns = report_run.curves(run / "results.csv")
    own = [f"{columns[key][epochs.index(9)]:g}" for key in report_run.METRICS]
    assert " | ".join(own) in text.split("`results.csv`")[1]
    for words in (
        "`0123456789abcdef0123456789abcdef01234567`",
        "`diff.patch` beside the run, 1 files that git does not follow",
        "`00112233aabbccdd`",
        "torch | 2.8.0+cu128",
        "NVIDIA H200",
        f"lab train --engine {engine} --data data/x.yaml --epochs 12",
        "AGPL-3.0",
        "lab serve --weights best.onnx",
        "Fewer than 50 boxes were there to measure circle, square, triangle",
    ):
        assert words in text, words
    assert ("git checkout" in text) == (engine == "yolov5")


def test_a_card_of_a_bare_run_invents_nothing(project: Project, data: Path) -> None:
    run = make_run(project.runs / "train" / "exp", data)
    for name in ("run.json", "telemetry.csv"):
        (run / name).unlink()
    front, text = made_card(project, run)
    assert "revision" not in front["model-index"][0]["results"][0]["dataset"]
    assert "| commit | not recorded |" in text
    for words in ("fingerprint", "## Environment", "best.onnx", "asked for", "None"):
        assert words not in text, words


def test_names_of_classes_break_neither_table_nor_page(project: Project) -> None:
    names = ("a|b", "<script>alert(1)</script>", "x: {y}\n---")
    data = write_pictures(project.root / "data" / "x", 40, names)
    front, text = made_card(project, make_run(project.runs / "train" / "exp", data))
    assert front["license"] == "agpl-3.0"
    assert "<script" not in text
    rows = [line for line in text.split("## Evaluation")[1].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:6]} == {8}
    assert rows[3].startswith(r"| a\|b |")


def test_the_card_repeats_the_judgement_only_while_it_holds(project: Project, data: Path) -> None:
    run = make_run(project.runs / "train" / "exp", data)
    assert cli.main(["gate", "--map50", "0.1"]) == 0
    assert "It was asked for mAP50 of at least 0.1, and passes." in made_card(project, run)[1]
    said = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**said, "map50": 0.123}))
    assert "asked for" not in made_card(project, run)[1]


# --- the pipeline -----------------------------------------------------------------------------------------------------


class Engine:
    """Stands for `tasks.perform`: writes what a training and an export leave, or fails as it is told."""

    def __init__(self, project: Project, data: Path) -> None:
        self.project, self.data = project, data
        self.done: list[Request] = []
        self.breaks: set[str] = set()

    def __call__(self, request: Request, _project: Project) -> Path | None:
        self.done.append(request)
        if request.task == "export":
            self._maybe_break("export")
            Path(request.given["weights"][0]).with_suffix(".onnx").write_bytes(b"onnx")
            return None
        if "resume" in request.given:
            directory = Path(request.given["resume"])
        else:
            directory = self.project.runs / "train" / "exp"
            directory.mkdir(parents=True)
            Path(os.environ[tasks.RUN_FILE]).write_text(str(directory))
        asked = Asked("yolov5", {"epochs": 5}, [""], None)
        write_asked(directory, asked)
        self._maybe_break("train")
        for part in directory.iterdir():
            part.unlink()
        directory.rmdir()
        make_run(directory, self.data)
        write_asked(directory, replace(asked, done=True))
        return directory

    def _maybe_break(self, task: str) -> None:
        if task in self.breaks:
            raise LabError(f"{task} broke", 1)

    @property
    def tasks(self) -> list[str]:
        return [request.task for request in self.done]


@pytest.fixture
def engine(project: Project, data: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(project, data)
    monkeypatch.setattr(tasks, "perform", made)
    settings(project, data="data/x/data.yaml", pipeline="--epochs 5", map50=0.1)
    # the pictures of the made-up set are in both splits, which the check tells
    monkeypatch.setattr(pipeline.cli_data, "check_and_tell", lambda *_: (data, 0))
    return made


def steps(project: Project, name: str = "exp") -> dict[str, str]:
    said = json.loads((project.runs / "pipeline" / name / "pipeline.json").read_text())
    return {step: about["status"] for step, about in said["steps"].items()}


ALL = ["check", "train", "export", "val", "report", "gate", "card"]


def test_everything_lies_in_one_folder(project: Project, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipeline", "--batch", "4"]) == 0
    out = project.runs / "pipeline" / "exp"
    assert {path.name for path in out.iterdir()} == {
        ".run", "best.pt", "best.onnx", "report.html", "metrics.json", "README.md", "run.json", "results.csv",
        "data-check.html", "pipeline.json",
    }  # fmt: skip
    assert steps(project) == dict.fromkeys(ALL, "done")
    said = json.loads((out / "pipeline.json").read_text())
    assert (said["status"], said["run"]) == ("passed", "runs/train/exp")
    assert engine.done[0].given == {"epochs": 5, "batch_size": 4}, "lab.yaml's, and those given"
    assert engine.done[1].given["include"] == ["onnx"]
    assert engine.done[1].given["imgsz"] == [160], "as it was trained"
    assert "its artifacts are in runs/pipeline/exp" in capsys.readouterr().out
    assert tasks.RUN_FILE not in os.environ


def test_under_the_bar_it_stops_with_the_page_and_without_a_card(
    project: Project, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pipeline", "--map50", "1"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lab: the pipeline stops at gate: exp does not pass: mAP50 is 0.")
    assert said.endswith("`lab pipeline --out runs/pipeline/exp` goes on from here")
    out = project.runs / "pipeline" / "exp"
    assert {"report.html", "metrics.json", "best.onnx"} <= {path.name for path in out.iterdir()}
    assert not (out / "README.md").exists()
    assert steps(project) == {**dict.fromkeys(ALL[:5], "done"), "gate": "failed"}
    # an easier bar lets the same model pass, a harder one takes its card away
    assert cli.main(["pipeline", "--out", "runs/pipeline/exp", "--map50", "0.1"]) == 0
    assert (out / "README.md").is_file()
    assert cli.main(["pipeline", "--out", "runs/pipeline/exp", "--map50", "1"]) == 1
    assert not (out / "README.md").exists()
    assert engine.tasks == ["train", "export"]


@pytest.mark.parametrize("broken", ["train", "export"])
def test_it_goes_on_where_it_stopped(
    project: Project, engine: Engine, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.breaks = {broken}
    assert cli.main(["pipeline", "--out", "runs/x"]) == 1
    assert f"lab: the pipeline stops at {broken}: {broken} broke; " in capsys.readouterr().err
    engine.breaks = set()
    assert cli.main(["pipeline", "--out", "runs/x"]) == 0
    expected = {"train": ["train", "train", "export"], "export": ["train", "export", "export"]}
    assert engine.tasks == expected[broken]
    if broken == "train":
        assert engine.done[1].given == {"resume": str(project.runs / "train" / "exp"), "engine": "yolov5"}
    assert (project.root / "runs/x/README.md").is_file()
    assert cli.main(["pipeline", "--out", "runs/x"]) == 0
    assert engine.tasks == expected[broken], "nothing is trained or exported twice"


def test_broken_data_costs_no_training(
    project: Project, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.cli_data, "check_and_tell", lambda *_: (engine.data, 3))
    assert cli.main(["pipeline"]) == 1
    assert "stops at check: 3 problems in data/x/data.yaml: `lab data check --fix`" in capsys.readouterr().err
    assert engine.done == []
    assert (project.runs / "pipeline/exp/data-check.html").is_file()


def test_stopped_by_the_user(project: Project, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "perform", stop)
    assert cli.main(["pipeline"]) == 130
    assert steps(project) == {"check": "done", "train": "stopped"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--epoch-count 3", "no option --epoch-count"),
        ("--resume", "takes no --resume: a pipeline goes on by itself"),
        ("--evolve", "takes no --evolve"),
        ("--nodes 2", "takes no --nodes"),
        ("--map50 50", "give a number from 0 to 1"),
        ("--out data/x", "holds other files"),
    ],
)
def test_bad_input(project: Project, engine: Engine, words: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipeline", *words.split()]) == 2
    assert part in capsys.readouterr().err
    assert not (project.runs / "pipeline").exists()
    assert engine.done == []


def test_other_options_are_another_pipeline(
    project: Project, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pipeline", "--out", "runs/x", "--batch", "4"]) == 0
    assert cli.main(["pipeline", "--out", "runs/x", "--batch", "4"]) == 0, "as CI runs a job again"
    assert cli.main(["pipeline", "--out", "runs/x", "--batch", "8"]) == 2
    assert "was begun with other options" in capsys.readouterr().err


def test_bad_options_in_lab_yaml_are_told_as_such(
    project: Project, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(project, pipeline="--epochz 3")
    assert cli.main(["pipeline"]) == 2
    assert re.search(r"`pipeline` in .*lab.yaml: .*did you mean --epochs", capsys.readouterr().err)


def test_the_smoke_pipeline_knows_nothing_of_lab_yaml_but_the_engine(project: Project, engine: Engine) -> None:
    settings(project, data="nowhere.yaml", logger="mlflow")
    assert cli.main(["pipeline", "--smoke", "--out", "runs/x", "--epochs", "2"]) == 0
    given = engine.done[0].given
    assert (given["epochs"], given["imgsz"], given["cfg"], given["engine"]) == (2, 96, "yolov5n.yaml", "yolov5")
    assert Path(given["data"]).is_relative_to(project.root / "runs/x/.smoke")
    assert len(list((project.root / "runs/x/.smoke/data/images/train").iterdir())) == 96
    assert json.loads((project.root / "runs/x/pipeline.json").read_text())["bar"]["map50"] == pipeline.SMOKE_MAP50
