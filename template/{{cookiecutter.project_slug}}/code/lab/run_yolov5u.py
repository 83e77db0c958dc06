"""Child script: drives the ultralytics package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # a script's own directory comes first; lab/ is no place to import from
from lab.child import save_checkpoints_whole, serve  # noqa: E402
from lab.limits import processors  # noqa: E402


def work(request: dict[str, Any]) -> None:
    """Do `request["task"]` with `request["arguments"]`, which are ultralytics' own."""
    sys.path.pop(0)
    from ultralytics import YOLO  # noqa: PLC0415
    from ultralytics.utils import torch_utils  # noqa: PLC0415  seconds, and only needed here

    save_checkpoints_whole()
    torch_utils.NUM_THREADS = processors()  # it would leave one processor idle, and see the host's in a container
    tasks = {"train": train, "val": val, "detect": detect, "export": export, "raw": raw_predictions}
    tasks[request["task"]](YOLO, request)


def train(yolo: Any, request: dict[str, Any]) -> None:
    """Train from `cfg` (weights, if any, are transferred), or from the checkpoint alone; or resume."""
    arguments, weights, cfg = request["arguments"], request["weights"], request["cfg"]
    if "resume" in arguments:
        yolo(arguments["resume"]).train(**{**arguments, "resume": True})
        return
    arguments["pretrained"] = weights or False
    yolo(cfg or weights, task="detect").train(**arguments)


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
