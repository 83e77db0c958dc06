"""`lab gate`, `lab card` and `lab pipeline`: from a run to a model that may leave the house."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab.project import open_project

RUN = Annotated[str, typer.Argument(help="a run's directory or name  [default: the newest]", show_default=False)]
DEVICE = Annotated[str, typer.Option(help="where to measure the checkpoint: GPU number, or cpu")]
MAP50 = Annotated[
    float | None, typer.Option(help="least mAP50, from 0 to 1  [default: from lab.yaml]", show_default=False)
]
MAP = Annotated[float | None, typer.Option("--map", help="least mAP50-95, from 0 to 1", show_default=False)]


def gate(run: RUN = "", map50: MAP50 = None, map_: MAP = None, device: DEVICE = "") -> int:
    """Is a run's checkpoint good enough? Writes what was measured into its metrics.json.

    Exit status: 0 it passes, 1 it does not, 2 bad input. Example: `lab gate runs/train/exp --map50 0.6`
    """
    from lab import gate as judge  # noqa: PLC0415

    project = open_project()
    return judge.main(project, run, judge.bar(project, map50, map_), device or None)


def card(
    run: RUN = "",
    device: DEVICE = "",
    out: Annotated[
        Path | None, typer.Option(help="the file to write  [default: README.md in the run]", show_default=False)
    ] = None,
) -> int:
    """Write the model card of a run: data, training, figures of each class, use, limits, licence. Markdown.

    Its front matter is that of Hugging Face's model cards. Example: `lab card runs/train/exp`
    """
    from lab import card as page  # noqa: PLC0415

    return page.main(open_project(), run, device or None, out)


def pipeline(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the artifacts; a pipeline that it holds goes on  [default: a new one in runs/pipeline]",
            show_default=False,
        ),
    ] = None,
    map50: MAP50 = None,
    map_: MAP = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="made-up pictures and a minute's training, on any CPU")
    ] = False,
) -> int:
    """Check the data, train, export to ONNX, measure, report, gate, write the card. What CI runs.

    Every other option is one of `lab train`; lab.yaml holds those that always count. It stops at the first step that
    fails. Exit status: 0 the model passed, 1 a step failed, 2 bad input.

    Example: `lab pipeline --epochs 300 --map50 0.6`
    """
    from lab import pipeline as work  # noqa: PLC0415

    return work.main(open_project(), context.args, out, (map50, map_), smoke)


def add_commands(app: typer.Typer) -> None:
    """Register the commands with `lab`."""
    app.command()(gate)
    app.command()(card)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(pipeline)
