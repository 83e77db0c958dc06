"""Does the fast data path learn as well as upstream's own? The demo data, several seeds, both engines, in pairs.

    docker run --rm -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/same_learning.py --result /benchmarks/results/same-learning.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). Each seed trains yolov5n from scratch twice, with
`--plain` and with the store, in turns which comes first. It holds when the mean mAP50 of ours, of the best epochs, is
not more than 0.02 below upstream's, which is above 0.5, and upstream's own validation, run on our checkpoints, finds
the mAP50 that the training had found in that epoch (the one of the best fitness, which is seldom that of the best
mAP50), as closely as it does on upstream's own. The result is written after every pair; an engine that is not asked for
keeps what the result had of it.

`--path device` compares the loader that paints whole batches instead, which a GPU has by default and which draws its
random numbers in streams of its own. `lab train` takes it on a GPU alone; here it paints on the processor, by the same
lines unfused. Its figures are kept beside the store's, by another name.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ENGINES = ("yolov5", "yolov5u")
PATHS = {"plain": ["--plain"], "store": ["--with", "store"], "device": ["--with", "store"]}
# `lab`, but for the decision that needs a GPU
ON_PROCESSOR = """
import sys
from dataclasses import replace
from lab.cli import main
from lab.fast import choose
decide = choose.decide
choose.decide = lambda facts, wish: replace(decide(facts, wish), data="device")
sys.exit(main(sys.argv[1:]))
"""
# until either has stopped rising: a seed that begins badly is then no longer seen (yolov5 steps once in 64 pictures)
EPOCHS = {"yolov5": 250, "yolov5u": 60}
# what hyp.small.yaml leaves out, so that every part of a picture's way is used
CHANGED = {"mosaic": 0.5, "mixup": 0.1, "scale": 0.3, "degrees": 5.0, "flipud": 0.1}
MAP50 = re.compile(r"metrics/mAP_?(0\.)?50?(\(B\))?")
MAP50_95 = re.compile(r"metrics/mAP_?(0\.5:0\.95|50-95)(\(B\))?")
FITNESS = (0.1, 0.9)  # of mAP50 and mAP50-95: upstream's measure of which epoch becomes best.pt
SPOKEN = re.compile(r"\ball +\d+ +\d+ +[\d.]+ +[\d.]+ +([\d.]+) +[\d.]+")  # of a validation: P, R, mAP50, mAP50-95
LEARNT = 0.5  # below that a comparison says nothing
ALLOWED = 0.02  # below upstream's mean
CLOSE = 0.01  # a checkpoint is kept in half precision


def lab(words: list[str], log: Path, program: tuple[str, ...] = ("-m", "lab")) -> str:
    """Run `lab WORDS`; what it printed. Ends the benchmark when that fails."""
    with log.open("wb") as out:
        done = subprocess.run([sys.executable, *program, *words], check=False, stdout=out, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"lab {' '.join(words)} ended with {done.returncode}, see {log}"
    return log.read_text(encoding="utf-8", errors="replace")


def learnt(run: Path) -> list[tuple[float, float]]:
    """mAP50 and mAP50-95 of each epoch."""
    with (run / "results.csv").open(encoding="utf-8") as file:
        rows = [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [tuple(next(row[key] for key in row if kind.fullmatch(key)) for kind in (MAP50, MAP50_95)) for row in rows]


def kept(epochs: list[tuple[float, float]]) -> float:
    """mAP50 of the epoch whose weights are best.pt."""
    return max(epochs, key=lambda epoch: sum(weight * value for weight, value in zip(FITNESS, epoch, strict=True)))[0]


def train(engine: str, path: str, seed: int, wanted: argparse.Namespace, place: Path) -> dict[str, Any]:
    """One training, and what upstream's own validation says of its best checkpoint."""
    name = f"learning-{engine}-{path}-{seed}"
    data = ["--data", str(place / "data" / "data.yaml"), "--img", str(wanted.img), "--batch", "16", "--engine", engine]
    words = ["train", "--weights", "", "--cfg", "yolov5n.yaml", *data, "--hyp", str(place / "hyp.yaml")]
    words += ["--optimizer", "AdamW", "--epochs", str(wanted.epochs or EPOCHS[engine]), "--seed", str(seed)]
    words += ["--device", "cpu", "--noplots", "--name", name, *PATHS[path]]
    run = Path("runs/train", name)
    shutil.rmtree(run, ignore_errors=True)  # an engine would append to its results
    begun = time.monotonic()
    lab(words, place / f"{name}.log", ("-c", ON_PROCESSOR) if path == "device" else ("-m", "lab"))
    said = json.loads((run / "request.json").read_text(encoding="utf-8"))["speed"]["data"]
    assert said == path, f"the training took the path {said}, see {place / name}.log"
    seconds = time.monotonic() - begun
    epochs = learnt(run)
    said = lab(
        ["val", *data, "--weights", str(run / "weights" / "best.pt"), "--device", "cpu"], place / f"{name}-val.log"
    )
    measured = float(SPOKEN.findall(said)[-1])
    found = {"seed": seed, "best": max(epochs)[0], "last": epochs[-1][0], "seconds": round(seconds)}
    found |= {"kept": kept(epochs), "measured": measured}  # of best.pt: by the training, by `lab val`
    print(json.dumps({"engine": engine, "path": path, **found}), flush=True)
    return found


def mean(runs: list[dict[str, Any]], key: str) -> float:
    """Of one figure over the seeds."""
    return round(sum(run[key] for run in runs) / len(runs), 4)


def judge(runs: dict[str, list[dict[str, Any]]], path: str) -> dict[str, Any]:
    """What the pairs of one engine so far amount to; `path` is that of ours."""
    ours, theirs = runs[path], runs["plain"]
    apart = {path: max(abs(run["kept"] - run["measured"]) for run in found) for path, found in runs.items()}
    return {
        "mean_best": {path: mean(found, "best") for path, found in runs.items()},
        "mean_last": {path: mean(found, "last") for path, found in runs.items()},
        "ours_above_upstream": round(mean(ours, "best") - mean(theirs, "best"), 4),
        "spread_of_upstream": round(max(run["best"] for run in theirs) - min(run["best"] for run in theirs), 4),
        "checkpoint_off": {path: round(off, 4) for path, off in apart.items()},
        "holds": mean(theirs, "best") > LEARNT
        and mean(ours, "best") >= mean(theirs, "best") - ALLOWED
        and apart[path] <= max(CLOSE, apart["plain"]),
        "runs": runs,
    }


def main() -> None:
    """Train, judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--path", default="store", choices=("store", "device"), help="of ours")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=160, help="a fifth of them is for validation")
    parser.add_argument("--img", type=int, default=96)
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--result", type=Path, required=True)
    wanted = parser.parse_args()
    import torch  # noqa: PLC0415  seconds, and --help needs none of them
    import ultralytics  # noqa: PLC0415

    place = Path("runs/same-learning").resolve()
    place.mkdir(parents=True, exist_ok=True)
    made = ["data", "demo", "--images", str(wanted.images), "--size", str(wanted.img), "--out", str(place / "data")]
    lab([*made, "--force"], place / "data.log")
    hyp = yaml.safe_load(Path("code/configs/hyp.small.yaml").read_text(encoding="utf-8")) | CHANGED
    (place / "hyp.yaml").write_text(yaml.safe_dump(hyp), encoding="utf-8")
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, no GPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
        },
        "options": {"model": "yolov5n", "images": wanted.images, "img": wanted.img, "batch": 16, **CHANGED},
        "engines": json.loads(wanted.result.read_text(encoding="utf-8"))["engines"] if wanted.result.is_file() else {},
    }
    for engine in wanted.engine or ENGINES:
        runs: dict[str, list[dict[str, Any]]] = {path: [] for path in ("plain", wanted.path)}
        for seed in range(wanted.seeds):
            for path in list(runs)[:: -1 if seed % 2 else 1]:
                runs[path].append(train(engine, path, seed, wanted, place))
            epochs = wanted.epochs or EPOCHS[engine]
            name = engine if wanted.path == "store" else f"{engine}, {wanted.path}"
            result["engines"][name] = {"epochs": epochs, **judge(runs, wanted.path)}
            wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({engine: {**found, "runs": ""} for engine, found in result["engines"].items()}, indent=1))


if __name__ == "__main__":
    main()
