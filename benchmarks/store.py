"""How fast the store of decoded images is built, resumed and opened, against reading the same images with OpenCV.

    python benchmarks/store.py [--pictures 400] [--many 100000] [--beside CODE]

Run it in the container (`docker run --rm --cpuset-cpus 0 …`). Pictures: made-up 1280x720 JPEGs (232 kB), each
different, stored at 640 pixels. One worker process. `of_one_core` are images for each second of processor time, of both
processes, so that other work on the machine does not count; `of_clock` by the clock. `bare`: OpenCV's decoding, and
decoding with resizing, alone. `resume`: a build killed (-9) half way, then run again. `open`: an unchanged store of
many tiny images, in a fresh process, from the list of paths to the view: a stat of each file, the index, checksums of a
sample. `beside`: builds by the code/ of another state of this repository, in turn with ours. Writes
benchmarks/results/store.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pictures import make
from result import write

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "store.json"
CODE = ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"
SIDE = 640
QUALITY = 82  # 232 kB a picture
TINY = 16  # pixels of the many images, and of the side they are stored at
ROUNDS = 5


def step(name: str, *arguments: str | Path | int, code: Path = CODE) -> dict[str, Any]:
    """Run a step in a fresh process, whatever its end; returns its figures."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", name, *map(str, arguments)],
        check=False, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the step {name} failed")
    return dict(json.loads(done.stdout)) if done.stdout else {}


def listed(directory: str) -> list[str]:
    """The pictures below a directory."""
    return sorted(str(path) for path in Path(directory).rglob("*.[jp][pn]g"))


def bare(directory: str) -> dict[str, Any]:
    """Decoding alone, and with resizing: images a second of processor time, the best of some rounds."""
    from lab.fast.store_decode import Recipe, decode  # noqa: PLC0415
    from lab.fast.store_worker import keep_memory  # noqa: PLC0415

    cv2.setNumThreads(0)
    keep_memory()
    paths = listed(directory)
    contents = [Path(path).read_bytes() for path in paths[:200]]
    recipe = Recipe(SIDE)
    return {
        "read_and_resized": _rate(lambda path: recipe.resize(cv2.imread(path)), paths),
        "decoded": _rate(lambda each: cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR), contents),
        "decoded_and_resized": _rate(lambda each: decode(each, "", recipe), contents),
    }


def stages(directory: str, out: str) -> dict[str, float]:
    """Milliseconds of processor time that each stage of a worker takes for an image; the best of some rounds."""
    from lab.fast import store_worker  # noqa: PLC0415
    from lab.fast.store_decode import Recipe, decode  # noqa: PLC0415
    from lab.fast.store_files import checksum  # noqa: PLC0415

    cv2.setNumThreads(0)
    store_worker.keep_memory()
    paths, recipe = listed(directory)[:200], Recipe(SIDE)
    contents = [Path(path).read_bytes() for path in paths]
    images = [found[0] for found in (decode(each, "", recipe) for each in contents) if found]
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    rates = {
        "read": _rate(lambda path: Path(path).read_bytes(), paths),
        "digest": _rate(store_worker.digest_of, contents),
        "decode and resize": _rate(lambda each: decode(each, "", recipe), contents),
        "checksum": _rate(checksum, images),
        "write": _rate(lambda image: store_worker.append(descriptor, image), images),
    }
    return {name: round(1000 / rate, 3) for name, rate in rates.items()}


def scaled(directory: str) -> dict[str, float]:
    """libjpeg's decoding at half the size, which a store does not use: its time, and levels from what a store holds."""
    from lab.fast.store_decode import Recipe, decode  # noqa: PLC0415
    from lab.fast.store_worker import keep_memory  # noqa: PLC0415

    cv2.setNumThreads(0)
    keep_memory()
    contents = [Path(path).read_bytes() for path in listed(directory)[:200]]

    def half(content: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)

    found = decode(contents[0], "", Recipe(SIDE))
    assert found is not None
    off = np.abs(half(contents[0]).astype(int) - found[0])
    rate = _rate(half, contents)
    return {"milliseconds": round(1000 / rate, 3), "levels_off": round(float(off.mean()), 2), "most": int(off.max())}


def _rate(act: Callable[[Any], object], over: list[Any]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for each in over:
            act(each)
        best = min(best, time.process_time() - begun)
    return round(len(over) / best, 1)


def built(directory: str, cache: str, side: str, die_at: str) -> dict[str, Any]:
    """Build, or resume, or only open; `die_at` images done this process kills itself."""
    from lab.fast import store_build  # noqa: PLC0415
    from lab.fast.store_decode import Recipe  # noqa: PLC0415

    paths = listed(directory)
    done = [0]

    def progress(count: int, _: int) -> None:
        done[0] = count
        if count >= int(die_at) > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    begun, before = time.perf_counter(), time.process_time()
    store = store_build.build(Path(cache), "benchmark", paths, Recipe(int(side)), 1, progress)
    clock, parent = time.perf_counter() - begun, time.process_time() - before
    worker = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, Any] = {"images": len(store), "done_now": done[0], "seconds": round(clock, 3)}
    figures["processor_seconds_of_parent"] = round(parent, 3)
    if done[0]:
        figures["images_per_second_of_one_core"] = round(done[0] / (parent + worker.ru_utime + worker.ru_stime), 1)
        figures["images_per_second_of_clock"] = round(done[0] / clock, 1)
    return figures


def scatter(directory: Path, count: int) -> None:
    """Many tiny pictures, a thousand a directory, each different."""
    for number in range(count):
        place = directory / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        image = np.full((TINY, TINY, 3), 7, np.uint8)
        image[0, :4, 0] = [number >> shift & 255 for shift in (0, 8, 16, 24)]
        (place / f"{number:07d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())


def main() -> None:
    """Measure, print the figures, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--beside", type=Path, help="code/ of another state of this repository")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        name, *arguments = asked.step
        print(json.dumps({"bare": bare, "built": built, "stages": stages, "scaled": scaled}[name](*arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        make(place / "large", asked.pictures, 1280, 720, QUALITY)
        sizes = [file.stat().st_size for file in (place / "large/images").rglob("*.jpg")]
        figures: dict[str, Any] = {"jpeg_kb": round(sum(sizes) / len(sizes) / 1000)}
        bare_rates, builds, others = [], [], []
        for _ in range(ROUNDS):  # in turn: what slows the machine slows them alike
            bare_rates.append(step("bare", place / "large"))
            builds.append(_fresh(place, "large"))
            if asked.beside:
                others.append(_fresh(place, "large", asked.beside))
        figures["bare_images_per_second_of_one_core"] = {
            what: max(rates[what] for rates in bare_rates) for what in bare_rates[0]
        }
        figures["milliseconds_of_an_image"] = step("stages", place / "large", place / "out")
        figures["scaled_decoding"] = step("scaled", place / "large")
        figures["build"] = max(builds, key=_rate_of)
        if others:
            figures["beside"] = max(others, key=_rate_of)
            figures["times_as_fast_as_beside"] = round(
                statistics.median(_rate_of(one) / _rate_of(other) for one, other in zip(builds, others, strict=True)), 3
            )
        figures["second_start"] = step("built", place / "large", place / "cache", SIDE, 0)
        shutil.rmtree(place / "cache")
        step("built", place / "large", place / "cache", SIDE, asked.pictures // 2)
        figures["resume_after_kill_half_way"] = step("built", place / "large", place / "cache", SIDE, 0)
        shutil.rmtree(place / "cache")
        scatter(place / "many", asked.many)
        step("built", place / "many", place / "cache", TINY, 0)
        opened = [step("built", place / "many", place / "cache", TINY, 0) for _ in range(ROUNDS)]
        figures["open"] = min(opened, key=lambda each: float(each["seconds"]))
    write(RESULT, figures)


def _fresh(place: Path, name: str, code: Path = CODE) -> dict[str, Any]:
    shutil.rmtree(place / "cache", ignore_errors=True)
    return step("built", place / name, place / "cache", SIDE, 0, code=code)


def _rate_of(build: dict[str, Any]) -> float:
    return float(build["images_per_second_of_one_core"])


if __name__ == "__main__":
    main()
