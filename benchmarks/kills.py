"""Does a training survive `kill -9` at any moment? Twenty runs, each killed once at a random moment and resumed.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/kills.py --engine yolov5 --result /benchmarks/results/kills-yolov5.json

Inside the container, in a project, with YOLOv5's source (`lab fetch`) for engine yolov5. All that it makes, data,
weights and runs, goes into a new folder, runs/kills/exp, exp2 and so on, or as --project and --name say; nothing else
is touched. Runs of six epochs on 96 pictures of 96 pixels, which go on from weights that were trained on them before,
so that mAP is far from zero and a loss would show. A fifth of the moments lies before the first step, the others are
spread from there to the end of the closing measurement, by how much the run has printed: seconds mean nothing on a busy
machine. Half of them kill every process at once, the others `lab` alone. Undisturbed runs with other seeds are the
measure of noise: the final numbers of the killed runs must lie among them, give or take the width of their range (a
tenth of the value at least, and 0.01 for mAP). The result is written after every kill.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EPOCHS = 6
LEARN = {"yolov5": 150, "yolov5u": 80}  # epochs of the training before
LEARNT = 0.3  # mAP50 that the training before must reach
TRAIN = "--optimizer AdamW --img 96 --batch 16 --workers 0 --noplots --device cpu"
SMALL = Path("code/configs/hyp.small.yaml")
CHANGED = {"lr0": 0.0005, "warmup_epochs": 0.0}  # gentle steps, which keep what was learnt
COMPARED = ("mAP50", "mAP50-95", "val/box_loss", "val/cls_loss")
SPELT = {"metrics/mAP_0.5": "mAP50", "metrics/mAP_0.5:0.95": "mAP50-95"}
PROGRESS = re.compile(r"(\d+)/(\d+)\s+[\d.]+G\s")  # YOLOv5 counts from 0, yolov5u from 1


def lab(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `lab WORDS`; its output goes to `log`."""
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "lab", *words], stdout=out, stderr=subprocess.STDOUT)


@dataclass(frozen=True)
class Place:
    """The folder of this benchmark: its data, the weights that every run goes on from, runs and logs."""

    folder: Path
    engine: str

    @property
    def weights(self) -> Path:
        """Where the training before has left what it learnt."""
        return self.folder / "before" / "weights" / "last.pt"

    def log(self, name: str) -> Path:
        """What a command printed."""
        return self.folder / f"{name}.log"

    def train(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a training."""
        mine = ["--data", str(self.folder / "data" / "data.yaml"), "--project", str(self.folder), "--name", name]
        return lab(["train", *TRAIN.split(), *mine, *words, "--engine", self.engine], self.log(name))

    def begin(self, name: str, seed: int) -> subprocess.Popen[bytes]:
        """Start one of the runs that are compared."""
        words = ["--weights", str(self.weights), "--epochs", str(EPOCHS), "--seed", str(seed)]
        return self.train(name, *words, "--hyp", str(self.folder / "hyp.yaml"))


def new_folder(project: Path, name: str) -> Path:
    """Make `project`/`name`, or, where that is there, name2 and so on, as trainings are numbered."""
    for number in itertools.count(1):
        folder = project / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder.resolve()
    raise AssertionError


def prepare(place: Place) -> None:
    """Make the data, and train the weights that every run goes on from."""
    words = ["data", "demo", "--images", "120", "--size", "96", "--out", str(place.folder / "data")]
    assert lab(words, place.log("data")).wait() == 0, f"there are no data, see {place.log('data')}"
    words = ["--weights=", "--cfg", "yolov5n.yaml", "--epochs", str(LEARN[place.engine]), "--hyp", str(SMALL)]
    assert place.train("before", *words).wait() == 0, f"the training before failed, see {place.log('before')}"
    reached = final(place.folder / "before")["mAP50"]
    assert reached >= LEARNT, f"the training before reached mAP50 {reached}, not {LEARNT}"
    gentle = {**yaml.safe_load(SMALL.read_text(encoding="utf-8")), **CHANGED}
    (place.folder / "hyp.yaml").write_text(yaml.safe_dump(gentle), encoding="utf-8")


def final(run: Path) -> dict[str, float]:
    """The last line of results.csv, and how many epochs it lists."""
    with (run / "results.csv").open(encoding="utf-8") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    named = {SPELT.get(key, key.replace("metrics/", "").replace("(B)", "")): value for key, value in rows[-1].items()}
    return {"epochs": len(rows), **{key: float(named[key]) for key in COMPARED}}


def started(log: Path, engine: str) -> int:
    """How many epochs a run began, by its progress bars."""
    seen = [int(found[1]) for found in PROGRESS.finditer(log.read_text(encoding="utf-8", errors="replace"))]
    return max(seen) + (engine == "yolov5") if seen else 0


def kill(process: subprocess.Popen[bytes], everything: bool) -> None:
    """SIGKILL to `lab`, and to its children in the same moment when `everything`."""
    import psutil  # noqa: PLC0415  it is in the image

    family = psutil.Process(process.pid).children(recursive=True) if everything else []
    os.kill(process.pid, signal.SIGKILL)
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def printed(log: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has printed `size` bytes, or has ended."""
    while process.poll() is None and log.stat().st_size < size:
        time.sleep(0.01)


def one(place: Place, number: int, size: int, delay: float) -> dict[str, Any]:
    """Kill a run when it has printed `size` bytes, and `delay` seconds more have gone; resume it."""
    name = f"killed{number}"
    process = place.begin(name, 0)
    printed(place.log(name), size, process)
    time.sleep(delay)
    ended = process.poll() is not None
    if not ended:
        kill(process, everything=number % 2 == 0)
    time.sleep(0.5)  # the orphaned child is ended by the kernel
    before = started(place.log(name), place.engine)
    run = place.folder / name
    outcome: dict[str, Any] = {"printed": size, "epochs_begun": before}
    if ended or not (run / "request.json").is_file():
        return {**outcome, "note": "ended before" if ended else "killed before it had a directory", "finished": ended}
    if json.loads((run / "request.json").read_text(encoding="utf-8"))["done"]:
        return {**outcome, "note": "was finished, was just saying so", "finished": True, **final(run)}
    again = place.log(f"{name}-resumed")
    status = lab(["train", "--resume", str(run)], again).wait()
    text = again.read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.startswith("lab: ")]
    kept = re.search(r"after (\d+) of", text)
    closing = "closing measurement" in text
    kept_epochs = EPOCHS if closing else int(kept[1]) if kept else 0
    return {
        **outcome,
        "epochs_kept": kept_epochs,
        "epochs_repeated": max(0, before - kept_epochs),
        "finished": status == 0 and json.loads((run / "request.json").read_text(encoding="utf-8"))["done"],
        "said": said[0].removeprefix("lab: ") if said else "",
        **(final(run) if (run / "results.csv").is_file() else {}),
    }


def judge(
    engine: str, seconds: list[float], whole: list[dict[str, float]], killed: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the kills so far amount to."""
    noise = {}
    for key in COMPARED:
        least, most = min(run[key] for run in whole), max(run[key] for run in whole)
        width = max(most - least, 0.01 if key.startswith("mAP") else 0.1 * most)
        noise[key] = [round(least - width, 5), round(most + width, 5)]
    measured = [run for run in killed if "mAP50" in run]
    anew = [run for run in measured if run.get("epochs_kept") == 0]
    outside = [
        (key, run[key]) for run in measured for key in COMPARED if not noise[key][0] <= run[key] <= noise[key][1]
    ]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, no GPU, shared machine",
        "engine": engine,
        "epochs": EPOCHS,
        "undisturbed_s": [round(value, 1) for value in seconds],
        "finished": f"{sum(run['finished'] for run in killed)} of {len(killed)}",
        "most_epochs_repeated": max((run.get("epochs_repeated", 0) for run in killed), default=0),
        "epochs_listed": sorted({int(run["epochs"]) for run in measured}),
        "noise": noise,
        "outside_noise": outside,
        # the same seed from the beginning: equal to the last printed digit
        "begun_anew_and_equal": [all(run[key] == whole[0][key] for key in COMPARED) for run in anew],
        "undisturbed": whole,
        "killed": killed,
    }


def main() -> None:
    """Run, judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("yolov5", "yolov5u"), default="yolov5")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--undisturbed", type=int, default=5)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--project", type=Path, default=Path("runs/kills"), help="where its folder is made")
    parser.add_argument("--name", default="exp", help="the folder's name")
    wanted = parser.parse_args()
    place = Place(new_folder(wanted.project, wanted.name), wanted.engine)
    prepare(place)
    whole: list[dict[str, float]] = []
    seconds: list[float] = []
    killed: list[dict[str, Any]] = []
    begins = ends = 0
    for seed in range(wanted.undisturbed):
        begun, name = time.monotonic(), f"whole{seed}"
        log = place.log(name)
        assert place.begin(name, seed).wait() == 0, f"an undisturbed run failed, see {log}"
        seconds.append(time.monotonic() - begun)
        text = log.read_bytes()
        step = PROGRESS.search(text.decode(errors="replace"))
        assert step is not None, f"no progress bar in {log}"
        begins, ends = step.start(), len(text)
        whole.append(final(place.folder / name))
    chance = random.Random(5)
    for number in range(wanted.kills):
        share = (number + chance.random()) / wanted.kills
        size = share * begins if number % 5 == 4 else begins + share * (ends - begins)
        killed.append(one(place, number, int(size), chance.uniform(0, 0.3)))
        print(json.dumps(killed[-1]), flush=True)
        result = judge(wanted.engine, seconds, whole, killed)
        wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("finished", "most_epochs_repeated", "noise", "outside_noise")}))


if __name__ == "__main__":
    main()
