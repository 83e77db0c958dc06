"""What both child scripts share: they read a request, do it, and report an error as one sentence.

The request is a JSON file, named by the first argument: {"task", …, "report", "run", "error_log"}.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import causes, remarks
from lab.batch import out_of_memory
from lab.devices import no_gpu
from lab.doctor_torch import CLOSE_HALF, NO_AMP
from lab.errors import FAILED, INTERRUPTED, OUT_OF_MEMORY, LabError
from lab.limits import is_full
from lab.resume import LAST, PREVIOUS, read_checkpoint

PR_SET_PDEATHSIG = 1
KERNEL_LIMIT = 60.0  # seconds; loading CUDA's libraries from a slow disk takes some of them
NOTES: dict[str, Any] = {}  # what the training learns and `lab` reports: amp, peak_bytes, total_bytes


def serve(work: Callable[[dict[str, Any]], None]) -> None:
    """Do `work(request)`; end with exit status 0, or write the report and end with 1, or 130 after Ctrl-C."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _end_with(request.get("parent"))
    # under `nohup … &` Ctrl-C arrives ignored; ours comes from `lab`, and must end the training in good order
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hide_trackers()
    remarks.listen()
    try:
        show_gpus(str(request.get("gpus", "")))
        if request["task"] == "train":
            prove_kernels(str(request.get("device", "")))
        work(request)
        _write_notes(request)
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except LabError as error:
        _report(request, error.sentence, error.status)
    except Exception as error:
        sentence = explain(error, request)
        if sentence is not None:
            _report(request, sentence, OUT_OF_MEMORY if _for_memory(error, request) else FAILED)
        words = " ".join(str(error).split())[:300] or type(error).__name__
        _report(request, f"{request['task']} stopped: {words}", FAILED, traceback.format_exc())


def hide_trackers() -> None:
    """Keep the engines from experiment trackers that are installed: lab/tracking.py serves those, from outside.

    YOLOv5 uses each one that it can import, asks its questions and opens its connections.
    """
    for name in ("wandb", "clearml", "comet_ml", "mlflow"):
        sys.modules[name] = None  # type: ignore[assignment]  # `import` then says that there is none


def _end_with(parent: int | None) -> None:
    """Have this process end when `lab`, process `parent`, does: a killed `lab` must not leave a training behind.

    Two trainings in one directory, the orphan and the resumed one, would write over each other.
    """
    if os.environ.get("LOCAL_RANK") is not None:  # torchrun stands in between and outlives `lab`
        if parent is not None:
            threading.Thread(target=_watch, args=(parent,), daemon=True).start()
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent not in (None, os.getppid()):
        os._exit(FAILED)  # it was gone before this process asked to be told


def _watch(parent: int) -> None:
    while True:
        time.sleep(1)
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(FAILED)
        except PermissionError:
            continue


def save_checkpoints_whole() -> None:
    """Make both engines write checkpoints beside their place and rename them; keep the last.pt before this one.

    They write in place: Ctrl-C, a kill or a full disk in that moment would cost the run its only last.pt. The one
    before stays as previous.pt. At the end, when the optimiser's state is stripped from last.pt, it is still there, so
    that a finished run can be trained longer.
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
            _settle(part)
            if place.name == LAST and place.parent.name == "weights" and place.is_file():
                place.replace(place.with_name(PREVIOUS))
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


def _settle(file: Path) -> None:
    """Have the disk take `file` before it is renamed, or a power cut could leave the name without its content."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(handle)


# GPU


def show_gpus(names: str) -> None:
    """Let CUDA see the GPUs `names` (numbers or UUIDs) and no others, counted from 0; "" leaves all.

    CUDA looks for its devices now and never again. YOLOv5 writes what --device says, which is a position among these,
    into CUDA_VISIBLE_DEVICES later, where it would be another GPU's number.
    """
    if not names:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = names
    import torch  # noqa: PLC0415

    torch.cuda.is_available()


def prove_kernels(device_wanted: str) -> None:
    """Run a kernel on this process's GPU, within KERNEL_LIMIT. Raises what torch raises."""
    if device_wanted in ("cpu", "mps"):
        return
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    begun = threading.Timer(KERNEL_LIMIT, _stuck)
    begun.daemon = True
    begun.start()
    try:
        device = torch.device("cuda", min(rank, torch.cuda.device_count() - 1))
        picture = torch.ones(1, 3, 32, 32, device=device)
        torch.nn.functional.conv2d(picture, torch.ones(4, 3, 3, 3, device=device)).sum().item()
    finally:
        begun.cancel()
    if os.environ.get("RANK", "0") == "0":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        print(f"  kernel   {name} (sm_{capability[0]}{capability[1]}) computes with torch {torch.__version__}")


def _stuck() -> None:
    sys.stderr.write(f"lab: the GPU gave no answer to a first kernel in {KERNEL_LIMIT:.0f} s: `lab doctor` says why\n")
    sys.stderr.flush()
    os._exit(FAILED)


def watch_amp(check: Callable[..., bool]) -> Callable[..., bool]:
    """The engine's check of half precision, with its outcome said loudly when it is no."""

    def watched(model: Any, *more: Any, **named: Any) -> bool:
        import torch  # noqa: PLC0415

        device = device_of(model)
        if device.type != "cuda":
            return check(model, *more, **named)
        name = torch.cuda.get_device_name(device)
        if NO_AMP.search(name):
            return _amp_off(f"{name} computes wrong values in half precision")
        passed = check(model, *more, **named)
        gap = half_precision_gap(torch, model, device)
        # the ultralytics package lets pass what it could not check, for want of a checkpoint; this is what it looks for
        if gap is None:
            return _amp_off(f"in half precision {name} computes numbers that are none (NaN)")
        # YOLOv5 compares the boxes of two passes, and where they differ in number asks a checkpoint that may not be
        # here; whether the card computes rightly is seen in the network's own numbers
        if not passed and gap > CLOSE_HALF:
            return _amp_off(f"half precision on {name} does not agree with full precision")
        if not passed:
            _say(f"the engine's check of half precision found no answer, ours did (differs by {gap:.0%}): AMP stays on")
        NOTES["amp"] = True
        return True

    return watched


def device_of(model: Any) -> Any:
    """The device that a network lies on."""
    return next(model.parameters()).device


def _amp_off(why: str) -> bool:
    NOTES.update(amp=False, amp_reason=why)
    _say("=" * 76)
    _say(f"AMP IS OFF: {why}.")
    _say("The training is slower and needs about twice the memory: a smaller --batch may be needed.")
    _say("=" * 76)
    return False


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"lab: {sentence}", file=sys.stderr, flush=True)


def half_precision_gap(torch: Any, model: Any, device: Any) -> float | None:
    """Largest difference of the network's output in half precision, as a share of the largest value; None for NaN."""
    trained = model.training
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        model.eval()
        with torch.no_grad():
            wanted = _first_tensor(torch, model(images)).float()
            with torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16):
                got = _first_tensor(torch, model(images)).float()
    finally:
        model.train(trained)
    gap = float((got - wanted).abs().max() / wanted.abs().max())
    return gap if math.isfinite(gap) else None


def _first_tensor(torch: Any, output: Any) -> Any:
    while not torch.is_tensor(output):
        output = output[0] if isinstance(output, (list, tuple)) else next(iter(output.values()))
    return output


def _note_memory() -> None:
    """Most memory in use on the first GPU, as the driver counts it: the allocator's peak and what lies outside it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    NOTES.update(peak_bytes=int(outside + torch.cuda.max_memory_reserved()), total_bytes=int(total))


def _write_notes(request: dict[str, Any]) -> None:
    if "notes" in request and os.environ.get("RANK", "0") == "0":
        try:
            _note_memory()
            Path(request["notes"]).write_text(json.dumps(NOTES), encoding="utf-8")
        except Exception as error:  # notes are no reason to fail a training that is done
            _say(f"the GPU's memory could not be read: {' '.join(str(error).split())}")


def _report(request: dict[str, Any], sentence: str, status: int, trace: str = "") -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sentence = f"rank {os.environ['RANK']}: {sentence}"
    place = Path(request["report"])
    try:
        # the first of this machine's ranks: what the others die of, once it has gone, is not the cause; but memory may
        # run out on a later one
        with place.open("w" if status == OUT_OF_MEMORY else "x", encoding="utf-8") as report:
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
    if causes.absurd(text):
        return causes.ABSURD
    if out_of_memory(error):
        return causes.MEMORY if "cpu" not in text.lower() else causes.MAIN_MEMORY
    return causes.said(text, type(error).__name__)


def _for_memory(error: BaseException, request: dict[str, Any]) -> bool:
    return request["task"] == "train" and out_of_memory(error) and not causes.absurd(str(error))


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


def finished_weights(
    request: dict[str, Any], strip_optimizer: Callable[[Path], object], plot_results: Callable[..., object]
) -> Path:
    """What both engines do with a run after its last epoch: strip the checkpoints, plot the curves.

    The two functions are the engine's own. Returns the weights to measure: best.pt, or last.pt without one.
    """
    run = Path(request["run"])
    weights = [run / "weights" / name for name in ("last.pt", "best.pt") if (run / "weights" / name).is_file()]
    for file in weights:
        found = read_checkpoint(file)
        if found is not None and found.epoch >= 0:
            strip_optimizer(file)
    if request["plots"] and (run / "results.csv").is_file():
        plot_results(file=run / "results.csv")
    return weights[-1]
