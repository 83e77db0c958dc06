"""What fills an image: its layers, and the largest packages inside.

    python benchmarks/image.py IMAGE

Sizes are uncompressed, as `docker image inspect` counts them. Writes benchmarks/results/image.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "image.json"
# `du` in kibibytes, packages that only NVIDIA's wheels bring one level deeper
CONTENTS = "cd /opt/venv/lib/python3*/site-packages && { du -sk -- nvidia/*; du -sk -- *; } | sort -rn | head -40"
# What the recipe of a layer is recognised by
MADE_BY = {
    "install-torch": "torch, torchvision and their CUDA libraries",
    "requirements.lock": "the other packages",
    "install-apt": "Debian packages: compilers, git",
    "bootstrap.lock": "virtual environment, uv",
    "useradd": "the user",
}


def docker(*arguments: str) -> str:
    """What docker prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print and keep the figures of one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    image = parser.parse_args().image
    history = docker("history", "--human=false", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    layers = []
    for line in history.splitlines():
        size, made = line.split("\t", 1)
        if int(size) > 1e6:
            made_by = next((words for mark, words in MADE_BY.items() if mark in made), "base image")
            layers.append({"megabytes": round(int(size) / 1e6), "made_by": made_by})
    packages = {}
    for line in docker("run", "--rm", "--network", "none", image, "bash", "-c", CONTENTS).splitlines():
        size, name = line.split("\t")
        if int(size) * 1024 > 5e7 and name != "nvidia":
            packages[name] = round(int(size) * 1024 / 1e6)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "image": image.rpartition(":")[2],
        "gigabytes": round(int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e9, 2),
        "layers_mb": layers,
        "packages_mb": packages,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
