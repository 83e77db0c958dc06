"""What a person waits for: `lab smoke`, and the lines before a training on 100,000 pictures.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/waits.py --smoke --result /benchmarks/results/waits.json
    .venv/bin/python benchmarks/waits.py --result benchmarks/results/waits.json

The lines need no container; what is not measured stays as the result has it. `lines`: seconds of the clock and of the
processor from the data set's yaml file to the sentences, in a fresh process; pictures and labels are links to a few
files: the lines read directories, and pictures hardly. `smoke`: `lab smoke` of each engine, from its call to its end,
in a project with YOLOv5's source (`lab fetch`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[1] / "template" / "{{cookiecutter.project_slug}}" / "code"
PICTURES = 100_000
A_DIRECTORY = 10_000
ROUNDS = 5
ENGINES = ("yolov5u", "yolov5")


def scatter(root: Path) -> Path:
    """A data set of PICTURES links to one picture, more or less; its yaml file."""
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    picture = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    contents = {"images": ("jpg", picture), "labels": ("txt", b"0 0.5 0.5 0.5 0.5\n")}
    for kind, (ending, content) in contents.items():
        for split, many in (("train", PICTURES), ("val", 100)):
            for number in range(many):
                place = root / kind / split / f"{number // A_DIRECTORY:02d}"
                file = place / f"{number:07d}.{ending}"
                if number % A_DIRECTORY == 0:  # a file system may take no more than 65,000 links to one file
                    place.mkdir(parents=True)
                    first = file
                    first.write_bytes(content)
                else:
                    os.link(first, file)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    return root / "data.yaml"


def lines(file: Path) -> dict[str, float]:
    """Seconds until the lines before a training are there; in the current directory's project."""
    from lab import dataset, plan  # noqa: PLC0415
    from lab.engines import ENGINES as BY_NAME  # noqa: PLC0415
    from lab.engines import Prepared  # noqa: PLC0415
    from lab.fast import choose  # noqa: PLC0415
    from lab.fast.plan import Wish  # noqa: PLC0415
    from lab.job import Job  # noqa: PLC0415
    from lab.options import Request  # noqa: PLC0415
    from lab.project import open_project  # noqa: PLC0415

    begun, worked = time.perf_counter(), time.process_time()
    project = open_project()
    data = dataset.open_dataset(str(file), project)
    job = Job(project, BY_NAME["yolov5u"], Request("train", {}))
    options = {"imgsz": 640, "batch_size": 16, "workers": 2, "device": "cpu"}
    prepared = Prepared("train", options, [""], "yolov5n.yaml", project.root)
    seen = plan.look(job, prepared, data)
    speed = choose.said(choose.choose(job, prepared, data, seen, Wish()))
    sentences = plan.sentences(seen, ("speed", speed))
    assert any(f"{PICTURES} pictures" in sentence for sentence in sentences)
    return {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked}


def waited() -> dict[str, Any]:
    """The lines, the fastest of some rounds; each in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "lab.yaml").write_text("engine: yolov5u\nmodel: yolov5n\nimage_size: 640\n")
        place = Path(scratch) / "data"
        place.mkdir()
        file = scatter(place)
        rounds = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--lines", str(file)],
                    cwd=scratch,
                    check=True,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")])},
                ).stdout
            )
            for _ in range(ROUNDS)
        ]
    return {"pictures": PICTURES, **{key: round(min(one[key] for one in rounds), 3) for key in rounds[0]}}


def smoke() -> dict[str, float]:
    """Seconds of `lab smoke`, by engine."""
    found = {}
    for engine in ENGINES:
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "lab", "smoke", "--engine", engine], check=True, stdout=subprocess.DEVNULL
        )
        found[engine] = round(time.monotonic() - begun, 1)
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="smoke tests instead of the lines")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    if asked.lines:
        print(json.dumps(lines(asked.lines)))
        return
    figures = smoke() if asked.smoke else waited()
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "load": round(os.getloadavg()[1], 2),
        "python": platform.python_version(),
    }
    known = json.loads(asked.result.read_text(encoding="utf-8")) if asked.result and asked.result.exists() else {}
    said = {**known, "smoke" if asked.smoke else "lines": {**about, **figures}}
    if asked.result:
        asked.result.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()
