"""In the child: a training, or a loader alone, that runs in turns and counts what it does in each.

The training is the engine's own, from its first line on; only the loader it iterates over is ours. Between two batches
that loader waits until `lab bench` gives this arm its turn (see arms.py), so all that a batch costs is in the figures:
copies, forward, loss, backward, optimiser, average of the weights, progress bar.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lab.fast.seams import Wrap, around_training_loader

PR_SET_PDEATHSIG = 1
SKIPPED = 2  # batches at the beginning of a turn: memory that was given back is taken again, clocks of a GPU rise
FIXED, OWN, ALONE = "fixed", "own", "alone"  # the arm's data: one batch on the device, its loader; a loader, no model


@dataclass
class Line:
    """The two ends of the pipes to `lab bench`: a JSON object a line, an answer to each order."""

    orders: IO[str]
    answers: IO[str]

    def tell(self, **answer: Any) -> None:
        """Send `answer`."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()

    def hear(self) -> dict[str, Any]:
        """The next order; without one there will never be another, and this process ends."""
        order = self.orders.readline()
        if not order:
            os._exit(0)
        said: dict[str, Any] = json.loads(order)
        if said["do"] == "end":
            os._exit(0)  # without waiting for loader workers: they end with this process
        return said


def take_turns(request: dict[str, Any]) -> None:
    """Have the engine's training iterate over a loader that waits for its turns. Call it when all else is installed."""
    _die_together()
    about = request["turns"]
    line = Line(os.fdopen(about["orders"]), os.fdopen(about["answers"], "w"))
    wrap: Wrap = lambda loader, device: Turns(loader, line, about["data"], device)  # noqa: E731
    around_training_loader(about["engine"], wrap)


def _die_together() -> None:
    """Have this process and its workers killed with their parent: stopped ones would not notice that it is gone."""
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


class Turns:
    """A loader around `loader` that never ends, and hands out batches in its turns only."""

    def __init__(self, loader: Any, line: Line, data: str, device: Callable[[], Any]) -> None:
        self.loader, self.line, self.data, self.device = loader, line, data, device

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """Batches; raises what the loader raises. Answers each order when it is done."""
        import torch  # noqa: PLC0415

        clock = Clock(torch, self.device())
        self._answer(clock, ready=True, **facts(torch, clock.device))
        source = self._batches(clock)
        while True:
            order = self.line.hear()
            if order["do"] == "profile":
                batches = self._profiled(order, source, clock, torch)
            elif order["do"] == "epoch":
                batches = self._epoch(clock)
            else:
                batches = self._turn(order, source, clock)
            for batch in batches:
                if self.data != ALONE:
                    yield batch

    def _answer(self, clock: Clock, **answer: Any) -> None:
        """Give memory back, then answer: whoever gets the answer stops this process at once and lets another run."""
        clock.release()
        self.line.tell(**answer)

    def _turn(self, order: dict[str, Any], source: Iterator[Any], clock: Clock) -> Iterator[Any]:
        """At least one batch, and as many as `seconds` take; their number, images and times are the answer."""
        until = time.monotonic() + order["seconds"]
        for _ in range(order.get("skip", SKIPPED)):
            yield next(source)
        images = batches = 0
        waited = 0.0
        clock.wait()
        begun, worked = time.perf_counter(), time.process_time()
        while True:
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            yield batch
            images, batches = images + size_of(batch), batches + 1
            if time.monotonic() >= until or batches >= order.get("batches", sys.maxsize):
                break
        clock.wait()
        seconds, worked = time.perf_counter() - begun, time.process_time() - worked
        self._answer(
            clock, images=images, batches=batches, seconds=seconds, waited=waited, processor_seconds=worked,
            device_bytes=clock.peak(),
        )  # fmt: skip

    def _epoch(self, clock: Clock) -> Iterator[Any]:
        """One pass over all images, from the loader's first batch to its last; an arm has these or turns, not both."""
        images = batches = 0
        clock.wait()
        begun = time.perf_counter()
        for batch in self.loader:
            images, batches = images + size_of(batch), batches + 1
            yield batch
        clock.wait()
        seconds = time.perf_counter() - begun
        said = {"images": images, "batches": batches, "seconds": seconds}
        self._answer(clock, **said, device_bytes=clock.peak(), private_bytes=private_bytes())

    def _profiled(self, order: dict[str, Any], source: Iterator[Any], clock: Clock, torch: Any) -> Iterator[Any]:
        """`batches` batches under the profiler: for how long a kernel ran, and for how long none did."""
        for _ in range(SKIPPED):
            yield next(source)
        if clock.device.type != "cuda":
            self._answer(clock, idle_share=None)
            return
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        clock.wait()
        profile.start()
        begun = time.perf_counter()
        for _ in range(order["batches"]):
            yield next(source)
        clock.wait()
        wall = time.perf_counter() - begun
        profile.stop()
        trace = Path(order["trace"])
        profile.export_chrome_trace(str(trace))
        busy = busy_seconds(kernels(json.loads(trace.read_text(encoding="utf-8"))))
        trace.unlink()
        self._answer(clock, idle_share=max(0.0, 1 - busy / wall), wall_seconds=wall, kernel_seconds=busy)

    def _batches(self, clock: Clock) -> Iterator[Any]:
        if self.data != FIXED:
            while True:
                yield from self.loader
        first = on_device(next(iter(self.loader)), clock.device)
        while True:
            yield dict(first) if isinstance(first, dict) else first


class Clock:
    """Waits for the device, so that times taken after it are of work that is done."""

    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, torch.device(device)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give memory that is not in use back to the device: the other arms need it."""
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()

    def peak(self) -> int | None:
        """Most bytes that tensors took since the last turn; None without a GPU."""
        if self.device.type != "cuda":
            return None
        most = int(self.torch.cuda.max_memory_allocated(self.device))
        self.torch.cuda.reset_peak_memory_stats(self.device)
        return most


def size_of(batch: Any) -> int:
    """Images in a batch of either engine."""
    return len(batch["img"] if isinstance(batch, dict) else batch[0])


def on_device(batch: Any, device: Any) -> Any:
    """A batch of either engine with its tensors on `device`."""
    if isinstance(batch, dict):
        return {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
    return tuple(value.to(device) if hasattr(value, "to") else value for value in batch)


def facts(torch: Any, device: Any) -> dict[str, Any]:
    """What ran where, for the record."""
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if device.type != "cuda":
        return {**about, "device": "cpu"}
    seen = torch.cuda.get_device_properties(device)
    return {
        **about, "device": seen.name, "device_bytes": seen.total_memory,
        "capability": f"{seen.major}.{seen.minor}", "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


def private_bytes() -> int:
    """Main memory of this process and its workers that is theirs alone: not the store's pages, which are shared."""
    total = 0
    for process in (os.getpid(), *_children()):
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        line = next((line for line in status.splitlines() if line.startswith("RssAnon:")), "RssAnon: 0 kB")
        total += int(line.split()[1]) << 10
    return total


def _children() -> list[int]:
    try:
        tasks = list(Path("/proc/self/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return []


def kernels(trace: dict[str, Any]) -> list[tuple[float, float]]:
    """(begin, end) in seconds of each kernel in a trace of torch.profiler; copies and fills are no kernels."""
    return [
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in trace["traceEvents"]
        if event.get("cat") == "kernel"
    ]


def busy_seconds(spans: list[tuple[float, float]]) -> float:
    """Length of the union of `spans`: kernels on two streams at once count once."""
    busy, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy
