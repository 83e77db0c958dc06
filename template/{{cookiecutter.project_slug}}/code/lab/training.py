"""A training from its first attempt to its end: smaller batches when memory runs out."""

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

from lab import batch, devices, limits, plan, rendezvous, resume, stale, tracking
from lab import dataset as data
from lab.engines import Call, Prepared, gpus_of, translate
from lab.errors import FAILED, OUT_OF_MEMORY, LabError
from lab.fast import choose
from lab.job import Job, kept, say
from lab.launch import Interrupted, run
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
    directory = directory_of(prepared)
    with resume.alone(directory), kept(job, prepared, dataset) as record, followed(job, prepared, log):
        fit(job, Start(prepared), asked_of(job, prepared), record, log)


def followed(job: Job, prepared: Prepared, log: IO[str] | None) -> AbstractContextManager[None]:
    """The logger of lab.yaml, handed each epoch; none where the output is kept apart, as in a smoke test."""
    return tracking.follow(job.project, prepared.run if log is None else None, prepared.options)


def directory_of(prepared: Prepared) -> Path:
    """The run's directory."""
    assert prepared.run is not None, "a training has a directory"
    return prepared.run


def asked_of(job: Job, prepared: Prepared) -> Asked:
    """What request.json keeps of `prepared`."""
    return Asked(job.engine.name, prepared.options, prepared.weights, prepared.cfg, speed=prepared.speed)


def fit(job: Job, start: Start, asked: Asked, record: Record, log: IO[str] | None) -> None:
    """Attempts, each with half the batch of the one before, until one does not run out of memory."""
    directory = directory_of(start.prepared)
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
            # each attempt of several machines would be another launch of all of them
            alone = int(asked.options.get("nodes", 1)) == 1
            smaller = batch.smaller(attempt["batch"], ranks(asked.options)) if alone and _for_memory(error) else None
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


def ranks(options: dict[str, Any]) -> int:
    """Processes of the training on this machine."""
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
    found = batch.fill(job, start.prepared, ranks(asked.options), log)
    say(found.sentence)
    options = {**asked.options, "batch_size": found.batch}
    asked = replace(asked, options=options, plan={**asked.plan, **found.record})
    resume.write_asked(directory_of(start.prepared), asked)
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
    directory = directory_of(start.prepared)
    standing = resume.look(directory)
    last = made_ready(job, standing)
    where = f"goes on after {_finished_epochs(standing.epochs)}" if last else "begins anew: no epoch was finished"
    say(
        f"the GPU's memory did not suffice for --batch {asked.attempts[-1]['batch']}, so the run {where} with --batch "
        f"{smaller} ({plan.accumulation(smaller)})"
    )
    speed = start.prepared.speed and {**start.prepared.speed, "resident_bytes": 0}  # images leave the GPU's memory too
    prepared = replace(start.prepared, options={**start.prepared.options, "batch_size": smaller}, speed=speed)
    job.engine.refuse("train", prepared.options)
    return Start(prepared, last, {**(start.changed or {}), "batch_size": smaller} if last else None)


def made_ready(job: Job, standing: Standing) -> Path | None:
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
        if job.line is not None:
            stop.sentence = "stopped; go on with the same command and --resume on every node"
            raise
        epochs = resume.look(directory).epochs
        engine = "" if job.engine.name == job.project.engine else f" --engine {job.engine.name}"
        kept = f"{_finished_epochs(epochs)} kept" if epochs else "no epoch was finished, so it will begin anew"
        place = job.project.show(directory / "weights" / resume.LAST if epochs else directory)
        stop.sentence = f"stopped, {kept}; go on with: lab train{engine} --resume {place}"
        raise


def _attempt(job: Job, start: Start, log: IO[str] | None) -> dict[str, Any]:
    """One child from start to end; returns what it noted. Raises LabError; OUT_OF_MEMORY may be its status."""
    directory = directory_of(start.prepared)
    with tempfile.TemporaryDirectory(prefix="lab-notes-") as place:
        notes = Path(place) / "notes.json"
        call = _call(job, start)
        call = replace(call, payload={**call.payload, "notes": str(notes), "parent": os.getpid()})
        run(call, job.project, directory, str(start.prepared.options.get("device", "")), log, job.line)
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
        where = {key: prepared.options[key] for key in rendezvous.OPTIONS if key in prepared.options}
        options = {"resume": str(start.checkpoint), **where}
        going_on = replace(prepared, options=options, weights=[str(start.checkpoint)], cfg=None)
        call = job.engine.call(going_on, job.project)
        # all that may differ from what the checkpoint says: this run may have been lengthened before it was stopped
        known = {key: prepared.options[key] for key in resume.HONOURED if key in prepared.options}
        stored = _stored(job.engine.name, {**known, **(start.changed or {})}) | _places(directory_of(prepared))
        call = replace(call, payload={**call.payload, "stored": stored, "gpus": gpus_of(prepared)})
    # a process for each GPU, for both engines: yolov5u's own way needs a package that is not in the image, and begins
    # by deleting the run's directory
    return replace(call, processes=ranks(prepared.options))


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


def sped(job: Job, start: Start, dataset: data.Dataset | None) -> Start:
    """`start` with what makes it fast, as the run began, as far as this machine can do it."""
    prepared = choose.again(job, start.prepared, dataset)
    if prepared.speed:
        say(f"speed: {choose.said(prepared)}")
    return replace(start, prepared=prepared)
