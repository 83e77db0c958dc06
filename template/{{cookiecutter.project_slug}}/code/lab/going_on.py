"""`lab train --resume`: which run goes on, whether it can, and from where; one machine's part, or node 0's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from lab import dataset as data
from lab import devices, limits, rendezvous, resume, training, weights
from lab.engines import Call, Prepared, gpus_of
from lab.errors import LabError
from lab.following import met, word_for
from lab.gpu_list import listed, those
from lab.job import Job, kept, say
from lab.launch import run
from lab.options import TASKS, Request
from lab.project import Project
from lab.resume import Asked, GoingOn, Standing


def go_on(job: Job, log: IO[str] | None) -> Path:
    """`lab train --resume`: go on with an interrupted run, in its own directory, which is returned."""
    given = require_honoured(job.request)
    directory = _which(job, given)
    with resume.alone(directory):
        _go_on(job, directory, _resolved(given), log)
    return directory


def require_honoured(request: Request) -> dict[str, Any]:
    """The options given beside --resume. Raises LabError that names those which would make another experiment of it."""
    given = {key: value for key, value in request.given.items() if key not in ("resume", "engine")}
    allowed = {*resume.HONOURED, *rendezvous.OPTIONS}
    if rendezvous.meeting(given).follows:
        allowed |= {*rendezvous.PLACE}  # lab's own
    refused = [option.name for option in TASKS["train"] if option.key in given and option.key not in allowed]
    if refused:
        raise LabError(
            f"--resume takes {', '.join(refused)} from the run itself: leave that out, or start a new run with "
            "--weights and its last.pt"
        )
    return given


def _resolved(given: dict[str, Any]) -> dict[str, Any]:
    if "device" in given:
        given = {**given, "device": devices.resolve(given["device"])}
    if given.get("save_period", 1) < 1:
        given = {**given, "save_period": -1}
    return given


def _go_on(job: Job, directory: Path, given: dict[str, Any], log: IO[str] | None) -> None:
    asked, standing = _understood(job, directory), resume.look(directory)
    name = job.project.show(directory)
    epochs = int(given.get("epochs", asked.get("epochs")))
    _require_unfinished(standing, asked, name, epochs, "epochs" in given)
    limits.require_writable(directory)
    options = {key: value for key, value in asked.options.items() if key not in rendezvous.OPTIONS}
    asked = replace(asked, options={**options, **given}, done=False)
    _require_place(job, directory, asked)
    if "imgsz" in given:
        named = asked.cfg or next(iter(asked.weights), "")
        limits.require_stride([int(given["imgsz"])], weights.stride_of(named, job.project, job.engine.name))
    job.engine.refuse("train", asked.options)
    closing = standing.epochs >= epochs or (standing.ended and "epochs" not in given)
    prepared = Prepared("train", asked.options, asked.weights, asked.cfg, directory, asked.speed)
    if closing:
        say(f"going on with {name}: all its epochs are done, what is left is the closing measurement")
        with met(job, GoingOn(name, "", standing.epochs, "", {}, closing=True)):
            pass  # the others learn that there is nothing for them to do
        resume.sweep(directory)
        with kept(job, prepared, None, name):
            _close(job, prepared, log)
        resume.write_asked(directory, replace(asked, done=True))
        return
    if standing.torn and standing.checkpoint is None:
        raise LabError(
            f"{name} has no checkpoint that is whole ({job.project.show(standing.torn[0])} is damaged), and nothing was"
            " changed: start a new run"
        )
    last = training.made_ready(job, standing)
    for file in standing.torn:
        how = f"so it goes on from {standing.checkpoint.file.name}" if standing.checkpoint else "and there is no other"
        say(f"{job.project.show(file)} is cut short or damaged, {how}")
    if last is None:
        if not asked.cfg and not any(asked.weights):
            raise LabError(f"{name} finished no epoch and does not say what it was asked for: start it anew")
        say(f"{name} was stopped before its first epoch was saved, so it begins anew with the same options")
        start = training.Start(prepared)
    else:
        weights.require_checkpoint(last, job.project.show(last))
        say(f"going on with {name} after {standing.epochs} of {epochs} epochs{_schedule(given)}")
        limits.require_room(directory, weights.parameters_of(str(last), job.project))
        start = training.Start(prepared, last, {key: value for key, value in given.items() if key in resume.HONOURED})
    came_from = job.project.show(last) if last else name
    dataset = _data_of(job, directory)
    with met(job, word_for(job, standing, asked, start)) as all_here:
        start = training.sped(job, start, dataset)
        asked = replace(asked, speed=start.prepared.speed)
        with kept(job, prepared, dataset, came_from) as record, training.followed(job, prepared, log):
            training.fit(all_here, start, asked, record, log)


def _data_of(job: Job, directory: Path) -> data.Dataset | None:
    file = directory / "data.yaml"
    return data.open_dataset(str(file), job.project) if file.is_file() else None


def _schedule(given: dict[str, Any]) -> str:
    if "epochs" not in given:
        return ""
    return "; the learning rate follows the schedule of the new length from here on"


def _understood(job: Job, directory: Path) -> Asked:
    asked = resume.read_asked(directory)
    if asked is None:
        raise LabError(f"{job.project.show(directory)} does not say what it was asked for: start a new run")
    if "evolve" in asked.options:
        raise LabError(
            f"{job.project.show(directory)} is an evolution: it goes on with --evolve and --resume_evolve, which takes "
            "its evolve_population.yaml"
        )
    if asked.engine != job.engine.name:
        raise LabError(f"{job.project.show(directory)} is a run of {asked.engine}: add --engine {asked.engine}")
    return asked


def _require_unfinished(standing: Standing, asked: Asked, name: str, epochs: int, lengthened: bool) -> None:
    """Raises LabError when there is nothing left to do, or when the way to do it is lost."""
    old = not (standing.directory / resume.REQUEST).is_file()
    if not (asked.done or standing.ended):
        return
    if not lengthened:
        if asked.done or old:
            raise LabError(
                f"{name} is finished: train it longer with --resume {name} --epochs N, or start a new run with "
                f"--weights {name}/weights/best.pt"
            )
        return
    if standing.checkpoint is None:
        raise LabError(
            f"{name} is finished, and its optimiser's state was not kept: start a new run with --weights "
            f"{name}/weights/last.pt"
        )
    if epochs <= standing.epochs:
        raise LabError(f"{name} is finished after {standing.epochs} epochs: give more with --epochs to train it longer")


def _require_place(job: Job, directory: Path, asked: Asked) -> None:
    """A run needs its data where it was, and the GPUs it ran on or --device."""
    file = directory / "data.yaml"
    stored = str(asked.options.get("data", ""))
    if not file.is_file() and not Path(stored).is_file():
        raise LabError(f"{directory}: its data file {stored} is gone, so the run cannot go on")
    if file.is_file():
        dataset = data.open_dataset(str(file), job.project)  # a mount that is gone is said here, not by the engine
        if asked.options.get("cache") == "disk":
            data.require_writable_images(dataset)
        training.drop_label_caches(dataset, job.project)
    device = str(asked.options.get("device", ""))
    if devices.named(device) and not devices.gpu_nodes():
        raise LabError(devices.no_gpu(device))
    gone = [name for name in device.split(",") if devices.named(name) and listed() and not those(name, listed())]
    if gone:  # another machine, or this one with other GPUs
        raise LabError(
            f"{job.project.show(directory)} ran on GPU {' and '.join(gone)}, which is not here: name the GPUs "
            "that are, such as --device 0"
        )


def _close(job: Job, prepared: Prepared, log: IO[str] | None) -> None:
    """What both engines do after the last epoch: strip the optimiser from the checkpoints, measure best.pt, plot."""
    directory = training.directory_of(prepared)
    device = str(prepared.options.get("device", ""))
    payload = {
        "task": "close",
        "upstream": str(job.project.upstream),
        "data": str(directory / "data.yaml"),
        "imgsz": int(prepared.options.get("imgsz", 640)),
        "batch": max(1, int(prepared.options.get("batch_size", training.PLAIN_BATCH)))
        * 2
        // training.ranks(prepared.options),
        "on": devices.positions(device).partition(",")[0],
        "gpus": gpus_of(prepared).partition(",")[0],
        "workers": int(prepared.options.get("workers", 0)),
        "plots": not prepared.options.get("noplots", False),
    }
    script = Path(__file__).parent / f"run_{job.engine.name}.py"
    run(Call(script, payload), job.project, directory, device, log)


def engine_of(named: Any, project: Project) -> str | None:
    """The engine of the run that `--resume named` means, or of the newest one that is not finished."""
    if not isinstance(named, str):
        return next((asked.engine for directory, asked in _runs(project) if not _finished(directory, asked)), None)
    found = project.find(named)
    if found is None:
        return None
    asked = resume.read_asked(_run_of(found))
    return asked.engine if asked else None


def _runs(project: Project) -> Iterator[tuple[Path, Asked]]:
    """Trainings of this project, the one that wrote last first; evolutions go on in another way."""
    for directory in resume.runs(project.runs / "train"):
        asked = resume.read_asked(directory)
        if asked is not None and "evolve" not in asked.options:
            yield directory, asked


def _run_of(found: Path) -> Path:
    """The run's directory, from itself, its weights/ or a checkpoint in there."""
    directory = found if found.is_dir() else found.parent
    return directory.parent if directory.name == "weights" else directory


def _which(job: Job, given: dict[str, Any]) -> Path:
    """The run that --resume means: the one named, else the newest that is not finished. Raises LabError."""
    project, named = job.project, job.request.given["resume"]
    if isinstance(named, str):
        return _named(job, named)
    ours = [(directory, asked) for directory, asked in _runs(project) if asked.engine == job.engine.name]
    if not ours:
        raise LabError(f"there is no run of {job.engine.name} to resume in {project.show(project.runs / 'train')}")
    if "epochs" in given:  # a finished run may be meant, to be trained longer
        return ours[0][0]
    return next((directory for directory, asked in ours if not _finished(directory, asked)), ours[0][0])


def _finished(directory: Path, asked: Asked) -> bool:
    """Whether a run is finished; one without request.json tells by its last.pt."""
    return asked.done or (not (directory / resume.REQUEST).is_file() and resume.look(directory).ended)


def _named(job: Job, named: str) -> Path:
    project = job.project
    found = project.find(named)
    if found is None:
        mend = weights.recent(project).replace("best.pt", "last.pt").replace("--weights", "--resume")
        raise LabError(f"--resume {named} does not exist: {mend}")
    directory = _run_of(found)
    if resume.read_asked(directory) is None or (found.is_file() and found.parent.name != "weights"):
        raise LabError(f"{project.show(found)} lies in no run, so there are no options to go on with: use --weights")
    return directory
