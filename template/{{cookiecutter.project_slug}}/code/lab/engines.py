"""The two engines behind one interface: a prepared command becomes a call of a child script."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from lab import devices, rendezvous, upstream
from lab.errors import FAILED, LabError
from lab.options import OURS, TASKS, command_line
from lab.project import CODE, Project


@dataclass(frozen=True)
class Prepared:
    """A command with everything resolved: paths absolute and checked, the run's directory made.

    `options` are YOLOv5's, by key; `weights` and `cfg` stand apart, "" and None mean none.
    """

    task: str
    options: dict[str, Any]
    weights: list[str]
    cfg: str | None
    run: Path | None
    speed: dict[str, Any] = field(default_factory=dict)  # a lab.fast.plan.Speed; {} is the engine's own way


@dataclass(frozen=True)
class Call:
    """What a child process does: `script` with the request `payload`, in `processes` ranks a node of `meeting`."""

    script: Path
    payload: dict[str, Any]
    processes: int = 1
    meeting: rendezvous.Meeting = field(default_factory=rendezvous.Meeting)


class Engine(Protocol):
    """What `lab` needs of an engine."""

    name: str

    def require(self, project: Project) -> str | None:
        """Raises LabError when the engine cannot run; returns a warning, if there is one."""

    def model(self, name: str, project: Project) -> str:
        """The model yaml that `--cfg name` means. Raises LabError."""

    def refuse(self, task: str, options: dict[str, Any]) -> None:
        """Raises LabError for an option that this engine does not have."""

    def call(self, prepared: Prepared, project: Project) -> Call:
        """The call that does what `prepared` says."""


class Yolov5:
    """The original repository at the pinned commit, in code/yolov5."""

    name = "yolov5"

    def require(self, project: Project) -> str | None:
        """See Engine."""
        if not upstream.present(project.upstream):
            raise LabError("YOLOv5's source is not here yet: run `lab fetch`, or use --engine yolov5u")
        spoilt = upstream.changed(project.upstream)
        if not spoilt:
            return None
        gone = [name for name in spoilt if not (project.upstream / name).exists()]
        if gone:
            place = project.show(project.upstream)
            raise LabError(f"{place} lacks {', '.join(gone[:3])}: remove the directory and run `lab fetch`")
        return (
            f"{project.show(project.upstream)} differs from the pinned commit in {', '.join(spoilt[:3])}; "
            "results may too. To undo it, remove the directory and run `lab fetch`"
        )

    def model(self, name: str, project: Project) -> str:
        """See Engine."""
        own = project.find(name)
        if own is not None:
            return str(own)
        if (project.upstream / name).is_file():  # models/yolov5s.yaml, as tutorials have it
            return str(project.upstream / name)
        for file in sorted((project.upstream / "models").rglob("*.yaml")):
            if file.name == name:
                return str(file)
        raise LabError(f"the model yaml {name} does not exist here or in {project.show(project.upstream)}/models")

    def refuse(self, task: str, options: dict[str, Any]) -> None:
        """See Engine."""
        for key in ("entity", "upload_dataset", "bbox_interval"):
            if key in options:
                raise LabError(f"--{key} belongs to a logger that is not used here: set `logger` in lab.yaml instead")
        nodes = rendezvous.meeting(options).nodes if task == "train" else 1
        ranks = nodes * len(str(options.get("device", "")).split(","))
        if task != "train" or ranks < 2:
            return
        for key in ("evolve", "image_weights"):
            if key in options:
                mend = "leave out --nodes" if nodes > 1 else "give --device 0"
                raise LabError(f"--{key.replace('_', '-')} works on one GPU only: {mend}")
        batch = int(options.get("batch_size", 16))
        if batch == -1 and nodes > 1:
            raise LabError(
                "--batch auto measures the GPUs of one machine: with --nodes give the --batch of all GPUs together"
            )
        if batch % ranks and batch != -1:  # -1 is measured before the engine sees it, as a multiple
            raise LabError(f"--batch {batch} is not a multiple of {ranks} GPUs: use {batch - batch % ranks or ranks}")

    def call(self, prepared: Prepared, project: Project) -> Call:
        """See Engine. More GPUs than one get a process each: DataParallel, YOLOv5's way otherwise, is slower."""
        options = dict(prepared.options)
        if prepared.task == "train":
            options |= {"weights": prepared.weights[0] if prepared.weights else "", "cfg": prepared.cfg or ""}
            if "resume" in options:
                options = {"resume": options["resume"]}
        else:
            options["weights"] = prepared.weights
        if "device" in options:
            options["device"] = devices.positions(str(options["device"]))
        if prepared.run is not None and "resume" not in options:
            options |= {"project": str(prepared.run.parent), "name": prepared.run.name, "exist_ok": True}
        payload: dict[str, Any] = {
            "upstream": str(project.upstream),
            "task": prepared.task,
            "arguments": command_line(prepared.task, options),
            "gpus": gpus_of(prepared),
        }
        if prepared.task != "train":
            return Call(CODE / "lab" / "run_yolov5.py", payload)
        payload["speed"] = prepared.speed
        ranks = len(str(prepared.options.get("device", "")).split(","))
        return Call(CODE / "lab" / "run_yolov5.py", payload, ranks, rendezvous.meeting(prepared.options))


class Yolov5u:
    """The ultralytics package with its yolov5{n,s,m,l,x}[6]u models."""

    name = "yolov5u"

    def require(self, project: Project) -> str | None:  # noqa: ARG002
        """See Engine. The package is part of the image."""
        return None

    def model(self, name: str, project: Project) -> str:
        """See Engine. yolov5n6.yaml and yolov5n6u.yaml are both the package's yolov5n-p6.yaml."""
        own = project.find(name)
        if own is not None:
            return str(own)
        known = re.fullmatch(r"yolov5([nsmlx])(6?)u?\.yaml", Path(name).name)
        if not known:
            raise LabError(f"the model yaml {name} does not exist: yolov5u has yolov5n.yaml, s, m, l, x, and with a 6")
        return f"yolov5{known[1]}{'-p6' if known[2] else ''}.yaml"

    def refuse(self, task: str, options: dict[str, Any]) -> None:
        """See Engine."""
        for key, instead in LACKS[task].items():
            if key in options:
                name = next(option.name for option in TASKS[task] if option.key == key)
                raise LabError(f"engine yolov5u has no {name}: {instead}")
        if options.get("nodes", 1) != 1:  # its trainer takes the GPUs of one machine for all ranks there are
            raise LabError("engine yolov5u trains on the GPUs of one machine: give --engine yolov5 with --nodes")
        if options.get("task") in ("speed", "study"):
            raise LabError(f"engine yolov5u has no --task {options['task']}: use --engine yolov5")
        for wanted in options.get("include", []):
            if wanted not in FORMATS:
                raise LabError(f"engine yolov5u has no format {wanted}: it has {', '.join(sorted(FORMATS))}")

    def call(self, prepared: Prepared, project: Project) -> Call:  # noqa: ARG002
        """See Engine. The package starts its own processes for more GPUs."""
        arguments = translate(prepared)
        payload = {
            "task": prepared.task,
            "weights": prepared.weights[0] if prepared.weights else "",
            "cfg": prepared.cfg,
            "arguments": arguments,
            "gpus": gpus_of(prepared),
            "speed": prepared.speed,
            "formats": prepared.options.get("include", ["torchscript"]) if prepared.task == "export" else [],
        }
        return Call(CODE / "lab" / "run_yolov5u.py", payload)


ENGINES: dict[str, Engine] = {"yolov5": Yolov5(), "yolov5u": Yolov5u()}

FORMATS = {"torchscript", "onnx", "openvino", "engine", "coreml", "saved_model", "pb", "edgetpu", "paddle"}

_ALONE = "use --engine yolov5 for it"
_LOGGER = "leave it out; `logger` in lab.yaml names an experiment tracker, and curves are in TensorBoard"
# What yolov5u does not have, and what to do instead. Refused by name, because an option that is quietly dropped
# changes an experiment.
LACKS: dict[str, dict[str, str]] = {
    "train": {
        "evolve": _ALONE,
        "evolve_population": _ALONE,
        "resume_evolve": _ALONE,
        "bucket": _ALONE,
        "image_weights": "give `cls_pw: 1.0` in the --hyp file, which weights classes by their rarity",
        "quad": "use a larger --batch",
        "sync_bn": "use a larger --batch for each GPU",
        "noautoanchor": "it has no anchors, leave it out",
        "label_smoothing": _ALONE,
        "entity": _LOGGER,
        "upload_dataset": _LOGGER,
        "bbox_interval": _LOGGER,
    },
    "val": {"save_hybrid": "use --save-txt"},
    "detect": {
        "save_csv": "use --save-txt --save-conf",
        "save_format": "use --save-txt, which writes YOLO's format",
        "update": "its checkpoints are already stripped",
        "data": "its exported models carry the class names",
    },
    "export": {
        "keras": _ALONE,
        "inplace": "it exports in place anyway, leave it out",
        "per_tensor": _ALONE,
        "mlmodel": "use --include coreml, which writes .mlpackage",
        "topk_per_class": _ALONE,
        "topk_all": _ALONE,
        "cache": "it keeps no timing file, leave it out",
        "verbose": "it has one level of detail, leave it out",
        "optimize": "TorchScript needs nothing of it, leave it out",
    },
}

# YOLOv5's name -> ultralytics' name, where only the name differs
RENAMED = {
    "batch_size": "batch",
    "conf_thres": "conf",
    "iou_thres": "iou",
    "view_img": "show",
    "line_thickness": "line_width",
    "task": "split",
}
NEGATED = {"noval": "val", "noplots": "plots", "nosave": "save", "hide_labels": "show_labels", "hide_conf": "show_conf"}
# translated by hand, or `lab`'s own
APART = frozenset(("weights", "cfg", "include", "hyp", "project", "name", "exist_ok", *OURS))

# Hyper-parameters that mean the same in both engines. The loss gains do not: YOLOv5's loss has objectness and anchors,
# yolov5u's has neither, and the numbers are on another scale.
SHARED_HYP = frozenset(
    [
        "lr0",
        "lrf",
        "momentum",
        "weight_decay",
        "warmup_epochs",
        "warmup_momentum",
        "warmup_bias_lr",
        "hsv_h",
        "hsv_s",
        "hsv_v",
        "degrees",
        "translate",
        "scale",
        "shear",
        "perspective",
        "flipud",
        "fliplr",
        "mosaic",
        "mixup",
        "copy_paste",
    ]
)
YOLOV5_HYP = frozenset(["box", "cls", "cls_pw", "obj", "obj_pw", "iou_t", "anchor_t", "anchors", "fl_gamma"])


def gpus_of(prepared: Prepared) -> str:
    """The GPUs that the child shows CUDA, all others hidden; "" leaves what is to be seen."""
    device = str(prepared.options.get("device", ""))
    return device if devices.named(device) else ""


def translate(prepared: Prepared) -> dict[str, Any]:
    """YOLOv5's options as arguments of the ultralytics package."""
    arguments: dict[str, Any] = {}
    for key, value in prepared.options.items():
        if key in APART:
            continue
        if key in NEGATED:
            arguments[NEGATED[key]] = False
        else:
            arguments[RENAMED.get(key, key)] = _value(key, value)
    if arguments.pop("half", False):
        arguments["quantize"] = 16
    if arguments.pop("int8", False):
        arguments["quantize"] = 8
    if arguments.get("freeze", 1) == 0:
        del arguments["freeze"]
    if prepared.task == "val":
        arguments.setdefault("verbose", False)
    if "hyp" in prepared.options:
        arguments |= hyper_parameters(Path(prepared.options["hyp"]))
        # its `optimizer: auto` would replace lr0 and momentum by its own guess; YOLOv5's default is SGD
        arguments.setdefault("optimizer", "SGD")
    if prepared.run is not None:
        arguments |= {"project": str(prepared.run.parent), "name": prepared.run.name, "exist_ok": True}
    elif prepared.task == "export":
        arguments.pop("project", None)
    return arguments


def _value(key: str, value: Any) -> Any:
    if key == "multi_scale":
        return 0.5  # YOLOv5's --multi-scale: plus and minus half
    if key == "save_period":
        return value
    if key == "device":
        return devices.positions(str(value))
    if isinstance(value, list) and len(value) == 1 and key in ("imgsz", "freeze"):
        return value[0]
    return value


def left_out(hyp: Path) -> list[str]:
    """Keys of a YOLOv5 hyper-parameter file that yolov5u does not take over."""
    return sorted(set(_hyp(hyp)) - set(hyper_parameters(hyp)))


def hyper_parameters(hyp: Path) -> dict[str, Any]:
    """The keys of a hyper-parameter file that yolov5u takes over.

    A file with `obj` or `anchor_t` is YOLOv5's: only what means the same is taken. Any other file is in ultralytics'
    own terms and goes through whole.
    """
    said = _hyp(hyp)
    if not {"obj", "anchor_t"} & set(said):
        return said
    return {key: value for key, value in said.items() if key in SHARED_HYP or key not in YOLOV5_HYP}


def _hyp(hyp: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(hyp.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{hyp} cannot be read: {' '.join(str(error).split())}", FAILED) from error
    if not isinstance(said, dict):
        raise LabError(f"{hyp} must hold `name: number` lines, such as `lr0: 0.01`")
    return {str(key): value for key, value in said.items()}
