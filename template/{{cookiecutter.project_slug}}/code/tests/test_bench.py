"""`lab bench`: the figures from turns, words that cannot be meant, and, in the container, three real arms."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import cli, upstream
from lab.errors import LabError
from lab.fast import arms, bench, bench_data, switches, turns
from lab.fast.arms import Arm, Measured, Turn
from lab.project import CODE, Project


def measured(name: str, rates: list[float], kind: str = turns.OWN, waited: float = 0.0) -> Measured:
    taken = [Turn(images=100, batches=10, seconds=100 / r, waited=waited * 100 / r, processor=50 / r) for r in rates]
    return Measured(Arm(name, "", Path(), {}, kind), {"device": "cpu"}, taken)


def test_figures_are_medians_of_the_turns() -> None:
    one = bench.figures(measured("ours", [90, 100, 400], waited=0.25))
    assert (one.rate, one.slowest, one.fastest) == (100, 90, 400)
    assert one.waiting == pytest.approx(0.25)
    assert one.per_core is None


def test_a_ratio_compares_within_a_round() -> None:
    ours, ships = measured("ours", [100, 50, 200]), measured("upstream", [50, 25, 100])
    assert bench.ratios([[ships, ours]]) == {"ours/upstream": pytest.approx(2)}


def test_a_loader_alone_counts_by_processor_time() -> None:
    one = bench.figures(measured("upstream", [100, 100], turns.ALONE))
    assert one.per_core == pytest.approx(200)
    assert one.waiting is None


def test_kernels_that_overlap_count_once() -> None:
    trace = {
        "traceEvents": [
            {"cat": "kernel", "ts": 0, "dur": 2e6},
            {"cat": "kernel", "ts": 1e6, "dur": 2e6},
            {"cat": "gpu_memcpy", "ts": 3e6, "dur": 9e6},
            {"cat": "kernel", "ts": 5e6, "dur": 1e6},
            {"name": "process_name", "ph": "M"},
        ]
    }
    assert turns.busy_seconds(turns.kernels(trace)) == pytest.approx(4)
    assert turns.busy_seconds([]) == 0


def test_an_arm_gives_memory_back_before_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    cuda = SimpleNamespace(
        synchronize=lambda _: None, empty_cache=lambda: did.append("gave back"), max_memory_allocated=lambda _: 1,
        reset_peak_memory_stats=lambda _: None,
    )  # fmt: skip
    torch = SimpleNamespace(cuda=cuda, device=lambda kind: SimpleNamespace(type=kind))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(turns, "facts", lambda *_: {})

    class Line(turns.Line):
        def tell(self, **answer: Any) -> None:
            assert did[-1:] == ["gave back"], answer
            did.append("answered")

    orders = [{"do": "go", "seconds": 0, "skip": 0}, {"do": "epoch"}, {"do": "go", "seconds": 0, "skip": 1}]
    pipe = io.StringIO("".join(json.dumps(order) + "\n" for order in orders))
    loader = turns.Turns([([0],)] * 2, Line(pipe, io.StringIO()), turns.OWN, lambda: "cuda")
    batches = iter(loader)
    for _ in range(1 + 2 + 2):
        next(batches)
    assert did.count("answered") == 3  # ready, the turn, the epoch


@pytest.mark.parametrize(("batch", "pictures"), [(1, 256), (16, 256), (48, 288), (64, 256), (100, 400), (512, 2048)])
def test_made_up_pictures_fill_whole_batches(batch: int, pictures: int) -> None:
    assert bench_data.number(batch) == pictures


def test_made_up_pictures_are_a_data_set(project: Project, tmp_path: Path) -> None:
    from lab import dataset

    found = dataset.open_dataset(str(bench_data.make(tmp_path / "made", 4)), project)
    for picture in found.images("train"):
        rows = [line.split() for line in dataset.label_file(picture).read_text().splitlines()]
        assert len(rows) == bench_data.BOXES
        assert all(int(row[0]) in found.names for row in rows)
        assert all(0 <= float(edge) <= 1 for row in rows for edge in row[1:])
    sizes = [picture.stat().st_size for picture in found.images("train")]
    assert 100_000 < sum(sizes) / len(sizes) < 400_000
    assert len({picture.read_bytes() for picture in found.images("train")}) == 4


@pytest.mark.parametrize(
    ("words", "wants"),
    [
        (["--seconds", "0"], "5 or more"),
        (["--batch", "0"], "1 or more"),
        (["--workers", "-1"], "0 or more"),
        (["--img", "50"], "use 32 or 64"),
        (["--with", "chanels_last"], "did you mean channels_last?"),
        (["--without", "nothing_such"], "there is nothing of that name"),
        (["--loader", "--switches"], "give one of them"),
        (["--data", "nowhere.yaml"], "does not exist"),
        (["--device", "0"], "no such GPU"),
        (["--engine", "yolov9"], "yolov5 or yolov5u"),
        (["--model", "yolov5q"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(ready: Project, words: list[str], wants: str, capsys: Any) -> None:
    assert cli.main(["bench", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert wants in said
    assert "\n" not in said


def test_a_data_set_without_pictures_is_refused(ready: Project, tmp_path: Path, capsys: Any) -> None:
    for split in ("train", "val"):
        (tmp_path / "empty" / split).mkdir(parents=True)
    (tmp_path / "empty" / "data.yaml").write_text("train: train\nval: val\nnames: [a]\n")
    assert cli.main(["bench", "--data", str(tmp_path / "empty" / "data.yaml")]) == 2
    assert "has no pictures" in capsys.readouterr().err


def test_a_large_data_set_is_sampled(project: Project, shapes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "SAMPLE", 4)
    wish = bench.Wish("yolov5", "yolov5n", 96, 1, data=str(shapes))
    from lab import dataset

    file = bench._sample(wish, tmp_path, project)
    whole = set(dataset.open_dataset(str(shapes), project).images("train"))
    chosen = list(dataset.open_dataset(str(file), project).images("train"))
    assert 2 <= len(chosen) <= 4 < len(whole)
    assert set(chosen) <= whole


# Arms, with a script in the place of an engine

ARM = """
import json, os, sys, time
request = json.load(open(sys.argv[1]))
about = request["turns"]
orders, answers = os.fdopen(about["orders"]), os.fdopen(about["answers"], "w")
def tell(**answer): answers.write(json.dumps(answer) + "\\n"); answers.flush()
if "fails" in request:
    json.dump({"sentence": "the labels are wrong", "status": 1}, open(request["report"], "w")); sys.exit(1)
tell(ready=True, device="cpu", torch="2.8.0")
log = open(request["log"], "a")
for number, line in enumerate(orders):
    order = json.loads(line)
    log.write(request["name"] + "\\n"); log.flush()
    if "hangs" in request: time.sleep(60)
    if request.get("dies") == number: sys.exit("killed for its memory")
    time.sleep(0.05)
    tell(images=10, batches=1, seconds=0.05 * request["pace"], waited=0, processor_seconds=0.01, device_bytes=None)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Any:
    (tmp_path / "arm.py").write_text(ARM)

    def make(name: str, pace: float = 1, **more: Any) -> Arm:
        payload = {"name": name, "pace": pace, "log": str(tmp_path / "log"), "turns": {}, **more}
        return Arm(name, name, tmp_path / "arm.py", payload, turns.OWN)

    return make


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "child_environment", lambda *_: dict(os.environ))
    monkeypatch.setattr(arms, "SHORTEST", 0.01)


def test_arms_take_turns(project: Project, tmp_path: Path, stand_in: Any, quiet: None) -> None:
    made = [stand_in("slow", 2), stand_in("fast", 1)]
    found = arms.alternate(made, project, tmp_path / "arms", time.monotonic() + 60)
    order = (tmp_path / "log").read_text().split()
    assert order == ["slow", "fast"] * (arms.ROUNDS + 1)  # and once to warm up
    assert [len(one.turns) for one in found] == [arms.ROUNDS] * 2
    assert bench.ratios([found])["fast/slow"] == pytest.approx(2)


def still_running(tmp_path: Path) -> bool:
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    return str(tmp_path / "arm.py") in running


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_arm_that_fails_costs_only_itself(
    place: int, project: Project, tmp_path: Path, stand_in: Any, quiet: None
) -> None:
    made = [stand_in("slow", 2), stand_in("fast", 1)]
    made.insert(place, stand_in("bad", fails=True))
    found = arms.alternate(made, project, tmp_path / "arms", time.monotonic() + 60)
    by_name = {one.arm.name: one for one in found}
    assert by_name["bad"].failure == "bad: the labels are wrong"
    assert [len(by_name[name].turns) for name in ("slow", "fast", "bad")] == [arms.ROUNDS, arms.ROUNDS, 0]
    assert bench.ratios([found]) == {"fast/slow": pytest.approx(2)}
    assert not still_running(tmp_path)
    with pytest.raises(LabError, match="bad: the labels are wrong"):
        arms.require(found)


def test_an_arm_that_dies_half_way_has_no_figures(project: Project, tmp_path: Path, stand_in: Any, quiet: None) -> None:
    made = [stand_in("good"), stand_in("bad", dies=3)]
    good, bad = arms.alternate(made, project, tmp_path / "arms", time.monotonic() + 60)
    assert len(good.turns) == arms.ROUNDS
    assert "killed for its memory" in bad.failure
    assert not bench.measured(bad)


def test_an_arm_that_hangs_is_given_up_in_time(project: Project, tmp_path: Path, stand_in: Any, quiet: None) -> None:
    begun = time.monotonic()
    made = [stand_in("hangs", hangs=True), stand_in("good")]
    hangs, good = arms.alternate(made, project, tmp_path / "arms", begun + 6)
    assert hangs.failure == "hangs was not done in time: give more --seconds, or a smaller --batch"
    assert good.turns
    assert time.monotonic() - begun < 30
    assert not still_running(tmp_path)


def test_rounds_that_are_not_whole_do_not_count() -> None:
    group = [measured("none", [100, 100, 100]), measured("loss", [110, 120]), measured("bf16", [])]
    none, loss, bf16 = bench.whole_rounds(group)
    assert [len(one.turns) for one in (none, loss, bf16)] == [2, 2, 0]
    assert bench.ratios([[none, loss, bf16]]) == {"loss/none": pytest.approx(1.15)}


@pytest.fixture
def scene(project: Project, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.Scene:
    """A measurement on the demo data, without engines."""
    from lab import dataset

    found = dataset.open_dataset(str(shapes), project)
    made = bench.Scene(bench.Wish("yolov5", "yolov5n", 96, 4), project, tmp_path, shapes, found)
    monkeypatch.setattr(bench, "require", lambda wish, _: wish)
    monkeypatch.setattr(bench, "scene", lambda *_: contextlib.nullcontext(made))
    return made


def test_figures_are_kept_as_they_come(
    scene: bench.Scene, project: Project, stand_in: Any, quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    made = [stand_in("upstream", 2), stand_in("bad", fails=True), stand_in("ours")]
    monkeypatch.setattr(bench, "three", lambda _: bench.Comparison(made, {"compile": "there is no C compiler here"}))
    kept: list[dict[str, Any]] = []
    write = bench.write
    monkeypatch.setattr(bench, "write", lambda file, said: kept.append(said) or write(file, said))
    out = tmp_path / "out" / "bench.json"
    assert cli.main(["bench", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "lab: no figures of bad: bad: the labels are wrong" in said.err
    table = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert "failed: bad: the labels are wrong" in table["bad"]
    assert "not measured: there is no C compiler here" in table["compile"]
    assert [one["name"] for one in kept[0]["arms"]] == ["upstream"]
    assert not any(one["complete"] for one in kept[:-1])
    assert json.loads(out.read_text()) == json.loads(json.dumps(kept[-1]))
    assert kept[-1]["complete"]
    assert [one["name"] for one in kept[-1]["arms"]] == ["upstream", "ours"]
    assert kept[-1]["failed"] == {"bad": "bad: the labels are wrong"}
    assert kept[-1]["ratios"] == {"ours/upstream": pytest.approx(2)}


def test_a_measurement_that_is_killed_has_kept_what_there_was(
    scene: bench.Scene, project: Project, stand_in: Any, quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "three", lambda _: bench.Comparison([stand_in("upstream"), stand_in("ours")]))
    out = tmp_path / "bench.json"

    def stopped(file: Path, said: dict[str, Any], write: Any = bench.write) -> None:
        write(file, said)
        if len(said["arms"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(bench, "write", stopped)
    assert cli.main(["bench", "--out", str(out)]) == 130
    said = json.loads(out.read_text())
    assert ([one["name"] for one in said["arms"]], said["complete"]) == (["upstream", "ours"], False)
    assert not still_running(tmp_path)


def test_nothing_that_can_be_measured_is_one_sentence(
    scene: bench.Scene, stand_in: Any, quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "three", lambda _: bench.Comparison([stand_in("bad", fails=True)]))
    assert cli.main(["bench", "--out", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "lab: bad: the labels are wrong"
    assert not (tmp_path / "out.json").exists()
    assert cli.main(["bench", "--out", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "compiled"), [(399, False), (400, True)])
def test_a_switch_that_is_not_measured_is_named(
    seconds: float, compiled: bool, scene: bench.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "arm", lambda _, name, about, kind, *__, **___: Arm(name, about, Path(), {}, kind))

    def ours(scene: bench.Scene) -> dict[str, Any]:
        if scene.wish.speed.with_ == ("bf16",):
            raise LabError("this GPU does not compute in bfloat16")
        return {}

    monkeypatch.setattr(bench, "ours", ours)
    wish = replace(scene.wish, seconds=seconds, device="0")
    wanted = bench.each_switch(replace(scene, wish=wish))
    names = [one.name for one in wanted.arms]
    assert names[:2] == ["none", "channels_last"]
    assert wanted.left_out["bf16"] == "this GPU does not compute in bfloat16"
    assert ("compile" in names) is compiled
    assert ("compile" in wanted.left_out) is not compiled
    assert sorted([*names[1:], *wanted.left_out]) == sorted(switches.NAMES)


def test_the_cache_of_a_measurement_is_its_own(ready: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(bench.bench_data, "make_for", lambda *_: ready.root / "data/demo/data.yaml")
    with bench.scene(bench.Wish("yolov5", "yolov5n", 96, 4, device="cpu"), ready, lambda _: None) as made:
        assert made.project.cache == made.place / "cache"
        assert ready.cache == tmp_path / "mine"
        assert made.speed["data"] == "plain"


# With torch and the engines


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "ROUNDS", 2)
    monkeypatch.setattr(arms, "LONGEST", 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.container
@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_three_arms_and_a_whole_record(engine: str, project: Project, shapes: Path, short: None, capsys: Any) -> None:
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    words = ["--engine", engine, "--model", "yolov5n", "--img", "64", "--batch", "2", "--data", str(shapes)]
    words += ["--device", "cpu", "--seconds", "900", "--out", "out/bench.json", "--workers", "1"]
    assert cli.main(["bench", *words]) == 0, capsys.readouterr().err
    said = json.loads((project.root / "out" / "bench.json").read_text())
    assert [one["name"] for one in said["arms"]] == ["ceiling", "upstream", "ours"]
    for one in said["arms"]:
        assert one["slowest"] <= one["rate"] <= one["fastest"]
        assert one["rates"]
        assert one["idle"] is None  # no GPU
    by_name = {one["name"]: one for one in said["arms"]}
    assert by_name["ceiling"]["waiting"] is None
    assert 0 <= by_name["upstream"]["waiting"] <= 1
    assert set(said["ratios"]) == {"upstream/ceiling", "ours/ceiling", "ours/upstream"}
    assert said["versions"]["torch"]
    assert said["host"]["cpus"] >= 1
    assert said["options"] | {"engine": engine, "imgsz": 64, "batch": 2} == said["options"]
    assert said["device"]["device"] == "cpu"
    assert (said["complete"], said["failed"], said["left_out"]) == (True, {}, {})
    assert "to upstream" in " ".join(capsys.readouterr().out.split())
    assert not list(project.runs.glob("**/*.pt"))  # nothing of the trainings stays


@pytest.mark.container
def test_tune_prescribes_what_train_takes(project: Project, shapes: Path, short: None, capsys: Any) -> None:
    if not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    sizes = ["--img", "64", "--batch", "2", "--device", "cpu"]
    assert cli.main(["tune", "--model", "yolov5n", *sizes, "--seconds", "1500", "--json"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["measured_on_one_device"] > 0
    assert said["predicted_gain"] > 0
    assert said["measured_gain"] > 0
    off = abs(said["predicted_gain"] / said["measured_gain"] - 1)
    assert ("off by" in said["warning"]) is (off > 0.25)
    assert "the processors are the limit" in said["sentence"]
    assert (project.root / said["file"]).is_file()
    words = ["--tuned", "--epochs", "1", "--noplots", "--noval", "--cfg", "yolov5n.yaml", "--weights", ""]
    assert cli.main(["train", *words, "--img", "64", "--device", "cpu"]) == 0
    asked = json.loads((project.root / "runs/train/exp/request.json").read_text())
    assert asked["options"]["batch_size"] == 2
    assert asked["options"]["workers"] == said["chosen"]["candidate"]["workers"]
