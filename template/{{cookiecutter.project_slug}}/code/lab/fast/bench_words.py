"""What a measurement says to a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 160  # columns
LONG = 300  # characters of a failure


def tell(measured: dict[str, Any], against: tuple[str, ...]) -> None:
    """Print the arms as a table, each with its ratio to those in `against`, and where it was measured."""
    console = _console()
    rows = measured["arms"]
    columns = [name for name in against if any(row["name"] == name for row in rows)]
    per_core = any(row["per_core"] for row in rows)
    waiting = any(row["waiting"] is not None for row in rows)
    idle = any(row["idle"] is not None for row in rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("images/s a core" if per_core else "images/s", justify="right", no_wrap=True)
    table.add_column("slowest to fastest", justify="right", no_wrap=True)
    for said, wanted in (("waits for data", waiting), ("GPU idle", idle)):
        if wanted:
            table.add_column(said, justify="right", no_wrap=True)
    for name in columns:
        table.add_column(f"to {name}", justify="right", no_wrap=True)
    table.add_column("what it is")
    for row in rows:
        cells = [row["name"], rate(row["per_core"] or row["rate"]), f"{rate(row['slowest'])} to {rate(row['fastest'])}"]
        cells += [percent(row["waiting"])] * waiting + [percent(row["idle"])] * idle
        cells += [_ratio(measured["ratios"], row["name"], name) for name in columns]
        table.add_row(*cells, row["about"])
    for kind, words in (("failed", "failed"), ("left_out", "not measured")):
        for name, why in measured[kind].items():
            table.add_row(name, *[""] * (len(table.columns) - 2), f"{words}: {_short(why)}")
    console.print(table)
    console.print(place(measured), highlight=False)


def failed(measured: dict[str, Any]) -> str:
    """Which arms have no figures, and why the first has none."""
    names = list(measured["failed"])
    return f"no figures of {', '.join(names)}: {_short(measured['failed'][names[0]])}"


def _short(why: str) -> str:
    """A failure in one line; of a long one, such as a traceback, the end."""
    line = " ".join(why.split())
    return line if len(line) <= LONG else f"… {line[-LONG:]}"


def _console() -> Console:
    """As wide as the terminal; in a file, wide enough for the tables."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=WIDE)


def place(measured: dict[str, Any]) -> str:
    """Where it was measured, in a line."""
    host, options, device = measured["host"], measured["options"], measured["device"]
    rounds = max(len(row["rates"]) for row in measured["arms"])
    where = device["device"] if device["device"] != "cpu" else host["processor"] or "processor"
    return (
        f"lab: {options['model']} at {options['imgsz']}, batch {options['batch']}, engine {options['engine']}; "
        f"{where}, {host['cpus']} processors, torch {device['torch']}; medians of {rounds} rounds"
    )


def rate(number: float) -> str:
    """Images a second, three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent(share: float | None) -> str:
    """A share in per cent; "" for none."""
    return "" if share is None else f"{100 * share:.1f} %"


def _ratio(ratios: dict[str, float], name: str, other: str) -> str:
    if name == other:
        return "1"
    found = ratios.get(f"{name}/{other}")
    if found is None and (turned := ratios.get(f"{other}/{name}")):
        found = 1 / turned
    return f"{found:.2f}" if found else ""


def tell_tuned(said: dict[str, Any]) -> None:
    """Print what `lab tune` measured, what it compared, and what it prescribes."""
    console = _console()
    costs, gpus = said["seconds_an_image"], said["host"]["gpus"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column, justify in (("way", "left"), ("network", "right"), ("loading", "right"), ("disk", "right")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("predicted images/s", justify="right", no_wrap=True)
    for one in (said["shipped"], *said["others"]):
        words = "as it ships: " if one is said["shipped"] else ""
        cells = [rate(one["stages"][stage]) if stage in one["stages"] else "" for stage in STAGES]
        table.add_row(words + way(one["candidate"], gpus), *cells, rate(one["rate"]))
    console.print(table)
    for what, why in said["left_out"].items():
        console.print(f"lab: left out, {what}: {_short(why)}", highlight=False)
    loading = ", ".join(f"{path} {1000 * cost:.1f}" for path, cost in costs["loading"].items())
    console.print(
        f"lab: milliseconds of a processor an image: decode {1000 * costs['decode']:.1f}; loading {loading}",
        highlight=False,
    )
    predicted, measured = said["predicted_on_one_device"], said["measured_on_one_device"]
    console.print(f"lab: {said['sentence']}", highlight=False)
    console.print(
        f"lab: prescribed: {way(said['chosen']['candidate'], gpus)}; predicted {rate(predicted)} images/s, "
        f"a short run made {rate(measured)} ({100 * (predicted / measured - 1):+.0f} %)",
        highlight=False,
    )
    if said["measured_gain"]:
        console.print(
            f"lab: that is {said['measured_gain']:.2f} times as fast as it ships, side by side; predicted were "
            f"{said['predicted_gain']:.2f} times",
            highlight=False,
        )
    if said["warning"]:
        console.print(f"lab: warning: {_short(said['warning'])}", highlight=False)
    if said["file"]:
        console.print(f"lab: kept in {said['file']}; `lab train --tuned` uses it", highlight=False)


STAGES = ("network", "loading", "disk")


def way(candidate: dict[str, Any], gpus: int) -> str:
    """A candidate in words; its workers and its batch are those of each of `gpus`."""
    images = {
        "plain": "images as the engine reads them", "cached": "--cache ram", "store": "store",
        "device": "store, painted on the GPU",
    }[candidate["path"]]  # fmt: skip
    on = f", {', '.join(candidate['switches'])}" if candidate["switches"] else ""
    workers = "1 worker" if candidate["workers"] == 1 else f"{candidate['workers']} workers"
    each = f" on each of {gpus} GPUs" if gpus > 1 else ""
    return f"{images}, {workers} and batch {candidate['batch']}{each}{on}"
