"""Several machines go on together: two processes on 127.0.0.1, each a machine with its own project or both with one.

A stand-in for the ranks says what the engine would be told; no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_resume import run_of, write_checkpoint

from lab import resume
from lab.project import CODE, Project
from lab.resume import LAST, PREVIOUS, REQUEST, Asked

NODE = """
import json, os, sys
from pathlib import Path
from lab import cli, devices, following, launch, project, resume, upstream
from test_resume import write_checkpoint
place = Path.cwd()
project.Project.upstream = property(lambda _: place / "code" / "yolov5")
upstream.changed = lambda _: []
devices.DEV = place / "dev"
following.PATIENCE, launch.ROLL_CALL = 0.5, 8.0

def ranks(call, project, directory, device, log, line=None, *_):
    if os.environ.get("DIES") == str(line and line.meeting.node_rank):
        write_checkpoint(directory / "weights" / "last.pt", 2)
        os._exit(9)
    words = call.payload.get("arguments", [])
    last = Path(words[words.index("--resume") + 1]) if "--resume" in words else None
    told = {
        "task": call.payload["task"], "arguments": words, "stored": call.payload.get("stored"),
        "last": resume.digest(last) if last else "", "ranks": call.processes, "nodes": call.meeting.nodes,
    }
    print("RANKS", json.dumps(told), flush=True)
    if "DIES" in os.environ:
        import time
        line.on_failure(lambda: None)
        while line.failure is None:
            time.sleep(0.05)
        raise line.failure

launch.run_here = ranks
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class Ended:
    """How `lab` ended on a node; `told`: what its ranks were told, None when none were started."""

    status: int
    said: str
    told: dict[str, Any] | None


@pytest.fixture
def other(ready: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's project, in another place: the same code and data, no runs."""
    place = tmp_path_factory.mktemp("other") / "project"
    shutil.copytree(ready.root, place)
    return place


def port() -> int:
    """A free port, whose next one is free too; below those that outgoing connections take."""
    for number in range(21000 + os.getpid() % 500 * 10, 32000, 2):
        try:
            with socket.create_server(("", number)), socket.create_server(("", number + 1)):
                return number
        except OSError:
            continue
    raise AssertionError("no free port")


def nodes(places: list[Path], *words: str, own: tuple[tuple[str, ...], ...] = (), **environment: str) -> list[Ended]:
    """`lab train` with `words`, and for each node its `own`, in each of `places` at once."""
    meeting = ["--nodes", str(len(places)), "--rdzv", f"127.0.0.1:{port()}", "--device", "cpu", "--workers", "0"]
    paths = os.pathsep.join((str(CODE), str(CODE / "tests")))
    started = []
    for number, place in enumerate(places):
        said = ["train", *words, *meeting, "--node-rank", str(number), *(own[number] if own else ())]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", NODE, *said],
                cwd=place,
                env={**os.environ, "PYTHONPATH": paths, "LAB_HOSTNAME": f"gpu-{'ab'[number]}", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = []
    for process in started:
        out, err = process.communicate(timeout=60)
        print(out, err)
        told = [json.loads(line.removeprefix("RANKS ")) for line in out.splitlines() if line.startswith("RANKS ")]
        ended.append(Ended(process.returncode, err, told[0] if told else None))
    return ended


def last_words(ended: Ended) -> str:
    return ended.said.strip().splitlines()[-1]


@pytest.fixture
def stopped(ready: Project) -> Path:
    """A run that was stopped after three of six epochs."""
    directory = run_of(ready)
    write_checkpoint(directory / "weights" / LAST, 2)
    return directory


def apart(place: Path) -> Path:
    return place / "runs" / ".lab" / "nodes" / socket.gethostname()


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "a copy of the checkpoint"])
def test_all_go_on_from_node_0s_checkpoint(ready: Project, other: Path, stopped: Path, shared: bool) -> None:
    """The copy's project has no request.json: its options are those that node 0 tells."""
    place = ready.root if shared else other
    if not shared:
        (other / "runs/train/exp/weights").mkdir(parents=True)
        shutil.copy(stopped / "weights" / LAST, other / "runs/train/exp/weights")
    resume.write_asked(
        stopped, Asked("yolov5", {**vars(resume.read_asked(stopped))["options"], "imgsz": 64, "seed": 3}, [""], None)
    )
    first, second = nodes([ready.root, place], "--resume", "runs/train/exp", "--epochs", "9", "--batch", "4")
    assert (first.status, second.status) == (0, 0)
    assert first.told is not None
    assert second.told is not None
    assert first.told["last"] == second.told["last"] == resume.digest(stopped / "weights" / LAST)
    assert first.told["arguments"] == ["--resume", str(stopped / "weights" / LAST)]
    assert second.told["arguments"] == ["--resume", str(apart(place) / "weights" / LAST)]
    own = ("save_dir", "data")
    one, two = ({k: v for k, v in node.told["stored"].items() if k not in own} for node in (first, second))
    assert one == two
    assert (one["epochs"], one["batch_size"], one["imgsz"]) == (9, 4, 64)
    assert not {"nodes", "rdzv", "node_rank"} & set(one)
    assert second.told["stored"]["save_dir"] == str(apart(place))
    assert str(place / "data/demo/images") in (apart(place) / "data.yaml").read_text(encoding="utf-8")
    assert (first.told["nodes"], second.told["nodes"]) == (2, 2)
    assert "going on with runs/train/exp after 3 of 9 epochs, as node 0 says" in second.said
    kept = resume.read_asked(stopped)
    assert kept is not None
    assert (kept.done, kept.options["epochs"], kept.options["seed"]) == (True, 9, 3)


@pytest.mark.parametrize(("epoch", "what"), [(None, "is not here"), (1, "is another one here")])
def test_a_node_without_the_checkpoint_is_named(
    ready: Project, other: Path, stopped: Path, epoch: int | None, what: str
) -> None:
    if epoch is not None:
        write_checkpoint(other / "runs/train/exp/weights" / LAST, epoch)
    for ended in nodes([ready.root, other], "--resume"):
        assert ended.status == 1
        assert ended.told is None
        assert last_words(ended) == (
            f"lab: node 1 (gpu-b): runs/train/exp/weights/last.pt, from which node 0 goes on after 3 epochs, {what}: "
            "copy it from there to the same place, or let the machines share runs/"
        )


def test_what_node_0_has_mended_is_what_counts(ready: Project, stopped: Path) -> None:
    file = stopped / "weights" / LAST
    file.rename(stopped / "weights" / PREVIOUS)
    file.write_bytes(b"cut short")
    first, second = nodes([ready.root, ready.root], "--resume")
    assert (first.status, second.status) == (0, 0)
    assert first.told is not None
    assert second.told is not None
    assert first.told["last"] == second.told["last"] == resume.digest(file)


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_without_a_finished_epoch_begins_anew_on_all(
    ready: Project, other: Path, stopped: Path, shared: bool
) -> None:
    (stopped / "weights" / LAST).unlink()
    model = "code/yolov5/models/yolov5n.yaml"
    asked = resume.read_asked(stopped)
    assert asked is not None
    resume.write_asked(stopped, Asked(**{**vars(asked), "cfg": str(ready.root / model)}))
    place = ready.root if shared else other
    first, second = nodes([ready.root, place], "--resume")
    assert (first.status, second.status) == (0, 0)
    for node, root in ((first, ready.root), (second, place)):
        assert node.told is not None
        words = node.told["arguments"]
        assert words[words.index("--epochs") + 1] == "6"
        assert words[words.index("--cfg") + 1] == str(root / model)
    assert "beginning runs/train/exp anew, as node 0 says" in second.said


def test_the_same_command_goes_on_where_its_job_was_started_again(ready: Project, tmp_path: Path) -> None:
    """As Slurm and Kubernetes do it: LAB_RUN_FILE names the job. Node 0 is killed after three epochs."""
    file = tmp_path / "runs" / ".lab" / "job-7"
    words = ("--cfg", "yolov5n.yaml", "--img", "64", "--epochs", "6", "--batch", "4")
    places = [ready.root, ready.root]
    first, second = nodes(places, *words, DIES="0", LAB_RUN_FILE=str(file))
    assert first.status == 9
    assert "node 0 (gpu-a)" in last_words(second)
    assert Path(file.read_text(encoding="utf-8").splitlines()[0]) == ready.runs / "train/exp"
    first, second = nodes(places, *words, LAB_RUN_FILE=str(file))
    assert (first.status, second.status) == (0, 0)
    assert "this was started again, so runs/train/exp goes on" in first.said
    for ended in (first, second):
        assert "after 3 of 6 epochs" in ended.said
        assert ended.told is not None
        assert ended.told["stored"]["imgsz"] == 64
    assert not (ready.runs / "train/exp2").exists()
    # numbers of jobs begin again where a cluster is set up anew: another command is another run
    first, second = nodes(places, *words[:-1], "8", LAB_RUN_FILE=str(file))
    assert "tells of runs/train/exp, which another command began, so this is a new run" in first.said
    assert Path(file.read_text(encoding="utf-8").splitlines()[0]) == ready.runs / "train/exp2"
    assert (first.status, second.status) == (0, 0)


def test_a_new_run_begins_on_all(ready: Project, other: Path) -> None:
    first, second = nodes([ready.root, other], "--cfg", "yolov5n.yaml", "--epochs", "2")
    assert (first.status, second.status) == (0, 0)
    assert (ready.runs / "train/exp" / REQUEST).is_file()
    assert not (other / "runs/train").exists()


def test_nodes_with_other_options_are_refused_before_a_rank_starts(ready: Project, other: Path) -> None:
    own = (("--seed", "1"), ("--seed", "2"))
    for ended in nodes([ready.root, other], "--cfg", "yolov5n.yaml", own=own):
        assert ended.status == 1
        assert ended.told is None
        assert "training options: node 1 (gpu-b) has" in last_words(ended)


def test_one_that_goes_on_and_one_that_begins_are_refused(ready: Project, other: Path) -> None:
    for ended in nodes([ready.root, other], own=(("--cfg", "yolov5n.yaml"), ("--resume",))):
        assert ended.status == 1
        assert "node 0 begins a new run; start the same command on every node" in last_words(ended)


def test_a_node_that_cannot_take_part_ends_all_at_once(ready: Project, other: Path) -> None:
    """It was waited for, ten minutes, because it had not come yet."""
    shutil.rmtree(other / "data/demo/images/train")
    first, second = nodes([ready.root, other], "--cfg", "yolov5n.yaml")
    assert first.told is None
    assert last_words(first).startswith("lab: node 1 (gpu-b): ")
    assert "images/train" in last_words(first)
    assert last_words(second) == last_words(first)


def test_what_is_left_of_a_run_whose_epochs_are_done_is_node_0s(ready: Project, stopped: Path) -> None:
    write_checkpoint(stopped / "weights" / LAST, 5)
    first, second = nodes([ready.root, ready.root], "--resume")
    assert (first.status, second.status) == (0, 0)
    assert first.told is not None
    assert first.told["task"] == "close"
    assert second.told is None
    assert "nothing is left to do here" in last_words(second)


def test_options_that_would_make_another_experiment_are_refused_on_every_node(ready: Project, stopped: Path) -> None:
    for ended in nodes([ready.root, ready.root], "--resume", "--seed", "5"):
        assert ended.status == 2
        assert "takes --seed from the run itself" in last_words(ended)
