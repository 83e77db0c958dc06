"""Facts about a host and the catalogue -> the torch build that runs on it, with reasons. Pure: looks at nothing itself.

A build runs on a GPU when the driver serves its CUDA major (minor-version compatibility), when the driver still knows
the GPU's architecture, and when the build holds machine code of the GPU's major capability with an equal or lower minor
one (binary compatibility); as a last resort PTX, if the driver is at least as new as the build's toolkit.
"""

from __future__ import annotations

import re
from bisect import bisect
from functools import lru_cache
from typing import Iterable, NamedTuple, TypeVar

from .catalogue import MACHINES, SYSTEMS, BadRequest, Branch, Build, Catalogue, capability, driver_version, version
from .names import is_virtual
from .terminal import quoted

_T = TypeVar("_T")


class Gpu(NamedTuple):
    """One GPU as the driver describes it. Where `capability` is "" or `memory_mib` None, the name must tell."""

    number: int  # as nvidia-smi counts, by PCI address
    name: str
    capability: str = ""
    memory_mib: int | None = None
    uuid: str = ""


class Host(NamedTuple):
    """What is asked: a driver, its GPUs, and what torch must fit. `os` is linux or wsl2, `python` "" means any."""

    driver: str
    gpus: tuple[Gpu, ...]
    os: str = "linux"
    machine: str = "x86_64"
    torch: str = "auto"
    python: str = ""


class Resolution(NamedTuple):
    """The answer; `devices` are the numbers of the GPUs served, `index_url` None is the default index."""

    status: str
    torch: str | None
    torchvision: str | None
    build: str | None
    index_url: str | None
    devices: list[int]
    excluded: list[dict[str, object]]
    reasons: list[str]
    warnings: list[str]
    advice: list[str]

    def as_dict(self) -> dict[str, object]:
        """What is printed as JSON."""
        return {"index" if name == "index_url" else name: value for name, value in self._asdict().items()}


class _Asked(NamedTuple):
    """The question in the form in which it is answered: `driver` is its stage, `host.driver` what to call it."""

    host: Host
    driver: tuple[int, ...]
    catalogue: Catalogue


class _Card(NamedTuple):
    """A GPU with what the catalogue adds. `code`, `sass` and `ptx` are sets of builds.

    `code` holds machine code for it; `sass` and `ptx` are what this driver lets it run, by machine code and from PTX.
    `known` is whether the catalogue has a GPU of this capability: a stranger may be newer than the catalogue.
    """

    gpu: Gpu
    compute: tuple[int, int] | None
    memory_mib: int
    branch: Branch | None
    gone: bool
    code: int
    sass: int
    ptx: int
    known: bool

    @property
    def title(self) -> str:
        return f"{self.gpu.name} ({self.compute[0]}.{self.compute[1]})" if self.compute else self.gpu.name


def resolve(host: Host, catalogue: Catalogue) -> Resolution:
    """The torch build for `host`. Raises BadRequest for a question that cannot be asked; no GPU is "impossible"."""
    host = checked(host, catalogue)
    if not host.gpus:
        return _impossible(["there is no NVIDIA GPU."], [], [_cpu_advice(host, catalogue)])
    driver = stage(host.driver, host.os, catalogue)
    asked = _Asked(host, driver, catalogue)
    cards = [_card(gpu, asked) for gpu in host.gpus]
    offered = catalogue.of_release(host.machine, host.torch) & catalogue.for_python(host.machine, host.python)
    usable = offered & catalogue.for_driver(host.machine, host.os, driver)
    chosen = _for_all(usable, cards)
    if chosen:
        return _served(catalogue.best(host.machine, chosen), cards, cards, asked)
    build, served = _most_memory(usable, cards, host, catalogue)
    if build:
        return _served(build, served, cards, asked)
    whys = [_obstacle(card, offered, usable, asked).text for card in cards]
    reasons = _unique(whys)
    excluded = [{"index": card.gpu.number, "reason": why} for card, why in zip(cards, whys)]  # noqa: B905 (Python 3.8)
    advice = [*_changes(cards, asked), *_end_of_road(cards, host, catalogue)]
    return _impossible(reasons, excluded, [*advice, _cpu_advice(host, catalogue)])


_PRINTS_CAPABILITY = (510,)  # the first driver branch whose nvidia-smi knows compute_cap


@lru_cache(maxsize=64)
def _stages(system: str, catalogue: Catalogue) -> list[tuple[int, ...]]:
    return sorted({(0,), _PRINTS_CAPABILITY, *catalogue.thresholds(system)})


def stage(driver: str, system: str, catalogue: Catalogue) -> tuple[int, ...]:
    """The newest version, up to that of `driver`, at which anything changes: two drivers of a stage run the same.

    A fleet has thousands of drivers and a dozen stages, so that sets of builds are made once a stage.
    Raises BadRequest for a driver that is no version.
    """
    stages = _stages(system, catalogue)
    return stages[bisect(stages, driver_version(driver)) - 1]


def checked(host: Host, catalogue: Catalogue) -> Host:
    """`host` with its machine as the catalogue writes it. Raises BadRequest, but looks at no driver and no GPU."""
    machine = MACHINES.get(host.machine.lower())
    if machine is None:
        raise BadRequest(
            f"machine {quoted(host.machine)} has no torch wheels for Linux containers: use x86_64 or aarch64."
        )
    if host.os not in SYSTEMS:
        raise BadRequest(f"os {quoted(host.os)} is neither linux nor wsl2: use one of them.")
    check_python(host.python)
    check_release(host.torch, catalogue)
    return host._replace(machine=machine)


def check_python(python: str) -> None:
    """Raise BadRequest when `python` is neither "" nor a version such as 3.11."""
    if python and not re.fullmatch(r"3\.[0-9]{1,2}t?", python):
        raise BadRequest(f"Python {quoted(python)} is not of the form 3.11: give major and minor.")


def check_release(torch: str, catalogue: Catalogue) -> None:
    """Raise BadRequest when `torch` is neither "auto" nor a release of the catalogue."""
    if torch == "auto" or torch in catalogue.releases:
        return
    import difflib  # noqa: PLC0415 - slow to import, and only needed for a wrong name

    near = [known for known in catalogue.releases if known.startswith(f"{torch}.")][:1]
    near = near or difflib.get_close_matches(torch, catalogue.releases, n=1) or ["auto"]
    raise BadRequest(f"torch {quoted(torch)} is not in the catalogue of {catalogue.as_of}: did you mean {near[0]}?")


def _card(gpu: Gpu, asked: _Asked) -> _Card:
    host, driver, catalogue = asked
    compute = capability(gpu.capability)
    named = catalogue.by_name(gpu.name) if compute is None or gpu.memory_mib is None else None
    memory = gpu.memory_mib if gpu.memory_mib is not None else named[1] if named else 0
    compute = compute or (named[0] if named else None)
    if compute is None:
        return _Card(gpu, None, memory, None, False, 0, 0, 0, False)
    branch = catalogue.branch(compute)
    gone = branch is not None and driver[0] >= branch.gone_from
    code = catalogue.with_sass(host.machine, compute)
    ptx = catalogue.with_ptx(host.machine, host.os, compute, driver)
    known = catalogue.known(compute)
    return _Card(gpu, compute, memory, branch, gone, code, 0 if gone else code, 0 if gone else ptx, known)


def _newer_than_catalogue(card: _Card, catalogue: Catalogue) -> bool:
    """Whether a GPU may have come after the catalogue: it is not listed, and not from before all wheels either."""
    if card.compute is None or card.known:
        return False
    return card.compute > min(sm for builds in catalogue.builds.values() for build in builds for sm in build.sass)


def _for_all(builds: int, cards: list[_Card]) -> int:
    """Those that run on every card: by machine code, else (the last resort) with PTX."""
    by_sass = by_any = builds
    for card in cards:
        by_sass &= card.sass
        by_any &= card.sass | card.ptx
    return by_sass or by_any


def _most_memory(builds: int, cards: list[_Card], host: Host, catalogue: Catalogue) -> tuple[Build | None, list[_Card]]:
    """The build that serves the most GPU memory, then the most cards, then the preferred one."""
    best: tuple[int, int, int] = (0, 0, 0)
    found: Build | None = None
    alike: dict[tuple[int, int], list[_Card]] = {}
    for card in cards:
        alike.setdefault((card.sass | card.ptx, card.sass), []).append(card)
    totals = [(runs, sass, sum(card.memory_mib for card in same), len(same)) for (runs, sass), same in alike.items()]
    for bit, build in enumerate(catalogue.builds[host.machine]):
        if not builds >> bit & 1:
            continue
        memory = count = by_sass = 0
        for runs, sass, mib, number in totals:
            if runs >> bit & 1:
                memory, count, by_sass = memory + mib, count + number, by_sass + number * (sass >> bit & 1)
        if count and (memory, count, by_sass) > best:
            best, found = (memory, count, by_sass), build
    if not found:
        return None, []
    place = catalogue.builds[host.machine].index(found)
    return found, [card for card in cards if (card.sass | card.ptx) >> place & 1]


def _served(build: Build, served: list[_Card], cards: list[_Card], asked: _Asked) -> Resolution:
    host, catalogue = asked.host, asked.catalogue
    bit = 1 << catalogue.builds[host.machine].index(build)
    left = [card for card in cards if not (card.sass | card.ptx) & bit]
    warnings = [
        f"{build.name} has no machine code for {card.title}: the driver compiles its PTX, so the first start is slow."
        for card in served
        if not card.sass & bit
    ]
    warnings += _unique(_stranger(build, card, bit, catalogue) for card in served if not card.known)
    warnings += _doubts(build, served, host, catalogue)
    advice = []
    if left:
        devices = ",".join(str(card.gpu.number) for card in served)
        together = (
            "no build serves all GPUs" if host.torch == "auto" else f"no build of torch {host.torch} serves all GPUs"
        )
        warnings.append(f"{together}: {build.torch}+{build.name} serves the most GPU memory.")
        advice.append(
            f"CUDA_VISIBLE_DEVICES={devices} with CUDA_DEVICE_ORDER=PCI_BUS_ID shows only the GPUs it serves."
        )
        advice += _changes(cards, asked)
    advice += _end_of_road(cards, host, catalogue)
    advice += _newer_driver(build, served, asked) or _newer_python(build, served, asked)
    return Resolution(
        "partial" if left else "ok",
        build.torch,
        build.torchvision,
        build.name,
        catalogue.index(build),
        [card.gpu.number for card in served],
        [{"index": card.gpu.number, "reason": _obstacle(card, bit, bit, asked, build).text} for card in left],
        _reasons(build, served, asked),
        warnings,
        advice,
    )


def _stranger(build: Build, card: _Card, bit: int, catalogue: Catalogue) -> str:
    """The warning for a GPU of a capability that the catalogue does not list."""
    assert card.compute is not None
    if card.sass & bit:
        sm = max(sm for sm in build.sass if sm[0] == card.compute[0] and sm[1] <= card.compute[1])
        why = "machine code for sm_{}{} runs on every later GPU of the same major capability".format(*sm)
    else:
        why = "a driver of this age compiles its PTX"
    return f"the catalogue of {catalogue.as_of} does not know {card.title}: {build.name} should run, as {why}."


def _reasons(build: Build, served: list[_Card], asked: _Asked) -> list[str]:
    host, driver, catalogue = asked
    floors = catalogue.floors[host.os]
    assert build.cuda is not None
    reasons = [
        f"driver {host.driver} serves CUDA {build.cuda[0]} (from {floors[build.cuda[0]][0]}"
        + "".join(f", CUDA {major} would need {text}" for major, (text, floor) in floors.items() if driver < floor)
        + ")."
    ]
    for title, compute in _unique((card.title, card.compute) for card in served):
        fitting = [sm for sm in build.sass if compute and sm[0] == compute[0] and sm[1] <= compute[1]]
        if fitting:
            reasons.append("{} holds sm_{}{}, which runs on {}.".format(build.name, *max(fitting), title))
        else:
            reasons.append(f"{build.name} holds PTX that the driver compiles for {title}.")
    if build.default:
        reasons.append(f"{build.name} is what the default package index carries for torch {build.torch}.")
    else:
        default = catalogue.releases[build.torch]["default"][host.machine]
        reasons.append(
            f"the default package index carries {default} for torch {build.torch}, which does not serve this host."
        )
    return reasons


class Obstacle(NamedTuple):
    """What stands between a GPU and a torch build. `kind`: unknown, driver-new, driver-old, release, arch, together."""

    kind: str
    text: str


def runnable(host: Host, catalogue: Catalogue) -> int:
    """The set of builds, of whichever release, that run on all GPUs of `host`. Raises BadRequest."""
    host = checked(host, catalogue)
    if not host.gpus:
        return 0
    driver = stage(host.driver, host.os, catalogue)
    builds = catalogue.for_python(host.machine, host.python) & catalogue.for_driver(host.machine, host.os, driver)
    asked = _Asked(host, driver, catalogue)
    for gpu in host.gpus:
        card = _card(gpu, asked)
        builds &= card.sass | card.ptx
    return builds


class Refusal(NamedTuple):
    """Builds of one release that were not chosen ("cu130, cu132"), and why."""

    torch: str
    build: str
    reason: str


def refusals(host: Host, answer: Resolution, catalogue: Catalogue) -> list[Refusal]:
    """What `resolve` passed over on the way to `answer`, newest release first: one entry a release and reason.

    For a pinned release its other builds; for "auto" those that would have been preferred, and where nothing runs at
    all, for each reason only the newest release that it keeps away. None where there is no GPU.
    """
    host = checked(host, catalogue)
    if not host.gpus:
        return []
    driver = stage(host.driver, host.os, catalogue)
    asked = _Asked(host, driver, catalogue)
    cards = [_card(gpu, asked) for gpu in host.gpus]
    cards = [card for card in cards if card.sass | card.ptx] or cards  # what no build serves refuses no build
    passed = catalogue.members(host.machine, catalogue.of_release(host.machine, host.torch))
    chosen = next((one for one in passed if (one.torch, one.name) == (answer.torch, answer.build)), None)
    if chosen and host.torch == "auto":
        passed = passed[: passed.index(chosen)]
    grouped: dict[tuple[str, str], list[str]] = {}
    for build in passed:
        if build is not chosen:
            reason = _refused(build, chosen, cards, asked)
            torch = build.torch
            if host.torch == "auto" and not chosen:
                torch = next((one for one, other in grouped if other == reason), torch)
            if torch == build.torch:
                grouped.setdefault((torch, reason), []).append(build.name)
    return [Refusal(torch, ", ".join(names), reason) for (torch, reason), names in grouped.items()]


def _refused(build: Build, chosen: Build | None, cards: list[_Card], asked: _Asked) -> str:
    """Why not `build`: what no driver mends comes first."""
    host, driver, catalogue = asked
    assert build.cuda is not None
    if host.python and host.python not in catalogue.pythons(build.torch, host.machine):
        return f"no wheels for Python {host.python}."
    place = catalogue.builds[host.machine].index
    bit = 1 << place(build)
    floor, needed = catalogue.floors[host.os][build.cuda[0]]
    unknown = [card for card in cards if card.compute is None]
    if unknown:
        return f"the compute capability of {unknown[0].gpu.name} is unknown."
    lacking = [card for card in cards if not (card.code | card.ptx) & bit]
    if lacking:
        titles = " and ".join(_unique(card.title for card in lacking))
        served = [str(card.gpu.number) for card in cards if driver >= needed and (card.sass | card.ptx) & bit]
        return f"no kernels for {titles}{'; it would serve only GPU ' if served else ''}{', '.join(served)}."
    for card in cards:
        if card.gone and card.branch:
            return f"driver {host.driver} no longer knows {card.title}."
    if driver < needed:
        return f"CUDA {build.cuda[0]} needs driver {floor} or newer."
    assert chosen is not None  # what runs on all these cards is never refused for nothing
    by_ptx = [card for card in cards if card.sass & (1 << place(chosen)) and not card.sass & bit]
    if by_ptx:
        return f"could run on {by_ptx[0].title} only from PTX, the last resort."
    better = "is what the default package index carries" if chosen.default else "is the newer CUDA"
    return f"would run as well, but {chosen.name} {better}."


def obstacles(host: Host, catalogue: Catalogue) -> list[Obstacle]:
    """What keeps each GPU of `host` from the asked release, in the order of the GPUs; none for those it serves."""
    host = checked(host, catalogue)
    if not host.gpus:
        return []
    driver = stage(host.driver, host.os, catalogue)
    offered = catalogue.of_release(host.machine, host.torch) & catalogue.for_python(host.machine, host.python)
    usable = offered & catalogue.for_driver(host.machine, host.os, driver)
    asked = _Asked(host, driver, catalogue)
    cards = [_card(gpu, asked) for gpu in host.gpus]
    blocked = [card for card in cards if not usable & (card.sass | card.ptx)]
    return _unique(_obstacle(card, offered, usable, asked) for card in blocked)


def changes(host: Host, catalogue: Catalogue) -> list[str]:
    """The nearest changes of driver, release or Python after which all GPUs of `host` run, else at least one."""
    host = checked(host, catalogue)
    asked = _Asked(host, stage(host.driver, host.os, catalogue), catalogue)
    return _changes([_card(gpu, asked) for gpu in host.gpus], asked)


def _obstacle(card: _Card, offered: int, usable: int, asked: _Asked, chosen: Build | None = None) -> Obstacle:
    host, _, catalogue = asked
    what = (
        f"torch {chosen.torch}+{chosen.name}" if chosen else f"torch {host.torch}" if host.torch != "auto" else "torch"
    )
    python = f" for Python {host.python}" if host.python and host.torch == "auto" and not chosen else ""
    if card.compute is None:
        if is_virtual(card.gpu.name):
            return Obstacle(
                "unknown",
                f"{card.gpu.name} is a virtual GPU that is not recognised by its name, "
                "and nvidia-smi does not print its compute capability.",
            )
        text = f"the compute capability of {card.gpu.name} is unknown: nvidia-smi does not print it and no name fits."
        return Obstacle("unknown", text)
    if card.gone and card.branch:
        last = f"{card.branch.last} is the last branch for {card.branch.architecture}."
        return Obstacle("driver-new", f"driver {host.driver} no longer knows {card.title}: {last}")
    if not offered:
        return Obstacle("release", _not_offered(host, catalogue))
    if not card.code and _newer_than_catalogue(card, catalogue):
        return Obstacle(
            "arch",
            f"{card.title} may be newer than the catalogue of {catalogue.as_of}, "
            "which has no wheel for it: update the template.",
        )
    if not offered & card.code:
        held = sorted({sm for build in catalogue.members(host.machine, offered) for sm in build.sass})
        names = " ".join(f"sm_{major}{minor}" for major, minor in held)
        return Obstacle(
            "arch", f"{what}{python} has no kernels for {card.title}: its {host.machine} wheels hold {names}."
        )
    if not usable & card.code:
        builds = catalogue.members(host.machine, offered & card.code)
        major = min(build.cuda[0] for build in builds if build.cuda)
        needed = catalogue.floors[host.os][major][0]
        return Obstacle(
            "driver-old",
            f"driver {host.driver} is too old for {what}{python} on {card.title}: CUDA {major} needs {needed}.",
        )
    return Obstacle("together", f"{what} cannot serve {card.title} together with the others.")


def _not_offered(host: Host, catalogue: Catalogue) -> str:
    if host.torch == "auto":
        return f"no torch release has CUDA wheels for Python {host.python} on {host.machine}."
    if not catalogue.of_release(host.machine, host.torch):
        return f"torch {host.torch} has no CUDA wheel for {host.machine} whose architectures are known."
    pythons = catalogue.pythons(host.torch, host.machine)
    return f"torch {host.torch} has no wheels for Python {host.python}: it has {', '.join(pythons)}."


def _changes(cards: list[_Card], asked: _Asked) -> list[str]:
    """The nearest changes after which all GPUs run, or failing that at least one: one change, else two, else three."""
    host, driver, catalogue = asked
    usable = catalogue.of_release(host.machine, host.torch) & catalogue.for_python(host.machine, host.python)
    usable &= catalogue.for_driver(host.machine, host.os, driver)
    known = [card for card in cards if card.compute]
    groups = [known] if len(known) == len(cards) else []
    if not any((card.sass | card.ptx) & usable for card in cards):  # else: no change for one at the cost of another
        groups += [[card] for card in known]
    for group in groups:
        for kinds in (("driver", "release", "python"), ("driver release", "release python", "driver python"), ("all",)):
            found = [sentence for sentence in _unique(_change(kind, group, asked) for kind in kinds) if sentence]
            if found:
                return found
    unknown = _unique(card.gpu.name for card in cards if card.compute is None)
    if asked.driver >= _PRINTS_CAPABILITY:
        return [f"look up the compute capability of {name} and give it with --gpu NAME,CAPABILITY." for name in unknown]
    return [f"update the driver to 510 or newer, which prints the compute capability of {name}." for name in unknown]


def _change(kind: str, cards: list[_Card], asked: _Asked) -> str:
    host, driver, catalogue = asked
    new_driver, new_release, new_python = (word in kind or kind == "all" for word in ("driver", "release", "python"))
    if (new_release and host.torch == "auto") or (new_python and not host.python):
        return ""
    builds = catalogue.of_release(host.machine, "auto" if new_release else host.torch)
    builds &= catalogue.for_python(host.machine, "" if new_python else host.python)
    if not new_driver:
        builds &= catalogue.for_driver(host.machine, host.os, driver)
    for card in cards:
        builds &= card.code if new_driver else card.sass
    if not builds:
        return ""
    build = catalogue.best(host.machine, builds)
    steps = []
    if new_driver:
        # the oldest CUDA that will do asks for the least of the driver, unless the release is free as well
        if not new_release:
            build = min(catalogue.members(host.machine, builds), key=lambda one: one.cuda or (0, 0))
        steps.append(_driver_step(build, cards, host, catalogue))
    if new_release:
        steps.append(f"use torch {build.torch} ({build.name})")
    if new_python:
        steps.append(f"use Python {_nearest_python(host.python, catalogue.pythons(build.torch, host.machine))}")
    return " and ".join(steps) + "."


_CUDNN_8_LAST = (2, 3, 1)  # torch from 2.4 on brings cuDNN 9, which has dropped Kepler
_MAXWELL = (5, 0)


def _doubts(build: Build, served: list[_Card], host: Host, catalogue: Catalogue) -> list[str]:
    """What the rules allow and experience does not: a driver from before the GPU, convolutions on Kepler."""
    said = []
    branch = driver_version(host.driver)[0]
    for card in served:
        first = catalogue.first_branch(card.compute, host.os) if card.compute else None
        if first is not None and branch < first:
            said.append(f"driver {host.driver} is older than {card.title}, which {first} was the first to know.")
        if card.compute and card.compute < _MAXWELL and version(build.torch) > _CUDNN_8_LAST:
            said.append(f"convolutions may fail on {card.title}: torch 2.3.1 is the last with a cuDNN for Kepler.")
    return _unique(said)


def _driver_step(build: Build, cards: list[_Card], host: Host, catalogue: Catalogue) -> str:
    assert build.cuda is not None
    floor = catalogue.floors[host.os][build.cuda[0]][0]
    where = " in Windows" if host.os == "wsl2" else ""
    limits = [card.branch for card in cards if card.branch]
    if limits:
        limit = min(limits, key=lambda branch: branch.gone_from)
        return f"install a driver of the {limit.last} branch{where}"
    return f"install driver {floor} or newer{where}"


def _nearest_python(asked: str, pythons: list[str]) -> str:
    def distance(python: str) -> tuple[bool, int]:
        return python.endswith("t"), abs(int(python.rstrip("t").split(".")[1]) - int(asked.rstrip("t").split(".")[1]))

    return min(pythons, key=distance)


def _end_of_road(cards: list[_Card], host: Host, catalogue: Catalogue) -> list[str]:
    newest = next(iter(catalogue.releases))
    sentences = []
    for card in cards:
        if _newer_than_catalogue(card, catalogue):
            sentences.append("update the template, which brings a newer catalogue: cruft update.")
        elif not card.code:
            if card.compute:
                sentences.append(f"no published {host.machine} wheel has kernels for {card.title}.")
        else:
            last = catalogue.best(host.machine, card.code)
            if last.torch != newest:
                branch = f"; driver branch {card.branch.last} is the last for it" if card.branch else ""
                sentences.append(f"torch {last.torch} is the last release with kernels for {card.title}{branch}.")
    return _unique(sentences)


def _newer_driver(build: Build, served: list[_Card], asked: _Asked) -> list[str]:
    """For "auto": the newer release that a newer driver would allow on the same GPUs."""
    host, driver, catalogue = asked
    if host.torch != "auto":
        return []
    builds = catalogue.of_release(host.machine, "auto") & catalogue.for_python(host.machine, host.python)
    for card in served:
        builds &= card.code
    if not builds:
        return []
    best = catalogue.best(host.machine, builds)
    if best.torch == build.torch or not best.cuda or driver >= catalogue.floors[host.os][best.cuda[0]][1]:
        return []
    return [f"{_driver_step(best, served, host, catalogue)} to use torch {best.torch} ({best.name})."]


def _newer_python(build: Build, served: list[_Card], asked: _Asked) -> list[str]:
    """For "auto": the newer release that another Python would allow with the same GPUs and the same driver."""
    host, driver, catalogue = asked
    if host.torch != "auto" or not host.python:
        return []
    builds = catalogue.for_driver(host.machine, host.os, driver)
    for card in served:
        builds &= card.sass
    best = catalogue.best(host.machine, builds) if builds else build
    if best.torch == build.torch or host.python in catalogue.pythons(best.torch, host.machine):
        return []
    python = _nearest_python(host.python, catalogue.pythons(best.torch, host.machine))
    return [f"use Python {python} to use torch {best.torch} ({best.name})."]


def _cpu_advice(host: Host, catalogue: Catalogue) -> str:
    torch = catalogue.newest(host.machine, host.python) if host.torch == "auto" else host.torch
    if torch is None or (host.python and host.python not in catalogue.pythons(torch, host.machine)):
        return "the CPU does not help here: this Python has no such wheels either."
    return f"or train on the CPU: YOLO_ACCEL=cpu uses torch {torch}+cpu."


def _impossible(reasons: list[str], excluded: list[dict[str, object]], advice: list[str]) -> Resolution:
    return Resolution("impossible", None, None, None, None, [], excluded, reasons, [], advice)


def _unique(items: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(items))
