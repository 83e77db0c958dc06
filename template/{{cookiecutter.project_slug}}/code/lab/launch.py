"""Start a child process, hand it the terminal, pass signals on, and turn its end into an exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lab import causes, muster, preflight_facts, rendezvous
from lab.engines import Call
from lab.environment import child_environment
from lab.errors import FAILED, INTERRUPTED, LabError
from lab.job import say
from lab.project import CODE, Project
from lab.telemetry import sampling

GRACE = 15.0  # seconds from Ctrl-C to SIGKILL; workers and ranks close within a few
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
ROLL_CALL = 600.0  # seconds in which all machines must have come; one of a cluster may have to pull the image first


class Interrupted(LabError):
    """The user stopped the run."""

    def __init__(self) -> None:
        super().__init__("stopped", INTERRUPTED)


@contextmanager
def met(meeting: rendezvous.Meeting, facts: dict[str, Any]) -> Iterator[muster.Line]:
    """Meet the other machines, and keep the lifeline while the block does this node's part.

    Raises LabError that names who did not come, or what ended another node.
    """
    say(f"waiting for {meeting.nodes} nodes at {meeting.endpoint}")
    with muster.joined(meeting, facts, ROLL_CALL) as line:
        yield line


def run(
    call: Call,
    project: Project,
    run_directory: Path | None,
    device: str = "",
    log: IO[str] | None = None,
    line: muster.Line | None = None,
) -> None:
    """Run `call` to its end; output goes to the terminal, or to `log`.

    Raises Interrupted after Ctrl-C or SIGTERM, LabError with the child's own sentence when it failed. The nodes on
    `line` start together, those that differ are refused, and one that fails ends the others.
    """
    if line is None:
        run_here(call, project, run_directory, device, log)
        return
    try:
        preflight_facts.require_equal(line.exchange(preflight_facts.of_training(call, project)))
        run_here(replace(call, meeting=line.meeting), project, run_directory, device, log, line)
    except LabError as error:
        ended = line.end_by(error)
        if ended is error:
            raise
        raise ended from error


def run_here(
    call: Call,
    project: Project,
    run_directory: Path | None,
    device: str,
    log: IO[str] | None,
    line: muster.Line | None = None,
    limit: float | None = None,
) -> None:
    """This node's part of a launch whose nodes have met; `line` is None when there is but one. Raises as `run` does.

    After `limit` seconds it is stopped, which counts as a failure.
    """
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        place = Path(scratch)
        report = place / "report.json"
        error_log = (run_directory or project.runs) / "error.log"
        request = {
            **call.payload,
            "report": str(report),
            "run": str(run_directory or ""),
            "error_log": str(error_log),
            "device": device,
        }
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        environment = child_environment(project, place)
        if call.processes > 1 or line is not None:
            environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or it complains of each address without a name
        if line is not None and (name := rendezvous.interface(line.address)):
            environment.setdefault("GLOO_SOCKET_IFNAME", name)
        watched = run_directory if call.payload.get("task") == "train" else None
        status, interrupted = _wait(_command(call, place), place, environment, log, line, limit, watched)
        if interrupted:
            raise Interrupted
        if status == 0:
            return
        if report.is_file():
            said = json.loads(report.read_text(encoding="utf-8"))
            raise LabError(said["sentence"], said["status"])
    raise LabError(_end(status, call), FAILED)


def _command(call: Call, scratch: Path) -> list[str]:
    words = [str(call.script), str(scratch / "request.json")]
    if call.processes > 1 or call.meeting.nodes > 1:
        logs = ["--log-dir", str(scratch / "ranks")]  # torchrun makes a directory in /tmp otherwise, and leaves it
        words = [str(CODE / "lab" / "run_ranks.py"), *logs, *call.meeting.torchrun(call.processes), *words]
    return [sys.executable, *words]


def _wait(
    command: list[str],
    cwd: Path,
    environment: dict[str, str],
    log: IO[str] | None,
    line: muster.Line | None = None,
    limit: float | None = None,
    watched: Path | None = None,
) -> tuple[int, bool]:
    # PET_… are torchrun's options as variables, which Kubeflow sets; the others it leaves to those whom it starts
    for name in (*TORCHRUN, *(name for name in environment if name.startswith(("PET_", "TORCHELASTIC_")))):
        environment.pop(name, None)
    # Its own session: the terminal's Ctrl-C reaches us alone, and we stop the child's main process first, so that it
    # closes its workers instead of all of them shouting at once.
    child = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )
    with _signals_to(child) as received, sampling(watched, child.pid):
        try:
            if line is not None:
                line.on_failure(lambda: _give_up(child))
            child.wait(limit)
        except subprocess.TimeoutExpired:
            _give_up(child)
            raise LabError(f"it did not end within {limit:.0f} s", FAILED) from None
        finally:
            _end_group(child)
    return child.returncode, bool(received)


@contextmanager
def _signals_to(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Hand SIGINT, SIGTERM and SIGHUP to `child` as SIGINT; a second one kills. Yields the list of those received."""
    received: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None:
            child.send_signal(signal.SIGINT)
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def give_up(_: int, __: FrameType | None) -> None:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)

    handlers = {signal.SIGINT: hand_on, signal.SIGTERM: hand_on, signal.SIGHUP: hand_on, signal.SIGALRM: give_up}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up(child: subprocess.Popen[bytes]) -> None:
    """Another node has failed: there is nothing left to wait for."""
    with suppress(ProcessLookupError):
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Nothing of the child's session outlives it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end(status: int, call: Call) -> str:
    task = call.payload["task"]
    if status < 0:
        return causes.ended(task, -status)
    return f"{task} ended with exit status {status}; its own words are above"
