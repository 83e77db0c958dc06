"""Several machines go on together: what node 0 tells of the run, and what the others make of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from lab import dataset as data
from lab import devices, launch, limits, rendezvous, resume, training, weights
from lab.engines import Prepared
from lab.errors import FAILED, LabError
from lab.job import Job, kept, say
from lab.resume import Asked, GoingOn, Standing

PATIENCE = 60.0  # seconds in which a network file system shows what another machine has written


@contextlib.contextmanager
def met(job: Job, word: GoingOn | None = None) -> Iterator[Job]:
    """`job` with the other machines of its launch, where there are any; on node 0 `word` is what it tells them."""
    place = rendezvous.meeting(job.request.given)
    if place.nodes == 1:
        yield job
        return
    with launch.met(place, {"goes_on": asdict(word) if word else None}) as line:
        yield replace(job, line=line)


def word_of_node_0(job: Job) -> GoingOn | None:
    """What node 0 has told this one, which follows it: the run that goes on; None to begin a new one.

    Raises LabError when this one was to go on, and node 0 begins.
    """
    if job.line is None or job.line.meeting.node_rank == 0:
        return None
    said = job.line.nodes[0].facts.get("goes_on")
    if said is None and "resume" in job.request.given:
        raise LabError("--resume: node 0 begins a new run; start the same command on every node", FAILED)
    try:
        return GoingOn(**said) if said else None
    except TypeError:
        raise LabError("node 0 has another code/: bring every node to the same commit", FAILED) from None


def word_for(job: Job, standing: Standing, asked: Asked, start: training.Start) -> GoingOn | None:
    """What the other machines must know of this run; None where there are none."""
    if int(job.request.get("nodes", 1)) == 1:
        return None
    project, file = job.project, standing.directory / "data.yaml"
    named = (data.original(file) if file.is_file() else None) or Path(str(asked.options.get("data", "")))
    # their own: where they meet, their GPUs (a UUID is one machine's), and places
    own = {*rendezvous.OPTIONS, *rendezvous.PLACE, "data"}
    options = {key: value for key, value in asked.options.items() if key not in own}
    options["device"] = devices.positions(str(options.get("device", "")))
    if "hyp" in options:
        options["hyp"] = project.show(Path(options["hyp"]))
    portable = Asked(
        asked.engine,
        options,
        [project.show(Path(file)) if file else "" for file in asked.weights],
        project.show(Path(asked.cfg)) if asked.cfg else None,
        speed=asked.speed,
    )
    return GoingOn(
        run=project.show(standing.directory),
        data=project.show(named),
        epochs=standing.epochs,
        digest=resume.digest(start.checkpoint) if start.checkpoint else "",
        asked=vars(portable),
        changed={key: value for key, value in (start.changed or {}).items() if key != "device"},
    )


def follow(job: Job, word: GoingOn, log: IO[str] | None) -> None:
    """This machine's part of the run of which node 0 has told. Raises LabError where the checkpoint is not here."""
    if word.closing:
        say(f"node 0 goes on with {word.run}: all its epochs are done, nothing is left to do here")
        return
    project, given = job.project, job.request.given
    said = Asked(**word.asked)
    own = {key: given[key] for key in rendezvous.OPTIONS if key in given}
    own["device"] = devices.resolve(str(given.get("device", said.options["device"])))
    directory = Path(given["project"]) / given["name"]
    (directory / "weights").mkdir(parents=True, exist_ok=True)
    limits.require_writable(directory)
    dataset = data.open_dataset(word.data, project, ("train", "val"))
    training.drop_label_caches(dataset, project)
    options = {**said.options, **own, "data": str(data.write_absolute(dataset, directory))}
    prepared = Prepared("train", options, [""], None, directory, said.speed)
    if word.digest:
        start = training.Start(prepared, _same_checkpoint(job, word, directory), word.changed)
        say(f"going on with {word.run} after {word.epochs} of {said.get('epochs')} epochs, as node 0 says")
    else:
        files = [_brought(job, name) if name else "" for name in said.weights]
        cfg = job.engine.model(said.cfg, project) if said.cfg else None
        if "hyp" in options:
            options["hyp"] = _brought(job, options["hyp"])
        start = training.Start(replace(prepared, options=options, weights=files, cfg=cfg))
        say(f"beginning {word.run} anew, as node 0 says")
    with resume.alone(directory), kept(job, start.prepared, dataset, word.run) as record:
        start = training.sped(job, start, dataset)
        training.fit(job, start, training.asked_of(job, start.prepared), record, log)


def _brought(job: Job, name: str) -> str:
    """A file that node 0 begins with, here. Raises LabError."""
    found = job.project.find(name)
    if found is None:
        raise LabError(f"{name} is not here, and node 0 begins with it: copy it from there to the same place")
    return str(found)


def _same_checkpoint(job: Job, word: GoingOn, directory: Path) -> Path:
    """The checkpoint from which node 0 goes on, seen in `directory`, where the engine also writes what it was asked.

    Raises LabError when it is not here: a checkpoint is a program once it is read, so it is taken from no network.
    """
    file = job.project.root / word.run / "weights" / resume.LAST
    until = time.monotonic() + PATIENCE
    while (here := resume.digest(file)) != word.digest:
        if time.monotonic() > until:
            what = "is another one here" if here else "is not here"
            raise LabError(
                f"{job.project.show(file)}, from which node 0 goes on after {word.epochs} epochs, {what}: copy it from "
                "there to the same place, or let the machines share runs/",
                FAILED,
            )
        time.sleep(min(2.0, PATIENCE / 10))
    weights.require_checkpoint(file, job.project.show(file))
    seen = directory / "weights" / resume.LAST
    seen.unlink(missing_ok=True)
    seen.symlink_to(file)
    return seen
