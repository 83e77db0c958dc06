"""Several machines: hosts made of network namespaces, each a container, and a Slurm of one machine with two nodes.

Both engines refuse to train ranks on a processor, so a training is proved up to the engine's door; what happens when a
rank or a machine dies is proved with a stand-in for the engine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conftest import Opened

NAMES = ("gpu-a", "gpu-b", "gpu-c")
PLACE = "10.213.0.1:29500"
APART = ".lab/nodes/gpu-b"  # in runs/: the few files of node 1
QUIET = ("--env", "HOME=/tmp", "--env", "OMP_WAIT_POLICY=PASSIVE")
# Plays the engine: meets the other ranks, then waits as a rank waits in a collective: for hours.
STAND_IN = """
import os, sys, time
sys.path.insert(0, "/workspace/code")
from lab.child import serve
def work(request):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    print("together", int(total), flush=True)
    if os.environ["GROUP_RANK"] == request["fails"]:
        raise RuntimeError("CUDA out of memory")
    time.sleep(600)
serve(work)
"""
LAUNCH = """
import sys
from pathlib import Path
from lab.engines import Call
from lab.errors import LabError
from lab.launch import met, run
from lab.project import open_project
from lab.rendezvous import meeting
place = meeting({"nodes": 2, "rdzv": sys.argv[1]})
try:
    payload = {"task": "train", "arguments": [], "fails": sys.argv[3]}
    with met(place, {}) as line:
        run(Call(Path(sys.argv[2]), payload, 1, place), open_project(), None, line=line)
except LabError as error:
    print(f"lab: {error.sentence}", file=sys.stderr)
    sys.exit(error.status)
"""


def command(*words: str | Path, check: bool = True, limit: float = 60) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class Ended:
    """How a command on a host ended."""

    status: int
    said: str
    seconds: float


@dataclass
class Hosts:
    """Containers without a network, joined by a switch in a namespace of its own. No name resolves to anything."""

    opened: Opened
    switch: str
    containers: list[str] = field(default_factory=list)

    def add(self, *options: str) -> None:
        """One more host, 10.213.0.1, 2, …; `options` are docker's."""
        number = len(self.containers)
        name = NAMES[number]
        made = command(
            *("docker", "run", "--detach", "--network", "none", "--hostname", name, "--shm-size", "1g", "--init"),
            *("--user", str(self.opened.user.uid), *QUIET, "--volume", f"{self.opened.folder}:/workspace", *options),
            *(self.opened.image, "sleep", "900"),
        )
        self.containers.append(made)
        inside = command("docker", "inspect", "--format", "{{.State.Pid}}", made)
        port = f"{self.switch}p{number}"
        enter = ("nsenter", "--target", inside, "--net")
        command("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inside)
        command("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
        command(*enter, "ip", "address", "add", f"10.213.0.{number + 1}/24", "dev", "eth0")
        command(*enter, "ip", "link", "set", "eth0", "up")

    def pull_the_cable(self, number: int) -> None:
        command("ip", "-n", self.switch, "link", "set", f"{self.switch}p{number}", "down")

    def start(self, number: int, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["docker", "exec", self.containers[number], *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> list[Ended]:
        """The same command on every host at once."""
        began = time.monotonic()
        started = [self.start(number, *words) for number in range(len(self.containers))]
        return [finished(process, began) for process in started]


def finished(process: subprocess.Popen[str], began: float, limit: float = 300) -> Ended:
    try:
        said = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hangs: {process.communicate()[0][-3000:]}")
    print(said)
    return Ended(process.returncode, said, time.monotonic() - began)


@pytest.fixture
def hosts(with_yolov5: Opened) -> Iterator[Hosts]:
    if os.getuid() != 0:
        pytest.skip("only root may make network namespaces")
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("`ip` or `nsenter` is not installed (Debian: iproute2, util-linux)")
    demo(with_yolov5)
    switch = f"lab{os.getpid() % 100000}"
    try:
        command("ip", "netns", "add", switch)
    except AssertionError as refused:
        pytest.skip(f"network namespaces cannot be made here: {refused}")
    made = Hosts(with_yolov5, switch)
    try:
        command("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        command("ip", "-n", switch, "link", "set", "bridge", "up")
        yield made
    finally:
        for container in made.containers:
            command("docker", "rm", "--force", container, check=False)
        command("ip", "netns", "delete", switch, check=False)


def demo(opened: Opened) -> None:
    """A small data set in the project."""
    if not (opened.folder / "data/cluster/data.yaml").is_file():
        done = opened.run_apart("lab", "data", "demo", "--images", "16", "--size", "64", "--out", "data/cluster")
        assert done.returncode == 0, done.stdout + done.stderr


def preflight(*more: str, nodes: int = 2) -> tuple[str, ...]:
    return ("lab", "preflight", "--nodes", str(nodes), "--rdzv", PLACE, "--data", "data/cluster/data.yaml", *more)


# --- preflight --------------------------------------------------------------------------------------------------------


def test_two_hosts_meet(hosts: Hosts) -> None:
    hosts.add()
    hosts.add()
    first, second = hosts.run(*preflight("--timeout", "200"))
    assert (first.status, second.status) == (0, 0)
    assert "4 ranks on 2 nodes may start" in first.said
    assert "all-reduce, 4 ranks, gloo" in first.said
    assert "node 0 (gpu-a) - node 1 (gpu-b)" in first.said
    assert "all-reduce" not in second.said


def test_a_wrong_host_is_named(hosts: Hosts, tmp_path: Path) -> None:
    version = tmp_path / "version.py"
    version.write_text("__version__ = '2.7.1+cu126'\ncuda: str = '12.6'\n", encoding="utf-8")
    version.chmod(0o644)
    other = tmp_path / "data"
    shutil.copytree(hosts.opened.folder / "data", other)
    label = next((other / "cluster/labels/train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n", encoding="utf-8")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)  # the container's user must get there
    torch = command(
        *("docker", "run", "--rm", "--network", "none", hosts.opened.image, "python", "-c"),
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])",
    )
    hosts.add()
    hosts.add()
    hosts.add("--volume", f"{version}:{torch}/version.py:ro", "--volume", f"{other}:/workspace/data:ro")
    for ended in hosts.run(*preflight("--timeout", "60", nodes=3)):
        assert ended.status == 1
        said = re.sub(r"node \d \(gpu-c\)", "gpu-c", ended.said)  # nodes are numbered as they arrive
        assert "WRONG torch: gpu-c has 2.7.1+cu126 (CUDA 12.6), the other 2 have 2.8.0" in said
        assert "WRONG data: gpu-c has " in said
        assert "2 things differ between the nodes" in ended.said


def test_a_missing_host_is_named(hosts: Hosts) -> None:
    for _ in range(3):
        hosts.add()
    words = preflight("--timeout", "10", nodes=3)
    began = time.monotonic()
    started = [hosts.start(number, *words, "--node-rank", str(number)) for number in (0, 2)]
    first, second = (finished(process, began) for process in started)
    for ended in (first, second):
        assert ended.status == 1
        assert "node 1 of 3 did not arrive within 10 s" in ended.said
        assert ended.said.count("lab: ") == 2  # that it waits, and this sentence
    assert "here are node 0 (gpu-a), node 2 (gpu-c)" in first.said


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_launch_reaches_the_engine_on_both_hosts(hosts: Hosts) -> None:
    hosts.add()
    hosts.add()
    words = ("lab", "train", "--engine", "yolov5", "--weights", "", "--cfg", "yolov5n.yaml", "--epochs", "1")
    data = ("--data", "data/cluster/data.yaml", "--img", "64", "--nodes", "2", "--rdzv", PLACE, "--name", "cluster")
    for ended in hosts.run(*words, *data):
        assert ended.status == 1
        assert "YOLOv5 trains ranks on GPUs only" in ended.said.splitlines()[-1]
    assert not (hosts.opened.folder / "runs/train/cluster").exists()


SMALL = (
    *("--engine", "yolov5", "--weights=", "--cfg", "yolov5n.yaml", "--data", "data/cluster/data.yaml"),
    *("--img", "64", "--batch", "8", "--workers", "0", "--noplots", "--noval", "--epochs", "50", "--device", "cpu"),
)


def killed(opened: Opened, name: str, *before: str) -> None:
    """A training on one machine, killed with its container once an epoch was finished; `before` stands before `lab`."""
    last = opened.folder / "runs/train" / name / "weights/last.pt"
    container = f"lab-killed-{os.getpid()}"
    place = ("--network", "none", "--shm-size", "1g", "--volume", f"{opened.folder}:/workspace")
    words = (*before, "lab", "train", *SMALL, "--name", name)
    user = ("--user", str(opened.user.uid))
    running = subprocess.Popen(
        ("docker", "run", "--rm", "--name", container, "--init", *user, *QUIET, *place, opened.image, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: last.is_file() or running.poll() is not None, "the first epoch did not end", 300)
    assert running.poll() is None, "it ended by itself"
    command("docker", "kill", container)
    running.wait(60)


def test_a_killed_run_goes_on_on_both_hosts(hosts: Hosts) -> None:
    """By the same command, as a cluster starts it again: node 0 says what goes on, up to the engine's door."""
    folder, again = hosts.opened.folder, ("env", "LAB_RUN_FILE=runs/.lab/job-1")
    killed(hosts.opened, "killed", *again)
    before = (folder / "runs/train/killed/weights/last.pt").read_bytes()
    hosts.add()
    hosts.add()
    first, second = hosts.run(*again, "lab", "train", *SMALL, "--name", "killed", "--nodes", "2", "--rdzv", PLACE)
    done = re.search(r"going on with runs/train/killed after (\d+) of 50 epochs", first.said)
    assert done is not None
    assert int(done[1]) >= 1
    assert "this was started again" not in second.said
    assert f"going on with runs/train/killed after {done[1]} of 50 epochs, as node 0 says" in second.said
    for ended in (first, second):
        assert ended.status == 1
        assert "YOLOv5 trains ranks on GPUs only" in ended.said.splitlines()[-1]
    # each engine had read the checkpoint's own options, written where its node may write
    stored = [yaml.safe_load((folder / "runs" / place / "opt.yaml").read_text()) for place in ("train/killed", APART)]
    assert [one["epochs"] for one in stored] == [50, 50]
    assert [one["save_dir"] for one in stored] == [f"/workspace/runs/{place}" for place in ("train/killed", APART)]
    assert (folder / "runs/train/killed/weights/last.pt").read_bytes() == before
    assert not (folder / "runs/train/killed2").exists()


@pytest.fixture
def training(hosts: Hosts) -> Callable[[str], list[subprocess.Popen[str]]]:
    """Starts a launch of the stand-in on two hosts; returns once both ranks are together."""
    folder = hosts.opened.folder / "runs"
    for name, text in (("stand_in.py", STAND_IN), ("launch.py", LAUNCH)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o644)
    hosts.add()
    hosts.add()

    def start(fails: str) -> list[subprocess.Popen[str]]:
        words = ("python", "runs/launch.py", PLACE, "/workspace/runs/stand_in.py", fails)
        started = [hosts.start(number, *words) for number in (0, 1)]
        for process in started:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                if "together 2" in line:
                    break
        return started

    return start


def test_a_failing_rank_ends_all_and_is_named(training: Callable[[str], list[subprocess.Popen[str]]]) -> None:
    began = time.monotonic()
    for ended in [finished(process, began, 60) for process in training("1")]:
        assert ended.status == 3  # lab.errors.OUT_OF_MEMORY, on every node: `lab train` tries again with half the batch
        assert "node 1 (gpu-b): rank 1: the GPU's memory does not suffice" in ended.said.splitlines()[-1]


def test_a_killed_host_ends_the_other_and_is_named(
    hosts: Hosts, training: Callable[[str], list[subprocess.Popen[str]]]
) -> None:
    first, _ = training("none")
    command("docker", "kill", hosts.containers[1])
    ended = finished(first, time.monotonic(), 60)
    assert ended.status == 1
    assert "node 1 (gpu-b) has gone" in ended.said.splitlines()[-1]


def test_a_pulled_cable_ends_both(hosts: Hosts, training: Callable[[str], list[subprocess.Popen[str]]]) -> None:
    started = training("none")
    hosts.pull_the_cable(1)
    began = time.monotonic()
    first, second = (finished(process, began, 90) for process in started)
    assert (first.status, second.status) == (1, 1)
    assert "node 1 (gpu-b) has been silent for 20 s" in first.said.splitlines()[-1]
    assert "node 0 (gpu-a) no longer answers" in second.said.splitlines()[-1]


# --- Slurm ------------------------------------------------------------------------------------------------------------

SLURM_CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmdSpoolDir={place}/spool-%n
StateSaveLocation={place}/state
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=gpu-a NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=64 RealMemory=1000
NodeName=gpu-b NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=64 RealMemory=1000
PartitionName=all Nodes=gpu-a,gpu-b Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


@pytest.fixture
def slurm(with_yolov5: Opened, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm whose two nodes are both this machine; yields the environment in which its commands reach it."""
    needed = ("munged", "slurmctld", "slurmd", "sbatch")
    gone = next((name for name in needed if shutil.which(name) is None), "")
    if gone:
        pytest.skip(f"{gone} is not installed (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("slurmd runs jobs as root only")
    demo(with_yolov5)
    place = Path("/var/tmp") / f"lab-slurm-{os.getpid()}"  # munged refuses pytest's directory, which others may enter
    place.mkdir(mode=0o755)
    host = command("hostname", "--short")
    (place / "slurm.conf").write_text(SLURM_CONF.format(place=place, host=host), encoding="utf-8")
    (place / "key").write_bytes(os.urandom(128))
    (place / "key").chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    munge = ("munged", "--foreground", f"--socket={place}/munge.socket", f"--key-file={place}/key")
    files = tuple(f"--{name}-file={place}/munge.{name.split('-')[0]}" for name in ("pid", "log", "seed"))
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with (place / f"{words[0]}.out").open("ab") as out:
            daemons.append(subprocess.Popen(words, env=environment, stdout=out, stderr=out))

    try:
        start(*munge, *files)
        eventually((place / "munge.socket").exists, "munged gave no answer")
        start("slurmctld", "-D", "-i")
        for node in ("gpu-a", "gpu-b"):
            start("slurmd", "-D", "-N", node)

        def idle() -> bool:
            words = ["sinfo", "--noheader", "--format=%D %t"]
            asked = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            return asked.stdout.strip() == "2 idle"

        eventually(idle, "Slurm's two nodes gave no answer")
        yield environment
    finally:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # a job of a test that was cut short
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False, timeout=20)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        for log in place.glob("*.log"):
            print(log.name, log.read_text(errors="replace")[-1500:])
        shutil.rmtree(place, ignore_errors=True)


def eventually(done: Callable[[], bool], what: str, limit: float = 60) -> None:
    until = time.monotonic() + limit
    while not done():
        if time.monotonic() > until:
            pytest.fail(f"{what} within {limit:.0f} s")
        time.sleep(0.5)


def submitted(opened: Opened, slurm: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """sbatch with the project's own file and `words`, which are Slurm's and then `lab train`'s."""
    settings = {"CONTAINER": "docker", "IMAGE": opened.image, "GPUS": "cpu"}
    asked = ("--gpus-per-node=0", "--cpus-per-task=2", "--output=runs/slurm-%j.log")
    return subprocess.run(
        ["sbatch", *asked, *words],
        cwd=opened.folder,
        env={**slurm, **settings},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_requeued_job_goes_on(with_yolov5: Opened, slurm: dict[str, str]) -> None:
    """Its first attempt was killed after an epoch; requeued, it has the same number, and so finds its run."""
    folder = with_yolov5.folder

    def asked(*words: str) -> str:
        return subprocess.run(words, env=slurm, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    told = submitted(with_yolov5, slurm, "--hold", "--parsable", "cluster/slurm.sbatch", *SMALL[:-2], "--name", "queue")
    number = told.stdout.strip()
    assert number.isdigit(), told.stderr
    killed(with_yolov5, "queue", "env", f"LAB_RUN_FILE=runs/.lab/slurm-{number}")
    asked("scontrol", "release", number)
    log = folder / f"runs/slurm-{number}.log"

    def over() -> bool:
        return asked("squeue", "--noheader", "--jobs", number, "--states=all", "--format=%T") in ("FAILED", "COMPLETED")

    eventually(over, "the job did not end", 400)
    said = log.read_text(errors="replace")
    print(said)
    done = re.search(r"going on with runs/train/queue after (\d+) of 50 epochs\n", said)
    assert done is not None
    assert f"going on with runs/train/queue after {done[1]} of 50 epochs, as node 0 says" in said
    assert said.count("YOLOv5 trains ranks on GPUs only") == 2
    assert not (folder / "runs/train/queue2").exists()


def test_the_sbatch_file_on_two_nodes(with_yolov5: Opened, slurm: dict[str, str]) -> None:
    options = ("--engine", "yolov5", "--data", "data/cluster/data.yaml", "--weights=", "--cfg", "yolov5n.yaml")
    words = ("--wait", "cluster/slurm.sbatch", *options, "--img", "64", "--epochs", "1", "--name", "slurm")
    for earlier in (with_yolov5.folder / "runs").glob("slurm-*.log"):  # each test has a Slurm that counts from 1
        earlier.unlink()
    done = submitted(with_yolov5, slurm, *words)
    log = (with_yolov5.folder / f"runs/slurm-{done.stdout.split()[-1]}.log").read_text(errors="replace")
    print(done.stdout, done.stderr, log)
    assert "node 0 (gpu-a) - node 1 (gpu-b)" in log
    assert "4 ranks on 2 nodes may start" in log
    assert done.returncode == 1  # the engine's own refusal: no ranks on a processor
    assert log.count("waiting for 2 nodes") == 4
    assert log.count("YOLOv5 trains ranks on GPUs only") == 2  # each node says it
