"""What hurts people who train YOLOv5 cannot happen here, or ends in one sentence. The template's docs/pains.md lists
all of it with the number used here; what other files of this folder already prove is not repeated."""

import errno
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from test_container import TRAIN, environment, lab

from lab import child, cli, dataset, devices, launch, remarks, stale, training, upstream
from lab.batch import Filled
from lab.engines import Call
from lab.environment import child_environment
from lab.errors import LabError
from lab.project import CODE, ENGINES, Project

in_the_container = pytest.mark.container
DOCKER = CODE.parent / "docker"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    return str(request.param)


@pytest.fixture
def source() -> Path:
    """YOLOv5's own files."""
    if not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    return CODE / "yolov5"


# --- what an engine says ends in one sentence -------------------------------------------------------------------------

SAID = {
    "1 shared memory": ("DataLoader worker (pid 3) is killed by signal: Bus error.", "--workers 0"),
    "9 no kernel": ("CUDA error: no kernel image is available for execution on the device", "host-setup"),
    "11 no such GPU": ("Invalid CUDA '--device 0' requested, use '--device cpu'", "--device cpu"),
    "14 GPU memory": ("CUDA out of memory. Tried to allocate 2.00 GiB", "smaller --batch"),
    "16 absurd allocation": ("CUDA out of memory. Tried to allocate 1936.10 GiB. GPU 0 has", "very many boxes"),
    "17 killed worker": ("DataLoader worker (pid 3) is killed by signal: Killed. ", "fewer --workers"),
    "17 vanished worker": ("DataLoader worker (pid(s) 3) exited unexpectedly", "fewer --workers"),
    "21 no labels": ("train: No labels found in /d/labels.cache, can not start training", "lab data check"),
    "23 class beyond names": ("Label class 7 exceeds nc=3 in data.yaml", "lab data check"),
    "24 another model": ("Error(s) in loading state_dict for DetectionModel", "another model"),
    "24 finished": ("runs/train/exp training to 3 epochs is finished, nothing to resume.", "start a new one"),
    "25 NCCL": ("ncclInternalError: Internal check failed.", "lab doctor"),
    "25 time-out": ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)", "lab doctor"),
    "28 determinism": (
        "grid_sampler_2d_backward_cuda does not have a deterministic implementation",
        "--engine yolov5u",
    ),
}


@pytest.mark.parametrize("pain", SAID)
def test_what_an_engine_says_becomes_one_sentence(pain: str) -> None:
    said, part = SAID[pain]
    sentence = child.explain(RuntimeError(said), {"task": "train", "run": "", "device": "0"})
    assert sentence is not None
    assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("asked", "absurd"), [("20.00 MiB", False), ("140.2 GiB", False), ("1.89 TiB", True)])
def test_a_batch_is_not_halved_for_what_no_gpu_has(asked: str, absurd: bool) -> None:
    """16: half of 1936 GiB is as far away, so the run ends there instead of trying five more times."""
    error = RuntimeError(f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 79.3 GiB")
    assert child._for_memory(error, {"task": "train"}) is not absurd


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """19, also for the decoded pictures of --cache disk."""
    error = OSError(28, "No space left on device", "/data/images/1.npy")
    sentence = child.explain(error, {"task": "train", "run": str(tmp_path), "device": ""})
    assert sentence is not None
    assert "is full: delete old runs" in sentence


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19: the engines write in place, so half a last.pt would be all that is left of the run."""

    def save(content: bytes, file: Path) -> None:
        with open(file, "wb") as opened:  # noqa: PTH123  Path.write_bytes is changed here
            opened.write(content[:3])
            if len(content) > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch = types.ModuleType("torch")
    torch.save = save  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(Path, "write_bytes", Path.write_bytes)  # to be put back
    child.save_checkpoints_whole()
    last = tmp_path / "weights" / "last.pt"
    last.parent.mkdir()
    torch.save(b"one", last)
    with pytest.raises(OSError, match="No space left"):
        torch.save(b"second", last)
    assert {file.name: file.read_bytes() for file in last.parent.iterdir()} == {"last.pt": b"one"}
    torch.save(b"two", last)
    assert {file.name: file.read_bytes() for file in last.parent.iterdir()} == {
        "last.pt": b"two",
        "previous.pt": b"one",
    }


@pytest.fixture
def font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file for the font outside the container, where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        monkeypatch.setattr("lab.environment._dejavu", lambda: Path(__file__))


def test_a_killed_training_says_memory(project: Project, font: None) -> None:
    """17: the kernel's out-of-memory killer leaves no words; ours do."""
    script = project.root / "killed.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"want of main memory: give fewer --workers, a smaller --batch, or no --cache"):
        launch.run(Call(script, {"task": "train"}), project, None)


def test_two_trainings_of_one_machine_do_not_meet(tmp_path: Path) -> None:
    """26: the ranks of a run agree on a free port by themselves, so no address is ever in use."""
    words = launch._command(Call(Path("run.py"), {}, processes=2), tmp_path)
    assert "--standalone" in words
    assert "--master_port" not in words


MEETING = """
import os, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
time.sleep(2)  # both of the two trainings are there meanwhile
assert one.item() == 2, one
open(f"{os.path.dirname(__file__)}/{os.environ['MASTER_PORT']}", "a").close()
"""


@in_the_container
def test_two_trainings_of_two_ranks_each_at_once(project: Project) -> None:
    """26, with torchrun itself."""
    scripts = []
    for name in ("one", "two"):
        (project.root / name).mkdir()
        scripts.append(project.root / name / "meet.py")
        scripts[-1].write_text(MEETING, encoding="utf-8")
    calls = [Call(script, {"task": "raw"}, processes=2) for script in scripts]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(_launched, call, project) for call in calls]:
            done.result(timeout=120)
    ports = [[file.name for file in script.parent.iterdir() if file.name.isdigit()] for script in scripts]
    assert [len(found) for found in ports] == [1, 1]
    assert ports[0] != ports[1]


def _launched(call: Call, project: Project) -> None:
    """`launch.run` by a `lab` of its own: it handles signals, which only a main thread may."""
    program = (
        "import sys; from pathlib import Path; from lab import launch; from lab.engines import Call; "
        "from lab.project import open_project; "
        "launch.run(Call(Path(sys.argv[1]), {'task': 'raw'}, processes=2), open_project(), None, 'cpu')"
    )
    command = [sys.executable, "-c", program, str(call.script)]
    surroundings = {**os.environ, "PYTHONPATH": str(CODE)}
    done = subprocess.run(command, cwd=project.root, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- nothing asks, fetches or installs --------------------------------------------------------------------------------


@pytest.fixture
def surroundings(project: Project, tmp_path: Path, font: None) -> dict[str, str]:
    """The environment of a child process."""
    return child_environment(project, tmp_path / "scratch")


def test_no_logger_asks_and_nothing_is_installed(surroundings: dict[str, str]) -> None:
    """29 and 32."""
    assert surroundings["WANDB_MODE"] == "disabled"
    assert surroundings["YOLO_AUTOINSTALL"] == "false"
    assert surroundings["ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS"] == "1"


@in_the_container
def test_a_requirement_that_is_not_met_installs_nothing(surroundings: dict[str, str], tmp_path: Path) -> None:
    """32, with the function by which both engines would call pip."""
    for name in ("pip", "uv"):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n", encoding="utf-8")
        file.chmod(0o755)
    program = (
        "import subprocess; subprocess.check_output = subprocess.run = subprocess.Popen = None\n"
        "from ultralytics.utils.checks import check_requirements\n"
        "check_requirements(['a-package-that-is-not-here>=1'])\n"
    )
    surroundings = {**surroundings, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "ran").exists()


def test_both_engines_find_their_fonts(surroundings: dict[str, str]) -> None:
    """7: one for Latin names, one for all others; YOLOv5 looks into the directory itself, ultralytics below it."""
    places = [Path(surroundings["YOLOV5_CONFIG_DIR"]), Path(surroundings["YOLO_CONFIG_DIR"]) / "Ultralytics"]
    for place in places:
        assert (place / "Arial.ttf").is_file()
        assert (place / "Arial.Unicode.ttf").is_file()


@in_the_container
def test_class_names_of_any_script(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """7: names beyond Latin want another font, which both engines would fetch."""
    said = yaml.safe_load(shapes.read_text(encoding="utf-8"))
    said["names"] = ["圆形", "квадрат", "Dreieck"]
    shapes.write_text(yaml.safe_dump(said, allow_unicode=True), encoding="utf-8")
    log = tmp_path / "network.log"
    done = lab(["train", *TRAIN[:-1], "--epochs", "1", "--engine", engine], log)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not log.exists() or all("loopback-" in line for line in log.read_text().splitlines())
    assert (project.root / "runs/train/exp/labels.jpg").is_file()


# --- versions belong together -----------------------------------------------------------------------------------------


def test_engine_and_source_are_pinned_as_a_pair() -> None:
    """31: the source of this commit runs with this package (both were tried together), and both are exact."""
    assert upstream.COMMIT.startswith("5081342f")
    wanted = (DOCKER / "requirements.in").read_text(encoding="utf-8")
    lock = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    assert "ultralytics==8.4.190\n" in wanted
    assert re.search(r"^ultralytics==8\.4\.190 ", lock, re.MULTILINE)


def test_nothing_in_the_image_quarrels_over_protobuf() -> None:
    """35: ONNX and TensorBoard share one; TensorFlow, which wants another, is not there. Nor 36: pycocotools."""
    lock = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    assert len(re.findall(r"^protobuf==", lock, re.MULTILINE)) == 1
    assert not re.search(r"^(tensorflow|pycocotools)\b", lock, re.MULTILINE)


OLD = {
    "4 torch.load": r"torch\.load\((?!.*weights_only)",
    "5 numpy": r"\bnp\.(trapz|int|float|bool|object)\b(?!\w)",
    "6 setuptools": r"\bpkg_resources\b",
    "34 pillow": r"\.getsize\(\s*(text|label)",
}


@in_the_container
@pytest.mark.parametrize("pain", OLD)
def test_old_calls_are_gone_from_the_pinned_source(pain: str, source: Path) -> None:
    """What newer torch, numpy, setuptools and pillow took away. Training itself is in test_container.py."""
    scripts = [*source.glob("*.py"), *source.glob("utils/*.py"), *source.glob("models/*.py")]
    assert len(scripts) > 20
    found = [
        f"{path.name}:{number}"
        for path in scripts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(OLD[pain], line) and not line.lstrip().startswith("#") and "hasattr(" not in line
    ]
    assert found == []


@in_the_container
def test_opencv_needs_no_libgl() -> None:
    """2."""
    program = "import cv2; print('GL' in ' '.join(line for line in open('/proc/self/maps') if 'libGL' in line))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@in_the_container
def test_torch_and_torchvision_belong_together() -> None:
    """10: an operator of torchvision exists and computes."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert torch.__version__.partition("+")[2] == torchvision.__version__.partition("+")[2]


# --- results that would be wrong in silence ---------------------------------------------------------------------------

SLOW_NMS = """
import sys, time
sys.path.insert(0, {code!r})
from lab import remarks
remarks.listen()
sys.path.insert(0, {first!r})
import torch, torchvision
quick = torchvision.ops.nms
def slow(*words):
    time.sleep(3)
    return quick(*words)
torchvision.ops.nms = slow
from {module} import non_max_suppression, {extra}
if {engine!r} == "yolov5u":
    TorchNMS.nms = TorchNMS.fast_nms = staticmethod(lambda *a, **k: slow(*a[:3]))
prediction = torch.rand(2, 40, 8) if {engine!r} == "yolov5" else torch.rand(2, 7, 40)
found = non_max_suppression(prediction, 0.001, 0.6)
print([len(boxes) for boxes in found])
"""


@in_the_container
def test_a_suppression_that_ran_out_of_time_is_said(engine: str, tmp_path: Path) -> None:
    """12: the engines' own functions, made slow: the second picture loses its boxes, and that is not silent."""
    module, extra = {
        "yolov5": ("utils.general", "LOGGER"),
        "yolov5u": ("ultralytics.utils.nms", "TorchNMS"),
    }[engine]
    first = str(CODE / "yolov5") if engine == "yolov5" else str(tmp_path)
    program = SLOW_NMS.format(code=str(CODE), first=first, module=module, extra=extra, engine=engine)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(tmp_path / "log"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lab: non-maximum suppression ran out of time") == 1, done.stdout + done.stderr


def test_the_engines_warnings_are_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    """12, 22, 36: a warning that changes what a result means is said once, in words."""
    listener = remarks.Interpreter()
    logger = logging.getLogger("test_pains")
    logger.addHandler(listener)
    logger.propagate = False
    for _ in range(3):
        for warning in (
            "NMS time limit 0.550s exceeded",
            "train: 000001.jpg: ignoring corrupt image/label: non-normalized or out of bounds coordinates [1.2]",
        ):
            logger.warning(warning)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "too low" in said[0]
    assert "`lab data check`" in said[1]


def same_size_edit(shapes: Path) -> Path:
    """Give every box of training another class, without a change of size."""
    for label in (shapes.parent / "labels" / "train").iterdir():
        text = label.read_text(encoding="utf-8")
        label.write_text(re.sub(r"^\d", lambda old: str((int(old[0]) + 1) % 3), text, flags=re.MULTILINE))
    return shapes.parent / "labels" / "train"


def test_caches_older_than_the_data_go(project: Project, shapes: Path) -> None:
    """20: corrected labels of the same size, and a picture that was replaced."""
    found = dataset.open_dataset(str(shapes), project)
    kept = shapes.parent / "labels" / "val.cache"
    gone = shapes.parent / "labels" / "train.cache"
    image = next((shapes.parent / "images" / "val").glob("*.jpg"))
    picture = image.with_suffix(".npy")
    for file in (kept, gone):
        file.touch()
    np.save(picture, np.zeros((96, 96, 3), np.uint8))
    assert stale.drop(found) == []
    time.sleep(0.01)
    same_size_edit(shapes)
    image.write_bytes(image.read_bytes())
    assert sorted(stale.drop(found)) == sorted([gone, picture])
    assert kept.exists()
    assert not gone.exists()


def on_its_side(picture: Path, width: int, height: int) -> None:
    """Write a picture that its EXIF tag turns by a quarter."""
    image = Image.new("RGB", (width, height))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(picture, exif=exif)


NOBODYS = [
    np.zeros((96, 96), np.float32),  # depth
    np.zeros((96, 96), np.uint8),  # a mask
    np.zeros((48, 48, 3), np.uint8),  # features, or another picture
    np.zeros((96, 48, 3), np.uint8),
    np.zeros((96, 96, 4), np.uint8),
    np.zeros((96, 96, 3), np.uint16),
    np.array({"a": 1}),
]


@pytest.mark.parametrize("held", NOBODYS)
@pytest.mark.parametrize("when", [1, 4e9])
def test_arrays_that_no_engine_made_are_left_and_named(
    project: Project, shapes: Path, held: NDArray[Any], when: float
) -> None:
    """20: whatever lies beside the pictures, older than those or newer, is nobody's cache unless it fits them."""
    found = dataset.open_dataset(str(shapes), project)
    image = next((shapes.parent / "images" / "val").glob("*.jpg"))
    array = image.with_suffix(".npy")
    np.save(array, held, allow_pickle=True)
    os.utime(array, (when, when))
    with pytest.raises(LabError, match=rf"{array.name} is no picture that an engine decoded.*--fix` moves them aside"):
        stale.drop(found)
    assert array.exists()


def test_arrays_that_an_engine_made_are_known(project: Project, shapes: Path) -> None:
    """20: an engine writes what OpenCV reads, whole, turned as the EXIF tag says or not; or it is stopped meanwhile."""
    found = dataset.open_dataset(str(shapes), project)
    image, *_ = (shapes.parent / "images" / "val").glob("*.jpg")
    array = image.with_suffix(".npy")
    on_its_side(image, 64, 96)
    decoded = cv2.imread(str(image))
    assert decoded is not None
    assert decoded.shape == (64, 96, 3)
    for content in (decoded, np.zeros((96, 64, 3), np.uint8)):
        np.save(array, content)
        os.utime(array, (4e9, 4e9))
        assert stale.drop(found) == []
        os.utime(array, (1, 1))
        assert stale.drop(found) == [array]
    np.save(array, decoded)
    for size in (10_000, 0):  # an engine would fail on what a kill has left of it, at each start
        os.truncate(array, size)
        os.utime(array, (4e9, 4e9))
        assert stale.drop(found) == [array]
        array.touch()


def test_an_array_is_judged_by_the_pictures_of_its_name(project: Project, shapes: Path) -> None:
    """20: an array beside something else of its name, or beside a picture that no engine reads, is not looked at."""
    images = shapes.parent / "images" / "val"
    (images / "scene.txt").touch()
    np.save(images / "scene.npy", np.zeros(3))
    broken, *_ = images.glob("*.jpg")
    broken.write_bytes(b"<html>")
    np.save(broken.with_suffix(".npy"), np.zeros(3))
    assert stale.drop(dataset.open_dataset(str(shapes), project)) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root deletes everywhere")
def test_a_stale_cache_that_must_stay_is_named(project: Project, shapes: Path) -> None:
    """20, on a disk that is mounted read-only."""
    labels = shapes.parent / "labels"
    (labels / "train.cache").touch()
    time.sleep(0.01)
    same_size_edit(shapes)
    labels.chmod(0o555)
    try:
        with pytest.raises(LabError, match=r"train\.cache is older than the data .*: delete it"):
            stale.drop(dataset.open_dataset(str(shapes), project))
    finally:
        labels.chmod(0o755)


@in_the_container
def test_corrected_labels_are_read_again(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """20, with the engine itself: what it keeps of the labels is what the files say."""
    words = ["train", *TRAIN, "--epochs", "1", "--noval", "--nosave", "--engine", engine]
    assert lab(words, tmp_path / "log").returncode == 0
    labels = same_size_edit(shapes)
    truth = sorted(row.split()[0] for file in labels.glob("*.txt") for row in file.read_text().splitlines())
    done = lab(words, tmp_path / "log")
    assert done.returncode == 0, done.stderr[-2000:]
    program = (
        "import numpy as np, sys; cache = np.load(sys.argv[1], allow_pickle=True).item();"
        "rows = [l['cls'].ravel() for l in cache['labels']] if 'labels' in cache else "
        "[v[0][:, 0] for v in cache.values() if isinstance(v, list) and len(v) == 3 and hasattr(v[0], 'shape')];"
        "print(*sorted(str(int(c)) for row in rows for c in row))"
    )
    cache = labels.with_suffix(".cache")
    kept = subprocess.run([sys.executable, "-c", program, cache], capture_output=True, text=True, check=True)
    assert kept.stdout.split() == truth


# --- what used to stop people, run for real ---------------------------------------------------------------------------


@in_the_container
def test_names_of_the_users_modules_do_not_collide(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """30: utils.py and models/ in the project, as people have them, and a checkpoint read from another directory."""
    (project.root / "utils.py").write_text("raise SystemExit('the wrong utils')\n", encoding="utf-8")
    (project.root / "models").mkdir()
    (project.root / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')\n", encoding="utf-8")
    done = lab(["train", *TRAIN, "--epochs", "1", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-2000:]
    done = lab(["val", "--weights", "runs/train/exp/weights/best.pt", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", ["-1", "auto"])
def test_no_engine_measures_a_batch(
    engine: str, batch: str, ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """15: theirs reports an anomaly where another program uses the GPU, and refuses several GPUs; ours counts both."""
    calls: list[Call] = []
    filled = Filled(24, "--batch auto: 24", {"batch": 24})
    monkeypatch.setattr(training.batch, "fill", lambda *_: filled)
    monkeypatch.setattr(training, "run", lambda call, *_, **__: calls.append(call))
    monkeypatch.setattr(devices, "gpu_nodes", lambda: ["/dev/nvidia0"])
    words = ["train", "--cfg", "yolov5n.yaml", "--engine", engine, "--workers", "0", "--device", "0,1"]
    assert cli.main([*words, "--batch", batch]) == 0
    assert "lab: --batch auto: 24" in capsys.readouterr().err
    arguments = calls[0].payload["arguments"]
    given = arguments["batch"] if engine == "yolov5u" else arguments[arguments.index("--batch-size") + 1]
    assert int(given) == 24


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_cached_unless_asked_for(engine: str, ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """18."""
    calls: list[Call] = []
    monkeypatch.setattr(training, "run", lambda call, *_, **__: calls.append(call))
    words = ["train", "--cfg", "yolov5n.yaml", "--engine", engine, "--workers", "0", "--device", "cpu"]
    for more in ([], ["--cache", "ram"]):
        assert cli.main([*words, *more]) == 0
    without, asked = (call.payload["arguments"] for call in calls)
    if engine == "yolov5u":
        without, asked = ([f"--{key}" for key in one if one[key]] for one in (without, asked))
    assert "--cache" not in without
    assert "--cache" in asked


@in_the_container
def test_batch_minus_one_without_a_gpu(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """15: nothing to measure, so both take their default."""
    words = [*TRAIN, "--batch", "-1", "--epochs", "1", "--engine", engine, "--device", "cpu"]
    done = lab(["train", *words], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-2000:]


@in_the_container
def test_coco_json_without_pycocotools(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """36: the boxes are written, the mAP is the engine's own, and nothing is installed."""
    assert lab(["train", *TRAIN, "--epochs", "1", "--engine", engine], tmp_path / "log").returncode == 0
    words = ["--weights", "runs/train/exp/weights/best.pt", "--save-json", "--engine", engine]
    done = lab(["val", *words], tmp_path / "log")
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((project.root / "runs/val/exp").glob("*predictions.json"))
    assert "Traceback" not in done.stdout + done.stderr


@in_the_container
def test_a_finished_run_is_not_resumed(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """24."""
    assert lab(["train", *TRAIN, "--epochs", "1", "--engine", engine], tmp_path / "log").returncode == 0
    done = lab(["train", "--resume", "runs/train/exp", "--engine", engine], tmp_path / "log")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "is finished" in done.stderr.strip().splitlines()[-1]


@in_the_container
def test_one_seed_gives_one_result(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """37: on one machine the same numbers to the last printed digit; other hardware rounds otherwise."""
    for _ in range(2):
        words = ["train", *TRAIN, "--epochs", "2", "--seed", "3", "--device", "cpu", "--engine", engine]
        assert lab(words, tmp_path / "log").returncode == 0
    first, second = (results(project.root / "runs/train" / name) for name in ("exp", "exp2"))
    assert first == second


def results(run: Path) -> list[dict[str, str]]:
    """The rows of results.csv without the time."""
    lines = [
        [word.strip() for word in line.split(",")] for line in (run / "results.csv").read_text("utf-8").splitlines()
    ]
    return [{k: v for k, v in zip(lines[0], row, strict=True) if k != "time"} for row in lines[1:]]


@in_the_container
def test_a_log_file_is_short(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """38: into a pipe no progress bar is drawn again and again; a few lines an epoch remain."""
    done = lab(["train", *TRAIN, "--epochs", "1", "--engine", engine], tmp_path / "log")
    more = lab(["train", *TRAIN, "--epochs", "4", "--engine", engine], tmp_path / "log")
    lines: Callable[[subprocess.CompletedProcess[str]], int] = lambda run: len(  # noqa: E731
        re.split(r"[\r\n]+", run.stdout + run.stderr)
    )
    assert more.returncode == 0, more.stderr[-2000:]
    assert lines(more) - lines(done) <= 3 * 12


@in_the_container
@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
def test_a_training_that_was_killed_goes_on(engine: str, project: Project, shapes: Path, tmp_path: Path) -> None:
    """24: SIGKILL leaves a checkpoint from which the run goes on, from another directory too."""
    words = [sys.executable, "-m", "lab", "train", *TRAIN, "--epochs", "3", "--engine", engine]
    running = subprocess.Popen(
        words, env=environment(tmp_path / "log"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last = project.root / "runs/train/exp/weights/last.pt"
    until = time.monotonic() + 180
    while not last.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    os.chdir(project.root / "data")
    done = lab(["train", "--resume", "--engine", engine], tmp_path / "log")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(results(project.root / "runs/train/exp")) == 3
