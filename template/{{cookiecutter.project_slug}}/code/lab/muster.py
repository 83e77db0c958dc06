"""The roll call of a launch on several machines, and the lifeline between them, on the port after torchrun's.

torchrun alone waits ten minutes for a machine that does not come and cannot name it, compares nothing, and where one
machine dies the ranks of the others wait in a collective as long as the engine allows: three hours. So the `lab` of
every node talks to that of node 0: all meet and tell their facts, then each hears when another fails or falls silent.

Lines of JSON over TCP. Like torchrun's own store it trusts the network between the machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lab import causes
from lab.errors import FAILED, INTERRUPTED, LabError
from lab.rendezvous import Meeting

BEAT = 2.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one, after which a node counts as lost
SETTLE = 1.5  # seconds in which other nodes' failures are awaited, to tell the cause from its consequences
PINGS = 15
LONGEST = 1 << 20  # bytes of a line
Message = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A node that is here. `clock_s`: how far its clock is ahead of node 0's; `trip_s`: a message there and back."""

    rank: int
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    clock_s: float = 0.0
    trip_s: float = 0.0

    def __str__(self) -> str:
        return f"node {self.rank} ({self.name})"


def own_name() -> str:
    """What this machine is called: LAB_HOSTNAME, else its host name, which in a container is the container's."""
    return os.environ.get("LAB_HOSTNAME") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class _Wire:
    """A connection that carries messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rest = b""
        self.lock = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> bool:
        """Whether it went out."""
        with self.lock:
            try:
                self.connection.settimeout(SILENCE)
                self.connection.sendall(json.dumps(message).encode() + b"\n")
            except (OSError, ValueError):
                return False
        return True

    def receive(self, limit: float) -> Message | None:
        """The next message, None when the other side has gone. Raises TimeoutError after `limit` seconds of silence."""
        until = time.monotonic() + limit
        while b"\n" not in self.rest:
            try:
                # not settimeout, which the sending thread sets too
                if not select.select([self.connection], [], [], max(0.0, until - time.monotonic()))[0]:
                    raise TimeoutError
                part = self.connection.recv(65536)
            except TimeoutError:
                raise
            except (OSError, ValueError):
                return None
            if not part or len(self.rest) > LONGEST:
                return None
            self.rest += part
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def gone(self) -> bool:
        """Whether the other side has closed the connection."""
        try:
            return bool(select.select([self.connection], [], [], 0)[0]) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class _Hub:
    """Node 0's side: gathers the nodes, measures their clocks, and passes word of failures on."""

    def __init__(self, meeting: Meeting, limit: float) -> None:
        self.meeting, self.limit = meeting, limit
        self.wires: dict[int, _Wire] = {}
        self.nodes: dict[int, Node] = {}
        self.ended: set[int] = set()
        self.failures: list[Message] = []
        self.verdict_due = threading.Event()
        self.lock = threading.Lock()
        try:
            self.server = _listen(meeting.port + 1)
        except OSError as error:
            raise LabError(
                f"port {meeting.port + 1} of this machine cannot be opened ({error.strerror}): another run may use it; "
                f"give another port with --rdzv {meeting.host}:PORT (it and the next one are used)"
            ) from error
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self.server.close()
        for wire in self.wires.values():
            wire.close()

    def _run(self) -> None:
        arrived = self._call_the_roll()
        self.server.close()
        if not arrived:
            return
        for rank, wire in self.wires.items():
            clock, trip = _compare_clocks(wire)
            self.nodes[rank] = replace(self.nodes[rank], clock_s=clock, trip_s=trip)
        everyone = [asdict(self.nodes[rank]) for rank in sorted(self.nodes)]
        for rank, wire in self.wires.items():
            wire.send(nodes=everyone, rank=rank)
        for rank in self.wires:
            threading.Thread(target=self._listen_to, args=(rank,), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()
        while len(self.ended) < len(self.wires):
            self._tell(alive=1)
            time.sleep(BEAT)

    def _call_the_roll(self) -> bool:
        until = time.monotonic() + self.limit
        waiting: list[_Wire] = []  # nodes that have no number yet
        while len(self.wires) + len(waiting) < self.meeting.nodes:
            self.server.settimeout(max(0.01, until - time.monotonic()))
            try:
                wire = _Wire(self.server.accept()[0])
                hello = (wire.receive(5.0) or {}).get("hello")
            except TimeoutError:
                if time.monotonic() < until:
                    continue
                self._refuse(waiting, self._missing(len(waiting)))
                return False
            except OSError:  # closed under us: this command has ended
                return False
            if not isinstance(hello, dict):  # somebody else's connection
                wire.close()
                continue
            rank = hello.get("rank")
            node = Node(-1 if rank is None else int(rank), str(hello.get("name")), hello.get("facts") or {})
            if node.rank < 0:
                waiting.append(wire)
                self.nodes[-len(waiting)] = node
                continue
            if node.rank in self.wires and not self.wires[node.rank].gone():
                wire.send(refused=f"{self.nodes[node.rank]} is here already: give this one another --node-rank")
                wire.close()
                continue
            self.wires[node.rank], self.nodes[node.rank] = wire, node
        free = [rank for rank in range(self.meeting.nodes) if rank not in self.wires]
        for number, (rank, wire) in enumerate(zip(free, waiting, strict=True), 1):
            self.wires[rank], self.nodes[rank] = wire, replace(self.nodes.pop(-number), rank=rank)
        return True

    def _missing(self, unnumbered: int) -> str:
        arrived = sorted(self.nodes.values(), key=lambda node: (node.rank < 0, node.rank, node.name))
        here = [str(node) if node.rank >= 0 else node.name for node in arrived]
        gone = [rank for rank in range(self.meeting.nodes) if rank not in self.wires]
        count = len(gone) - unnumbered
        if unnumbered:
            who = f"{count} of {self.meeting.nodes} nodes"
        else:
            named = [f"{rank} ({self.meeting.names[rank]})" if self.meeting.names else str(rank) for rank in gone]
            who = f"node{'s' if count > 1 else ''} {', '.join(named)} of {self.meeting.nodes}"
        return (
            f"{who} did not arrive within {self.limit:.0f} s; here {'are' if len(here) > 1 else 'is'} "
            f"{', '.join(here)}: start the same command there with --rdzv {self.meeting.endpoint}, and let it through "
            f"to ports {self.meeting.port} and {self.meeting.port + 1}"
        )

    def _refuse(self, waiting: list[_Wire], sentence: str) -> None:
        for wire in (*self._own_last(), *waiting):
            wire.send(refused=sentence)

    def _own_last(self) -> list[_Wire]:
        """Whoever hears the bad news on node 0 ends this process, and with it the news."""
        return [self.wires[rank] for rank in sorted(self.wires, reverse=True)]

    def _listen_to(self, rank: int) -> None:
        wire, node = self.wires[rank], self.nodes[rank]
        while True:
            try:
                message = wire.receive(SILENCE)
            except TimeoutError:
                self._note(rank, f"{node} has been silent for {SILENCE:.0f} s: it is down or its network is", FAILED)
                return
            if message is None:
                if rank not in self.ended:
                    self._note(rank, f"{node} has gone: its `lab` was killed, or the machine went down", FAILED)
                return
            if "failed" in message:
                self._note(rank, f"{node}: {message['failed']}", int(message["status"]))
            if "done" in message:
                self.ended.add(rank)

    def _note(self, rank: int, sentence: str, status: int) -> None:
        with self.lock:
            self.failures.append({"failed": sentence, "status": status, "rank": rank})
            self.ended.add(rank)
        self.verdict_due.set()

    def _judge(self) -> None:
        """One failure makes the others fail. The first that does not merely speak of a lost partner is the cause."""
        self.verdict_due.wait()
        time.sleep(SETTLE)
        with self.lock:
            roots = [one for one in self.failures if not causes.lost_peer(one["failed"])]
            verdict = (roots or self.failures)[0]
        self._tell(**verdict)

    def _tell(self, **message: Any) -> None:
        for rank in sorted(self.wires, reverse=True):  # node 0 last, see _own_last
            if not self.wires[rank].send(**message) and rank not in self.ended:
                self._note(rank, f"{self.nodes[rank]} has gone: its `lab` was killed, or the machine went down", FAILED)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=512)


def _compare_clocks(wire: _Wire) -> tuple[float, float]:
    """How far the other clock is ahead, and the quickest trip there and back, both in seconds (as NTP does it)."""
    found: list[tuple[float, float]] = []
    for _ in range(PINGS):
        sent = time.time()
        wire.send(ping=1)
        try:
            answer = wire.receive(SILENCE)
        except TimeoutError:
            break
        came = time.time()
        if answer is None or "pong" not in answer:
            break
        found.append((came - sent, answer["pong"] - (sent + came) / 2))
    if not found:
        return 0.0, 0.0
    best = sorted(found)[: max(1, len(found) // 3)]
    return statistics.median(clock for _, clock in best), best[0][0]


class Line:
    """This node's end of the lifeline, once everyone is there."""

    def __init__(self, wire: _Wire, hub: _Hub | None, nodes: list[Node], meeting: Meeting) -> None:
        self.wire, self.hub, self.nodes, self.meeting = wire, hub, nodes, meeting
        self.failure: LabError | None = None  # what has ended the launch, in words
        self._told, self._over = threading.Event(), threading.Event()
        self._stop: Callable[[], None] = lambda: None
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._hear, daemon=True).start()

    @property
    def address(self) -> str:
        """This node's own address on the way to the others."""
        wire = self.hub.wires[len(self.nodes) - 1] if self.hub else self.wire
        return str(wire.connection.getsockname()[0]).removeprefix("::ffff:")

    def on_failure(self, stop: Callable[[], None]) -> None:
        """Call `stop`, from another thread, as soon as another node fails; at once, if one has."""
        self._stop = stop
        if self.failure:
            stop()

    def fail(self, sentence: str, status: int = FAILED) -> LabError:
        """Tell the others that this node has failed; returns what ended the launch, which may be another's failure."""
        if self.failure is None:
            self.wire.send(failed=sentence, status=status)
            self._told.wait(SETTLE + 3)
        return self.failure or LabError(sentence, status)

    def close(self) -> None:
        """Leave: a node that is done is no longer waited for. Node 0 stays until the others are done, or a while."""
        self._over.set()
        self.wire.send(done=1)
        if self.hub is not None:
            until = time.monotonic() + SILENCE
            while len(self.hub.ended) < len(self.hub.wires) and time.monotonic() < until:
                time.sleep(0.05)
            self.hub.close()
        self.wire.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.wire.send(alive=1)

    def _hear(self) -> None:
        while not self._over.is_set():
            try:
                message = self.wire.receive(SILENCE)
            except TimeoutError:
                message = None
            if self._over.is_set():
                return
            if message is None:
                self._fail_by(f"{self.nodes[0]} no longer answers: its `lab` was killed, or it or the network is down")
                return
            if "failed" in message:
                self._fail_by(message["failed"], message["status"])
                return

    def _fail_by(self, sentence: str, status: int = FAILED) -> None:
        self.failure = LabError(sentence, status)  # the same status on all nodes, so that all act alike on it
        self._told.set()
        self._stop()


def join(meeting: Meeting, facts: dict[str, Any], limit: float) -> Line:
    """Meet the other nodes; returns when all have come. Raises LabError that names who did not, after `limit` s."""
    hub = _Hub(meeting, limit) if meeting.node_rank == 0 else None
    try:
        return _join(meeting, facts, limit, hub)
    except BaseException:
        if hub is not None:
            hub.close()
        raise


def _join(meeting: Meeting, facts: dict[str, Any], limit: float, hub: _Hub | None) -> Line:
    until = time.monotonic() + limit
    wire = _connect(meeting, until, limit)
    wire.send(hello={"rank": meeting.node_rank, "name": own_name(), "facts": facts})
    while True:
        try:
            message = wire.receive(max(1.0, until - time.monotonic()) + SILENCE)
        except TimeoutError:
            message = None
        if message is None:
            raise LabError(f"node 0 at {meeting.endpoint} left before all nodes had come: see what it says", FAILED)
        if "refused" in message:
            raise LabError(message["refused"], FAILED)
        if "ping" in message:
            wire.send(pong=time.time())
        if "nodes" in message:
            nodes = [Node(**node) for node in message["nodes"]]
            return Line(wire, hub, nodes, replace(meeting, node_rank=message["rank"]))


def _connect(meeting: Meeting, until: float, limit: float) -> _Wire:
    # its own listener is asked by the loopback: the address that others use may be a router's
    host = "localhost" if meeting.node_rank == 0 else meeting.host
    while True:
        try:
            return _Wire(socket.create_connection((host, meeting.port + 1), timeout=5))
        except OSError as error:
            if time.monotonic() > until:
                place = Meeting(2, meeting.host, meeting.port + 1).endpoint
                raise LabError(
                    f"node 0 did not answer at {place} within {limit:.0f} s ({error.strerror or error}): start it, "
                    f"and let the others through to its ports {meeting.port} and {meeting.port + 1}",
                    FAILED,
                ) from error
        time.sleep(0.3)


@contextmanager
def joined(meeting: Meeting, facts: dict[str, Any], limit: float) -> Iterator[Line]:
    """Meet, and keep the lifeline while the work is done; an error in here is told to all, and theirs raised here."""
    line = join(meeting, facts, limit)
    try:
        try:
            yield line
        except LabError as error:
            ended = line.fail(error.sentence, error.status)
            if error.status == INTERRUPTED:
                raise
            raise ended from error
        except BaseException as error:
            line.fail(f"it ended: {type(error).__name__}")
            raise
    finally:
        line.close()
