"""Child script: runs one of YOLOv5's own scripts as if it had been called there. Needs no edit of upstream."""

from __future__ import annotations

import logging
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # a script's own directory comes first; lab/ is no place to import from
from lab import pace  # noqa: E402
from lab.batch import largest_side, measure_all, take_steps  # noqa: E402
from lab.child import finished_weights, save_checkpoints_whole, serve, watch_amp  # noqa: E402
from lab.errors import FAILED, LabError  # noqa: E402
from lab.fast import seams  # noqa: E402
from lab.fast.turns import take_turns  # noqa: E402
from lab.resume import best_so_far  # noqa: E402


def work(request: dict[str, Any]) -> None:
    """Run upstream's train.py, val.py, detect.py or export.py with `request["arguments"]`, or `raw_predictions`."""
    upstream = Path(request["upstream"])
    sys.path[0] = str(upstream)  # checkpoints are pickles of upstream's classes, found by these names
    _no_downloads()
    save_checkpoints_whole()
    own = {"raw": raw_predictions, "batch": measure_batch, "close": close}
    if request["task"] in own:
        own[request["task"]](request)
        return
    if request["task"] == "train":
        _whole_options()
        _loud_amp()
        if "stored" in request:
            change_options(Path(request["arguments"][-1]), request["stored"])
            _keep_patience(Path(request["run"]) / "results.csv")
        seams.install(request, "yolov5")
        if "turns" in request:
            take_turns(request)
        else:
            pace.install(request, "yolov5")
    script = str(upstream / f"{request['task']}.py")
    sys.argv = [script, *request["arguments"]]
    failures = _failed_exports()
    runpy.run_path(script, run_name="__main__")
    if failures:  # upstream only prints these, and ends as if all were well
        raise LabError(f"the export failed: {failures[0]}", FAILED)


def _failed_exports() -> list[str]:
    """A list that fills with what upstream says of formats it could not write."""
    failures: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if "export failure" in said:
                failures.append(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", said).split())[:300])

    logging.getLogger("ultralytics").addHandler(Listener())
    return failures


def _no_downloads() -> None:
    """Replace YOLOv5's download of missing weights, which tries for minutes without a network."""
    import utils.downloads  # noqa: PLC0415  upstream's package, importable only now

    def attempt_download(file: Any, *_: Any, **__: Any) -> str:
        name = str(file).strip().replace("'", "")
        if not Path(name).exists():
            raise FileNotFoundError(f"{name} does not exist, and nothing is downloaded here")
        return name

    utils.downloads.attempt_download = attempt_download


def _whole_options() -> None:
    """Have the options written in one step: a kill in the middle of opt.yaml would end the run for good."""
    import utils.general  # noqa: PLC0415

    def yaml_save(file: Any = "data.yaml", data: Any = None) -> None:
        said = {key: str(value) if isinstance(value, Path) else value for key, value in (data or {}).items()}
        _write_yaml(Path(file), said)

    utils.general.yaml_save = yaml_save


def _write_yaml(file: Path, said: dict[str, Any]) -> None:
    import yaml  # noqa: PLC0415

    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    part.replace(file)


def _loud_amp() -> None:
    import utils.general  # noqa: PLC0415

    utils.general.check_amp = watch_amp(utils.general.check_amp)


def change_options(last: Path, changed: dict[str, Any]) -> None:
    """Give a run that goes on other options: YOLOv5 reads opt.yaml, which this makes from the checkpoint's own copy."""
    import torch  # noqa: PLC0415

    stored = dict(torch.load(last, map_location="cpu", weights_only=False)["opt"])
    said = {key: str(value) if isinstance(value, Path) else value for key, value in stored.items()}
    _write_yaml(last.parent.parent / "opt.yaml", {**said, **changed})


def _keep_patience(results: Path) -> None:
    """Let early stopping count on from the best epoch; upstream would begin to count at the epoch that goes on."""
    import utils.torch_utils  # noqa: PLC0415

    best = best_so_far(results)

    class EarlyStopping(utils.torch_utils.EarlyStopping):  # type: ignore[misc]
        def __init__(self, patience: int = 30) -> None:
            super().__init__(patience)
            if best is not None:
                self.best_epoch, self.best_fitness = best

    utils.torch_utils.EarlyStopping = EarlyStopping


def close(request: dict[str, Any]) -> None:
    """What train.py does after its last epoch: strip the checkpoints, plot the curves, measure best.pt."""
    from utils.general import strip_optimizer  # noqa: PLC0415
    from utils.plots import plot_results  # noqa: PLC0415

    run = Path(request["run"])
    weights = finished_weights(request, strip_optimizer, plot_results)
    script = str(Path(request["upstream"]) / "val.py")
    words = {"weights": weights, "data": request["data"], "img": request["imgsz"], "batch-size": request["batch"]}
    words |= {"workers": request["workers"], "device": request["on"], "project": run.parent, "name": run.name}
    sys.argv = [script, *(str(word) for pair in words.items() for word in (f"--{pair[0]}", pair[1])), "--exist-ok"]
    runpy.run_path(script, run_name="__main__")


def measure_batch(request: dict[str, Any]) -> None:
    """`--batch auto`: search the largest batch by steps as train.py does them, on the worst images it could meet."""
    import torch  # noqa: PLC0415
    import yaml  # noqa: PLC0415
    from models.yolo import Model  # noqa: PLC0415
    from utils.general import check_amp, init_seeds, non_max_suppression  # noqa: PLC0415
    from utils.loss import ComputeLoss  # noqa: PLC0415
    from utils.torch_utils import ModelEMA, smart_amp_autocast, smart_optimizer  # noqa: PLC0415

    init_seeds(1, deterministic=True)  # as train.py: decides which kernels, and so which workspaces, are used
    hyp = yaml.safe_load((Path(request["upstream"]) / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    cfg = request["cfg"] or torch.load(request["weights"], map_location="cpu", weights_only=False)["model"].yaml

    def worst_step(device: Any, batch: int) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        model = Model(cfg, ch=3, nc=request["classes"]).to(device)
        model.hyp = {**hyp, "label_smoothing": 0.0}
        amp = watch_amp(check_amp)(model) if device.type == "cuda" else False
        optimizer = smart_optimizer(model, request["optimizer"], 0.01, 0.9, 0.0005)
        ema, loss_of = ModelEMA(model), ComputeLoss(model)
        side, labels = largest_side(request, int(model.stride.max())), _crowded(torch, batch, request)

        def loss() -> Any:
            images = torch.rand(batch, 3, side, side).to(device)
            with smart_amp_autocast(amp):
                return loss_of(model(images), labels.to(device))[0]

        take_steps(torch, model, optimizer, ema, amp, loss)
        # validation: twice the batch, padded by half a stride, on the average in half precision
        padded = request["imgsz"] + int(model.stride.max())
        judge = ema.ema.half() if amp else ema.ema
        with torch.no_grad():
            images = torch.rand(2 * batch, 3, padded, padded).to(device)
            predictions, _ = judge(images.half() if amp else images)
            non_max_suppression(predictions, 0.001, 0.6, max_det=300)

    measure_all(request, worst_step, torch)


def _crowded(torch: Any, batch: int, request: dict[str, Any]) -> Any:
    """Labels of `batch` pictures that are all as crowded as the most crowded one: rows of image, class, x, y, w, h."""
    each = request["labels"]
    boxes = torch.rand(batch * each, 4) * 0.3 + 0.1
    numbers = torch.arange(batch).repeat_interleave(each).float()[:, None]
    return torch.cat([numbers, torch.randint(0, request["classes"], (batch * each, 1)).float(), boxes], 1)


def raw_predictions(request: dict[str, Any]) -> None:
    """Write what the network says for the images in `request["images"]` (.npy, N x 3 x H x W, 0 to 1).

    The result, .npy, N x predictions x (5 + classes): centre, width and height in pixels, objectness, class scores.
    """
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from models.experimental import attempt_load  # noqa: PLC0415

    model = attempt_load(request["weights"], device=torch.device("cpu")).float().eval()
    with torch.no_grad():
        predictions = model(torch.from_numpy(np.load(request["images"])))[0]
    np.save(request["result"], predictions.numpy())


if __name__ == "__main__":
    serve(work)
