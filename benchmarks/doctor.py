"""What the host check adds to the slowest program it asks, and how long it waits for one that hangs.

    python benchmarks/doctor.py [--pairs 15]

A described host with nothing wrong: nvidia-smi takes 0.5 s, every docker command 0.2 s, nvidia-ctk 0.1 s. In turns,
the check of a new project runs and the bare nvidia-smi; the figure is their difference. `uncompiled` is the same with
python -B in a copy that no Python has compiled, which is how .devcontainer/host-setup starts it. Writes
benchmarks/results/doctor.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "doctor.json"

SMI_SECONDS, DOCKER_SECONDS, CTK_SECONDS = 0.5, 0.2, 0.1
UUID = "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
ROW = f"0, NVIDIA GeForce RTX 4090, {UUID}, 570.86.10, 24564, 8.9, [N/A]"
INFO = {
    "ServerVersion": "28.3.0",
    "OperatingSystem": "Ubuntu 24.04.3 LTS",
    "Runtimes": {"nvidia": {}, "runc": {}},
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "DockerRootDir": "/var/lib/docker",
    "MemTotal": 64 << 30,
    "NCPU": 16,
    "ClientInfo": {"Context": "default"},
}
FILES = {
    "/etc/os-release": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "/proc/version": "Linux version 6.8.0-60-generic (buildd@x) #63-Ubuntu SMP\n",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Jan 1 2025\n",
    "/proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n",
    "/sys/module/nvidia/version": "570.86.10\n",
    "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "/sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
    "/sys/bus/pci/devices/0000:01:00.0/device": "0x2684\n",
    "/var/lib/docker/engine-id": "",
    "/dev/nvidia0": "",
    "/dev/nvidiactl": "",
    "/dev/nvidia-uvm": "",
    "/run/docker.sock": "",
}


def program(folder: Path, name: str, seconds: float, script: str) -> None:
    """A program that answers after a while."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n/bin/sleep {seconds}\n{script}\n")
    path.chmod(0o755)


def described(place: Path, smi: float, docker: float, ctk: float) -> dict[str, str]:
    """The environment in which a host is described whose programs take so many seconds."""
    programs = place / "bin"
    programs.mkdir(parents=True)
    program(programs, "nvidia-smi", smi, f"echo {shlex.quote(ROW)}")
    program(programs, "nvidia-ctk", ctk, "echo 'NVIDIA Container Toolkit CLI version 1.19.1'")
    program(
        programs, "docker", docker,
        f'case "$1" in info) echo {shlex.quote(json.dumps(INFO))};; compose) echo 2.38.1;;'
        " context) echo unix:///var/run/docker.sock;; esac",
    )  # fmt: skip
    for name, text in FILES.items():
        path = place / "root" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"PATH": str(programs), "HOST_ROOT": str(place / "root"), "HOME": str(place), "USER": "ada"}


def project(place: Path) -> Path:
    """A new project that belongs to an ordinary user; returns the folder from which its hostkit runs."""
    subprocess.run(
        [sys.executable, "-m", "generator", "new", "--output", str(place)],
        cwd=ROOT, env={**os.environ, "HOME": str(place.parent)}, check=True, capture_output=True,
    )  # fmt: skip
    made = next(place.iterdir())
    if os.getuid() == 0:  # the check warns of a project that belongs to root
        os.chown(made, 1000, 1000)
    return made / ".devcontainer"


def seconds(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, str]:
    """Wall time of a command to its end, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    taken = time.perf_counter() - began
    if done.returncode not in {0, 1}:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return taken, done.stdout


def main() -> None:
    """Measure, print the figures, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    kept = [sys.executable, "-m", "hostkit", "doctor"]
    plain = [sys.executable, "-B", "-m", "hostkit", "doctor"]
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        compiled, uncompiled = project(here / "compiled"), project(here / "uncompiled")
        healthy = described(here / "healthy", SMI_SECONDS, DOCKER_SECONDS, CTK_SECONDS)
        told = seconds(kept, healthy, compiled)[1]
        bare = [str(here / "healthy" / "bin" / "nvidia-smi")]
        runs = [
            (
                seconds(kept, healthy, compiled)[0],
                seconds(bare, healthy, here)[0],
                seconds(plain, healthy, uncompiled)[0],
            )
            for _ in range(pairs)
        ]
        stuck = {
            "nvidia_smi": seconds(kept, described(here / "stuck", 60, DOCKER_SECONDS, CTK_SECONDS), compiled)[0],
            "everything": seconds(kept, described(here / "dead", 60, 60, 60), compiled)[0],
        }
    beyond = sorted(ours - theirs for ours, theirs, _ in runs)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.platform(terse=True)}, Python {platform.python_version()}",
        "pairs": pairs,
        "verdict": next(line for line in told.splitlines() if "to mend" in line or " failed, " in line),
        "doctor_s": round(statistics.median(ours for ours, _, _ in runs), 3),
        "slowest_probe_s": round(statistics.median(theirs for _, theirs, _ in runs), 3),
        "beyond_the_slowest_probe_s": {
            "min": round(beyond[0], 3),
            "median": round(statistics.median(beyond), 3),
            "max": round(beyond[-1], 3),
        },
        "uncompiled_beyond_s": round(statistics.median(again - theirs for _, theirs, again in runs), 3),
        "hanging_s": {name: round(taken, 2) for name, taken in stuck.items()},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
