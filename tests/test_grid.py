"""Every GPU, every driver, every release: `resolve` against the rules written out once more.

The oracle below follows section 5 of the design word for word, over the rows of catalog.json, and shares nothing with
hostkit but that file. Where it and `resolve` differ, a build was chosen that cannot run or one refused that can.
"""

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from hosts import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.hostkit.catalogue import Catalogue, driver_version
from generator.hostkit.resolve import Gpu, Host, resolve, runnable

RAW = json.loads((Path(__file__).parent.parent / "generator" / "catalog.json").read_text(encoding="utf-8"))

# Branches in which drivers for Linux or for Windows came; each once as a late driver of it.
BRANCHES = (418, 430, 435, 440, 450, 455, 460, 465, 470, 495, 510, 515, 520, 525, 530, 535, 545, 550, 555, 560, 565,
            570, 575, 580, 590, 595, 600, 605, 610, 615)  # fmt: skip
EDGES = {
    "linux": ("450.80.01", "450.80.02", "450.80.03", "525.60.12", "525.60.13", "525.60.14",
              "580.65.05", "580.65.06", "580.65.07"),
    "wsl2": ("452.38", "452.39", "452.40", "528.32", "528.33", "528.34", "579.99", "580.0", "580.1"),
}  # fmt: skip
FLOORS = {
    "linux": {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)},
    "wsl2": {11: (452, 39), 12: (528, 33), 13: (580,)},
}
RELEASES = [row["torch"] for row in reversed(RAW["releases"])]  # newest first
KNOWN = sorted({tuple(map(int, row[1].split("."))) for row in RAW["gpus"]})
JETSON = sorted({tuple(map(int, row["capability"].split("."))) for row in RAW["jetson"]} | {(11, 0)})
MACHINES = ("x86_64", "aarch64")
SYSTEMS = ("linux", "wsl2")


def drivers(system):
    return sorted({*(f"{branch}.99" for branch in BRANCHES), *EDGES[system]}, key=numbers)


def numbers(text):
    return tuple(int(part) for part in text.split("."))


class Wheel(NamedTuple):
    torch: str
    name: str
    cuda: tuple[int, int]
    sass: tuple[tuple[int, int], ...]
    ptx: tuple[tuple[int, int], ...]
    default: bool


@cache
def wheels(machine):
    """The CUDA builds of a machine, newest release first."""
    return [
        Wheel(
            row["torch"], name, (int(name[2:4]), int(name[4:])), tuple((code // 10, code % 10) for code in sass),
            tuple((code // 10, code % 10) for code in ptx), row["default"][machine] == name
        )
        for row in reversed(RAW["releases"])
        for name, on, sass, ptx in row["builds"]
        if on == machine and name != "cpu"
    ]  # fmt: skip


def runs(wheel, compute, driver, system):
    """How a wheel executes on a GPU: "sass", "ptx", or "" when it does not."""
    for row in RAW["branches"]:
        theirs = row["major"] == compute[0] and (row["minor_below"] is None or compute[1] < row["minor_below"])
        if theirs and driver[0] >= row["gone_from"]:
            return ""
    if driver < FLOORS[system][wheel.cuda[0]]:
        return ""
    family_from = {numbers(row["capability"]): row["family_code_from"] for row in RAW["jetson"]}
    for sm in wheel.sass:
        if sm == compute:
            return "sass"
        if sm[0] == compute[0] and sm[1] < compute[1]:
            # Jetson boards run the code of their family only from the CUDA that lifted their exclusion
            since = family_from.get(compute, "0.0")
            if since and wheel.cuda >= numbers(since):
                return "sass"
    for row in RAW["toolkits"]:
        packaged = row["linux" if system == "linux" else "windows"]
        if numbers(row["toolkit"]) == wheel.cuda and packaged and driver >= numbers(packaged):
            return "ptx" if any(ptx <= compute for ptx in wheel.ptx) else ""
    return ""


@cache
def serving(compute, driver, machine, system):
    """{wheel: how} of those that run on one GPU."""
    found = {wheel: runs(wheel, compute, numbers(driver), system) for wheel in wheels(machine)}
    return {wheel: how for wheel, how in found.items() if how}


def together(computes, driver, torch, machine, system):
    """The wheels of a release (or of all) that run on all GPUs, those without PTX alone where there are any."""
    served = [serving(compute, driver, machine, system) for compute in computes]
    all_run = [wheel for wheel in served[0] if torch in {wheel.torch, "auto"} and all(wheel in one for one in served)]
    without_ptx = [wheel for wheel in all_run if all(one[wheel] == "sass" for one in served)]
    return all_run, without_ptx or all_run


def preferred(found):
    """Of the newest release among `found`: the default of the package index, else the newest CUDA."""
    newest = [wheel for wheel in found if wheel.torch == found[0].torch]
    return next((wheel for wheel in newest if wheel.default), None) or max(newest, key=lambda wheel: wheel.cuda)


def fault(computes, driver, torch, machine, system):
    """What is wrong with the answer for these GPUs (the first has more memory than two others together), or ""."""
    memories = [24_000, 11_000, 10_000][: len(computes)]
    gpus = [Gpu(place, "a GPU", "{}.{}".format(*compute), memories[place]) for place, compute in enumerate(computes)]
    answer = resolve(Host(driver, tuple(gpus), system, machine, torch), CATALOGUE)
    said = (answer.status, answer.torch, answer.build, answer.devices)
    left = [one["index"] for one in answer.excluded]
    if sorted(answer.devices + left) != list(range(len(computes))):
        return f"{said}: each GPU is served or left out"
    if not answer.reasons or (left and not all(one["reason"] for one in answer.excluded)):
        return f"{said}: no reason"
    all_run, found = together(computes, driver, torch, machine, system)
    if found:
        best = preferred(found)
        if said != ("ok", best.torch, best.name, list(range(len(computes)))):
            return f"{said}: {best.torch}+{best.name} runs on all"
        newest = min(RELEASES.index(wheel.torch) for wheel in all_run)
        if torch == "auto" and RELEASES.index(answer.torch) != newest and all(one in KNOWN for one in computes):
            return f"{said}: auto is older than {RELEASES[newest]}, which runs"
        return ""
    scores = {
        wheel: sum(
            memories[place] for place, one in enumerate(computes) if wheel in serving(one, driver, machine, system)
        )
        for wheel in wheels(machine)
        if torch in {wheel.torch, "auto"}
    }
    most = max(scores.values(), default=0)
    if not most:
        return "" if said == ("impossible", None, None, []) else f"{said}: nothing runs"
    chosen = next(wheel for wheel in scores if (wheel.torch, wheel.name) == (answer.torch, answer.build))
    served = [place for place, one in enumerate(computes) if chosen in serving(one, driver, machine, system)]
    newest = next(wheel.torch for wheel in scores if scores[wheel] == most)
    right = said[0] == "partial" and answer.devices == served and scores[chosen] == most and chosen.torch == newest
    return "" if right else f"{said}: at most {most} MiB can be served, first by {newest}"


def faults(questions):
    return [(question, said) for question in questions if (said := fault(*question))][:5]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_capability_driver_and_release(machine, system):
    computes = [(compute,) for compute in [*KNOWN, *JETSON]]
    assert not faults(product(computes, drivers(system), ["auto", *RELEASES], [machine], [system]))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_pair_of_capabilities(machine, system):
    pairs = [*product(KNOWN, KNOWN)]
    some = ["450.80.02", "470.256.02", "528.33", "550.54.14", "580.126.09", "610.43.02"]
    assert not faults(product(pairs, some, ["auto", "2.6.0", "2.8.0", RELEASES[0]], [machine], [system]))


def test_three_gpus_of_which_one_has_most_of_the_memory():
    triples = product([(3, 7), (6, 1), (7, 0), (8, 6), (12, 0)], repeat=3)
    some = ["470.256.02", "550.54.14", "580.126.09", "610.43.02"]
    assert not faults(product(triples, some, ["auto", "2.6.0", "2.8.0"], ["x86_64"], ["linux"]))


def test_machine_code_of_a_pinned_release_comes_before_its_ptx():
    rows = [
        [name, on, [] if name == "cu128" else sass, [75] if name == "cu128" else ptx]
        for row in RAW["releases"]
        if row["torch"] == "2.8.0"
        for name, on, sass, ptx in row["builds"]
    ]
    releases = [{**row, "builds": rows} if row["torch"] == "2.8.0" else row for row in RAW["releases"]]
    answer = resolve(
        host([(8, 6)], "580.95.05", ("linux", "x86_64"), "2.8.0"), Catalogue({**RAW, "releases": releases})
    )
    assert (answer.status, answer.build) == ("ok", "cu129")  # not cu128, though the package index carries it


@pytest.mark.parametrize("machine", MACHINES)
def test_capabilities_that_the_catalogue_does_not_know(machine):
    strangers = [((3, 0),), ((8, 8),), ((9, 2),), ((10, 7),), ((11, 5),), ((12, 4),), ((13, 0),), ((21, 0),)]
    packaged = [numbers(row["linux"]) for row in RAW["toolkits"]]
    edges = [".".join(map(str, (*one[:-1], one[-1] + step))) for one in packaged for step in (-1, 0)]
    some = ["auto", RELEASES[0], "2.11.0", "2.10.0", "2.8.0", "2.7.0", "2.6.0", "2.0.0"]  # from 2.7 to 2.11 with PTX
    assert not faults(product(strangers, edges, some, [machine], SYSTEMS))


@pytest.mark.parametrize(("name", "compute", "memory_gib"), RAW["gpus"])
def test_every_gpu_by_its_name_alone(name, compute, memory_gib):
    for driver, torch in product(("470.256.02", "550.54.14", "580.95.05", "610.43.02"), ("auto", "2.8.0")):
        by_name = resolve(Host(driver, (Gpu(0, name),), torch=torch), CATALOGUE)
        by_capability = resolve(Host(driver, (Gpu(0, name, compute, memory_gib << 10),), torch=torch), CATALOGUE)
        assert by_name == by_capability


# The grid on which other selectors were measured: 11 GPUs, 7 driver branches, the pairs that the vendor ships.

GRID_GPUS = {  # capability, first and last driver branch that knows the GPU
    "NVIDIA GeForce GTX 980": ("5.2", 418, 580),
    "Tesla P100-PCIE-16GB": ("6.0", 418, 580),
    "NVIDIA GeForce GTX 1080": ("6.1", 418, 580),
    "Tesla V100-SXM2-16GB": ("7.0", 418, 580),
    "Tesla T4": ("7.5", 418, 999),
    "NVIDIA A100-SXM4-80GB": ("8.0", 450, 999),
    "NVIDIA GeForce RTX 3090": ("8.6", 455, 999),
    "NVIDIA GeForce RTX 4090": ("8.9", 525, 999),
    "NVIDIA H100 80GB HBM3": ("9.0", 525, 999),
    "NVIDIA B200": ("10.0", 570, 999),
    "NVIDIA GeForce RTX 5090": ("12.0", 570, 999),
}
GRID_DRIVERS = ("470.256.02", "525.147.05", "535.183.01", "550.163.01", "570.211.01", "580.126.09", "610.43.02")
GRID = [
    (name, compute, driver)
    for name, (compute, first, last) in GRID_GPUS.items()
    for driver in GRID_DRIVERS
    if first <= numbers(driver)[0] <= last
]


@pytest.mark.parametrize(("torch", "works"), [("auto", 63), ("2.8.0", 56), ("2.11.0", 56)])
def test_the_grid_of_the_other_selectors(torch, works):
    assert len(GRID) == 63
    right = wrong = false_alarms = older = 0
    for name, compute, driver in GRID:
        device = numbers(compute)
        fitting = [  # the rules of that comparison: a floor for each CUDA major; the same major, or PTX from below
            wheel
            for wheel in wheels("x86_64")
            if torch in {wheel.torch, "auto"}
            if numbers(driver) >= FLOORS["linux"][wheel.cuda[0]]
            if any(sm[0] == device[0] and sm <= device for sm in wheel.sass) or any(p <= device for p in wheel.ptx)
        ]
        answer = resolve(Host(driver, (Gpu(0, name, compute),), torch=torch), CATALOGUE)
        if answer.build:
            works_here = (answer.torch, answer.build) in {(wheel.torch, wheel.name) for wheel in fitting}
            right += works_here
            wrong += not works_here
            older += works_here and answer.torch != fitting[0].torch
        else:
            false_alarms += bool(fitting)
    assert (right, wrong, false_alarms, older) == (works, 0, 0, 0)


# Laws

capabilities = st.sampled_from([*KNOWN, *JETSON, (3, 0), (8, 8), (12, 4), (13, 0)])
gpu_sets = st.lists(capabilities, min_size=1, max_size=4)
some_driver = st.builds("{}.{}".format, st.integers(418, 615), st.integers(0, 250)) | st.sampled_from(
    [*EDGES["linux"], *EDGES["wsl2"]]
)
places = st.tuples(st.sampled_from(SYSTEMS), st.sampled_from(MACHINES))


def host(computes, driver, place, torch="auto"):
    gpus = [Gpu(number, "a GPU", "{}.{}".format(*compute), 8_000) for number, compute in enumerate(computes)]
    return Host(driver, tuple(gpus), *place, torch)


@settings(max_examples=200, deadline=None)
@given(gpu_sets, capabilities, some_driver, places, st.sampled_from(["auto", *RELEASES]))
def test_another_gpu_never_makes_a_set_runnable(computes, added, driver, place, torch):
    before, after = host(computes, driver, place, torch), host([*computes, added], driver, place, torch)
    assert runnable(after, CATALOGUE) & ~runnable(before, CATALOGUE) == 0
    if resolve(after, CATALOGUE).status == "ok":
        assert resolve(before, CATALOGUE).status == "ok"


def knows(driver, compute):
    branch = CATALOGUE.branch(compute)
    return branch is None or driver_version(driver)[0] < branch.gone_from


@settings(max_examples=200, deadline=None)
@given(gpu_sets, some_driver, some_driver, places, st.sampled_from(["auto", *RELEASES]))
def test_a_newer_driver_never_loses_a_build(computes, one, other, place, torch):
    """Of GPUs that the newer driver still knows: branches from 590 on dropped Maxwell, Pascal and Volta."""
    older, newer = sorted((one, other), key=driver_version)
    before, after = host(computes, older, place, torch), host(computes, newer, place, torch)
    if all(knows(newer, compute) for compute in computes):
        assert runnable(before, CATALOGUE) & ~runnable(after, CATALOGUE) == 0
        was, became = resolve(before, CATALOGUE), resolve(after, CATALOGUE)
        rank = ["impossible", "partial", "ok"].index
        assert rank(became.status) >= rank(was.status)
        if torch == "auto" and was.status == "ok" and all(one in KNOWN for one in computes):
            assert RELEASES.index(became.torch) <= RELEASES.index(was.torch)
    # by floors and PTX alone, whatever the GPU: always
    system, machine = place
    old, new = driver_version(older), driver_version(newer)
    assert CATALOGUE.for_driver(machine, system, old) & ~CATALOGUE.for_driver(machine, system, new) == 0
    for compute in computes:
        lost = CATALOGUE.with_ptx(machine, system, compute, old) & ~CATALOGUE.with_ptx(machine, system, compute, new)
        assert lost == 0


@pytest.mark.parametrize("compute", [one for one in KNOWN if (5, 0) <= one < (7, 5)])
def test_the_exception_to_that_law(compute):
    assert resolve(host([compute], "580.126.09", ("linux", "x86_64")), CATALOGUE).status == "ok"
    assert resolve(host([compute], "590.48.01", ("linux", "x86_64")), CATALOGUE).status == "impossible"
