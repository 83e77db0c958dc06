"""A project for a host without a network: bundled here, then built and smoked with the network cut.

The bundle is made with this machine's own mirrors, proxies and certificates. Nothing can come from an earlier build:
the proof builds every layer anew, without a network, and takes packages from wheelhouse/ alone or fails.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, UPSTREAM, User

# CUDA 13's libraries are a gigabyte smaller than those of the default release.
SETTINGS = "TORCH_VERSION=2.11.0\nTORCH_BUILD=cu130\nYOLO_ACCEL=cpu\n"


@pytest.fixture(scope="module")
def carried(user: User) -> Iterator[Path]:
    """A project of its own, and a clone of YOLOv5 that its user can reach."""
    place = Path(tempfile.mkdtemp(prefix="e2e-offline-", dir="/var/tmp"))
    place.chmod(0o755)
    made = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(place)]
    subprocess.run(made, cwd=place, capture_output=True, check=True)
    project, mirror = place / "my-detector", place / "yolov5.git"
    clone = ["git", "clone", "--quiet", "--bare", UPSTREAM, str(mirror)]
    cloned = subprocess.run(clone, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if cloned.returncode:
        pytest.skip(f"YOLOv5's source cannot be had from {UPSTREAM}: set YOLOV5_GIT_URL to prove the bundle")
    (project / ".env").write_text(f"{SETTINGS}YOLOV5_GIT_URL={mirror}\n", encoding="utf-8")
    subprocess.run(["chown", "--recursive", f"{user.uid}:{user.gid}", str(place)], check=True)
    yield project
    shutil.rmtree(place, ignore_errors=True)


def number(image: str) -> str:
    """The engine's number of an image, "" when it has none of that name."""
    command = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_a_bundle_builds_and_smokes_with_the_network_cut(user: User, carried: Path) -> None:
    # what counts look-ups does count them: without a bundle the first step asks for Debian's packages
    alone = ["docker", "build", "--network", "none", "--no-cache", "--progress", "plain", "--file", "docker/Dockerfile"]
    failed = user.run(*alone, ".", cwd=carried, env={"DOCKER_BUILDKIT": "1"})
    assert failed.returncode != 0
    assert re.search(r"look-ups and connects of this step: [1-9]", failed.stdout + failed.stderr)

    # the shell's own would win over .env, and may name a place that this user cannot read
    bundled = user.run("make", "bundle", cwd=carried, env={"YOLOV5_GIT_URL": str(carried.parent / "yolov5.git")})
    assert bundled.returncode == 0, bundled.stdout[-3000:] + bundled.stderr[-3000:]
    print(*bundled.stdout.splitlines()[-10:], sep="\n")
    manifest = json.loads((carried / "wheelhouse/manifest.json").read_text())
    assert manifest["builds"] == ["cu130"]
    kinds = {kind for one in manifest["files"].values() for kind in one["for"].split(", ")}
    wanted = {"installer", "torch", "packages", "torch cu130", "Debian packages", "the base image", "YOLOv5's source"}
    assert kinds == wanted
    known = user.run("git", "status", "--porcelain", "--untracked-files=all", "wheelhouse", cwd=carried).stdout
    assert set(known.split()) == {"A", "wheelhouse/.gitkeep", "wheelhouse/README.md"}

    base, archive = manifest["image"], next((carried / "wheelhouse" / "image").glob("*.tar"))
    before = number(base)
    try:
        subprocess.run(["docker", "image", "rm", "--force", base], check=True, capture_output=True)
        assert number(base) == ""
        proved = user.run("make", "verify-bundle", cwd=carried)
    finally:
        if number(base) != before:  # other tests build on it
            subprocess.run(["docker", "load", "--input", str(archive)], check=True, capture_output=True)
    assert proved.returncode == 0, proved.stdout[-4000:] + proved.stderr[-3000:]
    assert f"host-setup: the base image {base} was not in this engine and came from wheelhouse/." in proved.stdout
    assert number(base) == before
    said = [line for line in proved.stdout.splitlines() if line.startswith("verify-bundle: ")]
    print(*said, sep="\n")
    assert len([line for line in said if line.endswith("look-ups and connects: 0")]) == 2  # the build, and lab smoke
    assert len(re.findall("look-ups and connects of this step: 0", proved.stdout)) == 4
    assert re.search(r"^smoke: yolov5 ok in .* one epoch, \.pt and ONNX agree", proved.stdout, re.MULTILINE)
    # each layer that installs something had all of it in wheelhouse/, and none is an old one
    assert len(re.findall(r"wheelhouse: all (?:of it|Debian packages)", proved.stdout)) == 5
    assert "not all of it is there" not in proved.stdout
    layers = re.findall(r"^#(\d+) \[de\w+ \d+/\d+\] (?:RUN|COPY)", proved.stdout, re.MULTILINE)
    assert len(layers) >= 7
    assert not [number for number in layers if f"\n#{number} CACHED" in proved.stdout]

    wheel = next((carried / "wheelhouse").glob("torch-*.whl"))
    with wheel.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    spoilt = user.run("make", "verify-bundle", cwd=carried)
    assert spoilt.returncode != 0
    assert f"verify-bundle: {wheel.name} is damaged: run `make bundle` again" in spoilt.stderr
