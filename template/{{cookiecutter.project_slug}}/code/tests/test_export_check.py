"""Exports are loaded again and compared; a difference beyond the tolerance is an error."""

import importlib.util
import re
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from test_container import TRAIN, environment, lab

from lab import cli, export_check, upstream
from lab.errors import LabError
from lab.export_check import compare, pictures, require_packages, written
from lab.onnx_detect import Array
from lab.options import Request
from lab.project import CODE, ENGINES, Project

SIZE = 640
# one picture, three predictions of two classes: centre, width, height, objectness, classes
RAW = np.array(
    [[[50, 50, 20, 20, 0.9, 0.9, 0.1], [300, 300, 80, 60, 0.8, 0.1, 0.9], [9, 9, 5, 5, 0.01, 0.5, 0.5]]], np.float32
)


@pytest.mark.parametrize(
    ("shift", "agrees"), [(0.0, True), (0.5, True), (0.7, False)], ids=["equal", "half a pixel", "too far"]
)
def test_boxes_are_compared_in_pixels(shift: float, agrees: bool) -> None:
    moved = RAW.copy()
    moved[0, 2, 0] += shift  # a prediction that no threshold lets through counts too
    found = compare("onnx", moved, RAW, "yolov5")
    assert found.boxes_max == pytest.approx(shift, abs=1e-5)
    assert (found.same, found.detections) == (2, 2)
    assert found.agrees(export_check.TOLERANCE["float32"], SIZE) is agrees


def test_scores_and_detections_are_compared() -> None:
    other = RAW.copy()
    other[0, 0, 4] = 0.1  # no longer a detection
    found = compare("onnx", other, RAW, "yolov5")
    assert found.scores_max == pytest.approx(0.72)
    assert (found.same, found.detections) == (1, 2)
    assert not found.agrees(export_check.TOLERANCE["half"], SIZE)


def test_a_suppression_inside_the_model_is_compared_by_its_detections() -> None:
    rows = np.array([[[40, 40, 60, 60, 0.81, 0], [260, 270, 340, 330, 0.72, 1], [0, 0, 0, 0, 0, 0]]], np.float32)
    found = compare("onnx", rows, RAW, "yolov5", 0.25)
    assert (found.boxes_max, found.same, found.detections) == (None, 2, 2)
    assert found.agrees(1e-3, SIZE)
    assert not compare("onnx", rows[:, 1:], RAW, "yolov5", 0.25).agrees(1e-3, SIZE)


def test_a_checkpoint_that_is_never_sure_is_compared_by_its_surest() -> None:
    unsure = RAW.copy()
    unsure[..., 4] *= 0.01
    found = compare("onnx", unsure, unsure, "yolov5")
    assert (found.same, found.detections) == (3, 3)
    assert found.confidence < 0.25
    rows = np.zeros((1, 5, 6), np.float32)  # and of a model that keeps nothing below a quarter there is nothing
    found = compare("onnx", rows, unsure, "yolov5", 0.25)
    assert (found.detections, found.compared) == (0, False)


def test_the_confidence_of_a_suppression_inside_the_model_counts() -> None:
    rows = np.array([[[40, 40, 60, 60, 0.81, 0], [0, 0, 0, 0, 0, 0]]], np.float32)
    assert compare("onnx", rows, RAW, "yolov5", 0.75).agrees(1e-3, SIZE)  # the other one scores 0.72
    assert not compare("onnx", rows, RAW, "yolov5", 0.25).agrees(1e-3, SIZE)


@pytest.mark.parametrize("suppressed", [False, True])
def test_a_comparison_of_nothing_says_so(
    project: Project,
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suppressed: bool,
) -> None:
    best = project.root / "best.pt"
    best.with_suffix(".onnx").touch()

    def unsure(count: int) -> Array:
        raw = RAW.copy()
        raw[..., 4] *= 0.01
        return np.repeat(
            raw[..., [0, 1, 2, 3, 5, 6]].transpose(0, 2, 1) * [[1], [1], [1], [1], [0.01], [0.01]], count, 0
        )

    monkeypatch.setattr(export_check, "checkpoint_predictions", lambda *words: unsure(len(words[3])))
    nothing = np.zeros((2, 5, 6), np.float32)
    runtimes = {"onnx": lambda _, images, __: nothing if suppressed else unsure(len(images))}
    monkeypatch.setattr(export_check, "RUNTIMES", runtimes)
    given = {"include": ["onnx"], "imgsz": [64], **({"nms": True} if suppressed else {})}
    export_check.check(Request("export", given), project, "yolov5u", best, 0)
    said = capsys.readouterr().out
    if suppressed:
        assert "onnx: nothing was compared, because neither it nor best.pt finds anything on 2 pictures of" in said
        assert "agrees" not in said
    else:
        assert "no score reaches 0.25 on these pictures, so detections count from" in said
        assert "0 of 0" not in said
        assert "onnx agrees with best.pt" in said


def test_more_pictures_are_looked_at_when_nothing_is_found(project: Project) -> None:
    sizes: list[int] = []

    def predict(images: Array) -> Array:
        sizes.append(len(images))
        raw = np.repeat(RAW * 0.1, len(images), 0)
        if len(images) > 20:
            raw[20] = RAW[0]
        return raw

    request = Request("export", {"data": "nowhere.yaml"})
    images, reference, _ = export_check.telling_pictures(request, project, "yolov5", (64, 64), predict)
    assert sizes == [export_check.PICTURES, export_check.LOOKED_AT]
    assert len(images) == len(reference) == export_check.PICTURES
    assert np.array_equal(reference[0], RAW[0])
    assert np.array_equal(images[0], pictures(request, project, (64, 64), export_check.LOOKED_AT)[0][20])


def test_another_shape_is_told() -> None:
    with pytest.raises(LabError, match=r"shape \(1, 3, 7\), the exported file \(1, 2, 7\)"):
        compare("onnx", RAW[:, 1:], RAW, "yolov5")


@pytest.mark.parametrize("form", ["coreml", "paddle", "tfjs"])
def test_a_format_without_its_package_is_refused(form: str) -> None:
    with pytest.raises(LabError, match=f"--include {form} needs the package .*uv pip install"):
        require_packages(["onnx", form])
    require_packages(["onnx", "torchscript"])


def test_the_pictures_are_the_data_sets_or_made_up(project: Project, shapes: Path) -> None:
    images, origin = pictures(Request("export"), project, (64, 96))
    assert (images.shape, origin) == ((2, 3, 64, 96), "data/demo/data.yaml")
    images, origin = pictures(Request("export", {"data": "nowhere.yaml"}), project, (64, 64))
    assert (images.shape, origin) == ((8, 3, 64, 64), "made-up shapes")


def test_the_file_of_this_export_is_found(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.pt"
    begun = time.time() - 5
    (tmp_path / "best.onnx").touch()
    (tmp_path / "best_openvino_model").mkdir()
    assert written(checkpoint, "onnx", begun) == tmp_path / "best.onnx"
    assert written(checkpoint, "openvino", begun) == tmp_path / "best_openvino_model"
    assert written(checkpoint, "torchscript", begun) is None
    assert written(checkpoint, "onnx", begun + 60) is None


PART = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)


def test_openvino_is_asked_for_full_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugin rounds to 16 bits on processors that can, and the export would be refused for that."""
    (tmp_path / "best.xml").touch()
    asked: list[Any] = []

    class Core:
        def compile_model(self, *words: Any) -> Any:
            asked.append(words)
            return Compiled()

    class Compiled:
        def output(self, number: int) -> int:
            return number

        def __call__(self, part: Array) -> dict[int, Array]:
            assert len(part) == 2
            return {0: part * 2}

    monkeypatch.setitem(sys.modules, "openvino", module("openvino", Core=Core))
    found = export_check.RUNTIMES["openvino"](tmp_path, PART, 2)
    assert np.array_equal(found, PART * 2)
    assert asked == [(str(tmp_path / "best.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})]


def test_openvino_computes_in_full_precision(tmp_path: Path) -> None:
    """With the package itself, where it is installed: a layer whose numbers 16 bits cannot hold."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed here")
    from openvino import opset13 as layers

    factors = np.random.default_rng(2).random((300, 192), np.float32)
    entry = layers.parameter([2, 3, 8, 8], np.float32)
    flat = layers.reshape(entry, np.array([2, 192]), False)
    model = openvino.Model([layers.matmul(flat, layers.constant(factors), False, True)], [entry])
    openvino.save_model(model, str(tmp_path / "best.xml"), compress_to_fp16=False)
    exact = PART.reshape(3, -1).astype(np.float64) @ factors.T
    assert np.abs(export_check.RUNTIMES["openvino"](tmp_path, PART, 2) - exact).max() < 1e-3


def module(name: str, **inside: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update(inside)
    return made


class Tensor:
    """As much of torch's as the runner uses; its "address" is found again by the context."""

    made: ClassVar[dict[int, Array]] = {}

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers
        self.shape = numbers.shape
        Tensor.made[id(self)] = numbers

    def data_ptr(self) -> int:
        return id(self)

    def same(self) -> "Tensor":
        return self

    cuda = cpu = float = same

    def numpy(self) -> Array:
        return self.numbers


def graphics(monkeypatch: pytest.MonkeyPatch, available: bool = True) -> None:
    """Stand-ins for torch with a GPU, and for tensorrt. An engine is b"TRT"; it doubles what it is given."""

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, number: int) -> str:
            return ("images", "output0")[number]

        def get_tensor_mode(self, name: str) -> int:
            return int(name == "output0")

        def get_tensor_dtype(self, _: str) -> str:
            return "half"

        def create_execution_context(self) -> "Context":
            return Context()

    class Context:
        def __init__(self) -> None:
            self.at: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
            assert (name, shape) == ("images", (2, 3, 8, 8))

        def get_tensor_shape(self, _: str) -> tuple[int, ...]:
            return (2, 3, 8, 8)

        def set_tensor_address(self, name: str, place: int) -> None:
            self.at[name] = place

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 7
            given = Tensor.made[self.at["images"]]
            assert given.dtype == np.float16
            Tensor.made[self.at["output0"]][:] = given * 2
            return True

    trt = {
        "__version__": "10.3.0",
        "Logger": type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None}),
        "Runtime": lambda _: types.SimpleNamespace(
            deserialize_cuda_engine=lambda it: Engine() if it == b"TRT" else None
        ),
        "TensorIOMode": types.SimpleNamespace(INPUT=0),
        "nptype": lambda _: np.float16,
    }
    cuda = types.SimpleNamespace(
        is_available=lambda: available,
        Stream=lambda: types.SimpleNamespace(cuda_stream=7),
        synchronize=lambda: None,
    )
    torch = {
        "cuda": cuda,
        "float16": np.float16,
        "from_numpy": Tensor,
        "empty": lambda shape, dtype, device: Tensor(np.empty(shape, dtype)),  # noqa: ARG005
    }
    monkeypatch.setitem(sys.modules, "tensorrt", module("tensorrt", **trt))
    monkeypatch.setitem(sys.modules, "torch", module("torch", **torch))


@pytest.mark.parametrize("header", [b"", (12).to_bytes(4, "little") + b'{"batch": 2}'])
def test_a_tensorrt_engine_of_either_writer_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    """The ultralytics package writes a JSON text before the engine."""
    graphics(monkeypatch)
    file = tmp_path / "best.engine"
    file.write_bytes(header + b"TRT")
    found = export_check.RUNTIMES["engine"](file, PART, 2)
    assert found.shape == PART.shape
    assert np.abs(found - PART * 2).max() < 2e-3


def test_a_tensorrt_engine_that_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "best.engine"
    file.write_bytes(b"built elsewhere")
    graphics(monkeypatch)
    with pytest.raises(LabError, match=r"best\.engine cannot be loaded by tensorrt 10\.3\.0 on this GPU"):
        export_check.RUNTIMES["engine"](file, PART, 2)
    graphics(monkeypatch, available=False)
    with pytest.raises(LabError, match=r"best\.engine runs on a GPU alone, and torch finds none"):
        export_check.RUNTIMES["engine"](file, PART, 2)


def test_a_runtime_that_is_not_installed_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("best.engine", "best_paddle_model.paddle"):
        (project.root / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt" else 1)
    request = Request("export", {"include": ["engine", "paddle"]})
    export_check.check(request, project, "yolov5u", project.root / "best.pt", 0)
    assert capsys.readouterr().out.splitlines() == [
        "lab: engine was written; tensorrt is not installed, so it is not compared",
        "lab: paddle was written; how to load it again is not known here, so it is not compared",
    ]


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_each_export_agrees_with_its_checkpoint(
    engine: str, project: Project, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    log = tmp_path / "log"
    assert lab(["train", *TRAIN, "--epochs", "1", "--engine", engine], log).returncode == 0
    best = "runs/train/exp/weights/best.pt"
    for words in (
        ["--include", "onnx", "torchscript"],
        ["--include", "onnx", "--dynamic", "--simplify", "--opset", "16"],
        ["--include", "onnx", "--batch", "3", "--imgsz", "64", "96"],
    ):
        done = lab(["export", "--weights", best, *words, "--engine", engine], log)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        row = re.search(r"^onnx +(\S+) +(\S+) +(\S+) +(\S+) +(\d+ of \d+|none) *$", done.stdout, re.MULTILINE)
        assert row, done.stdout
        assert float(row[1]) < 0.1
        assert re.search(r"agrees? with runs/train/exp/weights/best\.pt, within 1e-03", done.stdout)
    # a wrong export, for which another checkpoint's predictions stand in, ends in exit status 1
    for name, value in environment(log).items():
        monkeypatch.setenv(name, value)
    true = export_check.checkpoint_predictions
    monkeypatch.setattr(export_check, "checkpoint_predictions", lambda *words: true(*words) * 1.01)
    assert cli.main(["export", "--weights", best, "--include", "onnx", "--engine", engine]) == 1
