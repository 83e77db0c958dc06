"""After an export: load each file again, with the format's own runtime, and compare it with the .pt on real pictures.

The raw predictions are compared, before non-maximum suppression, so that a small shift cannot hide behind a threshold;
and the detections after it, which is what a user sees.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from lab import dataset as data
from lab import demo
from lab.engines import Call
from lab.errors import FAILED, LabError
from lab.launch import run
from lab.onnx_detect import Array, Detection, decode, infer, iou, letterbox, suppress
from lab.options import Request
from lab.project import CODE, Project

PICTURES = 8
LOOKED_AT = 32  # for a checkpoint that finds nothing on the first ones
FEW = 5  # detections a picture that are enough to compare
# Of the image size for boxes, absolute for scores. Half precision keeps 11 bits: half a pixel at 640 in each step.
TOLERANCE = {"float32": 1e-3, "half": 1e-2}
CONFIDENCE = 0.25  # from which a prediction counts as a detection, unless the checkpoint is nowhere so sure
SAME = 0.9  # overlap from which two detections of one class are the same

# format -> (package, what the package index calls it)
NEEDS = {
    "openvino": ("openvino", "openvino"),
    "engine": ("tensorrt", "tensorrt"),
    "coreml": ("coremltools", "coremltools"),
    "saved_model": ("tensorflow", "tensorflow"),
    "pb": ("tensorflow", "tensorflow"),
    "tflite": ("tensorflow", "tensorflow"),
    "edgetpu": ("tensorflow", "tensorflow"),
    "tfjs": ("tensorflowjs", "tensorflowjs"),
    "paddle": ("paddle", "paddlepaddle"),
}


@dataclass(frozen=True)
class Difference:
    """One export against the .pt: boxes in pixels of the network's input, scores from 0 to 1.

    The four differences are None when suppression is inside the model (--nms), so that there is nothing raw to compare.
    """

    form: str
    boxes_max: float | None
    boxes_mean: float | None
    scores_max: float | None
    scores_mean: float | None
    same: int  # detections of both
    detections: int  # of the one that has more
    confidence: float = CONFIDENCE  # from which they count

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare."""
        return self.boxes_max is not None or self.detections > 0

    def agrees(self, tolerance: float, size: int) -> bool:
        """Whether boxes agree to `tolerance` of `size` pixels and scores to `tolerance`; else, 9 of 10 detections."""
        if self.boxes_max is None or self.scores_max is None:
            return self.same >= 0.9 * self.detections
        return self.boxes_max <= tolerance * size and self.scores_max <= tolerance


def require_packages(forms: Sequence[str]) -> None:
    """Raises LabError for a format whose package is not in this image; the engines would try to install it."""
    for form in forms:
        if name := _absent(form):
            raise LabError(
                f"--include {form} needs the package {name}, which is not in this image: `uv pip install {name}` adds "
                "it to this container, a line in docker/requirements.in and `docker/lock` to the image"
            )


def _absent(form: str) -> str:
    """What the package index calls the package that a format needs and this image lacks; "" for none."""
    package, name = NEEDS.get(form, ("", ""))
    return name if package and importlib.util.find_spec(package) is None else ""


def check(request: Request, project: Project, engine: str, checkpoint: Path, since: float) -> None:
    """Compare every file that the export `request` wrote since the time `since` with `checkpoint`; print a table.

    Raises LabError, with exit status 1, when one differs by more than the tolerance.
    """
    forms = request.get("include", ["torchscript"])
    files = {form: file for form in forms if (file := written(checkpoint, form, since)) is not None}
    known = {form: file for form, file in files.items() if form in RUNTIMES and not _absent(form)}
    for form in (form for form in forms if form not in known):
        lacks = f"{_absent(form)} is not installed" if form in RUNTIMES and _absent(form) else ""
        why = lacks or "how to load it again is not known here"
        print(f"lab: {form} was written; {why}, so it is not compared", flush=True)
    if not known:
        return
    size = request.get("imgsz", [project.image_size])
    with tempfile.TemporaryDirectory(prefix="lab-export-") as scratch:

        def predict(images: Array) -> Array:
            return checkpoint_predictions(project, engine, checkpoint, images, Path(scratch), None)

        images, reference, origin = telling_pictures(request, project, engine, (size[0], size[-1]), predict)
    batch = int(request.get("batch_size", 1))
    # YOLOv5 knows the option for TensorFlow's formats only
    suppressed = (
        float(request.get("conf_thres", CONFIDENCE)) if "nms" in request.given and engine == "yolov5u" else None
    )
    found = [
        compare(form, RUNTIMES[form](file, images, batch), reference, engine, suppressed)
        for form, file in known.items()
    ]
    precision = "int8" if "int8" in request.given else "half" if "half" in request.given else "float32"
    _print(found, checkpoint, len(images), origin)
    tolerance = TOLERANCE.get(precision)
    if tolerance is None:
        print(
            "lab: eight-bit integers are coarse by nature: judge them with `lab val` on the exported file", flush=True
        )
        return
    for one in (one for one in found if not one.compared):
        print(
            f"lab: {one.form}: nothing was compared, because neither it nor {project.show(checkpoint)} finds anything "
            f"on {len(images)} pictures of {origin}: name pictures that hold its classes with --data, or train longer",
            flush=True,
        )
    found = [one for one in found if one.compared]
    wrong = [one.form for one in found if not one.agrees(tolerance, max(size))]
    words = f"{tolerance:.0e} of the image size for boxes, {tolerance:.0e} for scores ({precision})"
    if wrong:
        differ = "differs" if len(wrong) == 1 else "differ"
        raise LabError(f"{' and '.join(wrong)} {differ} from {project.show(checkpoint)} by more than {words}", FAILED)
    if found:
        agree = "agrees" if len(found) == 1 else "agree"
        forms = " and ".join(one.form for one in found)
        print(f"lab: {forms} {agree} with {project.show(checkpoint)}, within {words}", flush=True)


def written(checkpoint: Path, form: str, since: float) -> Path | None:
    """The file or directory of `form` that was written beside `checkpoint` since the time `since` (s)."""
    pattern = "openvino_model" if form == "openvino" else f".{form}"
    found = [path for path in checkpoint.parent.glob(f"{checkpoint.stem}*{pattern}") if path.stat().st_mtime >= since]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def pictures(request: Request, project: Project, size: tuple[int, int], most: int = PICTURES) -> tuple[Array, str]:
    """Up to `most` validation pictures of the data set as N x 3 x H x W, and where they are from.

    Made-up ones when there is no data set.
    """
    name = request.get("data", project.data)
    try:
        found = data.open_dataset(name, project, ("val",))
        read = [cv2.imread(str(file)) for file in itertools.islice(found.images("val"), most)]
        origin = project.show(found.file)
    except LabError:
        read, origin = [], ""
    images: list[Any] = [image for image in read if image is not None]
    if not images:
        recipe = demo.Recipe(images=2 * most, size=max(size))
        images, origin = [demo.draw(recipe, "val", number)[0] for number in range(most)], "made-up shapes"
    return np.stack([letterbox(image, size) for image in images]), origin


def telling_pictures(
    request: Request, project: Project, engine: str, size: tuple[int, int], predict: Callable[[Array], Array]
) -> tuple[Array, Array, str]:
    """PICTURES pictures, what `predict` says of them, and where they are from.

    The first ones; where nothing is found on those, the ones with the surest predictions of LOOKED_AT.
    """
    images, origin = pictures(request, project, size)
    reference = predict(images)
    if sureness(reference, engine).max() >= CONFIDENCE or len(images) < PICTURES:
        return images, reference, origin
    images, origin = pictures(request, project, size, LOOKED_AT)
    reference = predict(images)
    best = np.argsort(-sureness(reference, engine).max(axis=1), kind="stable")[:PICTURES]
    return images[best], reference[best], origin


def sureness(reference: Array, engine: str) -> Array:
    """The best score of each prediction, N x P."""
    best: Array = decode(reference, engine)[1].max(axis=2)
    return best


def checkpoint_predictions(
    project: Project, engine: str, checkpoint: Path, images: Array, scratch: Path, log: IO[str] | None
) -> Array:
    """The raw predictions of a .pt for images N x 3 x H x W, by the engine itself in a child process."""
    np.save(scratch / "images.npy", images)
    payload = {
        "task": "raw",
        "upstream": str(project.upstream),
        "weights": str(checkpoint),
        "images": str(scratch / "images.npy"),
        "result": str(scratch / "pt.npy"),
    }
    call = Call(CODE / "lab" / f"run_{engine}.py", payload)
    with contextlib.ExitStack() as stack:
        own = log or stack.enter_context((scratch / "log.txt").open("w", encoding="utf-8"))
        run(call, project, scratch, log=own)
    predictions: Array = np.load(scratch / "pt.npy")
    return predictions


def gap(a: Array, b: Array) -> tuple[float, float]:
    """Largest and mean absolute difference. Raises LabError when the shapes differ."""
    if a.shape != b.shape:
        raise LabError(f"the .pt gives predictions of shape {b.shape}, the exported file {a.shape}", FAILED)
    distance = np.abs(a - b)
    return float(distance.max()), float(distance.mean())


def compare(form: str, raw: Array, reference: Array, engine: str, suppressed: float | None = None) -> Difference:
    """`raw` of an export against `reference` of the .pt.

    `suppressed`, of an export with suppression inside the model: the confidence from which it keeps detections; `raw`
    is then N x M x 6, boxes as (left, top, right, bottom, score, class).
    """
    boxes, scores = decode(reference, engine)
    confidence = _confidence(scores.max(axis=2))
    if suppressed is not None:
        confidence = max(confidence, suppressed)
    truth = [suppress(b, s, confidence) for b, s in zip(boxes, scores, strict=True)]
    if suppressed is not None:
        detections = [[_detection(row) for row in rows if row[4] >= confidence] for rows in raw]
        return Difference(form, None, None, None, None, *_agreement(detections, truth), confidence)
    if raw.shape != reference.shape:
        gap(raw, reference)
    boxes_of, scores_of = decode(raw.astype(np.float32), engine)
    detections = [suppress(b, s, confidence) for b, s in zip(boxes_of, scores_of, strict=True)]
    same, total = _agreement(detections, truth)
    return Difference(form, *gap(boxes_of, boxes), *gap(scores_of, scores), same, total, confidence)


def _confidence(best: Array) -> float:
    """CONFIDENCE, or, where no score reaches it, what the FEW surest predictions of each picture reach on average."""
    if best.max() >= CONFIDENCE:
        return CONFIDENCE
    count = min(FEW * len(best), best.size)
    return float(np.partition(best.ravel(), -count)[-count])


def _detection(row: Array) -> Detection:
    left, top, right, bottom, score, label = (float(number) for number in row[:6])
    return Detection((left, top, right, bottom), int(label), score)


def _agreement(a: list[list[Detection]], b: list[list[Detection]]) -> tuple[int, int]:
    """Detections that both have, and how many the one has that has more."""
    same = 0
    for ours, theirs in zip(a, b, strict=True):
        left = list(theirs)
        for one in ours:
            match = next(
                (x for x in left if x.label == one.label and iou(np.array(x.box), np.array(one.box)) >= SAME), None
            )
            if match is not None:
                left.remove(match)
                same += 1
    return same, max(sum(map(len, a)), sum(map(len, b)))


def _print(found: list[Difference], checkpoint: Path, pictures: int, origin: str) -> None:
    from rich.console import Console  # noqa: PLC0415  a moment
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title=f"against {checkpoint.name}, on {pictures} pictures of {origin}",
        title_justify="left",
        title_style="",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in ("format", "boxes max px", "mean px", "scores max", "mean", "same detections"):
        table.add_column(column, justify="left" if column == "format" else "right", no_wrap=True)
    for one in found:
        numbers = (one.boxes_max, one.boxes_mean, one.scores_max, one.scores_mean)
        table.add_row(one.form, *("-" if n is None else f"{n:.1e}" for n in numbers), f"{one.same} of {one.detections}")
    console = Console(width=None)
    console.print(table)
    least = min(one.confidence for one in found)
    if least < CONFIDENCE:
        words = f"lab: no score reaches {CONFIDENCE} on these pictures, so detections count from {least:.1e} here"
        console.print(words, soft_wrap=True, highlight=False)


def _in_batches(images: Array, batch: int, call: Callable[[Array], Any]) -> Array:
    """Outputs for `images`, `batch` at a time (an export's batch is fixed); the last batch is filled up."""
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
    parts = [np.asarray(call(filled[at : at + batch])) for at in range(0, len(filled), batch)]
    return np.concatenate(parts)[: len(images)]


def _torchscript(file: Path, images: Array, batch: int) -> Array:
    import torch  # noqa: PLC0415  seconds

    model: Any = torch.jit.load(str(file), map_location="cpu").eval()
    kind = next((p.dtype for p in model.parameters()), torch.float32)

    def call(part: Array) -> Any:
        with torch.no_grad():
            said = model(torch.from_numpy(part).to(kind))
        return (said[0] if isinstance(said, (tuple, list)) else said).float().numpy()

    return _in_batches(images, batch, call)


def _openvino(directory: Path, images: Array, batch: int) -> Array:
    import openvino  # noqa: PLC0415  not in the image

    # else the plugin computes in bfloat16 or float16 where the processor has them, and a right export seems wrong
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model: Any = openvino.Core().compile_model(str(next(directory.glob("*.xml"))), "CPU", exact)
    return _in_batches(images, batch, lambda part: model(part)[model.output(0)])


def _tensorrt(file: Path, images: Array, batch: int) -> Array:
    import tensorrt  # noqa: PLC0415  not in the image
    import torch  # noqa: PLC0415  seconds

    if not torch.cuda.is_available():
        raise LabError(f"{file.name} runs on a GPU alone, and torch finds none: `lab doctor` says why", FAILED)
    log = tensorrt.Logger(tensorrt.Logger.ERROR)
    engine: Any = tensorrt.Runtime(log).deserialize_cuda_engine(_plan(file))
    if engine is None:
        raise LabError(
            f"{file.name} cannot be loaded by tensorrt {tensorrt.__version__} on this GPU: an engine runs where it was "
            "built, so export it here",
            FAILED,
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    entry = next(name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT)
    results = [name for name in names if name != entry]
    kinds = {name: np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))) for name in names}
    stream = torch.cuda.Stream()

    def call(part: Array) -> Any:
        fed = torch.from_numpy(np.ascontiguousarray(part, kinds[entry])).cuda()
        context.set_input_shape(entry, tuple(fed.shape))
        held = {entry: fed}
        for name in results:
            shape = tuple(context.get_tensor_shape(name))
            held[name] = torch.empty(shape, dtype=getattr(torch, kinds[name].name), device="cuda")
        for name, tensor in held.items():
            context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()  # the pictures are there, which were copied on another stream
        if not context.execute_async_v3(stream.cuda_stream):
            raise LabError(f"{file.name} loads but does not run: what TensorRT says stands above", FAILED)
        torch.cuda.synchronize()
        return held["output0" if "output0" in results else results[0]].float().cpu().numpy()

    return _in_batches(images, batch, call)


def _plan(file: Path) -> bytes:
    """TensorRT's own bytes of an .engine: the ultralytics package puts a JSON text and its length before them."""
    content = file.read_bytes()
    length = int.from_bytes(content[:4], "little")
    with contextlib.suppress(ValueError):
        if isinstance(json.loads(content[4 : 4 + length]), dict):
            return content[4 + length :]
    return content


RUNTIMES: dict[str, Callable[[Path, Array, int], Array]] = {
    "onnx": infer,
    "torchscript": _torchscript,
    "openvino": _openvino,
    "engine": _tensorrt,
}
