"""What a report concludes: what limited the run, and what to try next. Pure functions of what was measured.

The thresholds are rules of thumb, so every sentence carries the figures it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from statistics import fmean

from lab.report_predict import Findings
from lab.report_run import Run
from lab.telemetry import Sample

# Measured with 1280 x 720 pictures at 640 pixels: a processor prepares 45 pictures a second, 280 from memory
UNCACHED, CACHED = 45, 280
WARM_UP = 30.0  # seconds that are no part of a mean: starting, scanning labels
SMALL_DATA = 20_000  # training pictures below which a pretrained start is the better one
FEW_BOXES = 30  # labelled validation boxes of a class below which its figures are mostly chance
MOST = 4  # sentences; more are not read


@dataclass(frozen=True)
class Load:
    """Means over a stretch of a run. Per cent, MiB, MB/s; GPU values over all its GPUs, None without one."""

    gpu: float | None
    cpu: float | None
    gpu_memory: float | None  # the highest
    memory: float | None  # the highest
    reading: float | None
    gpus: int
    host_cpu: float | None = None  # the whole machine's processors
    untold: bool = False  # there are GPUs, and none of them tells how busy it is: MIG
    rate: float | None = None  # images a second
    wait: float | None = None  # of the time in the steps, for images


def load(samples: list[Sample]) -> Load | None:
    """That of a whole run but its start; None when there are too few samples to say anything."""
    times = sorted({sample.time for sample in samples})
    if len(times) < 5:
        return None
    start = times[0] + min(WARM_UP, (times[-1] - times[0]) / 4)
    later = [sample for sample in samples if sample.time >= start]
    return means(later, busy(later))


def means(samples: list[Sample], used: set[int]) -> Load:
    """Of `samples`, in which the run used the GPUs `used`."""
    theirs = [sample for sample in samples if sample.gpu in used] if used else samples
    return Load(
        gpu=_mean(sample.gpu_util for sample in theirs if used),
        cpu=_mean(sample.cpu_util for sample in samples),
        gpu_memory=_most(sample.gpu_memory for sample in theirs if used),
        memory=_most(sample.memory for sample in samples),
        reading=_mean(sample.read for sample in samples),
        gpus=len(used),
        host_cpu=_mean(sample.host_cpu for sample in samples),
        untold=any(sample.gpu is not None for sample in samples) and all(sample.gpu_util is None for sample in samples),
        rate=_mean(sample.rate for sample in samples),
        wait=_mean(sample.wait for sample in samples),
    )


def busy(samples: list[Sample]) -> set[int]:
    """GPUs that the run used, of those in the machine: any that did something."""
    return {sample.gpu for sample in samples if sample.gpu is not None and (sample.gpu_util or 0) >= 3}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def limit(run: Run, found: Load | None) -> str:
    """What set the pace, and the one thing that would help most."""
    if found is None or found.cpu is None:
        return "Not known: the run was too short, or made without <code>lab train</code>, so nothing was sampled."
    cached = run.options.get("cache") in ("ram", True)
    cores = (run.said.get("host") or {}).get("cpus")
    if crowded(found):
        return (
            f"Other programs on this machine: its processors were busy {found.host_cpu:.0f} % of the time, with this "
            f"run {found.cpu:.0f} %. It would be faster alone."
        )
    if found.gpu is None:
        if found.untold and run.options.get("device") != "cpu":
            return "Not known: the GPU did not tell how busy it was."
        if found.cpu < 50:
            return (
                f"Not clear: no GPU took part, and the processors were busy only {found.cpu:.0f} % of the time. "
                "Pictures may come from a slow disk (<code>--cache ram</code> helps), or others used the machine."
            )
        return (
            f"The processors: they were busy {found.cpu:.0f} % of the time, and no GPU took part. A GPU is the one big "
            "step; until then a smaller <code>--img</code> or yolov5n trains faster."
        )
    together = f"the GPU was busy {found.gpu:.0f} % of the time, the processors {found.cpu:.0f} %"
    if found.wait is not None:
        together += f", and the training waited {found.wait:.0f} % of its time for pictures"
    if found.gpu >= 85:
        return (
            f"The GPU, {together.replace('the GPU was', 'which was', 1)}. A larger <code>--batch</code> or more GPUs "
            "help, faster loading would not."
        )
    if found.cpu >= 75 or (found.reading or 0) >= 100:
        where = "Reading and preparing pictures"
        if cached:
            need = f"one processor prepares about {CACHED} pictures a second"
            return f"{where}, although they were cached: {together}. More processors help: {need}."
        return (
            f"{where}: {together}. <code>--cache ram</code> is the biggest step: one processor prepares about "
            f"{UNCACHED} pictures a second from files, about {CACHED} from memory."
        )
    workers = run.options.get("workers")
    if isinstance(workers, int) and cores and workers * max(1, found.gpus) < cores:
        return (
            f"Waiting for pictures, most likely: {together}, and {workers} loader workers used few of {cores} "
            f"processors. Try <code>--workers {min(16, cores // max(1, found.gpus))}</code>."
        )
    return f"Neither fully: {together}. Steps are short, so a larger <code>--batch</code> keeps the GPU busier."


def crowded(found: Load) -> bool:
    """Whether other programs keep the machine's processors busy, more than this run does."""
    host, own = found.host_cpu, found.cpu
    return host is not None and own is not None and host >= 70 and own < host / 2


# What to try next


def next_steps(run: Run, found: Findings) -> list[str]:
    """At most MOST sentences, the weightiest first; HTML, with every value of ours escaped already."""
    steps: list[Callable[[Run, Findings], str]] = [
        _learnt_nothing, _still_rising, _overfitting, _from_scratch, _weak_class, _confusion, _small_things,
        _inventions, _few_boxes,
    ]  # fmt: skip
    said = [sentence for step in steps if (sentence := step(run, found))]
    return (said[:1] if _learnt_nothing(run, found) else said[:MOST]) or [
        "Nothing stands out. More labelled pictures like those it errs on are what usually helps most."
    ]


def _learnt_nothing(run: Run, _: Findings) -> str:
    best = run.at("map50", run.best)
    if best is None or best > 0.01:
        return ""
    return (
        "It has learnt nothing yet. Look at the pictures below: if the labelled boxes are in the wrong place, run "
        "<code>lab data check</code>; if they are right, train longer or start from a checkpoint."
    )


def _still_rising(run: Run, _: Findings) -> str:
    best, last = run.best, len(run.epochs) - 1
    if best is None or not run.planned or run.epochs[-1] < run.planned or best < 0.9 * last or last < 4:
        return ""
    before = [value for value in run.columns["map"][: max(1, int(0.8 * last))] if value is not None]
    now = run.at("map", best)
    if now is None or not before or now - max(before) < 0.005:
        return ""
    return (
        f"It was still improving when it ended: mAP50-95 rose by {now - max(before):.3f} in the last fifth. Train "
        f"longer: <code>--epochs {2 * run.planned}</code>."
    )


def _overfitting(run: Run, _: Findings) -> str:
    best = run.best
    if best is None or len(run.epochs) < 20 or best > 0.7 * len(run.epochs):
        return ""
    total = validation_loss(run)
    least, last = min((v for v in total if v is not None), default=None), total[-1] if total else None
    if least is None or last is None or last < 1.1 * least:
        return ""
    return (
        f"It began to learn the training pictures by heart: best in epoch {run.epochs[best]} of {run.epochs[-1]}, and "
        f"the validation loss rose by {(last / least - 1) * 100:.0f} % from its lowest. More pictures or stronger "
        "augmentation (<code>--hyp hyp.scratch-med.yaml</code>) help, more epochs do not."
    )


def validation_loss(run: Run) -> list[float | None]:
    """The sum of the validation losses of each epoch."""
    columns = [values for key, values in run.columns.items() if key.startswith("val/")]
    return [
        sum(v for v in row if v is not None) if any(v is not None for v in row) else None
        for row in zip(*columns, strict=True)
    ]


def _from_scratch(run: Run, found: Findings) -> str:
    pictures = ((run.said.get("data") or {}).get("images") or {}).get("train")
    scratch = run.options.get("weights") == "" or run.options.get("pretrained") is False
    if not scratch or pictures is None or pictures >= SMALL_DATA:
        return ""
    del found
    return (
        f"It started from nothing, with {pictures} training pictures. With so few, a start from a published "
        "checkpoint usually gains more than anything else: put its file into the project and give "
        "<code>--weights yolov5s.pt</code>."
    )


def _weak_class(_: Run, found: Findings) -> str:
    measured = found.measured
    if measured is None:
        return ""
    scored = [score for score in measured.classes if score.ap is not None]
    if len(scored) < 2:
        return ""
    worst = min(scored, key=lambda score: score.ap or 0.0)
    if (worst.ap or 0.0) > 0.7 * measured.ap:
        return ""
    known = found.trained[worst.number] if worst.number < len(found.trained) else None
    most = max(found.trained, default=0)
    name = _name(found, worst.number)
    sentence = f"{name} is the weakest class, with mAP50-95 {worst.ap:.3f} against {measured.ap:.3f} on average"
    if known is not None and known < most / 3:
        return f"{sentence}; it has {known} labelled boxes to learn from, the commonest class {most}. Label more of it."
    return f"{sentence}. Look at its boxes below: are they labelled alike everywhere?"


def _confusion(_: Run, found: Findings) -> str:
    if found.measured is None:
        return ""
    table = found.measured.confusion
    classes = len(table) - 1
    pairs = [
        (table[i][j] / sum(table[i]), i, j)
        for i in range(classes)
        for j in range(classes)
        if i != j and sum(table[i]) >= 10
    ]
    share, i, j = max(pairs, default=(0.0, 0, 0))
    if share < 0.1:
        return ""
    return (
        f"{share * 100:.0f} % of the boxes labelled {_name(found, i)} were taken for {_name(found, j)}. Check that "
        "the labels keep the two apart, and add pictures that show the difference."
    )


def _small_things(run: Run, found: Findings) -> str:
    if found.measured is None or len(found.measured.sizes) < 3:
        return ""
    (small, hit), *rest = found.measured.sizes
    larger, larger_hit = sum(total for total, _ in rest), sum(hit for _, hit in rest)
    if small < 20 or larger < 20 or hit / small > 0.6 * larger_hit / larger:
        return ""
    size = run.image_size
    return (
        f"Small things are missed: of those under 32 pixels {hit / small * 100:.0f} % were found, of the larger ones "
        f"{larger_hit / larger * 100:.0f} %. A larger <code>--img {size * 3 // 2 // 64 * 64 or size * 2}</code> helps, "
        "if the pictures have that many pixels."
    )


def _inventions(run: Run, found: Findings) -> str:
    if found.measured is None or _still_rising(run, found):  # much is loose at first, and tightens by itself
        return ""
    invented = sum(found.measured.confusion[-1])
    if invented < max(10, 0.5 * found.measured.boxes):
        return ""
    return (
        f"It sees things where none are: {invented} boxes on background against {found.measured.boxes} labelled ones. "
        "Add pictures without any of the classes, and look below whether some of these are missing labels."
    )


def _few_boxes(_: Run, found: Findings) -> str:
    if found.measured is None:
        return ""
    few = [score for score in found.measured.classes if score.boxes < FEW_BOXES]
    if not few:
        return ""
    names = ", ".join(_name(found, score.number) for score in few[:3]) + (" …" if len(few) > 3 else "")
    return (
        f"Validate on more pictures: {names} {'has' if len(few) == 1 else 'have'} fewer than {FEW_BOXES} labelled "
        "boxes there, so the figures are partly chance."
    )


def _name(found: Findings, number: int) -> str:
    return f"<b>{escape(found.names[number] if number < len(found.names) else str(number))}</b>"
