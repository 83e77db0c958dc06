"""How a launch of several ranks ends when the kernel, or a library, ends one of them: in one sentence that names it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from lab import causes, run_ranks
from lab.engines import Call
from lab.errors import FAILED, OUT_OF_MEMORY, LabError
from lab.launch import run
from lab.project import CODE, Project

# Plays the engine: the ranks meet; then the one named ends by the signal, while the other waits for it.
STAND_IN = """
import os, sys, time
sys.path.insert(0, {code!r})
from lab.child import serve
def work(request):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if os.environ["RANK"] == request["ends"]:
        time.sleep(0.3)
        os.kill(os.getpid(), request["signal"])
    dist.all_reduce(torch.ones(1))
serve(work)
"""
KILLED = "rank 1 was killed (SIGKILL), most likely by the kernel for want of main memory: give fewer --workers"
NCCL = "rank 0: the GPUs lost each other (NCCL): `lab doctor` tests their network"


@pytest.mark.parametrize(
    ("statuses", "told", "sentence"),
    [
        ({1: -9}, None, KILLED),
        ({1: -9}, "rank 0: train stopped: Connection closed by peer [127.0.0.1]:1", KILLED),
        ({0: 1, 1: -9}, NCCL, KILLED),
        ({0: -6, 1: -9}, None, KILLED),  # the other rank aborts because this one has gone
        ({3: -6}, None, "rank 3 aborted (SIGABRT), most likely by a library of CUDA"),
        ({2: -7}, None, "rank 2 died of SIGBUS, most likely for want of shared memory: give --workers 0"),
        ({2: -11}, None, "rank 2 crashed (SIGSEGV)"),
        ({2: -15}, None, "rank 2 was ended from outside (SIGTERM)"),
        ({2: -40}, None, "rank 2 died of signal 40"),
        ({0: 3, 1: -6}, "rank 0: the GPU's memory does not suffice", "rank 0: the GPU's memory does not suffice"),
        ({0: 1}, NCCL, NCCL),
        ({0: 1}, None, None),
    ],
)
def test_the_rank_that_a_signal_ended_is_named(
    tmp_path: Path, statuses: dict[int, int], told: str | None, sentence: str | None
) -> None:
    report = tmp_path / "report.json"
    if told is not None:
        report.write_text(json.dumps({"sentence": told, "status": OUT_OF_MEMORY}), encoding="utf-8")
    run_ranks.tell(statuses, report)
    if sentence is None:
        assert not report.exists()
        return
    said = json.loads(report.read_text(encoding="utf-8"))
    assert said["sentence"].startswith(sentence)
    assert said["status"] == (OUT_OF_MEMORY if sentence == told else FAILED)


def test_a_report_that_was_cut_short_gives_way(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text('{"sent', encoding="utf-8")
    run_ranks.tell({1: -9}, report)
    assert json.loads(report.read_text(encoding="utf-8"))["sentence"].startswith(KILLED)


@pytest.mark.parametrize("number", causes.SIGNALS)
def test_a_loader_worker_is_named_by_the_same_list(number: int) -> None:
    words = f"DataLoader worker (pid(s) 7) is killed by signal: {signal.strsignal(number)}. "
    assert causes.said(words) == causes.ended("a loader worker", number)


@pytest.mark.container
@pytest.mark.parametrize(("number", "part"), [(signal.SIGKILL, KILLED), (signal.SIGABRT, "rank 1 aborted (SIGABRT)")])
def test_a_rank_that_is_killed_under_torchrun(
    project: Project, tmp_path: Path, number: int, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(code=str(CODE)), encoding="utf-8")
    payload = {"task": "train", "arguments": [], "ends": "1", "signal": int(number)}
    with pytest.raises(LabError) as ended:
        run(Call(script, payload, 2), project, None, "cpu")
    assert ended.value.sentence.startswith(part)
    assert ended.value.status == FAILED
    said = capfd.readouterr()
    assert "exitcode" not in said.out + said.err  # torchrun's own account
