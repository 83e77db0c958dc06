"""`lab watch`: which run, who is on its GPUs, what the screen shows; in the container beside a real training."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from made_nvml import Nvml, gpu
from made_run import make_run, write_pictures
from rich.console import Console
from test_container import environment
from test_watch_advice import CARD, RUN, WELL, seen

from lab import cli, demo, devices, nvml, pace, record, telemetry, upstream, watch, watch_facts, watch_screen
from lab.nvml import Gpu, Process, Slice
from lab.pace import Pace
from lab.project import CODE, ENGINES, Project
from lab.watch_advice import advise
from lab.watch_facts import ENDED, KILLED, RUNNING, Other, Watcher
from lab.watch_scalars import scalars

OLD = time.time() - 3600


@pytest.fixture
def runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes runs below runs/train; as old as it says unless they are to be fresh."""
    monkeypatch.setattr(devices, "DEV", project.root / "dev")
    pictures = write_pictures(project.root / "data" / "x", 6)

    def make(name: str, status: str = "done", fresh: bool = False, **more: Any) -> Path:
        run = make_run(project.runs / "train" / name, pictures, status=status, gpus=more.pop("gpus", 0), **more)
        said = {"engine": "yolov5", "weights": [""], "cfg": "yolov5n.yaml", "options": {
            "batch_size": 16, "workers": 2, "imgsz": 96, "epochs": 30, "device": more.get("device", "cpu"),
        }}  # fmt: skip
        (run / "request.json").write_text(json.dumps(said), encoding="utf-8")
        for file in () if fresh else (*run.rglob("*"), run):
            os.utime(file, (OLD, OLD))
        return run

    return make


def told(run: Path, **changed: Any) -> None:
    """The pace of a training that is in its steps."""
    said = Pace(time.time(), True, 640, 12.5, 0.1, 20.0, 1.3, "another-box", 1)
    (run / pace.NAME).write_text(json.dumps(asdict(replace(said, **changed))), encoding="utf-8")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the GPUs of a described driver into the machine."""

    def install(*described: dict[str, Any]) -> None:
        monkeypatch.setattr(devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
        monkeypatch.setattr(nvml.Asker, "ask", lambda *_: nvml.read(Nvml(*described)))

    return install


def once(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert cli.main(["watch", "--once", "--interval", "0.2", *words]) == 0
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return json.loads(out.out) if "--json" in words else out.out


# --- which run --------------------------------------------------------------------------------------------------------


def test_the_run_that_runs_is_found_before_newer_ones(project: Project, runs: Any) -> None:
    assert watch_facts.find("", project) is None
    running, newer = runs("exp", "running"), runs("exp2")
    os.utime(newer / "request.json")
    assert watch_facts.find("", project) == newer
    told(running)
    assert watch_facts.find("", project) == running
    assert watch_facts.find("exp2", project) == newer


def test_a_run_whose_machine_went_down_was_killed(project: Project, runs: Any) -> None:
    run = runs("exp", "running")
    assert watch_facts.state(run, record.read(run)) == KILLED
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as a training holds it, in whatever container
    assert watch_facts.state(run, record.read(run)) == RUNNING
    os.close(handle)
    assert watch_facts.state(runs("exp2"), {"status": "done"}) == ENDED


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_run_says_of_itself(project: Project, runs: Any, engine: str) -> None:
    speed = {"data": "plain", "switches": ["loss"]}
    run = runs("exp", "running", fresh=True, engine=engine, speed=speed)
    found = watch_facts.training(run, project)
    assert (found.name, found.state, found.batch, found.workers, found.imgsz) == ("exp", RUNNING, 16, 2, 96)
    assert (found.epochs, found.planned, found.images, found.path) == (30, 30, 40, "plain")
    assert found.switches == ("loss",)
    # results.csv of ultralytics has seconds, of YOLOv5 none; the run began long before its file was written
    assert (
        found.epoch_rate == pytest.approx(40 / 3.5)
        if engine == "yolov5u"
        else found.epoch_rate is None or found.epoch_rate < 40
    )


# --- who is on its GPUs -----------------------------------------------------------------------------------------------


def test_the_gpus_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    both = (Gpu(0, processes=()), Gpu(1, processes=(Process(7),)))
    run = replace(RUN, device="")
    assert watch_facts.used(both, run, {7}) == both[1:]
    assert watch_facts.used(both, run, set()) == both[:1]
    assert watch_facts.used(both, replace(run, device="0,1"), set()) == both
    assert watch_facts.used(both, replace(run, device="cpu"), set()) == ()
    assert watch_facts.used(both, None, set()) == both
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert watch_facts.used(both, run, set()) == both[1:]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which 100 holds a GPU and 200, of the same number as a process of the host, does not."""
    for pid, name, file in ((100, "python3", "/dev/nvidia0"), (200, "bash", "/dev/null")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n", encoding="utf-8")
        (tmp_path / str(pid) / "fd" / "3").symlink_to(file)
    return tmp_path


def test_other_processes_on_the_card(proc: Path) -> None:
    ours, seen_here, hidden = Process(1, 9000), Process(100, 2048), Process(200, 512)
    card = Gpu(0, processes=(ours, seen_here, hidden))
    assert watch_facts.others([card], {1}, True, proc) == (Other(0, "python3", 100, 2048), Other(0, None, None, 512))
    # a runtime that gives the host's numbers: the largest is taken for the training
    assert watch_facts.others([card], set(), True, proc) == (Other(0, "python3", 100, 2048), Other(0, None, None, 512))
    assert len(watch_facts.others([card], set(), False, proc)) == 3
    alone = Gpu(0, processes=(Process(31337, 9000),))
    assert watch_facts.others([alone], set(), True, proc) == ()
    assert watch_facts.others([Gpu(0, processes=None)], set(), True, proc) == ()


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_a_host_without_gpu_and_without_runs(project: Project, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DEV", project.root / "dev")
    text = once(capsys)
    assert "There is no GPU in this container" in text
    assert "no run yet" in text
    assert not list(project.runs.rglob("events*"))


def test_a_run_on_processors(runs: Any, capsys: Any) -> None:
    run = runs("exp", "running")
    told(run)
    found = once(capsys, "--json")
    assert (found["state"], found["images_s"], found["data_wait_pct"]) == ("running", 12.5, 10.0)
    assert found["gpus"] == []
    assert found["host_cpu_pct"] is not None
    assert "gpu.none" in [item["id"] for item in found["advice"]]


def test_a_hungry_gpu_is_told_what_to_change(project: Project, runs: Any, cards: Any, capsys: Any) -> None:
    cards(gpu())
    run = runs("exp", "running", device="0", gpus=1)
    told(run, wait=0.8)
    found = once(capsys, "exp", "--json")
    assert found["used_gpus"] == [0]
    sentence = next(item["sentence"] for item in found["advice"] if item["id"] == "data.wait")
    assert "GPU utilisation is 34 % and the training waits 80 % of its time for images" in sentence
    assert "painted on the GPU" in sentence
    line = once(capsys)
    assert "GPU 0 34 %, 5.0/24.0 GiB, 120/450 W, 2,520 MHz, PCIe 1,200/90 MB/s" in line


@pytest.mark.parametrize(
    ("described", "word"),
    [({"Name": "NVIDIA A100"}, "unknown"), (gpu(MigMode=[1, 1], slices=[], UtilizationRates=-3), "unknown"),
     ({"lost": True}, "fell off the bus")],
    ids=["nothing supported", "MIG", "lost"],
)  # fmt: skip
def test_what_the_driver_does_not_tell(
    runs: Any, cards: Any, capsys: Any, described: dict[str, Any], word: str
) -> None:
    cards(described)
    told(runs("exp", "running", device="0", gpus=1))
    assert word in once(capsys)
    assert once(capsys, "--json")["run"]


def test_the_last_minute_comes_from_the_runs_samples(project: Project, runs: Any) -> None:
    run = runs("exp", "running", gpus=1, samples=60)
    told(run)
    os.utime(run / telemetry.NAME)  # the newest of them is of now
    watcher = Watcher(project, run)
    watcher.begin()
    found = watcher.look()
    watcher.close()
    assert 25 <= len(found.recent) <= 32
    assert found.load.rate is not None
    assert found.load.rate > 300


def rendered(one: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(watch_screen.screen(one, advise(one)))
    return console.export_text()


def test_the_screen_fits_80_columns() -> None:
    slow = replace(CARD, number=1, util=None, power=None, clock=None, pcie_in=None)
    split = Gpu(2, "A100", mig=True, slices=(Slice("MIG 1g.10gb", 2048, 10240),))
    one = seen(card=CARD, used=(CARD, slow, split, Gpu(3, lost=True)))
    samples = tuple(telemetry.samples(replace(one.look, gpus=one.used), 1.0))
    one = replace(one, samples=samples, recent=(samples,) * 40, load=replace(WELL, gpu=31, wait=70))
    text = rendered(one)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("exp: epoch 4 of 100", "16.0/24.0 GiB", "300/450 W", "2,900 MHz", "61 °C", "800/50 MB/s", "unknown",
                 "MIG 1g.10gb", "lost", "waits for images", "the training waits 70 %"):  # fmt: skip
        assert word in " ".join(text.split()), word


def test_scalars_leave_out_what_is_unknown() -> None:
    one = seen(card=replace(CARD, power=None))
    one = replace(one, samples=tuple(telemetry.samples(one.look, 1.0)))
    found = scalars(one)
    assert found["gpu0/utilisation_pct"] == 95
    assert found["gpu0/memory_gib"] == 16
    assert "gpu0/power_w" not in found
    assert "training/images_s" not in found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--interval", "0"], "--interval 0: give 0.2 seconds or more"), (["nowhere"], "there is no run nowhere")],
)
def test_bad_input(project: Project, capsys: Any, words: list[str], sentence: str) -> None:
    assert cli.main(["watch", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_it_turns_to_a_run_that_begins(project: Project, runs: Any) -> None:
    runs("exp")
    names: list[str] = []

    def show(one: Any, _: Any) -> None:
        names.append(one.training.name)
        if len(names) == 1:
            told(runs("exp2", "running"))
        if len(names) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.watch(project, watch.Wish(interval=0.2), show)
    assert names == ["exp", "exp2", "exp2"]


@pytest.fixture
def watching(project: Project) -> Iterator[subprocess.Popen[str]]:
    """`lab watch` at work, its output a pipe."""
    # a shell starts what runs in its background deaf to Ctrl-C, these tests too, and children take that over
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "watch", "--interval", "0.2"],
        env={**os.environ, "PYTHONPATH": str(CODE)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    yield process
    process.kill()
    process.wait()


def test_ctrl_c_ends_it_well(watching: subprocess.Popen[str]) -> None:
    assert watching.stdout is not None
    assert "no run yet" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=30)
    assert (watching.returncode, errors) == (0, "")


# --- beside a real training -------------------------------------------------------------------------------------------


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_beside_a_training(engine: str, project: Project, tmp_path: Path) -> None:
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    # an epoch that lasts: between two of them there is no rate
    demo.make(demo.Recipe(images=400, size=96, shapes=(1, 2), radius=(0.16, 0.26)), project.root / "data" / "demo")
    around = environment(tmp_path / "network.log")
    run = project.runs / "train" / "exp"
    words = ["--weights", "", "--cfg", "yolov5n.yaml", "--img", "96", "--batch", "2", "--workers", "1"]
    words += ["--noval", "--noplots"]
    train = subprocess.Popen(
        [sys.executable, "-m", "lab", "train", *words, "--epochs", "20", "--engine", engine],
        env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found: dict[str, Any] = {}
    try:
        until = time.monotonic() + 300
        while not found.get("images_s") and time.monotonic() < until and train.poll() is None:
            time.sleep(0.5)
            told_yet = pace.read(run)
            if told_yet is None or told_yet.rate is None:
                continue
            done = subprocess.run(
                [sys.executable, "-m", "lab", "watch", "--once", "--json"],
                env=around, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout)
    finally:
        train.send_signal(signal.SIGINT)
        train.wait(120)
    assert found["state"] == "running"
    assert found["run"] == str(run)
    assert found["images_s"] > 0
    assert 0 <= found["data_wait_pct"] <= 100
    assert found["cpu_pct"] > 0
    assert [item["id"] for item in found["advice"]]
    assert not (run / pace.NAME).exists()
    assert [one for one in telemetry.read(run / telemetry.NAME) if one.rate]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "watch"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"training/images_s", "training/data_wait_pct", "training/processors_pct"} <= set(tags)
    last = events.Scalars("training/images_s")[-1]
    assert last.value == pytest.approx(found["images_s"], rel=1e-5)
    assert last.step > 0
    # the engine's own file is beside it, and holds none of this
    own = EventAccumulator(str(run))
    own.Reload()
    assert not [tag for tag in own.Tags()["scalars"] if tag.startswith("training/")]
