"""`lab train`, `val`, `detect` and `export`: resolve and check everything, then let an engine do it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from lab import dataset as data
from lab import devices, following, going_on, limits, plan, record, rendezvous, training, weights
from lab.engines import ENGINES, Engine, Prepared, left_out
from lab.errors import LabError
from lab.fast import choose, tuned
from lab.job import Job, kept, say
from lab.launch import Interrupted, run
from lab.options import Request, parse
from lab.project import CODE, Project, open_project
from lab.resume import REQUEST

STREAMS = ("http:/", "https:/", "rtsp:/", "rtmp:/", "tcp:/", "screen")


def main(task: str, arguments: Sequence[str]) -> int:
    """`lab TASK ARGUMENTS`; returns the exit status. Raises LabError."""
    if {"-h", "--help"} & set(arguments):
        from lab.help import print_help  # noqa: PLC0415  rich takes a moment

        print_help(task)
        return 0
    request = parse(task, arguments)
    if task == "train" and (among := rendezvous.among_ranks()) is not None:
        number, ranks = among
        if number > 0:
            return 0  # the first of torchrun's processes starts a rank for each GPU, by a torchrun of its own
        request = request.with_options(**rendezvous.devices_of_ranks(request.given, ranks))
    directory = perform(request, open_project())
    if directory is not None:
        say(f"results are in {open_project().show(directory)}")
    return 0


def perform(request: Request, project: Project, log: IO[str] | None = None) -> Path | None:
    """Do what `request` says; returns the run's directory, None for an export. Output goes to `log`, if given."""
    place = rendezvous.meeting(request.given) if request.task == "train" else rendezvous.Meeting()
    command = _command(request)
    request = request.with_options(**rendezvous.apart(project.runs)) if place.follows else _begun(request, project)
    request = _spelled_out(request, project)
    job = Job(project, _engine(request, project, place), request)
    warning = job.engine.require(project)
    if warning:
        say(warning)
    _require_parseable(job)
    if request.task == "export":
        from lab.export_check import require_packages  # noqa: PLC0415  OpenCV and numpy

        require_packages(request.get("include", []))
    if request.task == "train" and "resume" in request.given:
        if not place.follows:
            return going_on.go_on(job, log)
        going_on.require_honoured(request)
    job.engine.refuse(request.task, request.given)
    with following.met(job) as met:
        if (word := following.word_of_node_0(met)) is not None:
            following.follow(met, word, log)
            return None
        return _begin(met, place, command, log)


def _begin(job: Job, place: rendezvous.Meeting, command: str, log: IO[str] | None) -> Path | None:
    """What is not going on with something. `command` is what a run is remembered by. Raises LabError."""
    request, project = job.request, job.project
    wish = choose.wish(request)
    dataset = _dataset(job)
    model = _weights(job) if request.get("tuned") else None
    settings = _tuned(job, *model, dataset) if model and dataset else None
    if settings is not None:
        wish = replace(wish, tuned=settings.speed)
        job = replace(job, request=Request(request.task, {**settings.options, **request.given}))
        request = job.request
    options = _options(job)
    names, cfg = model or _weights(job)
    if request.task == "train":
        _require_cache(request, dataset)
    if dataset is not None and request.task in ("train", "val"):
        training.drop_label_caches(dataset, project)
    with _run_directory(job, cfg or names[0]) as directory:
        if dataset is not None:
            options["data"] = str(data.write_absolute(dataset, directory or project.runs))
        prepared = Prepared(request.task, options, names, cfg, directory)
        begun = time.time()
        if request.task == "train" and dataset is not None:
            if not place.follows:
                _remember(directory, command)
            seen = plan.look(job, prepared, dataset)
            prepared = choose.choose(job, prepared, dataset, seen, wish)
            _say_if_from_scratch(job, prepared)
            _tell(plan.sentences(seen, ("speed", choose.said(prepared))), log)
            training.train(job, prepared, dataset, log)
        else:
            device = str(options.get("device", ""))
            with kept(job, prepared) as record_of_it, record_of_it.attempt(options.get("batch_size")):
                run(job.engine.call(prepared, project), project, directory, device, log)
    if request.task == "export" and log is None:
        from lab import export_check  # noqa: PLC0415  OpenCV and numpy

        export_check.check(Request("export", options), project, job.engine.name, Path(names[0]), begun)
    return None if place.follows else directory


RUN_FILE = (
    "LAB_RUN_FILE"  # names a file that remembers which run this container's, or this cluster job's, command began
)


def _begun(request: Request, project: Project) -> Request:
    """The same training once more, because its container or its job was started again: the run that it began goes on.

    Where the machines meet and which GPUs this one has may have changed; the rest is the run's own.
    """
    file = os.environ.get(RUN_FILE)
    if request.task != "train" or not file or "resume" in request.given or "evolve" in request.given:
        return request
    try:
        begun, _, command = Path(file).read_text(encoding="utf-8").partition("\n")
    except OSError:
        return request
    directory = project.root / begun
    if not (directory / REQUEST).is_file():
        return request
    if command != _command(request):
        say(f"{file} tells of {project.show(directory)}, which another command began, so this is a new run")
        return request
    say(f"this was started again, so {project.show(directory)} goes on")
    again = {key: request.given[key] for key in (*rendezvous.OPTIONS, "device") if key in request.given}
    return Request("train", {"resume": str(directory), **again})


def _remember(directory: Path | None, command: str) -> None:
    if directory is not None and (file := os.environ.get(RUN_FILE)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        record.write(Path(file), f"{directory}\n{command}")


def _command(request: Request) -> str:
    """What was asked, but for where: the machines and GPUs may be others when a job is started again."""
    asked = {key: value for key, value in request.given.items() if key not in (*rendezvous.OPTIONS, "device")}
    return json.dumps(asked, sort_keys=True, default=str)


def _spelled_out(request: Request, project: Project) -> Request:
    """`--weights best` and `last`: those of the newest run."""
    said = request.get("weights")
    names = [said] if isinstance(said, str) else said or []
    found = [weights.newest(name, project) for name in names]
    if not any(found):
        return request
    paths = [str(file or name) for file, name in zip(found, names, strict=True)]
    say(f"--weights {' '.join(names)}: {', '.join(project.show(Path(path)) for path in paths)}")
    return request.with_options(weights=paths[0] if isinstance(said, str) else paths)


def _tell(lines: list[str], log: IO[str] | None) -> None:
    """The lines before a training; they go where its output goes."""
    if log is None:
        say("before training")
    print("\n".join(lines), file=log or sys.stderr, flush=True)


def _tuned(job: Job, names: list[str], cfg: str | None, dataset: data.Dataset) -> tuned.Settings:
    """What `lab tune` wrote for this training. Raises LabError."""
    request = job.request
    device = devices.resolve(request.get("device", ""))
    model = plan.model_of(job, names, cfg)
    return tuned.read(job.project, choose.key(job.project, job.engine.name, model, dataset, _image_size(job), device))


def _engine(request: Request, project: Project, place: rendezvous.Meeting) -> Engine:
    """The engine asked for, else the one that wrote the checkpoint at hand, else the project's."""
    if "engine" in request.given:
        return ENGINES[request.given["engine"]]
    if "resume" in request.given and place.follows:
        return ENGINES["yolov5"]  # the one that trains on several machines; only node 0 knows the run
    if "resume" in request.given:
        return ENGINES[going_on.engine_of(request.given["resume"], project) or project.engine]
    named = _first(request.get("weights"))
    file = project.find(named) if isinstance(named, str) and named else None
    wrote = weights.engine_of(file) if file is not None and file.suffix == ".pt" else None
    if wrote and wrote != project.engine:
        say(f"{named} is a checkpoint of {wrote}: using --engine {wrote}")
    return ENGINES[wrote or project.engine]


def _require_parseable(job: Job) -> None:
    """Values that every engine would trip over later, and less kindly."""
    for key, least in (("epochs", 1), ("workers", 0), ("patience", 0), ("max_det", 1), ("vid_stride", 1)):
        value = job.request.get(key)
        if value is not None and value < least:
            raise LabError(f"--{key.replace('_', '-')} {value}: give {least} or more")
    batch = job.request.get("batch_size")
    if batch is not None and batch < 1 and not (batch == -1 and job.request.task == "train"):
        raise LabError(
            f"--batch {batch}: give 1 or more" + (", or auto to fill the GPU" if job.request.task == "train" else "")
        )


def _options(job: Job) -> dict[str, Any]:
    """The options given, with those resolved that name a device, a size, a file, or depend on this container."""
    request, project = job.request, job.project
    options = {key: value for key, value in request.given.items() if key not in ("weights", "cfg", "engine")}
    if "device" in options:
        options["device"] = devices.resolve(options["device"])
    options["imgsz"] = _image_size(job)
    if "hyp" in options:
        options["hyp"] = str(_hyp(job, options["hyp"]))
    if options.get("save_period", 1) < 1:
        options["save_period"] = -1  # 0 would end YOLOv5 in a division by zero after the first epoch
    if "source" in options:
        options["source"] = _source(options["source"], project)
    if request.task in ("train", "val"):
        options["workers"] = _workers(job, options)
    return options


def _image_size(job: Job) -> Any:
    """`--imgsz`, a multiple of the network's largest stride: 32, and 64 with a P6 head."""
    request = job.request
    many = request.task in ("detect", "export")
    size = request.get("imgsz", [job.project.image_size] if many else job.project.image_size)
    named = request.get("cfg") or _first(request.get("weights"))
    stride = weights.stride_of(named, job.project, job.engine.name)
    limits.require_stride(size if isinstance(size, list) else [size], stride)
    return size


def _first(value: Any) -> str:
    """A value, or the first of several; "" for none."""
    return str(value[0] if isinstance(value, list) else value or "")


def _hyp(job: Job, name: str) -> Path:
    """A hyper-parameter file: where it says, in code/ or code/configs/, or among YOLOv5's own."""
    places = [
        job.project.find(name),
        CODE / name,
        CODE / "configs" / name,
        job.project.upstream / "data" / "hyps" / name,
        job.project.upstream / name,
    ]
    found = next((place for place in places if place is not None and place.is_file()), None)
    if found is None:
        raise LabError(f"the hyper-parameter file {name} does not exist: code/configs/hyp.small.yaml is one")
    if job.engine.name == "yolov5u" and left_out(found):
        say(f"yolov5u has another loss, so it keeps its own gains instead of {', '.join(left_out(found))} of {name}")
    return found


def _source(name: str, project: Project) -> str:
    if name.isdigit() or name.startswith(STREAMS) or name.endswith(".streams"):
        return name
    if "*" in name:
        found = (
            next((base for base in (Path.cwd(), project.root) if any(base.glob(name))), None)
            if name[0] != "/"
            else Path("/")
        )
        if found is None:
            raise LabError(f"no file matches --source {name}")
        return str(found / name)
    place = project.find(name)
    if place is None and (project.upstream / name).exists():
        place = project.upstream / name  # data/images, as tutorials have it
    if place is None:
        raise LabError(f"--source {name} does not exist: give a picture, a directory, a video or a camera number")
    if place.is_dir() and not any(file.is_file() for file in place.iterdir()):
        raise LabError(f"--source {name} holds no files")
    return str(place)


def _workers(job: Job, options: dict[str, Any]) -> int:
    """Loader workers for each rank: as asked, else one a processor up to 8; never more than /dev/shm can feed."""
    ranks = len(str(options.get("device", "")).split(","))
    wanted = int(options.get("workers", max(1, min(8, limits.processors() // ranks))))
    batch = int(options.get("batch_size", 16 if job.request.task == "train" else 32))
    fitting = limits.workers_that_fit(wanted, max(batch, 16), int(options["imgsz"]))
    if fitting < wanted:
        say(f"/dev/shm is too small for {wanted} workers, so {fitting} load images; SHM_SIZE=8gb in .env gives more")
    return fitting


def _weights(job: Job) -> tuple[list[str], str | None]:
    """Checkpoints (none for training from scratch) and the model yaml."""
    request, project = job.request, job.project
    given, cfg = request.get("weights"), request.get("cfg")
    if request.task != "train":
        names = given or ([file] if (file := _at_hand(job)) else [])
        if not names:
            raise LabError(f"--weights is missing: {weights.recent(project)}")
        found = [_checkpoint(name, job) for name in names]
        if job.engine.name == "yolov5u" and len(found) > 1:
            raise LabError("engine yolov5u takes one checkpoint: average several with --engine yolov5 only")
        return found, None
    if given:
        return [_checkpoint(given, job)], job.engine.model(cfg, project) if cfg else None
    if given is None and not cfg:
        file = _at_hand(job)
        if file:
            return [file], None
    return [""], job.engine.model(cfg or f"{project.model}.yaml", project)


def _say_if_from_scratch(job: Job, prepared: Prepared) -> None:
    """Say it where nobody asked for it; after all that may refuse this training."""
    if any(prepared.weights) or job.request.get("weights") is not None:
        return
    name = job.project.model
    why = "" if job.request.get("cfg") else f", because {name}.pt is not here and nothing is downloaded"
    say(f"training from scratch, from {Path(prepared.cfg or name).name}{why}")


def _at_hand(job: Job) -> str:
    file = weights.at_hand(job.project, job.engine.name)
    if file is None:
        return ""
    weights.require_checkpoint(file, file.name)
    return str(file)


def _checkpoint(name: str, job: Job) -> str:
    file = weights.locate(name, job.project, job.engine.name)
    weights.require_checkpoint(file, name)
    wrote = weights.engine_of(file) if file.suffix == ".pt" else None
    if wrote and wrote != job.engine.name:
        raise LabError(f"{name} is a checkpoint of {wrote}, which {job.engine.name} cannot read: use --engine {wrote}")
    if job.request.task in ("train", "export") and file.suffix != ".pt":
        raise LabError(f"--weights {name}: {job.request.task} wants a .pt checkpoint")
    return str(file)


def _dataset(job: Job) -> data.Dataset | None:
    task = job.request.task
    if task in ("detect", "export") and "data" not in job.request.given:
        return None
    need = {"train": ("train", "val"), "val": (job.request.get("task", "val"),)}.get(task, ())
    if task == "val" and need[0] not in data.SPLITS:
        need = ("val",)  # speed and study measure on val
    return data.open_dataset(job.request.get("data", job.project.data), job.project, need)


def _require_cache(request: Request, dataset: data.Dataset | None) -> None:
    if request.get("cache") == "disk" and dataset is not None:
        data.require_writable_images(dataset)


@contextlib.contextmanager
def _run_directory(job: Job, model: str) -> Iterator[Path | None]:
    """Make the run's directory: exp, exp2, … as YOLOv5 counts, for both engines. Yields None for an export.

    It is made before the engine starts, in one step, so that two runs that start together do not share one. A run
    that fails before it has written anything takes its directory along.
    """
    request, project = job.request, job.project
    if request.task == "export":
        limits.require_writable(
            Path(job.request.given["weights"][0]).resolve().parent if "weights" in request.given else project.runs
        )
        yield None
        return
    base = Path(request.get("project", project.runs / request.task))
    base = base if base.is_absolute() else project.root / base
    limits.require_writable(base)
    if request.task == "train":
        limits.require_room(base, weights.parameters_of(model, project))
    directory = _claim(base, str(request.get("name", "exp")), request.get("exist_ok", False))
    try:
        yield directory
    except Interrupted:
        raise  # it can go on
    except BaseException:
        ours = {directory / "data.yaml", directory / REQUEST, *directory.glob("*.txt")}
        ours |= {directory / name for name in record.FILES}
        if all(path in ours or (path.is_dir() and not any(path.iterdir())) for path in directory.iterdir()):
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _claim(base: Path, name: str, exist_ok: bool) -> Path:
    for number in itertools.count(1):
        directory = base / (name if number == 1 else f"{name}{number}")
        try:
            directory.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            continue
        return directory
    raise AssertionError("itertools.count ends never")
