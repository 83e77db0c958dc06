"""What `lab data check` does a second on one processor, and how its memory grows with the number of pictures.

    python benchmarks/data_check.py [--pictures 1500] [--few 1000] [--many 20000]

Pictures: made-up 1280x720 JPEGs of photographic size (quality 90, about 250 kB), each different. One worker process;
the seconds are those of both processes' processor time, so that other work on the machine does not count, and of the
clock. `decode`: a first check. `labels`: a second one after every label file was written anew, so that pictures cost a
stat each. `again`: a third, with nothing changed. Memory: the largest resident set of the parent and of its worker,
with many small pictures. Writes benchmarks/results/data_check.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "data_check.json"
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"
BOXES = 7  # a picture, as in COCO


def make(root: Path, count: int, width: int, height: int) -> None:
    """A data set of `count` pictures, a tenth of them for validation, each a noisy field of its own colour."""
    random = np.random.default_rng(0)
    rough = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    field = smooth + random.normal(0, 3, smooth.shape).astype(np.int16)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    for number in range(count):
        split = "val" if number % 10 == 0 else "train"
        image = np.clip(field + random.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        image[:8, :8] = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (root / "images" / split / f"{number:07d}.jpg").write_bytes(jpeg.tobytes())
    label(root, 0)
    names = "".join(f"  {number}: c{number}\n" for number in range(80))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")


def label(root: Path, seed: int) -> None:
    """Write every label file anew."""
    random = np.random.default_rng(seed)
    for image in (root / "images").rglob("*.jpg"):
        rows = [
            f"{int(random.integers(80))} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
            for x, y, w, h in random.uniform(0.2, 0.4, (BOXES, 4))
        ]
        (root / "labels" / image.parent.name / f"{image.stem}.txt").write_text("".join(rows))


def check(project: Path, name: str) -> dict[str, float]:
    """Check `name` in a fresh process; returns its figures."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name], cwd=project, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def measure(name: str) -> None:
    """One check, in this process and one worker; prints what it took as JSON."""
    from lab import check as lab_check  # noqa: PLC0415
    from lab import dataset  # noqa: PLC0415
    from lab.project import open_project  # noqa: PLC0415

    project = open_project()
    begun, before = time.perf_counter(), time.process_time()
    result = lab_check.run(dataset.open_dataset(f"data/{name}/data.yaml", project), project, workers=1)
    wall, parent = time.perf_counter() - begun, time.process_time() - before
    if result.findings:
        raise SystemExit(f"a sound data set, and yet {result.findings}")
    worker = resource.getrusage(resource.RUSAGE_CHILDREN)
    images = sum(counts.images for counts in result.splits.values())
    print(
        json.dumps(
            {
                "images": images,
                "images_per_second_of_one_core": round(images / (parent + worker.ru_utime + worker.ru_stime), 1),
                "images_per_second_of_clock": round(images / wall, 1),
                "parent_peak_mib": round(_peak() / 1024, 1),
                "worker_peak_mib": round(worker.ru_maxrss / 1024, 1),
            }
        )
    )


def _peak() -> int:
    """This process's largest resident set in KiB; getrusage would include that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Measure, print the figures, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=20000)
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        (project / "lab.yaml").write_text("engine: yolov5\n")
        large = project / "data" / "large"
        make(large, asked.pictures, 1280, 720)
        sizes = [file.stat().st_size for file in (large / "images").rglob("*.jpg")]
        figures: dict[str, object] = {"jpeg_kb": round(sum(sizes) / len(sizes) / 1000)}
        figures["decode"] = check(project, "large")
        label(large, 1)
        figures["labels"] = check(project, "large")
        figures["again"] = check(project, "large")
        for name, count in (("few", asked.few), ("many", asked.many)):
            make(project / "data" / name, count, 64, 64)
            figures[name] = check(project, name)
        label(project / "data" / "many", 1)
        figures["many_labels"] = check(project, "many")
        figures["many_again"] = check(project, "many")
    said = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {_processor()}",
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **figures,
    }
    RESULT.write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps(said, indent=2))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
