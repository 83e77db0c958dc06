"""The page that puts runs side by side: what they reached, what differs between them, and their curves."""

from __future__ import annotations

from html import escape
from typing import Any

from lab import report_advice, report_run
from lab.report_page import command, decimals, duration, meter, page, shown
from lab.report_predict import Findings
from lab.report_run import Run
from lab.report_svg import COLOURS, Series, chart, number

CLOSE = 0.01  # another seed could turn so small a lead round
OVERLAID = 8  # curves that can be told apart


def compare_page(runs: list[Run], found: list[Findings]) -> str:
    """The report of several runs, best first."""
    order = sorted(range(len(runs)), key=lambda index: -(runs[index].at("map", runs[index].best) or 0.0))
    runs, found = [runs[index] for index in order], [found[index] for index in order]
    return page(
        f"{len(runs)} runs compared",
        [
            f"<h1>{len(runs)} runs compared</h1>",
            *_answer(runs),
            *_caution(runs),
            "<h2>What they reached</h2>",
            _results(runs),
            *_differences(runs),
            *_curves(runs),
            *_classes(runs, found),
            "<h2>How to repeat them</h2>",
            *(f"<p>{escape(run.name)}</p><pre><code>{escape(command(run))}</code></pre>" for run in runs),
        ],
    )


def _answer(runs: list[Run]) -> list[str]:
    first, second = runs[0], runs[1]
    a, b = first.at("map", first.best), second.at("map", second.best)
    if a is None:
        return ['<p class="answer">Nothing was measured in these runs.</p>']
    level = b is not None and a - b < CLOSE
    ahead = f", {a - b:.3f} ahead of {escape(second.name)}" if b is not None else ""
    took = [report_run.seconds(run) for run in runs]
    known = [(seconds, run) for seconds, run in zip(took, runs, strict=True) if seconds is not None]
    quickest = min(known, key=lambda pair: pair[0], default=None)
    answer = f"{escape(first.name)} is best: mAP50-95 {a:.3f}{ahead}"
    if level:
        answer = f"{escape(first.name)} and {escape(second.name)} are level: mAP50-95 {a:.3f} and {b:.3f}"
    lines = [f'<p class="answer">{answer}</p>']
    if quickest and len(known) == len(runs):
        lines.append(f"<p>The quickest was {escape(quickest[1].name)}, in {duration(quickest[0])}.</p>")
    return lines


def _caution(runs: list[Run]) -> list[str]:
    """Differences between runs that make their figures incomparable."""
    prints = {(run.said.get("data") or {}).get("fingerprint") for run in runs}
    files = {run.data_name for run in runs}
    notes = []
    if len(prints - {None}) > 1 or (None in prints and len(files) > 1):
        notes.append("These runs were not validated on the same data, so their figures cannot be compared directly.")
    unfinished = [run.name for run in runs if run.said.get("status") in ("failed", "stopped", "running")]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}.")
    return [f'<p class="note">{escape(note)}</p>' for note in notes]


def _results(runs: list[Run]) -> str:
    heads = (
        "run",
        "mAP50-95",
        "mAP50",
        "precision",
        "recall",
        "best epoch",
        "epochs",
        "time",
        "pictures/s",
        "GPU busy",
    )
    rows = []
    for index, run in enumerate(runs):
        best, took = run.best, report_run.seconds(run)
        load = report_advice.load(run.samples)
        images = ((run.said.get("data") or {}).get("images") or {}).get("train")
        speed = number(images * len(run.epochs) / took) if images and took else "-"
        cells = [
            meter(run.at("map", best)),
            *(decimals(run.at(key, best)) for key in ("map50", "precision", "recall")),
            str(run.epochs[best]) if best is not None else "-",
            str(len(run.epochs)),
            duration(took) if took is not None else "-",
            speed,
            f"{load.gpu:.0f} %" if load and load.gpu is not None else "-",
        ]
        key = f'<span class="key"><i class="c{index % COLOURS}"></i></span>' if index < OVERLAID else ""
        rows.append(f"<tr><td>{key}{escape(run.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return _table(heads, rows)


def _table(heads: tuple[str, ...] | list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _differences(runs: list[Run]) -> list[str]:
    facts: dict[str, list[Any]] = {
        "engine": [run.engine for run in runs],
        "data": [run.data_name for run in runs],
        "data fingerprint": [(run.said.get("data") or {}).get("fingerprint") for run in runs],
        "commit": [((run.said.get("git") or {}).get("commit") or "")[:10] for run in runs],
        "torch": [(run.said.get("versions") or {}).get("torch") for run in runs],
    }
    differing = {key: values for key, values in facts.items() if len(set(map(str, values))) > 1}
    differing |= report_run.differing(runs)
    if not differing:
        return [
            "<h2>What differs</h2>",
            "<p>Nothing that was recorded: the options, the data and the code are equal.</p>",
        ]
    # engines name many options differently; those that only one of them has come last
    keys = sorted(differing, key=lambda key: sum(value is None for value in differing[key]))
    rows = [f"<tr><td>{escape(key)}</td>{_cells(differing[key])}</tr>" for key in keys]
    shown_rows, more = rows[:24], rows[24:]
    parts = ["<h2>What differs</h2>", _table(["option", *(run.name for run in runs)], shown_rows)]
    if more:
        table = _table(["option", *(run.name for run in runs)], more)
        parts.append(f"<details><summary>{len(more)} more</summary>{table}</details>")
    return parts


def _cells(values: list[Any]) -> str:
    return "".join(f"<td>{escape(shown(value))}</td>" for value in values)


def _curves(runs: list[Run]) -> list[str]:
    runs = runs[:OVERLAID]
    epochs = sorted({epoch for run in runs for epoch in run.epochs})
    if not epochs:
        return []

    def overlaid(title: str, values: list[dict[int, float | None]], top: float | None = None) -> str:
        series = [
            Series(run.name, [own.get(epoch) for epoch in epochs], index)
            for index, (run, own) in enumerate(zip(runs, values, strict=True))
        ]
        return chart(title, epochs, series, "epoch", top=top)

    def column(key: str) -> list[dict[int, float | None]]:
        return [dict(zip(run.epochs, run.columns[key], strict=True)) for run in runs]

    losses = [dict(zip(run.epochs, report_advice.validation_loss(run), strict=False)) for run in runs]
    note = "" if len({run.engine for run in runs}) == 1 else "The engines' losses are on different scales."
    return [
        '<h2>Curves</h2><div class="two">',
        overlaid("mAP50-95", column("map"), 1.0),
        overlaid("mAP50", column("map50"), 1.0),
        overlaid("Recall", column("recall"), 1.0),
        overlaid("Validation loss, sum", losses),
        "</div>",
        f'<p class="soft">{note}</p>' if note else "",
    ]


def _classes(runs: list[Run], found: list[Findings]) -> list[str]:
    known = [(run, one) for run, one in zip(runs, found, strict=True) if one.measured is not None]
    if len(known) < 2 or any(one.names != known[0][1].names for _, one in known):
        return []
    scores = [[score.ap for score in one.measured.classes] for _, one in known if one.measured is not None]
    order = sorted(range(len(known[0][1].names)), key=lambda number: _spread(scores, number), reverse=True)
    rows = []
    for index in order:
        cells = "".join(f"<td>{meter(values[index])}</td>" for values in scores)
        rows.append(f"<tr><td>{escape(known[0][1].names[index])}</td>{cells}</tr>")
    about = "AP50-95 of each checkpoint on its own validation pictures; the classes that differ most come first."
    return [
        "<h2>Classes</h2>",
        f'<p class="soft">{about}</p>',
        _table(["class", *(run.name for run, _ in known)], rows),
    ]


def _spread(scores: list[list[float | None]], number_: int) -> float:
    values = [value for row in scores if (value := row[number_]) is not None]
    return max(values) - min(values) if values else -1.0
