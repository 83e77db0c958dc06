"""Generate, open, train, validate, export: the main job, on a real engine and on real input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Opened, User, up

DATA = "data/learning/data.yaml"


# --- the container ----------------------------------------------------------------------------------------------------


def test_opening_it_says_what_was_decided(opened: Opened) -> None:
    local = (opened.folder / ".devcontainer/compose.local.yaml").read_text()
    assert "torch 2.8.0+cu128 on the CPU" in local
    assert opened.image.endswith(":torch2.8.0-cu128")


def test_the_user_inside_is_the_caller(opened: Opened) -> None:
    inside = opened.run("id", "-u").stdout.strip()
    assert inside == str(opened.user.uid)
    if opened.user.uid != 0:
        assert inside != "0"


def test_files_made_inside_belong_to_the_caller(opened: Opened) -> None:
    made = opened.run("sh", "-c", "mkdir -p data/made && touch data/made/a runs/b && echo ok")
    assert made.returncode == 0, made.stderr
    for name in ("data/made", "data/made/a", "runs/b"):
        status = (opened.folder / name).stat()
        assert (status.st_uid, status.st_gid) == (opened.user.uid, opened.user.gid), name


def test_packages_can_be_added_inside_without_root(opened: Opened) -> None:
    done = opened.run("sh", "-c", "touch /opt/venv/lib/python3.11/site-packages/added && rm $_ ; test -w /opt/venv/bin")
    assert done.returncode == 0, done.stderr


def test_opening_it_again_builds_nothing(opened: Opened) -> None:
    began = time.monotonic()
    outcome = up(opened.user, opened.folder)
    print(f"second `devcontainer up`: {time.monotonic() - began:.1f} s")
    assert outcome["containerId"] == opened.container
    assert "exporting layers" not in outcome["log"]


def rebuilt_after_editing(opened: Opened, name: str) -> list[str]:
    """The steps of the image build that run again when a file of the project has changed."""
    path = opened.folder / name
    before = path.read_bytes()
    # other bytes each time: the build cache may remember an earlier run of this test
    path.write_bytes(before + f"\n# {secrets.token_hex(8)}\n".encode())
    try:
        done = opened.user.run("docker", "compose", "--progress", "plain", "build", "dev", cwd=opened.folder)
    finally:
        path.write_bytes(before)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    steps = dict(re.findall(r"^#(\d+) \[dev \w+ \d+/\d+\] (?!FROM)(.*)$", log, re.MULTILINE))
    assert len(steps) >= 7
    return [made for step, made in steps.items() if not re.search(rf"^#{step} CACHED$", log, re.MULTILINE)]


def test_editing_code_rebuilds_no_layer(opened: Opened) -> None:
    assert rebuilt_after_editing(opened, "code/train.py") == []


def test_another_package_does_not_reinstall_torch(opened: Opened) -> None:
    again = rebuilt_after_editing(opened, "docker/requirements.lock")
    assert any("requirements.lock" in step for step in again)
    assert not [step for step in again if "install-torch" in step or "install-apt" in step or "bootstrap" in step]


def test_the_image(opened: Opened) -> None:
    size = int(
        subprocess.check_output(["docker", "image", "inspect", "--format", "{{.Size}}", opened.image], text=True)
    )
    print(f"image: {size / 1e9:.2f} GB")
    assert size <= 8.5e9
    # One layer holds torch; the user's own layer, made last, holds next to nothing: no second copy of the venv.
    history = subprocess.check_output(
        ["docker", "history", "--human=false", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", opened.image],
        text=True,
    )
    layers = [(int(line.split("\t")[0]), line.split("\t")[1]) for line in history.splitlines()]
    print(*(f"  {size / 1e6:8.1f} MB  {made[:100]}" for size, made in layers if size > 1e6), sep="\n")
    assert len([size for size, _ in layers if size > 2e9]) == 1
    assert sum(size for size, made in layers if "useradd" in made) < 1e6
    # Nothing of this host: no certificate of its own, no path of the project or of the user's home.
    for secret in ("/var/tmp/e2e-", str(ROOT), opened.user.name):
        assert secret not in history
    own = (opened.folder / ".devcontainer/host-ca.pem").read_text().splitlines()
    if lines := [line for line in own if len(line) == 64][3:6]:
        found = opened.user.run(
            *(
                "docker",
                "run",
                "--rm",
                "--user",
                "0",
                "--entrypoint",
                "grep",
                opened.image,
                "--recursive",
                "--files-with-matches",
            ),
            *(
                "--fixed-strings",
                "--devices=skip",
                lines[0],
                "/etc",
                "/home",
                "/root",
                "/tmp",
                "/run",
                "/var",
                "/usr/local",
                "/usr/share",
            ),
        )
        assert found.stdout == "", "the host's certificate is in the image"


def test_exactly_one_opencv_and_the_chosen_torch(opened: Opened) -> None:
    listed = json.loads(opened.run("uv", "pip", "list", "--format", "json").stdout)
    installed = {package["name"]: package["version"] for package in listed}
    assert [name for name in installed if name.startswith("opencv")] == ["opencv-python-headless"]
    assert installed["torch"].split("+")[0] == "2.8.0"
    assert installed["torchvision"].split("+")[0] == "0.23.0"


def test_the_catalogue_agrees_with_the_wheel_that_is_installed(opened: Opened) -> None:
    flags = opened.run("python", "-c", "import torch; print(torch.version.cuda, torch._C._cuda_getArchFlags())")
    cuda, *architectures = flags.stdout.split()
    assert cuda == "12.8"
    catalogue = json.loads((ROOT / "generator/catalog.json").read_text())
    (release,) = [release for release in catalogue["releases"] if release["torch"] == "2.8.0"]
    (sass,) = [sass for name, machine, sass, _ in release["builds"] if (name, machine) == ("cu128", "x86_64")]
    assert architectures == [f"sm_{number}" for number in sass]


def test_the_explicit_cpu_configuration(opened: Opened) -> None:
    outcome = up(opened.user, opened.folder, "--config", str(opened.folder / ".devcontainer/cpu/devcontainer.json"))
    assert "on the CPU" in outcome["log"]


def test_the_lock_command_works_inside_and_keeps_every_version(opened: Opened) -> None:
    """Also: in a running container, the host's certificate authorities are trusted."""
    lock = opened.folder / "docker/requirements.lock"

    def versions() -> list[str]:
        return [line.split(" ")[0] for line in lock.read_text().splitlines() if "==" in line]

    before = versions()
    done = opened.run("docker/lock")
    assert done.returncode == 0, done.stdout + done.stderr
    assert versions() == before


def test_every_torch_that_is_offered_goes_with_the_lock(opened: Opened) -> None:
    """Of each release only the index's metadata is read; what it asks for must fit docker/torch.lock."""
    offered = json.loads((ROOT / "template/cookiecutter.json").read_text(encoding="utf-8"))
    known = json.loads((ROOT / "generator/catalog.json").read_text())["releases"]
    releases = [release for release in known if release["torch"] in offered["torch_version"]]
    assert len(releases) == len(offered["torch_version"]) - 1  # all but "auto"
    for release in releases:
        for python in set(offered["python_version"]) & set(release["python"]["x86_64"]):
            asked = f"torch==={release['torch']}\ntorchvision==={release['torchvision']}\n"
            done = opened.run(
                "sh",
                "-c",
                f"printf '{asked}' | uv pip compile --quiet --constraints docker/torch.lock --python-version {python}"
                " --python-platform x86_64-manylinux_2_28 - >/dev/null",
            )
            assert done.returncode == 0, f"torch {release['torch']} on Python {python}: {done.stderr[-800:]}"


def test_tensorboard_listens_on_this_host_alone(opened: Opened) -> None:
    port = "16006"
    started = opened.user.run(
        *("docker", "compose", "up", "--detach", "tensorboard"), cwd=opened.folder, env={"TENSORBOARD_PORT": port}
    )
    assert started.returncode == 0, started.stderr
    try:
        for _ in range(60):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as page:
                assert b"TensorBoard" in page.read()
                break
            time.sleep(1)
        else:
            pytest.fail("TensorBoard did not answer")
        bound = opened.user.run("docker", "compose", "port", "tensorboard", "6006", cwd=opened.folder).stdout.strip()
        assert bound == f"127.0.0.1:{port}"
    finally:
        opened.user.run("docker", "compose", "rm", "--stop", "--force", "tensorboard", cwd=opened.folder)


# --- the engines ------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine_ready(request: pytest.FixtureRequest, engine: str) -> Opened:
    """The open project with this engine's source and 160 demo pictures of 96 pixels, a fifth of them for validation."""
    ready: Opened = request.getfixturevalue("with_yolov5" if engine == "yolov5" else "opened")
    if not (ready.folder / DATA).exists():
        made = ready.run("lab", "data", "demo", "--images", "160", "--size", "96", "--out", "data/learning")
        assert made.returncode == 0, made.stdout + made.stderr
    return ready


both_engines = pytest.mark.parametrize("engine", ["yolov5u", "yolov5"])


def smoked(done: subprocess.CompletedProcess[str], engine: str) -> None:
    """`lab smoke` went through with this engine."""
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    line = [line for line in done.stdout.splitlines() if line.startswith("smoke:")][-1]
    print(line)
    assert line.startswith(f"smoke: {engine} ok in ")


def test_smoke(with_yolov5: Opened) -> None:
    smoked(with_yolov5.run("lab", "smoke", "--engine", "yolov5"), "yolov5")


def test_smoke_without_the_source_takes_the_other_engine(opened: Opened) -> None:
    """No engine is named, YOLOv5's source is not there and cannot be had: yolov5u, and it says so."""
    source = opened.folder / "code" / "yolov5"
    aside = opened.folder / "code" / ".yolov5-aside"
    held = source.exists()
    if held:
        source.rename(aside)
    try:
        done = opened.run("lab", "smoke", env={"YOLOV5_GIT_URL": "/nowhere.git"})
    finally:
        if held:
            aside.rename(source)
    smoked(done, "yolov5u")


@both_engines
def test_it_learns_and_exports(engine_ready: Opened, engine: str) -> None:
    """128 demo images of 96 pixels: mAP50 of at least 0.5; then val, detect and export on the result."""
    box = engine_ready
    train = box.run(
        *("lab", "train", "--engine", engine, "--data", DATA, "--weights", "", "--cfg", "yolov5n.yaml"),
        *("--hyp", "hyp.small.yaml", "--optimizer", "AdamW", "--img", "96", "--batch", "16", "--epochs", "60"),
        *("--cache", "ram", "--noplots", "--noval", "--name", f"learn-{engine}"),
    )
    assert train.returncode == 0, train.stdout[-4000:] + train.stderr[-4000:]
    run = box.folder / "runs/train" / f"learn-{engine}"
    header, *rows = (run / "results.csv").read_text().strip().splitlines()
    column = [name.strip() for name in header.split(",")].index(
        {"yolov5": "metrics/mAP_0.5", "yolov5u": "metrics/mAP50(B)"}[engine]
    )
    best = max(float(row.split(",")[column]) for row in rows)
    print(f"{engine}: mAP50 {best:.3f}")
    assert best >= 0.5
    weights = f"runs/train/learn-{engine}/weights/best.pt"
    assert (box.folder / weights).stat().st_uid == box.user.uid
    for command in (
        ("lab", "val", "--engine", engine, "--weights", weights, "--data", DATA, "--img", "96"),
        (
            "lab",
            "detect",
            "--engine",
            engine,
            "--weights",
            weights,
            "--source",
            "data/learning/images/val",
            "--img",
            "96",
            *("--conf", "0.25", "--iou", "0.45", "--save-txt", "--save-conf", "--name", f"seen-{engine}"),
        ),
        ("lab", "export", "--engine", engine, "--weights", weights, "--include", "onnx", "--img", "96"),
    ):
        done = box.run(*command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run / "weights/best.onnx").stat().st_size > 1_000_000
    assert served_and_detected(box, run / "weights/best.onnx", box.folder / "runs/detect" / f"seen-{engine}") >= 32
    failed = box.run("lab", "export", "--engine", engine, "--weights", weights, "--include", "onnx", "--opset", "99")
    assert failed.returncode in (1, 2), "an export that failed must not look like one that worked"
    assert "Traceback" not in failed.stdout + failed.stderr


ASK = """
lab serve --weights {weights} --port 8765 >/dev/null & server=$!
ask() {{ curl --silent --fail --noproxy '*' "$@"; }}
at=http://127.0.0.1:8765
until ask $at/health >/dev/null; do kill -0 $server || exit 1; sleep 0.2; done
for file in data/learning/images/val/*; do ask --form "file=@$file" $at/predict && echo || exit 1; done
kill $server; wait $server
"""


def served_and_detected(box: Opened, onnx: Path, seen: Path) -> int:
    """What `lab serve` finds by the export is what the engine detects by the checkpoint; how many boxes."""
    done = box.run("bash", "-c", ASK.format(weights=onnx.relative_to(box.folder)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    count = 0
    for [image] in (json.loads(line)["images"] for line in done.stdout.splitlines() if line.startswith("{")):
        labels = seen / "labels" / f"{Path(image['file']).stem}.txt"
        rows = labels.read_text().splitlines() if labels.exists() else []
        theirs = sorted(tuple(float(word) for word in row.split()) for row in rows)
        ours = []
        for box_ in image["boxes"]:
            left, top, right, bottom = box_["xyxyn"]
            size = (right - left, bottom - top)
            ours.append((box_["class"], (left + right) / 2, (top + bottom) / 2, *size, box_["confidence"]))

        def like(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
            return one[0] == other[0] and max(abs(a - b) for a, b in zip(one, other, strict=True)) < 0.02

        # what lies at the very threshold may be in one list alone
        for some, others in ((ours, theirs), (theirs, ours)):
            for one in some:
                known = any(like(one, other) for other in others)
                assert known or one[5] < 0.27, (image["file"], one, others)
        count += len(ours)
    return count


# Every container test belongs to one of three runs by its name: one engine's, the other's, or what needs neither alone.
# An engine's smoke and learning are run above, as a user does.
CHOSEN = {
    "yolov5": "(yolov5 and not yolov5u or network_log) and not smoke and not learns",
    "yolov5u": "(yolov5u or network_log) and not smoke and not learns",
    "": "not yolov5",
}


def scaffold_tests(box: Opened, chosen: str) -> None:
    """The scaffold's own tests for the container, in one without a network; the long ones where E2E_LONG is set."""
    marked = "container" if os.environ.get("E2E_LONG") else "container and not long"
    done = box.run_apart("python", "-m", "pytest", "-q", "-rs", "-m", marked, "-k", chosen, "code/tests")
    print(done.stdout[-400:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@both_engines
def test_no_network_and_no_run_lost(engine_ready: Opened, engine: str) -> None:
    """Every look-up and connect of train, val, detect and export is logged: there are none. A run goes on."""
    scaffold_tests(engine_ready, CHOSEN[engine])


def test_what_needs_no_engine_by_itself(opened: Opened) -> None:
    """The notebook, the doctor's own computing, what upstream's source no longer holds, painting, `serve`'s limits."""
    scaffold_tests(opened, CHOSEN[""])


# --- bad input: one sentence, exit status 2 ---------------------------------------------------------------------------

BAD = {
    "unknown option": (["train", "--epoch-count", "3"], "--epoch"),
    "missing data.yaml": (["train", "--data", "data/none.yaml"], "data/none.yaml"),
    "weights that do not exist": (["train", "--weights", "nowhere.pt"], "nowhere.pt"),
    "weights that do not exist, val": (["val", "--weights", "nowhere.pt"], "nowhere.pt"),
    "weights that do not exist, export": (["export", "--weights", "nowhere.pt"], "nowhere.pt"),
    "no images": (["train", "--data", "data/empty/data.yaml"], "image"),
    "no GPU": (["train", "--device", "0"], "GPU"),
    "image size": (["train", "--img", "100"], "32"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD.get)
@both_engines
def test_bad_input(engine_ready: Opened, engine: str, case: str) -> None:
    folder = engine_ready.folder / "data" / "empty"
    (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "val").mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": ["a"]})
    )
    (task, *options), named = BAD[case]
    if "--data" not in options and task != "export":
        options += ["--data", DATA]
    done = engine_ready.run_apart("lab", task, "--engine", engine, *options)
    sentence(done, named)


def sentence(done: subprocess.CompletedProcess[str], named: str) -> None:
    """One clear sentence on stderr, exit status 2."""
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("lab: ")]
    assert said, done.stderr
    assert named in " ".join(done.stderr.splitlines())


@both_engines
def test_unwritable_runs(engine_ready: Opened, engine: str) -> None:
    done = engine_ready.run_apart(
        *("lab", "train", "--engine", engine, "--data", DATA, "--weights", "", "--cfg", "yolov5n.yaml"),
        options=("--tmpfs", "/workspace/runs:ro"),
    )
    sentence(done, "runs")


@both_engines
def test_full_disk(engine_ready: Opened, engine: str) -> None:
    done = engine_ready.run_apart(
        *("lab", "train", "--engine", engine, "--data", DATA, "--weights", "", "--cfg", "yolov5n.yaml"),
        options=("--tmpfs", f"/workspace/runs:size=2m,mode=0777,uid={engine_ready.user.uid}"),
    )
    sentence(done, "runs")


# --- a GPU host, described --------------------------------------------------------------------------------------------


def test_a_described_gpu_host_gets_its_gpu(opened: Opened, user: User) -> None:
    """nvidia-smi is a program of the test; the path through Compose to the engine's device request is real."""
    if not Path("/usr/local/bin/nvidia-container-runtime-hook").exists() and not os.environ.get("E2E_GPU_HOOK"):
        pytest.skip("this engine accepts no GPU reservation (no NVIDIA container hook)")
    programs = opened.folder.parent / "programs"
    programs.mkdir(mode=0o755)
    smi = programs / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n"
        'query=$(printf "%s\\n" "$@" | sed -n "s/^--query-gpu=//p" | tr , "\\n")\n'
        "for field in $query; do case $field in\n"
        '  index) v=0;; name) v="NVIDIA GeForce RTX 4090";; uuid) v=GPU-11111111-2222-3333-4444-555555555555;;\n'
        "  driver_version) v=570.86.10;; compute_cap) v=8.9;; memory.total) v=24564;; *) v=[N/A];;\n"
        'esac; line="${line:+$line, }$v"; done\n'
        'echo "$line"\n'
    )
    smi.chmod(0o755)
    (opened.folder / ".env").write_text("")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    # A container made before the GPU was there is opened as it was; the log says what to choose.
    kept = up(user, opened.folder, env=environment)
    assert kept["containerId"] == opened.container
    assert "choose 'Rebuild Container'" in kept["log"]
    outcome = up(user, opened.folder, "--remove-existing-container", env=environment)
    assert "NVIDIA GeForce RTX 4090, driver 570.86.10 -> torch 2.8.0+cu128 on the GPU" in outcome["log"]
    requests = json.loads(
        subprocess.check_output(
            ["docker", "inspect", "--format", "{{json .HostConfig.DeviceRequests}}", outcome["containerId"]], text=True
        )
    )
    assert [(r["Driver"], r["Count"], r["Capabilities"]) for r in requests] == [("nvidia", -1, [["gpu"]])]
