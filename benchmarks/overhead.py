"""What does `lab train --plain` cost against running YOLOv5's own train.py by hand? Both in turn, in one run.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/overhead.py --result /benchmarks/results/overhead.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). The same model, pictures, options, seed and
environment for both, one thread each. Both trainings live at the same time and take turns of SLICE seconds: while one
computes, all processes of the other are stopped, so whatever else the machine does falls on both alike. Compared are
processor seconds, of all processes, from one line of results.csv to another, validation and checkpoint included. The
overhead is the ratio over all these epochs, and its 95 % confidence interval comes from the spread over BLOCKS blocks
of them. What the `lab` process itself takes is in it, and told by itself too: it looks at the machine by the clock, so
beside a training that is stopped half of the time its share is up to twice what it is beside one that is not.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import stdev
from typing import Any

import psutil

OPTIONS = "--weights= --cfg yolov5n.yaml --hyp {hyp} --data {data} --img {img} --batch 8 --workers 0 --noplots"
OPTIONS += " --device cpu --epochs {epochs}"
ARMS = ("hand", "lab")
POLL = 0.01  # seconds between looks at results.csv
SLICE = 0.25  # seconds of a turn
WARM = 2  # epochs of each that do not count: memory is taken, caches fill
BLOCKS = 10
CONFIDENCE = 2.262  # standard errors: 95 %, by Student's t for ten blocks
DEADLINE = 1200.0  # seconds that all of it may take


class Training:
    """A training in processes of its own, that is stopped whenever it is not its turn."""

    def __init__(self, command: list[str], cwd: Path, environment: dict[str, str], results: Path, log: Path) -> None:
        self.results, self.log, self.size = results, log, 0
        self.spent: list[dict[str, float]] = []  # after each epoch: processor seconds of all processes, of the first
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT)
        self.own = psutil.Process(self.process.pid)

    def everyone(self) -> list[psutil.Process]:
        """Its processes, the first one first."""
        return [self.own, *self.own.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        """To all of them."""
        for process in self.everyone():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def turn(self) -> None:
        """Let it run for SLICE seconds; notes what has been spent at the end of each epoch."""
        until = time.monotonic() + SLICE
        self.signal(signal.SIGCONT)
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.log.read_text(errors='replace')[-2000:]}\nended early")
            time.sleep(POLL)
            size = self.results.stat().st_size if self.results.is_file() else 0
            if size != self.size:
                self.size = size
                self.spent.append({"all": used(*self.everyone()), "own": used(self.own)})
        self.signal(signal.SIGSTOP)

    def end(self) -> None:
        """Whatever its state."""
        if self.process.poll() is None:
            for process in reversed(self.everyone()):
                process.kill()
            self.process.wait()


def used(*processes: psutil.Process) -> float:
    """Processor seconds of running processes, and of those that they have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=120, help="a fifth of them is for validation")
    parser.add_argument("--img", type=int, default=128)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()

    project = Path.cwd()
    sys.path.insert(0, str(project / "code"))
    from lab import demo  # noqa: PLC0415  of the project that is measured
    from lab.environment import child_environment  # noqa: PLC0415
    from lab.project import open_project  # noqa: PLC0415

    data, runs, source = project / "data" / "overhead", project / "runs" / "overhead", project / "code" / "yolov5"
    for place in (data, runs):
        shutil.rmtree(place, ignore_errors=True)
    demo.make(demo.Recipe(images=asked.images, size=asked.img, shapes=(1, 2), radius=(0.16, 0.26)), data)
    hyp = source / "data" / "hyps" / "hyp.scratch-low.yaml"
    epochs = WARM + asked.epochs
    words = OPTIONS.format(hyp=hyp, data=data / "data.yaml", img=asked.img, epochs=2 * epochs).split()
    with tempfile.TemporaryDirectory() as scratch:
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**child_environment(open_project(), Path(scratch)), **one_thread}
        absolute = Path(scratch) / "data.yaml"
        absolute.write_text((data / "data.yaml").read_text().replace("path: .", f"path: {data}"))
        by_hand = [str(absolute) if word == str(data / "data.yaml") else word for word in words]
        commands = {
            "hand": ([sys.executable, "train.py", *by_hand, "--exist-ok"], source, environment),
            "lab": (
                [sys.executable, "-m", "lab", "train", *words, "--plain", "--engine", "yolov5"], project,
                {**environment, "PYTHONPATH": str(project / "code")},
            ),
        }  # fmt: skip
        trainings: dict[str, Training] = {}
        try:
            for name, (command, cwd, variables) in commands.items():
                more = ["--project", str(runs), "--name", name]
                results, log = runs / name / "results.csv", Path(scratch) / f"{name}.log"
                trainings[name] = Training([*command, *more], cwd, variables, results, log)
                trainings[name].signal(signal.SIGSTOP)
            until = time.monotonic() + DEADLINE
            while min(len(training.spent) for training in trainings.values()) < epochs and time.monotonic() < until:
                for training in trainings.values():
                    training.turn()
            done = min(epochs, *(len(training.spent) for training in trainings.values()))
            if done < WARM + BLOCKS:
                raise SystemExit(f"no more than {done} epochs in {DEADLINE:.0f} s")
            spent = {name: training.spent[:done] for name, training in trainings.items()}
        finally:
            for training in trainings.values():
                training.end()
    said = result(spent, asked)
    if asked.result:
        asked.result.write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said["overhead"], indent=1))


def result(spent: dict[str, list[dict[str, float]]], asked: argparse.Namespace) -> dict[str, Any]:
    """The overhead, from processor seconds after each epoch of both."""
    import torch  # noqa: PLC0415

    def epochs(name: str, whose: str) -> list[float]:
        at = [one[whose] for one in spent[name]][WARM - 1 :]
        return [later - earlier for earlier, later in itertools.pairwise(at)]

    hand, ours, own = epochs("hand", "all"), epochs("lab", "all"), epochs("lab", "own")
    size = len(hand) // BLOCKS
    blocks = [
        sum(ours[first : first + size]) / sum(hand[first : first + size]) - 1 for first in range(0, size * BLOCKS, size)
    ]
    overhead, error = sum(ours) / sum(hand) - 1, CONFIDENCE * stdev(blocks) / math.sqrt(BLOCKS)
    first = {name: spent[name][0]["all"] for name in ARMS}
    return {
        "what": "lab train --plain against YOLOv5's train.py by hand",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU, shared machine",
        "load": os.getloadavg()[1],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "options": {key: value for key, value in vars(asked).items() if key != "result"},
        "overhead": {
            "of an epoch's processor seconds": {
                "all": round(overhead, 4), "from": round(overhead - error, 4), "to": round(overhead + error, 4),
                "blocks": [round(one, 4) for one in blocks],
            },
            "of an epoch's processor seconds, the lab process itself": round(sum(own) / sum(ours), 4),
            "processor seconds up to the end of the first epoch": {name: round(one, 2) for name, one in first.items()},
        },
        "processor seconds of an epoch": {
            name: [round(one, 3) for one in found] for name, found in (("hand", hand), ("lab", ours))
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
