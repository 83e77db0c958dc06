"""Time of `resolve --hosts` for 10,000 hosts: an answer a line, and the summary. Whole processes, in one run.

    python benchmarks/fleet.py [--hosts 10000] [--runs 7]

The fleet is made up: seven GPUs from the P40 to the RTX 5090, drivers 470 to 610, some mixed machines, some without a
GPU, every host with a driver and memory of its own so that few questions are the same. Writes
benchmarks/results/fleet.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fleet.json"

# name, capability, MiB, GPUs in a machine, driver branches, share of the fleet
KINDS = [
    ("Tesla P40", "6.1", 23040, 2, (470, 525, 535, 550, 580, 610), 6),
    ("Tesla V100-SXM2-16GB", "7.0", 16384, 8, (470, 535, 550, 580), 12),
    ("Tesla T4", "7.5", 15360, 1, (470, 535, 550, 580), 24),
    ("NVIDIA A100-SXM4-80GB", "8.0", 81920, 8, (470, 525, 535, 550, 570, 580), 20),
    ("NVIDIA GeForce RTX 4090", "8.9", 24564, 1, (535, 550, 570, 580, 595), 16),
    ("NVIDIA H100 80GB HBM3", "9.0", 81559, 8, (535, 550, 570, 580, 610), 15),
    ("NVIDIA GeForce RTX 5090", "12.0", 32607, 1, (570, 580, 595, 610), 7),
]


def fleet(count: int) -> list[str]:
    """The lines of an inventory, the same ones each time."""
    draw = random.Random(1)
    lines = []
    for number in range(count):
        name, capability, memory, gpus, branches, _ = draw.choices(KINDS, [kind[-1] for kind in KINDS])[0]
        branch = draw.choice(branches)
        machine = [(name, capability, memory)] * gpus
        if draw.random() < 0.03:
            machine.append(draw.choice(KINDS)[:3])
        if draw.random() < 0.02:
            machine = []
        host = {
            "host": f"node-{number:05}",
            "driver": f"{branch}.{draw.randrange(30, 250)}.{draw.randrange(20):02}",
            "gpus": [
                # drivers before 510 do not print the capability
                {
                    "name": name,
                    "capability": capability if branch >= 510 else None,
                    "memory_mib": mib - draw.randrange(9),
                }
                for name, capability, mib in machine
            ],
        }
        lines.append(json.dumps(host))
    return lines


def seconds(file: Path, *more: str) -> float:
    """Wall time of one process that answers for the fleet."""
    command = [sys.executable, "-m", "generator", "resolve", "--hosts", str(file), *more]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print the medians, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    one = [sys.executable, "-m", "generator", "resolve", "--driver", "570.86.10", "--gpu", "Tesla T4,7.5,15360"]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "hosts")
        file.write_text("\n".join(fleet(options.hosts)))
        seconds(file)
        measured = []
        for _ in range(options.runs):
            lines, summary = seconds(file), seconds(file, "--summary")
            began = time.perf_counter()
            subprocess.run(one, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            measured.append((lines, summary, time.perf_counter() - began))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.platform(terse=True)}, Python {platform.python_version()}",
        "hosts": options.hosts,
        "runs": options.runs,
    }
    for name, column in zip(("answer_a_line_s", "summary_s", "one_host_s"), zip(*measured, strict=True), strict=True):
        result[name] = {"median": round(statistics.median(column), 3), "max": round(max(column), 3)}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
