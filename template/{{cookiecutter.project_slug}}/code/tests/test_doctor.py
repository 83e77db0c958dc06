"""`lab doctor`: described containers, faked programs, and once the real one."""

import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import cli, devices, doctor, doctor_facts, doctor_probe
from lab.doctor_disk import read_speed
from lab.doctor_facts import Child, Facts, Folder, Gpu, Slice, Smi
from lab.doctor_finding import Finding, serves
from lab.doctor_torch import NO_AMP
from lab.project import CODE, Project

GIB = 1 << 30
ARCHS = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
IDS = [
    *("gpu.visible", "gpu.lost", "driver.old", "driver.compat", "nvml.mismatch", "gpu.fabric", "gpu.uvm"),
    *("gpu.memory", "gpu.mig", "torch.build", "torch.catalogue", "torch.arch", "torch.kernel", "cudnn", "torch.amp"),
    *(
        "torchvision",
        "nccl",
        "shm",
        "cpu",
        "memory",
        "packages",
        "write.runs",
        "write.data",
        "disk.space",
        "data.speed",
    ),
]


def child(end: str = "", at: str = "", said: str = "", **steps: dict[str, Any]) -> Child:
    return Child({name: {"ok": True, **found} for name, found in steps.items()}, end, at, said)


def failed(words: str) -> dict[str, Any]:
    return {"ok": False, "error": words}


def a_torch(*names: str, capability: tuple[int, int] = (8, 6), **changes: Any) -> Child:
    """What the child `torch` says where torch sees GPUs of these names."""
    steps: dict[str, Any] = {
        "torch": {"version": "2.8.0+cu128", "cuda": "12.8"},
        "arch": {"archs": ARCHS},
        "cudnn": {"version": 91002},
        "nccl": {"version": "2.27.3"},
        "init": {} if names else failed("Found no NVIDIA driver on your system."),
        "numpy": {"version": "2.4.6"},
        "opencv": {"version": "5.0.0"},
        "torchvision": {"version": "0.23.0+cu128"},
    }
    if names:
        found = [
            {"number": number, "name": name, "capability": list(capability), "memory_mib": 24576}
            for number, name in enumerate(names)
        ]
        steps["devices"] = {"devices": found}
    return child(**{**steps, **changes})


def a_trial(**changes: Any) -> Child:
    steps: dict[str, Any] = {
        "memory": {"free_mib": 23000, "total_mib": 24000},
        "matmul": {"difference": 1e-6},
        "convolution": {"difference": 1e-6},
        "cudnn": {"difference": 1e-6},
        "amp": {"finite": True, "difference": 1e-3},
        "nms": {},
    }
    return child(**{**steps, **changes})


CPU = Facts(
    visible="",
    accel="cpu",
    wanted_torch="2.8.0",
    wanted_build="cu128",
    published=frozenset({70, 75, 80, 86, 90, 100, 120}),
    torch=a_torch(),
    trials={"cpu": child(matmul={"difference": 1e-7}, convolution={"difference": 1e-7})},
    shm=(8 * GIB, 8 * GIB),
    processors=8,
    granted=8,
    memory=32 * GIB,
    memory_free=24 * GIB,
    data=Folder(owner=1000, free=100 * GIB),
    runs=Folder(owner=1000, free=100 * GIB),
    reading=child(
        read={"files": 500, "images": 500, "read": 500, "seconds": 0.25, "bytes": 5e7, "from_disk": 1.0,
              "sequential": 1e9}
    ),
    opencvs=("opencv-python-headless 5.0.0",),
)  # fmt: skip


def with_gpus(*names: str, **changes: Any) -> Facts:
    """A healthy container with these GPUs."""
    names = names or ("NVIDIA GeForce RTX 3090",)
    gpus = tuple(Gpu(number, name, "570.86.10", 24576, 500) for number, name in enumerate(names))
    healthy = replace(
        CPU,
        visible=None,
        accel="gpu",
        nodes=("nvidia-uvm", "nvidiactl", *(f"nvidia{number}" for number in range(len(names)))),
        smi=Smi("ok", "", gpus),
        torch=a_torch(*names),
        trials={str(number): a_trial() for number in range(len(names))},
        nccl=tuple(child(join={}, reduce={}) for _ in names) if len(names) > 1 else (),
    )
    return replace(healthy, **changes)


def without_devices(error: str, **changes: Any) -> Facts:
    """A container with a GPU that torch cannot use, for this reason."""
    return with_gpus(
        **{"torch": a_torch(init=failed(error)), "trials": {"cpu": CPU.trials["cpu"]}, "smi": Smi("missing"), **changes}
    )


def finding(facts: Facts, check: str) -> Finding:
    return next(found for found in doctor.examine(facts) if found.id == check)


def levels(facts: Facts) -> dict[str, str]:
    return {found.id: found.level for found in doctor.examine(facts)}


# Judgement


def test_ids_are_stable() -> None:
    assert [found.id for found in doctor.examine(CPU)] == IDS
    assert [found.id for found in doctor.examine(Facts())] == IDS  # a container about which nothing could be learnt


@pytest.mark.parametrize(
    "facts",
    [CPU, with_gpus(), with_gpus("A100", "A100"), replace(CPU, visible=None, accel="")],
    ids=["cpu", "one", "two", "unknown"],
)
def test_a_healthy_container_has_nothing_to_mend(facts: Facts) -> None:
    assert set(levels(facts).values()) == {"ok", "skip"}
    assert doctor.exit_status(doctor.examine(facts)) == 0
    assert doctor.as_text(doctor.examine(facts)).endswith("\nnothing to mend")


def test_what_a_healthy_container_is_told() -> None:
    one = with_gpus()
    assert finding(one, "gpu.visible").cause == "NVIDIA GeForce RTX 3090, driver 570.86.10"
    assert finding(one, "cudnn").cause.startswith("cuDNN 9.10.2,")
    assert finding(one, "nccl") == Finding("nccl", "skip", "there is one GPU")
    two = with_gpus("A100", "A100")
    assert finding(two, "gpu.visible").cause == "2x A100, driver 570.86.10"
    assert finding(two, "nccl").cause == "NCCL 2.27.3: 2 GPUs add up"
    narrowed = with_gpus(visible="1", smi=with_gpus("A", "B").smi, torch=a_torch("B"))
    assert "B of 2, by CUDA_VISIBLE_DEVICES=1" in finding(narrowed, "gpu.visible").cause


OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"
E804 = "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW"
E803 = "Error 803: system has unsupported display driver / cuda driver combination"
E802 = "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"
UVM = "CUDA unknown error - this may be due to an incorrectly set up environment"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
DROPPED = {"nvidia0": "EPERM", "nvidiactl": "EPERM"}

CASES: dict[str, tuple[Facts, str, str, str, str]] = {
    # name: container, check, level, part of what is said, part of the command
    "asked for a GPU, got none": (
        replace(CPU, visible=None, accel="gpu"),
        "gpu.visible",
        "fail",
        "none was handed",
        "--force-recreate dev",
    ),
    "made for the CPU before": (
        replace(CPU, accel="gpu-cdi"),
        "gpu.visible",
        "fail",
        "found one since",
        "--force-recreate dev",
    ),
    "hidden by hand": (with_gpus(visible="-1"), "gpu.visible", "warn", "hides the GPU", "unset CUDA_VISIBLE_DEVICES"),
    "no right to the device files": (
        without_devices("x", refused={"nvidia0": "EACCES"}),
        "gpu.visible",
        "fail",
        "/dev/nvidia0",
        "chmod",
    ),
    "nvidia-smi hangs": (without_devices("x", smi=Smi("hangs")), "gpu.visible", "fail", "does not answer", "reboot"),
    "torch hangs at the GPU": (
        with_gpus(torch=replace(a_torch(), end="hangs", at="init")),
        "gpu.visible",
        "fail",
        "does not come back",
        "reboot",
    ),
    "a reason nobody knows": (without_devices("CUDA error 777"), "gpu.visible", "fail", "CUDA error 777", "host-setup"),
    "torch sees fewer": (
        with_gpus("A", "B", torch=a_torch("A")),
        "gpu.visible",
        "warn",
        "lists 2 GPUs, torch sees 1",
        "hostkit doctor",
    ),
    "lost by systemd": (
        without_devices("No CUDA GPUs are available", smi=Smi("unknown-error")),
        "gpu.lost",
        "fail",
        "systemd",
        "docker compose up --detach --force-recreate dev",
    ),
    "lost, told by the files": (
        without_devices("x", refused=DROPPED),
        "gpu.lost",
        "fail",
        "has lost its GPU",
        "--force-recreate",
    ),
    "fell off the bus": (with_gpus(smi=Smi("lost", "", with_gpus().smi.gpus)), "gpu.lost", "fail", "bus", "xid"),
    "blocked by Windows": (without_devices("x", smi=Smi("blocked")), "gpu.lost", "fail", "Windows", "wsl --shutdown"),
    "driver too old": (
        without_devices(OLD),
        "driver.old",
        "fail",
        "reaches CUDA 12.4, and this torch needs CUDA 12.8",
        "--build dev",
    ),
    "driver too old, error 35": (
        without_devices("CUDA driver version is insufficient for CUDA runtime version"),
        "driver.old",
        "fail",
        "older CUDA",
        "host-setup",
    ),
    "error 804": (without_devices(E804), "driver.compat", "fail", "804", "libcuda"),
    "error 803": (without_devices(E803), "nvml.mismatch", "fail", "803", "reboot"),
    "NVML mismatch": (
        without_devices("x", smi=Smi("mismatch")),
        "nvml.mismatch",
        "fail",
        "different versions",
        "reboot",
    ),
    "driver unloaded": (
        without_devices("x", smi=Smi("no-driver")),
        "nvml.mismatch",
        "fail",
        "not loaded",
        "hostkit doctor",
    ),
    "SELinux": (without_devices("x", smi=Smi("permission")), "nvml.mismatch", "fail", "refuses", "label=disable"),
    "error 802": (without_devices(E802), "gpu.fabric", "fail", "fabric manager", "nvidia-fabricmanager"),
    "error 999": (without_devices(UVM), "gpu.uvm", "fail", "unknown error", "modprobe nvidia_uvm"),
    "no nvidia-uvm": (
        without_devices("x", nodes=("nvidia0", "nvidiactl")),
        "gpu.uvm",
        "fail",
        "/dev/nvidia-uvm",
        "modprobe",
    ),
    "memory taken": (
        with_gpus(trials={"0": a_trial(memory={"free_mib": 4096, "total_mib": 24576})}),
        "gpu.memory",
        "warn",
        "20.0 of GPU 0's 24.0 GiB",
        "query-compute-apps",
    ),
    "MIG without instances": (
        with_gpus(smi=Smi("ok", "", (Gpu(0, "A100", "570", None, None, True),))),
        "gpu.mig",
        "warn",
        "no instance",
        "mig -cgi",
    ),
    "torch broken": (
        with_gpus(torch=child(torch=failed("libcudart.so.12: cannot open shared object file"))),
        "torch.build",
        "fail",
        "libcudart",
        "--build dev",
    ),
    "torch dies": (
        replace(CPU, torch=child("died of signal SIGILL", "torch"), trials={}),
        "torch.build",
        "fail",
        "SIGILL",
        "--build dev",
    ),
    "torch for the CPU": (
        with_gpus(
            torch=a_torch(
                torch={"version": "2.8.0+cpu", "cuda": ""}, init=failed("Torch not compiled with CUDA enabled")
            )
        ),
        "torch.build",
        "fail",
        "build for the CPU",
        "--build dev",
    ),
    "another build": (with_gpus(wanted_build="cu126"), "torch.build", "warn", "wants 2.8.0+cu126", "--build dev"),
    "another release": (replace(CPU, wanted_torch="2.9.1"), "torch.build", "warn", "wants 2.9.1", "--build dev"),
    "catalogue differs": (
        with_gpus(published=frozenset({50, 70, 75, 80, 86, 90, 100})),
        "torch.catalogue",
        "warn",
        "lacks 5.0 and has 12.0 besides",
        "getArchFlags",
    ),
    "no code": (
        with_gpus("GTX 1080 Ti", torch=a_torch("GTX 1080 Ti", capability=(6, 1))),
        "torch.arch",
        "fail",
        "no code for GPU 0 GTX 1080 Ti (6.1)",
        "--build dev",
    ),
    "PTX": (
        with_gpus(torch=a_torch("B300", capability=(10, 3), arch={"archs": ["sm_90", "compute_90"]})),
        "torch.arch",
        "warn",
        "only PTX",
        "--build dev",
    ),
    "no kernel image": (
        with_gpus(trials={"0": a_trial(matmul=failed(NO_KERNEL))}),
        "torch.kernel",
        "fail",
        "no kernel image",
        "--build dev",
    ),
    "wrong results": (
        with_gpus(trials={"0": a_trial(matmul={"difference": 0.25})}),
        "torch.kernel",
        "fail",
        "wrong by 2e-01",
        "xid",
    ),
    "no numbers": (
        with_gpus(trials={"0": a_trial(convolution={"difference": float("inf")})}),
        "torch.kernel",
        "fail",
        "a convolution",
        "xid",
    ),
    "wedged": (
        with_gpus(trials={"0": child("hangs", "memory")}),
        "torch.kernel",
        "fail",
        "the first call: does not come back",
        "xid",
    ),
    "crash": (
        with_gpus(trials={"0": child("died of signal SIGSEGV", "matmul")}),
        "torch.kernel",
        "fail",
        "SIGSEGV",
        "xid",
    ),
    "no room": (
        with_gpus(trials={"0": a_trial(matmul=failed("CUDA out of memory. Tried"))}),
        "torch.kernel",
        "fail",
        "out of memory",
        "query-compute-apps",
    ),
    "child without a word": (
        with_gpus(trials={"0": child("ended with exit status 1", said="x: No module named lab")}),
        "torch.kernel",
        "fail",
        "No module named lab",
        "",
    ),
    "processor too old": (
        replace(CPU, trials={"cpu": child("died of signal SIGILL", "matmul")}),
        "torch.kernel",
        "fail",
        "on the processor",
        "",
    ),
    "cuDNN": (
        with_gpus(trials={"0": a_trial(cudnn=failed("Unable to load any of {libcudnn_cnn.so.9}"))}),
        "cudnn",
        "fail",
        "libcudnn_cnn",
        "LD_LIBRARY_PATH",
    ),
    "AMP": (
        with_gpus(trials={"0": a_trial(amp={"finite": False, "difference": float("inf")})}),
        "torch.amp",
        "fail",
        "not numbers",
        "xid",
    ),
    "GTX 16": (
        with_gpus("NVIDIA GeForce GTX 1660 SUPER", trials={"0": a_trial(amp={"finite": False})}),
        "torch.amp",
        "warn",
        "GTX 1660",
        "",
    ),
    "torchvision for the CPU": (
        with_gpus(trials={"0": a_trial(nms=failed("Could not run 'torchvision::nms'"))}),
        "torchvision",
        "fail",
        "torchvision::nms",
        "--build dev",
    ),
    "NCCL hangs": (
        with_gpus(
            "A", "B", nccl=(child("hangs", "reduce", join={}),) * 2, nccl_without_p2p=(child(join={}, reduce={}),) * 2
        ),
        "nccl",
        "fail",
        "without peer-to-peer it works",
        "NCCL_P2P_DISABLE=1",
    ),
    "NCCL aborted": (
        with_gpus(
            "A",
            "B",
            nccl=(child("died of signal SIGABRT", "reduce", "Watchdog caught collective operation timeout"),) * 2,
        ),
        "nccl",
        "fail",
        "does not end",
        "NCCL_DEBUG=INFO",
    ),
    "NCCL without room": (
        with_gpus(
            "A",
            "B",
            nccl=(
                child(
                    said="h:1:2 [0] NCCL WARN Error while creating shared memory segment /dev/shm/nccl-a (size 9)",
                    join=failed("NCCL error"),
                ),
            )
            * 2,
        ),
        "nccl",
        "fail",
        "creating shared memory",
        "SHM_SIZE=8gb",
    ),
    "Docker's 64 MB": (replace(CPU, shm=(64 << 20, 64 << 20)), "shm", "fail", "64 MiB", "SHM_SIZE=8gb"),
    "little shared memory": (replace(CPU, shm=(512 << 20, 512 << 20)), "shm", "warn", "512 MiB", "SHM_SIZE=8gb"),
    "shared memory taken": (replace(CPU, shm=(8 * GIB, 1 << 20)), "shm", "warn", "0.0 of 8.0 GiB", "/dev/shm"),
    "quota": (replace(CPU, processors=64, granted=2), "cpu", "warn", "2 of 64", "cpu.max"),
    "little memory": (replace(CPU, memory=2 * GIB), "memory", "warn", "of 2.0 GiB", "docker stats"),
    "no NumPy": (
        replace(CPU, torch=a_torch(numpy=failed("Numpy is not available"))),
        "packages",
        "fail",
        "Numpy is not available",
        "--build dev",
    ),
    "OpenCV wants libGL": (
        replace(CPU, torch=a_torch(opencv=failed("libGL.so.1: cannot open"))),
        "packages",
        "fail",
        "libGL",
        "--build dev",
    ),
    "two OpenCVs": (
        replace(CPU, opencvs=("opencv-python 4.12", "opencv-python-headless 5.0")),
        "packages",
        "warn",
        "two packages",
        "uninstall -y opencv-python ",
    ),
    "runs of another": (
        replace(CPU, runs=Folder(True, "EACCES", 0, GIB * 50, "/mnt/my runs")),
        "write.runs",
        "fail",
        "belongs to uid 0, and uid 1000",
        "chown -R \"$(id -u):$(id -g)\" '/mnt/my runs'",
    ),
    "data read-only": (
        replace(CPU, data=Folder(True, "EROFS")),
        "write.data",
        "warn",
        "data/ is mounted read-only",
        "findmnt",
    ),
    "no runs": (replace(CPU, runs=Folder(False, "ENOENT")), "write.runs", "fail", "there is no runs/", "mkdir -p runs"),
    "root writes": (replace(CPU, uid=0), "write.runs", "warn", "runs/ belongs to uid 1000", "host-setup"),
    "disk full": (replace(CPU, runs=Folder(True, "ENOSPC", 1000, 0)), "write.runs", "fail", "is full", "df -h runs"),
    "little room": (replace(CPU, runs=Folder(True, "", 1000, 2 * GIB)), "disk.space", "warn", "2.0 GiB", "du -sh"),
    "no room left": (replace(CPU, runs=Folder(True, "", 1000, GIB // 4)), "disk.space", "fail", "0.2 GiB", "du -sh"),
    "slow disk": (
        with_gpus(
            reading=child(
                read={
                    "files": 90,
                    "images": 90,
                    "read": 57,
                    "seconds": 1.0,
                    "bytes": 9e6,
                    "from_disk": 1.0,
                    "sequential": None,
                }
            )
        ),
        "data.speed",
        "warn",
        "57 images/s, 9.0 MB/s",
        "--cache ram",
    ),
    "share hangs": (replace(CPU, reading=child("hangs", "read")), "data.speed", "fail", "does not end", "findmnt"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_has_its_cause_and_its_command(name: str) -> None:
    facts, check, level, words, command = CASES[name]
    found = finding(facts, check)
    assert found.level == level, found
    assert words in found.cause
    assert found.consequence
    assert command in found.command
    assert not found.link or found.link.startswith("https://")
    assert doctor.exit_status(doctor.examine(facts)) == int("fail" in levels(facts).values())


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case[1] in {"gpu.lost", "driver.old", "driver.compat", "gpu.uvm"}]
)
def test_one_fault_of_the_driver_is_told_once(name: str) -> None:
    facts, check, *_ = CASES[name]
    assert [found for found, level in levels(facts).items() if level == "fail"] == [check]


def test_a_crash_leaves_what_comes_later_unjudged() -> None:
    found = levels(
        with_gpus(trials={"0": child("died of signal SIGSEGV", "matmul", memory={"free_mib": 1, "total_mib": 1})})
    )
    assert (found["torch.kernel"], found["cudnn"], found["torch.amp"]) == ("fail", "skip", "skip")


def test_translating_ptx_takes_longer_than_the_doctor_waits() -> None:
    slow = a_torch("B300", capability=(10, 3), arch={"archs": ["compute_90"]})
    found = finding(with_gpus(torch=slow, trials={"0": child("hangs", "memory")}), "torch.kernel")
    assert (found.level, "translates" in found.cause) == ("warn", True)


def test_the_default_build_instead_of_the_cpus_is_no_fault() -> None:
    assert finding(replace(CPU, wanted_build="cpu"), "torch.build").level == "ok"


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        ("sm_80 sm_86 sm_90", (8, 9), "sass"),
        ("sm_80", (8, 0), "sass"),
        ("sm_86", (8, 0), ""),
        ("sm_90", (10, 0), ""),
        ("sm_90 compute_90", (12, 0), "ptx"),
        ("sm_120 compute_120", (9, 0), ""),
        ("sm_120", (12, 1), "sass"),
        ("sm_90a", (9, 0), "sass"),
        ("sm_100a", (10, 3), ""),
        ("sm_100f", (10, 3), "sass"),
        ("", (8, 6), ""),
    ],
)
def test_which_code_runs_where(archs: str, capability: tuple[int, int], expected: str) -> None:
    assert serves(archs.split(), capability) == expected


@pytest.mark.parametrize(
    ("name", "weak"),
    [
        ("NVIDIA GeForce GTX 1650", True),
        ("NVIDIA GeForce GTX 1660 Ti with Max-Q Design", True),
        ("NVIDIA T1000 8GB", True),
        ("Quadro T2000", True),
        ("Tesla T4", False),
        ("NVIDIA GeForce RTX 2060", False),
        ("NVIDIA GeForce GTX 1080 Ti", False),
    ],
)
def test_cards_without_amp(name: str, weak: bool) -> None:
    assert bool(NO_AMP.search(name)) is weak


# Words


def test_the_text_of_each_level() -> None:
    facts = replace(CPU, shm=(512 << 20, 512 << 20))
    lines = doctor.as_text(doctor.examine(facts)).splitlines()
    assert lines[0] == "GPU and driver"
    assert lines[1].startswith("  skip  gpu.visible         because the container was opened for the CPU: ")
    at = next(number for number, line in enumerate(lines) if " shm " in line)
    assert lines[at] == "  warn  shm                 512 MiB of shared memory"
    assert lines[at + 1].startswith("        at --img 640 --batch 16 4 loader workers fit")
    assert lines[at + 2].startswith("        $ ")
    assert lines[at + 3].startswith("        https://")
    assert lines[-1] == "0 failed, 1 warning"


def test_a_name_cannot_write_to_the_terminal() -> None:
    text = doctor.as_text(doctor.examine(with_gpus("RTX \x1b[31m\n", torch=a_torch("RTX \x1b[31m\n"))))
    assert "\x1b" not in text
    assert r"RTX \x1b[31m\n" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert doctor.colour_wanted(Terminal())
    assert not doctor.colour_wanted(io.StringIO())
    assert "\033[31mfail\033[0m" in doctor.as_text(doctor.examine(replace(CPU, shm=(1 << 20, 0))), colour=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not doctor.colour_wanted(Terminal())


# The command


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch, project: Project) -> Callable[[Facts], None]:
    return lambda facts: monkeypatch.setattr(doctor, "gather", lambda _, progress: progress("torch") or facts)


def test_the_command_prints_the_same_as_json(
    described: Callable[[Facts], None], capsys: pytest.CaptureFixture[str]
) -> None:
    described(CASES["driver too old"][0])
    assert cli.main(["doctor", "--json"]) == 1
    said = capsys.readouterr()
    assert said.err == ""  # progress is for terminals
    objects = json.loads(said.out)
    assert [one["id"] for one in objects] == IDS
    assert {tuple(one) for one in objects} == {("id", "level", "cause", "consequence", "command", "link")}
    assert cli.main(["doctor"]) == 1
    assert "  fail  driver.old          the host's driver reaches CUDA 12.4" in capsys.readouterr().out
    described(CPU)
    assert cli.main(["doctor"]) == 0
    assert "\033" not in capsys.readouterr().out


def test_progress_goes_to_a_terminal_and_is_wiped(
    described: Callable[[Facts], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    described(CPU)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(["doctor"]) == 0
    assert terminal.getvalue() == "\r\033[Kdoctor: torch …\r\033[K"


def test_what_cannot_be_checked_is_exit_status_2(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_more_processes(*_: Any) -> Facts:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(doctor, "gather", no_more_processes)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("lab: nothing could be checked: ")
    assert cli.main(["doctor", "--jsno"]) == 2


def test_help_lists_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "doctor" in capsys.readouterr().out
    assert cli.main(["doctor", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--json" in said
    assert "lab doctor" in said


# Children and programs


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script of this name on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def write(name: str, script: str) -> Path:
        file = directory / name
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)
        return file

    return write


def as_python(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(file))


def test_a_child_that_dies_names_its_step(program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    script = """echo 'hello from a library'
echo '{"step": "torch"}'; echo '{"step": "torch", "ok": true, "version": "2"}'; echo '{"step": "init"}'
echo 'terminate called' >&2; kill -SEGV $$"""
    as_python(monkeypatch, program("python", script))
    found = doctor_facts._child(["torch"], 20)
    assert (found.end, found.at) == ("died of signal SIGSEGV", "init")
    assert doctor_facts.reached(found, "torch")
    assert not doctor_facts.reached(found, "init")
    assert "hello from a library" in found.said
    assert "terminate called" in found.said


def test_a_child_that_hangs_is_ended_and_what_it_said_is_kept(
    program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f'echo $$ >{tmp_path}/pid; echo \'{{"step": "memory"}}\'; exec sleep 1000'
    as_python(monkeypatch, program("python", script))
    found = doctor_facts._child(["device", "0"], 1)
    assert (found.end, found.at) == ("hangs", "memory")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_real_child_tells_that_there_is_no_torch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "torch.py").write_text("raise ImportError('libcudart.so.12: no such file')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(project.root))
    monkeypatch.setattr(doctor_facts, "CODE", CODE)
    found = doctor_facts._child(["torch"], 60)
    assert found.steps["torch"] == {"step": "torch", "ok": False, "error": "libcudart.so.12: no such file"}
    assert (found.end, list(found.steps)) == ("", ["torch"])


ROW = "0, NVIDIA A100-SXM4-40GB, 570.86.10, 40960, 312"
A100 = Gpu(0, "NVIDIA A100-SXM4-40GB", "570.86.10", 40960, 312, uuid="GPU-1")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"echo '{ROW}, Disabled, GPU-1'", Smi("ok", "", (A100,))),
        (
            'case "$*" in *mig.mode*) echo \'Field "mig.mode.current" is not a valid field to query.\'; exit 2;; esac\n'
            f"echo '{ROW}, GPU-1'",
            Smi("ok", "", (A100,)),
        ),
        (
            'if [ "$1" = -L ]; then echo "GPU 0: NVIDIA A100 (UUID: GPU-1)"\n'
            'echo "  MIG 3g.20gb     Device  0: (UUID: MIG-2)"\n'
            f"else echo '{ROW}, Enabled, GPU-1'; fi",
            Smi("ok", "", (A100._replace(mig=True, slices=(Slice("3g.20gb", "MIG-2", 20 << 10),)),)),
        ),
        (
            "echo '0, NVIDIA GB10, 580.126.09, [N/A], [N/A], [N/A], [N/A]'",
            Smi("ok", "", (Gpu(0, "NVIDIA GB10", "580.126.09"),)),
        ),
        ("echo 'Failed to initialize NVML: Unknown Error'; exit 255", "unknown-error"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18", "mismatch"),
        ("echo 'Failed to initialize NVML: Insufficient Permissions'; exit 4", "permission"),
        ("echo 'Failed to initialize NVML: GPU access blocked by the operating system'; exit 17", "blocked"),
        ("echo 'No devices were found'; exit 6", "no-devices"),
        ("echo 'what is this'; exit 3", "failed"),
        ("exec sleep 1000", "hangs"),
    ],
)  # fmt: skip
def test_nvidia_smi(
    program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, script: str, expected: Smi | str
) -> None:
    monkeypatch.setattr(doctor_facts, "SMI_LIMIT", 2.0)
    program("nvidia-smi", script)
    found = doctor_facts.ask_smi()
    assert found == expected if isinstance(expected, Smi) else found.state == expected


def test_device_files_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").mkdir()  # opening it to write fails, as a refused device does
    monkeypatch.setattr(devices, "DEV", tmp_path)
    assert doctor_facts._refused() == {"nvidiactl": "EISDIR"}


# Files of the project


def test_the_last_line_of_a_name_counts(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "LAB_TORCH_BUILD=cu126\nexport RUNS_DIR='/mnt/my runs'\n# X=1\nLAB_TORCH_BUILD=cu128\nEMPTY=\n",
        encoding="utf-8",
    )
    settings = doctor_facts.read_settings(tmp_path / ".env")
    assert settings == {"LAB_TORCH_BUILD": "cu128", "RUNS_DIR": "/mnt/my runs", "EMPTY": ""}
    assert doctor_facts.read_settings(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("services:\n  dev:\n    devices:\n      - driver: nvidia\n", "gpu"),
        ("services:\n  dev:\n    devices:\n      - driver: cdi\n", "gpu-cdi"),
        ("# driver: nvidia\nservices:\n  dev: {}\n", "cpu"),
        (None, ""),
    ],
)
def test_what_host_setup_decided(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "compose.local.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert doctor_facts._accel(file) == expected


def test_the_row_of_the_installed_build(tmp_path: Path) -> None:
    file = tmp_path / "catalog.json"
    builds = [["cu128", "aarch64", [80, 90], []], ["cu128", "x86_64", [75, 120], [120]], ["cpu", "x86_64", [], []]]
    file.write_text(json.dumps({"releases": [{"torch": "2.8.0", "builds": builds}]}), encoding="utf-8")
    assert doctor_facts.read_catalogue(file, a_torch(), "x86_64") == (frozenset({75, 120}), "")
    other = a_torch(torch={"version": "2.9.0+cu130", "cuda": "13.0"})
    assert doctor_facts.read_catalogue(file, other, "x86_64") == (None, "the catalogue has no torch 2.9.0+cu130")
    assert doctor_facts.read_catalogue(tmp_path / "absent", a_torch()) == (None, "there is no catalogue here")
    assert doctor_facts.read_catalogue(file, child(torch=failed("x"))) == (None, "torch cannot be asked")
    file.write_text("[1]", encoding="utf-8")
    assert doctor_facts.read_catalogue(file, a_torch())[0] is None


def test_looking_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    found = doctor_facts._folder(tmp_path, "")
    assert (found.exists, found.error, found.owner) == (True, "", os.getuid())
    assert not any(tmp_path.iterdir())
    assert doctor_facts._folder(tmp_path / "absent", "") == Folder(False, "ENOENT")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_of_another(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert doctor_facts._folder(tmp_path, "").error == "EACCES"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (16 * GIB, 8 * GIB)),
        ({"memory.max": "max", "memory.current": "5"}, (16 * GIB, 8 * GIB)),
        ({"memory.max": str(4 * GIB), "memory.current": str(GIB)}, (4 * GIB, 3 * GIB)),
        (
            {"memory.max": str(4 * GIB), "memory.current": str(4 * GIB), "memory.stat": f"anon 1\ninactive_file {GIB}"},
            (4 * GIB, GIB),
        ),
        (
            {"memory/memory.limit_in_bytes": str(4 * GIB), "memory/memory.usage_in_bytes": str(GIB)},
            (4 * GIB, 3 * GIB),
        ),
    ],
)
def test_memory_respects_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: tuple[int, int]
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {8 << 20} kB\n", encoding="ascii")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    monkeypatch.setattr(doctor_facts.limits, "CGROUP", tmp_path)
    assert doctor_facts._memory(meminfo) == expected


def test_the_speed_of_reading(tmp_path: Path) -> None:
    assert read_speed(tmp_path)["files"] == 0
    assert read_speed(tmp_path / "absent")["files"] == 0
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "images").mkdir()
    for number in range(40):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"x" * 1000)
        (tmp_path / "images" / f"{number}.txt").write_bytes(b"x")
    (tmp_path / "images" / "video.mp4").write_bytes(b"x" * (17 << 20))
    found = read_speed(tmp_path)
    assert (found["files"], found["images"], found["read"], found["bytes"]) == (40, 40, 40, 40_000)
    assert found["sequential"] > 0
    assert found["from_disk"] is None or 0 <= found["from_disk"] <= 1


def test_few_files_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    found = child(read=read_speed(tmp_path))
    assert finding(replace(CPU, reading=found), "data.speed").cause == "there are too few files in data/ to measure"


# The probe, with a torch that needs no GPU


class FakeTorch(types.SimpleNamespace):
    """As much of torch as `about_torch` asks for; `cuda_error` is what torch.cuda.init() raises."""

    def __init__(self, cuda_error: str = "", names: tuple[str, ...] = ()) -> None:
        def init() -> None:
            if cuda_error:
                raise RuntimeError(cuda_error)

        cuda = types.SimpleNamespace(
            init=init,
            nccl=types.SimpleNamespace(version=lambda: (2, 27, 3)),
            device_count=lambda: len(names),
            get_device_properties=lambda n: types.SimpleNamespace(
                name=names[n], major=8, minor=6, total_memory=24 * GIB
            ),
        )
        super().__init__(
            __version__="2.8.0+cu128",
            version=types.SimpleNamespace(cuda="12.8"),
            _C=types.SimpleNamespace(_cuda_getArchFlags=lambda: "sm_80 sm_86"),
            backends=types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 91002)),
            cuda=cuda,
        )


def probe_with(torch: FakeTorch, capsys: pytest.CaptureFixture[str]) -> Child:
    def load(name: str) -> Any:
        if name != "torch":
            raise ImportError(f"No module named '{name}'")
        return torch

    doctor_probe.about_torch(load)
    return doctor_facts.read_steps(capsys.readouterr().out, "", "")


def test_the_probe_tells_devices(capsys: pytest.CaptureFixture[str]) -> None:
    found = probe_with(FakeTorch(names=("RTX 3090",)), capsys)
    assert found.steps["arch"]["archs"] == ["sm_80", "sm_86"]
    assert found.steps["nccl"]["version"] == "2.27.3"
    expected = {"number": 0, "name": "RTX 3090", "capability": [8, 6], "memory_mib": 24576}
    assert found.steps["devices"]["devices"] == [expected]
    assert found.steps["numpy"]["error"] == "No module named 'numpy'"


def test_the_probe_tells_why_cuda_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    found = probe_with(FakeTorch(cuda_error=OLD), capsys)
    assert "devices" not in found.steps
    assert levels(with_gpus(torch=found, smi=Smi()))["driver.old"] == "fail"


# The real one


@pytest.mark.container
@pytest.mark.parametrize("name", ["_matmul", "_convolution", "_amp", "_nms"])
def test_what_runs_on_a_gpu_is_right_on_the_processor(name: str) -> None:
    import torch

    more = {"cudnn": True} if name == "_convolution" else {}
    found = getattr(doctor_probe, name)(torch, "cpu", **more)
    assert found.get("difference", 0) < (0.1 if name == "_amp" else 1e-3)
    assert found.get("finite", True)


@pytest.mark.container
def test_a_device_that_computes_wrongly_is_found() -> None:
    import torch

    wanted = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert doctor_probe.difference(torch.tensor([1.0, -2.0]), wanted) == 0.5
    assert doctor_probe.difference(torch.tensor([float("nan"), -4.0]), wanted) == float("inf")


@pytest.mark.container
def test_ranks_meet_and_add_up(tmp_path: Path) -> None:
    ranks = [["nccl", str(rank), "2", f"{tmp_path}/meeting", "gloo"] for rank in range(2)]
    found = doctor_facts._children(ranks, 120)
    assert all(doctor_facts.reached(rank, "reduce") for rank in found), found


@pytest.mark.container
def test_the_real_doctor_in_the_container(project: Project) -> None:
    for name in ("data", "runs"):
        (project.root / name).mkdir()
    for number in range(20):
        (project.root / "data" / f"{number}.jpg").write_bytes(b"x" * 1000)
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    command = [sys.executable, "-m", "lab", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    found = {one["id"]: one for one in json.loads(done.stdout)}
    assert list(found) == IDS
    for check in ("torch.build", "torch.kernel", "torchvision", "packages", "write.runs", "data.speed"):
        assert found[check]["level"] in {"ok", "warn"}, found[check]
    assert done.returncode == int(any(one["level"] == "fail" for one in found.values()))
