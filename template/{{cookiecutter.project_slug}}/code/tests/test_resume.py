"""Runs that ended too early, made by hand: which checkpoint goes on, what is mended, what is refused. No torch."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab import (
    batch,
    child,
    cli,
    dataset,
    devices,
    following,
    going_on,
    limits,
    plan,
    record,
    report_run,
    resume,
    training,
)
from lab.doctor_facts import Gpu
from lab.engines import Call
from lab.errors import FAILED, OUT_OF_MEMORY, LabError
from lab.launch import Interrupted
from lab.options import parse
from lab.project import Project
from lab.rendezvous import Meeting
from lab.report_page import command
from lab.resume import LAST, PREVIOUS, Asked

YOLOV5_CSV = "               epoch,      train/box_loss,               x/lr0\n"
NEW = ["train", "--cfg", "yolov5n.yaml", "--device", "cpu", "--workers", "0"]
YOLOV5U_CSV = "epoch,time,train/box_loss\n"


def write_checkpoint(file: Path, epoch: int, engine: str = "yolov5") -> Path:
    """What torch.save writes, as far as `lab` reads it without torch."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"epoch": epoch, "best_fitness": 0.5}
    state = state if engine == "yolov5" else {"date": "2026", "version": "8", **state}  # as after stripping
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("last/data.pkl", pickle.dumps(state, protocol=2))
        archive.writestr("last/data/0", bytes(range(256)) * 64)
    return file


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-900])


class Children:
    """Stands in for launch.run: writes down the calls, and ends each as the list says."""

    def __init__(self, *ends: BaseException | int | None) -> None:
        self.ends, self.calls = list(ends), []  # type: list[Any], list[Call]

    def __call__(self, call: Call, _: Project, directory: Path | None, *__: Any) -> None:
        self.calls.append(call)
        end = self.ends.pop(0) if self.ends else None
        if call.payload["task"] == "close" or directory is None:
            return
        if isinstance(end, int):  # that many epochs are saved, then memory runs out
            write_checkpoint(directory / "weights" / LAST, end - 1)
            raise LabError("no memory", OUT_OF_MEMORY)
        if end is not None:
            raise end


def run_of(project: Project, name: str = "exp", engine: str = "yolov5", **options: Any) -> Path:
    directory = project.runs / "train" / name
    (directory / "weights").mkdir(parents=True)
    dataset.write_absolute(dataset.open_dataset("data/demo/data.yaml", project), directory)
    said = {"epochs": 6, "batch_size": 8, "imgsz": 96, "workers": 0, "device": "cpu", **options}
    resume.write_asked(directory, Asked(engine, said, [""], "/models/yolov5n.yaml"))
    return directory


def start(monkeypatch: pytest.MonkeyPatch, *ends: Any) -> Children:
    children = Children(*ends)
    for module in (training, going_on):
        monkeypatch.setattr(module, "run", children)
    return children


# Checkpoints


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
@pytest.mark.parametrize("epoch", [0, 5, 299, 70_000, -1])
def test_the_epoch_is_read_without_torch(tmp_path: Path, engine: str, epoch: int) -> None:
    found = resume.read_checkpoint(write_checkpoint(tmp_path / "last.pt", epoch, engine))
    assert found is not None
    assert found.epoch == epoch


def test_a_cut_or_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "last.pt", 3)
    whole = file.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert resume.read_checkpoint(file) is None, length
    file.write_bytes(whole[:2000] + b"\xff\xfe" + whole[2002:])
    assert resume.read_checkpoint(file) is None
    assert resume.read_checkpoint(tmp_path / "absent.pt") is None


def test_a_torn_last_falls_back_to_the_one_before(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    tear(write_checkpoint(weights / LAST, 4))
    write_checkpoint(weights / PREVIOUS, 3)
    write_checkpoint(weights / "best.pt", 1)
    (weights / ".last.pt.77").write_bytes(b"half")
    standing = resume.look(tmp_path)
    assert (standing.epochs, standing.torn) == (4, (weights / LAST,))
    assert resume.prepare(standing) == weights / LAST
    assert sorted(file.name for file in weights.iterdir()) == ["best.pt", LAST]
    assert resume.look(tmp_path).epochs == 4


def test_best_is_a_way_back_too_and_stays(tmp_path: Path) -> None:
    tear(write_checkpoint(tmp_path / "weights" / LAST, 4))
    write_checkpoint(tmp_path / "weights" / "best.pt", 1)
    assert resume.prepare(resume.look(tmp_path)) == tmp_path / "weights" / LAST
    assert (tmp_path / "weights" / "best.pt").is_file()
    assert resume.look(tmp_path).epochs == 2


def test_between_two_renames_there_is_no_last(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "weights" / PREVIOUS, 3)
    standing = resume.look(tmp_path)
    assert (standing.epochs, standing.ended) == (4, False)
    assert resume.prepare(standing) is not None


@pytest.mark.parametrize(("header", "first"), [(YOLOV5_CSV, 0), (YOLOV5U_CSV, 1)])
def test_results_lose_what_the_checkpoint_does_not_know(tmp_path: Path, header: str, first: int) -> None:
    file = tmp_path / "results.csv"
    rows = [f"      {number + first},  0.{number},  0.01\n" for number in range(4)]
    file.write_text(header + "".join(rows) + "      4, 0.4", encoding="utf-8")
    resume.mend_results(file, 3)
    assert file.read_text(encoding="utf-8") == header + "".join(rows[:3])
    file.write_text(header + "".join(rows) + rows[2].replace("0.2", "0.9"), encoding="utf-8")
    resume.mend_results(file, 4)
    assert file.read_text(encoding="utf-8") == header + "".join([*rows[:2], rows[2].replace("0.2", "0.9"), rows[3]])
    resume.mend_results(file, 0)
    assert not file.exists()
    resume.mend_results(file, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{head}   0, 1, 1\n   1, 1, 1\n   2, 1,", "results.csv was cut: epoch 3 of the 3 in the checkpoint"),
        ("{head}   0, 1, 1\n", "results.csv was cut: 2 epochs, 2 the first, of the 3 in the checkpoint"),
        ("   epo", "results.csv was cut: 3 epochs, 1 the first, of the 3 in the checkpoint"),
        (None, "results.csv was cut: 3 epochs"),
        ("{head}   0, 1, 1\n   1, 1, 1\n   2, 1, 1\n   3, 1,", None),  # of an epoch that is done again
    ],
)
def test_lines_that_results_have_lost_are_said(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, words: str | None
) -> None:
    directory = run_of(ready)
    write_checkpoint(directory / "weights" / LAST, 2)
    if text is not None:
        (directory / "results.csv").write_text(text.format(head=YOLOV5_CSV), encoding="utf-8")
    start(monkeypatch)
    assert cli.main(["train", "--resume", "--workers", "0"]) == 0
    said = capsys.readouterr().err
    assert words in said if words else "was cut" not in said


def test_early_stopping_counts_on_from_the_best_epoch(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    assert resume.best_so_far(file) is None
    header = "               epoch,     metrics/mAP_0.5,metrics/mAP_0.5:0.95\n"
    rows = "".join(f"{epoch:20},{value:20},{value / 2:20}\n" for epoch, value in enumerate((0.1, 0.4, 0.3, 0.4)))
    file.write_text(header + rows, encoding="utf-8")
    assert resume.best_so_far(file) == (1, pytest.approx(0.22))


# lab train --resume


def test_it_finds_the_last_unfinished_run_and_honours_what_is_given(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(run_of(ready, "exp") / "weights" / LAST, 2)
    finished = run_of(ready, "exp2")
    resume.write_asked(finished, Asked("yolov5", {}, done=True))
    children = start(monkeypatch)
    more = ["--workers=0", "--batch=4", "--device=cpu", "--epochs=9"]
    assert cli.main(["train", "--resume", *more]) == 2  # the newest: finished
    assert "optimiser's state was not kept" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "runs/train/exp", *more]) == 0
    (call,) = children.calls
    assert call.payload["arguments"] == ["--resume", str(ready.runs / "train/exp/weights/last.pt")]
    stored = call.payload["stored"]
    assert (stored["batch_size"], stored["epochs"], stored["workers"]) == (4, 9, 0)
    assert stored["save_dir"] == str(ready.runs / "train/exp")
    assert "after 3 of 9 epochs" in capsys.readouterr().err
    asked = resume.read_asked(ready.runs / "train/exp")
    assert asked is not None
    assert (asked.done, asked.options["epochs"], asked.options["batch_size"]) == (True, 9, 4)


def test_without_a_name_the_newest_unfinished_run_of_any_engine(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(run_of(ready, "exp", "yolov5u") / "weights" / LAST, 2)
    resume.write_asked(run_of(ready, "exp2"), Asked("yolov5", {}, done=True))
    children = start(monkeypatch)
    assert cli.main(["train", "--resume", "--noval"]) == 0
    assert children.calls[0].script.name == "run_yolov5u.py"
    assert children.calls[0].payload["stored"]["val"] is False


@pytest.mark.parametrize("words", ["--hyp h.yaml", "--optimizer Adam", "--seed 3", "--weights a.pt", "--cos-lr"])
def test_what_would_change_the_experiment_is_refused_by_name(
    ready: Project, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    run_of(ready)
    assert cli.main(["train", "--resume", *words.split()]) == 2
    assert f"takes {words.split(maxsplit=1)[0]} from the run itself" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
@pytest.mark.parametrize(
    ("option", "stored"),
    [
        ("--img 128", {"imgsz": 128}),
        ("--patience 3", {"patience": 3}),
        ("--save-period 0", {"save_period": -1}),
        ("--cache", {"cache": "ram"}),
        ("--noval", {"noval": True, "val": False}),
        ("--noplots", {"noplots": True, "plots": False}),
    ],
)
def test_what_is_given_beside_resume_counts(
    ready: Project, monkeypatch: pytest.MonkeyPatch, engine: str, option: str, stored: dict[str, Any]
) -> None:
    """In both engines' own words; the other one's word is not among them."""
    directory = run_of(ready, engine=engine)
    write_checkpoint(directory / "weights" / LAST, 2)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume", *option.split()]) == 0
    said = children.calls[0].payload["stored"]
    assert {key: said[key] for key in stored if key in said}.items() <= stored.items()
    assert set(stored) & set(said)
    asked = resume.read_asked(directory)
    assert asked is not None
    key = option.split(maxsplit=1)[0].removeprefix("--").replace("-", "_").replace("img", "imgsz")
    assert asked.options[key] in stored.values()


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
@pytest.mark.parametrize(
    ("cfg", "size", "part"),
    [
        ("/models/yolov5n.yaml", "100", "--img 100 is not a multiple of 32, the model's stride: use 96 or 128"),
        ("/models/yolov5n6.yaml", "96", "--img 96 is not a multiple of 64, the model's stride: use 64 or 128"),
        ("yolov5n-p6.yaml", "96", "--img 96 is not a multiple of 64"),
        ("/models/yolov5n.yaml", "0", "use 32 or 64"),
    ],
)
def test_a_size_that_the_model_cannot_have_is_refused_beside_resume_too(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str, cfg: str,
    size: str, part: str,
) -> None:  # fmt: skip
    directory = run_of(ready, engine=engine)
    before = resume.read_asked(directory)
    assert before is not None
    resume.write_asked(directory, Asked(**{**vars(before), "cfg": cfg}))
    write_checkpoint(directory / "weights" / LAST, 2)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume", "--img", size]) == 2
    assert part in capsys.readouterr().err
    assert children.calls == []
    kept = resume.read_asked(directory)
    assert kept is not None
    assert kept.options["imgsz"] == 96


def test_a_kill_before_the_first_checkpoint_begins_anew(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_of(ready)
    (directory / "results.csv").write_text(YOLOV5_CSV + "   0, 1, 1\n", encoding="utf-8")
    (directory / "opt.yaml").write_text("epochs: 6\nbat", encoding="utf-8")  # cut short
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 0
    assert "begins anew with the same options" in capsys.readouterr().err
    words = children.calls[0].payload["arguments"]
    assert words[words.index("--epochs") + 1] == "6"
    assert words[words.index("--cfg") + 1] == "/models/yolov5n.yaml"
    assert "--exist-ok" in words
    assert not (directory / "results.csv").exists()


def test_a_torn_checkpoint_is_said(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_of(ready)
    tear(write_checkpoint(directory / "weights" / LAST, 4))
    write_checkpoint(directory / "weights" / PREVIOUS, 3)
    start(monkeypatch)
    assert cli.main(["train", "--resume", "runs/train/exp/weights/last.pt"]) == 0
    said = capsys.readouterr().err
    assert "last.pt is cut short or damaged, so it goes on from previous.pt" in said
    assert "after 4 of 6 epochs" in said


@pytest.mark.parametrize("stripped", [False, True])
def test_a_kill_after_the_last_epoch_leaves_the_closing_measurement(
    ready: Project, monkeypatch: pytest.MonkeyPatch, stripped: bool
) -> None:
    directory = run_of(ready)
    write_checkpoint(directory / "weights" / LAST, -1 if stripped else 5)
    write_checkpoint(directory / "weights" / PREVIOUS, 5 if stripped else 4)
    (directory / "weights" / ".best.pt.39").touch()
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 0
    assert [call.payload["task"] for call in children.calls] == ["close"]
    assert not (directory / "weights" / ".best.pt.39").exists()
    assert cli.main(["train", "--resume"]) == 2  # now it is finished


def test_a_finished_run_is_trained_longer(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_of(ready)
    write_checkpoint(directory / "weights" / LAST, -1)
    write_checkpoint(directory / "weights" / PREVIOUS, 5)
    asked = resume.read_asked(directory)
    assert asked is not None
    resume.write_asked(directory, Asked(**{**vars(asked), "done": True}))
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 2
    assert "train it longer with --resume runs/train/exp --epochs N" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--epochs", "6"]) == 2
    assert "finished after 6 epochs: give more" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--epochs", "8"]) == 0
    assert children.calls[0].payload["stored"]["epochs"] == 8
    found = resume.read_checkpoint(directory / "weights" / LAST)
    assert found is not None
    assert found.epoch == 5


def test_a_lengthened_run_is_repeated_by_its_last_options(
    ready: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, Interrupted())
    assert cli.main([*NEW, "--data", str(shapes), "--img", "64", "--epochs", "2", "--seed", "3"]) == 130
    directory = ready.runs / "train" / "exp"
    said = record.read(directory)
    assert said["data"]["file"] == ready.show(shapes)
    write_checkpoint(directory / "weights" / LAST, 0)
    start(monkeypatch)
    assert cli.main(["train", "--resume", str(directory), "--epochs", "5", "--workers", "0"]) == 0
    again = record.read(directory)
    assert again["data"]["file"] == ready.show(shapes)
    options = parse("train", again["command"][2:]).given
    assert options == {**parse("train", said["command"][2:]).given, "epochs": 5}
    assert "--epochs 5" in command(report_run.read(directory, ready))
    assert f"--data {shapes}" in command(report_run.read(directory, ready))


def test_a_run_of_another_lab_is_understood(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_of(ready)
    (directory / resume.REQUEST).unlink()
    (directory / "opt.yaml").write_text("epochs: 6\nbatch_size: 8\ndevice: cpu\nhyp: {lr0: 0.1}\n", encoding="utf-8")
    write_checkpoint(directory / "weights" / LAST, 2)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 0
    assert children.calls[0].payload["arguments"][0] == "--resume"


def test_a_run_on_gpus_goes_on_with_a_process_for_each(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_checkpoint(run_of(ready, device="0,1") / "weights" / LAST, 2)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 2
    assert "--device cpu" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--device", "cpu"]) == 0
    call = children.calls.pop()
    assert (call.processes, call.payload["stored"]["device"]) == (1, "cpu")
    shutil.rmtree(ready.runs / "train" / "exp")
    write_checkpoint(run_of(ready, device="0,1") / "weights" / LAST, 2)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert cli.main(["train", "--resume", "--batch", "9"]) == 2
    assert cli.main(["train", "--resume"]) == 0
    assert [call.processes for call in children.calls] == [2]


@pytest.mark.parametrize("device", ["GPU-aaaa", "0,3"])
def test_gpus_of_another_machine_are_named(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    write_checkpoint(run_of(ready, device=device) / "weights" / LAST, 2)
    monkeypatch.setattr(devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(going_on, "listed", lambda: (Gpu(0, "H100", "570", uuid="GPU-bbbb"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 2
    gone = device.rpartition(",")[2]
    assert f"runs/train/exp ran on GPU {gone}, which is not here" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--device", "0"]) == 0
    assert children.calls[0].payload["gpus"] == "0"


def test_data_that_is_gone_is_said(ready: Project, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(ready)
    shutil.rmtree(shapes.parent / "images" / "train")
    assert cli.main(["train", "--resume"]) == 2
    assert "images/train" in capsys.readouterr().err


def test_a_larger_batch_may_need_fewer_workers(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(run_of(ready, workers=8) / "weights" / LAST, 2)
    monkeypatch.setattr(limits, "workers_that_fit", lambda wanted, batch, _: 2 if batch > 100 else wanted)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume", "--batch", "128"]) == 0
    assert children.calls[0].payload["stored"]["workers"] == 2
    assert "too small for 8 workers with this batch, so 2 load images" in capsys.readouterr().err


def test_a_run_that_is_under_way_is_left_alone(ready: Project, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run_of(ready)
    with resume.alone(directory):
        assert cli.main(["train", "--resume"]) == 2
    assert "still being trained" in capsys.readouterr().err


def test_after_ctrl_c_the_command_that_goes_on(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, Interrupted())
    assert cli.main([*NEW]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "lab: stopped, no epoch was finished, so it will begin anew; go on with: lab train --resume runs/train/exp"
    )
    write_checkpoint(ready.runs / "train/exp/weights" / LAST, 2)
    start(monkeypatch, Interrupted())
    assert cli.main(["train", "--resume"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert "3 finished epochs kept; go on with: lab train --resume runs/train/exp/weights/last.pt" in said


# Out of memory


def test_memory_that_runs_out_halves_the_batch(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_memory = LabError("no memory", OUT_OF_MEMORY)
    children = start(monkeypatch, no_memory, 3)  # at once; then after three epochs
    assert cli.main([*NEW, "--batch", "48", "--epochs", "9"]) == 0
    first, second, third = (call.payload for call in children.calls)
    assert [words[words.index("--batch-size") + 1] for words in (first["arguments"], second["arguments"])] == [
        "48",
        "24",
    ]
    assert third["arguments"][0] == "--resume"
    assert third["stored"]["batch_size"] == 12
    said = capsys.readouterr().err
    assert (
        "begins anew: no epoch was finished with --batch 24 (24 images a step, 3 steps gathered: 72 an update)" in said
    )
    assert "goes on after 3 finished epochs with --batch 12" in said
    kept = json.loads((ready.runs / "train/exp" / resume.REQUEST).read_text(encoding="utf-8"))
    assert [(attempt["batch"], attempt["status"]) for attempt in kept["attempts"]] == [
        (48, "failed"),
        (24, "failed"),
        (12, "done"),
    ]


def test_several_machines_do_not_halve_a_batch_alone(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would choose for itself: the sentence is the end, with what helps."""
    children = start(monkeypatch, 2)
    met = SimpleNamespace(meeting=Meeting(2, "127.0.0.1", 29500, 0))
    monkeypatch.setattr(following.launch, "met", lambda *_: contextlib.nullcontext(met))
    monkeypatch.setattr(plan, "listed", lambda: ())
    monkeypatch.setattr(training.devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    words = ["train", "--cfg", "yolov5n.yaml", "--device", "0", "--workers", "0", "--batch", "16"]
    assert cli.main([*words, "--nodes", "2", "--node-rank", "0", "--rdzv", "127.0.0.1:29500"]) == FAILED
    assert "no memory" in capsys.readouterr().err
    assert [call.meeting.nodes for call in children.calls] == [2]


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_a_measured_batch_is_a_multiple_of_the_gpus(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    """Three GPUs: it was refused, because 16 is no multiple of 3."""
    card = {"predicted": 8 << 30, "measured": 8 << 30, "total": 16 << 30}
    found = [{"device": str(number), "batch": batch, **card} for number, batch in enumerate((21, 20, 22))]

    def measure(call: Call, *_: Any) -> None:
        Path(call.payload["result"]).write_text(json.dumps({"devices": found}), encoding="utf-8")

    monkeypatch.setattr(training.devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(batch, "listed", lambda: [object()])
    monkeypatch.setattr(batch, "run", measure)
    monkeypatch.setattr(plan, "listed", lambda: ())
    children = start(monkeypatch)
    words = ["train", "--cfg", "yolov5n.yaml", "--engine", engine, "--workers", "0", "--device", "0,1,2"]
    assert cli.main([*words, "--batch", "auto"]) == 0
    assert "--batch auto: 60 (20 on each of 3 GPUs)" in capsys.readouterr().err
    asked = resume.read_asked(ready.runs / "train" / "exp")
    assert asked is not None
    assert (asked.options["batch_size"], children.calls[0].processes) == (60, 3)


@pytest.mark.parametrize(("ranks", "images"), [(1, 16), (3, 15), (5, 15), (24, 24)])
def test_where_nothing_can_be_measured_it_is_a_multiple_too(ranks: int, images: int) -> None:
    assert batch._without_gpu(ranks).batch == images


def test_several_machines_do_not_measure_a_batch(ready: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--batch", "auto", "--device", "0", "--nodes", "2", "--rdzv", "127.0.0.1:29500"]) == 2
    assert "--batch auto measures the GPUs of one machine" in capsys.readouterr().err


def test_labels_that_were_corrected_meanwhile_are_read_again(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(run_of(ready) / "weights" / LAST, 2)
    labels = ready.root / "data" / "demo" / "labels" / "train"
    cache = labels.with_suffix(".cache")
    with cache.open("wb") as file:
        np.save(file, {"version": 0.6})  # what an engine writes, in small
    time.sleep(0.01)
    next(labels.iterdir()).touch()
    children = start(monkeypatch)
    assert cli.main(["train", "--resume"]) == 0
    assert len(children.calls) == 1
    assert not cache.exists()
    assert "the engines' caches of them were deleted" in capsys.readouterr().err


def test_one_image_that_does_not_fit_is_the_end(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, *[LabError("no memory", OUT_OF_MEMORY)] * 3)
    assert cli.main([*NEW, "--batch", "4"]) == FAILED
    assert capsys.readouterr().err.splitlines()[-1] == "lab: no memory"


@pytest.mark.parametrize(("gpus", "seen"), [("1,3", "1,3"), ("GPU-8f2e,GPU-03c1", "GPU-8f2e,GPU-03c1"), ("", None)])
def test_cuda_looks_at_the_gpus_that_were_asked_for_before_the_engine_does(
    monkeypatch: pytest.MonkeyPatch, gpus: str, seen: str | None
) -> None:
    looked: list[str] = []
    cuda = SimpleNamespace(is_available=lambda: looked.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    child.show_gpus(gpus)
    assert looked == ([seen] if seen else [])


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, memory: bool) -> None:
    request = {"task": "train", "run": ""}
    assert child._for_memory(error, request) is memory
    if memory:
        assert "memory does not suffice" in str(child.explain(error, request))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(tmp_path: Path) -> None:
    file = tmp_path / "weights" / "last.pt"
    file.parent.mkdir()
    file.write_bytes(b"sound")
    file.chmod(0)
    with pytest.raises(LabError, match="nothing was changed"):
        resume.look(tmp_path)


def test_an_error_of_the_disk_is_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(resume.zipfile, "ZipFile", gone)
    with pytest.raises(LabError, match="nothing was changed"):
        resume.read_checkpoint(tmp_path / "last.pt")


def test_damaged_checkpoints_are_set_aside_not_deleted(tmp_path: Path) -> None:
    file = tmp_path / "weights" / "last.pt"
    file.parent.mkdir()
    file.write_bytes(b"junk")
    standing = resume.look(tmp_path)
    assert standing.torn == (file,)
    assert resume.prepare(standing) is None
    assert (tmp_path / "weights" / "last.pt.damaged").read_bytes() == b"junk"
