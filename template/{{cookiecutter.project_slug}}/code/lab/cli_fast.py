"""`lab bench` and `lab tune`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.errors import FAILED, LabError
from lab.options import Request
from lab.project import Project, open_project

if TYPE_CHECKING:
    from lab.fast.arms import Show
    from lab.fast.bench import Wish

ENGINE = Annotated[str, typer.Option(help="yolov5 or yolov5u; the project's own when absent")]
MODEL = Annotated[str, typer.Option(help="yolov5n, s, m, l or x  [default: from lab.yaml]", show_default=False)]
IMG = Annotated[int, typer.Option(help="image size in pixels  [default: from lab.yaml]", show_default=False)]
BATCH = Annotated[int, typer.Option(help="images a step")]
DEVICE = Annotated[str, typer.Option(help="GPU number, or cpu  [default: the first GPU, else cpu]", show_default=False)]
DATA = Annotated[
    str, typer.Option(help="the data set's yaml file  [default: made-up 720p pictures]", show_default=False)
]
SECONDS = Annotated[float, typer.Option(help="time for everything, preparations included")]


@contextmanager
def _stages() -> Iterator[Show]:
    """Yields a function that says what is being done: a spinner on a terminal, else lines."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: print(f"lab: {stage}", file=sys.stderr, flush=True)
        return
    with console.status("") as status:
        yield status.update


def bench(
    engine: ENGINE = "",
    model: MODEL = "",
    img: IMG = 0,
    batch: BATCH = 16,
    device: DEVICE = "",
    workers: Annotated[
        int | None, typer.Option(help="processes that load images  [default: each arm's own]", show_default=False)
    ] = None,
    data: DATA = "",
    seconds: SECONDS = 120,
    plain: Annotated[bool, typer.Option("--plain", help="ours without anything of ours")] = False,
    with_: Annotated[str, typer.Option("--with", help="as for `lab train`: turn on, separated by commas")] = "",
    without: Annotated[str, typer.Option(help="as for `lab train`: turn off")] = "",
    loader: Annotated[bool, typer.Option("--loader", help="loaders alone: images a second of one processor")] = False,
    switches: Annotated[
        bool, typer.Option("--switches", help="each technique of the step alone; compile from --seconds 400 on")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="write the figures into this JSON file, as they come", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON instead of a table")] = False,
) -> None:
    """How fast is training here: the device's ceiling, the engine as it ships, and ours, alternating in one run.

    The three are whole trainings, with the engine's own loop, that take turns until the time is over; nothing of them
    is kept. Example: `lab bench --model yolov5n --batch 64`, or `lab bench --loader`
    """
    from lab.fast import bench as benchmark  # noqa: PLC0415
    from lab.fast import bench_words  # noqa: PLC0415

    project = open_project()
    if loader and switches:
        raise LabError("--loader measures loaders and --switches the step: give one of them")
    wish = _wish(project, engine, model, img, batch, device, workers, data, seconds, (plain, with_, without))
    which = benchmark.loaders if loader else benchmark.each_switch if switches else benchmark.three
    if out is not None and out.is_dir():
        raise LabError(f"--out {out} is a directory: name the JSON file to write")
    with _stages() as show:
        keep = (lambda found: benchmark.write(out, found)) if out else lambda _: None
        measured = benchmark.measure(wish, project, which, show, keep)
    if as_json:
        print(json.dumps(measured, indent=1))
    else:
        bench_words.tell(measured, (benchmark.UPSTREAM, benchmark.CEILING, "none"))
    if measured["failed"]:
        raise LabError(bench_words.failed(measured), FAILED)


def tune(
    engine: ENGINE = "",
    model: MODEL = "",
    img: IMG = 0,
    batch: Annotated[int, typer.Option(help="images a step of all GPUs together")] = 16,
    device: Annotated[
        str, typer.Option(help="GPU numbers such as 0,1, or cpu  [default: the first GPU]", show_default=False)
    ] = "",
    data: Annotated[
        str, typer.Option(help="the data set's yaml file  [default: from lab.yaml]", show_default=False)
    ] = "",
    seconds: SECONDS = 180,
    keep: Annotated[bool, typer.Option("--apply/--dry-run", help="keep the settings for `lab train --tuned`")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """What limits training here, and what to do: measure this host, prescribe workers, cache, batch and switches.

    Nothing that does not fit memory, /dev/shm, disk or GPU is prescribed. The prediction is tried by a short run and
    kept for `lab train --tuned`. Example: `lab tune --model yolov5s --batch 32`, then `lab train --tuned`
    """
    from lab.fast import bench_words, tuner  # noqa: PLC0415

    project = open_project()
    wish = _wish(project, engine, model, img, batch, device, None, data or project.data, seconds)
    with _stages() as show:
        said = tuner.run(wish, project, keep, show)
    if as_json:
        print(json.dumps(said, indent=1))
    else:
        bench_words.tell_tuned(said)


def _wish(
    project: Project, engine: str, model: str, img: int, batch: int, device: str, workers: int | None, data: str,
    seconds: float, speed: tuple[bool, str, str] = (False, "", ""),
) -> Wish:  # fmt: skip
    from lab.fast import choose  # noqa: PLC0415
    from lab.fast.bench import Wish  # noqa: PLC0415

    given = dict(zip(("plain", "with", "without"), speed, strict=True))
    wanted = choose.wish(Request("train", {key: value for key, value in given.items() if value}))
    return Wish(
        engine or project.engine, model or project.model, img or project.image_size, batch, device, workers, data,
        seconds, wanted,
    )  # fmt: skip


def add_commands(app: typer.Typer) -> None:
    """Register the commands with `lab`."""
    app.command()(bench)
    app.command()(tune)
