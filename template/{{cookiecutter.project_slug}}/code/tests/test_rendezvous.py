import socket
from pathlib import Path

import pytest

from lab import cli, rendezvous, tasks
from lab.engines import ENGINES, Prepared, translate
from lab.errors import LabError
from lab.options import Request, parse
from lab.project import Project
from lab.rendezvous import Meeting, apart, endpoint, interface, meeting, node_list, owns


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gpu-a:29600", ("gpu-a", 29600)),
        ("gpu-a", ("gpu-a", 29500)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fd00::1]:29600", ("fd00::1", 29600)),
        ("[fd00::1]", ("fd00::1", 29500)),
    ],
)
def test_a_place(text: str, place: tuple[str, int]) -> None:
    assert endpoint(text) == place


@pytest.mark.parametrize(
    "text", ["", ":29500", "gpu-a:", "gpu-a:0", "gpu-a:65535", "gpu-a:x", "fd00::1", "a b:1", "http://a:1"]
)
def test_no_place(text: str) -> None:
    with pytest.raises(LabError, match="give HOST:PORT"):
        endpoint(text)


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert Meeting(2, "fd00::1", 29500, 1).torchrun(4)[-5] == "[fd00::1]:29500"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("gpu7", ("gpu7",)),
        ("gpu[01-03,7],login", ("gpu01", "gpu02", "gpu03", "gpu7", "login")),
        ("r[1-2]n[8-9]", ("r1n8", "r1n9", "r2n8", "r2n9")),
    ],
)
def test_slurms_short_spelling(text: str, names: tuple[str, ...]) -> None:
    assert node_list(text) == names


def test_one_node_needs_nothing_and_takes_a_free_port() -> None:
    assert meeting({}, {"SLURM_JOB_NODELIST": "a,b"}) == Meeting()
    words = Meeting().torchrun(4)
    assert "--standalone" in words
    assert words[words.index("--local_addr") + 1] == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "rank", "place"),
    [
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "1"}, 1, "n1:29500"),
        ({"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "lab-0.lab"}, 1, "lab-0.lab:29500"),
        (
            {"PET_NODE_RANK": "0", "PET_MASTER_ADDR": "t-0", "PET_MASTER_PORT": "29400", "JOB_COMPLETION_INDEX": "1"},
            0,
            "t-0:29400",
        ),
    ],
)
def test_a_cluster_says_the_rest(environment: dict[str, str], rank: int, place: str) -> None:
    found = meeting({"nodes": 2}, environment)
    assert (found.node_rank, found.endpoint) == (rank, place)
    own = meeting({"nodes": 2, "rdzv": "other:1", "node_rank": 1 - rank}, environment)
    assert (own.node_rank, own.endpoint) == (1 - rank, "other:1")


def test_whoever_owns_the_address_is_node_0() -> None:
    assert owns("127.0.0.1")
    assert not owns("192.0.2.1")  # an address of documentation, no machine's
    assert meeting({"nodes": 2, "rdzv": "127.0.0.1:1"}, {}).node_rank == 0
    assert meeting({"nodes": 2, "rdzv": "192.0.2.1:1"}, {}).node_rank == 1
    assert meeting({"nodes": 3, "rdzv": "192.0.2.1:1"}, {}).node_rank is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--nodes 0", "--nodes 0"),
        ("--rdzv a:1", "--rdzv is for several machines"),
        ("--node-rank 1", "--node-rank is for several machines"),
        ("--nodes 2", "needs --rdzv HOST:PORT"),
        ("--nodes 2 --rdzv a:1 --node-rank 2", "it is 0 to 1"),
        ("--nodes 2 --rdzv a:1 --node-rank -1", "it is 0 to 1"),
    ],
)
def test_what_cannot_be_meant(words: str, part: str) -> None:
    with pytest.raises(LabError, match=part):
        meeting(parse("train", words.split()).given, {})


def test_the_batch_is_that_of_all_ranks_of_all_nodes() -> None:
    engine = ENGINES["yolov5"]
    given = {"nodes": 2, "rdzv": "a:1", "device": "0,1,2,3"}
    engine.refuse("train", {**given, "batch_size": 64})
    for wrong in ({"batch_size": 20}, {"batch_size": -1}, {"evolve": 300}, {"image_weights": True}):
        with pytest.raises(LabError):
            engine.refuse("train", {**given, **wrong})
    with pytest.raises(LabError, match="not a multiple of 2 GPUs: use 14"):
        engine.refuse("train", {"nodes": 2, "rdzv": "a:1", "batch_size": 15})


def test_yolov5_starts_on_every_node_and_hears_nothing_of_our_options(project: Project) -> None:
    options = {"device": "0,1", "nodes": 2, "rdzv": "192.0.2.1:5", "node_rank": 1, "epochs": 3}
    call = ENGINES["yolov5"].call(Prepared("train", options, ["/w.pt"], None, Path("/r/e")), project)
    assert (call.processes, call.meeting) == (2, Meeting(2, "192.0.2.1", 5, 1))
    assert not {"--nodes", "--rdzv", "--node-rank"} & set(call.payload["arguments"])
    words = call.meeting.torchrun(2)
    assert words[words.index("--node_rank") + 1] == "1"
    resumed = ENGINES["yolov5"].call(
        Prepared("train", {**options, "resume": "/last.pt"}, [], None, Path("/r")), project
    )
    assert (resumed.processes, resumed.meeting.nodes) == (2, 2)


def test_yolov5u_has_one_machine_only() -> None:
    with pytest.raises(LabError, match="--engine yolov5"):
        ENGINES["yolov5u"].refuse("train", {"nodes": 2, "rdzv": "a:1"})
    assert translate(Prepared("train", {"nodes": 1, "epochs": 2}, [""], None, None)) == {"epochs": 2}


def test_only_node_0_has_a_run(tmp_path: Path) -> None:
    assert not Meeting().follows
    assert not Meeting(2, "a", 1, 0).follows
    assert Meeting(2, "a", 1, 1).follows
    assert Meeting(3, "a", 1).follows  # counted as it arrives: node 0 owns the address
    kept = apart(tmp_path)
    assert kept["project"] == str(tmp_path / ".lab/nodes")
    assert tuple(kept) == rendezvous.PLACE


def test_the_interface_of_an_address() -> None:
    assert interface("127.0.0.1") == "lo"
    assert interface("192.0.2.1") == ""
    assert socket.if_nametoindex(interface("127.0.0.1"))
    assert rendezvous.PORT == 29500


@pytest.mark.parametrize(
    ("words", "rank", "ranks", "device"),
    [
        ("--device 0,1", 0, 2, "0,1"),
        ("", 0, 4, "0,1,2,3"),
        ("", 0, 1, None),
        ("--resume", 0, 2, None),  # the run knows
        ("--device 0,1", 1, 2, "nothing is done"),
        ("--device nonsense", 1, 2, "nothing is done"),  # one process says it
    ],
)
def test_the_tutorials_torchrun_is_one_training(
    project: Project, monkeypatch: pytest.MonkeyPatch, words: str, rank: int, ranks: int, device: str | None
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(tasks, "perform", lambda request, _: asked.append(request))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}.items():
        monkeypatch.setenv(name, str(value))
    assert cli.main(["train", *words.split()]) == 0
    assert [request.given.get("device") for request in asked] == ([] if device == "nothing is done" else [device])


@pytest.mark.parametrize(
    ("words", "machines", "part"),
    [
        ("--device cpu", "1", "--nproc_per_node 2 does not fit --device cpu: start train.py without"),
        ("--device 0,1,2,3", "1", "--nproc_per_node 2 does not fit --device 0,1,2,3"),
        ("--device 0,1", "3", "lab train --nodes 3 --rdzv HOST:PORT"),
    ],
)
def test_a_torchrun_that_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, machines: str, part: str
) -> None:
    monkeypatch.setattr(tasks, "perform", lambda *_: pytest.fail("it began"))
    around = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": machines}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", *words.split()]) == 2
    assert part in capsys.readouterr().err
