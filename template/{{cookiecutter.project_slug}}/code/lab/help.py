"""`lab TASK --help`: the options table, from the same data that parses them."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.options import FLAG, MANY, MAYBE, TASKS, Option

EXAMPLES = {
    "train": (
        "lab train --epochs 10",
        "lab train --img 640 --batch 64 --epochs 100 --data custom.yaml --weights yolov5s.pt --device 0 --cache ram",
        "lab train --weights '' --cfg yolov5n.yaml --data data/demo/data.yaml --hyp hyp.small.yaml --optimizer AdamW",
        "lab train --resume runs/train/exp/weights/last.pt",
    ),
    "val": ("lab val --weights runs/train/exp/weights/best.pt --data data/demo/data.yaml --verbose",),
    "detect": ("lab detect --weights runs/train/exp/weights/best.pt --source data/demo/images/val",),
    "export": ("lab export --weights runs/train/exp/weights/best.pt --include onnx",),
}
ABOUT = {
    "train": "Train a model.",
    "val": "Measure a checkpoint on a data set.",
    "detect": "Draw boxes on pictures or videos.",
    "export": "Write a checkpoint in another format.",
}


def print_help(task: str) -> None:
    """Print what the task does, examples, and one line an option."""
    console = Console()
    console.print(f"[bold]lab {task}[/] OPTIONS\n\n{ABOUT[task]} The options are YOLOv5's own.\n")
    for example in EXAMPLES[task]:
        console.print(f"  {escape(example)}", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("option", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    table.add_column("default", overflow="fold")
    for option in TASKS[task]:
        table.add_row(escape(_spelling(option)), escape(_meaning(option)), escape(option.default))
    console.print()
    console.print(table)


def _spelling(option: Option) -> str:
    value = {FLAG: "", MAYBE: f" [{_word(option)}]", MANY: f" {_word(option)} …"}.get(option.takes, f" {_word(option)}")
    return option.name + ("" if option.const is True else value)


def _word(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    return {int: "N", float: "X"}.get(option.type, "TEXT")


def _meaning(option: Option) -> str:
    return option.help + (f" (also {', '.join(option.aliases)})" if option.aliases else "")
