"""`lab card`: the model card of a run, Markdown with the front matter of Hugging Face's model cards.

Every word comes from the run's own records and its measured checkpoint. What they do not tell is left out: what the
model is for, and whom it could harm, only its makers can say, and the card tells them so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lab import devices, gate, record, report_page, report_predict, report_run, upstream
from lab.errors import FAILED, LabError
from lab.onnx_detect import GREY
from lab.project import Project
from lab.report_measure import SURE, Measured
from lab.report_predict import Findings
from lab.report_run import Run

NAME = "README.md"  # what a model repository shows
FILES = ("best.pt", "best.onnx")
FEW_BOXES = 50  # of a class: its figures swing with each one
SIZE_WORDS = ("small (under 32 pixels)", "medium (to 96 pixels)", "large")
LIBRARY = {"yolov5": "yolov5", "yolov5u": "ultralytics"}


def main(project: Project, named: str, device: str | None, out: Path | None) -> int:
    """Write the card of the run `named` (the newest when it is empty), and say where it is. Raises LabError."""
    directory = report_run.find(named, project)
    run = report_run.read(directory, project)
    if device:
        devices.resolve(device)  # refused before anything is measured
    found = report_predict.findings(run, project, device or None)
    file = write(run, found, project, out or directory / NAME)
    print(f"lab: {project.show(file.absolute())}: the model card")
    return 0


def write(run: Run, found: Findings, project: Project, file: Path) -> Path:
    """Write the card into `file`. Raises LabError when the checkpoint could not be measured."""
    if found.measured is None:
        raise LabError(f"{run.name} has nothing to put on a card: {found.why_not}", FAILED)
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write(file, text(run, found, found.measured, project))
    return file


def text(run: Run, found: Findings, measured: Measured, project: Project) -> str:
    """The whole card."""
    name = _name(project)
    parts = [
        f"---\n{yaml.safe_dump(front_matter(run, measured, name), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _summary(run, found, measured),
        *_model(run, found),
        *_data(run, found),
        *_training(run),
        *_evaluation(run, found, measured),
        *_use(run),
        *_limits(run, found, measured),
        *_licence(),
        *_environment(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(run: Run, measured: Measured, name: str) -> dict[str, Any]:
    """What model hubs read: licence of the engine, library, task, and the results as a model index."""
    files = _files(run)
    data = run.data_name or "unknown"
    values = (
        ("mean_average_precision", "mAP@0.5", measured.ap50),
        ("mean_average_precision", "mAP@0.5:0.95", measured.ap),
        ("precision", "precision", measured.precision),
        ("recall", "recall", measured.recall),
    )
    metrics = [{"type": of, "name": called, "value": round(value, 5)} for of, called, value in values]
    file = Path(data)
    kind = file.parent.name if file.stem == "data" and file.parent.name else file.stem
    dataset = {"type": kind, "name": data, "split": "val"}
    if fingerprint := (run.said.get("data") or {}).get("fingerprint"):
        dataset["revision"] = str(fingerprint)
    result = {"task": {"type": "object-detection"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": "agpl-3.0",
        "library_name": LIBRARY[run.engine],
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "yolov5", "pytorch", *(["onnx"] if "best.onnx" in files else [])],
        "model-index": [{"name": name, "results": [result]}],
    }


def _name(project: Project) -> str:
    """The project's name: in the container its folder is called workspace, so ask what it was generated as."""
    try:
        said = json.loads((project.root / ".devcontainer" / "project.json").read_text(encoding="utf-8"))
        return str(said["slug"])
    except (OSError, ValueError, KeyError, TypeError):
        return project.root.name


def _files(run: Run) -> dict[str, Path]:
    """The files of the model that are there."""
    return {name: file for name in FILES if (file := run.directory / "weights" / name).is_file()}


# The parts, in the order in which a reader asks


def _summary(run: Run, found: Findings, measured: Measured) -> str:
    return (
        f"Detects {_listed(found.names)} in pictures: mAP@0.5 {measured.ap50:.3f}, mAP@0.5:0.95 {measured.ap:.3f} on "
        f"{measured.pictures} validation pictures. It is {report_page.origin(run)}, at {run.image_size} pixels."
    )


def _model(run: Run, found: Findings) -> Iterator[str]:
    yield "## Model"
    engine = {
        "yolov5": f"YOLOv5, {upstream.URL} at commit `{upstream.COMMIT}` (anchor-based)",
        "yolov5u": "the ultralytics package (YOLOv5 with an anchor-free head)",
    }[run.engine]
    rows = [
        ("task", "object detection"),
        ("engine", engine),
        ("began as", report_page.origin(run)),
        ("input", f"{run.image_size} pixels, the longer side"),
        ("classes", f"{len(found.names)}: {', '.join(found.names)}"),
        ("ended", str(run.said.get("ended") or "")),
    ]
    yield _table(("", ""), [row for row in rows if row[1]])
    files = _files(run)
    yield _table(
        ("file", "MB", "SHA-256"),
        [(f"`{name}`", f"{file.stat().st_size / 1e6:.1f}", f"`{_sha256(file)}`") for name, file in files.items()],
    )
    yield "What it is meant for, and for what it must not be used, is for its makers to write here."


def _data(run: Run, found: Findings) -> Iterator[str]:
    about = run.said.get("data") or {}
    images = about.get("images") or {}
    yield "## Data"
    rows = [
        ("data set", f"`{run.data_name}`" if run.data_name else ""),
        ("fingerprint", f"`{about['fingerprint']}` (of names, sizes and labels)" if about.get("fingerprint") else ""),
        ("pictures", ", ".join(f"{count:,} {split}" for split, count in images.items())),
    ]
    yield _table(("", ""), [row for row in rows if row[1]])
    if found.trained:
        boxes = [(name, f"{count:,}") for name, count in zip(found.names, found.trained, strict=False)]
        yield _table(("class", "boxes to learn from"), boxes)


def _training(run: Run) -> Iterator[str]:
    yield "## Training"
    git = run.said.get("git") or {}
    took = report_run.seconds(run)
    best = run.best
    epochs = f"{run.epochs[-1]} of {run.planned or '?'}" if run.epochs else ""
    rows = [
        ("commit", f"`{git['commit']}`" if git.get("commit") else "not recorded"),
        ("changes on top", _changes(git)),
        ("epochs", epochs + (f"; the checkpoint is of epoch {run.epochs[best]}" if best is not None else "")),
        ("batch", str(run.options.get("batch_size") or "")),
        ("time", report_page.duration(took) if took is not None else ""),
        ("on", report_page.hardware(run)),
    ]
    yield _table(("", ""), [row for row in rows if row[1]])
    yield f"```sh\n{report_page.command(run)}\n```"


def _changes(git: dict[str, Any]) -> str:
    if not git.get("dirty"):
        return ""
    said = [f"`{git['diff']}` beside the run" if git.get("diff") else ""]
    said.append(f"{git['untracked']} files that git does not follow" if git.get("untracked") else "")
    return ", ".join(filter(None, said))


def _evaluation(run: Run, found: Findings, measured: Measured) -> Iterator[str]:
    yield "## Evaluation"
    yield (
        f"`best.pt` on the {measured.pictures} validation pictures ({measured.boxes} labelled boxes). Precision and "
        f"recall at confidence {measured.confidence:.3f}, where their harmonic mean is best."
    )
    one = measured
    rows: list[tuple[object, ...]] = [("all", one.pictures, one.boxes, one.precision, one.recall, one.ap50, one.ap)]
    rows += [
        (found.names[score.number], score.pictures, score.boxes, score.precision, score.recall, score.ap50, score.ap)
        for score in measured.classes
    ]
    head = ("class", "pictures", "boxes", "precision", "recall", "mAP@0.5", "mAP@0.5:0.95")
    yield _table(head, [tuple(_figure(cell) for cell in row) for row in rows])
    kept = {key: run.at(key, run.best) for key in report_run.METRICS}
    if run.best is not None and any(value is not None for value in kept.values()):
        yield f"What the engine measured itself in epoch {run.epochs[run.best]}, from `results.csv`:"
        yield _table(head[3:], [tuple("-" if value is None else f"{value:g}" for value in kept.values())])
    if found.speed:
        total = sum(found.speed.values())
        stages = ", ".join(f"{name} {value:g}" for name, value in found.speed.items())
        yield f"Speed: {total:.1f} ms a picture ({stages}){f', on {found.device}' if found.device else ''}, in batches."
    said = gate.read(run.directory)
    if said.get("map50") == measured.ap50 and "passed" in said:
        least = gate.Bar(**said["bar"])
        yield f"It was asked for {least}, and {'passes' if said['passed'] else 'does not pass'}."


def _use(run: Run) -> Iterator[str]:
    files = _files(run)
    size = run.image_size
    yield "## Use"
    if "best.pt" in files:
        yield (
            "`best.pt` is a pickle: load it only when you trust where it comes from.\n\n"
            + {
                "yolov5": "```sh\n"
                f"git clone {upstream.URL} && cd yolov5 && git checkout {upstream.COMMIT}\n"
                f"pip install -r requirements.txt\n"
                f"python detect.py --weights best.pt --img {size} --source picture.jpg\n```",
                "yolov5u": "```python\nfrom ultralytics import YOLO\n\n"
                f'YOLO("best.pt").predict("picture.jpg", imgsz={size})\n```',
            }[run.engine]
        )
    if "best.onnx" in files:
        yield (
            "`best.onnx` needs none of the engine's code. In the project it came from:\n\n```sh\n"
            "lab serve --weights best.onnx    # then POST pictures to http://localhost:8000/predict\n"
            f"lab detect --weights best.onnx --img {size} --source picture.jpg\n```"
        )
        yield from _tensors(files["best.onnx"])


def _tensors(file: Path) -> Iterator[str]:
    """What goes into the ONNX file and what comes out, as onnxruntime tells; nothing where it is not installed."""
    try:
        from lab.onnx_model import open_network  # noqa: PLC0415

        network = open_network(file, "cpu")[0]
    except ModuleNotFoundError:
        return
    batch = "N" if network.batch is None else network.batch
    height, width = network.size
    kind = "float16" if network.half else "float32"
    out = {
        "yolov5": "predictions x (centre x, centre y, width, height, objectness, a score for each class), where a "
        "detection's score is the objectness times that of its class",
        "yolov5u": "(centre x, centre y, width, height, a score for each class) x predictions",
        "suppressed": "detections x (left, top, right, bottom, score, class)",
    }[network.layout]
    yield (
        f"Elsewhere: its input `{network.entry}` is {kind}, {batch} x 3 x {height} x {width}, RGB from 0 to 1, the "
        f"picture scaled to fit and centred on grey ({GREY}). Its output is {batch} x {out}; coordinates are pixels of "
        "the input." + ("" if network.layout == "suppressed" else " Overlapping boxes are yours to suppress.")
    )


def _limits(run: Run, found: Findings, measured: Measured) -> Iterator[str]:
    yield "## Limits"
    lines = [
        "The validation pictures also chose the epoch that was kept: expect somewhat less on pictures from elsewhere.",
        f"It knows {len(found.names)} classes and nothing else, and was measured on nothing but this data set.",
    ]
    absent = [found.names[score.number] for score in measured.classes if not score.boxes]
    if absent:
        lines.append(f"Not measured at all, because the validation pictures hold none: {_listed(absent)}.")
    few = [found.names[score.number] for score in measured.classes if 0 < score.boxes < FEW_BOXES]
    if few:
        lines.append(f"Fewer than {FEW_BOXES} boxes were there to measure {_listed(few)}: those figures are rough.")
    untaught = [name for name, count in zip(found.names, found.trained, strict=False) if not count]
    if untaught:
        lines.append(f"No box to learn from: {_listed(untaught)}.")
    for words, (total, hit) in zip(SIZE_WORDS, measured.sizes, strict=False):
        if total:
            lines.append(f"Of {total} {words} boxes it finds {hit} at confidence {SURE:g}.")
    status = run.said.get("status")
    if status not in (None, "done"):
        lines.append(f"Its training did not end: it is recorded as {status}.")
    yield "\n".join(f"- {line}" for line in lines)


def _licence() -> Iterator[str]:
    yield "## Licence"
    yield (
        "It was trained by, and its `.pt` runs on, software of Ultralytics that is AGPL-3.0, or under an enterprise "
        "licence bought from them. Without the latter, take what you distribute or serve with it to be AGPL-3.0 as "
        "well. The pictures it learnt from may carry conditions of their own."
    )


def _environment(run: Run) -> Iterator[str]:
    versions = {key: value for key, value in (run.said.get("versions") or {}).items() if value}
    rows = list(versions.items())
    if build := run.said.get("torch_build"):
        rows.append(("PyTorch build", build))
    host = run.said.get("host") or {}
    rows += [("GPU", gpu["name"]) for gpu in host.get("gpus") or []]
    if host.get("cpus"):
        rows.append(("processors", str(host["cpus"])))
    if rows:
        yield "## Environment of the training"
        yield _table(("", ""), rows)


# Markdown


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(said: str) -> str:
    """Text that ends neither its cell nor its line, and is no HTML; class names are anything."""
    return " ".join(str(said).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _figure(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _listed(names: list[str], most: int = 20) -> str:
    shown = [_cell(name) for name in names[:most]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _sha256(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()
