"""What does `lab train --plain` cost against running YOLOv5's own train.py by hand? Pairs in turn, in one run.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/overhead.py --result /benchmarks/results/overhead.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). The same model, pictures, options, seed, threads
and environment for both. As ratios within a pair: the whole command, and an epoch in steady state, from the first line
of results.csv to the last one, validation and checkpoint included; each by the clock and in processor seconds, which
others on the machine disturb less. What our side does while the training runs is measured by itself: processor seconds
of the `lab` process in an epoch, and what fsync adds to writing a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

OPTIONS = "--weights= --cfg yolov5n.yaml --hyp {hyp} --data {data} --img {img} --batch 8 --workers 0 --noplots"
OPTIONS += " --device cpu --epochs {epochs}"
POLL = 0.02  # seconds between looks at results.csv


def measured(command: list[str], cwd: Path, environment: dict[str, str], results: Path, log: Path) -> dict[str, float]:
    """Run `command`; seconds of the whole, processor seconds of all its processes and of itself, seconds an epoch."""
    before, begun, size = _spent(), time.monotonic(), 0
    ends: list[tuple[float, float, float]] = []  # the clock, processor seconds of all and of the command's own process
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(POLL)
            now = results.stat().st_size if results.is_file() else 0
            if now != size:
                size = now
                with contextlib.suppress(psutil.Error):
                    ends.append((time.monotonic(), _used(watched, *watched.children(recursive=True)), _used(watched)))
    wall = time.monotonic() - begun
    if process.returncode or len(ends) < 3:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    epoch, epoch_cpu, epoch_own = (
        (last - first) / (len(ends) - 1) for first, last in zip(ends[0], ends[-1], strict=True)
    )
    return {
        "wall_s": wall,
        "cpu_s": _spent() - before,
        "epoch_s": epoch,
        "epoch_cpu_s": epoch_cpu,
        "epoch_own_cpu_s": epoch_own,
        "start_and_end_s": wall - epoch * len(ends),
    }


def _used(*processes: psutil.Process) -> float:
    """Processor seconds of running processes."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fsync_cost(directory: Path, mebibytes: int = 15) -> dict[str, float]:
    """Seconds that a checkpoint of this size takes to write, and to write and fsync; medians of nine."""
    content, plain, synced = os.urandom(mebibytes << 20), [], []
    for number in range(18):
        file = directory / f"checkpoint-{number}"
        begun = time.monotonic()
        with file.open("wb") as opened:
            opened.write(content)
            if number % 2:
                opened.flush()
                os.fsync(opened.fileno())
        (synced if number % 2 else plain).append(time.monotonic() - begun)
        file.unlink()
    return {"mebibytes": mebibytes, "written_s": median(plain), "synced_s": median(synced)}


def main() -> None:
    """Measure, print, and write the result after every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--img", type=int, default=128)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()

    project = Path.cwd()
    sys.path.insert(0, str(project / "code"))
    from lab import demo  # noqa: PLC0415  of the project that is measured
    from lab.environment import child_environment  # noqa: PLC0415
    from lab.project import open_project  # noqa: PLC0415

    data, runs, source = project / "data" / "overhead", project / "runs" / "overhead", project / "code" / "yolov5"
    shutil.rmtree(data, ignore_errors=True)
    demo.make(demo.Recipe(images=asked.images, size=asked.img, shapes=(1, 2), radius=(0.16, 0.26)), data)
    hyp = source / "data" / "hyps" / "hyp.scratch-low.yaml"
    words = OPTIONS.format(hyp=hyp, data=data / "data.yaml", img=asked.img, epochs=asked.epochs).split()
    steps = len(list((data / "images" / "train").iterdir())) / 8
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = child_environment(open_project(), Path(scratch))
        absolute = Path(scratch) / "data.yaml"
        absolute.write_text((data / "data.yaml").read_text().replace("path: .", f"path: {data}"))
        by_hand = [str(absolute) if word == str(data / "data.yaml") else word for word in words]
        arms = {
            "hand": ([sys.executable, "train.py", *by_hand, "--exist-ok", "--project", str(runs)], source),
            "lab": ([sys.executable, "-m", "lab", "train", *words, "--plain", "--engine", "yolov5"], project),
        }
        arms["lab"][0].extend(["--project", str(runs)])
        for number in range(asked.pairs + 1):  # the first one warms the caches and does not count
            pair: dict[str, Any] = {}
            for name in ("hand", "lab") if number % 2 else ("lab", "hand"):
                shutil.rmtree(runs / name, ignore_errors=True)
                command, cwd = arms[name]
                more = {"PYTHONPATH": str(project / "code")} if name == "lab" else {}
                log = Path(scratch) / f"{name}.log"
                pair[name] = measured(
                    [*command, "--name", name], cwd, {**environment, **more}, runs / name / "results.csv", log
                )
            if number:
                pairs.append(pair)
            print(
                json.dumps({name: {k: round(v, 3) for k, v in one.items()} for name, one in pair.items()}), flush=True
            )
            if pairs:
                said = result(pairs, steps, asked, fsync_cost(runs))
                if asked.result:
                    asked.result.write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said["overhead"], indent=1))


def result(
    pairs: list[dict[str, Any]], steps: float, asked: argparse.Namespace, checkpoint: dict[str, float]
) -> dict[str, Any]:
    """All pairs, and the medians over them."""
    import torch  # noqa: PLC0415

    def ratios(key: str) -> list[float]:
        return sorted(pair["lab"][key] / pair["hand"][key] - 1 for pair in pairs)

    def middle(key: str) -> dict[str, float]:
        found = ratios(key)
        return {"median": round(median(found), 4), "least": round(found[0], 4), "most": round(found[-1], 4)}

    hand = {key: median(pair["hand"][key] for pair in pairs) for key in pairs[0]["hand"]}
    ours = {key: median(pair["lab"][key] for pair in pairs) for key in pairs[0]["lab"]}
    return {
        "what": "lab train --plain against YOLOv5's train.py by hand",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU, shared machine",
        "load": os.getloadavg()[1],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "options": {key: value for key, value in vars(asked).items() if key != "result"},
        "overhead": {
            "epoch in steady state": middle("epoch_s"),
            "epoch in steady state, processor seconds": middle("epoch_cpu_s"),
            "whole command": middle("wall_s"),
            "whole command, processor seconds": middle("cpu_s"),
            "start and end, seconds": round(ours["start_and_end_s"] - hand["start_and_end_s"], 2),
            "start and end, share of the whole command by hand": round(hand["start_and_end_s"] / hand["wall_s"], 3),
            "of an epoch's processor seconds, the lab process": round(ours["epoch_own_cpu_s"] / ours["epoch_cpu_s"], 4),
        },
        "seconds a step": {"hand": hand["epoch_s"] / steps, "lab": ours["epoch_s"] / steps},
        "checkpoint": checkpoint,
        "pairs": pairs,
    }


if __name__ == "__main__":
    main()
