"""`lab report`: what it reads, what it concludes, and the page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_run import NAMES, make_run, predicted, write_pictures, write_results, write_telemetry

from lab import cli, record, report, report_advice, report_predict, report_run, report_svg, telemetry
from lab.errors import LabError
from lab.project import Project
from lab.report_measure import ClassScore, Measured
from lab.report_predict import Findings


@pytest.fixture
def data(project: Project) -> Path:
    return write_pictures(project.root / "data" / "x", 40)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An engine that finds most of the boxes; the list counts how often it was asked."""
    asked: list[int] = []

    def predict(run: Any, project: Any, weights: Any, images: Any, dataset: Any, device: Any) -> Any:
        asked.append(len(images))
        return predicted(images, dataset), {"network": 2.5}

    monkeypatch.setattr(report_predict, "_predict", predict)
    return asked


def write(project: Project, *named: str, val: bool = True) -> str:
    assert report.main(project, list(named), None, val, project.root / "page.html") == 0
    return (project.root / "page.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and checks that elements are closed in order."""

    VOID = frozenset(("meta", "link", "br", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "img"), tag
        for key, value in attrs:
            assert not key.startswith("on"), key
            if key in ("href", "src", "xlink:href", "srcset", "action") and not re.match(r"data:|#", value or ""):
                self.fetched.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine_name", ["yolov5", "yolov5u"])
def test_both_engines_columns_mean_the_same(tmp_path: Path, engine_name: str) -> None:
    write_results(tmp_path / "results.csv", engine_name, 12, peak=9)
    epochs, columns = report_run.curves(tmp_path / "results.csv")
    assert epochs == list(range(1, 13))
    assert {"precision", "recall", "map50", "map", "train/box", "val/box", "val/cls", "lr0", "lr2"} <= set(columns)
    assert max(range(12), key=lambda i: columns["map"][i] or 0) == 8
    assert columns["map"][8] == pytest.approx(0.55 / 0.85 * (columns["map50"][8] or 0), rel=1e-3)


def test_a_resumed_and_a_torn_results_file(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    write_results(file, "yolov5", 3)
    lines = file.read_text(encoding="utf-8").splitlines()
    again = lines[3].replace(lines[3].split(",")[7], " 0.875")
    nan = lines[2].replace(lines[2].split(",")[1], " nan")
    file.write_text("\n".join([lines[0], lines[1], nan, lines[3], lines[0], again, lines[2][:40]]), encoding="utf-8")
    epochs, columns = report_run.curves(file)
    assert epochs == [1, 2, 3]
    assert columns["map"][2] == 0.875
    assert columns["train/box"][1] is None
    assert report_run.curves(tmp_path / "none.csv") == ([], {key: [] for key in report_run.METRICS})


def test_epochs_without_validation_are_no_zeros(tmp_path: Path) -> None:
    head = "epoch,train/box_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,metrics/mAP_0.5:0.95,val/box_loss\n"
    (tmp_path / "results.csv").write_text(head + "0,0.1,0,0,0,0,0\n1,0.1,0.5,0.5,0.5,0.25,0.1\n", encoding="utf-8")
    _, columns = report_run.curves(tmp_path / "results.csv")
    assert columns["map"] == [None, 0.25]
    assert columns["val/box"] == [None, 0.1]


def test_a_run_is_found_by_name_path_checkpoint_or_age(project: Project, data: Path) -> None:
    made = make_run(project.runs / "train" / "exp", data)
    for name in ("exp", "runs/train/exp", "runs/train/exp/weights/best.pt", ""):
        assert report_run.find(name, project) == made
    with pytest.raises(LabError, match=r"no run exp9: the newest is runs/train/exp"):
        report_run.find("exp9", project)
    with pytest.raises(LabError, match="is no training run"):
        report_run.find("data/x/images", project)


def test_no_run_yet(project: Project) -> None:
    with pytest.raises(LabError, match="train one with"):
        report_run.find("", project)


def test_a_run_without_a_record_still_has_a_page(project: Project, data: Path, engine: list[int]) -> None:
    made = make_run(project.runs / "train" / "exp", data)
    (made / record.NAME).unlink()
    (made / telemetry.NAME).unlink()
    text = write(project, "exp")
    assert "There is no run.json" in text
    assert "lab train --engine yolov5 --img 160 --batch 16" in text
    Page(text)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine_name", ["yolov5", "yolov5u"])
def test_the_page_of_a_run(project: Project, data: Path, engine: list[int], engine_name: str) -> None:
    make_run(project.runs / "train" / "exp", data, engine_name)
    text = write(project, "exp")
    page = Page(text)
    assert page.fetched == []
    words = " ".join(page.words)
    for name in NAMES:
        assert name in words
    assert "in epoch 30 of 30" in words
    assert "40 pictures for training and 40 pictures for validation" in words
    assert (
        "git checkout 0123456789abcdef0123456789abcdef01234567\ngit apply runs/train/exp/diff.patch\nlab train" in words
    )
    assert "--seed 0" in words
    assert "00112233aabbccdd" in words
    assert "2.8.0+cu128" in words
    assert len(re.findall(r'class="shot"', text)) == report_predict.FAIR + report_predict.WORST
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)
    assert "://" not in re.sub(r"base64,[^\"]+", "", text)


def test_the_engine_is_asked_once_and_again_for_other_labels(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "exp", data)
    first, second = write(project, "exp"), write(project, "exp")
    assert engine == [40]
    assert first == second
    (data.parent / "labels" / "0000.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    write(project, "exp")
    assert engine == [40, 40]
    (project.runs / "train" / "exp" / report_predict.NAME).write_text('{"format": 1', encoding="utf-8")
    write(project, "exp")
    assert len(engine) == 3


def test_without_validation_the_engine_is_not_asked(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "exp", data)
    assert "Not measured: the checkpoint was not measured (--no-val)." in write(project, "exp", val=False)
    assert engine == []


def test_pictures_that_have_gone(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "exp", data)
    write(project, "exp")
    (data.parent / "images" / "0000.jpg").write_bytes(b"no picture")
    assert len(re.findall(r'class="shot"', write(project, "exp"))) == report_predict.FAIR + report_predict.WORST - 1
    for image in (data.parent / "images").iterdir():
        image.unlink()
    assert "Not measured: " in write(project, "exp")


def test_hostile_names_are_text(project: Project, engine: list[int]) -> None:
    names = ("<script>alert(1)</script>", '"><img src=http://x.example/y onerror=a>', "a & b")
    data = write_pictures(project.root / "data" / "x", 12, names)
    command = ["lab", "train", "--name", "</code><script>x</script>"]
    make_run(project.runs / "train" / "exp <b>", data, command=command)
    page = Page(write(project, "exp <b>"))
    assert page.fetched == []
    assert names[0] in " ".join(page.words)


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            "failed",
            "the GPU's memory does not suffice",
            "This run failed</b> after 12 of 30 epochs: the GPU&#x27;s memory",
        ),
        ("stopped", None, "lab train --engine yolov5 --resume runs/train/exp/weights/last.pt<"),
        ("running", None, "has not ended after 12 of 30 epochs"),
    ],
)
def test_a_run_that_did_not_end_says_so(
    project: Project, data: Path, engine: list[int], status: str, reason: str | None, words: str
) -> None:
    attempt = {"batch": 16, "started": "2026-11-23T08:00:00+00:00", "ended": None, "status": status, "reason": reason}
    made = make_run(project.runs / "train" / "exp", data, epochs=12, planned=30, status=status, attempts=[attempt])
    (made / "weights" / "last.pt").touch()
    assert words in write(project, "exp")


def test_a_run_stopped_before_its_first_epoch_names_what_is_there(
    project: Project, data: Path, engine: list[int]
) -> None:
    made = make_run(project.runs / "train" / "exp", data, status="stopped")
    (made / "results.csv").unlink()
    (made / "weights" / "best.pt").unlink()
    assert "--resume runs/train/exp<" in write(project, "exp")


def test_a_run_that_failed_before_its_first_epoch(project: Project, data: Path, engine: list[int]) -> None:
    made = make_run(project.runs / "train" / "exp", data, status="failed", samples=2)
    (made / "results.csv").unlink()
    (made / "weights" / "best.pt").unlink()
    text = write(project, "exp")
    assert "before its first epoch ended" in text
    assert "the run saved no checkpoint" in text
    Page(text)


def test_a_large_run_stays_small_and_quick_to_read(project: Project, engine: list[int]) -> None:
    names = tuple(f"class number {number}" for number in range(80))
    data = write_pictures(project.root / "data" / "x", 200, names, size=640)
    make_run(project.runs / "train" / "exp", data, epochs=300, gpus=8, samples=6000)
    text = write(project, "exp")
    assert len(text.encode()) < 5_000_000
    assert "mean of 80 classes" in text
    assert "mean of 8 (shade" in text
    Page(text)


def test_runs_side_by_side(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "a", data, "yolov5", epochs=20)
    make_run(project.runs / "train" / "b", data, "yolov5u", epochs=30)
    make_run(project.runs / "train" / "c", data, "yolov5", epochs=20, planned=25, status="stopped")
    page = Page(write(project, "a", "b", "c"))
    words = " ".join(page.words)
    assert page.fetched == []
    assert "are level: mAP50-95 0.540 and 0.540" in words
    assert "Not finished: c." in words
    for option in ("engine", "epochs", "box"):
        assert option in page.words
    assert report.main(project, ["a", "b"], None, False, None) == 0
    assert (project.runs / "compare-a-b.html").is_file()


def test_runs_on_other_data_are_not_compared_in_silence(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "a", data)
    make_run(project.runs / "train" / "b", data, data={"file": "data/x.yaml", "fingerprint": "ff", "images": {}})
    assert "were not validated on the same data" in write(project, "a", "b")


def test_the_best_run_comes_first(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "a", data, epochs=40, peak=10)
    make_run(project.runs / "train" / "b", data, epochs=40, peak=40)
    assert re.search(r"b is best: mAP50-95 0\.5\d\d, 0\.\d+ ahead of a", write(project, "a", "b"))


def test_the_same_run_twice_is_one_page(project: Project, data: Path, engine: list[int]) -> None:
    make_run(project.runs / "train" / "exp", data)
    assert "Training report" in write(project, "exp", "runs/train/exp")


def test_the_command(project: Project, data: Path, engine: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    make_run(project.runs / "train" / "exp", data)
    assert cli.main(["report"]) == 0
    assert re.match(r"lab: runs/train/exp/report.html \(0\.\d MB\)", capsys.readouterr().out)
    assert cli.main(["report", "nothing"]) == 2


# --- what is concluded ------------------------------------------------------------------------------------------------


def run(project: Project, data: Path, **more: Any) -> report_run.Run:
    directory = project.runs / "train" / f"exp{len(list(project.runs.glob('train/*')))}"
    return report_run.read(make_run(directory, data, **more), project)


def test_advice_follows_the_curves(project: Project, data: Path) -> None:
    rising = report_advice.next_steps(run(project, data, epochs=30), Findings())
    assert any("still improving" in step and "--epochs 60" in step for step in rising)
    fitted = report_advice.next_steps(run(project, data, epochs=60, peak=20), Findings())
    assert any("by heart: best in epoch 20 of 60" in step for step in fitted)
    assert not any("still improving" in step for step in fitted)
    stopped = report_advice.next_steps(run(project, data, epochs=10, planned=30), Findings())
    assert not any("still improving" in step for step in stopped)


def measured(**more: Any) -> Measured:
    scores = [ClassScore(n, 40, 50, 0.8, 0.8, 0.8, ap, [1.0] * 101) for n, ap in enumerate((0.6, 0.6, 0.2))]
    table = [[45, 0, 0, 5], [0, 45, 0, 5], [0, 20, 25, 5], [1, 1, 1, 0]]
    said = {"pictures": 40, "boxes": 150, "confidence": 0.3, "precision": 0.8, "recall": 0.8, "ap50": 0.8, "ap": 0.47}
    return Measured(**{**said, "classes": scores, "confusion": table, "sizes": [(50, 10), (50, 45), (50, 48)], **more})


def test_advice_follows_the_measurement(project: Project, data: Path) -> None:
    found = Findings(measured(), list(NAMES), trained=[300, 300, 40])
    steps = " ".join(report_advice.next_steps(run(project, data, epochs=60, peak=55), found))
    assert "<b>triangle</b> is the weakest class" in steps
    assert "it has 40 labelled boxes to learn from, the commonest class 300" in steps
    assert "40 % of the boxes labelled <b>triangle</b> were taken for <b>square</b>" in steps


@pytest.mark.parametrize(
    ("gpus", "gpu_util", "cpu_util", "options", "words"),
    [
        (1, 95, 40, {}, "The GPU, which was busy"),
        (1, 35, 90, {}, "--cache ram"),
        (1, 35, 90, {"cache": "ram"}, "More processors help"),
        (1, 35, 20, {"workers": 2}, "Waiting for pictures, most likely"),
        (1, 35, 20, {"workers": 32}, "a larger <code>--batch</code> keeps the GPU busier"),
        (0, 0, 90, {}, "The processors: they were busy"),
        (0, 0, 20, {}, "Not clear: no GPU took part"),
    ],
)
def test_what_limited_it(
    project: Project, data: Path, gpus: int, gpu_util: float, cpu_util: float, options: dict[str, Any], words: str
) -> None:
    made = run(project, data, gpus=gpus)
    write_telemetry(made.directory / telemetry.NAME, 100, gpus, gpu_util, cpu_util)
    made.options.update(options)
    assert words in report_advice.limit(made, report_advice.load(telemetry.read(made.directory / telemetry.NAME)))


def test_what_limited_a_run_that_nobody_watched(project: Project, data: Path) -> None:
    assert report_advice.limit(run(project, data), report_advice.load([])).startswith("Not known")


def test_idle_gpus_of_the_machine_are_left_out() -> None:
    def sample(time: float, gpu: int, util: float) -> telemetry.Sample:
        return telemetry.Sample(time, gpu, util, 5000.0, 100.0, 10.0, 100.0, 0.0, 10.0)

    found = report_advice.load([sample(t, gpu, 80 if gpu == 1 else 0) for t in range(20) for gpu in range(4)])
    assert found is not None
    assert (found.gpus, found.gpu) == (1, 80)


# --- the drawings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.0417, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (1, 1, [1, 1.2, 1.4, 1.6, 1.8, 2]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert report_svg.nice(low, high)[:6] == pytest.approx(ticks[: len(report_svg.nice(low, high))])


def test_a_long_curve_keeps_its_peaks() -> None:
    points = [(float(x), 1.0 if x == 4321 else 0.0) for x in range(10_000)]
    thinned = report_svg.thin(points)
    assert len(thinned) <= report_svg.POINTS + 2
    assert (4321.0, 1.0) in thinned


def test_a_chart_of_one_epoch_and_of_none() -> None:
    one = report_svg.chart("t", [1], [report_svg.Series("a", [0.5])], "epoch")
    assert "<circle" in one
    assert report_svg.chart("t", [1, 2], [report_svg.Series("a", [None, None])], "epoch") == ""


def test_measurements_survive_json() -> None:
    from dataclasses import asdict

    from lab.report_measure import from_json

    assert from_json(json.loads(json.dumps(asdict(measured())))) == measured()


def test_other_programs_on_the_machine_are_named(project: Project, data: Path) -> None:
    found = report_advice.Load(gpu=None, cpu=15, gpu_memory=None, memory=100, reading=0, gpus=0, host_cpu=97)
    assert report_advice.limit(run(project, data), found).startswith("Other programs on this machine")
