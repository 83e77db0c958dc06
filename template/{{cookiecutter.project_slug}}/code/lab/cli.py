"""The command `lab`. Nothing heavy is imported before a command needs it, so that help and errors come at once."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lab.errors import BAD_INPUT, FAILED, INTERRUPTED, LabError
from lab.options import TASKS
from lab.project import ENGINES, Project, open_project

app = typer.Typer(
    name="lab",
    help="Train, validate, run and export YOLOv5 in this project.\n\n"
    "First time: `lab smoke` proves this machine in about a minute, `lab data demo` makes labelled pictures, "
    "`lab train --epochs 10` trains on them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make and check data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def main(arguments: Sequence[str]) -> int:
    """Run `lab ARGUMENTS`; returns the exit status: 0 done, 1 failed, 2 bad input, 130 stopped by the user."""
    try:
        return _run(list(arguments))
    except LabError as error:
        return _complain(error.sentence, error.status)
    except KeyboardInterrupt:
        return _complain("stopped", INTERRUPTED)
    except BrokenPipeError:
        return FAILED  # whoever read our output has gone
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _complain("the disk is full: delete old runs, or point RUNS_DIR in .env at a larger disk", FAILED)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _complain(f"{error.filename} cannot be written ({error.strerror})", FAILED)
        raise


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in TASKS:  # their options are YOLOv5's, which typer does not know
        from lab import tasks  # noqa: PLC0415

        return tasks.main(arguments[0], arguments[1:])
    try:
        ended: Any = app(arguments, prog_name="lab", standalone_mode=False)
    except typer.Abort:
        return _complain("stopped", INTERRUPTED)
    except Exception as error:
        message = getattr(error, "format_message", None)  # what typer says about wrong options
        if message is None:
            raise
        words = str(message()) or "a command is missing, see `lab --help`"
        return _complain(words.rstrip(".") + ("" if "--help" in words else " (see `lab --help`)"), BAD_INPUT)
    return ended if isinstance(ended, int) else 0


def _complain(sentence: str, status: int) -> int:
    sys.stdout.flush()
    print(f"lab: {sentence}", file=sys.stderr, flush=True)
    return status


def _listed(task: str, about: str) -> None:
    """A line in `lab --help`; the command itself never gets as far as typer."""

    def run() -> None:
        raise AssertionError(f"{task} is run by _run")

    app.command(task, help=about)(run)


for _task, _about in {
    "train": "Train a model, with YOLOv5's own options: `lab train --img 640 --batch 16 --epochs 100`.",
    "val": "Measure a checkpoint on a data set.",
    "detect": "Draw boxes on pictures or videos.",
    "export": "Write a checkpoint as ONNX, TorchScript, …",
}.items():
    _listed(_task, _about)


@app.command()
def fetch() -> None:
    """Bring YOLOv5's source, one pinned commit, into code/yolov5 and verify it.

    From an archive in wheelhouse/ (yolov5-*.tar.gz or .zip), else with git from $YOLOV5_GIT_URL or GitHub.
    Example: `YOLOV5_GIT_URL=https://git.example.org/mirror/yolov5 lab fetch`
    """
    from lab import upstream  # noqa: PLC0415

    print(f"lab: {upstream.fetch(open_project())}")


@app.command()
def smoke(
    engine: Annotated[str, typer.Option(help="yolov5 or yolov5u; the project's own when absent")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="keep the run's files, in runs/smoke-…")] = False,
) -> int:
    """Prove this machine: made-up pictures, training, validation, ONNX, detection, in about a minute. No network.

    Example: `lab smoke --engine yolov5u`
    """
    if engine and engine not in ENGINES:
        raise LabError(f"--engine {engine}: it may be {' or '.join(ENGINES)}")
    from lab import smoke as test  # noqa: PLC0415

    return test.main(open_project(), engine, keep)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as a JSON list")] = False,
) -> int:
    """Check this container: GPU, kernels, cuDNN, NCCL, memory, disk. Each fault with its cause and its command.

    Exit status: 0 nothing failed, 1 a check failed, 2 it could not check. Example: `lab doctor --json`
    """
    from lab import doctor as check  # noqa: PLC0415

    return check.main(open_project(), as_json)


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")] = "bash") -> None:
    """Print the script that lets the shell complete `lab` and its options with Tab; in the container bash has it.

    Example: `eval "$(lab completion zsh)"`, or `lab completion fish | source`
    """
    from lab import completion as tab  # noqa: PLC0415

    if shell not in tab.SHELLS:
        raise LabError(f"there is no completion for {shell}: it may be {', '.join(tab.SHELLS)}")
    print(tab.script(shell, app), end="")


@data_app.command("demo")
def data_demo(  # typer passes them by name
    images: Annotated[int, typer.Option(help="pictures, training and validation together")] = 512,
    size: Annotated[int, typer.Option(help="width and height in pixels")] = 640,
    seed: Annotated[int, typer.Option(help="seed of all random numbers")] = 0,
    val_share: Annotated[float, typer.Option(help="part of the pictures that is for validation")] = 0.2,
    out: Annotated[
        Path | None, typer.Option(help="directory to make  [default: data/demo]", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace demo data made with other options")] = False,
) -> None:
    """Make pictures of circles, squares and triangles with exact boxes, and their data.yaml.

    Example: `lab data demo --images 2000 --size 320 --out data/shapes`
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    from lab import demo  # noqa: PLC0415

    project = open_project()
    place = demo.default_out(project.root) if out is None else Path.cwd() / out.expanduser()
    bar = Progress(
        "drawing",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("drawing", total=images)
        recipe = demo.Recipe(images, size, seed, val_share)
        made = demo.make(recipe, place, force, lambda done: bar.advance(task, done))
    counts = recipe.counts()
    words = f"{counts['train']} pictures for training and {counts['val']} for validation"
    file = project.show(place / "data.yaml")
    print(f"lab: {words}: {file}" if made else f"lab: already there, made with the same options: {file}")


@data_app.command("check")
def data_check(
    data: Annotated[
        str, typer.Argument(help="the data set's yaml file  [default: from lab.yaml]", show_default=False)
    ] = "",
) -> int:
    """Count pictures, boxes and classes, and find label lines that would make the engines drop a picture.

    Example: `lab data check data/demo/data.yaml`
    """
    from lab import dataset  # noqa: PLC0415

    project = open_project()
    found = dataset.open_dataset(data or project.data, project)
    return _print_counts(project, found, {split: dataset.count(found, split) for split in found.sources})


def _print_counts(project: Project, found: Any, counts: dict[str, Any]) -> int:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", *counts):
        table.add_column(column, justify="left" if not column else "right")
    for word in ("images", "boxes", "backgrounds"):
        table.add_row(
            "without boxes" if word == "backgrounds" else word, *(str(getattr(c, word)) for c in counts.values())
        )
    for number, name in found.names.items():
        table.add_row(f"{number} {name}", *(str(c.classes[number]) for c in counts.values()))
    Console().print(table)
    problems = [problem for c in counts.values() for problem in c.problems]
    for problem in problems[:20]:
        print(f"  {problem}")
    if problems:
        return _complain(f"{len(problems)} pictures of {project.show(found.file)} would be dropped or fail", FAILED)
    print(f"lab: {project.show(found.file)} is fine")
    return 0
