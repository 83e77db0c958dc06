"""Facts about described machines: fake programs on PATH and files below HOST_ROOT."""

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import DescribedHost

from generator.hostkit import probe
from generator.hostkit.project import needs

ROOT = Path(__file__).parent.parent
DAEMON_DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
REFUSED = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock:"
    ' Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.47/info": dial unix /var/run/docker.sock: connect: permission denied'
)


ROW = "0, Tesla T4, GPU-1, 535.183.01, 15360, 7.5, [N/A]\n"


@pytest.fixture
def host(tmp_path, monkeypatch):
    return DescribedHost(tmp_path, monkeypatch)


def look(limit=5.0, **more):
    return probe.probe(limit=limit, **more)


def test_a_workstation(host):
    host.nvidia_smi("570.86.10", "4090", "5090")
    host.docker(ServerVersion="28.3.0", Runtimes={"runc": {}, "nvidia": {}}, DockerRootDir="/var/lib/docker")
    host.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.19.1\ncommit: 0123abc\n")
    host.file(
        "/etc/os-release", 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04"\n'
    )
    host.file("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Jan 1\n")
    host.file("/var/lib/docker/readme", "")
    host.pci("0000:01:00.0")
    host.pci("0000:02:00.0", kind="0x030200")
    host.pci("0000:02:00.1", kind="0x040300")  # the card's sound
    host.pci("0000:00:02.0", vendor="0x8086")
    facts = look()
    assert [(gpu.number, gpu.name, gpu.capability, gpu.memory_mib) for gpu in facts.gpus] == [
        (0, "NVIDIA GeForce RTX 4090", "8.9", 24564),
        (1, "NVIDIA GeForce RTX 5090", "12.0", 32607),
    ]
    assert facts.driver == facts.module == "570.86.10"
    assert [card.address for card in facts.cards] == ["0000:01:00.0", "0000:02:00.0"]
    assert facts.docker[:2] == ("ok", "")
    assert facts.docker.runtimes == ("nvidia", "runc")
    assert (facts.compose, facts.toolkit, facts.hook) == ("2.38.1", "1.19.1", False)
    assert facts.distribution[:3] == ("ubuntu", ("debian",), "24.04")
    assert facts.system == "linux"
    assert facts.project_free
    assert facts.docker_free
    assert facts.user == "ada"
    assert facts.host("2.8.0", "3.11")[2:] == ("linux", facts.machine, "2.8.0", "3.11")


def test_a_laptop_without_anything(host):
    facts = look()
    assert facts.smi.state == "missing"
    assert facts.docker.state == "missing"
    assert (facts.gpus, facts.cards, facts.driver, facts.compose, facts.toolkit) == ((), (), "", "", "")
    assert facts.host().gpus == ()


def test_r470_without_compute_cap(host):
    host.nvidia_smi("470.256.02", "V100", refuses=("compute_cap",))
    smi = look().smi
    assert (smi.state, smi.driver) == ("ok", "470.256.02")
    assert (smi.gpus[0].name, smi.gpus[0].capability, smi.gpus[0].memory_mib) == ("Tesla V100-SXM2-16GB", "", 16384)


def test_memory_that_is_not_printed(host):
    host.nvidia_smi("580.126.09", "GB10")
    only = look().gpus[0]
    assert (only.memory_mib, only.capability) == (None, "12.1")


def test_cells_that_are_no_numbers(host):
    host.file("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Wed\n")
    host.says("nvidia-smi", "0, Tesla T4, [Unknown Error], [N/A], [Unknown Error], ERR!, [N/A]\n")
    facts = look()
    assert facts.gpus[0][2:] == ("", None, "")
    assert facts.host().driver == "535.183.01"


@pytest.mark.parametrize(
    ("memory", "capability", "found"),
    [
        ("15360", "7.5", (15360, "7.5")),
        ("²", "²", (None, "")),
        ("9" * 5000, "9" * 5000, (None, "")),
        ("٣", "٨.٦", (None, "")),
        ("-1", "8", (None, "")),
        ("[N/A]", "8.66", (None, "")),
        ("15360", "7.5.1", (15360, "")),
    ],
)
def test_numbers_that_are_none_are_unknown(host, memory, capability, found):
    host.says("nvidia-smi", f"0, Tesla T4, GPU-1, 535.183.01, {memory}, {capability}, [N/A]\n")
    (only,) = look().gpus
    assert (only.memory_mib, only.capability) == found


@pytest.mark.parametrize("driver", ["5" * 5000, "535", "٥٣٥.1", "1." * 3000, "535.183.01.1.1.1", "new"])
def test_a_driver_version_that_is_none_is_unknown(host, driver):
    host.says("nvidia-smi", f"0, Tesla T4, GPU-1, {driver}, 15360, 7.5, [N/A]\n")
    assert (look().driver, len(look().gpus)) == ("", 1)


def test_a_carriage_return_does_not_end_a_row(host):
    host.says(
        "nvidia-smi",
        "0, Tesla\rT4, GPU-1, 535.183.01, 15360, 7.5, [N/A]\r\n1, Tesla T4, GPU-2, 535.183.01, 15360, 7.5, [N/A]\r\n",
    )
    assert [gpu.name for gpu in look().gpus] == ["Tesla\rT4", "Tesla T4"]


def test_a_name_has_the_length_that_the_driver_allows(host):
    host.says("nvidia-smi", f"0, {'W' * 5000}, GPU-1, 535.183.01, 15360, 7.5, [N/A]\n")
    assert look().gpus[0].name == "W" * 96


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_program_that_prints_without_end_is_stopped(host, stream):
    row = "0, Tesla T4, GPU-1, 535.183.01, 15360, 7.5, [N/A]"
    host.program("nvidia-smi", f"echo '{row}' {stream}; exec /bin/cat /dev/zero {stream}")
    host.program("docker", "exec /bin/cat /dev/zero")
    facts = look(limit=60.0)
    assert (facts.smi.state, facts.smi.gpus) == ("unreadable", ())
    assert len(facts.smi.message) <= 4000
    assert (facts.docker.state, facts.compose) == ("failed", "")
    assert facts.seconds < 30


@pytest.mark.parametrize(
    ("printed", "version"), [("1.19.1", "1.19.1"), ("9" * 5000 + ".1.1", "unknown"), ("²", "unknown")]
)
def test_toolkit_version(host, printed, version):
    host.says("nvidia-ctk", f"NVIDIA Container Toolkit CLI version {printed}\n")
    assert look().toolkit == version


def test_rows_before_a_warning_count(host):
    row = "0, Tesla T4, GPU-1, 535.183.01, 15360, 7.5, [N/A]\n"
    host.says("nvidia-smi", row + "WARNING: infoROM is corrupted at gpu 0000:0B:00.0\n", code=14)
    smi = look().smi
    assert (smi.state, len(smi.gpus)) == ("ok", 1)
    assert "infoROM" in smi.message


@pytest.mark.parametrize(
    ("out", "err", "code", "state"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 58\n", "", 18, "mismatch"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "", 9, "no-driver"),
        ("No devices were found\n", "", 6, "no-devices"),
        ("No devices were found\n", "", 0, "no-devices"),
        ("", "", 0, "unreadable"),
        ("", "", 6, "failed"),
        ("\0" * 100, "", 0, "unreadable"),
        ("²" + ROW, "", 0, "unreadable"),
        ("٣" + ROW, "", 0, "unreadable"),
        ("9" * 5000 + ROW, "", 0, "unreadable"),
        ("oops\r" + ROW[1:], "", 0, "unreadable"),
        ("Failed to initialize NVML: GPU access blocked by the operating system\n", "", 17, "blocked"),
        ("", "Failed to initialize NVML: Insufficient Permissions\n", 4, "permission"),
        ("Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.\n", "", 15, "lost"),
        ("Failed to initialize NVML: Unknown Error\n", "", 255, "failed"),
        ("0, \udcff, , ,\n".encode("utf-8", "surrogateescape").decode("latin-1"), "", 1, "failed"),
    ],
)  # fmt: skip
def test_nvidia_smi_that_fails(host, out, err, code, state):
    host.says("nvidia-smi", out, err, code)
    smi = look().smi
    assert (smi.state, smi.gpus) == (state, ())


def test_a_lost_gpu_beside_a_working_one(host):
    row = "1, Tesla T4, GPU-1, 535.183.01, 15360, 7.5, [N/A]\n"
    host.says("nvidia-smi", "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.\n" + row, code=15)
    smi = look().smi
    assert [gpu.number for gpu in smi.gpus] == [1]
    assert "GPU is lost" in smi.message


def test_a_hanging_nvidia_smi_is_a_finding(host):
    host.hangs("nvidia-smi")
    host.docker(ServerVersion="28.3.0", Runtimes={})
    facts = look(limit=1.0)
    assert facts.smi.state == "hangs"
    assert facts.docker.state == "ok"
    assert facts.seconds < 30  # not the minute for which it would have hung


def test_everything_hangs_at_once(host):
    for name in ("nvidia-smi", "docker", "nvidia-ctk"):
        host.hangs(name)
    started = time.monotonic()
    facts = look(limit=0.5)
    assert time.monotonic() - started < 30
    assert (facts.smi.state, facts.docker.state) == ("hangs", "hangs")


def test_no_process_outlives_the_limit(host, tmp_path):
    mark = tmp_path / "mark"
    host.program("nvidia-smi", f"(/bin/sleep 1; echo late > {mark}) & wait")
    look(limit=0.2)
    time.sleep(1.5)
    assert not mark.exists()


def test_nvidia_smi_that_cannot_be_run(host):
    host.program("nvidia-smi", "").chmod(0o644)
    assert look().smi.state == "missing"
    (host.bin / "nvidia-smi").write_bytes(b"\x7fELF of another machine")
    (host.bin / "nvidia-smi").chmod(0o755)
    assert look().smi.state == "failed"


def test_the_driver_alone(host):
    host.file(
        "/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
    )
    facts = look()
    assert (facts.module, facts.driver, facts.gpus) == ("580.95.05", "580.95.05", ())


def test_wsl2(host):
    host.file("/proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@x) #1 SMP\n")
    host.file("/dev/dxg", "")
    host.file("/usr/lib/wsl/lib/libcuda.so.1", "")
    smi = host.nvidia_smi("581.60", "4090")
    beside = host.root / "usr/lib/wsl/lib/nvidia-smi"
    smi.rename(beside)
    facts = look()
    assert (facts.system, facts.wsl_driver, facts.driver) == ("wsl2", True, "581.60")
    assert facts.host().os == "wsl2"


@pytest.mark.parametrize(
    ("info", "err", "code", "state"),
    [
        ({"ServerErrors": [DAEMON_DOWN]}, f"errors pretty printing info\n{DAEMON_DOWN}", 1, "down"),
        ({"ID": "", "ServerErrors": [DAEMON_DOWN]}, "", 0, "down"),
        ({}, "failed to connect to the docker API at unix:///run/docker.sock; check if the path is correct", 1, "down"),
        ({"ServerErrors": [REFUSED]}, "", 1, "permission"),
        ({}, "unknown flag: --format", 125, "failed"),
    ],
)
def test_docker_that_does_not_serve(host, info, err, code, state):
    host.docker(code=code, err=err, **info)
    assert look().docker.state == state


def test_rootless_docker(host):
    host.docker(
        ServerVersion="28.3.0", SecurityOptions=["name=seccomp,profile=builtin", "name=rootless"], Runtimes={"runc": {}}
    )
    assert look().docker.rootless


def test_docker_desktop(host):
    host.docker(
        ServerVersion="28.3.0", OperatingSystem="Docker Desktop", Runtimes={"runc": {}}, DockerRootDir="/var/lib/docker"
    )
    facts = look()
    assert facts.docker.kind == "desktop"
    assert facts.docker_free is None  # that path lies in its virtual machine


def test_podman_behind_a_docker_command(host):
    host.docker(host={"security": {"rootless": True}}, store={"graphRoot": "/home/ada/x"}, version={"Version": "5.4.0"})
    docker = look().docker
    assert (docker.state, docker.kind, docker.rootless, docker.version) == ("ok", "podman", True, "5.4.0")


def test_cdi(host):
    host.docker(ServerVersion="28.3.0", Runtimes={}, CDISpecDirs=["/etc/cdi", "/opt/cdi"],
                DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=all"}])  # fmt: skip
    host.file("/opt/cdi/nvidia.yaml", "cdiVersion: 0.7.0\nkind: nvidia.com/gpu\n")
    host.file("/etc/cdi/other.yaml", "kind: example.com/nic\n")
    host.file("/var/run/cdi/notes.txt", "nvidia.com/gpu")
    facts = look()
    assert facts.docker.cdi
    assert facts.cdi == ("/opt/cdi/nvidia.yaml",)


@pytest.mark.parametrize(
    ("printed", "version"),
    [("2.38.1", "2.38.1"), ("v2.17.2", "2.17.2"), ("2.26.1-4", "2.26.1-4"), ("", ""), ("9" * 5000 + ".1", "")],
)
def test_compose_version(host, printed, version):
    host.docker(compose=printed, ServerVersion="28.3.0")
    assert look().compose == version


def test_the_old_compose_command_is_found(host):
    host.docker(compose="", ServerVersion="20.10.24")
    host.says("docker-compose", "1.29.2\n")
    assert look().compose == "1.29.2"


def test_the_engine_can_be_left_out(host):
    host.nvidia_smi("570.86.10", "4090")
    host.hangs("docker")
    facts = look(docker=False)
    assert facts.docker.state == "skipped"
    assert len(facts.gpus) == 1


def test_broken_files_are_no_facts(host):
    host.file("/etc/os-release", "\x00\ufffd=\n===\nID")
    host.file("/proc/driver/nvidia/version", "nothing here")
    (host.root / "sys/bus/pci/devices/0000:01:00.0").mkdir(parents=True)
    (host.root / "etc/cdi").write_text("not a folder")
    facts = look()
    assert (facts.module, facts.cards, facts.cdi, facts.distribution.id) == ("", (), (), "")


@pytest.mark.parametrize("module", ["probe", "resolve", "doctor", "setup"])
def test_imports_stay_light(module):
    code = f"import sys, generator.hostkit.{module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "asyncio",
        "urllib.request",
        "http.client",
        "dataclasses",
        "concurrent.futures",
        "yaml",
        "argparse",
        "tempfile",
        "logging",
    }
    already = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not heavy & (set(loaded) - set(already.stdout.split()))


def test_facts_do_not_depend_on_the_language(host, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    host.program("nvidia-smi", '[ "$LC_ALL" = C ] && echo "0, Tesla T4, GPU-1, 535.183.01, 15360, 7.5, [N/A]"')
    assert len(look().gpus) == 1
    assert os.environ["LC_ALL"] == "de_DE.UTF-8"


# The GPU without nvidia-smi


def test_gpus_by_the_kernel_modules_own_list(host):
    host.file("/sys/module/nvidia/version", "580.95.05\n")
    for address, model in (("0000:02:00.0", "NVIDIA GeForce RTX 3090"), ("0000:01:00.0", "NVIDIA GeForce RTX 4090")):
        text = f"Model: \t\t {model}\nIRQ:   \t\t 126\nGPU UUID: \t GPU-1\nVideo BIOS: \t 95.02\n"
        host.file(f"/proc/driver/nvidia/gpus/{address}/information", text)
    host.file("/proc/driver/nvidia/gpus/0000:03:00.0/information", "\0\xff")
    facts = look()
    assert (facts.module, facts.driver) == ("580.95.05", "580.95.05")
    assert [(gpu.number, gpu.name) for gpu in facts.gpus] == [
        (0, "NVIDIA GeForce RTX 4090"),
        (1, "NVIDIA GeForce RTX 3090"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build  (dvs-builder@U22)",
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  535.183.01  Release Build",
    ],
)
def test_the_module_by_its_proc_file(host, line):
    host.file("/proc/driver/nvidia/version", f"{line}\nGCC version:  gcc version 11.4.0\n")
    assert look().module == "535.183.01"


def test_cards_on_the_bus(host):
    host.pci("0000:01:00.0", device="0x1b06", driver="nouveau")
    host.pci("0000:02:00.0", device="nonsense")
    host.file("/sys/module/nouveau/refcnt", "1")
    facts = look()
    assert [tuple(card) for card in facts.cards] == [
        ("0000:01:00.0", 0x1B06, "nouveau"),
        ("0000:02:00.0", 0, ""),
    ]
    assert facts.nouveau


@pytest.mark.parametrize(("content", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"", False)])
def test_secure_boot(host, content, on):
    host.file("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "").write_bytes(content)
    assert look().secure_boot is on


def test_device_files(host):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "null"):
        host.file(f"/dev/{name}", "")
    assert look().devices == ("nvidia-uvm", "nvidia0", "nvidiactl")


def test_mig_instances(host):
    host.nvidia_smi("570.133.20", "A100", "A100", mig={0: ("3g.40gb", "3g.40gb"), 1: ()})
    facts = look()
    assert facts.smi.mig == (0, 1)
    assert [(one.gpu, one.profile, one.uuid[:4]) for one in facts.smi.slices] == [(0, "3g.40gb", "MIG-")] * 2
    assert [gpu.number for gpu in facts.gpus] == [0]


def test_both_optional_fields_may_be_refused(host):
    host.nvidia_smi("418.226.00", "V100", refuses=("compute_cap", "mig.mode.current"))
    facts = look()
    assert (facts.gpus[0].name, facts.gpus[0].capability, facts.driver) == ("Tesla V100-SXM2-16GB", "", "418.226.00")


# The engine


def test_the_context_and_where_it_leads(host, monkeypatch):
    host.program(
        "docker",
        'case "$1" in info) echo \'{"ServerVersion": "28.0", "ClientInfo": {"Context": "lab"}, "MemTotal": 8,'
        ' "NCPU": 2, "SecurityOptions": ["name=userns", "name=selinux"]}\';; context) echo "ssh://ada@gpu1";; esac',
    )
    facts = look()
    assert (facts.docker.context, facts.endpoint) == ("lab", "ssh://ada@gpu1")
    assert (facts.docker.memory, facts.docker.cpus, facts.docker.userns, facts.docker.selinux) == (8, 2, True, True)
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.7:2376")
    assert look().endpoint == "tcp://10.0.0.7:2376"


def test_docker_desktops_stand_in_under_wsl(host):
    host.file("/proc/version", "Linux version 5.15.90.1-microsoft-standard-WSL2\n")
    host.says(
        "docker",
        err="\nThe command 'docker' could not be found in this WSL 2 distro.\n"
        "We recommend to activate the WSL integration in Docker Desktop settings.\n",
        code=1,
    )
    host.file("/mnt/c/Program Files/Docker/Docker/Docker Desktop.exe", "")
    facts = look()
    assert (facts.docker.state, facts.desktop_installed) == ("integration", True)


def running(host, requests, said, code=0, state="true"):
    about = (
        f'{{"Config": {{"Image": "lab:torch2.8.0-cu128"}}, "HostConfig": {{"DeviceRequests": {requests}}},'
        f' "State": {{"Running": {state}}}}}'
    )
    return host.program(
        "docker",
        f'case "$1" in inspect) [ "$6" = lab-ada-123456-dev-1 ] && echo \'{about}\';;'
        f' exec) printf "%s\\n" "{said}"; exit {code};; esac',
    )


@pytest.mark.parametrize(
    ("requests", "said", "code", "accel", "state"),
    [
        ("null", "", 0, "cpu", ""),
        ('[{"Driver": "nvidia"}]', "GPU 0: NVIDIA A10 (UUID: GPU-1)", 0, "gpu", "ok"),
        ('[{"Driver": "nvidia"}]', "Failed to initialize NVML: Unknown Error", 255, "gpu", "lost"),
        ('[{"Driver": "cdi"}]', "nvidia-smi: not found", 127, "gpu-cdi", "failed"),
    ],
)
def test_the_projects_container(host, requests, said, code, accel, state):
    running(host, requests, said, code)
    assert look().running.id == ""
    found = look(needs=probe.Needs("lab-ada-123456")).running
    assert (found.id, found.gpu, found.accel) == ("lab-ada-123456-dev-1", state, accel)
    assert found.image == "lab:torch2.8.0-cu128"


def test_a_container_that_stands_still_is_not_asked(host):
    running(host, '[{"Driver": "nvidia"}]', "Failed to initialize NVML: Unknown Error", state="false")
    found = look(needs=probe.Needs("lab-ada-123456")).running
    assert (found.gpu, found.accel) == ("", "gpu")


@pytest.mark.parametrize("about", ["", "null", "[]", '{"Config": 1, "HostConfig": [], "State": "x"}', "{"])
def test_a_container_that_is_described_oddly(host, about):
    host.program("docker", f"case \"$1\" in inspect) echo '{about}';; esac")
    assert look(needs=probe.Needs("lab")).running.gpu == ""


def test_configuration_files_of_engine_and_toolkit(host):
    facts = look()
    assert (facts.shm_default, facts.no_cgroups) == (None, False)
    host.file("/etc/docker/daemon.json", '{"default-shm-size": "2G"}')
    config = "[nvidia-container-cli]\n#no-cgroups = false\nno-cgroups = true\n"
    host.file("/etc/nvidia-container-runtime/config.toml", config)
    facts = look()
    assert (facts.shm_default, facts.no_cgroups) == (2 << 30, True)
    host.file("/etc/docker/daemon.json", "{")
    assert look().shm_default is None


# Limits of this host and this person


def test_memory_processors_and_quota(host):
    host.file("/proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:   8192 kB\n")
    host.file("/proc/self/cgroup", "0::/user.slice/user-1001.slice/session-3.scope\n")
    host.file("/sys/fs/cgroup/user.slice/user-1001.slice/cpu.max", "400000 100000\n")
    host.file("/sys/fs/cgroup/user.slice/user-1001.slice/session-3.scope/cpu.max", "max 100000\n")
    facts = look()
    assert (facts.memory, facts.memory_free, facts.cpu_quota) == (16 << 20, 8 << 20, 4.0)
    assert facts.cpus >= 1
    host.file("/sys/fs/cgroup/user.slice/user-1001.slice/cpu.max", "0 0\n")
    assert look().cpu_quota is None


def test_the_docker_group(host):
    assert look().docker_group is None
    host.file("/etc/group", f"root:x:0:\ndocker:x:{os.getgid()}:ada,bob\n")
    facts = look()
    assert (facts.docker_group, facts.in_docker_group) == (("ada", "bob"), True)
    host.file("/etc/group", "docker:x:999999999:\n")
    facts = look()
    assert (facts.docker_group, facts.in_docker_group) == ((), False)


def test_ports_that_are_taken(host):
    head = "  sl  local_address rem_address   st tx_queue\n"
    rows = (
        "   0: 0100007F:1776 00000000:0000 0A 00000000\n"  # 127.0.0.1:6006, listening
        "   1: 0100007F:22B8 0100007F:1776 01 00000000\n"  # 8888, an established connection
        "   2: 0700000A:1F90 00000000:0000 0A 00000000\n"  # 10.0.0.7:8080
    )
    host.file("/proc/net/tcp", head + rows)
    host.file("/proc/net/tcp6", f"{head}   0: {'0' * 32}:0016 {'0' * 32}:0000 0A 0\n")
    asked = (("TENSORBOARD_PORT", 6006), ("JUPYTER_PORT", 8888), ("SERVE_PORT", 8080), ("SSH_PORT", 22))
    assert look(needs=probe.Needs(ports=asked)).busy_ports == (("TENSORBOARD_PORT", 6006), ("SSH_PORT", 22))


def test_the_claims_of_ports(host):
    assert look().claims is None
    place = host.root / "tmp" / "yolov5-devcontainer-ports"
    place.mkdir(parents=True)
    place.chmod(0o777)
    assert look().claims == (0o040777, os.getuid())
    place.rmdir()
    place.symlink_to(host.root)  # not what it leads to
    assert stat.S_ISLNK(look().claims[0])


def test_a_real_port_that_is_taken():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert probe.probe(docker=False, needs=probe.Needs(ports=(("P", port),))).busy_ports == (("P", port),)


def test_what_a_project_asks_of_its_host(tmp_path, monkeypatch):
    assert needs(tmp_path) == probe.Needs()
    text = (ROOT / "template/{{cookiecutter.project_slug}}/compose.yaml").read_text()
    (tmp_path / "compose.yaml").write_text(text)
    others = (("SSH_PORT", 2222), ("SERVE_PORT", 8000))
    usual = (("JUPYTER_PORT", 8888), ("TENSORBOARD_PORT", 6006), *others)
    assert needs(tmp_path) == probe.Needs("", usual, 8 << 30)
    (tmp_path / ".env").write_text("COMPOSE_PROJECT_NAME=lab\nTENSORBOARD_PORT=7000\nSHM_SIZE=64m\n")
    assert needs(tmp_path) == probe.Needs("lab", (usual[0], ("TENSORBOARD_PORT", 7000), *others), 64 << 20)
    monkeypatch.setenv("TENSORBOARD_PORT", "none")
    assert needs(tmp_path).ports == (usual[0], *others)


def test_windows_own_nvidia_smi_comes_first(host):
    host.file("/proc/version", "Linux version 5.15.90.1-microsoft-standard-WSL2\n")
    host.says("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    ours = host.file("/usr/lib/wsl/lib/nvidia-smi", f"#!/bin/sh\nprintf '%s' '{ROW}'\n")
    ours.chmod(0o755)
    facts = look()
    assert (facts.smi.state, facts.linux_driver) == ("ok", True)


def test_a_slow_first_answer_is_waited_for_where_it_decides(host):
    host.program("nvidia-smi", f"/bin/sleep 1\nprintf '%s' '{ROW}'")
    assert look(limit=0.4).smi.state == "hangs"
    assert look(limit=0.4, patience=5.0).smi.state == "ok"


def test_certificates_that_the_environment_names(host, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/opt/corp/ca.pem")
    monkeypatch.delenv("NODE_EXTRA_CA_CERTS", raising=False)
    assert look().certificate_hint == "/opt/corp/ca.pem"
