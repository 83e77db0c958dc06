"""How `lab watch` shows what it sees: a screen of 80 columns, plain lines, or JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lab.fast import plan, tune
from lab.nvml import Gpu
from lab.report_advice import means
from lab.telemetry import Sample, held
from lab.watch_advice import ADVICE, FAULT, NOTE, Advice
from lab.watch_facts import RUNNING, Seen, Training

UNKNOWN = "unknown"
BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 30  # looks that a history shows
COLOURS = {FAULT: "bold red", ADVICE: "yellow", NOTE: "dim"}
MARKS = {FAULT: "!", ADVICE: ">", NOTE: "·"}
PATHS = {
    plan.PLAIN: "images from files",
    tune.CACHED: "images in memory",
    plan.STORE: "images from the store",
    plan.DEVICE: "images painted on the GPU",
}


# Words for both


def about(one: Training | None) -> str:
    """The run in a line."""
    if one is None:
        return "no run yet"
    planned = one.planned or "?"
    if one.state != RUNNING:
        return f"{one.name}: {one.epochs} of {planned} epochs, not running"
    return f"{one.name}: epoch {min(one.epochs + 1, one.planned or one.epochs + 1)} of {planned}"


def made_of(one: Training) -> str:
    """What the run is made of, in a line."""
    loaders = "" if one.path == plan.DEVICE else f", {one.workers} worker{'' if one.workers == 1 else 's'}"
    return f"{one.engine}, {one.model} at {one.imgsz} px, batch {one.batch * one.ranks}{loaders}, {PATHS[one.path]}"


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    """`value` with its unit, or the word for none."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}{unit}"


def of(value: float | None, most: float | None, unit: str, digits: int = 0) -> str:
    """`value` of `most`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{digits}f}{f'/{most:,.{digits}f}' if most is not None else ''} {unit}"


def memory(gpu: Gpu) -> tuple[float | None, float | None]:
    """GiB in use and in all, of the instances where the GPU is split."""
    used, total = held(gpu), sum(part.total or 0 for part in gpu.slices) or gpu.total
    return None if used is None else used / 1024, None if total is None else total / 1024


def pace(seen: Seen) -> str:
    """Images a second and the wait for them."""
    newest = seen.samples[0]
    if newest.rate is None:
        whole = seen.training.epoch_rate if seen.training is not None else None
        said = f"{whole:,.1f} images/s over whole epochs" if whole is not None else f"images/s {UNKNOWN}"
        return said + (", between two epochs" if seen.between else "")
    return f"{newest.rate:,.1f} images/s, waits {number(newest.wait, ' %')} of the time for images"


def machine(seen: Seen) -> str:
    """Processors, memory and reading."""
    look = seen.look
    own = f"{number(look.cpu, ' %')} by the training, " if seen.running else ""
    said = f"processors {own}{number(look.host_cpu, ' %')} in all"
    if look.memory is not None:
        said += f"; memory {look.memory / 1024:.1f} GiB"
    if look.read is not None:
        said += f"; reads {look.read:.1f} MB/s"
    return said


# Lines


def line(seen: Seen) -> str:
    """Everything in one line, for a file or a pipe."""
    parts = [time.strftime("%H:%M:%S"), about(seen.training)]
    for gpu in seen.used:
        used, total = memory(gpu)
        figures = (
            number(gpu.util, " %"), of(used, total, "GiB", 1), of(gpu.power, gpu.power_limit, "W"),
            number(gpu.clock, " MHz"), f"PCIe {number(gpu.pcie_in)}/{number(gpu.pcie_out)} MB/s",
        )  # fmt: skip
        parts.append(f"GPU {gpu.number} {'lost' if gpu.lost else ', '.join(figures)}")
    if seen.running:
        parts.append(pace(seen))
    return " | ".join([*parts, machine(seen)])


def as_json(seen: Seen, advice: Sequence[Advice]) -> dict[str, Any]:
    """The same as JSON; null is unknown."""
    one, look, newest = seen.training, seen.look, seen.samples[0]
    return {
        "time": time.time(),
        "run": None if one is None else str(one.directory),
        "state": "none" if one is None else one.state,
        "epochs": None if one is None else one.epochs,
        "planned": None if one is None else one.planned,
        "images_s": newest.rate,
        "images_s_whole_epochs": None if one is None else one.epoch_rate,
        "data_wait_pct": newest.wait,
        "cpu_pct": look.cpu,
        "host_cpu_pct": look.host_cpu,
        "memory_mib": look.memory,
        "read_mb_s": look.read,
        "gpus": [asdict(gpu) for gpu in look.gpus],
        "used_gpus": [gpu.number for gpu in seen.used],
        "other_processes": [asdict(other) for other in seen.others],
        "advice": [asdict(item) for item in advice],
    }


# The screen


def screen(seen: Seen, advice: Sequence[Advice]) -> RenderableType:
    """What a terminal of 80 columns shows."""
    one = seen.training
    parts: list[RenderableType] = [Text(about(one), style="bold")]
    if one is not None:
        parts.append(Text(made_of(one), style="dim"))
    parts.append(Text())
    if seen.used:
        parts += [_gpus(seen.used), Text()]
    parts += [_history(seen), Text(machine(seen)), Text()]
    for item in advice:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(MARKS[item.level], style=COLOURS[item.level]), Text(item.sentence, style=COLOURS[item.level]))
        parts.append(grid)
    return Padding(Group(*parts), (0, 1))


def _gpus(gpus: Iterable[Gpu]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("GPU", "busy", "memory", "power", "clock", "heat", "PCIe in/out"):
        table.add_column(heading, justify="left" if heading == "GPU" else "right", no_wrap=True, header_style="dim")
    for gpu in gpus:
        if gpu.lost:
            table.add_row(str(gpu.number), Text("lost", style="bold red"))
            continue
        used, total = memory(gpu)
        heat = Text(number(gpu.temperature, " °C"), style="yellow" if gpu.held else "")
        traffic = UNKNOWN if gpu.pcie_in is None else f"{gpu.pcie_in:,.0f}/{number(gpu.pcie_out)} MB/s"
        table.add_row(
            str(gpu.number), number(gpu.util, " %"), of(used, total, "GiB", 1), of(gpu.power, gpu.power_limit, "W"),
            number(gpu.clock, " MHz"), heat, traffic,
        )  # fmt: skip
        for part in gpu.slices:
            share = None if part.memory is None else part.memory / 1024
            whole = None if part.total is None else part.total / 1024
            table.add_row("", "", of(share, whole, "GiB", 1), part.name)
    return table


def _history(seen: Seen) -> Table:
    """The last minute, in small bars: what the GPU did, what came in, what was waited for."""
    table = Table.grid(padding=(0, 2, 0, 0))
    numbers = {gpu.number for gpu in seen.used}
    looks = [means(list(group), numbers) for group in seen.recent[-WIDTH:]]
    newest: Sample = seen.samples[0]
    if seen.used:
        table.add_row("GPU busy", bars([one.gpu for one in looks], 100.0), number(looks[-1].gpu, " %"))
    if seen.running:
        rates = [one.rate for one in looks]
        table.add_row("images/s", bars(rates, max((rate or 0.0 for rate in rates), default=0.0)), _rate(seen))
        table.add_row("waits for images", bars([one.wait for one in looks], 100.0), number(newest.wait, " %"))
    table.add_row("processors", bars([one.host_cpu for one in looks], 100.0), number(seen.look.host_cpu, " %"))
    return table


def _rate(seen: Seen) -> str:
    newest, whole = seen.samples[0].rate, seen.training.epoch_rate if seen.training is not None else None
    if newest is None and whole is not None:
        return f"{whole:,.1f} over whole epochs"
    return number(newest, digits=1)


def bars(values: Sequence[float | None], most: float) -> Text:
    """A bar for each value, blank where it is unknown."""
    cells = [
        " " if value is None else BARS[1 + round((len(BARS) - 2) * min(1.0, max(0.0, value / most if most else 0.0)))]
        for value in values
    ]
    return Text("".join(cells).rjust(WIDTH), style="cyan")
