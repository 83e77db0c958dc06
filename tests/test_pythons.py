"""A project's copy of hostkit answers the same under every Python that a host may have: 3.8 and newer.

Interpreters are looked for in $HOSTKIT_PYTHONS (paths; see tests/newest-python), in pyenv and on PATH. A version that
is not here is skipped, unless $HOSTKIT_PYTHONS_REQUIRED (e.g. "3.8 3.15") says that it must be.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hosts import DescribedHost

ROOT = Path(__file__).parent.parent
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")  # now: the session's fixtures move $HOME
VERSIONS = [f"3.{minor}" for minor in range(8, 16)]
HERE = f"3.{sys.version_info.minor}"
FLEET = """\
{"driver": "570.86.10", "gpus": [{"name": "NVIDIA GeForce RTX 5090", "capability": "12.0", "memory_mib": 32607}]}
{"driver": "535.183.01", "gpus": [{"name": "Tesla T4"}, {"name": "Tesla P100-PCIE-16GB", "capability": "6.0"}]}
{"driver": "581.60", "gpus": [{"name": "NVIDIA GeForce GTX 1080 Ti", "capability": null}], "os": "wsl2"}
{"driver": "580.95.05", "gpus": [{"name": "NVIDIA GH200 480GB", "capability": 9.0}], "machine": "aarch64"}

{"driver": "470.256.02", "gpus": [{"name": "K80\\u00e9\\ud800", "capability": "3.7"}], "torch": "2.0.1"}
{"driver": "", "gpus": []}
{"driver": 570}
[]
no JSON at all
"""


def version(python: str | Path) -> str:
    """The version of an interpreter, "" when it does not run (pyenv has a stub on PATH for every version it knows)."""
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()


@functools.cache
def interpreters() -> dict[str, str]:
    """Interpreters of this machine by version, those that were named first."""
    found: dict[str, str] = {HERE: sys.executable}
    named = os.environ.get("HOSTKIT_PYTHONS", "").split()
    on_path = [path for path in map(shutil.which, (f"python{each}" for each in VERSIONS)) if path]
    for place in [*named, *sorted(PYENV.glob("versions/*/bin/python3")), *on_path]:
        found.setdefault(version(place), str(place))
        assert place not in named or version(place), f"HOSTKIT_PYTHONS names {place}, which does not run"
    return found


@pytest.fixture(params=VERSIONS)
def python(request):
    if request.param not in interpreters():
        absent = f"there is no Python {request.param} on this machine: name one in HOSTKIT_PYTHONS"
        if request.param in os.environ.get("HOSTKIT_PYTHONS_REQUIRED", "").split():
            pytest.fail(absent)
        pytest.skip(absent)
    return interpreters()[request.param]


# Hosts


def workstation(host):
    host.nvidia_smi("570.86.10", "4090", "5090")
    host.docker(ServerVersion="28.3.0", Runtimes={"runc": {}, "nvidia": {}}, DockerRootDir="/var/lib/docker")
    host.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.19.1\n")
    host.file("/etc/os-release", 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04"\n')
    host.file("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed\n")


def old_server(host):
    host.nvidia_smi("470.256.02", "V100", "K80", refuses=("compute_cap",))
    host.docker(code=1, err="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    host.file("/etc/os-release", "ID=rocky\nID_LIKE='rhel centos fedora'\n")


def sliced(host):
    host.nvidia_smi("580.95.05", "A100", "A100", mig={1: ("3g.40gb", "1g.10gb")})
    host.docker(ServerVersion="28.3.0", Runtimes={"runc": {}}, CDISpecDirs=["/etc/cdi"],
                DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=all"}])  # fmt: skip


def laptop(host):
    host.docker(ServerVersion="28.3.0", OperatingSystem="Docker Desktop", Runtimes={"runc": {}})


def noise(host):
    """Bytes that are no UTF-8, characters that no terminal of 1990 has, and answers of the wrong shape."""
    host.program("nvidia-smi", "printf '0, NVIDIA \\377\\360\\237\\246\\206 é, \\303, 570.86.10, 24564, 8.9, [N/A]\\n'")
    host.docker(ServerVersion="²", ServerErrors=["é\ud800"], Runtimes={}, DockerRootDir="/nö")
    host.file("/etc/os-release", "ID=ubuntu\nPRETTY_NAME='Ubüntu 🦆'\n")


def windows_subsystem(host):
    host.nvidia_smi("581.60", "1080 Ti")
    host.docker(ServerVersion="20.10.24", compose="1.29.2", Runtimes={"runc": {}})
    host.file("/proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@x) #1 SMP\n")
    host.file("/dev/dxg", "")
    host.file("/usr/lib/wsl/lib/libcuda.so.1", "")


def stuck(host):
    host.hangs("nvidia-smi")
    host.docker(ServerVersion="28.3.0", Runtimes={"runc": {}, "nvidia": {}})


HOSTS = (workstation, old_server, sliced, noise, windows_subsystem)


class Machine(NamedTuple):
    project: Path
    environment: tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def machines(tmp_path_factory, bake):
    """Every host by name, each with a project of its own."""
    made = {}
    cache = tmp_path_factory.mktemp("compiled")  # once for each Python, and outside the projects
    with pytest.MonkeyPatch.context() as patch:
        for describe in (*HOSTS, laptop, stuck):
            folder = tmp_path_factory.mktemp(describe.__name__)
            host = DescribedHost(folder, patch)
            describe(host)
            project = folder / "my-detector"
            shutil.copytree(bake(), project, ignore=shutil.ignore_patterns(".git", "code"))
            environment = {**host.environment, "HOME": str(folder), "LC_ALL": "C", "PYTHONPYCACHEPREFIX": str(cache)}
            made[describe.__name__] = Machine(project, tuple(environment.items()))
    return made


def start(python: str, machine: Machine, *arguments: str) -> subprocess.Popen:
    """hostkit as .devcontainer/host-setup starts it, on this host and nothing else."""
    return subprocess.Popen(
        [python, "-m", "hostkit", *arguments],
        cwd=machine.project / ".devcontainer", env=dict(machine.environment),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class Told(NamedTuple):
    code: int
    out: str
    err: str
    files: dict[str, str]


def told(process: subprocess.Popen, machine: Machine, given: bytes = b"") -> Told:
    """What a command printed and wrote. Free space and the token are masked: they change between two runs."""
    out, err = (re.sub(r"\d+(\.\d+)? GiB", "N GiB", text.decode()) for text in process.communicate(given, timeout=120))
    files = {}
    for name in (".env", ".devcontainer/compose.local.yaml", ".devcontainer/host-ca.pem"):
        path = machine.project / name
        files[name] = re.sub(r"(_TOKEN=)[\w-]{43}\n", r"\1…\n", path.read_bytes().decode()) if path.exists() else ""
    return Told(process.returncode, out, err, files)


@functools.cache
def answers(python: str, machine: Machine, *words: str) -> list[Told]:
    """What commands that write nothing say, run side by side."""
    return [told(process, machine) for process in [start(python, machine, *each.split()) for each in words]]


@functools.cache
def prepared(python: str, machine: Machine) -> Told:
    """What setup says and writes in a project where it never ran."""
    for name in (".env", ".devcontainer/compose.local.yaml", ".devcontainer/host-ca.pem"):
        (machine.project / name).unlink(missing_ok=True)
    return told(start(python, machine, "setup"), machine)


@pytest.mark.parametrize("name", [describe.__name__ for describe in HOSTS])
def test_the_same_answers_on_every_python(python, machines, name):
    expected, found = (
        [prepared(each, machines[name]), *answers(each, machines[name], "doctor --json", "resolve --json")]
        for each in (sys.executable, python)
    )
    assert found == expected
    assert [told.err for told in found[1:]] == ["", ""]
    assert found[0].files[".env"]
    assert json.loads(found[1].out)


def test_the_same_words_on_every_python(python, machines):
    expected, found = (
        answers(each, machines["noise"], "doctor", "resolve --torch 2.8.0 --python 3.11", "doctor --torch 9.9")
        for each in (sys.executable, python)
    )
    assert found == expected
    assert "9.9" in found[2].err
    assert [told.err for told in found[:2]] == ["", ""]


def test_the_same_fleet_on_every_python(python, machines):
    host = machines["laptop"]
    expected, found = (
        told(start(each, host, "resolve", "--hosts", "-"), host, FLEET.encode()) for each in (sys.executable, python)
    )
    assert found == expected
    assert (len(found.out.splitlines()), found.err) == (9, "")


def test_json_that_parsers_disagree_about_is_one_bad_line(python, machines):
    """A trailing comma, nesting without end, a number of 5000 digits: their words and limits change with Python."""
    laptop = machines["laptop"]
    odd = ['{"driver": "570.86.10",}', "[" * 100_000, '{"gpus": ' * 10_000, '{"driver": ' + "9" * 5000 + "}"]
    good = '{"driver": "570.86.10", "gpus": [{"name": "Tesla T4"}]}'
    found = told(start(python, laptop, "resolve", "--hosts", "-"), laptop, "\n".join([*odd, good]).encode())
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert ["error" in line for line in lines] == [True] * len(odd) + [False]
    assert (found.code, found.err) == (1, "")


def test_a_hanging_driver_on_every_python(machines):
    machine = machines["stuck"]
    started = {
        each: start(place, machine, "doctor", "--json") for each, place in interpreters().items() if each in VERSIONS
    }
    found = {each: told(process, machine) for each, process in started.items()}
    assert {each: answer for each, answer in found.items() if answer != found[HERE]} == {}
    assert "driver.hangs" in [finding["id"] for finding in json.loads(found[HERE].out) if finding["level"] == "fail"]


IMPORT = """
import importlib, pathlib, sys
sys.path.insert(0, sys.argv[1])
for path in sorted(pathlib.Path(sys.argv[1], "hostkit").glob("*.py")):
    compile(path.read_bytes(), str(path), "exec")
    importlib.import_module("hostkit." + path.stem)
"""


def test_every_module_loads_without_a_warning(python, machines):
    """Also those that no command above reaches; a deprecation is a fault of the next Python but one."""
    folder = machines["laptop"].project / ".devcontainer"
    loaded = subprocess.run(
        [python, "-I", "-B", "-W", "error", "-c", IMPORT, str(folder)], capture_output=True, text=True, check=False
    )
    assert (loaded.returncode, loaded.stderr) == (0, "")


def test_the_syntax_is_that_of_the_oldest_python():
    """Where no Python 3.8 is, at least its grammar is kept to."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--target-version", "py38"]
    checked = subprocess.run(
        [*command, "--select", "E9", str(ROOT / "generator" / "hostkit")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
