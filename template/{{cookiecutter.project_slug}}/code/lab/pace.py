"""How fast a training is, and how long it waits for images: written by the training itself, about once a second.

`pace.json` in the run's directory holds the last half minute; the samples in telemetry.csv take it from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "pace.json"
PERIOD = 1.0  # seconds between two writes, at least
WINDOW = 30.0  # seconds of training that the figures are of
SKIPPED = 2  # steps at the start: workers begin, kernels are chosen
PATIENCE = 5.0  # seconds without news after which a training with short steps is not in its steps any more


@dataclass(frozen=True)
class Pace:
    """`rate`: images a second, over all ranks; `wait`: share of the time spent waiting for the loader.

    Both are of the last `window` seconds inside epochs: validation does not count. `time` is Unix's, `step` in seconds.
    `reserved`: bytes that torch holds of the first GPU. All ranks are, or descend from, `pid` of the container `host`.
    """

    time: float
    training: bool  # false between two epochs: validation, checkpoints
    images: int
    rate: float | None
    wait: float | None
    window: float
    step: float
    host: str
    pid: int
    reserved: int | None = None

    def steps_now(self, now: float) -> bool:
        """Whether the training was in its steps a moment ago; between short epochs too."""
        return now - self.time < max(PATIENCE, 3 * self.step)

    def here(self) -> bool:
        """Whether the training is a process of this container."""
        return self.host == socket.gethostname() and Path(f"/proc/{self.pid}").is_dir()


def read(directory: Path) -> Pace | None:
    """What a training in `directory` wrote last; None when it wrote nothing."""
    try:
        said = json.loads((directory / NAME).read_text(encoding="utf-8"))
        return Pace(**{key: said[key] for key in Pace.__dataclass_fields__})
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Meter:
    """Counts batches of `ranks` ranks and writes the pace into `directory`; a full disk is the training's to report."""

    def __init__(self, directory: Path, ranks: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory, self.ranks, self.clock = directory, ranks, clock
        self.images = self.steps = 0
        self.inside = self.waited = 0.0
        self._marks: deque[tuple[float, int, float, int]] = deque()  # inside, images, waited, steps
        self._last = self._written = clock() - PERIOD

    def begin(self) -> None:
        """An epoch begins."""
        self._last = self.clock()

    def took(self, images: int, waited: float) -> None:
        """The loop has got a batch, for which it waited so many seconds."""
        now = self.clock()
        self.inside += now - self._last
        self._last = now
        self.images += images * self.ranks
        self.waited += waited
        self.steps += 1
        if self.steps <= SKIPPED:
            self._marks = deque([self._mark()])
        if now - self._written >= PERIOD:
            self._write(now, training=True)

    def end(self) -> None:
        """An epoch has ended."""
        now = self.clock()
        self.inside += now - self._last
        self._write(now, training=False)

    def _mark(self) -> tuple[float, int, float, int]:
        return self.inside, self.images, self.waited, self.steps

    def _write(self, now: float, training: bool) -> None:
        from lab.record import write  # noqa: PLC0415  it imports telemetry, which imports this

        self._written = now
        while len(self._marks) > 1 and self.inside - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        inside, images, waited, steps = self._marks[0] if self._marks else self._mark()
        window, done = self.inside - inside, self.steps - steps
        known = window > 0 and done > 0
        said = Pace(
            time=time.time(),
            training=training,
            images=self.images,
            rate=(self.images - images) / window if known else None,
            wait=min(1.0, (self.waited - waited) / window) if known else None,
            window=window,
            step=window / done if known else self.inside / max(1, self.steps),
            host=socket.gethostname(),
            pid=os.getppid() if "LOCAL_RANK" in os.environ else os.getpid(),  # torchrun, which starts the ranks
            reserved=_reserved(),
        )
        self._marks.append(self._mark())
        with contextlib.suppress(OSError):
            write(self.directory / NAME, json.dumps(asdict(said)) + "\n")


def _reserved() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


class Paced:
    """A training loader, and a meter that counts what it gives."""

    def __init__(self, loader: Any, meter: Meter) -> None:
        self.loader, self.meter = loader, meter

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """The loader's batches."""
        from lab.fast.turns import size_of  # noqa: PLC0415

        self.meter.begin()
        source = iter(self.loader)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                break
            self.meter.took(size_of(batch), time.perf_counter() - asked)
            yield batch
        self.meter.end()


def install(request: dict[str, Any], engine: str) -> None:
    """Have the first rank of a training write its pace, in the child and before the engine starts."""
    from lab.fast.seams import around_training_loader  # noqa: PLC0415

    if not request.get("run") or os.environ.get("RANK", "0") != "0":
        return
    meter = Meter(Path(request["run"]), int(os.environ.get("WORLD_SIZE", "1")))
    around_training_loader(engine, lambda loader, _: Paced(loader, meter))
