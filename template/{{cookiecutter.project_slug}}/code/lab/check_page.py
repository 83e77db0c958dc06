"""The page of `lab data check`: one HTML file with everything in it, pictures with their boxes, charts as SVG."""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lab.check import Counts, Finding, Result, short
from lab.check_kinds import KINDS
from lab.check_store import Row, Store, place
from lab.dataset import Dataset
from lab.project import Project

SIDE = 320  # pixels of a sample's longer side
SAMPLES = 8  # a split
SHOWN = ("edge", "flat", "outside", "pixels", "mixed", "class", "rotated", "damaged", "overlap", "duplicate", "tiny")
MOST_CLASSES = 200  # rows of the table
COLOURS = {"train": "#3b6fd4", "val": "#d4843b", "test": "#4b9e6b"}
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667; --line: #dde; --paper: #fff; --card: #f6f7fa;
  --bad: #b3261e; --warn: #9a6200 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa3b2; --line: #333b48; --paper: #14181f; --card: #1d232d;
    --bad: #ff8a80; --warn: #ffc46b }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 1120px; padding: 24px }
h1 { font-size: 24px; margin: 0 }
h2 { font-size: 18px; margin: 36px 0 10px }
p { margin: 4px 0 }
.soft { color: var(--soft) }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.broken { color: var(--bad); font-weight: 600 }
.wrong { color: var(--warn); font-weight: 600 }
.note { color: var(--soft) }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
.bar { height: 8px; border-radius: 2px; margin: 2px 0; min-width: 1px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px }
figure { margin: 0; background: var(--card); border-radius: 6px; overflow: hidden }
figure svg { display: block; width: 100%; height: auto }
figcaption { padding: 5px 9px; font-size: 12px; color: var(--soft); overflow-wrap: anywhere }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 14px }
.verdict { font-size: 17px; margin: 10px 0 0; padding: 10px 14px; border-radius: 6px; background: var(--card);
  border-left: 4px solid }
summary { cursor: pointer; color: var(--soft) }
"""


def write(dataset: Dataset, project: Project, result: Result) -> Path:
    """Write the page into runs/data-check; returns the file."""
    name = dataset.file.parent.name if dataset.file.stem == "data" else dataset.file.stem
    file = project.runs / "data-check" / f"{name}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    with Store(place(project, dataset)) as store, _silent():
        body = "\n".join(_sections(dataset, project, result, store))
    fresh = file.with_suffix(".fresh")
    fresh.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_safe(name)}: data check</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><body>{body}</body></html>\n',
        encoding="utf-8",
    )
    fresh.replace(file)
    return file


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what OpenCV's decoders print about damaged pictures, which the page tells, from the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _safe(text: object) -> str:
    return html.escape(str(text))


def _sections(dataset: Dataset, project: Project, result: Result, store: Store) -> Iterator[str]:
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    yield f"<h1>{_safe(project.show(dataset.file))}</h1>"
    yield f'<p class="soft">checked {when} · fingerprint <code>{result.fingerprint}</code></p>'
    yield _verdict(result)
    yield "<h2>Splits</h2>" + _splits(result.splits)
    if result.findings:
        yield "<h2>Findings</h2>" + _findings(result.findings, project)
    yield "<h2>Classes</h2>" + _classes(dataset, result.splits)
    yield "<h2>Box sizes</h2>" + _histogram(result.splits, project.image_size)
    for finding in result.findings:
        pictures = _examples(finding, dataset, project, store) if finding.kind in SHOWN else []
        if pictures:
            yield f"<h2>{_safe(finding.kind)}: {_safe(KINDS[finding.kind].says)}</h2>"
            yield f'<div class="grid">{"".join(pictures)}</div>'
    for split in result.splits:
        samples = [_figure(row, dataset, row.name) for row in store.samples(split, SAMPLES)]
        if samples:
            yield f'<h2>Some pictures of {split}</h2><div class="grid">{"".join(samples)}</div>'


def _verdict(result: Result) -> str:
    images = sum(counts.images for counts in result.splits.values())
    if not result.problems:
        return f'<p class="verdict" style="border-color:#4b9e6b">{images:,} pictures, nothing wrong with them.</p>'
    return f'<p class="verdict" style="border-color:#b3261e">{result.problems:,} problems in {images:,} pictures.</p>'


def _splits(splits: dict[str, Counts]) -> str:
    head = '<tr><th></th><th class="n">pictures</th><th class="n">boxes</th><th class="n">boxes a picture</th>'
    rows = [
        f'<tr><td>{split}</td><td class="n">{c.images:,}</td><td class="n">{c.boxes:,}</td>'
        f'<td class="n">{c.boxes / max(1, c.images):.1f}</td><td class="n">{c.backgrounds:,}</td></tr>'
        for split, c in splits.items()
    ]
    return f'<table>{head}<th class="n">without boxes</th></tr>{"".join(rows)}</table>'


def _findings(findings: list[Finding], project: Project) -> str:
    rows = []
    for finding in findings:
        kind = KINDS[finding.kind]
        told = "".join(
            f"<div><code>{_safe(project.show(Path(found.path)))}</code> {_safe(short(found.words, project))}</div>"
            for found in finding.examples
        )
        more = finding.count - len(finding.examples)
        told += f'<div class="soft">and {more:,} more</div>' if more > 0 else ""
        rows.append(
            f'<tr><td class="{kind.level}">{finding.kind}</td><td class="n">{finding.count:,}</td>'
            f'<td>{_safe(kind.says)}<p class="soft">Mend: {_safe(kind.mend)}</p><details><summary>which</summary>{told}'
            "</details></td></tr>"
        )
    explained = (
        '<p class="soft"><span class="broken">red</span>: an engine drops the picture or stops · '
        '<span class="wrong">amber</span>: it trains, and the result suffers · grey: worth knowing</p>'
    )
    return f'{explained}<table><tr><th>kind</th><th class="n">how many</th><th></th></tr>{"".join(rows)}</table>'


def _key(splits: dict[str, Counts]) -> str:
    return '<p class="key soft">' + "".join(f'<i style="background:{COLOURS[s]}"></i>{s}' for s in splits) + "</p>"


def _classes(dataset: Dataset, splits: dict[str, Counts]) -> str:
    most = max((n for c in splits.values() for n in c.classes.values()), default=0) or 1
    rows = []
    for number, name in list(dataset.names.items())[:MOST_CLASSES]:
        counts = [(split, c.classes.get(number, 0)) for split, c in splits.items()]
        bars = "".join(
            f'<div class="bar" style="background:{COLOURS[split]};width:{100 * n / most:.1f}%"></div>'
            for split, n in counts
        )
        cells = "".join(f'<td class="n">{n:,}</td>' for _, n in counts)
        rows.append(f'<tr><td>{number} {_safe(name)}</td>{cells}<td style="width:55%">{bars}</td></tr>')
    more = len(dataset.names) - MOST_CLASSES
    note = f'<p class="soft">and {more} more classes</p>' if more > 0 else ""
    head = "".join(f'<th class="n">{split}</th>' for split in splits)
    return f"{_key(splits)}<table><tr><th>class</th>{head}<th>boxes</th></tr>{''.join(rows)}</table>{note}"


def _histogram(splits: dict[str, Counts], image_size: int) -> str:
    """Bars of the share of boxes in each octave of size, in pixels at the project's image size."""
    # the smallest octaves only if there are boxes in them
    bins = max(6, 1 + max((place for c in splits.values() for place in c.bins), default=0))
    shares = {
        split: [c.bins.get(place, 0) / max(1, sum(c.bins.values())) for place in reversed(range(bins))]
        for split, c in splits.items()
    }
    top = max((share for its in shares.values() for share in its), default=0) or 1
    width, height, room = 96, 180, 84
    parts = []
    for number in range(bins):
        place = bins - 1 - number
        for index, (split, its) in enumerate(shares.items()):
            tall = height * its[number] / top
            each = room / len(shares)
            count = splits[split].bins.get(place, 0)
            parts.append(
                f'<rect x="{number * width + index * each + 6:.1f}" y="{20 + height - tall:.1f}" '
                f'width="{each - 2:.1f}" height="{tall:.1f}" rx="2" fill="{COLOURS[split]}">'
                f"<title>{split}: {count:,} boxes, {100 * its[number]:.1f} %</title></rect>"
            )
        low, high = image_size / 2 ** (place + 1), image_size / 2**place
        words = f"below {high:.3g}" if number == 0 else f"{low:.3g} to {high:.3g}"
        parts.append(
            f'<text x="{number * width + 6 + room / 2}" y="{height + 40}" text-anchor="middle" font-size="13" '
            f'fill="currentColor">{words}</text>'
        )
    chart = f'<svg viewBox="0 0 {max(8, bins) * width} {height + 50}" style="width:100%">{"".join(parts)}</svg>'
    return (
        f'<p class="soft">Side of a box, the root of its area, in pixels at --img {image_size}; share of the split\'s '
        f"boxes.</p>{_key(splits)}{chart}"
    )


def _examples(finding: Finding, dataset: Dataset, project: Project, store: Store) -> list[str]:
    pictures = []
    for found in finding.examples[:4]:
        row = store.picture(found.split, found.picture)
        figure = _figure(row, dataset, f"{found.split}/{row.name} {short(found.words, project)}") if row else ""
        if figure:
            pictures.append(figure)
    return pictures


def _figure(row: Row, dataset: Dataset, caption: str) -> str:
    """A picture, small, with its boxes over it; "" when it cannot be read."""
    try:
        content = np.fromfile(row.path, np.uint8)
        image: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)  # turned by EXIF, as engines see it
    except (OSError, cv2.error):
        return ""
    if image is None:
        return ""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    picture = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()).decode()
    view_height = SIDE * height / width
    boxes = "".join(_outlines(row, dataset, SIDE, view_height))
    return (
        f'<figure><svg viewBox="0 0 {SIDE} {view_height:.1f}"><image href="data:image/jpeg;base64,{picture}" '
        f'width="{SIDE}" height="{view_height:.1f}" preserveAspectRatio="none"/>{boxes}</svg>'
        f"<figcaption>{_safe(caption)}</figcaption></figure>"
    )


def _outlines(row: Row, dataset: Dataset, width: float, height: float) -> Iterator[str]:
    try:
        text = Path(row.label).read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return
    for line in text.splitlines()[:100]:
        try:
            number, *rest = (float(word) for word in line.split())
            name = dataset.names.get(int(number), f"class {number:g}")
        except (ValueError, OverflowError):
            continue
        colour = f"hsl({number * 137.5 % 360:.0f} 95% 55%)"
        style = f'fill="none" stroke="{colour}" stroke-width="2"'
        if len(rest) == 4:
            x, y, w, h = rest
            left, top, wide, tall = (x - w / 2) * width, (y - h / 2) * height, abs(w) * width, abs(h) * height
            yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}" {style}/>'
        elif len(rest) >= 6:
            points = [(x * width, y * height) for x, y in zip(rest[::2], rest[1::2], strict=False)]
            left, top = min(x for x, _ in points), min(y for _, y in points)
            yield f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {style}/>'
        else:
            continue
        yield (
            f'<text x="{max(2.0, left + 3):.1f}" y="{max(11.0, top - 3):.1f}" font-size="11" font-weight="600" '
            f'fill="{colour}" stroke="#000" stroke-width="2.5" paint-order="stroke">{_safe(name)}</text>'
        )
