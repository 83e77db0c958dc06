"""The roll call with real sockets on this machine, one thread a node; what differs, in words; slow links."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lab import muster, preflight, preflight_facts, preflight_ranks
from lab.errors import INTERRUPTED, LabError
from lab.muster import Line, Node
from lab.project import CODE, Project
from lab.rendezvous import Meeting


@pytest.fixture
def port() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.create_server(("", 0)) as one:
            number = int(one.getsockname()[1])
            with contextlib.suppress(OSError), socket.create_server(("", number + 1)):
                return number


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muster, "BEAT", 0.1)
    monkeypatch.setattr(muster, "SILENCE", 1.5)
    monkeypatch.setattr(muster, "SETTLE", 0.3)


def launch(port: int, ranks: list[int | None], work: Callable[[Line], Any], limit: float = 20) -> list[Any]:
    """`work` on a node for each of `ranks`, at the same time; what it returned, or the LabError that ended it."""
    results: list[Any] = [None] * len(ranks)

    def node(index: int, rank: int | None) -> None:
        try:
            with muster.joined(Meeting(len(ranks), "127.0.0.1", port, rank), {"index": index}, limit) as line:
                results[index] = work(line)
        except LabError as error:
            results[index] = error

    threads = [threading.Thread(target=node, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def test_all_nodes_learn_the_same_of_all(port: int) -> None:
    tables = launch(port, [0, 2, 1], lambda line: (line.meeting.node_rank, line.nodes))
    assert [rank for rank, _ in tables] == [0, 2, 1]
    assert [node.facts["index"] for node in tables[0][1]] == [0, 2, 1]
    assert all(nodes == tables[0][1] for _, nodes in tables)
    assert all(abs(node.clock_s) < 0.5 for node in tables[0][1])


def test_nodes_without_a_number_get_the_free_ones(port: int) -> None:
    found = launch(port, [None, 0, 2, None], lambda line: line.meeting.node_rank)
    assert sorted(found) == [0, 1, 2, 3]
    assert (found[1], found[2]) == (0, 2)


def test_a_node_that_does_not_come_is_named(port: int) -> None:
    names = ("a", "b", "c")
    errors: list[LabError] = []

    def node(rank: int) -> None:
        with pytest.raises(LabError) as caught:
            muster.join(Meeting(3, "127.0.0.1", port, rank, names), {}, 1.5)
        errors.append(caught.value)

    threads = [threading.Thread(target=node, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [error.status for error in errors] == [1, 1]
    assert all("node 1 (b) of 3 did not arrive within" in error.sentence for error in errors)


def test_nobody_at_the_meeting_place(port: int) -> None:
    with pytest.raises(LabError, match=f"node 0 did not answer at 127.0.0.1:{port + 1} within 1 s"):
        muster.join(Meeting(2, "127.0.0.1", port, 1), {}, 1)


def test_a_port_that_is_taken(port: int) -> None:
    with socket.create_server(("", port + 1)), pytest.raises(LabError, match="another run may use it"):
        muster.join(Meeting(2, "127.0.0.1", port, 0), {}, 1)


def test_a_stranger_at_the_door_does_no_harm(port: int) -> None:
    def stranger() -> None:
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port + 1), 1) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            time.sleep(0.02)

    calling = threading.Thread(target=stranger)
    calling.start()
    assert launch(port, [0, 1], lambda line: len(line.nodes)) == [2, 2]
    calling.join()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_failure_ends_all_with_the_same_sentence(port: int, failing: int) -> None:
    def work(line: Line) -> None:
        stopped = threading.Event()
        line.on_failure(stopped.set)
        if line.meeting.node_rank == failing:
            time.sleep(0.1)
            raise LabError("the GPU's memory does not suffice", 1)
        # a rank whose partner has gone notices in its own way, even earlier
        raise LabError("train stopped: Connection closed by peer [10.0.0.2]:1234", 1)

    errors = launch(port, [0, 1, 2], work)
    assert {error.sentence for error in errors} == {
        f"node {failing} ({muster.own_name()}): the GPU's memory does not suffice"
    }


def test_a_failure_stops_those_who_wait(port: int) -> None:
    def work(line: Line) -> None:
        if line.meeting.node_rank == 1:
            raise LabError("stopped", INTERRUPTED)
        stopped = threading.Event()
        line.on_failure(stopped.set)
        assert stopped.wait(10)
        raise LabError("died of signal SIGTERM", 1)

    first, second = launch(port, [0, 1], work)
    assert (first.status, second.status) == (INTERRUPTED, INTERRUPTED)
    assert first.sentence.startswith("node 1 (")
    assert second.sentence == "stopped"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_vanishes_is_noticed(port: int, lost: int) -> None:
    def work(line: Line) -> None:
        if line.meeting.node_rank == lost:
            for wire in [line.wire, *(line.hub.wires.values() if line.hub else [])]:
                wire.close()
            raise LabError("gone", 1)
        stopped = threading.Event()
        line.on_failure(stopped.set)
        assert stopped.wait(10)
        raise LabError("died of signal SIGTERM", 1)

    error = launch(port, [0, 1], work)[1 - lost]
    assert error.sentence.startswith(f"node {lost} ({muster.own_name()})")


def test_a_clock_is_compared(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        ours = socket.create_connection(("127.0.0.1", port))
        there = muster._Wire(server.accept()[0])

    def other() -> None:
        while (there.receive(5) or {}).get("ping"):
            there.send(pong=time.time() + 90)

    answering = threading.Thread(target=other)
    answering.start()
    here = muster._Wire(ours)
    clock, trip = muster._compare_clocks(here)
    here.close()
    answering.join()
    assert clock == pytest.approx(90, abs=0.5)
    assert 0 < trip < 0.5


# --- what differs -----------------------------------------------------------------------------------------------------


def nodes(*facts: dict[str, Any], clocks: tuple[float, ...] = ()) -> list[Node]:
    clocks = clocks or (0.0,) * len(facts)
    return [Node(rank, "abcdef"[rank], one, clocks[rank], 0.001) for rank, one in enumerate(facts)]


def test_the_majority_is_right() -> None:
    wrong, remarks = preflight_facts.differences(nodes({"torch": "2.7"}, {"torch": "2.8"}, {"torch": "2.8"}))
    assert wrong == ["torch: node 0 (a) has 2.7, the other 2 have 2.8: use the same image on every node"]
    assert remarks == []


def test_of_two_nodes_the_first_is_right() -> None:
    wrong, _ = preflight_facts.differences(nodes({"data": "1f"}, {"data": preflight_facts.MISSING}))
    assert wrong == [
        "data: node 1 (b) has missing, node 0 (a) has 1f: copy the same data there, or mount the same disk"
    ]


def test_each_difference_is_a_sentence_and_hardware_only_a_remark() -> None:
    one = {"code": "aa", "commit": "c1", "torch": "2.8", "gpus": "4 x A100", "driver": "570"}
    other = {"code": "bb", "commit": "c2+", "torch": "2.8", "gpus": "4 x V100", "driver": "570"}
    wrong, remarks = preflight_facts.differences(nodes(one, one, other))
    assert wrong == [
        "code/: node 2 (c) has bb (commit c2+), the other 2 have aa (commit c1): bring every node to the same commit, "
        "or mount the same project"
    ]
    assert remarks == ["GPUs: node 2 (c) has 4 x V100, the other 2 have 4 x A100: the slowest one sets the pace of all"]
    assert preflight_facts.differences(nodes(one, one)) == ([], [])
    with pytest.raises(LabError, match="node 2"):
        preflight_facts.require_equal(nodes(one, one, other))


def test_a_clock_that_is_off() -> None:
    assert preflight_facts.skewed(nodes({}, {}, {}, clocks=(0.0, 0.3, -0.4))) == []
    assert preflight_facts.skewed(nodes({}, {}, {}, clocks=(0.0, 90.0, 0.1))) == [
        "clock: node 1 (b) is 89.9 s ahead of the others: start chrony or timesyncd there"
    ]
    (first,) = preflight_facts.skewed(nodes({}, {}, {}, clocks=(0.0, 60.0, 60.1)))  # node 0 itself is wrong
    assert first.startswith("clock: node 0 (a) is 60.0 s behind")


def test_options_that_may_differ_are_not_compared() -> None:
    words = "--data /a/d.yaml --epochs 3 --device 0,1 --workers 4 --batch-size 8 --project /r --exist-ok --cache ram"
    assert preflight_facts._common(words.split()) == "--epochs 3 --batch-size 8 --cache ram"


def test_data_that_no_node_has_is_refused_by_each(project: Project, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_measure", lambda *_: {})  # torch
    ends: dict[tuple[str, int], Any] = {}

    def node(data: str, rank: int) -> None:
        planned = preflight.plan(project, data, "cpu", 1, 20)
        try:
            ends[data, rank] = preflight.main(project, Meeting(2, "127.0.0.1", port, rank), planned)
        except LabError as error:
            ends[data, rank] = error.status, error.sentence

    for data in ("nope.yaml", ""):
        threads = [threading.Thread(target=node, args=(data, rank)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert ends["", 0] == ends["", 1] == 0  # nobody named any, and there is none yet
    for rank in range(2):
        status, sentence = ends["nope.yaml", rank]
        assert status == 2
        assert "nope.yaml does not exist" in sentence


@pytest.mark.container
def test_ranks_leave_nothing_in_tmp(project: Project, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "lab", "preflight", "--device", "cpu", "--ranks", "2"],
        env={**os.environ, "PYTHONPATH": str(CODE), "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 1 node may start" in done.stderr
    assert list(scratch.iterdir()) == []


def test_facts_of_this_machine(project: Project) -> None:
    facts = preflight_facts.of_node(project, "data/none.yaml")
    assert facts["engine"] in (preflight_facts.MISSING, "5081342f")
    assert facts["code"] == preflight_facts.code()
    assert len(preflight_facts._sources()) > 20
    assert all(file.is_relative_to(CODE) for file in preflight_facts._sources())


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_every_pair_plays_once_and_no_one_twice_at_a_time(count: int) -> None:
    played = list(preflight_ranks.rounds(list(range(count))))
    assert sorted(pair for pairs in played for pair in pairs) == list(combinations(range(count), 2))
    for pairs in played:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
    assert len(played) == count - 1 + count % 2


def report(links: dict[tuple[int, int], float], backend: str = "gloo") -> dict[str, Any]:
    world = 1 + max(end for link in links for end in link)
    return {
        "backend": backend,
        "ranks": [{"rank": rank, "node": rank} for rank in range(world)],
        "all_reduce": [{"bytes": 16 << 20, "seconds": 0.01}],
        "links": [{"a": a, "b": b, "bytes_per_second": speed, "latency": 1e-4} for (a, b), speed in links.items()],
    }


def test_leaders_stand_for_their_nodes() -> None:
    assert preflight_ranks.leaders([{"rank": rank, "node": rank // 2} for rank in range(4)]) == [0, 2]
    assert preflight_ranks.leaders([{"rank": rank, "node": 0} for rank in range(3)]) == [0, 1, 2]


def test_a_slow_node_and_a_slow_link_are_named() -> None:
    four = nodes({}, {}, {}, {})
    fast = dict.fromkeys(combinations(range(4), 2), 10e9)
    first, *more = preflight.advice(four, report(fast))
    assert first == "yolov5s exchanges 28.8 MB of gradients a step, 17.2 ms over this network"
    assert more == []
    slow = {pair: 1e9 if 3 in pair else speed for pair, speed in fast.items()}
    assert "every link of node 3 (d) is slower" in list(preflight.advice(four, report(slow)))[1]
    three = {(0, 1): 481e6, (0, 2): 19e6, (1, 2): 18e6}
    assert (
        "every link of node 2 (c) is slower than half of the usual 481 MB/s"
        in list(preflight.advice(four[:3], report(three)))[1]
    )
    _, link = preflight.advice(four, report({**fast, (1, 2): 2e9}))
    assert link == "network: node 1 (b) - node 2 (c) carries 2 GB/s, the usual link 10 GB/s"


def test_a_poor_network_between_gpus_brings_advice() -> None:
    (_, words) = preflight.advice(nodes({}, {}), report({(0, 1): 0.1e9}, "nccl"))
    assert "NCCL_SOCKET_IFNAME" in words
    assert "InfiniBand" in words
    assert len(list(preflight.advice(nodes({}, {}), report({(0, 1): 9e9}, "nccl")))) == 1


def test_the_reason_is_found_in_what_the_ranks_printed() -> None:
    log = "[rank0]: Traceback\n[rank0]:   x\n[rank0]: RuntimeError: torch sees no GPU number 1\nTraceback"
    assert preflight._reason(log) == "the ranks did not come through: RuntimeError: torch sees no GPU number 1"
    assert preflight._reason("all well") == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [(("", -1, 60.0), "--ranks -1"), (("", 2, 0.0), "--timeout 0"), (("7", 0, 60.0), "no such GPU")],
)
def test_a_plan_that_cannot_be(project: Project, words: tuple[str, int, float], part: str) -> None:
    with pytest.raises(LabError, match=part):
        preflight.plan(project, "", *words)
    assert preflight.plan(project, "", "cpu", 3, 60).ranks == 3
