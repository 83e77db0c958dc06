"""The command `lab`. Nothing heavy is imported before a command needs it, so that help and errors come at once."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lab import cli_fast, cli_release
from lab.cli_data import data_app
from lab.errors import BAD_INPUT, FAILED, INTERRUPTED, LabError
from lab.options import TASKS
from lab.project import ENGINES, open_project

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
app.add_typer(data_app, name="data")
cli_fast.add_commands(app)
cli_release.add_commands(app)


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
    quick: Annotated[bool, typer.Option("--quick", help="one epoch: whether it runs, not whether it learns")] = False,
) -> int:
    """Prove this machine: made-up pictures, training, validation, ONNX, detection, in about a minute. No network.

    Example: `lab smoke --engine yolov5u`
    """
    if engine and engine not in ENGINES:
        raise LabError(f"--engine {engine}: it may be {' or '.join(ENGINES)}")
    from lab import smoke as test  # noqa: PLC0415

    return test.main(open_project(), engine, keep, quick)


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


@app.command()
def preflight(
    nodes: Annotated[int, typer.Option(help="machines; the same command runs on each")] = 1,
    rdzv: Annotated[str, typer.Option(help="HOST:PORT where they meet, as for `lab train`")] = "",
    node_rank: Annotated[
        int | None, typer.Option(help="which of them this is, from 0  [default: as they arrive]", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="GPU numbers such as 0,1, or cpu  [default: all GPUs]", show_default=False)
    ] = "",
    ranks: Annotated[
        int, typer.Option(help="without GPUs: processes on each machine  [default: 2]", show_default=False)
    ] = 0,
    data: Annotated[
        str, typer.Option(help="the data set's yaml file  [default: from lab.yaml]", show_default=False)
    ] = "",
    timeout: Annotated[float, typer.Option(help="seconds in which all must have come")] = 60,
) -> int:
    """Before a training on several GPUs or machines: do all ranks meet, how fast, with the same code, data and torch?

    Exit status: 0 they may start, 1 a node is missing or differs. Example: `lab preflight --nodes 2 --rdzv gpu-a:29500`
    """
    from lab import preflight as check  # noqa: PLC0415
    from lab import rendezvous  # noqa: PLC0415

    given = {"nodes": nodes, "rdzv": rdzv, "node_rank": node_rank}
    project = open_project()
    place = rendezvous.meeting({key: value for key, value in given.items() if value not in ("", None)})
    return check.main(project, place, check.plan(project, data, device, ranks, timeout))


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="a run's directory or name; several are compared  [default: the newest]", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where to measure the checkpoint: GPU number, or cpu")] = "",
    no_val: Annotated[bool, typer.Option("--no-val", help="leave out what needs the checkpoint measured")] = False,
    out: Annotated[
        Path | None, typer.Option(help="the file to write  [default: in the run]", show_default=False)
    ] = None,
) -> int:
    """Write one HTML page about a run: how good, on what, what limited it, what to try next, how to repeat it.

    Example: `lab report runs/train/exp`, or `lab report exp exp2 exp3` side by side
    """
    from lab import report as page  # noqa: PLC0415

    return page.main(open_project(), runs or [], device or None, not no_val, out)


@app.command()
def watch(
    run: Annotated[
        str,
        typer.Argument(help="a run's directory or name  [default: the running or the newest one]", show_default=False),
    ] = "",
    interval: Annotated[float, typer.Option(help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="look once and end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object a line instead")] = False,
) -> int:
    """Watch a training: GPU, memory, power, clocks, PCIe, images/s, the wait for images, and what would make it faster.

    What it sees is in TensorBoard too, beside the run's curves. Ctrl-C ends this, not the training.
    Example: `lab watch exp`
    """
    from lab import watch as watching  # noqa: PLC0415

    return watching.main(open_project(), watching.Wish(run, once, as_json, interval))


@app.command()
def serve(
    weights: Annotated[
        str, typer.Option(help="an .onnx file of `lab export`  [default: the newest run's]", show_default=False)
    ] = "",
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets the network in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="a file with the token that callers must send  [default: $LAB_SERVE_TOKEN]", show_default=False
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu, or a GPU's number  [default: the GPU if onnxruntime can use it]", show_default=False),
    ] = "",
    img: Annotated[
        int | None, typer.Option(help="pixels, where the export left them open (--dynamic)", show_default=False)
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            help="most pictures in a batch, with --dynamic  [default: 8, on the CPU 1]",
            show_default=False,
        ),
    ] = 0,
    max_body: Annotated[float, typer.Option(min=0.001, max=1024, help="MiB of a request")] = 20,
    max_pixels: Annotated[float, typer.Option(min=0.001, max=1000, help="millions of a picture")] = 50,
    max_images: Annotated[int, typer.Option(min=1, max=1024, help="pictures of a request")] = 16,
    queue: Annotated[int, typer.Option(min=1, max=4096, help="pictures let in at once; more are told 429")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="seconds for a request")] = 30,
    log: Annotated[bool, typer.Option("--log", help="print a line for each request")] = False,
) -> int:
    """Serve an exported model: pictures in, boxes out as JSON, a page to try it at /, a description at /docs.

    Example: `lab serve --weights runs/train/exp/weights/best.onnx`, then
    `curl --form file=@picture.jpg http://127.0.0.1:8000/predict`
    """
    # OpenCV reads it when it is loaded; a second wall behind the look at the header
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(int(max_pixels * 1_000_000)))
    try:
        from lab import serve as service  # noqa: PLC0415
        from lab.serve_app import Limits  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise LabError(f"the package {error.name} is not in this image: choose 'Rebuild Container'") from error
    project = open_project()
    file = service.weights(project, weights)
    place = service.Place(host, port, service.token(token_file))
    limits = Limits(
        body=int(max_body * (1 << 20)), pixels=int(max_pixels * 1_000_000), images=min(max_images, queue),
        timeout=timeout, room=queue,
    )  # fmt: skip
    return service.main(project, file, place, limits, device, img, batch, log)
