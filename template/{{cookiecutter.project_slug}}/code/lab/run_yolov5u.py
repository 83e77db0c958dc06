"""Child script: drives the ultralytics package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # a script's own directory comes first; lab/ is no place to import from
from lab import pace  # noqa: E402
from lab.batch import largest_side, measure_all, take_steps  # noqa: E402
from lab.child import finished_weights, save_checkpoints_whole, serve, watch_amp  # noqa: E402
from lab.fast import seams  # noqa: E402
from lab.fast.turns import take_turns  # noqa: E402
from lab.limits import processors  # noqa: E402


def work(request: dict[str, Any]) -> None:
    """Do `request["task"]` with `request["arguments"]`, which are ultralytics' own."""
    sys.path.pop(0)
    from ultralytics import YOLO  # noqa: PLC0415
    from ultralytics.utils import torch_utils  # noqa: PLC0415  seconds, and only needed here

    save_checkpoints_whole()
    torch_utils.NUM_THREADS = processors()  # it would leave one processor idle, and see the host's in a container
    tasks: dict[str, Callable[[Any, dict[str, Any]], None]]
    tasks = {"train": train, "val": val, "detect": detect, "export": export, "raw": raw_predictions}
    tasks |= {"batch": measure_batch, "close": close}
    tasks[request["task"]](YOLO, request)


def train(yolo: Any, request: dict[str, Any]) -> None:
    """Train from `cfg` (weights, if any, are transferred), or from the checkpoint alone; or resume."""
    from ultralytics.engine import trainer  # noqa: PLC0415

    trainer.check_amp = watch_amp(trainer.check_amp)
    seams.install(request, "yolov5u")
    if "turns" in request:
        take_turns(request)
    else:
        pace.install(request, "yolov5u")
    arguments, weights, cfg = request["arguments"], request["weights"], request["cfg"]
    if "stored" in request:
        _change_options(trainer.BaseTrainer, request["stored"])
        yolo(arguments["resume"]).train(resume=True)
        return
    arguments["pretrained"] = weights or False
    yolo(cfg or weights, task="detect").train(**arguments)


def _change_options(trainer: Any, changed: dict[str, Any]) -> None:
    """Give a run that goes on other options than its checkpoint holds, also those that the package would ignore."""
    check_resume = trainer.check_resume

    def checked(self: Any, overrides: dict[str, Any]) -> None:
        check_resume(self, overrides)
        for key, value in changed.items():
            setattr(self.args, key, value)

    trainer.check_resume = checked


def close(yolo: Any, request: dict[str, Any]) -> None:
    """What the package does after the last epoch: strip the checkpoints, plot the curves, measure best.pt."""
    from ultralytics.utils.plotting import plot_results  # noqa: PLC0415
    from ultralytics.utils.torch_utils import strip_optimizer  # noqa: PLC0415

    run = Path(request["run"])
    weights = finished_weights(request, strip_optimizer, plot_results)
    places = {"project": str(run.parent), "name": run.name, "exist_ok": True, "plots": request["plots"]}
    sizes = {"imgsz": request["imgsz"], "batch": request["batch"], "workers": request["workers"]}
    yolo(str(weights), task="detect").val(data=request["data"], device=request["on"] or None, **sizes, **places)


def measure_batch(yolo: Any, request: dict[str, Any]) -> None:  # noqa: ARG001  the model is built by hand
    """`--batch auto`: search the largest batch by steps as the package does them, on the worst images it could meet."""
    import torch  # noqa: PLC0415
    from ultralytics.cfg import get_cfg  # noqa: PLC0415
    from ultralytics.nn.tasks import DetectionModel, load_checkpoint  # noqa: PLC0415
    from ultralytics.utils.checks import check_amp  # noqa: PLC0415
    from ultralytics.utils.nms import non_max_suppression  # noqa: PLC0415
    from ultralytics.utils.torch_utils import ModelEMA, autocast, init_seeds  # noqa: PLC0415

    init_seeds(1, deterministic=True)  # as in a training: decides which kernels, and so which workspaces, are used
    cfg = request["cfg"] or load_checkpoint(request["weights"])[0].yaml

    def worst_step(device: Any, batch: int) -> None:
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.set_device(device)
        model = DetectionModel(cfg, nc=request["classes"], verbose=False).to(device)
        model.args = get_cfg()
        model = model.to(memory_format=torch.channels_last) if gpu else model
        amp = watch_amp(check_amp)(model) if gpu else False
        kind = torch.optim.SGD if request["optimizer"] == "SGD" else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
        ema, stride = ModelEMA(model), int(model.stride.max())
        side = largest_side(request, stride)
        each = request["labels"]
        labels = {
            "batch_idx": torch.arange(batch).repeat_interleave(each).float(),
            "cls": torch.randint(0, request["classes"], (batch * each, 1)).float(),
            "bboxes": torch.rand(batch * each, 4) * 0.3 + 0.1,
        }

        def loss() -> Any:
            images = torch.rand(batch, 3, side, side).to(device)
            with autocast(amp, device=device.type):
                said, _ = model({"img": images, **{key: value.to(device) for key, value in labels.items()}})
            return said.sum()

        take_steps(torch, model, optimizer, ema, amp, loss)
        padded = request["imgsz"] + stride
        judge = ema.ema.half() if amp else ema.ema
        with torch.no_grad():
            images = torch.rand(2 * batch, 3, padded, padded).to(device)
            non_max_suppression(judge(images.half() if amp else images), 0.001, 0.7, max_det=300)

    measure_all(request, worst_step, torch)


def val(yolo: Any, request: dict[str, Any]) -> None:
    """Measure a checkpoint."""
    yolo(request["weights"], task="detect").val(**request["arguments"])


def detect(yolo: Any, request: dict[str, Any]) -> None:
    """Draw boxes; results are used one at a time, so that long videos do not fill the memory."""
    arguments = {"save": True, **request["arguments"]}
    for _ in yolo(request["weights"], task="detect").predict(stream=True, **arguments):
        pass


def export(yolo: Any, request: dict[str, Any]) -> None:
    """Write each wanted format beside the checkpoint."""
    for form in request["formats"]:
        yolo(request["weights"], task="detect").export(format=form, **request["arguments"])


def raw_predictions(yolo: Any, request: dict[str, Any]) -> None:
    """Write what the network says for the images in `request["images"]` (.npy, N x 3 x H x W, 0 to 1).

    The result, .npy, N x (4 + classes) x predictions: centre, width and height in pixels, class scores.
    """
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model = yolo(request["weights"], task="detect").model.float().eval()
    with torch.no_grad():
        predictions = model(torch.from_numpy(np.load(request["images"])))
    predictions = predictions[0] if isinstance(predictions, (list, tuple)) else predictions
    np.save(request["result"], predictions.numpy())


if __name__ == "__main__":
    serve(work)
