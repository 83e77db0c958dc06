"""What other programs and files say in a shape that nobody promised: a fact, or unknown, and never a traceback."""

import json

import pytest
from hosts import DescribedHost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generator.hostkit import engine, nvidia, probe
from generator.hostkit.__main__ import main

# a look that dies in its thread would only leave its fact out
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

STATES = {"ok", "down", "permission", "integration", "failed"}  # "hangs" and "missing" would be wrong: it answered
GOOD = {
    "ServerVersion": "28.3.0",
    "OperatingSystem": "Ubuntu 24.04.3 LTS",
    "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}},
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}],
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "DockerRootDir": "/var/lib/docker",
    "ClientInfo": {"Context": "default"},
    "ServerErrors": None,
    "MemTotal": 1 << 36,
    "NCPU": 16,
}
PODMAN = {
    "host": {"security": {"rootless": True}, "memTotal": 1 << 36, "cpus": 16},
    "store": {"graphRoot": "/home/ada/.local/share/containers"},
    "version": {"Version": "5.4.0"},
}
ODD = (None, True, 0, -1, 1.5, float("inf"), 10**400, "", "text", "\0", "\ud800", "é" * 300, [], [None],
       [5, "x", {}, []], ["\0", "\ud800"], {}, {"\0": None}, {"ID": 5, "security": 5, "Version": []})  # fmt: skip


@pytest.fixture
def host(tmp_path, monkeypatch):
    return DescribedHost(tmp_path, monkeypatch)


def answers(host, name, text):
    """The program prints `text`, which may be too long for a script, or hold what a shell cannot say."""
    said = host.root.parent / f"{name}.out"
    said.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    host.program(name, f'[ "$1" = compose ] || exec /bin/cat {said}')


@pytest.mark.parametrize("field", [*GOOD, *PODMAN])
def test_a_field_of_docker_info_of_any_shape(host, field):
    usual = GOOD if field in GOOD else PODMAN
    for odd in ODD:
        answers(host, "docker", json.dumps({**usual, field: odd}))
        docker = engine.ask_engine(60.0)
        assert docker.state in STATES, odd
        assert all(isinstance(one, str) for one in (docker.version, docker.root, *docker.runtimes))
        assert docker.memory is None or docker.memory > 0


@pytest.mark.parametrize("field", ["DockerRootDir", "CDISpecDirs", "store", "ServerVersion"])
@pytest.mark.parametrize("odd", ["\0", "\ud800", "x" * 5000, "../" * 50, ["/etc\0cdi", "\ud800", "x" * 5000], 5, {}])
def test_the_check_goes_on_with_it(host, capsys, field, odd):
    if field == "store" and isinstance(odd, str):
        odd = {"graphRoot": odd}
    answers(host, "docker", json.dumps({**(PODMAN if field == "store" else GOOD), field: odd}))
    assert main(["doctor"]) in {0, 1}
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "5", '"text"', "true", "NaN", "{", "{}", "{}{}", "[" * 200_000, '{"a":' * 100_000,
        json.dumps([GOOD]), json.dumps(GOOD)[:-2], "\ufeff" + json.dumps(GOOD), b"\xff\xfe\0\0", b"\0" * 1000,
        "é" * 1000, "9" * 100_000, json.dumps({**GOOD, "ServerVersion": ""}),
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_docker_info_that_is_no_answer(host, text, capsys):
    answers(host, "docker", text)
    docker = engine.ask_engine(60.0)
    assert docker.state == "failed"
    assert len(docker.message) <= 300
    assert main(["doctor", "--json"]) == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert json.loads(told.out)


def test_a_megabyte_of_docker_info_is_read_and_more_is_not(host):
    answers(host, "docker", json.dumps({**GOOD, "Warnings": "x" * 900_000}))
    assert engine.ask_engine(60.0).version == "28.3.0"
    answers(host, "docker", json.dumps({**GOOD, "Warnings": "x" * 2_000_000}))
    assert engine.ask_engine(60.0).state == "failed"


def test_an_answer_around_noise_on_stderr(host):
    host.docker(err="WARNING: Plugin is not valid: failed to fetch metadata\n\ufffd\n", **GOOD)
    docker = engine.ask_engine(60.0)
    assert (docker.state, docker.version, docker.runtimes) == ("ok", "28.3.0", ("nvidia", "runc"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*GOOD, *PODMAN, "security", "Context"]), inner, max_size=6)
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read(host, value):
    answers(host, "docker", json.dumps(value))
    assert engine.ask_engine(60.0).state in STATES


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("NVIDIA Container Toolkit CLI version 1.19.1\ncommit: 0123abc\n", "1.19.1"),
        ("NVIDIA Container Toolkit CLI version 1.19.1\r\n", "1.19.1"),
        ("\ufeffNVIDIA Container Toolkit CLI version 1.19.1", "1.19.1"),
        ("WARN[0000] something 9.9.9\nNVIDIA Container Toolkit CLI version 1.13.5\n", "1.13.5"),
        ("NVIDIA Container Toolkit CLI version 1.19", "unknown"),
        ("NVIDIA Container Toolkit CLI version unknown", "unknown"),
        ("NVIDIA Container Toolkit CLI version 1.19.1é", "unknown"),
        ("NVIDIA Container Toolkit CLI version ²", "unknown"),
        ("NVIDIA Container Toolkit CLI version", "unknown"),
        ("", "unknown"),
        ("\0" * 1000, "unknown"),
        ("x" * (1 << 20), "unknown"),
    ],
    ids=lambda text: repr(text[:60]),
)
def test_toolkit_version(host, printed, version):
    answers(host, "nvidia-ctk", printed)
    assert engine.ask_toolkit(60.0) == version


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("2.38.1\n", "2.38.1"),
        ("v2.38.1\r\n", "2.38.1"),
        ("2.38.2-desktop.1\n", "2.38.2-desktop.1"),
        ("2.26.1+ds1-0ubuntu1~24.04.1", "2.26.1+ds1-0ubuntu1~24.04.1"),
        ("5.0.0\n", "5.0.0"),
        ("Docker Compose version v2.38.1\n", "2.38.1"),
        ("2\n", ""),
        ("dev\n", ""),
        ("²\n", ""),
        ("", ""),
        ("2.38.1\033[0m\n", ""),
        ("2.38.1é\n", ""),
        ("config 1.2 is deprecated\n2.38.1\n", "2.38.1"),
        ("docker: 'compose' is not a docker command of 20.10.5.\n", ""),
        ("\0" * 100, ""),
    ],
    ids=lambda text: repr(text[:60]),
)
def test_compose_version(host, printed, version):
    said = host.root.parent / "compose.out"
    said.write_text(printed, newline="")
    host.program("docker", f'[ "$1" != compose ] || exec /bin/cat {said}')
    assert engine.ask_compose(60.0) == version


NVRM = "NVRM version: NVIDIA UNIX {}\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04) \n"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (NVRM.format("x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024"), "535.183.01"),
        (NVRM.format("Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@U22-I3)  Tue Sep 23"), "580.95.05"),
        (NVRM.format("Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@mobile)"), "540.4.0"),
        (NVRM.format("x86_64 Kernel Module  390.157  Wed Oct 12 09:19:07 UTC 2022"), "390.157"),
        (NVRM.format("x86_64 Kernel Module  570.86.10"), "570.86.10"),
        (NVRM.format("x86_64 Kernel Module"), ""),
        (NVRM.format("x86_64 Kernel Module  [N/A]"), ""),
        (NVRM.format("x86_64 Kernel Module  570.86.10é  Wed"), ""),
        (NVRM.format("x86_64 Kernel Module  ²70.86  Wed"), ""),
        (NVRM.format("x86_64 Kernel Module  " + "5" * 5000), ""),
        ("GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0)\n", ""),
        ("", ""),
        ("\0" * 1000, ""),
    ],
    ids=lambda text: repr(text[26:80]),
)
def test_kernel_module(host, text, version):
    host.file("/proc/driver/nvidia/version", text)
    assert nvidia.module() == version


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu"\n', ("ubuntu", ("debian",), "24.04")),
        (b"ID='rocky'\nID_LIKE='rhel centos fedora'\nVERSION_ID=9\n", ("rocky", ("rhel", "centos", "fedora"), "9")),
        (b"ID=ubuntu\r\nVERSION_ID=24.04\r\n", ("ubuntu", (), "24.04")),
        (b"# ID=other\n\n  ID=arch  \nID_LIKE\n=\n", ("arch", (), "")),
        (b"ID=UBUNTU\nPRETTY_NAME='\xff\xfe'\n", ("ubuntu", (), "")),
        (b"ID=ubuntu", ("ubuntu", (), "")),
        (b"ID=ubuntu\nVERSION_ID=\n" + b"X" * 3_000_000, ("ubuntu", (), "")),
        (b"\xef\xbb\xbfID=ubuntu\n", ("", (), "")),
        (b"\0" * 1000, ("", (), "")),
        (b"", ("", (), "")),
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_distribution(host, data, found):
    host.file("/etc/os-release", "").write_bytes(data)
    assert probe.probe(docker=False).distribution[:3] == found
