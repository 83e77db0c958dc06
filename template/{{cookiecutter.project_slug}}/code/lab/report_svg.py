"""Charts as inline SVG: curves, a confusion matrix, boxes on a picture. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

POINTS = 400  # of one curve; more cannot be seen
WIDTH, HEIGHT = 620, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36
COLOURS = 8  # classes c0 … c7 of the style sheet
Value = float | None
Marked = tuple[Sequence[float], bool]


@dataclass(frozen=True)
class Series:
    """One curve. `style` adds classes: `faint` in the background, `dashed`."""

    label: str
    values: Sequence[Value]
    colour: int = 0
    style: str = ""


@dataclass(frozen=True)
class Band:
    """The room between two curves."""

    low: Sequence[Value]
    high: Sequence[Value]
    colour: int = 0


def chart(
    title: str,
    xs: Sequence[float],
    series: Sequence[Series],
    x_label: str,
    top: float | None = None,
    mark: int | None = None,
    unit: str = "",
    band: Band | None = None,
) -> str:
    """A figure with curves over `xs`, legend above. `top` fixes the axis' end; `mark` rings the points of an index."""
    drawn = [one for one in series if any(value is not None for value in one.values)]
    if not drawn or not xs:
        return ""
    everything = [value for one in drawn for value in one.values if value is not None]
    if band:
        everything += [value for value in band.high if value is not None]
    low, high = min(xs), max(xs)
    ticks = nice(0.0, top if top is not None else (max(everything) or 1.0))
    ceiling = top if top is not None else max(ticks[-1], *everything)
    floor = min(0.0, *everything)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def y(value: float) -> float:
        share = (min(value, ceiling) - floor) / ((ceiling - floor) or 1)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{number(tick)}{escape(unit)}</text>')
    for tick in nice(low, high, whole=x_label == "epoch"):
        if low <= tick <= high:
            parts.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{number(tick)}</text>')
    parts.append(f'<text class="tick mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
    if band:
        edge = [(a, b, c) for a, b, c in zip(xs, band.low, band.high, strict=True) if b is not None and c is not None]
        around = [(a, c) for a, _, c in edge] + [(a, b) for a, b, _ in reversed(edge)]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in around)
        parts.append(f'<polygon class="band c{band.colour}" points="{points}"/>')
    for one in drawn:
        line = thin([(a, b) for a, b in zip(xs, one.values, strict=True) if b is not None])
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        style = f"line c{one.colour} {one.style}".strip()
        if len(line) == 1:
            parts.append(f'<circle class="dot c{one.colour}" cx="{x(line[0][0]):.1f}" cy="{y(line[0][1]):.1f}" r="3"/>')
        parts.append(f'<polyline class="{style}" points="{points}"><title>{escape(one.label)}</title></polyline>')
        at = one.values[mark] if mark is not None else None
        if mark is not None and at is not None:
            words = f"{one.label}: {number(at)} at {x_label} {number(xs[mark])}"
            parts.append(
                f'<circle class="dot c{one.colour}" cx="{x(xs[mark]):.1f}" cy="{y(at):.1f}" r="4">'
                f"<title>{escape(words)}</title></circle>"
            )
    legend = "".join(
        f'<span class="key"><i class="c{one.colour} {one.style}"></i>{escape(one.label)}</span>'
        for one in drawn
        if one.label and "faint" not in one.style
    )
    return (
        f'<figure><figcaption><b>{escape(title)}</b><span class="keys">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def nice(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that cover `low` to `high` in about `count` steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count + 0.5)
    step = max(1.0, step) if whole else step
    first = math.floor(low / step + 1e-9)
    ticks = [round((first + index) * step, 12) for index in range(count + 3)]
    last = next((index for index, tick in enumerate(ticks) if tick >= high - 1e-9 * span), len(ticks) - 1)
    return ticks[: last + 1]


def number(value: float) -> str:
    """A number as a person writes it: at most four significant digits, no trailing zeros."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u202f")


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about POINTS of `points`: of each stretch the lowest and the highest, in order."""
    if len(points) <= POINTS:
        return points
    size = math.ceil(len(points) / (POINTS / 2))
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        kept += [part[index] for index in sorted(ends)]
    return kept


def matrix(table: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix: labelled classes in rows, predicted in columns, shaded by the share of the row.

    `names` has one name less than the table: the last row and column are background. Empty cells are left out.
    """
    labels = [*names, "background"]
    count = len(labels)
    few = count <= 21
    cell = 44 if count <= 8 else 30 if few else 9
    margin = min(190, 20 + 7 * max(len(shortened(name)) for name in labels)) if few else 90
    side = margin + cell * count
    parts = []
    for row, values in enumerate(table):
        total = sum(values) or 1
        for column, value in enumerate(values):
            if not value:
                continue
            share = value / total
            x, y = margin + column * cell, margin + row * cell
            words = f"{labels[row]} taken for {labels[column]}: {value} of {total}"
            if row == column:
                words = f"{labels[row]} found: {value} of {total}"
            elif row == count - 1:
                words = f"nothing there, taken for {labels[column]}: {value}"
            elif column == count - 1:
                words = f"{labels[row]} missed: {value} of {total}"
            good = "good" if row == column else "bad"
            parts.append(
                f'<rect class="{good}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{escape(words)}</title></rect>'
            )
            if few:
                tone = " strong" if share > 0.55 else ""
                parts.append(
                    f'<text class="cell{tone}" x="{x + cell / 2}" y="{y + cell / 2 + 4}">{compact(value)}</text>'
                )
    size = 12 if few else 8
    for index, name in enumerate(labels):
        middle = margin + (index + 0.5) * cell
        short = escape(shortened(name))
        down = f'x="{margin - 6}" y="{middle + size / 3}"'
        across = f"translate({middle + size / 3} {margin - 6}) rotate(-90)"
        parts.append(f'<text class="tick end" style="font-size:{size}px" {down}>{short}</text>')
        parts.append(f'<text class="tick" style="font-size:{size}px" transform="{across}">{short}</text>')
    return (
        f'<svg class="matrix" viewBox="0 0 {side} {side}" style="max-width:{max(side, 360)}px" role="img" '
        f'aria-label="confusion matrix">{"".join(parts)}</svg>'
    )


def compact(value: int) -> str:
    """At most four characters: 12345 is 12k."""
    return str(value) if value < 10_000 else f"{value / 1000:.0f}k"


def shortened(name: str, most: int = 22) -> str:
    """A class name, cut where it would not fit."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def boxes(
    number_: int, uri: str, size: tuple[int, int], sides: Sequence[Sequence[Marked]], names: Sequence[str]
) -> str:
    """A picture twice, labels on the left, predictions on the right; it is embedded once.

    `size` in pixels. Rows are class, left, top, right, bottom as fractions and, for predictions, the confidence;
    those marked are dashed.
    """
    width, height = size
    gap = max(4, width // 60)
    letter = max(width, height) / 26
    parts = [f'<image id="p{number_}" href="{uri}" width="{width}" height="{height}"/>']
    parts.append(f'<use href="#p{number_}" x="{width + gap}"/>')
    for side, rows in enumerate(sides):
        shift = side * (width + gap)
        for row, marked in rows:
            label, (left, top, right, bottom) = int(row[0]), row[1:5]
            x, y = left * width + shift, top * height
            name = shortened(names[label] if label < len(names) else str(label), 16)
            name += f" {row[5]:.2f}" if len(row) > 5 else ""
            colour = label % COLOURS
            dash = f' stroke-dasharray="{letter / 2.4:.1f} {letter / 4:.1f}"' if marked else ""
            parts.append(
                f'<rect class="box c{colour}"{dash} x="{x:.1f}" y="{y:.1f}" width="{(right - left) * width:.1f}" '
                f'height="{(bottom - top) * height:.1f}" stroke-width="{letter / 7:.1f}"/>'
            )
            wide = len(name) * letter * 0.56 + letter * 0.4
            x = max(shift, min(x, shift + width - wide))
            y = y - letter * 1.15 if y >= letter * 1.15 else y
            parts.append(
                f'<g transform="translate({x:.1f} {y:.1f})"><rect class="tag c{colour}" '
                f'width="{wide:.1f}" height="{letter * 1.15:.1f}"/><text class="name" '
                f'style="font-size:{letter:.1f}px" x="{letter * 0.2:.1f}" '
                f'y="{letter * 0.88:.1f}">{escape(name)}</text></g>'
            )
    return f'<svg class="shot" viewBox="0 0 {2 * width + gap} {height}" role="img">{"".join(parts)}</svg>'
