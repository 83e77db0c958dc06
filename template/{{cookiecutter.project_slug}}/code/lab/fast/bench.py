"""`lab bench`: the ceiling, the engine as it ships and ours, side by side, alternating, in one run.

ceiling: the same model, batch and image size on one batch that already lies on the device: what the device could do.
upstream: the engine with its own options, loader and step. ours: what `lab train` would do with the same words.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lab import dataset as data
from lab import devices, limits, record, telemetry, upstream
from lab import plan as training_plan
from lab.engines import ENGINES, Prepared
from lab.errors import LabError
from lab.fast import arms, bench_data, choose, plan, switches, turns
from lab.fast.arms import Arm, Measured
from lab.job import Job
from lab.options import Request
from lab.project import Project

CEILING, UPSTREAM, OURS = "ceiling", "upstream", "ours"
LEAST_SECONDS = 5.0  # no engine starts in less
COMPILING = 400.0  # seconds: the compiler takes a minute or two of them
PROFILED = 30  # batches under the profiler: a second or two of a GPU
TOGETHER = 5  # arms at once: each holds a model on the device and some 700 MB of main memory
SAMPLE = 512  # pictures of a data set that are used
EPOCHS = 100  # YOLOv5's default; no epoch ever ends while it is measured
# The learning rate of a run that is only measured: warm-up would vary the number of steps gathered, and a rate that
# makes the loss infinite would let the optimiser leave steps out.
QUIET = {"warmup_epochs": 0.0, "lr0": 0.0005, "warmup_bias_lr": 0.0005}


@dataclass(frozen=True)
class Wish:
    """What to measure. `data` "" means made-up pictures; `speed` is what `lab train` was told."""

    engine: str
    model: str
    imgsz: int
    batch: int
    device: str = ""
    workers: int | None = None
    data: str = ""
    seconds: float = 120.0
    speed: plan.Wish = field(default_factory=plan.Wish)


@dataclass(frozen=True)
class Figures:
    """An arm's result. Rates in images a second; shares of the time of a step.

    `slowest`, `fastest` and `rates` are of the turns, of loaders alone in images a second of processor time.
    """

    name: str
    about: str
    rate: float  # median of the turns, by the clock
    slowest: float
    fastest: float
    waiting: float | None  # share of the time that the training waited for its loader; None where it has none
    per_core: float | None  # median, of loaders alone
    idle: float | None  # share of the time that the GPU ran no kernel; None where that was not measured
    device_bytes: int | None
    prepared: float  # seconds until it could begin
    rates: list[float]


def require(wish: Wish, project: Project) -> Wish:
    """`wish` with its device resolved. Raises LabError for what cannot be measured, before anything is started."""
    if wish.batch < 1:
        raise LabError(f"--batch {wish.batch}: give 1 or more")
    if wish.seconds < LEAST_SECONDS:
        raise LabError(f"--seconds {wish.seconds:g}: give {LEAST_SECONDS:g} or more, an engine takes that to start")
    if wish.imgsz < 32 or wish.imgsz % 32:
        near = max(32, wish.imgsz - wish.imgsz % 32)
        raise LabError(f"--img {wish.imgsz} is not a multiple of 32, the model's stride: use {near} or {near + 32}")
    if wish.engine not in ENGINES:
        raise LabError(f"--engine {wish.engine}: it may be {' or '.join(ENGINES)}")
    if wish.workers is not None and wish.workers < 0:
        raise LabError(f"--workers {wish.workers}: give 0 or more")
    engine = ENGINES[wish.engine]
    engine.require(project)
    engine.model(f"{wish.model}.yaml", project)
    device = devices.resolve(wish.device)
    if "," in device:
        raise LabError(f"--device {wish.device}: one device at a time is measured")
    if wish.data:
        data.open_dataset(wish.data, project)
    return replace(wish, device=device)


@dataclass(frozen=True)
class Scene:
    """Where it is measured: a directory that goes away afterwards, the pictures, and what ours does to be fast.

    `speed` is a lab.fast.plan.Speed as a dictionary, its store open; `store_seconds` is what that took.
    """

    wish: Wish
    project: Project
    place: Path
    file: Path  # the data set's yaml, with absolute paths
    pictures: data.Dataset
    speed: dict[str, Any] = field(default_factory=dict)
    store_seconds: float = 0.0


@contextlib.contextmanager
def scene(wish: Wish, project: Project, show: arms.Show) -> Iterator[Scene]:
    """Make what the arms need; take it away afterwards. The store is in there too."""
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name:
        place = Path(name)
        named = _sample(wish, place, project) if wish.data else bench_data.make_for(wish.batch, place / "data", show)
        found = data.open_dataset(str(named), project)
        aside = replace(project, scratch=place / "cache")
        made = Scene(wish, aside, place, data.write_absolute(found, place), found)
        show("ours gets its store, where it takes one")
        begun = time.monotonic()
        yield replace(made, speed=ours(made), store_seconds=time.monotonic() - begun)


def _sample(wish: Wish, place: Path, project: Project) -> Path:
    """A data file with at most SAMPLE pictures of the wish's data set, spread over it: 100,000 would take minutes."""
    whole = data.open_dataset(wish.data, project)
    for split, most in (("train", max(SAMPLE, 4 * wish.batch)), ("val", bench_data.VALIDATION)):
        pictures = list(whole.images(split))
        chosen = pictures[:: -(-len(pictures) // most)]
        (place / f"{split}.txt").write_text("".join(f"{picture}\n" for picture in chosen), encoding="utf-8")
    file = place / "sample.yaml"
    said = {"train": "train.txt", "val": "val.txt", "names": whole.names}
    file.write_text(yaml.safe_dump({**said, **whole.extra}, sort_keys=False), encoding="utf-8")
    return file


def ours(scene: Scene, *more: str) -> dict[str, Any]:
    """The speed that `lab train` would choose with the words of the wish, and `more` in its --with. Raises LabError."""
    wish = replace(scene.wish.speed, with_=(*scene.wish.speed.with_, *more))
    job = Job(scene.project, ENGINES[scene.wish.engine], Request("train", {}))
    run = scene.place / "runs"
    run.mkdir(exist_ok=True)
    asked = prepared(scene, run, ours_workers(scene.wish))
    seen = training_plan.look(job, asked, scene.pictures)
    return choose.choose(job, asked, scene.pictures, seen, wish).speed


def prepared(scene: Scene, run: Path, options: dict[str, Any], speed: dict[str, Any] | None = None) -> Prepared:
    """A training from scratch with the wish's model and sizes, and `options` of `lab train` by key."""
    wish = scene.wish
    said: dict[str, Any] = {
        "data": str(scene.file), "imgsz": wish.imgsz, "batch_size": wish.batch, "epochs": EPOCHS, "noplots": True,
        "noval": True, "nosave": True, **({"device": wish.device} if wish.device else {}), **options,
    }  # fmt: skip
    model = ENGINES[wish.engine].model(f"{wish.model}.yaml", scene.project)
    return Prepared("train", said, [""], model, run, speed or {})


def arm(scene: Scene, name: str, about: str, kind: str, speed: dict[str, Any], **options: Any) -> Arm:
    """A training with the wish's model and sizes and `options` of `lab train`, which takes turns on data of `kind`."""
    wish, project = scene.wish, scene.project
    run = scene.place / "runs" / name.replace(" ", "-")
    run.mkdir(parents=True)
    if wish.engine == "yolov5":
        options |= {"hyp": str(_hyp(scene)), "noautoanchor": True}
    call = ENGINES[wish.engine].call(prepared(scene, run, options, speed), project)
    payload = {**call.payload, "run": str(run), "device": wish.device, "parent": os.getpid()}
    if wish.engine == "yolov5u":  # a whole file of them would make it take another optimiser than its own choice
        payload["arguments"] = {**payload["arguments"], "warmup_epochs": QUIET["warmup_epochs"]}
    return Arm(name, about, call.script, {**payload, "turns": {"engine": wish.engine}}, kind)


def _hyp(scene: Scene) -> Path:
    """YOLOv5's default hyper-parameters with QUIET's."""
    file = scene.place / "hyp.yaml"
    own = yaml.safe_load((scene.project.upstream / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**own, **QUIET}), encoding="utf-8")
    return file


def upstreams_workers(wish: Wish) -> dict[str, int]:
    """YOLOv5's eight workers as they come, unless /dev/shm would kill them."""
    wanted = wish.workers if wish.workers is not None else 8
    fitting = limits.workers_that_fit(wanted, wish.batch, wish.imgsz)
    return {"workers": fitting} if fitting < wanted or wish.workers is not None else {}


def ours_workers(wish: Wish) -> dict[str, int]:
    """As `lab train`: one a processor up to eight, for which /dev/shm suffices."""
    wanted = wish.workers if wish.workers is not None else max(1, min(8, limits.processors()))
    return {"workers": limits.workers_that_fit(wanted, wish.batch, wish.imgsz)}


def on_its_own_data(speed: dict[str, Any], switches: Sequence[str]) -> dict[str, Any]:
    """`speed` for the engine's own loader, with `switches` of the step."""
    return {**speed, "data": plan.PLAIN, "stores": {}, "resident_bytes": 0, "switches": list(switches)}


@dataclass(frozen=True)
class Comparison:
    """What is measured beside each other, and what could be but is not, with the reason."""

    arms: list[Arm]
    left_out: dict[str, str] = field(default_factory=dict)


def three(scene: Scene) -> Comparison:
    """The arms of `lab bench`."""
    speed = scene.speed
    on = ", ".join(speed["switches"]) or "the engine's own step"
    fixed = on_its_own_data(speed, speed["switches"])
    made = [
        arm(scene, CEILING, "the step of ours on one batch that lies on the device", turns.FIXED, fixed, workers=0),
        arm(scene, UPSTREAM, f"{scene.wish.engine} as it ships", turns.OWN, {}, **upstreams_workers(scene.wish)),
        arm(scene, OURS, f"{speed['data']} images; {on}", turns.OWN, speed, **ours_workers(scene.wish)),
    ]
    return Comparison(made)


def loaders(scene: Scene, with_store: bool = True) -> Comparison:
    """The arms of `lab bench --loader`: no worker processes, so that all the work is in one processor's time."""
    name = scene.wish.engine
    made = [
        arm(scene, UPSTREAM, f"{name}'s loader as it ships", turns.ALONE, {}, workers=0),
        arm(scene, "upstream cache", f"{name}'s with --cache ram", turns.ALONE, {}, workers=0, cache="ram"),
    ]
    for path in (plan.STORE, plan.DEVICE) if with_store else ():
        if path == plan.STORE or choose.device_kind(scene.wish.device) == switches.CUDA:
            made.append(arm(scene, path, f"ours, --with {path}", turns.ALONE, ours(scene, path), workers=0))
    return Comparison(made)


def each_switch(scene: Scene) -> Comparison:
    """The arms of `lab bench --switches`: the step on a fixed batch, with nothing, and with each technique alone.

    torch.compile only where there are COMPILING seconds: the compiler alone would take the others' time.
    """
    engine, device = scene.wish.engine, choose.device_kind(scene.wish.device)
    left_out: dict[str, str] = {}
    made = [arm(scene, "none", "the engine's own step", turns.FIXED, {}, workers=0)]
    for switch in switches.SWITCHES:
        if not switches.works(switch, engine, device):
            continue
        if switch.name == "compile" and scene.wish.seconds < COMPILING:
            left_out[switch.name] = f"the compiler takes a minute or two: give --seconds {COMPILING:g} or more"
            continue
        alone = replace(scene.wish, speed=plan.Wish(with_=(switch.name,), without=_all_but(switch.name)))
        try:
            speed = on_its_own_data(ours(replace(scene, wish=alone)), [switch.name])
        except LabError as error:  # not on this host: no compiler, no bfloat16
            left_out[switch.name] = error.sentence
            continue
        made.append(arm(scene, switch.name, switch.does, turns.FIXED, speed, workers=0))
    return Comparison(made, left_out)


def _all_but(name: str) -> tuple[str, ...]:
    return (*(other for other in switches.NAMES if other != name), *switches.DATA_PATHS)


Keep = Callable[[dict[str, Any]], None]  # given the record of what has been measured so far


def measure(
    wish: Wish, project: Project, which: Callable[[Scene], Comparison], show: arms.Show, keep: Keep = lambda _: None
) -> dict[str, Any]:
    """Measure the arms that `which` makes, within `wish.seconds` in all; what is said of them, ready for JSON.

    An arm that fails, or is too slow, costs only itself. `keep` is called whenever there is more to keep. Raises
    LabError when nothing can be measured.
    """
    wish = require(wish, project)
    until = time.monotonic() + wish.seconds
    with scene(wish, project, show) as made:
        wanted, where = which(made), host()

        def so_far(groups: Sequence[Sequence[Measured]]) -> None:
            if any(measured(one) for group in groups for one in group):
                keep(said(made, where, groups, wanted.left_out, complete=False))

        groups = taken(made, wanted.arms, until, show, so_far)
        if not any(measured(one) for group in groups for one in group):
            arms.require([one for group in groups for one in group])
        found = said(made, where, groups, wanted.left_out, complete=True)
    keep(found)
    return found


def taken(
    scene: Scene, wanted: Sequence[Arm], until: float, show: arms.Show,
    keep: Callable[[Sequence[Sequence[Measured]]], None] = lambda _: None,
) -> list[list[Measured]]:  # fmt: skip
    """The turns of `wanted`, in groups of at most TOGETHER, each beginning with the first arm; failures are in them.

    A group that compiles has twice the time of another.
    """
    first, *others = wanted
    groups = [others[start : start + TOGETHER - 1] for start in range(0, len(others), TOGETHER - 1)] or [[]]
    weights = [2 if any(map(arms.compiles, group)) else 1 for group in groups]
    done: list[list[Measured]] = []
    for number, group in enumerate(groups):
        now = time.monotonic()
        end = now + (until - now) * weights[number] / sum(weights[number:])
        place = scene.place / f"arms-{time.monotonic_ns()}"
        done.append(
            arms.alternate([first, *group], scene.project, place, end, PROFILED, show, lambda some: keep([*done, some]))
        )
    return done


def measured(one: Measured) -> bool:
    """Whether there are figures of an arm."""
    return bool(one.turns) and not one.failure


def said(
    scene: Scene, where: dict[str, Any], groups: Sequence[Sequence[Measured]], left_out: dict[str, str], complete: bool
) -> dict[str, Any]:
    """The record of a measurement: when, on what, with which versions and options, and the figures.

    At least one arm has figures. The first arm of the groups is one and the same, and counts where it was measured.
    """
    groups = [whole_rounds(group) for group in groups]
    found: dict[str, Measured] = {}
    for one in (one for group in groups for one in group):
        known = found.get(one.arm.name)
        if known is None or (measured(one) and not measured(known)):
            found[one.arm.name] = one
    everyone = [one for one in found.values() if measured(one)]
    return {
        "date": record.now(),
        "complete": complete,
        **where,
        "device": everyone[0].facts,
        "options": {key: value for key, value in asdict(scene.wish).items() if value not in ("", None)},
        "ours": scene.speed,
        "pictures": training_plan.count(scene.pictures, "train"),
        "store_seconds": scene.store_seconds,
        "arms": [asdict(figures(one)) for one in everyone],
        "failed": {one.arm.name: one.failure for one in found.values() if one.failure and not measured(one)},
        "left_out": left_out,
        "ratios": ratios(groups),
    }


def host() -> dict[str, Any]:
    """The machine and the versions, for the record; it asks nvidia-smi."""
    gpus = telemetry.ask_gpus(("name", "compute_cap", "memory.total", "uuid", "driver_version")) or []
    about = record.host(gpus)
    for gpu in about["gpus"]:
        del gpu["uuid"]  # of no use to a reader of a benchmark
    return {
        "host": {**about, "processor": processor(), "shm_bytes": _shm()},
        "versions": {**record.versions(), "driver": gpus[0].get("driver_version") if gpus else None,
                     "yolov5": upstream.COMMIT[:8]},
    }  # fmt: skip


def whole_rounds(group: Sequence[Measured]) -> list[Measured]:
    """A group of which each arm has had as many turns as any other, or none."""
    rounds = min((len(one.turns) for one in group if measured(one)), default=0)
    return [replace(one, turns=one.turns[:rounds]) for one in group]


def figures(one: Measured) -> Figures:
    """The medians of an arm's turns."""
    rates = [_rate(turn, one) for turn in one.turns]
    alone, fixed = one.arm.data == turns.ALONE, one.arm.data == turns.FIXED
    return Figures(
        name=one.arm.name,
        about=one.arm.about,
        rate=statistics.median(turn.rate for turn in one.turns),
        slowest=min(rates),
        fastest=max(rates),
        waiting=None if alone or fixed else statistics.median(turn.waited / turn.seconds for turn in one.turns),
        per_core=statistics.median(rates) if alone else None,
        idle=one.idle_share,
        device_bytes=max((turn.device_bytes for turn in one.turns if turn.device_bytes), default=None),
        prepared=one.prepared,
        rates=rates,
    )


def ratios(groups: Sequence[Sequence[Measured]]) -> dict[str, float]:
    """`a/b`: the median over the rounds of an arm's rate against that of every arm before it in its group.

    Within a round, because what slows the machine down then slows both.
    """
    found: dict[str, float] = {}
    for group in groups:
        there = [one for one in group if measured(one)]
        for number, one in enumerate(there):
            for other in there[:number]:
                pairs = zip(one.turns, other.turns, strict=True)
                found[f"{one.arm.name}/{other.arm.name}"] = statistics.median(
                    _rate(mine, one) / _rate(its, other) for mine, its in pairs
                )
    return found


def _rate(turn: arms.Turn, one: Measured) -> float:
    """Images a second; of processor time where only that is compared."""
    return turn.images / turn.processor if one.arm.data == turns.ALONE else turn.rate


def processor() -> str:
    """The processor's name as the kernel has it; "" where it tells none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def _shm() -> int | None:
    try:
        usage = os.statvfs(limits.SHM)
    except OSError:
        return None
    return usage.f_frsize * usage.f_blocks


def write(file: Path, measured: dict[str, Any]) -> None:
    """Write the record as JSON, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write(file, json.dumps(measured, indent=1) + "\n")
