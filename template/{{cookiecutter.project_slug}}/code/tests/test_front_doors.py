"""train.py, val.py, detect.py and export.py, typed as in any YOLOv5 tutorial."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_container import environment

from lab import cli, help, upstream
from lab.engines import LACKS
from lab.options import TASKS, parse
from lab.project import CODE, ENGINES, Project

# Each line runs after the ones above it. What a tutorial has and one engine lacks is refused by name, see below.
TUTORIAL = """
train.py --weights '' --cfg yolov5n.yaml --data data/demo/data.yaml --img 64 --batch 8 --epochs 2 --device cpu --workers 2
train.py --weights '' --cfg models/yolov5n.yaml --data data/demo/data.yaml --img 64 --batch-size 8 --epochs 1 --cache ram --noplots --noval
train.py --img 64 --batch -1 --epochs 1 --data data/demo/data.yaml --weights runs/train/exp/weights/best.pt --freeze 10 --noplots --project runs/train --name finetune
val.py --weights runs/train/exp/weights/best.pt --data data/demo/data.yaml --img 64 --iou 0.65 --half --task val --verbose
val.py --weights runs/train/exp/weights/best.pt --data data/demo/data.yaml --imgsz 64 --batch-size 4 --augment --save-txt --save-conf
detect.py --weights runs/train/exp/weights/best.pt --source data/demo/images/val --img 64 --conf 0.25 --save-txt --save-crop --classes 0 2
detect.py --weights runs/train/exp/weights/best.pt --source data/demo/images/val/000000.jpg --imgsz 64 96 --conf-thres 0.4 --iou-thres 0.5 --max-det 10 --nosave
export.py --weights runs/train/exp/weights/best.pt --include onnx torchscript --img 64
val.py --weights runs/train/exp/weights/best.onnx --data data/demo/data.yaml --img 64
detect.py --weights runs/train/exp/weights/best.onnx --source data/demo/images/val --img 64
detect.py --weights runs/train/exp/weights/best.torchscript --source data/demo/images/val --img 64
export.py --weights runs/train/exp/weights/best.pt --include onnx --img 64 --dynamic --simplify --opset 17
"""  # noqa: E501
REFUSED = {
    "yolov5": (
        "train.py --img 640 --batch -1 --epochs 3 --data data/demo/data.yaml --weights yolov5n.pt --device 0,1",
        "train.py --img 640 --batch 64 --data data/demo/data.yaml --weights '' --cfg yolov5n.yaml --device 0,1,2,3",
    ),
    "yolov5u": (
        "train.py --img 640 --epochs 3 --data data/demo/data.yaml --weights '' --cfg yolov5n.yaml --evolve",
        "train.py --img 640 --epochs 3 --data data/demo/data.yaml --weights '' --cfg yolov5n.yaml --image-weights",
        "val.py --weights x.pt --data data/demo/data.yaml --task speed",
    ),
}


def run(line: str, log: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script, *words = shlex.split(line)
    return subprocess.run(
        [sys.executable, str(CODE / script), *words, *more],
        env=environment(log),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_the_commands_of_a_tutorial(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    log = tmp_path / "network.log"
    for line in TUTORIAL.strip().splitlines():
        done = run(line, log, "--engine", engine)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stdout + done.stderr, line
    for line in REFUSED[engine]:
        done = run(line, log, "--engine", engine)
        assert done.returncode == 2, line
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("lab: ")
    reached = [entry for entry in log.read_text().splitlines() if "loopback-" not in entry] if log.exists() else []
    assert reached == []


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_the_tutorials_command_for_several_gpus(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    train = f"train.py --engine {engine} --weights '' --cfg yolov5n.yaml --img 64 --batch 8 --epochs 1 --noplots"
    for line, status, said in (
        (
            f"-m torch.distributed.run --nproc_per_node 1 {train} --workers 0 --device cpu",
            0,
            "results are in runs/train",
        ),
        (f"-m torch.distributed.run --nproc_per_node 2 {train} --device 0,1", 1, "no such GPU in this container"),
    ):
        words = [str(CODE / word) if word == "train.py" else word for word in shlex.split(line)]
        done = subprocess.run(
            [sys.executable, *words], env=environment(tmp_path / "log"), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr[-2000:]
        ours = [line for line in done.stderr.splitlines() if line.startswith("lab: ")]
        assert said in ours[-1], done.stderr
    assert [run.name for run in (project.runs / "train").iterdir()] == ["exp"]


def test_the_tutorial_is_understood_as_yolov5_would() -> None:
    for line in [*TUTORIAL.strip().splitlines(), *REFUSED["yolov5"], *REFUSED["yolov5u"]]:
        script, *words = shlex.split(line)
        assert parse(script.removesuffix(".py"), words).given


def test_the_examples_of_the_help_are_understood() -> None:
    for task, examples in help.EXAMPLES.items():
        for example in examples:
            _, said, *words = shlex.split(example)
            assert said == task
            assert parse(task, words).given


@pytest.mark.container
@pytest.mark.parametrize("task", TASKS)
def test_no_option_of_upstream_is_unknown(task: str) -> None:
    """Every option that the pinned scripts add is in our table, under the same name."""
    script = CODE / "yolov5" / f"{task}.py"
    if not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    import ast

    added = {
        word.value
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for word in node.args
        if isinstance(word, ast.Constant) and str(word.value).startswith("--")
    }
    ours = {name for option in TASKS[task] for name in (option.name, *option.aliases)}
    assert added - ours - {"--local_rank"} == set()  # torchrun's own, no option of a person


def test_what_an_engine_lacks_is_an_option_of_the_other() -> None:
    for task, lacks in LACKS.items():
        assert set(lacks) <= {option.key for option in TASKS[task]}


@pytest.mark.skipif(os.name != "posix", reason="the container is Linux")
def test_output_that_nobody_reads_is_no_traceback(project: Project) -> None:
    """`lab train --help | head -1`."""
    program = f"'{sys.executable}' '{CODE / 'train.py'}' --help | head -1"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("lab train")
    assert "Traceback" not in done.stderr
    assert cli.main(["train", "--help"]) == 0
