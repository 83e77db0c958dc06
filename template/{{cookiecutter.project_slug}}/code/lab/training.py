"""A training from its first attempt to its end: smaller batches when memory runs out, and going on after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from lab import batch, devices, limits, plan, rendezvous, resume, stale, tracking, weights
from lab import dataset as data
from lab.engines import Call, Prepared, gpus_of, translate
from lab.errors import FAILED, OUT_OF_MEMORY, LabError
from lab.fast import choose
from lab.job import Job, kept, say
from lab.launch import Interrupted, run
from lab.options import TASKS
from lab.project import Project
from lab.record import Record
from lab.resume import Asked, Standing

PLAIN_BATCH = 16  # both engines' default, and what --batch -1 means without a GPU


@dataclass(frozen=True)
class Start:
    """Where an attempt begins: `checkpoint` to go on from, None for the beginning; options changed since then."""

    prepared: Prepared
    checkpoint: Path | None = None
    changed: dict[str, Any] | None = None


def train(job: Job, prepared: Prepared, dataset: data.Dataset, log: IO[str] | None) -> None:
    """Train in the directory of `prepared`, which is new. Raises LabError."""
    directory = _directory(prepared)
    with resume.alone(directory), kept(job, prepared, dataset) as record, _followed(job, prepared, log):
        _fit(job, Start(prepared), _asked(job, prepared), record, log)


def _followed(job: Job, prepared: Prepared, log: IO[str] | None) -> AbstractContextManager[None]:
    """The logger of lab.yaml, handed each epoch; none where the output is kept apart, as in a smoke test."""
    return tracking.follow(job.project, prepared.run if log is None else None, prepared.options)


def _directory(prepared: Prepared) -> Path:
    assert prepared.run is not None, "a training has a directory"
    return prepared.run


def _asked(job: Job, prepared: Prepared) -> Asked:
    return Asked(job.engine.name, prepared.options, prepared.weights, prepared.cfg, speed=prepared.speed)


def _fit(job: Job, start: Start, asked: Asked, record: Record, log: IO[str] | None) -> None:
    """Attempts, each with half the batch of the one before, until one does not run out of memory."""
    directory = _directory(start.prepared)
    resume.write_asked(directory, asked)
    record.update(speed=asked.speed)
    start, asked = _filled(job, start, asked, log)
    start = _fed(start, asked)
    while True:
        attempt: dict[str, Any] = {"batch": int(asked.get("batch_size")), "started": _now()}
        try:
            with record.attempt(attempt["batch"]), _stop_told(job, directory):
                notes = _attempt(job, start, log)
        except LabError as error:
            # several machines would each choose another batch by themselves
            alone = int(asked.options.get("nodes", 1)) == 1
            smaller = batch.smaller(attempt["batch"], _ranks(asked.options)) if alone and _for_memory(error) else None
            status = "stopped" if isinstance(error, Interrupted) else "failed"
            asked = _with_attempt(asked, attempt, status, error.sentence, smaller)
            resume.write_asked(directory, asked)
            if smaller is None:
                raise LabError(error.sentence, FAILED) if _for_memory(error) else error from None
            start = _again(job, start, asked, smaller)
            continue
        asked = replace(_with_attempt(asked, attempt, "done", "", None), done=True, plan={**asked.plan, **notes})
        resume.write_asked(directory, asked)
        record.update(plan=asked.plan)
        if sentence := plan.compared(asked.plan):
            say(sentence)
        return


def _for_memory(error: LabError) -> bool:
    return error.status == OUT_OF_MEMORY


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _ranks(options: dict[str, Any]) -> int:
    return len(str(options.get("device", "")).split(","))


def _with_attempt(asked: Asked, attempt: dict[str, Any], status: str, reason: str, smaller: int | None) -> Asked:
    ended = {**attempt, "ended": _now(), "status": status, "reason": reason}
    options = asked.options if smaller is None else {**asked.options, "batch_size": smaller}
    return replace(asked, attempts=[*asked.attempts, ended], options=options)


def _filled(job: Job, start: Start, asked: Asked, log: IO[str] | None) -> tuple[Start, Asked]:
    """`--batch auto` measured: the batch that fills the GPUs in its place."""
    wanted = asked.get("batch_size")
    if wanted != -1:
        return start, asked
    found = batch.fill(job, start.prepared, _ranks(asked.options), log)
    say(found.sentence)
    options = {**asked.options, "batch_size": found.batch}
    asked = replace(asked, options=options, plan={**asked.plan, **found.record})
    resume.write_asked(_directory(start.prepared), asked)
    prepared = replace(start.prepared, options={**start.prepared.options, "batch_size": found.batch})
    changed = None if start.changed is None else {**start.changed, "batch_size": found.batch}
    return Start(prepared, start.checkpoint, changed), asked


def _fed(start: Start, asked: Asked) -> Start:
    """No more loader workers than /dev/shm can feed with this batch, which may have been measured only now."""
    wanted, imgsz = int(asked.options.get("workers", 0)), int(asked.options.get("imgsz", 640))
    fitting = limits.workers_that_fit(wanted, max(int(asked.get("batch_size")), PLAIN_BATCH), imgsz)
    if fitting >= wanted:
        return start
    say(f"/dev/shm is too small for {wanted} workers with this batch, so {fitting} load images; SHM_SIZE gives more")
    prepared = replace(start.prepared, options={**start.prepared.options, "workers": fitting})
    return Start(prepared, start.checkpoint, None if start.changed is None else {**start.changed, "workers": fitting})


def _again(job: Job, start: Start, asked: Asked, smaller: int) -> Start:
    """The next attempt: from the newest checkpoint, if the last attempt got so far."""
    directory = _directory(start.prepared)
    standing = resume.look(directory)
    last = _made_ready(job, standing)
    where = f"goes on after {_finished_epochs(standing.epochs)}" if last else "begins anew: no epoch was finished"
    say(
        f"the GPU's memory did not suffice for --batch {asked.attempts[-1]['batch']}, so the run {where} with --batch "
        f"{smaller} ({plan.accumulation(smaller)})"
    )
    speed = start.prepared.speed and {**start.prepared.speed, "resident_bytes": 0}  # images leave the GPU's memory too
    prepared = replace(start.prepared, options={**start.prepared.options, "batch_size": smaller}, speed=speed)
    job.engine.refuse("train", prepared.options)
    return Start(prepared, last, {**(start.changed or {}), "batch_size": smaller} if last else None)


def _made_ready(job: Job, standing: Standing) -> Path | None:
    """`resume.prepare`, and what results.csv has lost is said."""
    results = standing.directory / "results.csv"
    lost = resume.lost_results(results, standing.epochs)
    if lost:
        which = f"epoch {lost[0]}" if len(lost) == 1 else f"{len(lost)} epochs, {lost[0]} the first,"
        say(
            f"{job.project.show(results)} was cut: {which} of the {standing.epochs} in the checkpoint will be "
            "missing from the curves, and early stopping will not know of what was measured in them"
        )
    return resume.prepare(standing)


def _finished_epochs(number: int) -> str:
    return f"{number} finished epoch{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _stop_told(job: Job, directory: Path) -> Iterator[None]:
    """After Ctrl-C: what is kept, and the command that goes on."""
    try:
        yield
    except Interrupted as stop:
        epochs = resume.look(directory).epochs
        engine = "" if job.engine.name == job.project.engine else f" --engine {job.engine.name}"
        kept = f"{_finished_epochs(epochs)} kept" if epochs else "no epoch was finished, so it will begin anew"
        place = job.project.show(directory / "weights" / resume.LAST if epochs else directory)
        stop.sentence = f"stopped, {kept}; go on with: lab train{engine} --resume {place}"
        raise


def _attempt(job: Job, start: Start, log: IO[str] | None) -> dict[str, Any]:
    """One child from start to end; returns what it noted. Raises LabError; OUT_OF_MEMORY may be its status."""
    directory = _directory(start.prepared)
    with tempfile.TemporaryDirectory(prefix="lab-notes-") as place:
        notes = Path(place) / "notes.json"
        call = _call(job, start)
        call = replace(call, payload={**call.payload, "notes": str(notes), "parent": os.getpid()})
        run(call, job.project, directory, str(start.prepared.options.get("device", "")), log)
        try:
            said: dict[str, Any] = json.loads(notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
    return said


def _call(job: Job, start: Start) -> Call:
    prepared = start.prepared
    if start.checkpoint is None:
        call = job.engine.call(prepared, job.project)
    else:
        going_on = replace(
            prepared, options={"resume": str(start.checkpoint)}, weights=[str(start.checkpoint)], cfg=None
        )
        call = job.engine.call(going_on, job.project)
        # all that may differ from what the checkpoint says: this run may have been lengthened before it was stopped
        known = {key: prepared.options[key] for key in resume.HONOURED if key in prepared.options}
        stored = _stored(job.engine.name, {**known, **(start.changed or {})}) | _places(_directory(prepared))
        call = replace(call, payload={**call.payload, "stored": stored, "gpus": gpus_of(prepared)})
    # a process for each GPU, for both engines: yolov5u's own way needs a package that is not in the image, and begins
    # by deleting the run's directory
    return replace(call, processes=_ranks(prepared.options))


def _stored(engine: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Options given beside --resume, under the names that the engine keeps in its checkpoints."""
    if engine == "yolov5u":
        return translate(Prepared("train", changed, [""], None, None))
    return {key: devices.positions(str(value)) if key == "device" else value for key, value in changed.items()}


def _places(directory: Path) -> dict[str, Any]:
    """What the checkpoint knows as absolute paths, as they are now."""
    places = {"save_dir": str(directory)}
    data = directory / "data.yaml"
    return {**places, "data": str(data)} if data.is_file() else places


def drop_label_caches(dataset: data.Dataset, project: Project) -> None:
    """Delete the engines' caches of labels and pictures that must not be read any more, and say so. Raises LabError."""
    for cache in stale.drop_foreign(dataset):
        shown = project.show(cache)
        say(f"{shown} was a program and no list of labels, so it was deleted: do not trust who made this data")
    if stale.drop(dataset):
        say("labels or pictures have changed, so the engines' caches of them were deleted")


# Going on


def go_on(job: Job, log: IO[str] | None) -> Path:
    """`lab train --resume`: go on with an interrupted run, in its own directory, which is returned."""
    request = job.request
    given = {key: value for key, value in request.given.items() if key not in ("resume", "engine")}
    if int(given.get("nodes", 1)) > 1:
        raise LabError(
            "--resume goes on with a run on one machine: leave out --nodes, or start a new run on all of them with "
            "--weights and the last.pt of this one"
        )
    allowed = {*resume.HONOURED, *rendezvous.OPTIONS}
    refused = [option.name for option in TASKS["train"] if option.key in given and option.key not in allowed]
    if refused:
        raise LabError(
            f"--resume takes {', '.join(refused)} from the run itself: leave that out, or start a new run with "
            "--weights and its last.pt"
        )
    directory = _which(job, given)
    with resume.alone(directory):
        _go_on(job, directory, _resolved(given), log)
    return directory


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
    last = _made_ready(job, standing)
    for file in standing.torn:
        how = f"so it goes on from {standing.checkpoint.file.name}" if standing.checkpoint else "and there is no other"
        say(f"{job.project.show(file)} is cut short or damaged, {how}")
    if last is None:
        if not asked.cfg and not any(asked.weights):
            raise LabError(f"{name} finished no epoch and does not say what it was asked for: start it anew")
        say(f"{name} was stopped before its first epoch was saved, so it begins anew with the same options")
        start = Start(prepared)
    else:
        weights.require_checkpoint(last, job.project.show(last))
        say(f"going on with {name} after {standing.epochs} of {epochs} epochs{_schedule(given)}")
        limits.require_room(directory, weights.parameters_of(str(last), job.project))
        start = Start(prepared, last, given)
    came_from = job.project.show(last) if last else name
    dataset = _data_of(job, directory)
    start = replace(start, prepared=choose.again(job, prepared, dataset))
    if start.prepared.speed:
        say(f"speed: {choose.said(start.prepared)}")
    asked = replace(asked, speed=start.prepared.speed)
    with kept(job, prepared, dataset, came_from) as record, _followed(job, prepared, log):
        _fit(job, start, asked, record, log)


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
        drop_label_caches(dataset, job.project)
    device = str(asked.options.get("device", ""))
    if devices.named(device) and not devices.gpu_nodes():
        raise LabError(devices.no_gpu(device))


def _close(job: Job, prepared: Prepared, log: IO[str] | None) -> None:
    """What both engines do after the last epoch: strip the optimiser from the checkpoints, measure best.pt, plot."""
    directory = _directory(prepared)
    device = str(prepared.options.get("device", ""))
    payload = {
        "task": "close",
        "upstream": str(job.project.upstream),
        "data": str(directory / "data.yaml"),
        "imgsz": int(prepared.options.get("imgsz", 640)),
        "batch": max(1, int(prepared.options.get("batch_size", PLAIN_BATCH))) * 2 // _ranks(prepared.options),
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
