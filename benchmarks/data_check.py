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
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pictures import label, make
from result import write

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "data_check.json"
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"


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
    write(RESULT, figures)


if __name__ == "__main__":
    main()
