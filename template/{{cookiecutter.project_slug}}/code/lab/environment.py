"""The environment of a child process: no network, fonts at hand, our own code out of the way."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from lab.limits import processors
from lab.project import CODE, Project
from lab.weights import TRUST

# What would touch the network in YOLOv5 and ultralytics, and its switch.
OFFLINE = {
    "YOLO_OFFLINE": "true",  # look-ups at import, update checks, analytics
    "YOLO_AUTOINSTALL": "false",  # pip install of missing packages
    "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "1",  # the check that would start it (ours is the headless OpenCV)
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "CLEARML_OFFLINE_MODE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
}
FONTS = ("Arial.ttf", "Arial.Unicode.ttf")  # both engines fetch these when they are not in their directory


def child_environment(project: Project, scratch: Path) -> dict[str, str]:
    """Environment for a child of either engine; its fonts and settings are written below `scratch`."""
    settings = scratch / "config" / "Ultralytics"  # ultralytics appends this name itself, YOLOv5 does not
    settings.mkdir(parents=True)
    for font in FONTS:
        (settings / font).symlink_to(_dejavu())
    (settings / "settings.json").write_text(json.dumps(_settings(project, scratch)), encoding="utf-8")
    environment = {
        **os.environ,
        **OFFLINE,
        # ultralytics' own list of what a checkpoint may hold, beside ours (lab.pickles); from torch 2.6 on
        "ULTRALYTICS_SAFE_LOAD": "false" if os.environ.get(TRUST) else "true",
        "YOLO_CONFIG_DIR": str(settings.parent),
        "YOLOV5_CONFIG_DIR": str(settings),
        "YOLOv5_DATASETS_DIR": str(project.root / "data"),
        "PYTHONUNBUFFERED": "1",
    }
    environment.setdefault("OMP_NUM_THREADS", str(processors()))
    if not os.access(Path.home(), os.W_OK):
        environment.setdefault("MPLCONFIGDIR", str(scratch))
    paths = [path for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != CODE]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _dejavu() -> Path:
    """DejaVu Sans as matplotlib brings it: covers Latin, Greek, Cyrillic; its licence allows the use."""
    found = importlib.util.find_spec("matplotlib")
    assert found and found.origin, "matplotlib belongs to the image"
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def _settings(project: Project, scratch: Path) -> dict[str, object]:
    """Settings of ultralytics, all keys of its schema 0.0.8, so that it neither warns nor writes."""
    return {
        "settings_version": "0.0.8",
        "datasets_dir": str(project.root / "data"),
        "weights_dir": str(scratch / "weights"),
        "runs_dir": str(project.runs),
        "uuid": "0" * 64,
        "sync": False,
        "api_key": "",
        "openai_api_key": "",
        "clearml": False,
        "comet": False,
        "dvc": False,
        "mlflow": False,
        "raytune": False,
        "tensorboard": True,
        "wandb": False,
        "vscode_msg": False,
        "openvino_msg": False,
    }
