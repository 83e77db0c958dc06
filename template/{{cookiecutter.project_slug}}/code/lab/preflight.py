"""`lab preflight`: do all ranks meet, over which network, with the same code, data and packages? Before a training."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import dataset, devices, launch, limits, muster, preflight_facts
from lab.engines import Call
from lab.errors import FAILED, INTERRUPTED, LabError
from lab.gpu_list import listed
from lab.job import say
from lab.project import CODE, Project
from lab.rendezvous import STORE_LIMIT, Meeting

SIZES = (4, 1 << 20, 16 << 20, 64 << 20)  # bytes: a bare message, a bucket of DDP's, …, all of a large model
STEP = 4e6 * limits.PARAMETERS["s"]  # bytes of gradients, in 32-bit numbers, that yolov5s exchanges each step
SLOW_LINK = 0.5  # of the usual link
POOR_GPU_LINK = 1e9  # bytes a second between machines, less than 10-gigabit Ethernet carries


@dataclass(frozen=True)
class Plan:
    """What is asked for: the data set's yaml file, ranks on each node, their GPUs ("" none), seconds to wait."""

    data: str
    ranks: int
    device: str
    limit: float


def plan(project: Project, data: str, device: str, ranks: int, limit: float) -> Plan:
    """The plan that the options mean; without them every GPU of this machine is a rank, or two processes are.

    Raises LabError for a device that is not here.
    """
    if limit <= 0:
        raise LabError(f"--timeout {limit:g}: give seconds, more than 0")
    if ranks < 0:
        raise LabError(f"--ranks {ranks}: give the processes on each machine, 1 or more")
    device = devices.resolve(device)
    if device in ("", "cpu", "mps"):
        here = [] if device else preflight_gpus()
        device = ",".join(here)
    count = len(device.split(",")) if device else 0
    if ranks and count and ranks != count:
        raise LabError(f"--ranks {ranks} with --device {device}: a rank has one GPU, leave --ranks out")
    return Plan(data or project.data, count or ranks or 2, device, limit)


def preflight_gpus() -> list[str]:
    """The numbers of this container's GPUs, as `--device` names them."""
    if not devices.gpu_nodes():
        return []
    left = devices.visible()
    return [str(gpu.number) for gpu in listed()] if left is None else left


def main(project: Project, meeting: Meeting, planned: Plan) -> int:
    """Check and print; returns 0 when all is well, 1 when a node differs.

    Raises LabError when not all ranks met, and for data that was named and no node can open.
    """
    facts = preflight_facts.of_node(project, planned.data) | {"launch": f"{meeting.nodes} x {planned.ranks}"}
    named = planned.data != project.data
    if meeting.nodes == 1:
        if named:
            dataset.open_dataset(planned.data, project)
        nodes = [muster.Node(0, muster.own_name(), facts)]
        return _judge(nodes, _measure(project, meeting, planned, None), planned, True)
    say(f"waiting for {meeting.nodes} nodes at {meeting.endpoint}, {planned.limit:.0f} s at most")
    with muster.joined(meeting, facts, planned.limit) as line:
        # a node that lacks what others have is named with the other differences
        if not named or not _on_no_node(line.nodes):
            return _compared(project, planned, line)
    dataset.open_dataset(planned.data, project)
    raise LabError(f"{planned.data} was on no node")  # and has come since


def _on_no_node(nodes: Sequence[muster.Node]) -> bool:
    return all(node.facts.get("data") == preflight_facts.MISSING for node in nodes)


def _compared(project: Project, planned: Plan, line: muster.Line) -> int:
    same = len({(node.facts["torch"], node.facts["launch"]) for node in line.nodes}) == 1
    report = _measure(project, line.meeting, planned, line) if same else {}
    return _judge(line.nodes, report, planned, line.meeting.node_rank == 0)


def _measure(project: Project, meeting: Meeting, planned: Plan, line: muster.Line | None) -> dict[str, Any]:
    """What the ranks found; {} on every node but node 0. Raises LabError when they did not all come through."""
    if meeting.nodes * planned.ranks == 1:
        return {}
    with tempfile.TemporaryDirectory(prefix="lab-preflight-") as scratch:
        report = Path(scratch) / "report.json"
        payload = {
            "task": "preflight",
            "measured": str(report),
            "limit": planned.limit,
            "sizes": SIZES if planned.device else SIZES[:3],
            "gpus": planned.device,
        }
        call = Call(CODE / "lab" / "preflight_ranks.py", payload, planned.ranks, meeting)
        with (Path(scratch) / "log").open("w+", encoding="utf-8") as log:
            try:
                launch.run_here(call, project, None, planned.device, log, line, STORE_LIMIT + 2 * planned.limit)
            except LabError as error:
                if error.status != INTERRUPTED:
                    log.seek(0)
                    raise LabError(_reason(log.read()) or error.sentence, FAILED) from error
                raise
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
            return found
    return {}


def _reason(log: str) -> str:
    """The exception that a rank died of, out of everything that torchrun and the ranks printed."""
    said = [line.split("]: ", 1)[-1].strip() for line in log.splitlines()]
    errors = [line for line in said if ("Error: " in line or "error: " in line)]
    return f"the ranks did not come through: {errors[0][:300]}" if errors else ""


def _judge(nodes: Sequence[muster.Node], report: dict[str, Any], planned: Plan, speaking: bool) -> int:
    """Say it all on node 0, and on every node what is wrong."""
    wrong, remarks = preflight_facts.differences(nodes)
    wrong += preflight_facts.skewed(nodes)
    if speaking:
        _print_nodes(nodes)
        if report:
            _print_network(nodes, report)
        elif len(nodes) == 1:
            say("one rank has no other to meet; `lab doctor` checks its GPU")
        else:
            say("the network was not measured, because ranks of different kinds cannot meet")
        remarks += list(advice(nodes, report))
    if _on_no_node(nodes):
        remarks.append(f"data: {planned.data} is on no node, so it was not compared")
    for sentence in remarks:
        say(sentence)
    for sentence in wrong:
        say(f"WRONG {sentence}")
    ranks = len(nodes) * planned.ranks
    if wrong:
        odd = "1 thing differs" if len(wrong) == 1 else f"{len(wrong)} things differ"
        say(f"{odd} between the nodes; a training would fail or mislead")
        return FAILED
    say(f"{ranks} rank{'s' if ranks > 1 else ''} on {len(nodes)} node{'s' if len(nodes) > 1 else ''} may start")
    return 0


def _print_nodes(nodes: Sequence[muster.Node]) -> None:
    """One column a node up to six, the facts that all share once."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("node", "name", "clock ms", "trip ms"):
        table.add_column(column, justify="left" if column == "name" else "right")
    differing = [
        fact
        for fact in preflight_facts.FACTS
        if len({str(node.facts.get(fact.key)) for node in nodes}) > 1 and nodes[0].facts.get(fact.key) is not None
    ]
    for fact in differing:
        table.add_column(fact.words)
    for node in nodes:
        row = [str(node.rank), node.name, f"{1e3 * node.clock_s:+.2f}", f"{1e3 * node.trip_s:.2f}"]
        table.add_row(*row, *(str(node.facts.get(fact.key, "")) for fact in differing))
    console = Console(soft_wrap=True)
    shared = [fact for fact in preflight_facts.FACTS if fact not in differing and nodes[0].facts.get(fact.key)]
    for fact in shared:
        console.print(f"{fact.words:<20} {nodes[0].facts[fact.key]}", highlight=False, markup=False)
    if len(nodes) > 1:
        console.print()
        console.print(table)


def _print_network(nodes: Sequence[muster.Node], report: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console, world = Console(soft_wrap=True), len(report["ranks"])
    if world > 1:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (f"all-reduce, {world} ranks, {report['backend']}", "time", "bandwidth of each rank"):
            table.add_column(column, justify="right")
        for one in report["all_reduce"]:
            bus = one["bytes"] / one["seconds"] * 2 * (world - 1) / world  # what each link carries, as nccl-tests count
            table.add_row(_size(one["bytes"]), _time(one["seconds"]), f"{_size(bus)}/s")
        console.print()
        console.print(table)
    if report["links"]:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("link", "bandwidth", "latency"):
            table.add_column(column, justify="left" if column == "link" else "right")
        links = sorted(report["links"], key=lambda link: link["bytes_per_second"])
        for link in links[:12]:
            bandwidth, latency = f"{_size(link['bytes_per_second'])}/s", _time(link["latency"])
            table.add_row(_named(link, nodes, report), bandwidth, latency)
        console.print()
        console.print(table)
        if len(links) > 12:
            console.print(f"… and {len(links) - 12} faster links", highlight=False)
    console.print()


def advice(nodes: Sequence[muster.Node], report: dict[str, Any]) -> Iterator[str]:
    """What the measured network means for a training, and which link is slower than its like."""
    if not report or len(report["ranks"]) < 2:
        return
    middle = min(report["all_reduce"], key=lambda one: abs(one["bytes"] - STEP))
    step = middle["seconds"] * STEP / middle["bytes"]
    yield f"yolov5s exchanges {_size(STEP)} of gradients a step, {_time(step)} over this network"
    links = report["links"]
    if len(links) > 2:
        # by each node's best link: of three nodes a slow one spoils two links of three
        usual = statistics.median(
            max(link["bytes_per_second"] for link in links if end in (link["a"], link["b"]))
            for end in _ends(nodes, report)
        )
        slow = [link for link in links if link["bytes_per_second"] < SLOW_LINK * usual]
        for end, name in _ends(nodes, report).items():
            ours = [link for link in links if end in (link["a"], link["b"])]
            if slow and all(link in slow for link in ours):
                yield (
                    f"network: every link of {name} is slower than half of the usual {_size(usual)}/s: look at its "
                    "cable, its port and its interface"
                )
                slow = [link for link in slow if link not in ours]
        for link in slow:
            speed = _size(link["bytes_per_second"])
            yield f"network: {_named(link, nodes, report)} carries {speed}/s, the usual link {_size(usual)}/s"
    slowest = min((link["bytes_per_second"] for link in links), default=0.0)
    if report["backend"] == "nccl" and len(nodes) > 1 and slowest < POOR_GPU_LINK:
        yield (
            f"network: {_size(slowest)}/s between machines is poor for GPUs. NCCL_DEBUG=INFO tells the interface that "
            "NCCL took: NCCL_SOCKET_IFNAME names a better one; with InfiniBand, containers need /dev/infiniband "
            "and unlimited locked memory (--ulimit memlock=-1), and NCCL_IB_HCA names the adapter"
        )


def _ends(nodes: Sequence[muster.Node], report: dict[str, Any]) -> dict[int, str]:
    """The ranks that stand for a link's ends, in words: a node, or on one node a rank."""
    found: dict[int, str] = {}
    for link in report["links"]:
        for end in (int(link["a"]), int(link["b"])):
            found[end] = str(nodes[report["ranks"][end]["node"]]) if len(nodes) > 1 else f"rank {end}"
    return found


def _named(link: dict[str, Any], nodes: Sequence[muster.Node], report: dict[str, Any]) -> str:
    ends = _ends(nodes, report)
    return f"{ends[int(link['a'])]} - {ends[int(link['b'])]}"


def _size(count: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.3g} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.0f} µs"
    )
