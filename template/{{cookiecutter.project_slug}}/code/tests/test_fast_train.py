"""`lab train` with the fast path's options: what is recorded, handed to the engine, and kept by a run that goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_resume import Children, start, write_checkpoint

from lab import cli, record, resume
from lab.dataset import open_dataset
from lab.errors import LabError
from lab.fast import choose, tuned
from lab.fast.plan import Speed, with_images
from lab.launch import Interrupted
from lab.options import parse
from lab.project import Project

TRAIN = ["train", "--weights", "", "--device", "cpu", "--workers", "0", "--epochs", "4"]


def speed_of(children: Children, number: int = 0) -> dict[str, Any]:
    return dict(children.calls[number].payload["speed"])


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the building of stores; returns the list of what was built."""
    built: list[str] = []

    def store(_: Any, __: Any, split: str, imgsz: int) -> tuple[str, int]:
        built.append(f"{split}-{imgsz}")
        return f"/cache/{split}-{imgsz}", 5

    monkeypatch.setattr(choose, "_store", store)
    return built


def test_what_is_on_is_said_recorded_and_handed_on(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stores: list[str]
) -> None:
    children = start(monkeypatch)
    words = ["--with", "foreach-ema,store", "--without", "fused_optimizer", "--val-period", "2"]
    assert cli.main([*TRAIN, *words]) == 0
    said = capfd.readouterr().err
    assert "  speed    images from the store; on: " in said
    assert "validated every 2 epochs" in said
    speed = speed_of(children)
    assert (speed["data"], speed["val_period"], speed["steps"]) == ("store", 2, 4)
    assert "foreach_ema" in speed["switches"]
    assert speed["stores"] == {"train": "/cache/train-96", "val": "/cache/val-96"}
    assert stores == ["train-96", "val-96"]
    assert "--with" not in children.calls[0].payload["arguments"]
    run = ready.runs / "train" / "exp"
    assert json.loads((run / resume.REQUEST).read_text(encoding="utf-8"))["speed"] == speed
    kept = record.read(run)
    assert kept["speed"] == speed
    assert parse("train", kept["command"][4:]).given.items() >= parse("train", words).given.items()


def test_plain_is_handed_on_as_nothing_at_all(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    children = start(monkeypatch)
    assert cli.main([*TRAIN, "--plain"]) == 0
    speed = speed_of(children)
    assert (speed["data"], speed["switches"], speed["val_period"]) == ("plain", [], 1)


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_a_run_that_goes_on_keeps_its_speed(
    ready: Project, monkeypatch: pytest.MonkeyPatch, stores: list[str], engine: str
) -> None:
    start(monkeypatch, Interrupted())
    words = ["--engine", engine, "--with", "store", "--val-period", "3"]
    assert cli.main([*TRAIN, *words]) == 130
    run = ready.runs / "train" / "exp"
    before = json.loads((run / resume.REQUEST).read_text(encoding="utf-8"))["speed"]
    write_checkpoint(run / "weights" / resume.LAST, 1, engine)
    children = start(monkeypatch)
    assert cli.main(["train", "--resume", "runs/train/exp"]) == 0
    after = speed_of(children)
    assert {key: after[key] for key in ("data", "stores", "val_period")} == {
        "data": "store",
        "stores": before["stores"],
        "val_period": 3,
    }
    assert after["switches"] == before["switches"]
    assert stores == ["train-96", "val-96"] * 2  # looked at again: the cache may have been cleared


def test_images_leave_a_gpu_whose_memory_ran_out(
    ready: Project, monkeypatch: pytest.MonkeyPatch, stores: list[str]
) -> None:
    decided = Speed("device", resident_room=5, switches=("loss",))
    monkeypatch.setattr(choose, "decide", lambda *_: decided)
    children = start(monkeypatch, 0)
    assert cli.main([*TRAIN, "--batch", "4"]) == 0
    first, second = speed_of(children), speed_of(children, 1)
    assert (first["resident_bytes"], second["resident_bytes"]) == (5, 0)
    assert second["switches"] == ["loss"]


@pytest.mark.parametrize(("room", "estimate", "resident"), [(4, 3, 0), (5, 6, 5)])
def test_images_live_on_a_gpu_by_the_size_of_the_opened_store(
    ready: Project,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stores: list[str],
    room: int,
    estimate: int,
    resident: int,
) -> None:
    estimated = with_images(Speed("device", resident_room=room), estimate)
    assert bool(estimated.resident_bytes) != bool(resident)
    monkeypatch.setattr(choose, "decide", lambda *_: estimated)
    children = start(monkeypatch)
    assert cli.main(TRAIN) == 0
    assert speed_of(children)["resident_bytes"] == resident
    assert ("of them live" in capfd.readouterr().err) == bool(resident)


def test_a_run_that_goes_on_takes_no_other_speed(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, Interrupted())
    assert cli.main([*TRAIN]) == 130
    assert cli.main(["train", "--resume", "runs/train/exp", "--plain"]) == 2
    assert "--resume takes --plain from the run itself" in capfd.readouterr().err


def test_a_store_that_cannot_be_built_costs_no_run_unless_it_was_asked_for(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> str:
        raise LabError("the disk is full")

    monkeypatch.setattr(choose, "_store", full)
    monkeypatch.setattr(choose, "device_kind", lambda _: "cuda")
    children = start(monkeypatch)
    assert cli.main(["train", "--weights", "", "--workers", "0"]) == 0
    assert "the disk is full; until then images are read the engine's own way" in capfd.readouterr().err
    assert speed_of(children)["data"] == "plain"
    assert cli.main(["train", "--weights", "", "--workers", "0", "--with", "store"]) == 2


def test_tuned_settings_are_used_and_options_given_beside_them_win(
    ready: Project, monkeypatch: pytest.MonkeyPatch, stores: list[str]
) -> None:
    dataset = open_dataset("data/demo/data.yaml", ready)
    key = choose.key(ready, "yolov5", "yolov5n", dataset, 96, "cpu")
    settings = tuned.Settings({"workers": 1, "batch_size": 4}, {"data": "store", "switches": ["foreach_ema"]}, {})
    tuned.write(ready, key, settings)
    children = start(monkeypatch)
    assert cli.main([*TRAIN, "--tuned"]) == 0
    words = children.calls[0].payload["arguments"]
    assert words[words.index("--batch-size") + 1] == "4"
    assert words[words.index("--workers") + 1] == "0"
    assert speed_of(children)["switches"] == ["foreach_ema"]
    assert speed_of(children)["data"] == "store"


@pytest.mark.parametrize(
    "words",
    [
        ["--plain", "--with", "loss"],
        ["--plain", "--tuned"],
        ["--tuned"],  # there are no settings
        ["--with", "loss", "--without", "loss"],
        ["--with", "device"],  # no GPU
        ["--val-period", "0"],
    ],
    ids=" ".join,
)
def test_what_is_refused_is_refused_before_anything_is_said(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    children = start(monkeypatch)
    assert cli.main(["train", "--device", "cpu", "--workers", "0", *words]) == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith("lab: ")
    assert not children.calls
    assert not list((ready.runs / "train").glob("*"))


def test_from_scratch_is_said_where_nobody_asked_for_it(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch)
    assert cli.main(["train", "--device", "cpu", "--workers", "0"]) == 0
    said = capfd.readouterr().err
    assert "training from scratch, from yolov5n.yaml, because yolov5n.pt is not here" in said
    assert cli.main(TRAIN) == 0
    assert "training from scratch" not in capfd.readouterr().err


@pytest.mark.parametrize("held", [False, True])
def test_a_full_disk_matters_for_what_is_not_stored_yet(
    held: bool, ready: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    children = start(monkeypatch)
    if held:
        assert cli.main([*TRAIN, "--with", "store"]) == 0
    usage = shutil.disk_usage(ready.root)
    little = shutil._ntuple_diskusage(usage.total, usage.total, (1 << 30) + 1)  # too little for train and val anew
    monkeypatch.setattr(choose.shutil, "disk_usage", lambda _: little)
    asked = cli.main([*TRAIN, "--with", "store"])
    if held:
        assert asked == 0
        assert speed_of(children, 1)["data"] == "store"
    else:
        assert asked == 2
        assert "1.0 GiB free, and the decoded images take" in capfd.readouterr().err


def test_the_disk_must_hold_validation_images_too(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    decided = choose.decide
    monkeypatch.setattr(choose, "decide", lambda facts, wish: seen.append(facts) or decided(facts, wish))
    start(monkeypatch)
    assert cli.main(TRAIN) == 0
    assert (seen[0].store_bytes, seen[0].unstored_bytes) == (10 * 96 * 96 * 3, 12 * 96 * 96 * 3)


@pytest.mark.parametrize(
    ("device", "nodes", "kind"), [("cpu", False, "cpu"), ("", False, "cpu"), ("", True, "cuda"), ("0,1", True, "cuda")]
)
def test_the_kind_of_device(monkeypatch: pytest.MonkeyPatch, device: str, nodes: bool, kind: str) -> None:
    monkeypatch.setattr(choose.devices, "gpu_nodes", lambda: [Path("/dev/nvidia0")] if nodes else [])
    assert choose.device_kind(device) == kind


def test_outlines_are_looked_for_only_where_they_matter(
    ready: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    label = next((ready.root / "data" / "demo" / "labels" / "train").glob("*.txt"))
    label.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n", encoding="utf-8")
    hyp = tmp_path / "cut.yaml"
    hyp.write_text("copy_paste: 0.3\nlr0: 0.01\n", encoding="utf-8")
    start(monkeypatch)
    assert cli.main([*TRAIN, "--hyp", str(hyp), "--with", "store"]) == 2
    assert "copy_paste cuts objects out along their outlines" in capfd.readouterr().err


def test_a_wrong_period_is_refused() -> None:
    with pytest.raises(LabError, match="--val-period: invalid int"):
        parse("train", ["--val-period", "x"])
