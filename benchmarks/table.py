"""The table of benchmarks/README.md, from benchmarks/results/gpu-*.json and cpu.json (see gpu.sh):

    python benchmarks/table.py            writes it
    python benchmarks/table.py --check    exit status 1 when it is not up to date

One technique a row, one kind of hardware a column. What was not measured is said to be so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE / "README.md", HERE / "results"
BEGIN, END = "<!-- begin: python benchmarks/table.py -->\n", "<!-- end -->\n"
MODELS = ("yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5nu")  # the last one is the other engine's
GPU = "a GPU"
Result = dict[str, Any]


def results(place: Path) -> dict[str, Result]:
    """What gpu.sh measured, by the name of the device: GPUs first, the processor last."""
    found = {}
    for file in [*sorted(place.glob("gpu-*.json")), *place.glob("cpu.json")]:
        said = json.loads(file.read_text(encoding="utf-8"))
        found[device(said)] = said
    return found


def device(said: Result) -> str:
    """The device as a column's head: its name, and the processors it was given."""
    part = next(part for part in said.values() if "host" in part and "device" in part)
    host = part["host"]
    name = part["device"]["device"]
    name = host.get("processor") or "a processor" if name == "cpu" else name
    return f"{name}, {host['cpus']} processors"


def table(found: dict[str, Result]) -> str:
    """The Markdown table. A column for a GPU is there even when none was measured."""
    columns = dict(found)
    if not any(map(said_gpu, found.values())):
        columns = {GPU: {}, **columns}
    heads = ["technique", "gain", *columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for what, unit, cell in rows(found):
        cells = [cell(said) or "not measured yet" for said in columns.values()]
        if all(text == "not measured yet" for text in cells) and len(columns) > 1 and what.startswith("`--with"):
            continue  # a switch that no device here has
        lines.append(f"| {what} | {unit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said_gpu(said: Result) -> bool:
    """Whether it was measured on a GPU."""
    return any(part.get("device", {}).get("device", "cpu") != "cpu" for part in said.values() if isinstance(part, dict))


def rows(found: dict[str, Result]) -> Iterator[tuple[str, str, Callable[[Result], str]]]:
    """(technique, what the figure is, the figure of a result or "")."""
    for model in MODELS:
        yield (
            f"all of them: `lab train`, {model}", "times upstream as it ships; share of the device's ceiling; GPU idle",
            lambda said, model=model: whole(said.get(f"bench-{model}")),  # type: ignore[misc]
        )  # fmt: skip
    yield (
        "store of decoded images: loader alone", "images/s of one processor; times upstream's, and its `--cache ram`",
        lambda said: loader(said.get("loader")),
    )  # fmt: skip
    yield (
        "store of decoded images: building it",
        "images/s of all processors",
        lambda said: building(said.get("epochs")),
    )
    yield "painting on the GPU", "images/s", lambda said: painting(said.get("paint-device"))
    for name in switch_names(found):
        yield (
            f"`--with {name}`", "times the step without it: yolov5n, yolov5s",
            lambda said, name=name: switch(said, name),  # type: ignore[misc]
        )  # fmt: skip
    yield "ten times the images", "times as long an epoch; main memory", lambda said: epochs(said.get("epochs"))
    yield "`--batch auto`", "predicted memory against measured; left free", lambda said: batch(said.get("batch-auto"))


def switch_names(found: dict[str, Result]) -> list[str]:
    """Techniques of the step, in the order measured."""
    names: dict[str, None] = {}
    for said in found.values():
        for part, one in said.items():
            if part.startswith("switches-"):
                names.update(dict.fromkeys(row["name"] for row in one["arms"][1:]))
    return list(names)


def whole(part: Result | None) -> str:
    """Ours against upstream and the ceiling."""
    if not part:
        return ""
    ours = next(row for row in part["arms"] if row["name"] == "ours")
    size = f"{part['options']['imgsz']} pixels, batch {part['options']['batch']}"
    words = f"{part['ratios']['ours/upstream']:.2f}; {100 * part['ratios']['ours/ceiling']:.0f} %"
    idle = "" if ours["idle"] is None else f"; {100 * ours['idle']:.1f} %"
    return f"{words}{idle} ({ours['rate']:,.0f} images/s; {size})"


def loader(part: Result | None) -> str:
    """The store's loader against upstream's two."""
    if not part:
        return ""
    rates = {row["name"]: row["per_core"] for row in part["arms"]}
    store = rates.get("store")
    if not store:
        return ""
    return f"{store:,.0f}; {store / rates['upstream']:.1f}; {store / rates['upstream cache']:.1f}"


def building(part: Result | None) -> str:
    """How fast a store is made."""
    return f"{part['large']['store_images_per_second']:,.0f}" if part else ""


def painting(part: Result | None) -> str:
    """The fastest way that paints mosaics."""
    rates = [way["images_per_s"] for name, way in (part or {"painting": {}})["painting"].items() if "mosaic" in name]
    return f"{max(rates):,.0f}" if rates else ""


def switch(said: Result, name: str) -> str:
    """Gain of a technique, for the models measured."""
    gains = []
    for model in MODELS[:2]:
        ratio = said.get(f"switches-{model}", {}).get("ratios", {}).get(f"{name}/none")
        gains.append(f"{ratio:.2f}" if ratio else "")
    return ", ".join(filter(None, gains))


def epochs(part: Result | None) -> str:
    """An epoch on ten times the images."""
    if not part or not part["ratio"]:
        return ""
    words = [f"{part['ratio']:.2f}; {_memory(part, '', 'private_bytes')}"]
    if part.get("ratio_streamed"):
        main, gpu = (_memory(part, " streamed", which) for which in ("private_bytes", "device_bytes"))
        words.append(f"not resident {part['ratio_streamed']:.2f}; {main}, of the GPU {gpu}")
    return "; ".join(words)


def _memory(part: Result, kind: str, which: str) -> str:
    """What the small and the large training took in their last epoch."""
    small, large = (part[f"{size}{kind}"]["epochs"][-1][which] / 2**20 for size in ("small", "large"))
    return f"{small:,.0f} and {large:,.0f} MiB"


def batch(part: Result | None) -> str:
    """The prediction of --batch auto."""
    if not part:
        return ""
    return "; ".join(f"{run['prediction_off_pct']:+.1f} %, {run['free_pct']:.0f} % free" for run in part["runs"])


def with_table(page: str, found: dict[str, Result]) -> str:
    """`page` with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(found) + END + after


def main(words: list[str]) -> int:
    """Write the table, or check it."""
    page = README.read_text(encoding="utf-8")
    fresh = with_table(page, results(RESULTS))
    if words == ["--check"]:
        return int(fresh != page)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
