"""What `lab watch` looks at: which training, what it was asked for, how the machine does, who else is on its GPUs."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lab import dataset as data
from lab import devices, limits, pace, record, report_advice, report_run, resume, telemetry
from lab import plan as training_plan
from lab.doctor_facts import Gpu as Listed
from lab.engines import ENGINES, Prepared
from lab.errors import LabError
from lab.fast import choose, plan, tune
from lab.gpu_list import as_listed, those
from lab.job import Job
from lab.nvml import Gpu
from lab.options import Request
from lab.pace import Pace
from lab.project import Project
from lab.report_advice import Load
from lab.telemetry import PROC, Eye, Look, Sample

RUNNING, ENDED, KILLED = "running", "ended", "killed"
FRESH = 30.0  # seconds: a file that a run wrote since tells that it runs
WINDOW = 60.0  # seconds that advice looks back on
DEVICE_FILE = "/dev/nvidia"


@dataclass(frozen=True)
class Training:
    """A run as its directory tells of it. `path` and `switches` as in lab.fast; `workers` and `batch` for each rank.

    `device` is --device as resolved; `planned` and `epochs` count epochs; `images` one epoch's, None when not known.
    """

    directory: Path
    name: str
    state: str  # RUNNING, ENDED, or KILLED: nobody was left to say how it ended
    engine: str = ""
    status: str = ""  # of run.json
    ended: str = ""
    reason: str = ""
    model: str = "yolov5n"
    batch: int = 16
    workers: int = 0
    imgsz: int = 640
    device: str = ""
    path: str = plan.PLAIN
    switches: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    epochs: int = 0
    planned: int | None = None
    images: int | None = None
    epoch_rate: float | None = None  # images a second over whole epochs, validation included

    @property
    def ranks(self) -> int:
        """Processes that train, one a GPU."""
        return len(self.device.split(","))


@dataclass(frozen=True)
class Other:
    """A process that computes on GPU `gpu` and is none of the training's; what cannot be seen from here is None."""

    gpu: int
    name: str | None = None
    pid: int | None = None
    memory: float | None = None  # MiB


@dataclass(frozen=True)
class Feed:
    """What lab.fast.plan and lab.fast.tune decide from, for this run on this host."""

    facts: plan.Facts
    host: tune.Host


@dataclass(frozen=True)
class Seen:
    """One look at a training and its machine, and the minute before it."""

    training: Training | None
    look: Look
    load: Load
    used: tuple[Gpu, ...] = ()  # those that the training uses; all of them while nothing trains
    others: tuple[Other, ...] = ()
    feed: Feed | None = None
    silent: bool = False  # there is a GPU, and its driver tells nothing of it
    why: str = ""  # so it says, in the driver's words
    lost: bool = False  # for want of one that fell off the bus
    between: bool = False  # the training is between two epochs
    samples: tuple[Sample, ...] = ()  # of this look
    recent: tuple[tuple[Sample, ...], ...] = ()  # of the last minute's looks, this one the last

    @property
    def running(self) -> bool:
        """Whether the training is under way."""
        return self.training is not None and self.training.state == RUNNING


# Which training


def find(named: str, project: Project) -> Path | None:
    """The run that `named` means; without a name the one that runs, else the newest, else None. Raises LabError."""
    if named:
        return report_run.find(named, project)
    base = project.runs / "train"
    # one that has just begun has no more than its record
    known = dict.fromkeys([*resume.runs(base), *(file.parent for file in base.glob(f"*/{record.NAME}"))])
    return next((run for run in known if state(run, record.read(run)) == RUNNING), next(iter(known), None))


def state(directory: Path, said: dict[str, Any]) -> str:
    """Of the run whose record is `said`: the record may say "running" for ever when the machine went down."""
    if said.get("status") != "running":
        return ENDED
    now = time.time()
    for name in (pace.NAME, telemetry.NAME, record.NAME):
        try:
            if now - (directory / name).stat().st_mtime < FRESH:
                return RUNNING
        except OSError:
            continue
    return RUNNING if resume.held(directory) else KILLED


def training(directory: Path, project: Project) -> Training:
    """What the run's own files tell."""
    said, asked = record.read(directory), resume.read_asked(directory)
    options: dict[str, Any] = asked.options if asked is not None else {}
    engine = asked.engine if asked is not None else str(said.get("engine") or project.engine)
    speed: dict[str, Any] = said.get("speed") or (asked.speed if asked is not None else {})
    epochs, columns = report_run.curves(directory / "results.csv")
    attempts = said.get("attempts") or [{}]
    device = str(options.get("device") or "")
    batch = attempts[-1].get("batch") or options.get("batch_size") or resume.DEFAULTS["batch_size"]
    images = ((said.get("data") or {}).get("images") or {}).get("train")
    path = str(speed.get("data") or plan.PLAIN)
    return Training(
        directory=directory,
        name=project.show(directory).removeprefix("runs/train/"),
        state=state(directory, said),
        engine=engine,
        status=str(said.get("status") or ""),
        ended=str(said.get("ended") or ""),
        reason=str(attempts[-1].get("reason") or ""),
        model=_model(project, asked),
        batch=max(1, int(batch) // len(device.split(","))),
        workers=int(options.get("workers") or 0),
        imgsz=int(options.get("imgsz") or project.image_size),
        device=device,
        path=tune.CACHED if path == plan.PLAIN and options.get("cache") in ("ram", True) else path,
        switches=tuple(speed.get("switches") or ()),
        command=tuple(map(str, said.get("command") or ())),
        epochs=len(epochs),
        planned=options.get("epochs"),
        images=images,
        epoch_rate=_epoch_rate(directory, columns, len(epochs), attempts, images),
    )


def _model(project: Project, asked: resume.Asked | None) -> str:
    if asked is None or asked.engine not in ENGINES:
        return project.model
    job = Job(project, ENGINES[asked.engine], Request("train", {}))
    try:
        return training_plan.model_of(job, asked.weights, asked.cfg)
    except (OSError, LabError):  # the weights that it began with have gone since
        return project.model


def _epoch_rate(
    directory: Path, columns: dict[str, list[float | None]], epochs: int, attempts: list[Any], images: int | None
) -> float | None:
    """From results.csv, for a training that does not write its pace: ultralytics' on several GPUs, or an older one."""
    times = [value for value in columns.get("time", []) if value is not None]
    if not images or not epochs:
        return None
    if len(times) >= 2:
        seconds = times[-1] - times[-2]
    elif len(attempts) == 1:  # a resumed run's first epochs are of another time
        try:
            begun = datetime.fromisoformat(str(attempts[0].get("started"))).timestamp()
            seconds = ((directory / "results.csv").stat().st_mtime - begun) / epochs
        except (OSError, ValueError):
            return None
    else:
        return None
    return images / seconds if seconds > 0 else None


# The GPUs and who is on them


def family(told: Pace | None) -> set[int]:
    """The training's processes, where they are to be seen from this container."""
    return set(telemetry.family(told.pid)) if told is not None and told.here() else set()


def used(gpus: Sequence[Gpu], training: Training | None, mine: set[int]) -> tuple[Gpu, ...]:
    """GPUs that the training uses: where the driver names its processes, else by --device. All while nothing trains."""
    if training is None or training.state != RUNNING:
        return tuple(gpus)
    if training.device in ("cpu", "mps"):
        return ()
    named = tuple(gpu for gpu in gpus if any(process.pid in mine for process in gpu.processes or ()))
    if named:
        return named
    numbers = {one.number for one in those(training.device, tuple(map(as_listed, gpus)))}
    return tuple(gpu for gpu in gpus if gpu.number in numbers) or tuple(gpus[:1])


def others(gpus: Iterable[Gpu], mine: set[int], training_here: bool, proc: Path = PROC) -> tuple[Other, ...]:
    """Processes on `gpus` that are not `mine`.

    The driver counts processes as the host does, so those of another container, or of this one under some container
    runtimes, have numbers that mean nothing here. Where the training, which is on each of these GPUs if
    `training_here`, is not to be recognised, the one with the most memory is taken for it.
    """
    found: list[Other] = []
    for gpu in gpus:
        strange = [process for process in gpu.processes or () if process.pid not in mine]
        if training_here and strange and len(strange) == len(gpu.processes or ()):
            strange.remove(max(strange, key=lambda process: process.memory or 0.0))
        for process in strange:
            name = _name(process.pid, proc)
            found.append(Other(gpu.number, name, process.pid if name else None, process.memory))
    return tuple(found)


def _name(pid: int, proc: Path) -> str | None:
    """The name of a process that holds a GPU; None when it is not to be seen, or the number is another one's here."""
    place = proc / str(pid)
    try:
        files = [str(file.readlink()) for file in (place / "fd").iterdir()]
        name = (place / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return name if any(file.startswith(DEVICE_FILE) or file == "/dev/dxg" for file in files) else None


# What the fast path decides from


def feed(project: Project, training: Training, seen: Seen) -> Feed | None:
    """The facts for `lab.fast`, of the run as it is; None where the data or the options cannot be read any more."""
    asked = resume.read_asked(training.directory)
    try:
        if asked is None:
            return None
        dataset = data.open_dataset(str(training.directory / "data.yaml"), project)
        return _feed(project, training, seen, asked, dataset)
    except (OSError, LabError, KeyError, ValueError):
        return None


def _feed(project: Project, training: Training, seen: Seen, asked: resume.Asked, dataset: data.Dataset) -> Feed:
    from lab.fast.tune_facts import FAST, file_bytes  # noqa: PLC0415  OpenCV

    job = Job(project, ENGINES[training.engine], Request("train", {}))
    options = {key: value for key, value in asked.options.items() if key != "cache"}
    prepared = Prepared("train", options, asked.weights, asked.cfg, training.directory, asked.speed)
    images = training.images or training_plan.count(dataset, "train")
    gpus = tuple(Listed(gpu.number, gpu.name, "", int(gpu.total or 0), 0) for gpu in seen.used)
    looked = training_plan.Facts(
        weights="", model=training.model, engine=training.engine, images={"train": images}, checked="",
        batch=training.batch * training.ranks, imgsz=training.imgsz, workers=training.workers, disk_free=0, disk_need=0,
        shm_free=None, memory_free=limits.memory_free(), device=training.device, gpus=gpus,
    )  # fmt: skip
    facts = choose.gather(job, prepared, dataset, looked, plan.Wish())
    if training.path in (plan.STORE, plan.DEVICE):
        facts = replace(facts, unstored_bytes=0)  # it reads from the store
    totals = [gpu.total for gpu in seen.used if gpu.total]
    # where it paints on the GPU already, there is room for it
    painting = plan.painting_bytes(training.batch, training.imgsz) if training.path == plan.DEVICE else 0
    load, free = seen.load, facts.memory_free or 0
    files = file_bytes(dataset, images)
    # loaders that hold no processor busy, and a disk that gives: so much, it seems, and no more
    slow = (load.reading or 0) > 1 and (load.cpu or 0) < 50 and training.path == plan.PLAIN and files > free
    own = facts.store_bytes * tune.CACHE_SLACK * training.ranks if training.path == tune.CACHED else 0
    host = tune.Host(
        cores=limits.processors(),
        memory_free=int(free + own),  # the run's own cache may stay
        shm_free=_shm(),
        cache_free=facts.cache_free,
        disk_rate=(load.reading or 0) * 1e6 if slow else FAST,
        cache_rate=FAST,
        images=images,
        file_bytes=files,
        store_bytes=facts.store_bytes,
        unstored_bytes=facts.unstored_bytes,
        imgsz=training.imgsz,
        gpus=training.ranks if facts.device == "cuda" else 0,
        gpu_bytes=max(int(min(totals)) << 20 if totals else 0, painting),
        store_obstacle=plan.inexpressible(facts),
    )
    return Feed(facts, host)


def _shm() -> int:
    """Bytes of /dev/shm, those that the run holds included."""
    try:
        return shutil.disk_usage(limits.SHM).total
    except OSError:
        return 0


# All of it


@dataclass
class Watcher:
    """Looks again and again at the run in `directory`, or at the machine alone."""

    project: Project
    directory: Path | None
    _eye: Eye = field(init=False)
    _recent: deque[tuple[float, list[Sample]]] = field(default_factory=deque)
    _feed: Feed | None = None

    def __post_init__(self) -> None:
        self._eye = Eye(self.directory, None, traffic=True)
        self.follow()

    def follow(self) -> None:
        """Count the processor time of the training's processes, once they are known."""
        told = pace.read(self.directory) if self.directory is not None else None
        root = told.pid if told is not None and told.here() else None
        if root != self._eye.root:
            self._eye.follow(root)

    def begin(self) -> None:
        """Take what the run sampled in the last minute, if it did."""
        if self.directory is None:
            return
        file = self.directory / telemetry.NAME
        try:
            age = time.time() - file.stat().st_mtime
        except OSError:
            return
        rows = telemetry.read(file)
        now = time.monotonic()
        for row in rows:
            at = now - age - (rows[-1].time - row.time)
            if now - at <= WINDOW:
                self._recent.append((at, [row]))

    def look(self) -> Seen:
        """The state of the run and of its machine."""
        self.follow()
        about = training(self.directory, self.project) if self.directory is not None else None
        look = self._eye.look()
        if about is None or about.state != RUNNING:
            look = replace(look, pace=None)
        now = time.monotonic()
        rows = telemetry.samples(look, now)
        self._recent.append((now, rows))
        while self._recent and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()
        told = pace.read(self.directory) if self.directory is not None else None
        mine = family(told)
        on = used(look.gpus, about, mine)
        numbers = {gpu.number for gpu in on}
        running = about is not None and about.state == RUNNING
        seen = Seen(
            training=about,
            look=look,
            load=report_advice.means([row for _, group in self._recent for row in group], numbers),
            used=on,
            others=others(on, mine, running and about is not None and about.device != "cpu"),
            silent=not look.gpus and bool(devices.gpu_nodes()),
            why=self._eye.cards.why,
            lost=self._eye.cards.lost,
            between=running and told is not None and not told.training,
            samples=tuple(rows),
            recent=tuple(tuple(group) for _, group in self._recent),
        )
        return replace(seen, feed=self._known_feed(seen))

    def _known_feed(self, seen: Seen) -> Feed | None:
        """Gathered once, when a run is seen to wait for images."""
        from lab.watch_advice import waits  # noqa: PLC0415  the decision that needs it

        if self._feed is None and seen.training is not None and waits(seen):
            self._feed = feed(self.project, seen.training, seen)
        return self._feed

    def close(self) -> None:
        """End what it started."""
        self._eye.close()
