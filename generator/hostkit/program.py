"""Running other programs that only read, with a limit on their time and on what is kept of what they print."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Mapping, NamedTuple

from .terminal import printable

LIMIT = 5.0  # seconds a program may take; a healthy nvidia-smi without persistence mode needs up to about 4
OUTPUT = 1 << 20  # bytes that are read of what a program prints

_LIVE: set[subprocess.Popen[bytes]] = set()  # programs that were started and have not ended


class Answer(NamedTuple):
    """What a program said. `state` is ok, failed, missing, hangs or endless (it was stopped after `OUTPUT` bytes)."""

    state: str
    code: int | None = None
    out: str = ""
    err: str = ""

    @property
    def text(self) -> str:
        """Everything printed; nvidia-smi and docker are not consistent about which stream carries the reason."""
        return f"{self.out}\n{self.err}".strip()


def ask(command: list[str], limit: float = LIMIT) -> Answer:
    """Run a program that only reads. Never raises; past `limit` seconds it "hangs" and is killed with its children."""
    if limit <= 0:  # the time is up before it could be asked
        return Answer("hangs")
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, start_new_session=os.name == "posix", bufsize=0,
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return Answer("missing")
    except ValueError as error:  # a NUL in a word
        return Answer("failed", None, "", f"{command[0]} cannot be asked: {error}")
    except OSError as error:
        if shutil.which(command[0]) is None:  # a directory of that name on PATH, or a file that is no program
            return Answer("missing")
        return Answer("failed", None, "", f"{command[0]} cannot be run: {error.strerror}")
    _LIVE.add(process)
    until = time.monotonic() + limit
    chunks: list[list[bytes]] = [[], []]
    readers = []
    for stream, into in zip((process.stdout, process.stderr), chunks):  # noqa: B905 (Python 3.8)
        # daemon: a pipe that something stuck in the driver holds open must not keep the interpreter alive
        readers.append(threading.Thread(target=_drain, args=(process, stream, into), daemon=True))
        readers[-1].start()
    for reader in readers:
        reader.join(max(0.0, until - time.monotonic()))
    try:
        if any(reader.is_alive() for reader in readers):
            raise subprocess.TimeoutExpired(command, limit)
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(process)
        return Answer("hangs")
    _LIVE.discard(process)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    out, err = (b"".join(one)[:OUTPUT].decode("utf-8", "replace") for one in chunks)
    if any(sum(map(len, one)) > OUTPUT for one in chunks):
        return Answer("endless", None, out, err)
    return Answer("ok" if process.returncode == 0 else "failed", process.returncode, out, err)


def follow(command: list[str], folder: Path | None = None, more: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a program that takes its time, showing each line as it comes; (exit status, the last `OUTPUT` characters).

    127 when there is no such program. `more`: variables beside those of the caller.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env={**os.environ, **(more or {})}, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:
        return 127, f"{command[0]} cannot be run: {error.strerror}"
    said = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(printable(line.rstrip()), flush=True)
            said = (said + line)[-OUTPUT:]
        return process.wait(), said
    except BaseException:  # Ctrl-C: the program got it too, and ends what it began
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        raise


def stop_all() -> None:
    """Kill every program that is still asked: whoever ends early leaves nothing behind."""
    for process in list(_LIVE):
        _kill(process)


def _drain(process: subprocess.Popen[bytes], stream: IO[bytes], into: list[bytes]) -> None:
    """Read a stream to its end. The program is killed when it prints more than `OUTPUT`: nobody wants to keep that."""
    room = OUTPUT
    with contextlib.suppress(OSError, ValueError):
        while room >= 0:
            chunk = stream.read(1 << 16)
            if not chunk:
                return
            into.append(chunk)
            room -= len(chunk)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group and do not wait long: a process stuck in the driver survives even SIGKILL."""
    _LIVE.discard(process)
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(timeout=0.2)
    except (OSError, subprocess.TimeoutExpired):
        pass
