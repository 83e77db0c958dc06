"""An ONNX file of either engine in onnxruntime: on the GPU when the installed wheel can, else on the processor."""

from __future__ import annotations

import ast
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab import devices
from lab.errors import FAILED, LabError
from lab.onnx_detect import Array, layout

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SIZE = 640  # pixels, of a file with free sides that does not say what it was exported for


@dataclass(frozen=True)
class Network:
    """A detection model. `size` is height and width of its input in pixels; `batch` is None where it is free.

    `layout` is what `lab.onnx_detect.candidates` calls the engine; `provider` is CUDA or CPU.
    """

    file: str
    session: Any
    entry: str
    half: bool
    size: tuple[int, int]
    batch: int | None
    layout: str
    names: dict[int, str]
    provider: str

    def name(self, label: int) -> str:
        """The name of a class; its number where the file has no name for it."""
        return self.names.get(label, str(label))

    def run(self, images: Array) -> Array:
        """The raw output for images N x 3 x H x W, N at most `batch` where that is fixed."""
        count = len(images)
        if self.batch is not None and count < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - count, axis=0)])
        fed: Any = images.astype(np.float16) if self.half else images
        said: Any = self.session.run(None, {self.entry: fed})[0][:count]
        return said if said.dtype == np.float32 else said.astype(np.float32)  # type: ignore[no-any-return]


def open_network(file: Path, device: str = "", size: int | None = None, threads: int = 0) -> tuple[Network, str]:
    """The model in `file`, run once, and a sentence about where it runs.

    `device` is a GPU's number, "cpu", or "" for the GPU if it can be had. `size` is for files with free sides.
    `threads` is how many processors one run may take, 0 for all. Raises LabError.
    """
    import onnxruntime  # noqa: PLC0415  half a second

    if device not in ("", "cpu") and not device.isdecimal():
        raise LabError(f"--device {device}: it may be cpu, or the number of one GPU")
    offered = CUDA in onnxruntime.get_available_providers()
    if device == "cpu":
        return _open(onnxruntime, file, CPU, 0, size, threads), "on the processor, as --device says"
    if offered and not devices.gpu_nodes():  # onnxruntime would say so in ten lines of libraries
        why = "this container has no GPU"
    elif offered:
        with contextlib.suppress(Exception):  # CUDA's libraries, from torch's wheels
            onnxruntime.preload_dlls()
        try:
            return _open(onnxruntime, file, CUDA, int(device or 0), size, threads), f"on GPU {device or 0}"
        except _Unusable as error:
            why = f"onnxruntime cannot use the GPU ({error})"
    else:
        why = f"the installed onnxruntime {onnxruntime.__version__} has no CUDA provider"
    if device:
        raise LabError(
            f"--device {device}: {why}; `lab doctor` says what is wrong with a GPU, --device cpu does without"
        )
    return _open(onnxruntime, file, CPU, 0, size, threads), f"on the processor: {why}"


class _Unusable(Exception):
    """The GPU cannot be used; why, in few words."""


def _open(onnxruntime: Any, file: Path, provider: str, device: int, size: int | None, threads: int) -> Network:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3 if provider == CPU else 4  # its own words about CUDA are many; ours follow
    options.intra_op_num_threads = threads
    # HEURISTIC: the default measures every algorithm anew for every size of a batch, for seconds
    extra = {"device_id": device, "cudnn_conv_algo_search": "HEURISTIC"}
    providers: list[Any] = [CPU] if provider == CPU else [(CUDA, extra), CPU]
    try:
        session: Any = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        if provider == CUDA:
            raise _Unusable(_short(error)) from error
        raise LabError(f"{file.name} cannot be opened, export it again: {_short(error)}") from error
    if session.get_providers()[0] != provider:
        raise _Unusable("its CUDA libraries do not load")
    try:
        return _described(session, file, provider, size)
    except LabError as error:
        raise LabError(f"{file.name} cannot be served: {error.sentence}") from error
    except Exception as error:
        if provider == CUDA:
            raise _Unusable(_short(error)) from error
        raise LabError(f"{file.name} opens but does not run: {_short(error)}", FAILED) from error


def _described(session: Any, file: Path, provider: str, wanted: int | None) -> Network:
    """Raises LabError when it is no detection model; whatever onnxruntime raises when it does not run."""
    said: dict[str, str] = session.get_modelmeta().custom_metadata_map
    if (task := said.get("task", "detect")) != "detect":
        raise LabError(f"it is a model for {task}, not for detection")
    entries = session.get_inputs()
    shape = entries[0].shape
    if len(entries) != 1 or len(shape) != 4 or shape[1] != 3:
        raise LabError("its input is not a batch of RGB pictures")
    batch = shape[0] if isinstance(shape[0], int) else None
    names = _names(said.get("names", ""))
    size = _size(shape[2:], said, wanted)
    network = Network(
        file.name, session, entries[0].name, "float16" in entries[0].type, size, batch, "", names, provider
    )
    raw = network.run(np.zeros((1, 3, *size), np.float32))
    return Network(**{**vars(network), "layout": layout(raw.shape, len(names) or None)})


def _size(sides: list[Any], said: dict[str, str], wanted: int | None) -> tuple[int, int]:
    if all(isinstance(side, int) for side in sides):
        if wanted not in (None, *sides):
            raise LabError(f"it takes pictures of {sides[1]} x {sides[0]} pixels and nothing else: leave out --img")
        return int(sides[0]), int(sides[1])
    if wanted is not None:
        stride = int(said["stride"]) if said.get("stride", "").isdecimal() else 32
        if wanted < stride or wanted % stride:
            raise LabError(f"--img {wanted}: it takes multiples of {stride} pixels")
        return wanted, wanted
    exported = _literal(said.get("imgsz", ""))
    if isinstance(exported, list) and len(exported) == 2 and all(isinstance(side, int) for side in exported):
        return exported[0], exported[1]
    return SIZE, SIZE


def _names(text: str) -> dict[int, str]:
    """The names of the classes that both engines write into the file; {} when they are not there."""
    found = _literal(text)
    pairs = found.items() if isinstance(found, dict) else enumerate(found if isinstance(found, list) else [])
    return {int(number): str(name) for number, name in pairs if str(number).isdecimal()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
