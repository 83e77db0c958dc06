"""Many hosts at once: an answer a line, and what one release pinned for all of them would mean.

A line is a JSON object: `{"host": "web-01", "driver": "570.86.10", "gpus": [{"name": "Tesla T4"}]}` and, where they
differ from the defaults, `os`, `machine`, `python` and `torch`.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any, Iterable, Iterator, NamedTuple

from .catalogue import MACHINES, BadRequest, Catalogue, capability, driver_version
from .resolve import Gpu, Host, changes, check_release, checked, obstacles, resolve, runnable, stage
from .terminal import printable, quoted, shortened

FIELDS = ("host", "driver", "gpus", "os", "machine", "torch", "python")

_GROUPS = 6  # shown in the text, the rest are counted: --json has them all
_NAMES = 10  # of hosts in a group: a person looks up the first few, the rest are in the inventory


class Line(NamedTuple):
    """One line of an inventory: a host, or the sentence that says why it is none. `name` is "" where it gives none."""

    number: int
    name: str
    host: Host | None
    error: str


def read(lines: Iterable[str], defaults: Host) -> Iterator[Line]:
    """The lines that are not blank, in order; `defaults` fills in what a line leaves out. Raises nothing."""
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        name = ""
        try:
            row = json.loads(text)
            if isinstance(row, dict) and isinstance(row.get("host"), str):
                name = row["host"]
            yield Line(number, name, _host(row, defaults), "")
        except (BadRequest, RecursionError) as error:
            yield Line(number, name, None, str(error))
        except json.JSONDecodeError as error:
            whole = text.lstrip()[:1] in {"[", "{"} and text.rstrip()[-1:] not in {"]", "}"}
            hint = " Write one object a line (jq -c '.[]')." if whole else ""
            yield Line(number, name, None, f"not a JSON object: {error.msg} at column {error.colno}.{hint}")
        except ValueError as error:  # a number of thousands of digits
            yield Line(number, name, None, f"not a JSON object: {error}.")


def answers(lines: Iterable[str], defaults: Host, catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    """One answer a line, in order, its "host" first where the line names one. A line that is no host: {"error": …}."""
    for line in read(lines, defaults):
        answer: dict[str, Any] = {"error": line.error}
        if line.host:
            try:
                answer = resolve(line.host, catalogue).as_dict()
            except BadRequest as error:
                answer = {"error": str(error)}
        yield {"host": line.name, **answer} if line.name else answer


def _host(row: object, defaults: Host) -> Host:
    if not isinstance(row, dict):
        raise BadRequest('a host is a JSON object such as {"driver": "570.86.10", "gpus": [{"name": "Tesla T4"}]}.')
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        raise BadRequest(f"{quoted(unknown[0])} is no field of a host: use {', '.join(FIELDS)}.")
    if not isinstance(row.get("host", ""), (str, type(None))):
        raise BadRequest(f"host is {shortened(repr(row['host']))}: write its name as a string.")
    gpus = row.get("gpus", [])
    if not isinstance(gpus, list):
        raise BadRequest('gpus is not a list: write [{"name": "Tesla T4", "capability": "7.5", "memory_mib": 15360}].')
    texts = {name: row.get(name, getattr(defaults, name)) for name in ("driver", "os", "machine", "torch", "python")}
    for name, value in texts.items():
        if value is None:
            texts[name] = getattr(defaults, name)
        elif not isinstance(value, str):
            raise BadRequest(f"{name} is {shortened(repr(value))}: write it as a string.")
    return Host(gpus=tuple(_gpu(index, gpu) for index, gpu in enumerate(gpus)), **texts)


def _gpu(index: int, gpu: object) -> Gpu:
    if not isinstance(gpu, dict) or not isinstance(gpu.get("name", ""), str):
        raise BadRequest('a GPU is an object such as {"name": "Tesla T4", "capability": "7.5", "memory_mib": 15360}.')
    compute, memory = gpu.get("capability"), gpu.get("memory_mib")
    if compute is None:
        compute = ""
    if isinstance(compute, float):
        compute = str(compute)
    if not isinstance(compute, str):
        raise BadRequest(f"capability is {shortened(repr(compute))}: write it as a string such as 8.6.")
    if memory is not None and (
        isinstance(memory, bool) or not isinstance(memory, (int, float)) or not 0 <= memory < 1e9
    ):
        raise BadRequest(f"memory_mib is {shortened(repr(memory))}: give a number of MiB, or null.")
    place = gpu.get("index", index)
    if isinstance(place, bool) or not isinstance(place, int):
        raise BadRequest(f"index is {shortened(repr(place))}: give a whole number.")
    return Gpu(place, gpu.get("name", ""), compute, None if memory is None else int(memory))


# The summary


class Behind(NamedTuple):
    """Hosts that a pinned release does not serve in full, for one reason and with the same ways out.

    `partly` of them still train on some of their GPUs. `gpus` counts hosts by their models, `names` are the first few.
    """

    hosts: int
    partly: int
    reason: str
    gpus: dict[str, int]
    oldest_driver: str
    newest_driver: str
    changes: list[str]
    names: list[str]


class Pin(NamedTuple):
    """One release for all: how many hosts each of its builds serves in full, and whom it leaves behind."""

    torch: str
    hosts: int
    builds: dict[str, int]
    behind: list[Behind]


class Pair(NamedTuple):
    """Two releases, the newer first, that serve the most hosts between them; `complete`: all that can be served."""

    torch: tuple[str, str]
    hosts: int
    complete: bool


class Summary(NamedTuple):
    """What a fleet means for the choice of one release. Shares are of the hosts with a GPU.

    `releases` counts the hosts that each would serve in full if it were pinned (newest first), `unserved` those that
    none does; a line's own `torch` does not matter here, its `python` does. `pin` is the recommended one, that of most
    hosts, then the newest; `other` the release that was asked about, else the best of the newer ones: what it would
    take to move on. `automatic` is what "auto" gives instead.
    """

    as_of: str
    with_gpu: int
    without_gpu: int
    bad: list[dict[str, Any]]
    releases: dict[str, int]
    unserved: int
    pin: Pin | None
    other: Pin | None
    automatic: dict[tuple[str, str], int]
    automatic_partly: int
    automatic_not: int
    pair: Pair | None

    def share(self, hosts: int) -> float:
        """Of the hosts with a GPU, in per cent."""
        return round(100 * hosts / self.with_gpu, 1) if self.with_gpu else 0.0

    def as_dict(self) -> dict[str, Any]:
        """What is printed as JSON."""
        served = [{"torch": torch, "hosts": n, "share": self.share(n)} for torch, n in self.releases.items()]
        return {
            "catalogue": self.as_of,
            "hosts": self.with_gpu + self.without_gpu,
            "with_gpu": self.with_gpu,
            "without_gpu": self.without_gpu,
            "bad_lines": self.bad,
            "releases": served,
            "unserved": self.unserved,
            "recommended": self._pinned(self.pin),
            "other": self._pinned(self.other),
            "auto": {
                "ok": [{"torch": torch, "build": name, "hosts": n} for (torch, name), n in self.automatic.items()],
                "partial": self.automatic_partly,
                "impossible": self.automatic_not,
            },
            "pair": self.pair._asdict() if self.pair else None,
        }

    def _pinned(self, pin: Pin | None) -> dict[str, Any] | None:
        if pin is None:
            return None
        behind = [group._asdict() for group in pin.behind]
        return {**pin._asdict(), "behind": behind, "share": self.share(pin.hosts)}


class _Kind(NamedTuple):
    """Hosts with the same answer: one of them, the names and drivers of all, and a bit per release that serves them."""

    host: Host
    names: list[str]
    drivers: set[str]
    served: int


def summarise(lines: Iterable[str], defaults: Host, catalogue: Catalogue) -> Summary:
    """The release that serves the most hosts, whom it leaves behind and what would bring them.

    `defaults.torch` is a release to look at as well, or "auto". Raises BadRequest when the catalogue lacks it.
    """
    check_release(defaults.torch, catalogue)
    bad: list[dict[str, Any]] = []
    without_gpu = 0
    kinds_by_question: dict[tuple[Any, ...], _Kind] = {}
    releases = list(catalogue.releases)
    for line in read(lines, defaults):
        try:
            if not line.host:
                raise BadRequest(line.error)
            question = _question(line.host, catalogue)
        except BadRequest as error:
            bad.append({"line": line.number, **({"host": line.name} if line.name else {}), "error": str(error)})
            continue
        if not line.host.gpus:
            without_gpu += 1
            continue
        if question not in kinds_by_question:
            host = line.host._replace(torch="auto")
            kinds_by_question[question] = _Kind(host, [], set(), _served(host, releases, catalogue))
        kind = kinds_by_question[question]
        kind.names.append(line.name or f"line {line.number}")
        kind.drivers.add(line.host.driver)
    kinds = list(kinds_by_question.values())
    counts = {
        torch: sum(len(kind.names) for kind in kinds if kind.served >> bit & 1) for bit, torch in enumerate(releases)
    }
    # the first of equals is the newest
    best = max(releases, key=counts.__getitem__) if any(counts.values()) else ""
    other = defaults.torch
    if best and other == "auto":
        other = max(releases[: releases.index(best)], key=counts.__getitem__, default="")
    automatic: Counter[tuple[str, str]] = Counter()
    partly = impossible = 0
    for kind in kinds:
        answer = resolve(kind.host, catalogue)
        if answer.status == "ok":
            automatic[str(answer.torch), str(answer.build)] += len(kind.names)
        elif answer.status == "partial":
            partly += len(kind.names)
        else:
            impossible += len(kind.names)
    return Summary(
        catalogue.as_of,
        sum(len(kind.names) for kind in kinds),
        without_gpu,
        bad,
        counts,
        sum(len(kind.names) for kind in kinds if not kind.served),
        _pin(best, kinds, catalogue) if best else None,
        _pin(other, kinds, catalogue) if best and other and other != best else None,
        dict(sorted(automatic.items(), key=lambda item: releases.index(item[0][0]))),
        partly,
        impossible,
        _pair(kinds, releases, best) if best else None,
    )


def _question(host: Host, catalogue: Catalogue) -> tuple[Any, ...]:
    """What decides whether a host is served, in full, in part or not; the same for hosts of one kind.

    Neither the number of its GPUs nor their memory does: that only tells which part. Raises BadRequest.
    """
    host = checked(host, catalogue)
    if not host.gpus:
        return ()
    models = frozenset((gpu.name, capability(gpu.capability)) for gpu in host.gpus)
    return stage(host.driver, host.os, catalogue), host.os, host.machine, host.python, models


def _served(host: Host, releases: list[str], catalogue: Catalogue) -> int:
    builds = catalogue.members(MACHINES[host.machine.lower()], runnable(host, catalogue))
    torches = {build.torch for build in builds}
    return sum(1 << bit for bit, torch in enumerate(releases) if torch in torches)


_WHY = {
    "driver-old": "the driver is too old for torch {torch} on the GPU",
    "driver-new": "the driver no longer knows the GPU",
    "arch": "torch {torch} has no kernels for the GPU",
    "release": "torch {torch} has no wheels for the Python or the processor",
    "unknown": "the capability of the GPU is unknown",
    "together": "no build of torch {torch} serves these GPUs together",
}


def _pin(torch: str, kinds: list[_Kind], catalogue: Catalogue) -> Pin:
    builds: Counter[str] = Counter()
    left: list[tuple[_Kind, bool]] = []
    for kind in kinds:
        answer = resolve(kind.host._replace(torch=torch), catalogue)
        if answer.status == "ok":
            builds[str(answer.build)] += len(kind.names)
        else:
            left.append((kind, answer.status == "partial"))
    return Pin(torch, sum(builds.values()), dict(builds.most_common()), _behind(left, torch, catalogue))


def _behind(left: list[tuple[_Kind, bool]], torch: str, catalogue: Catalogue) -> list[Behind]:
    groups: dict[tuple[str, tuple[str, ...]], list[_Kind]] = {}
    partly: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for kind, in_part in left:
        host = kind.host._replace(torch=torch)
        # no obstacle for any GPU by itself: then it is that they do not go together
        found = dict.fromkeys(obstacle.kind for obstacle in obstacles(host, catalogue)) or {"together": None}
        key = (" and ".join(_WHY[name].format(torch=torch) for name in found), tuple(changes(host, catalogue)))
        groups.setdefault(key, []).append(kind)
        partly[key] += len(kind.names) * in_part
    found_groups = []
    for key, members in groups.items():
        gpus: Counter[str] = Counter()
        for kind in members:
            gpus[" + ".join(sorted({gpu.name for gpu in kind.host.gpus}))] += len(kind.names)
        names = [name for kind in members for name in kind.names]
        drivers = sorted(set().union(*(kind.drivers for kind in members)), key=driver_version)
        found_groups.append(
            Behind(
                len(names),
                partly[key],
                key[0],
                dict(gpus.most_common()),
                drivers[0],
                drivers[-1],
                [*key[1]],
                names[:_NAMES],
            )
        )
    return sorted(found_groups, key=lambda group: -group.hosts)


def _pair(kinds: list[_Kind], releases: list[str], pin: str) -> Pair | None:
    """The two releases that serve the most hosts, preferably the recommended one and a new one; None where one does."""
    wanted: Counter[int] = Counter()
    for kind in kinds:
        if kind.served:
            wanted[kind.served] += len(kind.names)
    everyone = sum(wanted.values())
    home = releases.index(pin)
    best: tuple[int, bool, int] = (sum(n for served, n in wanted.items() if served >> home & 1), True, 0)
    if best[0] == everyone:
        return None
    found = None
    for newer, older in combinations(range(len(releases)), 2):
        both = 1 << newer | 1 << older
        score = (sum(n for served, n in wanted.items() if served & both), home in {newer, older}, -newer - older)
        if score > best:
            best, found = score, Pair((releases[newer], releases[older]), score[0], score[0] == everyone)
    return found


def as_text(summary: Summary) -> str:
    """A summary for a person who chooses one release for all."""
    lines = [_counted(summary)]
    lines += [f"  line {row['line']}: {row['error']}" for row in summary.bad[:3]]
    if not summary.with_gpu:
        return "\n".join(map(printable, lines))
    lines += ["", "Hosts that a release serves with all their GPUs, were it pinned:"]
    for span, hosts in _steps(summary):
        mark = "  <- serves the most" if summary.pin and hosts == summary.pin.hosts else ""
        lines.append(f"  {span:<18}{hosts:>7,}  {summary.share(hosts):>5} %{mark}")
    if summary.unserved:
        lines.append(f"  {'no release':<18}{summary.unserved:>7,}  {summary.share(summary.unserved):>5} %")
    if summary.pin:
        lines += ["", *_recommended(summary, summary.pin)]
    if summary.other:
        lines += ["", *_alternative(summary, summary.other)]
    lines += ["", 'With "auto" each host takes the newest that runs on it:']
    lines += [f"  {f'{torch}+{build}':<18}{hosts:>7,}" for (torch, build), hosts in summary.automatic.items()]
    for name, hosts in (("some GPUs only", summary.automatic_partly), ("none", summary.automatic_not)):
        lines += [f"  {name:<18}{hosts:>7,}"] if hosts else []
    return "\n".join(map(printable, lines))


def _counted(summary: Summary) -> str:
    parts = [f"{summary.with_gpu + summary.without_gpu:,} hosts, {summary.with_gpu:,} with a GPU"]
    if summary.without_gpu:
        parts.append(f"{summary.without_gpu:,} without (they train on the CPU, with any release)")
    if summary.bad:
        parts.append(f"{len(summary.bad):,} lines are no host")
    return f"{', '.join(parts)}. Catalogue of {summary.as_of}."


def _steps(summary: Summary) -> list[tuple[str, int]]:
    """Neighbouring releases that serve equally many hosts as one row; of many rows the best, the first and the last."""
    steps: list[tuple[str, str, int]] = []
    for torch, hosts in summary.releases.items():
        if steps and steps[-1][2] == hosts:
            steps[-1] = (steps[-1][0], torch, hosts)
        else:
            steps.append((torch, torch, hosts))
    kept = sorted(steps, key=lambda step: -step[2])[:8]
    kept += [step for step in (steps[0], steps[-1]) if step not in kept]
    return [
        (newest if newest == oldest else f"{newest} - {oldest}", hosts)
        for newest, oldest, hosts in steps
        if (newest, oldest, hosts) in kept
    ]


def _pinned(summary: Summary, pin: Pin) -> str:
    builds = ", ".join(f"{name} on {count:,}" for name, count in pin.builds.items())
    return f"{pin.hosts:,} hosts, {summary.share(pin.hosts)} %" + (f" ({builds})." if builds else ".")


def _recommended(summary: Summary, pin: Pin) -> list[str]:
    lines = [f"Pin torch {pin.torch}: {_pinned(summary, pin)}"]
    for group in pin.behind[:_GROUPS]:
        lines += ["", f"  Left behind: {_hosts(group.hosts)}{_partly(group)}, as {group.reason}."]
        lines.append(f"    GPUs     {_models(group)}")
        lines.append(f"    drivers  {' to '.join(dict.fromkeys((group.oldest_driver, group.newest_driver)))}")
        lines += [f"    {'or' if place else 'change':<9}{text}" for place, text in enumerate(_ways(group))]
        dots = ", ..." if group.hosts > 5 else ""
        lines.append(f"    hosts    {', '.join(shortened(name, 40) for name in group.names[:5])}{dots}")
    lines += ["", *_rest(pin)] if pin.behind[_GROUPS:] else []
    if summary.pair:
        newer, older = summary.pair.torch
        what = "serve every host that any release serves" if summary.pair.complete else "together serve the most hosts"
        lines += ["", f"Two pins: torch {newer} and {older} {what}, {summary.pair.hosts:,}."]
    return lines


def _alternative(summary: Summary, pin: Pin) -> list[str]:
    lines = [f"Torch {pin.torch} instead: {_pinned(summary, pin)} It would leave behind"]
    for group in pin.behind[:_GROUPS]:
        lines.append(f"  {_hosts(group.hosts)}{_partly(group)}, as {group.reason}.")
        lines.append(f"    GPUs     {_models(group)}")
        lines += [f"    {'or' if place else 'change':<9}{text}" for place, text in enumerate(_ways(group))]
    return lines + _rest(pin)


def _rest(pin: Pin) -> list[str]:
    rest = pin.behind[_GROUPS:]
    return [f"  and {_hosts(sum(group.hosts for group in rest))} for {len(rest)} other reasons"] if rest else []


def _hosts(count: int) -> str:
    return f"{count:,} host{'' if count == 1 else 's'}"


def _partly(group: Behind) -> str:
    if not group.partly:
        return ""
    return " in part" if group.partly == group.hosts else f", {group.partly:,} of them in part"


def _models(group: Behind) -> str:
    plain = {name.replace("NVIDIA ", ""): count for name, count in list(group.gpus.items())[:3]}
    models = [f"{shortened(name, 60)} ({count:,})" for name, count in plain.items()]
    more = len(group.gpus) - len(models)
    return ", ".join(models) + (f" and {more} more" if more else "")


def _ways(group: Behind) -> list[str]:
    """The changes for a group; where there are none, what is left."""
    if group.changes:
        return group.changes
    if group.partly == group.hosts:
        return ["none: each trains on those of its GPUs that one build serves."]
    return ["none: they train on the CPU."]
