"""What each technique of the step brings: a YOLOv5 training step without it and with it, in turn, in one process.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/switches.py --result /benchmarks/results/switches-cpu.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). A step is forward, loss, backward, clipping,
optimizer and average of the weights, on one batch of random pictures that lies on the device. For each technique two
steps alternate, so that what else the machine does hits both; the gain is the median of the ratios within pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

WARM = 3  # steps of each before they count
LABELS = 6  # a picture


def step_of(parts: Any, model_name: str, device: Any, images: Any, targets: Any, amp: bool) -> Callable[[], None]:
    """A training step as YOLOv5's train.py does it, made of what its modules hold at this moment."""
    import torch  # noqa: PLC0415
    from models.yolo import Model  # noqa: PLC0415
    from utils import general, loss  # noqa: PLC0415

    torch.manual_seed(0)
    model = Model(f"{parts['upstream']}/models/{model_name}.yaml", ch=3, nc=80).to(device)
    model.hyp = {**parts["hyp"], "label_smoothing": 0.0}
    general.check_amp(model)
    tools = parts["tools"]
    optimizer = tools.smart_optimizer(model, "SGD", 0.01, 0.9, 5e-4)
    average, compute = tools.ModelEMA(model), loss.ComputeLoss(model)
    scaler = torch.cuda.amp.GradScaler(enabled=amp)
    autocast = tools.smart_amp_autocast
    model.train()
    for start in parts["start"]:
        start(model)

    def step() -> None:
        with autocast(amp):
            total, _ = compute(model(images), targets.to(device))
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        average.update(model)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Measure each technique, print, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="", help="comma-separated; all that work on the device when absent")
    parser.add_argument("--model", default="yolov5n")
    parser.add_argument("--img", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    upstream = Path.cwd() / "code" / "yolov5"
    sys.path[:0] = [str(upstream), str(Path.cwd() / "code")]
    os.environ.update(YOLO_OFFLINE="true", ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS="1")
    from lab.fast import switches  # noqa: PLC0415  of the project that is measured

    known = [s.name for s in switches.SWITCHES if switches.works(s, "yolov5", asked.device) and s.name != "progress"]
    said: dict[str, Any] = {
        "what": "a YOLOv5 training step without and with each technique",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "options": {key: value for key, value in vars(asked).items() if key not in ("result", "names")},
        "techniques": {},
    }
    for name in asked.names.split(",") if asked.names else known:
        said["techniques"][name] = compared(name, upstream, asked)
        said |= about(asked.device)
        print(name, json.dumps(said["techniques"][name]), flush=True)
        if asked.result:
            asked.result.write_text(json.dumps(said, indent=1) + "\n")


def about(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    import torch  # noqa: PLC0415

    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads, no GPU"
    return {
        "hardware": f"{name}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def compared(name: str, upstream: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step without and with the technique, and the gain: median and quartiles over the pairs."""
    import importlib  # noqa: PLC0415

    import torch  # noqa: PLC0415
    import utils.torch_utils as tools  # noqa: PLC0415
    import yaml  # noqa: PLC0415
    from utils import general, loss  # noqa: PLC0415

    from lab.fast import step_yolov5  # noqa: PLC0415

    kept = [(holder, dict(vars(holder))) for holder in (tools, general, loss)]
    scaler, save = torch.cuda.amp.GradScaler, torch.save
    device = torch.device(asked.device)
    torch.manual_seed(0)
    images = torch.rand(asked.batch, 3, asked.img, asked.img, device=device)
    targets = torch.rand(asked.batch * LABELS, 6)
    targets[:, 0] = torch.arange(asked.batch).repeat_interleave(LABELS)
    targets[:, 1] = (targets[:, 1] * 80).floor()
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.05
    hyp = yaml.safe_load((upstream / "data/hyps/hyp.scratch-low.yaml").read_text())
    parts: dict[str, Any] = {"upstream": upstream, "hyp": hyp, "tools": tools, "start": []}
    amp = asked.device == "cuda"
    importlib.import_module("models.yolo")
    with contextlib.redirect_stdout(sys.stderr):
        without = step_of(parts, asked.model, device, images, targets, amp)
        if name == "compile":
            parts["start"].append(lambda model: model.compile(dynamic=False))
        else:
            step_yolov5.APPLY[name]({})
        having = step_of(parts, asked.model, device, images, targets, amp)
    begun = time.perf_counter()
    having()
    first = time.perf_counter() - begun
    off, on = [], []
    for number in range(WARM + asked.pairs):
        for step, times in ((without, off), (having, on)) if number % 2 else ((having, on), (without, off)):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
    for holder, names in kept:
        vars(holder).update(names)
    torch.cuda.amp.GradScaler, torch.save = scaler, save
    ratios = [a / b for a, b in zip(off[WARM:], on[WARM:], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {
        "without_s": round(median(off[WARM:]), 4),
        "with_s": round(median(on[WARM:]), 4),
        "gain": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "first_step_s": round(first, 2),
    }


if __name__ == "__main__":
    main()
