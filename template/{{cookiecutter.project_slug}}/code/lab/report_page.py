"""The page of one run, and what it shares with the page that compares runs. One file, no script, nothing loaded."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from lab import record, report_advice, report_run, report_svg
from lab.project import Project
from lab.report_measure import RECALLS, SURE, Measured
from lab.report_predict import Findings, Sample
from lab.report_run import Run
from lab.report_svg import COLOURS, Band, Series, chart, number
from lab.telemetry import Sample as Reading

PIXELS = 416  # the longer side of an embedded picture
QUALITY = 80  # JPEG
BUCKETS = 200  # points of a curve over time
LABELLED = 8  # classes with a curve of their own colour; of more, each is faint
TABLE = 20  # classes in the table; the rest is folded away
GIBIBYTE = 1 << 30

STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --text: #1b1f24; --soft: #5c6670; --edge: #dfe3e8;
  --good: #1a7f4b; --bad: #c2410c; --c0: #1d5fd1; --c1: #c2410c; --c2: #1a7f4b; --c3: #8a3ffc; --c4: #b8860b;
  --c5: #0e7c86; --c6: #c0267e; --c7: #5c6670 }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1d2126; --text: #e6e9ec; --soft: #9aa4ae;
  --edge: #343a42; --good: #4ac585; --bad: #fb8c4e; --c0: #6ea8fe; --c1: #fb8c4e; --c2: #4ac585; --c3: #b794ff;
  --c4: #e3b341; --c5: #4cc4cf; --c6: #f27bbd; --c7: #9aa4ae } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
h1 { font-size: 17px; font-weight: 600; color: var(--soft); margin: 0; overflow-wrap: anywhere }
h2 { font-size: 20px; margin: 44px 0 10px; border-top: 1px solid var(--edge); padding-top: 18px }
.answer { font-size: 27px; line-height: 1.25; font-weight: 650; margin: 6px 0 8px }
p { margin: 6px 0; max-width: 78ch } .soft, caption { color: var(--soft) }
.note { border-left: 4px solid var(--bad); padding: 6px 12px; background: var(--card); max-width: none }
ul, ol { margin: 6px 0; padding-left: 22px; max-width: 82ch } li { margin: 5px 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; margin: 18px 0 }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px } .tile b { display: block; font-size: 22px }
.tile span { color: var(--soft); font-size: 13px }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 22px 26px }
figure { margin: 0 } figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline }
.keys { font-size: 13px; color: var(--soft) } .key { margin-right: 12px; white-space: nowrap }
.key i { display: inline-block; width: 16px; height: 0; border-top: 3px solid; margin: 0 5px 4px 0 }
.key i.dashed { border-top-style: dashed }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font-size: 12px }
.end { text-anchor: end } .mid, .cell { text-anchor: middle } .grid { stroke: var(--edge) }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round } .line.faint { stroke-width: 1; opacity: .35 }
.line.dashed { stroke-dasharray: 6 4 } .line.thick { stroke-width: 3 } .band { stroke: none; opacity: .2 }
.good { fill: var(--good) } .bad { fill: var(--bad) } svg .cell { fill: var(--text); font-size: 13px }
svg .cell.strong { fill: var(--back); font-weight: 600 }
.box { fill: none } svg .name { fill: #fff }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--edge); white-space: nowrap }
th { font-weight: 600; color: var(--soft); font-size: 13px } th:first-child, td:first-child { text-align: left }
table.facts td, table.facts th { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top }
.meter { display: inline-block; width: 90px; height: 9px; background: var(--edge); border-radius: 5px; overflow: hidden;
  margin-left: 8px } .meter i { display: block; height: 100%; background: var(--c0) }
.name2 { max-width: 260px; overflow: hidden; text-overflow: ellipsis }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 16px 20px }
.shots figcaption { font-size: 13px; color: var(--soft) } .shot { border-radius: 4px; overflow: hidden }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 13px } code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
p code, li code { background: var(--card); padding: 1px 5px; border-radius: 4px; font-size: 13px }
details { margin: 10px 0 } summary { cursor: pointer; color: var(--soft) }
@media print { body { max-width: none; padding: 0; font-size: 12px } h2 { break-after: avoid }
  figure, .tile, tr, pre { break-inside: avoid } .note, .tile, pre, .meter, .meter i, rect { print-color-adjust: exact }
  .two { grid-template-columns: 1fr 1fr } .shots { grid-template-columns: 1fr 1fr } }
""" + "".join(
    f".line.c{i} {{ stroke: var(--c{i}) }} .dot.c{i}, .band.c{i} {{ fill: var(--c{i}) }} "
    f".key i.c{i} {{ border-color: var(--c{i}) }}\n"
    for i in range(COLOURS)
)
# on photographs the same colours serve in light and in dark
ON_PICTURES = ("#1d5fd1", "#c2410c", "#1a7f4b", "#8a3ffc", "#9a6b00", "#0e7c86", "#c0267e", "#3d4650")
STYLE += "".join(
    f".box.c{i} {{ stroke: {colour} }} .tag.c{i} {{ fill: {colour} }}\n" for i, colour in enumerate(ON_PICTURES)
)


def page(title: str, body: Sequence[str]) -> str:
    """A whole page. Its own policy forbids every request: whatever a class name holds, nothing is loaded or run."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + ""
        "\n</body>\n</html>\n"
    )


def run_page(run: Run, found: Findings, project: Project) -> str:
    """The report of one run."""
    return page(
        f"{run.name}: training report",
        [
            f"<h1>Training report: {escape(run.name)}</h1>",
            *_answer(run, found),
            _state(run, project),
            _tiles(run, found),
            "<h2>What to try next</h2><ul>",
            *(f"<li>{sentence}</li>" for sentence in report_advice.next_steps(run, found)),
            "</ul>",
            *_curves(run),
            *_classes(run, found),
            *_quality(found),
            *_pictures(found, project),
            *_machine(run),
            *_repeat(run, project),
        ],
    )


# The answer first


def _answer(run: Run, found: Findings) -> list[str]:
    best = run.best
    score, score50 = run.at("map", best), run.at("map50", best)
    if score is None and found.measured is not None:
        score, score50 = found.measured.ap, found.measured.ap50
    if score is None:
        answer = "Nothing was measured in this run."
    else:
        where = f", in epoch {run.epochs[best]} of {run.planned or run.epochs[-1]}" if best is not None else ""
        answer = f"mAP50-95 {score:.3f} (mAP50 {score50 or 0:.3f}){where}"
    return [f'<p class="answer">{answer}</p>', f"<p>{'. '.join(_circumstances(run, found))}.</p>"]


def _circumstances(run: Run, found: Findings) -> list[str]:
    about = run.said.get("data") or {}
    images = about.get("images") or {}
    names = about.get("names") or found.names
    data = run.data_name or "unknown data"
    counts = " and ".join(f"{images[split]} pictures for {use}" for split, use in USES if split in images)
    said = [
        f"On <b>{escape(str(data))}</b>" + (f", {len(names)} classes" if names else "") + (counts and f", {counts}")
    ]
    said.append(f"{escape(origin(run))} at {run.image_size} pixels, engine {escape(run.engine)}")
    took = report_run.seconds(run)
    if took is not None:
        said.append(f"{duration(took)} on {escape(hardware(run))}")
    return said


USES = (("train", "training"), ("val", "validation"))


def origin(run: Run) -> str:
    """What the training began with, in words."""
    start = str(run.options.get("weights") or "")
    cfg = str(run.options.get("cfg") or "")
    if run.engine == "yolov5u":
        cfg, start = str(run.options.get("model") or ""), str(run.options.get("pretrained") or "")
        start = "" if start in ("True", "False") else start
        if cfg.endswith(".pt"):
            cfg, start = "", cfg
    if start:
        return f"{Path(start).name} trained further"
    return f"{Path(cfg).stem or 'a model'} from scratch"


def hardware(run: Run) -> str:
    """The GPUs that the run used, else its processors, in words."""
    host = run.said.get("host") or {}
    used = report_advice.busy(run.samples)
    gpus = host.get("gpus") or []
    if used and gpus:
        names = [gpus[index]["name"] for index in sorted(used) if index < len(gpus)] or [gpus[0]["name"]]
        kinds = dict.fromkeys(names)
        return ", ".join(f"{names.count(kind)} x {kind}" if names.count(kind) > 1 else kind for kind in kinds)
    cores = host.get("cpus")
    return f"{cores} processors, without a GPU" if cores else "an unknown machine"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _state(run: Run, project: Project) -> str:
    status, attempts = run.said.get("status"), run.said.get("attempts") or [{}]
    done = f" after {run.epochs[-1]} of {run.planned or '?'} epochs" if run.epochs else " before its first epoch ended"
    if status == "failed":
        return f'<p class="note"><b>This run failed</b>{done}: {escape(str(attempts[-1].get("reason") or ""))}</p>'
    if status == "running":
        return f'<p class="note">This run has not ended{done}: it is still going, or it was killed.</p>'
    if status == "stopped":
        last = run.directory / "weights" / "last.pt"
        place = project.show(last if last.is_file() else run.directory)  # without an epoch there is no checkpoint
        resume = f"lab train --engine {run.engine} --resume {shlex.quote(place)}"
        return f'<p class="note">This run was stopped{done}. Go on with <code>{escape(resume)}</code></p>'
    return ""


def _tiles(run: Run, found: Findings) -> str:
    best = run.best
    tiles = [
        (f"{value:.3f}", word)
        for key, word in (("map", "mAP50-95"), ("map50", "mAP50"), ("precision", "precision"), ("recall", "recall"))
        if (value := run.at(key, best)) is not None
    ]
    took = report_run.seconds(run)
    images = ((run.said.get("data") or {}).get("images") or {}).get("train")
    if took is not None:
        tiles.append((duration(took), f"for {len(run.epochs)} epochs"))
        if images and run.epochs:
            tiles.append((number(images * len(run.epochs) / max(took, 1e-9)), "pictures a second, all included"))
    if found.speed:
        total = sum(found.speed.values())
        parts = ", ".join(f"{name} {value:g}" for name, value in found.speed.items())
        tiles.append((f"{number(total)} ms", f"to detect in a picture: {parts}"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{value}</b><span>{escape(word)}</span></div>' for value, word in tiles)
        + "</div>"
    )


# Curves


def _curves(run: Run) -> list[str]:
    if not run.epochs:
        return []
    best, columns = run.best, run.columns
    parts = sorted({key.partition("/")[2] for key in columns if "/" in key})
    charts = [
        chart(
            "How well it detects", run.epochs,
            [Series("mAP50-95", columns["map"], 0, "thick"), Series("mAP50", columns["map50"], 2)],
            "epoch", top=1.0, mark=best,
        ),
        chart(
            "Precision and recall", run.epochs,
            [Series("precision", columns["precision"], 3), Series("recall", columns["recall"], 5)],
            "epoch", top=1.0, mark=best,
        ),
    ]  # fmt: skip
    for part in parts:
        series = [
            Series("training", columns.get(f"train/{part}", []), 0),
            Series("validation", columns.get(f"val/{part}", []), 1),
        ]
        series = [one for one in series if one.values]
        charts.append(chart(f"Loss: {LOSSES.get(part, part)}", run.epochs, series, "epoch", mark=best))
    rates = {key: values for key, values in columns.items() if key.startswith("lr")}
    groups: dict[tuple[float | None, ...], list[str]] = {}  # often equal, and then one curve
    for key, values in rates.items():
        groups.setdefault(tuple(values), []).append(key.removeprefix("lr"))
    series = [
        Series(f"group{'s' if len(keys) > 1 else ''} {', '.join(keys)}" if len(groups) > 1 else "", values, index)
        for index, (values, keys) in enumerate(groups.items())
    ]
    charts.append(chart("Learning rate", run.epochs, series, "epoch"))
    note = f"The ring marks epoch {run.epochs[best]}, whose weights are best.pt." if best is not None else ""
    return [f'<h2>Curves</h2><p class="soft">{note}</p><div class="two">', *charts, "</div>"]


LOSSES = {"box": "place of the boxes", "obj": "is there anything", "cls": "which class", "dfl": "edges of the boxes"}


# Classes


def _classes(run: Run, found: Findings) -> list[str]:
    measured = found.measured
    if measured is None:
        return [
            f'<h2>Classes and pictures</h2><p class="note">Not measured: {escape(found.why_not)}.</p>'
            if found.why_not
            else ""
        ]
    rows = []
    order = sorted(measured.classes, key=lambda score: (score.ap is None, score.ap or 0.0))
    for score in order:
        trained = found.trained[score.number] if score.number < len(found.trained) else "-"
        cells = [decimals(value) for value in (score.precision, score.recall, score.ap50)]
        name = escape(found.names[score.number])
        rows.append(
            f'<tr><td class="name2" title="{name}">{name}</td><td>{trained}</td><td>{score.pictures}</td>'
            f"<td>{score.boxes}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}<td>{meter(score.ap)}</td></tr>"
        )
    total = (
        f"<tr><td><b>all</b></td><td>{sum(found.trained) or '-'}</td><td>{measured.pictures}</td><td>{measured.boxes}"
        f"</td><td>{measured.precision:.3f}</td><td>{measured.recall:.3f}</td><td>{measured.ap50:.3f}</td>"
        f"<td>{meter(measured.ap)}</td></tr>"
    )
    return [
        "<h2>Classes, weakest first</h2>",
        f'<p class="soft">best.pt on the {measured.pictures} validation pictures. Precision and recall count '
        f"predictions of confidence {measured.confidence:.2f} or more, where they balance best (F1).</p>",
        _class_table([total, *rows[:TABLE]]),
        f"<details><summary>{len(rows) - TABLE} more classes</summary>{_class_table(rows[TABLE:])}</details>"
        if len(rows) > TABLE
        else "",
        f'<p class="soft">{_agreement(run, measured)}</p>',
        MEANINGS,
    ]


def _class_table(rows: list[str]) -> str:
    heads = ("class", "boxes to learn from", "pictures", "boxes", "precision", "recall", "AP50", "AP50-95")
    head = "".join(f"<th>{word}</th>" for word in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


MEANINGS = (
    "<details><summary>What these figures mean</summary><ul>"
    "<li><b>Precision</b>: of the boxes it draws, the share that is right. <b>Recall</b>: of the labelled boxes, the "
    "share that it finds.</li>"
    "<li><b>AP50</b>: the area under precision against recall, when a box is right that overlaps its label by half or "
    "more (intersection over union). <b>AP50-95</b>: the mean over ten such limits from 0.50 to 0.95; it is high only "
    "when the boxes fit tightly.</li>"
    "<li><b>mAP</b>: the mean over the classes. 0 is nothing right, 1 everything.</li></ul></details>"
)


def _agreement(run: Run, measured: Measured) -> str:
    """How the engine's own figure compares: it validates in other batches, and in half precision on a GPU."""
    own = run.at("map", run.best)
    if own is None:
        return "The engine measured nothing during training."
    gap = abs(own - measured.ap)
    words = "the same to a hundredth." if gap < 0.01 else f"{gap:.3f} away. Have the labels changed since?"
    return f"While it trained, the engine measured mAP50-95 {own:.3f} for this checkpoint: {words}"


def decimals(value: float | None) -> str:
    """Three decimals, a dash for what there is not."""
    return "-" if value is None else f"{value:.3f}"


def meter(value: float | None) -> str:
    """A figure between 0 and 1 with a bar beside it."""
    if value is None:
        return "-"
    return f'{value:.3f}<span class="meter"><i style="width:{max(0.0, min(1.0, value)) * 100:.1f}%"></i></span>'


def _quality(found: Findings) -> list[str]:
    measured = found.measured
    if measured is None or not measured.boxes:
        return []
    recalls = [float(value) for value in RECALLS]
    scored = [score for score in measured.classes if score.curve]
    if len(scored) <= LABELLED:
        series = [
            Series(f"{report_svg.shortened(found.names[score.number])} {score.ap50:.2f}", score.curve, score.number % 8)
            for score in scored
        ]
    else:
        series = [Series(found.names[score.number], score.curve, 7, "faint") for score in scored]
        mean = [fmean(values) for values in zip(*(score.curve for score in scored), strict=True)]
        series.append(Series(f"mean of {len(scored)} classes {measured.ap50:.2f}", mean, 0, "thick"))
    curve = chart("Precision against recall, overlap 0.5", recalls, series, "recall", top=1.0)
    return [
        '<h2>Precision, recall and confusion</h2><div class="two"><div>',
        curve,
        _mistakes(measured, found.names) if len(found.names) > LABELLED else "",
        "</div>",
        "<figure><figcaption><b>What each labelled box was taken for</b></figcaption>",
        report_svg.matrix(measured.confusion, found.names),
        f'<p class="soft">Rows are labels, columns are predictions of confidence {SURE} or more. The column '
        "background is what was missed, the row background what was invented.</p></figure>",
        "</div>",
    ]


def _mistakes(measured: Measured, names: list[str]) -> str:
    classes = range(len(names))
    table = measured.confusion
    pairs = sorted(((table[i][j], i, j) for i in classes for j in classes if i != j and table[i][j]), reverse=True)
    rows = [
        f"<tr><td>{escape(names[i])}</td><td>{escape(names[j])}</td><td>{count}</td>"
        f"<td>{count / sum(table[i]) * 100:.0f} %</td></tr>"
        for count, i, j in pairs[:10]
    ]
    if not rows:
        return ""
    return (
        "<h3>Taken for each other most often</h3><table><thead><tr><th>labelled</th><th>taken for</th><th>boxes</th>"
        f"<th>of that class</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


# Pictures


def _pictures(found: Findings, project: Project) -> list[str]:
    parts = []
    count = 0
    for title, about, samples in (
        (
            "Pictures from validation",
            "Evenly spread over the validation set. Left the labels, right what best.pt finds; dashed is what was "
            "missed, invented or named wrongly.",
            found.fair,
        ),
        ("Where it errs most", "The pictures with the most such boxes, of those not shown above.", found.worst),
    ):
        shots = []
        for sample in samples:
            shot = _shot(sample, found.names, count, project)
            count += 1
            if shot:
                shots.append(shot)
        if shots:
            parts += [f'<h2>{title}</h2><p class="soft">{about}</p><div class="shots">', *shots, "</div>"]
    return parts


def _shot(sample: Sample, names: list[str], index: int, project: Project) -> str:
    made = embedded(Path(sample.image))
    if made is None:
        return ""
    uri, size = made
    sides = (
        list(zip(sample.truth, sample.missed, strict=True)),
        list(zip(sample.found, sample.wrong, strict=True)),
    )
    drawing = report_svg.boxes(index, uri, size, sides, names)
    missed, wrong = sum(sample.missed), sum(sample.wrong)
    words = (
        ", ".join(f"{count} {word}" for count, word in ((missed, "missed"), (wrong, "wrong")) if count) or "all right"
    )
    caption = f"{project.show(Path(sample.image))}: {words}"
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def embedded(image: Path) -> tuple[str, tuple[int, int]] | None:
    """A picture as a data URI, its longer side at most PIXELS, with width and height; None when it cannot be read."""
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    try:
        read = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    if read is None:
        return None
    scale = min(1.0, PIXELS / max(read.shape[:2]))
    size = (max(1, round(read.shape[1] * scale)), max(1, round(read.shape[0] * scale)))
    small = cv2.resize(read, size, interpolation=cv2.INTER_AREA) if scale < 1 else read
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return (f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}", size) if done else None


# The machine


def _machine(run: Run) -> list[str]:
    found = report_advice.load(run.samples)
    parts = ["<h2>What limited it</h2>", f"<p>{report_advice.limit(run, found)}</p>"]
    if found is None:
        return parts
    used = report_advice.busy(run.samples)
    samples = [sample for sample in run.samples if sample.gpu in used] if used else run.samples
    times, columns = buckets(samples)
    unit, scale = ("h", 3600.0) if times[-1] > 5400 else ("min", 60.0) if times[-1] > 180 else ("s", 1.0)
    xs = [time / scale for time in times]
    label = f"time, {unit}"
    gpu = [fmean(row) if row else None for row in columns["gpu"]] if used else []
    band = (
        Band(
            [min(row) if row else None for row in columns["gpu"]], [max(row) if row else None for row in columns["gpu"]]
        )
        if len(used) > 1
        else None
    )
    several = f"GPU, mean of {len(used)} (shade: least to most)" if len(used) > 1 else "GPU"
    gib = [max(row) / 1024 if row else None for row in columns["gpu_memory"]]
    parts += [
        '<div class="two">',
        chart(
            "How busy", xs,
            [*([Series(several, gpu, 0)] if used else []),
             Series("processors, this run", [fmean(row) if row else None for row in columns["cpu"]], 1),
             Series("the whole machine", [fmean(row) if row else None for row in columns["host_cpu"]], 7, "dashed"),
             *([Series("waiting for pictures", [fmean(row) if row else None for row in columns["wait"]], 2)]
               if found.wait is not None else [])],
            label, top=100.0, unit=" %", band=band,
        ),
        chart(
            "Memory, GiB", xs,
            [*([Series("GPU" if len(used) < 2 else "fullest GPU", gib, 0)] if used else []),
             Series("main memory", [fmean(row) / 1024 if row else None for row in columns["memory"]], 1)],
            label,
        ),
        chart("Pictures a second", xs, [Series("", [fmean(r) if r else None for r in columns["rate"]], 4)], label)
        if found.rate is not None else "",
        chart("Read from disk, MB/s", xs, [Series("", [fmean(r) if r else None for r in columns["read"]], 5)], label),
        chart(
            "GPU power, W", xs,
            [Series("" if len(used) < 2 else "sum", [
                fmean(row) * len(used) if row else None for row in columns["power"]], 3)],
            label,
        ) if used else "",
        "</div>",
    ]  # fmt: skip
    return parts


def buckets(samples: Sequence[Reading]) -> tuple[list[float], dict[str, list[list[float]]]]:
    """Samples gathered into at most BUCKETS stretches of time: their middles, and all known values in each."""
    end = max(sample.time for sample in samples) or 1.0
    start = min(sample.time for sample in samples)
    count = max(1, min(BUCKETS, len({sample.time for sample in samples})))
    keys = {
        "gpu": "gpu_util",
        "gpu_memory": "gpu_memory",
        "power": "gpu_power",
        "cpu": "cpu_util",
        "memory": "memory",
        "read": "read",
        "host_cpu": "host_cpu",
        "rate": "rate",
        "wait": "wait",
    }
    columns: dict[str, list[list[float]]] = {key: [[] for _ in range(count)] for key in keys}
    width = (end - start) / count or 1.0
    for sample in samples:
        index = min(count - 1, int((sample.time - start) / width))
        for key, name in keys.items():
            value = getattr(sample, name)
            if value is not None:
                columns[key][index].append(value)
    return [start + (index + 0.5) * width for index in range(count)], columns


# Again


def command(run: Run) -> str:
    """The command that repeats the run, its seed spelt out."""
    words = [str(word) for word in run.said.get("command") or []]
    if not words:
        options = run.options
        words = ["lab", "train", "--engine", run.engine, "--img", str(run.image_size)]
        words += ["--batch", str(options.get("batch_size", 16))]
        words += ["--epochs", str(run.planned), "--data", str(options.get("data"))]
        words += ["--weights", str(options.get("weights") or "")] if run.engine == "yolov5" else []
        words += ["--cfg", str(options["cfg"])] if options.get("cfg") else []
    if "--seed" not in words:
        words += ["--seed", str(run.said.get("seed", run.options.get("seed", 0)))]
    return shlex.join(words)


def _repeat(run: Run, project: Project) -> list[str]:
    said = run.said
    git, data, host = (said.get(key) or {} for key in ("git", "data", "host"))
    lines = []
    if git.get("commit"):
        lines.append(f"git checkout {git['commit']}")
        if git.get("diff"):
            lines.append(f"git apply {shlex.quote(project.show(run.directory / str(git['diff'])))}")
    lines.append(command(run))
    notes = []
    if not said:
        notes.append("There is no run.json: the command was put together from the options the engine wrote down.")
    elif not git.get("commit"):
        notes.append("No commit of the code is recorded: git was not used, or nothing was committed yet.")
    if git.get("cut"):
        notes.append(f"{record.DIFF} was cut at 1 MiB and does not apply: the code is not recorded in full.")
    if git.get("untracked"):
        notes.append(f"{git['untracked']} files that git did not follow are not in the difference.")
    notes.append("The same seed on another GPU, or with another PyTorch, gives close figures, not equal ones.")
    versions = [f"{key} {value}" for key, value in (said.get("versions") or {}).items() if value]
    gpus = [
        f"{gpu.get('name')}" + (f", capability {gpu['capability']}" if gpu.get("capability") else "")
        + (f", {gpu['memory_bytes'] / GIBIBYTE:.0f} GiB" if gpu.get("memory_bytes") else "")
        for gpu in host.get("gpus") or []
    ]  # fmt: skip
    memory = f", {host['memory_bytes'] / GIBIBYTE:.0f} GiB of memory" if host.get("memory_bytes") else ""
    images = ", ".join(f"{count} {split}" for split, count in (data.get("images") or {}).items())
    facts = [
        ("Data", run.data_name + (images and f" ({images})")),
        ("Data fingerprint", data.get("fingerprint") or "not taken"),
        ("Versions", ", ".join(versions)),
        ("PyTorch build", said.get("torch_build")),
        ("GPUs", "; ".join(gpus) or ("none" if host else "")),
        ("Machine", f"{host['cpus']} processors{memory}" if host.get("cpus") else ""),
        ("Started", said.get("started")),
        ("Ended", said.get("ended")),
        ("Resumed from", said.get("resumed_from")),
        ("Attempts", _attempts(said)),
    ]
    rows = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in facts if value)
    options = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(shown(value))}</td></tr>" for key, value in sorted(run.options.items())
    )
    return [
        "<h2>How to repeat it</h2>",
        f"<pre><code>{escape(chr(10).join(lines))}</code></pre>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes),
        f'<table class="facts"><tbody>{rows}</tbody></table>',
        f'<details><summary>All {len(run.options)} options and hyper-parameters</summary><table class="facts"><tbody>'
        f"{options}</tbody></table></details>"
        if run.options
        else "",
    ]


def _attempts(said: dict[str, Any]) -> str:
    attempts = said.get("attempts") or []
    if len(attempts) < 2:
        return ""
    return "; ".join(
        f"batch {attempt.get('batch') or 'as before'}: {attempt.get('status')}"
        + (f" ({attempt['reason']})" if attempt.get("reason") else "")
        for attempt in attempts
    )


def shown(value: Any) -> str:
    """An option's value for a person."""
    if value is None or value == "":
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
