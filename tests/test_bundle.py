"""`make bundle` and `make verify-bundle`: what is asked for, kept and refused. docker and git are the test's own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from hosts import DescribedHost, facts

from generator.hostkit import bundle, bundle_check, setup, wheelhouse
from generator.hostkit.catalogue import Catalogue

CATALOGUE = Catalogue.read()
IMAGE = "python:3.11-slim-bookworm"
SOURCE = "yolov5-5081342f.tar.gz"
ARCHIVE = "image/python-3.11-slim-bookworm.tar"

DOCKER = """#!{python}
import json, os, pathlib, sys
words, state = sys.argv[1:], pathlib.Path(os.environ["STATE"])
project = pathlib.Path(os.environ["PROJECT"])
def says(name, default=""):
    return (state / name).read_text() if (state / name).exists() else default
with (state / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[:2] == ["image", "inspect"]:
    if (state / "no-image").exists():
        sys.exit("Error: No such image")
    print("sha256:1" if "{{.Id}}" in words else 1000)
elif words[0] == "pull":
    sys.exit("Error response from daemon: x509: certificate signed by unknown authority")
elif words[0] == "save":
    pathlib.Path(words[words.index("--output") + 1]).write_text("an image")
elif words[0] == "load":
    (state / "no-image").unlink()
elif words[0] == "compose":
    print((state / "compose.json").read_text())
elif words[0] == "run" and "/docker/download-wheels" in words:
    (state / "index").write_text(os.environ["UV_DEFAULT_INDEX"])
    with (state / "builds").open("a") as builds:
        builds.write(os.environ["BUILDS"] + "\\n")
    if says("refuses"):
        print(says("refuses"))
        sys.exit(1)
    listed = json.loads(says("wheels"))
    for name in listed:
        (project / "wheelhouse" / name).write_text(name)
    (project / "wheelhouse/.wheels.json").write_text(json.dumps(listed))
elif words[0] == "run" and "/docker/install-apt" in words:
    (project / "wheelhouse/apt/git_2_amd64.deb").write_text("git")
elif words[0] == "build":
    print(says("build", "#8 0.1 wheelhouse: all of it was there"))
    sys.exit(int(says("build-status", "0")))
elif words[0] == "run":
    print(says("smoke", "smoke: ok\\n--- look-ups and connects ---\\n7 loopback-connect 127.0.0.1 python"))
    sys.exit(int(says("smoke-status", "0")))
"""
GIT = """case "$*" in *archive*) ;; *) exit;; esac
for word; do case $word in --output=*) echo source >"${word#--output=}";; esac; done"""


def wheel(name: str, *parts: str) -> dict[str, object]:
    return {"for": list(parts), "sha256": hashlib.sha256(name.encode()).hexdigest(), "bytes": len(name)}


WHEELS = {
    "uv-1-py3-none-any.whl": wheel("uv-1-py3-none-any.whl", "installer"),
    "torch-2.8.0-cp311-cp311-linux.whl": wheel("torch-2.8.0-cp311-cp311-linux.whl", "torch cu128"),
    "numpy-2-cp311-cp311-linux.whl": wheel("numpy-2-cp311-cp311-linux.whl", "torch", "packages"),
}


class Bench:
    """A project and an engine, both described."""

    def __init__(self, folder: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.state, self.capsys = folder, state, capsys
        self.arguments = {
            "PYTHON_IMAGE": IMAGE,
            "TORCH_VERSION": "2.8.0",
            "TORCHVISION_VERSION": "0.23.0",
            "TORCH_BUILD": "cu128",
            "TORCH_INDEX": "",
            "APT_MIRROR": "",
            "UV_DEFAULT_INDEX": "",
            "LOGGER": "none",
        }
        self.engine("wheels", json.dumps(WHEELS))
        self.compose()

    def compose(self, **changes: str) -> None:
        self.arguments.update(changes)
        files = {"host-ca": ".devcontainer/host-ca.pem", "netrc": "docker/no-netrc"}
        secret = {name: {"file": str(self.folder / file)} for name, file in files.items()}
        dev = {"build": {"args": self.arguments}, "environment": {"YOLOV5_GIT_URL": None}}
        self.engine("compose.json", json.dumps({"services": {"dev": dev}, "secrets": secret}))

    def engine(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def calls(self, verb: str) -> list[list[str]]:
        lines = (self.state / "calls").read_text().splitlines()
        return [words for words in map(json.loads, lines) if words[0] == verb]

    def make(self, builds: str = "", weights: str = "") -> int:
        return bundle.run(self.folder, builds, weights, CATALOGUE)

    def verify(self) -> int:
        return bundle_check.run(self.folder, CATALOGUE)

    def refused(self, status: int, expected: int) -> str:
        """The one sentence of a command that could not."""
        assert status == expected
        said = [line for line in self.capsys.readouterr().err.splitlines() if line]
        assert len(said) == 1
        return said[0]

    def manifest(self) -> dict[str, object]:
        return json.loads((self.folder / "wheelhouse/manifest.json").read_text())


@pytest.fixture
def bench(tmp_path, monkeypatch, bake, capsys) -> Bench:
    host = DescribedHost(tmp_path, monkeypatch)
    folder, state = tmp_path / "my-detector", tmp_path / "state"
    shutil.copytree(bake(), folder, ignore=shutil.ignore_patterns(".git", "notebooks"))
    state.mkdir()
    host.program("docker", "").write_text(DOCKER.replace("{python}", sys.executable, 1))
    host.program("git", GIT)
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.setenv("PROJECT", str(folder))
    (folder / ".env").write_text("TORCH_BUILD=cu128\nYOLO_ACCEL=cpu\n")
    for module in (bundle, bundle_check):
        monkeypatch.setattr(module, "probe", lambda *_, **__: facts())
    return Bench(folder, state, capsys)


# --- making it --------------------------------------------------------------------------------------------------------


def test_everything_is_listed_with_what_it_is_for(bench):
    (bench.folder / "yolov5s.pt").write_text("weights")
    assert bench.make(weights="yolov5s.pt") == 0
    manifest = bench.manifest()
    assert {name: one["for"] for name, one in manifest["files"].items()} == {
        "uv-1-py3-none-any.whl": "installer",
        "torch-2.8.0-cp311-cp311-linux.whl": "torch cu128",
        "numpy-2-cp311-cp311-linux.whl": "torch, packages",
        "apt/git_2_amd64.deb": "Debian packages",
        ARCHIVE: "the base image",
        SOURCE: "YOLOv5's source",
        "weights/yolov5s.pt": "weights",
    }
    for name, one in manifest["files"].items():
        content = (bench.folder / "wheelhouse" / name).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest["python"], manifest["builds"], manifest["image"]) == ("3.11", ["cu128"], IMAGE)
    assert "7 files in wheelhouse/" in bench.capsys.readouterr().out


def test_what_is_there_is_not_made_again_and_what_is_old_goes(bench):
    assert bench.make() == 0
    kept = bench.folder / "wheelhouse/own-1-py3-none-any.whl"
    kept.write_text("a package of ours")
    old = WHEELS.copy()
    gone = bench.folder / "wheelhouse/numpy-2-cp311-cp311-linux.whl"
    del old[gone.name]
    bench.engine("wheels", json.dumps(old))
    assert bench.make() == 0
    assert len(bench.calls("save")) == 1
    assert not gone.exists()
    assert bench.manifest()["files"][kept.name]["for"] == "put there by hand"
    bench.engine("wheels", json.dumps({}))
    assert bench.make() == 0
    assert kept.exists()


def test_what_was_damaged_is_made_again(bench):
    assert bench.make() == 0
    for name in (ARCHIVE, SOURCE):
        (bench.folder / "wheelhouse" / name).write_text("cut")
    assert bench.make() == 0
    assert len(bench.calls("save")) == 2
    assert (bench.folder / "wheelhouse" / SOURCE).read_text() == "source\n"


def test_each_build_comes_from_its_index_or_the_mirror(bench, monkeypatch):
    assert bench.make("cu128, cu126") == 0
    monkeypatch.setenv("TORCH_INDEX_BASE", "https://near.example/whl")
    assert bench.make("cpu") == 0
    asked = (bench.state / "builds").read_text().splitlines()
    assert asked == ["cu128= cu126=https://download.pytorch.org/whl/cu126", "cpu=https://near.example/whl/cpu"]
    assert bench.manifest()["builds"] == ["cpu"]


def test_a_netrc_reaches_the_downloads_as_a_file(bench):
    assert bench.make() == 0
    mounts = [word for call in bench.calls("run") for word in call if word.endswith(":/run/secrets/netrc:ro")]
    assert mounts == [f"{bench.folder / 'docker/no-netrc'}:/run/secrets/netrc:ro"] * 2  # of wheels, and of apt


@pytest.mark.parametrize(
    ("builds", "weights", "image", "sentence"),
    [
        ("cu999", "", IMAGE, "bundle: torch 2.8.0 has no build cu999 for x86_64: there is cu128"),
        ("", "none.pt", IMAGE, "bundle: the weights none.pt are not a file of this host"),
        ("", "lab.yaml,code/../lab.yaml", IMAGE, "bundle: two files of the weights are called lab.yaml"),
        ("", "", "python@sha256:0", "bundle: PYTHON_IMAGE=python@sha256:0 is named by its digest"),
    ],
)
def test_a_bad_request(bench, builds, weights, image, sentence):
    bench.compose(PYTHON_IMAGE=image)
    assert bench.refused(bench.make(builds, weights), 2).startswith(sentence)
    assert not (bench.folder / "wheelhouse/manifest.json").exists()


def test_what_a_download_says_last_is_the_sentence_and_there_is_no_bundle(bench):
    assert bench.make() == 0
    bench.capsys.readouterr()
    bench.engine("refuses", "Retrying\nSTOP: the certificate of near.example is not trusted here: do this.\n")
    assert bench.refused(bench.make(), 1) == "bundle: the certificate of near.example is not trusted here: do this."
    assert not (bench.folder / "wheelhouse/manifest.json").exists()


def test_a_base_image_that_cannot_be_had(bench):
    bench.engine("no-image", "")
    said = bench.refused(bench.make(), 1)
    assert "x509: certificate signed by unknown authority" in said
    assert "PYTHON_IMAGE" in said


# --- proving it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(bench) -> Bench:
    assert bench.make() == 0
    bench.capsys.readouterr()
    return bench


def test_a_whole_bundle(made):
    assert made.verify() == 0
    (build,) = made.calls("build")
    assert build[build.index("--network") + 1] == "none"
    assert "--no-cache" in build
    assert build[build.index("TORCH_BUILD") - 1] == "--build-arg"
    smoke = made.calls("run")[-1]
    assert smoke[smoke.index("--network") + 1] == "none"
    assert "look-ups and connects: 0" in made.capsys.readouterr().out
    removed = [words for words in made.calls("image") if words[1] == "rm"]
    assert removed == [["image", "rm", build[build.index("--tag") + 1]]]


def test_a_bundle_for_the_gpu_service_holds_its_onnxruntime(made):
    assert made.calls("run")[0].count("ONNXRUNTIME") == 1
    made.compose(ONNXRUNTIME="gpu")
    said = made.refused(made.verify(), 1)
    assert said.startswith("verify-bundle: docker/onnxruntime-cu12.lock, docker/onnxruntime-cu13.lock changed since")
    assert made.make() == 0
    assert {"docker/onnxruntime-cu12.lock", "docker/onnxruntime-cu13.lock"} <= set(made.manifest()["recipes"])
    assert made.verify() == 0


def test_what_the_build_looked_for_is_counted(made):
    steps = [f"#{step} 0.1 look-ups and connects of this step: {count}\n" for step, count in ((7, 0), (8, 2), (9, 1))]
    made.engine("build", "".join(steps))
    assert made.verify() == 0
    said = made.capsys.readouterr().out
    assert re.search(r"built with the network cut \(\d+ s\); look-ups and connects: 3$", said, re.MULTILINE)


def test_no_bundle(bench):
    assert "there is no wheelhouse/manifest.json: run `make bundle`" in bench.refused(bench.verify(), 1)


def spoil(bench: Bench, name: str, content: str | None) -> None:
    file = bench.folder / name
    file.unlink() if content is None else file.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("wheelhouse/apt/git_2_amd64.deb", None, "apt/git_2_amd64.deb is missing: run `make bundle` again"),
        (
            "wheelhouse/apt/git_2_amd64.deb",
            "gi",
            "apt/git_2_amd64.deb has 2 bytes instead of 3: run `make bundle` again",
        ),
        ("wheelhouse/apt/git_2_amd64.deb", "gut", "apt/git_2_amd64.deb is damaged: run `make bundle` again"),
        ("wheelhouse/manifest.json", "{", "wheelhouse/manifest.json is damaged: run `make bundle` again"),
        ("wheelhouse/manifest.json", '{"format": 2}', "wheelhouse/manifest.json is of another version"),
        ("docker/apt.in", "git\nvim\n", "docker/apt.in changed since the bundle was made"),
    ],
)
def test_what_is_wrong_is_named_with_the_mend(made, name, content, sentence):
    spoil(made, name, content)
    assert made.refused(made.verify(), 1).startswith(f"verify-bundle: {sentence}")
    assert not (made.state / "calls").read_text().count('"build"')


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"TORCH_BUILD": "cu126"},
            "it holds torch cu128, and this host needs cu126: run `make bundle BUILDS=cu128,cu126`",
        ),
        (
            {"TORCH_VERSION": "2.9.1"},
            "it was made for torch 2.8.0, and this project needs 2.9.1 here: run `make bundle`",
        ),
        (
            {"PYTHON_IMAGE": "python:3.12-slim-bookworm"},
            f"it was made for the base image {IMAGE}, and this project needs",
        ),
    ],
)
def test_a_bundle_for_something_else(made, change, sentence):
    made.compose(**change)
    assert sentence in made.refused(made.verify(), 1)


def test_a_bundle_for_another_python(made):
    settings = made.folder / ".devcontainer/project.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "python": "3.12"}))
    assert "it was made for Python 3.11, and this project needs 3.12 here" in made.refused(made.verify(), 1)


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ({"build": "#8 wheelhouse: not all of it is there, asking the package index"}, "the image asked the network"),
        (
            {"build": "#8 1.2 no room\n#8 1.3 look-ups and connects of this step: 0\n", "build-status": "1"},
            "cannot be built with the network cut (no room): run",
        ),
        ({"smoke-status": "1"}, "lab smoke failed without a network"),
        ({"smoke": "ok\n--- look-ups and connects ---\n7 lookup near.example x\n"}, "it looked for near.example"),
    ],
)
def test_a_build_or_a_smoke_that_wants_the_network(made, says, sentence):
    for name, text in says.items():
        made.engine(name, text)
    assert sentence in made.refused(made.verify(), 1)


# --- opening a project with it ----------------------------------------------------------------------------------------


def test_opening_loads_the_base_image_into_an_engine_that_lacks_it(made):
    made.engine("no-image", "")
    for loads in (1, 1):  # the second time the engine has it
        assert setup.run(made.folder, None, CATALOGUE, facts()) == 0
        assert [words[1:] for words in made.calls("load")] == [
            ["--input", str(made.folder / "wheelhouse" / ARCHIVE)]
        ] * loads
    assert "came from wheelhouse/" in made.capsys.readouterr().out


@pytest.mark.parametrize(("content", "said"), [("an imagf", "is damaged"), ("an", "has 2 bytes instead of 8")])
def test_a_damaged_base_image_is_not_loaded(made, content, said):
    """The engine would take it, with whatever names stand in it."""
    made.engine("no-image", "")
    (made.folder / "wheelhouse" / ARCHIVE).write_text(content)
    assert setup.run(made.folder, None, CATALOGUE, facts()) == 0
    assert made.calls("load") == []
    told = made.capsys.readouterr().out
    assert f"the base image is not loaded, because {ARCHIVE} {said}: run `make bundle` again" in told
    assert made.refused(made.verify(), 1).startswith(f"verify-bundle: {ARCHIVE} {said}")
    assert made.calls("load") == []


def test_opening_tells_that_the_bundle_is_for_another_build(made):
    (made.folder / ".env").write_text("TORCH_BUILD=cu126\nYOLO_ACCEL=cpu\n")
    assert setup.run(made.folder, None, CATALOGUE, facts()) == 0
    said = made.capsys.readouterr().out
    assert "it holds torch cu128, and this host needs cu126" in said


def test_opening_without_an_engine_asks_nothing(made):
    gone = facts()._replace(docker=facts().docker._replace(state="down"))
    made.engine("no-image", "")
    assert setup.run(made.folder, None, CATALOGUE, gone) == 0
    assert made.calls("load") == []


def test_a_manifest_names_nothing_outside(made):
    manifest = made.manifest()
    manifest["files"]["../../etc/passwd"] = {"for": "x", "bytes": 1, "sha256": "0"}
    (made.folder / "wheelhouse/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(wheelhouse.Bad, match="damaged"):
        wheelhouse.read_manifest(made.folder)
