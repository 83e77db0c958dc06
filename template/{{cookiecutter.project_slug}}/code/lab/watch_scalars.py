"""What `lab watch` sees, as scalars for TensorBoard: in `watch/` of the run, apart from the engine's own files."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lab import record
from lab.telemetry import held
from lab.watch_facts import Seen

NAME = "watch"
GIBI = 1024  # MiB


def scalars(seen: Seen) -> dict[str, float]:
    """The figures by TensorBoard's name for them; what is unknown is left out."""
    look = seen.look
    found: dict[str, float | None] = {}
    for gpu in seen.used:
        memory = held(gpu)
        found |= {
            f"gpu{gpu.number}/utilisation_pct": gpu.util,
            f"gpu{gpu.number}/memory_gib": None if memory is None else memory / GIBI,
            f"gpu{gpu.number}/power_w": gpu.power,
            f"gpu{gpu.number}/clock_mhz": gpu.clock,
            f"gpu{gpu.number}/temperature_c": gpu.temperature,
            f"gpu{gpu.number}/pcie_in_mb_s": gpu.pcie_in,
            f"gpu{gpu.number}/pcie_out_mb_s": gpu.pcie_out,
        }
    newest = seen.samples[0]
    found |= {
        "training/images_s": newest.rate,
        "training/data_wait_pct": newest.wait,
        "training/processors_pct": look.cpu,
        "training/memory_gib": None if look.memory is None else look.memory / GIBI,
        "training/read_mb_s": look.read,
        "machine/processors_pct": look.host_cpu,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


class Scalars:
    """Writes the scalars of one run; of several that watch it, only the first. A full disk ends it, in silence."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._writer: Any = None
        self._lock: int | None = None
        self._refused = False
        self._begun = _started(run)

    def write(self, seen: Seen) -> None:
        """Add the figures of `seen`, at the second of the run."""
        if self._refused:
            return
        try:
            if self._writer is None and not self._open():
                self._refused = True
                return
            self._add(scalars(seen), time.time())
        except (OSError, ImportError):  # an image without TensorBoard shows no scalars either
            self._refused = True

    def _open(self) -> bool:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415  a moment

        place = self.run / NAME
        place.mkdir(exist_ok=True)
        self._lock = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        self._writer = EventFileWriter(str(place))
        return True

    def _add(self, figures: dict[str, float], now: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._writer.add_event(Event(wall_time=now, step=int(now - self._begun), summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        with suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        if self._lock is not None:
            os.close(self._lock)


def _started(run: Path) -> float:
    """When the run began, Unix time: the axis of its scalars; now when it does not say."""
    try:
        return datetime.fromisoformat(str(record.read(run).get("started"))).timestamp()
    except ValueError:
        return time.time()
