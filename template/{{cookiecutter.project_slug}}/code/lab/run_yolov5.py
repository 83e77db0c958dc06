"""Child script: runs one of YOLOv5's own scripts as if it had been called there. Needs no edit of upstream."""

from __future__ import annotations

import logging
import re
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # a script's own directory comes first; lab/ is no place to import from
from lab.child import save_checkpoints_whole, serve  # noqa: E402
from lab.errors import FAILED, LabError  # noqa: E402


def work(request: dict[str, Any]) -> None:
    """Run upstream's train.py, val.py, detect.py or export.py with `request["arguments"]`, or `raw_predictions`."""
    upstream = Path(request["upstream"])
    sys.path[0] = str(upstream)  # checkpoints are pickles of upstream's classes, found by these names
    _no_downloads()
    save_checkpoints_whole()
    if request["task"] == "raw":
        raw_predictions(request)
        return
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
