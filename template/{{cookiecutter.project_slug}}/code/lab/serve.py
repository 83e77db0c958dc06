"""`lab serve`: an exported model as a service over HTTP, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when OpenCV is loaded, which the imports below do. Damaged pictures of strangers are no news.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import cv2
import numpy as np
import uvicorn

from lab import limits
from lab.errors import FAILED, LabError
from lab.onnx_model import CPU, Network, open_network
from lab.project import Project
from lab.serve_app import Limits, Meters, Service, make_app
from lab.serve_connection import ImpatientProtocol
from lab.serve_queue import Queue

LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN = "LAB_SERVE_TOKEN"
SHORTEST = 16  # characters of a token
CONNECTIONS = 4096
DRAIN = 8  # seconds for requests that are being answered; Docker kills after 10


@dataclass(frozen=True)
class Place:
    """Where to listen, and who may ask."""

    host: str
    port: int
    token: str


def main(
    project: Project, file: Path, place: Place, given: Limits, device: str, size: int | None, batch: int, log: bool
) -> int:
    """Serve until told to end; returns the exit status. Raises LabError."""
    bound = _listen(place)
    cores = limits.processors()
    network, where = open_network(file, device, size, threads=1)
    on_cpu = network.provider == CPU
    cv2.setNumThreads(1)  # as many pictures at once as there are processors: no more threads
    most = network.batch or batch or (1 if on_cpu else 8)
    if not on_cpu:
        _prepare(network, most)
    meters = Meters()
    workers = cores if on_cpu else min(cores, 8)
    queue = Queue(network, workers, most, given.room, given.pixels, meters.watchers())
    app = make_app(Service(network, queue, given, meters, place.token), log)
    _more_files()
    print(
        f"lab: {project.show(file)} ({network.layout}, {network.size[1]} x {network.size[0]} pixels, "
        f"{len(network.names)} classes) {where}; {workers} at once"
        + (f", up to {most} in a batch" if most > 1 else ""),
        flush=True,
    )
    print(f"lab: http://{_shown(place.host)}:{bound.getsockname()[1]}{_risk(place)}", flush=True)
    signal.signal(signal.SIGTERM, _end)  # uvicorn drains first, then hands it on
    try:
        server(app).run(sockets=[bound])
    finally:
        queue.close()
    return 0


def _prepare(network: Network, most: int) -> None:
    """Run each size of batch once: the first run of a size takes a GPU seconds. Raises LabError."""
    for count in (1 << n for n in range(most.bit_length())):
        try:
            network.run(np.zeros((count, 3, *network.size), np.float32))
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise LabError(
                f"the GPU runs no batch of {count} ({why}): try --batch {count // 2 or 1}", FAILED
            ) from error


def server(app: Any) -> uvicorn.Server:
    """uvicorn as it is used here; end it with `should_exit`."""
    config = uvicorn.Config(
        app, http=ImpatientProtocol, ws="none", lifespan="off", loop="asyncio", log_level="error", access_log=False,
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=DRAIN, server_header=False, proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)


def _end(*_: Any) -> None:
    sys.exit(0)


def weights(project: Project, name: str) -> Path:
    """The ONNX file that `--weights name` means, "" for the newest run's. Raises LabError, with the command for one."""
    if not name:
        found = sorted(project.runs.glob("train/*/weights/*.onnx"), key=lambda file: file.stat().st_mtime)
        if found:
            return found[-1]
        trained = sorted(project.runs.glob("train/*/weights/best.pt"), key=lambda file: file.stat().st_mtime)
        mend = _export(project.show(trained[-1])) if trained else "train one with `lab train`, then `lab export` it"
        raise LabError(f"there is no exported model in {project.show(project.runs)}/train: {mend}")
    file = project.find(name)
    if file is None:
        raise LabError(f"--weights {name} does not exist")
    if file.suffix == ".pt":
        ready = file.with_suffix(".onnx")
        if ready.is_file() and ready.stat().st_mtime >= file.stat().st_mtime:
            raise LabError(f"--weights {name}: its export lies beside it, use --weights {project.show(ready)}")
        raise LabError(f"--weights {name}: a checkpoint is served from its export: {_export(name)}")
    if file.suffix != ".onnx" or not file.is_file():
        raise LabError(f"--weights {name}: it must be an .onnx file, as `lab export --include onnx` writes")
    return file


def _export(checkpoint: str) -> str:
    return f"`lab export --weights {checkpoint} --include onnx` writes one"


def token(file: Path | None) -> str:
    """The token that callers must send, from `file` or the environment; "" for none. Raises LabError."""
    if file is None:
        said, origin = os.environ.pop(TOKEN, "").strip(), TOKEN  # popped: no child, no dump shows it
        if not said:
            return ""
    else:
        try:
            said, origin = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"--token-file {file} cannot be read: {error}") from error
    if len(said) < SHORTEST or not said.isascii() or not said.isprintable() or " " in said:
        raise LabError(
            f"{origin} must hold {SHORTEST} characters or more, ASCII without spaces: `openssl rand -hex 24` makes some"
        )
    return said


def _listen(place: Place) -> socket.socket:
    try:
        kind, _, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=kind, backlog=2048)
    except (OSError, OverflowError) as error:
        mend = "choose another with --port (SERVE_PORT in .env for Compose)" if getattr(error, "errno", 0) == 98 else ""
        raise LabError(
            f"cannot listen on {place.host}:{place.port}: {getattr(error, 'strerror', None) or error}"
            + (f"; {mend}" if mend else ""),
            FAILED,
        ) from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _risk(place: Place) -> str:
    if place.host in LOOPBACK:
        return ", for this machine only"
    who = (
        "whoever has the token"
        if place.token
        else f"without a token (--token-file, {TOKEN}): whoever reaches this port"
    )
    return f", on all of its addresses that the network reaches, unencrypted, {who} may use the model"


def _more_files() -> None:
    """As many connections as the kernel lets us have without being asked: many systems give 1,024 at first."""
    import resource  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = CONNECTIONS + 256
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
