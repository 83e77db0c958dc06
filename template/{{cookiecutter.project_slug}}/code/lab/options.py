"""YOLOv5's own command-line options, as data: one line an option, for `--help`, for parsing and for both engines."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lab import rendezvous
from lab.errors import LabError
from lab.fast import switches
from lab.project import ENGINES

FLAG, ONE, MAYBE, MANY = "flag", "one", "maybe", "many"  # takes no value, one, one or none, one or more


@dataclass(frozen=True)
class Option:
    """One option. `default` is what the help shows; an absent option stays absent, the engine's own default applies."""

    name: str
    help: str
    aliases: tuple[str, ...] = ()
    takes: str = ONE
    type: Any = str  # makes the value out of a word
    default: str = ""
    const: Any = None  # the value of a MAYBE option given without one
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The option's name in Python, such as `batch_size`."""
        return self.name.lstrip("-").replace("-", "_")


def flag(name: str, help: str) -> Option:
    """An option without a value."""
    return Option(name, help, takes=FLAG)


def images(word: str) -> int:
    """A number of images; -1 for `auto`, as in YOLOv5."""
    return -1 if word == "auto" else int(word)


IMAGE_SIZES = ("--img", "--img-size", "--image-size")
ENGINE = Option("--engine", "which YOLOv5: the original repository, or the ultralytics package", choices=ENGINES)
DEVICE = Option(
    "--device", "GPUs by number, such as 0 or 0,1,2,3, or by UUID; or cpu", default="the first GPU, else cpu"
)
NAME = Option("--name", "directory of this run inside --project; a number is added when it exists", default="exp")
EXIST_OK = flag("--exist-ok", "write into an existing run directory instead of counting up")
SPEED = frozenset(("plain", "tuned", "with", "without", "val_period"))  # how fast; see lab/fast
OURS = frozenset(("engine", *rendezvous.OPTIONS, *SPEED))  # `lab` itself acts on them, YOLOv5 does not know them
CONF = ("--conf",)
IOU = ("--iou",)

TRAIN = (
    ENGINE,
    Option("--data", "the data set's yaml file", default="from lab.yaml"),
    Option("--weights", "checkpoint to start from; '' starts from scratch", default="the model of lab.yaml"),
    Option("--cfg", "model yaml, such as yolov5n.yaml, to start from scratch or to change the model"),
    Option("--imgsz", "image size in pixels, a multiple of 32", IMAGE_SIZES, type=int, default="from lab.yaml"),
    Option("--batch-size", "images a step, over all GPUs; auto fills them", ("--batch",), type=images, default="16"),
    Option("--epochs", "passes over the training images", type=int, default="100"),
    Option("--hyp", "yaml file of hyper-parameters, such as configs/hyp.small.yaml", default="the engine's own"),
    Option(
        "--resume",
        "go on with an interrupted run: the newest, or the one named",
        takes=MAYBE,
        const=True,
    ),
    DEVICE,
    Option("--nodes", "machines that train together; the same command runs on each", type=int, default="1"),
    Option("--rdzv", "HOST:PORT where they meet: an address of one of them, which becomes node 0"),
    Option("--node-rank", "which of them this is, from 0", ("--node_rank",), type=int, default="as they arrive"),
    Option("--workers", "processes that load images, for each GPU", type=int, default="8, fewer on few processors"),
    Option("--cache", "keep images in ram or on disk", takes=MAYBE, const="ram", choices=("ram", "disk")),
    Option("--optimizer", "SGD, Adam or AdamW", choices=("SGD", "Adam", "AdamW"), default="SGD"),
    Option("--patience", "epochs without progress before stopping", type=int, default="100"),
    Option("--freeze", "freeze the first N layers, or the layers listed", takes=MANY, type=int, default="0"),
    Option("--save-period", "also keep a checkpoint every N epochs", type=int, default="never"),
    Option("--seed", "seed of all random numbers", type=int, default="0"),
    Option("--label-smoothing", "soften the class targets by this much", type=float, default="0"),
    flag("--cos-lr", "let the learning rate fall along a cosine"),
    flag("--rect", "rectangular batches instead of mosaics"),
    flag("--multi-scale", "vary the image size by half"),
    flag("--single-cls", "treat all classes as one"),
    flag("--image-weights", "draw images of badly learnt classes more often"),
    flag("--quad", "batches of four stitched images"),
    flag("--sync-bn", "batch normalisation over all GPUs"),
    flag("--noautoanchor", "keep the anchors of the model yaml"),
    flag("--noval", "validate after the last epoch only"),
    Option("--val-period", "validate every K epochs, and after the last", type=int, default="1"),
    flag("--plain", "images and training step exactly as the engine has them"),
    flag("--tuned", "the settings that `lab tune` measured here; options given beside it win"),
    Option("--with", f"turn on, separated by commas: {', '.join((*switches.DATA_PATHS, *switches.NAMES))}"),
    Option("--without", "turn off, likewise", default="nothing"),
    flag("--nosave", "save the last checkpoint only"),
    flag("--noplots", "draw no plots"),
    Option("--evolve", "search hyper-parameters for N generations", takes=MAYBE, type=int, const=300),
    Option("--evolve_population", "directory of hyper-parameter files to breed from", ("--evolve-population",)),
    Option("--resume_evolve", "go on with an evolution: its evolve.csv", ("--resume-evolve",)),
    Option("--bucket", "Google Cloud bucket for an evolution's results"),
    Option("--project", "directory of the runs", default="runs/train"),
    NAME,
    EXIST_OK,
    Option("--entity", "account of the experiment logger"),
    Option("--upload_dataset", "send the data set to the experiment logger", takes=MAYBE, const=True),
    Option("--bbox_interval", "epochs between logged boxes", type=int, default="never"),
)

VAL = (
    ENGINE,
    Option("--weights", "checkpoint or exported model to measure", takes=MANY, default="the model of lab.yaml"),
    Option("--data", "the data set's yaml file", default="from lab.yaml"),
    Option("--imgsz", "image size in pixels", IMAGE_SIZES, type=int, default="from lab.yaml"),
    Option("--batch-size", "images a step", ("--batch",), type=int, default="32"),
    Option("--conf-thres", "smallest confidence that counts", CONF, type=float, default="0.001"),
    Option("--iou-thres", "overlap from which two boxes are one", IOU, type=float, default="0.6, yolov5u 0.7"),
    Option("--max-det", "most boxes in one image", type=int, default="300"),
    Option("--task", "which images", choices=("train", "val", "test", "speed", "study"), default="val"),
    DEVICE,
    Option("--workers", "processes that load images", type=int, default="8, fewer on few processors"),
    flag("--single-cls", "treat all classes as one"),
    flag("--augment", "average over flipped and scaled copies"),
    flag("--verbose", "one line for each class"),
    flag("--save-txt", "write the boxes as text"),
    flag("--save-hybrid", "write labels and boxes together as text"),
    flag("--save-conf", "with --save-txt: write the confidences too"),
    flag("--save-json", "write the boxes as COCO JSON"),
    flag("--half", "half precision, on a GPU"),
    flag("--dnn", "run ONNX files with OpenCV"),
    Option("--project", "directory of the runs", default="runs/val"),
    NAME,
    EXIST_OK,
)

DETECT = (
    ENGINE,
    Option("--weights", "checkpoint or exported model", takes=MANY, default="the model of lab.yaml"),
    Option("--source", "picture, video, directory, 'pattern*', URL or camera number", default="the engine's samples"),
    Option("--data", "a data set's yaml file, for the class names of an exported model"),
    Option("--imgsz", "image size in pixels, or height and width", IMAGE_SIZES, MANY, int, "from lab.yaml"),
    Option("--conf-thres", "smallest confidence that counts", CONF, type=float, default="0.25"),
    Option("--iou-thres", "overlap from which two boxes are one", IOU, type=float, default="0.45, yolov5u 0.7"),
    Option("--max-det", "most boxes in one image", type=int, default="1000, yolov5u 300"),
    DEVICE,
    flag("--view-img", "show the pictures in a window"),
    flag("--save-txt", "write the boxes as text"),
    Option("--save-format", "with --save-txt: 0 YOLO, 1 Pascal VOC", type=int, default="0"),
    flag("--save-csv", "write the boxes as CSV"),
    flag("--save-conf", "with --save-txt: write the confidences too"),
    flag("--save-crop", "cut the boxes out"),
    flag("--nosave", "write no pictures"),
    Option("--classes", "keep these class numbers only", takes=MANY, type=int),
    flag("--agnostic-nms", "merge overlapping boxes of different classes too"),
    flag("--augment", "average over flipped and scaled copies"),
    flag("--update", "strip the optimiser from the checkpoint"),
    Option("--line-thickness", "width of the boxes' lines in pixels", type=int, default="3"),
    flag("--hide-labels", "draw no class names"),
    flag("--hide-conf", "draw no confidences"),
    flag("--half", "half precision, on a GPU"),
    flag("--dnn", "run ONNX files with OpenCV"),
    Option("--vid-stride", "use every Nth frame of a video", type=int, default="1"),
    Option("--project", "directory of the runs", default="runs/detect"),
    NAME,
    EXIST_OK,
)

EXPORT = (
    ENGINE,
    Option("--weights", "checkpoint to export", takes=MANY, default="the model of lab.yaml"),
    Option("--include", "formats, such as onnx torchscript openvino engine", takes=MANY, default="torchscript"),
    Option("--imgsz", "image size in pixels, or height and width", IMAGE_SIZES, MANY, int, "from lab.yaml"),
    Option("--batch-size", "images a step", ("--batch",), type=int, default="1"),
    Option("--device", "GPU number, or cpu", default="cpu"),
    Option("--data", "a data set's yaml file, to calibrate --int8"),
    Option("--opset", "ONNX operator set", type=int, default="17, yolov5u the newest that fits"),
    flag("--half", "half precision"),
    flag("--int8", "eight-bit integers, where the format has them"),
    flag("--dynamic", "let the batch and the image size vary"),
    flag("--simplify", "simplify the ONNX graph; yolov5u always does"),
    flag("--nms", "put non-maximum suppression into the model, where the format has it"),
    flag("--agnostic-nms", "with --nms: over all classes together"),
    Option("--conf-thres", "with --nms: smallest confidence that counts", CONF, type=float, default="0.25"),
    Option("--iou-thres", "with --nms: overlap from which two boxes are one", IOU, type=float, default="0.45"),
    Option("--workspace", "TensorRT: working memory in GB", type=int, default="4"),
    Option("--cache", "TensorRT: file that keeps the timings"),
    flag("--verbose", "TensorRT: say more"),
    flag("--optimize", "TorchScript: optimise for phones"),
    flag("--inplace", "compute the detection layer in place"),
    flag("--keras", "TensorFlow: use Keras"),
    flag("--per-tensor", "TensorFlow: one scale a tensor"),
    flag("--mlmodel", "CoreML: write the older .mlmodel"),
    Option("--topk-per-class", "TensorFlow.js: most boxes of one class", type=int, default="100"),
    Option("--topk-all", "TensorFlow.js: most boxes of all classes", type=int, default="100"),
)

TASKS: dict[str, tuple[Option, ...]] = {"train": TRAIN, "val": VAL, "detect": DETECT, "export": EXPORT}


@dataclass(frozen=True)
class Request:
    """A parsed command: the task and the options that were really given, by key (`batch_size`)."""

    task: str
    given: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value given for `key`, else `default`."""
        return self.given.get(key, default)

    def with_options(self, **more: Any) -> Request:
        """The same command with `more` options given."""
        return Request(self.task, {**self.given, **more})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message.removeprefix('argument ')} (`{self.prog} --help` lists the options)")


def parse(task: str, arguments: Sequence[str]) -> Request:
    """Read `arguments` as YOLOv5's own scripts would: long options, unambiguous beginnings of them, `--name=value`.

    Raises LabError for an unknown option (with the nearest spelling), a missing or a wrong value.
    """
    options = TASKS[task]
    parser = _Parser(prog=f"lab {task}", add_help=False, argument_default=argparse.SUPPRESS)
    for option in options:
        parser.add_argument(option.name, *option.aliases, dest=option.key, **_arguments(option))
    given, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise LabError(f"{_explain(unknown, options)} (`lab {task} --help` lists the options)")
    return Request(task, vars(given))


def _arguments(option: Option) -> dict[str, Any]:
    if option.takes == FLAG:
        return {"action": "store_true"}
    arguments: dict[str, Any] = {"type": option.type}
    if option.choices:
        arguments["choices"] = option.choices
    if option.takes == MANY:
        arguments["nargs"] = "+"
    if option.takes == MAYBE:
        arguments.update(nargs="?", const=option.const)
    return arguments


def _explain(unknown: list[str], options: tuple[Option, ...]) -> str:
    strange = next((word for word in unknown if word.startswith("--")), unknown[0])
    if not strange.startswith("-"):
        return f"{strange!r} belongs to no option"
    spellings = [name for option in options for name in (option.name, *option.aliases)]
    word = strange.split("=")[0].replace("_", "-")
    near = difflib.get_close_matches(word, spellings, n=1, cutoff=0.6)
    return f"there is no option {strange.split('=')[0]}" + (f"; did you mean {near[0]}?" if near else "")


def command_line(task: str, given: dict[str, Any], left_out: frozenset[str] = OURS) -> list[str]:
    """Options back as arguments of YOLOv5's own script `task`.py; those that are ours, see OURS, left out."""
    words: list[str] = []
    for option in TASKS[task]:
        if option.key not in given or option.key in left_out:
            continue
        value = given[option.key]
        words.append(option.name)
        if option.takes == FLAG or value is True:
            continue
        words += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return words
