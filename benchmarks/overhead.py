"""What does `lab train --plain` cost against running YOLOv5's own train.py by hand? Epochs in turn, in one run.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/overhead.py --result /benchmarks/results/overhead.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). The same model, pictures, options, seed and
environment for both, one thread each. Both trainings live at the same time and take turns of one epoch, validation and
checkpoint included: while one computes, all processes of the other are stopped, so a pair of epochs lies seconds apart.
Compared are processor seconds, of all processes, which others on the machine disturb less than the clock; a pair's
ratio, their mean and its 95 % confidence interval, from the spread over the pairs. What the `lab` process itself takes
while the training runs is in it, and told by itself too; so are start and end of the whole command.
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
from statistics import mean, median, stdev
from typing import Any

import psutil

OPTIONS = "--weights= --cfg yolov5n.yaml --hyp {hyp} --data {data} --img {img} --batch 8 --workers 0 --noplots"
OPTIONS += " --device cpu --epochs {epochs}"
ARMS = ("hand", "lab")
POLL = 0.01  # seconds between looks at results.csv
WARM = 2  # epochs of each that do not count: memory is taken, caches fill
CONFIDENCE = 1.96  # standard errors: 95 %, for some dozens of pairs
DEADLINE = 120.0  # seconds that an epoch may take


class Training:
    """A training in processes of its own, that is stopped whenever it is not its turn."""

    def __init__(self, command: list[str], cwd: Path, environment: dict[str, str], results: Path, log: Path) -> None:
        self.results, self.log = results, log
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

    def epoch(self) -> dict[str, float]:
        """Let it run to the end of its next epoch. Processor seconds so far: of all its processes, and of the first."""
        before, until = self._size(), time.monotonic() + DEADLINE
        self.signal(signal.SIGCONT)
        while self._size() == before:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.log.read_text(errors='replace')[-2000:]}\nno further epoch")
            time.sleep(POLL)
        self.signal(signal.SIGSTOP)
        return {"all": used(*self.everyone()), "own": used(self.own)}

    def finish(self) -> None:
        """Let it run to its end."""
        self.signal(signal.SIGCONT)
        if self.process.wait():
            raise SystemExit(f"{self.log.read_text(errors='replace')[-2000:]}\nfailed")

    def end(self) -> None:
        """Whatever its state."""
        if self.process.poll() is None:
            for process in reversed(self.everyone()):
                process.kill()
            self.process.wait()

    def _size(self) -> int:
        return self.results.stat().st_size if self.results.is_file() else 0


def used(*processes: psutil.Process) -> float:
    """Processor seconds of running processes, and of those that they have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--images", type=int, default=200, help="a fifth of them is for validation")
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
    epochs = WARM + asked.pairs
    words = OPTIONS.format(hyp=hyp, data=data / "data.yaml", img=asked.img, epochs=epochs + 1).split()
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
            spent: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
            for number in range(epochs):
                for name in ARMS if number % 2 else reversed(ARMS):
                    spent[name].append(trainings[name].epoch())
                print(f"epoch {number + 1} of {epochs}", file=sys.stderr, flush=True)
            for training in trainings.values():
                training.finish()
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
    ratios = [mine / its - 1 for mine, its in zip(ours, hand, strict=True)]
    error = CONFIDENCE * stdev(ratios) / math.sqrt(len(ratios))
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
                "mean": round(mean(ratios), 4), "from": round(mean(ratios) - error, 4),
                "to": round(mean(ratios) + error, 4), "median": round(median(ratios), 4), "pairs": len(ratios),
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
