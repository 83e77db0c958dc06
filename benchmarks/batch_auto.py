"""Does `--batch auto` fill the GPU, and was its prediction right? Three epochs of each engine on this machine's GPU.

    docker run --rm --gpus all --shm-size 8g -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace \\
        IMAGE python /benchmarks/batch_auto.py --model yolov5m --result /benchmarks/results/batch-auto.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). It holds when the predicted peak lies within 10 %
of the measured one, no attempt ran out of memory, and less than 15 % of the GPU's memory stayed free. Take a model and
an image size with which fewer than --images images fill the GPU: yolov5m at 640 for 24 GB, yolov5x at 1280 for 141 GB.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30


def lab(words: list[str]) -> None:
    """Run `lab WORDS`, on the terminal; ends the benchmark when that fails."""
    subprocess.run([sys.executable, "-m", "lab", *words], check=True)


def measure(engine: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """Train three epochs with `--batch auto`; what the run planned and what it took."""
    name = f"batch-auto-{engine}"
    words = ["--engine", engine, "--cfg", f"{wanted.model}.yaml", "--weights", "", "--name", name, "--exist-ok"]
    words += ["--data", "data/batch-auto/data.yaml", "--img", str(wanted.img), "--batch", "auto", "--epochs", "3"]
    lab(["train", *words, "--device", wanted.device, "--noplots"])
    asked = json.loads(Path("runs/train", name, "request.json").read_text(encoding="utf-8"))
    plan, attempts = asked["plan"], asked["attempts"]
    off = plan["predicted_bytes"] / plan["peak_bytes"] - 1
    free = 1 - plan["peak_bytes"] / plan["total_bytes"]
    return {
        "engine": engine,
        "batch": attempts[-1]["batch"],
        "predicted_gib": round(plan["predicted_bytes"] / GIB, 2),
        "measured_gib": round(plan["peak_bytes"] / GIB, 2),
        "total_gib": round(plan["total_bytes"] / GIB, 2),
        "prediction_off_pct": round(100 * off, 1),
        "free_pct": round(100 * free, 1),
        "attempts": len(attempts),
        "amp": plan.get("amp"),
        "holds": abs(off) <= 0.10 and free < 0.15 and len(attempts) == 1,
        "probes": [device["probes"] for device in plan["devices"]],
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov5m")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--device", default="0")
    parser.add_argument("--engine", action="append", choices=("yolov5", "yolov5u"))
    parser.add_argument("--result", type=Path, required=True)
    wanted = parser.parse_args()
    lab(["data", "demo", "--images", str(wanted.images), "--size", "640", "--out", "data/batch-auto"])
    names = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": names,
        "model": wanted.model,
        "img": wanted.img,
        "runs": [measure(engine, wanted) for engine in wanted.engine or ("yolov5", "yolov5u")],
    }
    wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
