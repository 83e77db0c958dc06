"""Several trainings that take turns on one machine, so that what disturbs one disturbs all.

Each arm is a child process of its own, with the engine's own training in it (see turns.py). Only one of them runs at a
time; the others, their loader workers included, are stopped by a signal and hold no memory of the device that they do
not need.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.environment import child_environment
from lab.errors import FAILED, LabError
from lab.fast import trial
from lab.project import Project

ROUNDS = 5  # enough for a median that one disturbance does not move
SHORTEST, LONGEST = 1.0, 10.0  # seconds of a turn
COMPILED = 2 * (trial.WARM + trial.STEPS) + 2  # batches after which a step that is compiled has settled
PATIENCE = 2 / 3  # of the time that is left: so much a single arm may take before it has been measured once
SAID = 2000  # characters of a child's own words that an error shows
Show = Callable[[str], None]  # told what is being done
Keep = Callable[["list[Measured]"], None]  # told what has been measured so far


@dataclass(frozen=True)
class Arm:
    """What is measured against what: `script` is run with `payload` until its loader waits for a turn."""

    name: str
    about: str
    script: Path
    payload: dict[str, Any]
    data: str  # turns.FIXED, OWN or ALONE


@dataclass(frozen=True)
class Turn:
    """What an arm did in a turn. Times in seconds; `waited` for its loader, `processor` of its main process."""

    images: int
    batches: int
    seconds: float
    waited: float
    processor: float
    device_bytes: int | None = None

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass
class Measured:
    """An arm, what ran it, and its turns."""

    arm: Arm
    facts: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    idle_share: float | None = None  # of the time no kernel ran; None where that was not measured
    prepared: float = 0.0  # seconds from its start until it was ready
    failure: str = ""  # why there are no figures of it


class Late(LabError):
    """An arm did not answer within the time there was."""


class Running:
    """An arm's process."""

    def __init__(self, arm: Arm, project: Project, place: Path) -> None:
        self.arm, self.place = arm, place
        place.mkdir(parents=True)
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        about = {"orders": orders, "answers": answers, "data": arm.data, **arm.payload["turns"]}
        request = {
            **arm.payload, "turns": about, "report": str(place / "report.json"), "error_log": str(place / "error.log"),
        }  # fmt: skip
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        self.begun = time.monotonic()
        with (place / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(arm.script), str(place / "request.json")],
                cwd=place, env=child_environment(project, place), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                pass_fds=(orders, answers), start_new_session=True,
            )  # fmt: skip
        os.close(orders)
        os.close(answers)
        self._unread = b""

    def ask(self, order: dict[str, Any], until: float) -> dict[str, Any]:
        """Let the arm run, send `order`, return its answer, stop it again. Raises LabError; Late after `until`."""
        os.killpg(self.process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # the reason is in its report
            os.write(self._orders, json.dumps(order).encode() + b"\n")
        answer = self.answer(until)
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer

    def answer(self, until: float) -> dict[str, Any]:
        """The next line that the arm says. Raises LabError when it dies, Late when it says none before `until`."""
        while b"\n" not in self._unread:
            left = until - time.monotonic()
            if left <= 0:
                raise Late(f"{self.arm.name} was not done in time: give more --seconds, or a smaller --batch", FAILED)
            # its workers hold the pipe open when it dies, so the end of the pipe cannot be waited for
            if select.select([self._answers], [], [], min(left, 0.5))[0]:
                got = os.read(self._answers, 1 << 16)
                self._unread += got
                if got:
                    continue
            if self.process.poll() is not None:
                raise LabError(self._end(), FAILED)
        line, _, self._unread = self._unread.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def _end(self) -> str:
        """Why the process ended."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return f"{self.arm.name}: {json.loads((self.place / 'report.json').read_text())['sentence']}"
        said = (self.place / "log").read_text(encoding="utf-8", errors="replace").strip()[-SAID:]
        return f"{self.arm.name} ended with exit status {self.process.returncode}: {said}"

    def end(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._orders)
        os.close(self._answers)


@contextlib.contextmanager
def ready(
    arms: Sequence[Arm], project: Project, place: Path, until: float, show: Show
) -> Iterator[tuple[list[Running], list[Measured]]]:
    """Start all arms and wait until they are ready; whatever happens, none outlives the block.

    Yields a process for each arm that is ready, in their order, and what is known of each arm, failures too. Of
    ultralytics the first one alone: it would choke on a cache of labels that another is just writing.
    """
    careful = any(arm.payload["turns"].get("engine") == "yolov5u" for arm in arms)
    running: list[Running] = []
    measured: list[Measured] = []

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for group in (arms[:1], arms[1:]) if careful else (arms,):
            for arm in group:
                running.append(Running(arm, project, place / arm.name.replace(" ", "-")))
            for each in running[-len(group) :] if group else ():
                show(f"{each.arm.name} gets ready")
                one = Measured(each.arm, {})
                measured.append(one)
                with _alone(each, one, running):
                    one.facts = each.answer(_patience(until))
                    one.prepared = time.monotonic() - each.begun
        for each in running:
            os.killpg(each.process.pid, signal.SIGSTOP)
        yield running, measured
    finally:
        for each in running:
            each.end()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _alone(each: Running, one: Measured, running: list[Running]) -> Iterator[None]:
    """What goes wrong within ends this arm and no other: it leaves `running`, and `one` says why."""
    try:
        yield
    except LabError as error:
        if not (isinstance(error, Late) and one.turns):  # the time is over; what it has done counts
            one.failure = error.sentence
        running.remove(each)
        each.end()


def _patience(until: float) -> float:
    now = time.monotonic()
    return now + PATIENCE * max(0.0, until - now)


def require(measured: Sequence[Measured]) -> None:
    """Raises LabError with the first failure there is."""
    for one in measured:
        if one.failure:
            raise LabError(one.failure, FAILED)


def alternate(
    arms: Sequence[Arm], project: Project, place: Path, until: float, profiled: int = 0, show: Show = lambda _: None,
    keep: Keep = lambda _: None,
) -> list[Measured]:  # fmt: skip
    """Let the arms take turns until `until` (monotonic seconds), at most ROUNDS times; in the order given.

    The device's idle share is measured over `profiled` batches of each, after the turns, where there is time and a GPU.
    An arm that dies, or takes more than PATIENCE of the time before it has had a turn, has its failure in what is
    returned, and the others go on. `keep` is called whenever there is more to know.
    """
    with ready(arms, project, place, until, show) as (running, measured):
        keep(measured)
        on_gpu = any(each.facts.get("device", "cpu") != "cpu" for each in measured)
        end = until - (0.15 * max(0.0, until - time.monotonic()) if profiled and on_gpu else 0.0)
        _rounds(running, measured, end, show, keep)
        if profiled and on_gpu:
            _profile(running, measured, profiled, until, show)
            keep(measured)
    return measured


def _rounds(running: list[Running], measured: list[Measured], until: float, show: Show, keep: Keep) -> None:
    of = {one.arm.name: one for one in measured}
    # the first turn of each compiles, finds its fastest kernels, fills its queues: it is not counted; what compiles
    # comes last, because it takes longest
    for each in sorted(running, key=lambda each: compiles(each.arm)):
        show(f"{each.arm.name} warms up")
        order = {"do": "go", "seconds": SHORTEST, "skip": COMPILED if compiles(each.arm) else 0}
        with _alone(each, of[each.arm.name], running):
            each.ask(order, _patience(until))
    for number in range(ROUNDS):
        left = until - time.monotonic()
        turn = min(LONGEST, max(SHORTEST, left / ((ROUNDS - number) * max(1, len(running))) - SHORTEST / 2))
        begun = time.monotonic()
        for each in list(running):
            if number and time.monotonic() >= until:
                return
            show(f"round {number + 1} of {ROUNDS}: {each.arm.name}")
            one = of[each.arm.name]
            with _alone(each, one, running):
                one.turns.append(_turn(each, turn, until if number else _patience(until)))
            keep(measured)
        if not running or (until - time.monotonic() < (time.monotonic() - begun) * 0.5 and number + 1 < ROUNDS):
            return


def compiles(arm: Arm) -> bool:
    """Whether its first steps take as long as torch.compile does."""
    return "compile" in arm.payload.get("speed", {}).get("switches", ())


def _turn(each: Running, seconds: float, until: float) -> Turn:
    said = each.ask({"do": "go", "seconds": seconds}, until)
    return Turn(
        said["images"], said["batches"], said["seconds"], said["waited"], said["processor_seconds"],
        said["device_bytes"],
    )  # fmt: skip


def _profile(running: list[Running], measured: list[Measured], batches: int, until: float, show: Show) -> None:
    of = {one.arm.name: one for one in measured}
    for each in running:
        show(f"kernels of {each.arm.name}")
        order = {"do": "profile", "batches": batches, "trace": str(each.place / "trace.json")}
        try:
            of[each.arm.name].idle_share = each.ask(order, until)["idle_share"]
        except Late:
            return
