"""What both child scripts share: they read a request, do it, and report an error as one sentence.

The request is a JSON file, named by the first argument: {"task", …, "report", "run", "error_log"}.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import remarks
from lab.devices import no_gpu
from lab.errors import FAILED, INTERRUPTED, LabError
from lab.limits import is_full

PR_SET_PDEATHSIG = 1


def serve(work: Callable[[dict[str, Any]], None]) -> None:
    """Do `work(request)`; end with exit status 0, or write the report and end with 1, or 130 after Ctrl-C."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if sys.platform == "linux" and os.environ.get("LOCAL_RANK") is None:
        # a killed `lab` must not leave a training behind; torchrun looks after its own ranks
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # under `nohup … &` Ctrl-C arrives ignored; ours comes from `lab`, and must end the training in good order
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hide_trackers()
    remarks.listen()
    try:
        work(request)
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except LabError as error:
        _report(request, error.sentence, error.status)
    except Exception as error:
        sentence = explain(error, request)
        if sentence is not None:
            _report(request, sentence, FAILED)
        words = " ".join(str(error).split())[:300] or type(error).__name__
        _report(request, f"{request['task']} stopped: {words}", FAILED, traceback.format_exc())


def hide_trackers() -> None:
    """Keep the engines from experiment trackers that are installed: lab/tracking.py serves those, from outside.

    YOLOv5 uses each one that it can import, asks its questions and opens its connections.
    """
    for name in ("wandb", "clearml", "comet_ml", "mlflow"):
        sys.modules[name] = None  # type: ignore[assignment]  # `import` then says that there is none


def save_checkpoints_whole() -> None:
    """Make both engines write checkpoints beside their place and rename them.

    They write in place: Ctrl-C, a kill or a full disk in that moment would cost the run its only last.pt.
    """
    import torch  # noqa: PLC0415  seconds

    save, write_bytes = torch.save, Path.write_bytes

    def whole(target: Any, write: Callable[[Any], Any]) -> Any:
        if not str(target).endswith(".pt"):
            return write(target)
        place = Path(target)
        part = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            written = write(part)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        return written

    def whole_save(thing: Any, f: Any, *more: Any, **named: Any) -> Any:
        return whole(f, lambda file: save(thing, file, *more, **named))

    def whole_bytes(self: Path, data: Any) -> int:
        return int(whole(self, lambda file: write_bytes(file, data)))

    torch.save = whole_save
    Path.write_bytes = whole_bytes  # type: ignore[method-assign]


def _report(request: dict[str, Any], sentence: str, status: int, trace: str = "") -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sentence = f"rank {os.environ['RANK']}: {sentence}"
    try:
        # the first of this machine's ranks: what the others die of, once it has gone, is not the cause
        with Path(request["report"]).open("x", encoding="utf-8") as report:
            if trace:
                try:
                    log = Path(request["error_log"])
                    log.write_text(trace, encoding="utf-8")
                    sentence += f" (all of it in {log})"
                except OSError:
                    sys.stderr.write(trace)  # nowhere else to keep it
            json.dump({"sentence": sentence, "status": status}, report)
    except FileExistsError:
        pass
    _leave(status)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without waiting for loader threads, which may hang after an error


def explain(error: BaseException, request: dict[str, Any]) -> str | None:
    """One sentence for an exception out of an engine whose cause is known, else None."""
    text = " ".join(str(error).split())
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in _chain(error)) or _full(request):
        return f"the disk under {request['run'] or 'runs/'} is full: delete old runs; what was saved before is kept"
    if "insufficient CUDA devices" in text and request.get("device", "") in ("", "cpu"):
        return "YOLOv5 trains ranks on GPUs only, and there is none: leave --nodes out to train on the processor"
    if "Invalid CUDA" in text or "insufficient CUDA devices" in text:
        return no_gpu(str(request.get("device", "")))
    for signs, sentence in CAUSES:
        if any(sign in text or sign in type(error).__name__ for sign in signs):
            return sentence
    return None


def _full(request: dict[str, Any]) -> bool:
    try:
        return bool(request["run"]) and is_full(Path(request["run"]))
    except OSError:
        return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("exceeds nc=", "labels empty", "No labels found", "No valid images"),
        "the labels or pictures cannot be used: `lab data check`, with the same data file, names the files",
    ),
    (
        ("OutOfMemoryError", "CUDA out of memory"),
        "the GPU's memory does not suffice: give a smaller --batch (-1 finds one that fits), a smaller --img or model",
    ),
    (
        ("Bus error", "out of shared memory", "unable to open shared memory"),
        "a loader worker ran out of shared memory: give --workers 0, or a larger SHM_SIZE in .env and open again",
    ),
    (
        ("no kernel image is available",),
        "this torch build has no code for this GPU: open the container again, so that host-setup chooses another",
    ),
    (
        (
            "ncclInternalError",
            "ncclSystemError",
            "ncclRemoteError",
            "ncclUnhandledCudaError",
            "collective operation timeout",
        ),
        "the GPUs lost each other (NCCL): `lab doctor` tests their network and names the switch that helps; "
        "NCCL_DEBUG=INFO in .env says more",
    ),
    (
        ("does not have a deterministic implementation",),
        "a layer of this model has no deterministic kernel, and YOLOv5 insists on those: train it with "
        "--engine yolov5u, or on --device cpu",
    ),
    (
        ("nothing to resume",),
        "this run is finished, there is nothing to resume: start a new one with --weights and its last.pt",
    ),
    (
        ("state_dict", "Ran out of input", "failed finding central directory", "invalid load key"),
        "the checkpoint cannot be read, or belongs to another model: it may be cut short; use another one",
    ),
)
