"""Where the machines of a launch meet: `--nodes`, `--rdzv` and `--node-rank`, and what a cluster says of them.

A node is one machine, or one container, of a launch; a rank is one process of the training, on one GPU.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError

PORT = 29500  # torchrun's own; the roll call (lab/muster.py) takes the next one
OPTIONS = ("nodes", "rdzv", "node_rank")
PLACE = ("project", "name", "exist_ok")  # options that say where a run is
STORE_LIMIT = 120  # seconds in which torchrun's store must answer, once all nodes are known to be there
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Meeting:
    """How many nodes meet, where, and which of them this one is.

    `node_rank` is None where nobody said it: the node that owns the address `host` is 0, the others are counted as
    they arrive. `names` are the nodes' names by rank, where the cluster tells them.
    """

    nodes: int = 1
    host: str = ""
    port: int = PORT
    node_rank: int | None = None
    names: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether this machine follows node 0, which decides which run goes on and writes the results."""
        return self.nodes > 1 and self.node_rank != 0

    @property
    def endpoint(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def torchrun(self, processes: int) -> list[str]:
        """torchrun's arguments for `processes` ranks on this node.

        One node takes a free port. Several use the static rendezvous: c10d's numbers the nodes in the order of their
        addresses, so rank 0, which writes the results, could be any of them.
        """
        words = ["--nproc_per_node", str(processes)]
        if self.nodes == 1:
            # Without an address torchrun goes by the host's name, and waits ten minutes where that resolves to nothing.
            return ["--standalone", "--local_addr", "127.0.0.1", *words]
        assert self.node_rank is not None, "the roll call gives every node its number"
        return [
            *("--nnodes", str(self.nodes), "--node_rank", str(self.node_rank), *words),
            *("--rdzv_backend", "static", "--rdzv_endpoint", self.endpoint, "--rdzv_id", "lab"),
            *("--rdzv_conf", f"timeout={STORE_LIMIT}"),
        ]


def meeting(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Meeting:
    """The meeting that the options `nodes`, `rdzv` and `node_rank` mean, completed by Slurm's or Kubernetes' variables.

    Raises LabError where they contradict each other, or where the place of the meeting is missing.
    """
    nodes = int(given.get("nodes", 1))
    if nodes < 1:
        raise LabError(f"--nodes {nodes}: give the number of machines, 1 or more")
    if nodes == 1:
        alone = next((key for key in OPTIONS[1:] if key in given), "")
        if alone:
            raise LabError(f"--{alone.replace('_', '-')} is for several machines: give --nodes too, on each of them")
        return Meeting()
    names = node_list(environment.get("SLURM_JOB_NODELIST", ""))
    rdzv = str(given.get("rdzv", "")) or _place(environment, names)
    if not rdzv:
        raise LabError(
            f"--nodes {nodes} needs --rdzv HOST:PORT, the address of one of the machines, the same on all of them"
        )
    host, port = endpoint(rdzv)
    rank = given.get("node_rank", _rank(environment))
    if rank is None and owns(host):
        rank = 0
    elif rank is None and nodes == 2:
        rank = 1
    if rank is not None and not 0 <= int(rank) < nodes:
        raise LabError(f"--node-rank {rank}: with --nodes {nodes} it is 0 to {nodes - 1}")
    return Meeting(nodes, host, port, None if rank is None else int(rank), names if len(names) == nodes else ())


def apart(runs: Path) -> dict[str, Any]:
    """Options that keep the few files of every node but node 0 out of the runs: rank 0, there, writes the results.

    Otherwise nodes with a shared disk would count up exp, exp2, … for one run.
    """
    return dict(zip(PLACE, (str(runs / ".lab" / "nodes"), socket.gethostname(), True), strict=True))


def among_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """This process's number on its machine and how many there are, where torchrun has started it; None elsewhere.

    YOLOv5's tutorials say `python -m torch.distributed.run --nproc_per_node 4 train.py …`.
    """
    if "TORCHELASTIC_RUN_ID" not in environment or "LOCAL_RANK" not in environment:
        return None
    return int(environment["LOCAL_RANK"]), int(environment.get("LOCAL_WORLD_SIZE", "1"))


def devices_of_ranks(
    given: Mapping[str, Any], ranks: int, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The option `device` that gives each of torchrun's `ranks` a GPU, where it is left out, as YOLOv5 does it.

    Raises LabError where it names another number of them, and for torchrun on several machines.
    """
    machines = int(environment.get("GROUP_WORLD_SIZE", "1"))
    if machines > 1:
        raise LabError(
            f"torchrun started this on {machines} machines: start `lab train --nodes {machines} --rdzv HOST:PORT` "
            "without it on each of them"
        )
    device = str(given.get("device", ""))
    if not device:
        return {"device": ",".join(map(str, range(ranks)))} if ranks > 1 and "resume" not in given else {}
    if len(device.split(",")) != ranks:
        raise LabError(
            f"--nproc_per_node {ranks} does not fit --device {device}: start train.py without torch.distributed.run, "
            "it starts a process for each GPU that --device names"
        )
    return {}


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `[address]` or `[address]:port`. Raises LabError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+))(?::(\d{1,5}))?", text.strip())
    port = int(found[3] or PORT) if found else 0
    if found is None or not 0 < port < 65535:
        raise LabError(f"--rdzv {text}: give HOST:PORT, such as gpu-a:{PORT} or 10.0.0.1:{PORT}")
    return found[1] or found[2], port


def node_list(text: str) -> tuple[str, ...]:
    """Slurm's short spelling of host names in full: `gpu[01-03,7],login` has five."""
    names: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names += _expanded(word)
    return tuple(names)


def _expanded(word: str) -> Iterator[str]:
    found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", word)
    if found is None:
        yield word
        return
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expanded(found[3]):
                yield f"{found[1]}{number:0{len(first)}d}{rest}"


def _place(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Where a cluster means its nodes to meet: Kubeflow's variables, PyTorch's usual ones, Slurm's first node."""
    for prefix in ("PET_", ""):
        if host := environment.get(f"{prefix}MASTER_ADDR"):
            host = f"[{host}]" if ":" in host else host
            return f"{host}:{environment.get(f'{prefix}MASTER_PORT', PORT)}"
    return names[0] if names else ""


def _rank(environment: Mapping[str, str]) -> int | None:
    """This node's number: Kubeflow's, Slurm's (a task a node), or an indexed Job's."""
    for name in ("PET_NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def owns(host: str) -> bool:
    """Whether `host` is an address of this machine: only then a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
            return True
    return False


def interface(address: str) -> str:
    """The name of the network interface that has the IPv4 `address`, "" where none has.

    gloo takes the one of the host's own name, which in a container may be the loopback: no other machine is there.
    """
    import fcntl  # noqa: PLC0415  not on Windows, where this is never asked

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                told = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return ""
