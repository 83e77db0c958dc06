"""Does `lab tune` predict what it then measures? One run of it on made-up 720p pictures.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/tune.py --result /benchmarks/results/tune-cpu.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). What is kept is the record of `lab tune` itself:
measured costs, the prescription, the gain over the engine as it ships that was predicted and the gain that the short
run beside it had. A prediction that is off by more than a quarter is what `lab tune` warns of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pictures import make

from lab.fast.bench import processor


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov5n")
    parser.add_argument("--img", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--result", type=Path, required=True)
    asked = parser.parse_args()
    place = Path("data/tune").absolute()
    shutil.rmtree(place, ignore_errors=True)
    make(place, asked.pictures, 1280, 720, 82)
    options = {name: str(getattr(asked, name)) for name in ("model", "img", "batch", "device", "seconds")}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = ["-m", "lab", "tune", *words, "--engine", "yolov5", "--data", str(place / "data.yaml")]
    done = subprocess.run(
        [sys.executable, *command, "--dry-run", "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    said = {"options": {**options, "pictures": asked.pictures}, "processor": processor(), **json.loads(done.stdout)}
    said["load"] = round(os.getloadavg()[1], 2)
    asked.result.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print({key: said[key] for key in ("predicted_gain", "measured_gain", "sentence", "warning")})


if __name__ == "__main__":
    main()
