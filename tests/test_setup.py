"""What host-setup writes, and what it leaves alone."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hosts import CATALOGUE, DescribedHost, facts, gpu, slice_uuid
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.hostkit import certificates, decision, mirrors, setup
from generator.hostkit import project as files
from generator.hostkit.catalogue import BadRequest
from generator.hostkit.engine import Docker, Running
from generator.hostkit.nvidia import Card, Slice, Smi
from generator.hostkit.project import BEGIN, END, Project
from generator.hostkit.resolve import Gpu
from generator.hostkit.wishes import OVERRIDES, Wishes

CARD = (Card("0000:01:00.0", 0x2684),)

ROOT = Path(__file__).parent.parent
GPU_FILE = """# the host's GPUs
x-gpu: &gpu
  deploy:
    resources:
      reservations:
        devices:
          - {driver: nvidia, count: all, capabilities: [gpu]}

services:
  dev: *gpu
  train:  # long runs
    <<: *gpu
    environment:
      LONG: "1"
"""


def der(tag: int, content: bytes) -> bytes:
    """An ASN.1 element: the tag, the length in two bytes, the content."""
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def der_certificate(text: str) -> bytes:
    """The outline of RFC 5280: what is signed, the algorithm, the signature."""
    return der(0x30, der(0x30, text.encode() * 20) + der(0x30, b"") + der(0x03, b"\0signature"))


def certificate(text: str) -> str:
    return pem(der_certificate(text))


def pem(content: bytes, label: str = "CERTIFICATE") -> str:
    return f"-----BEGIN {label}-----\n{base64.b64encode(content).decode()}\n-----END {label}-----\n"


@pytest.fixture
def host(tmp_path, monkeypatch):
    return DescribedHost(tmp_path, monkeypatch)


@pytest.fixture
def project(tmp_path, host):
    folder = tmp_path / "my-detector"
    (folder / ".devcontainer").mkdir(parents=True)
    settings = {"slug": "my-detector", "torch": "2.8.0", "python": "3.11"}
    (folder / ".devcontainer" / "project.json").write_text(json.dumps(settings))
    for name in ("gpu", "gpu-cdi"):
        (folder / f"compose.{name}.yaml").write_text(GPU_FILE)
    (folder / "compose.cpu.yaml").write_text("services:\n  dev: {}\n")
    return folder


def run(project, case, accel=None):
    return setup.run(project, accel, CATALOGUE, case)


def block(project):
    text = (project / ".env").read_text()
    assert text.endswith(END + "\n")
    return dict(line.split("=", 1) for line in text[text.index(BEGIN) :].splitlines()[1:-1])


def local(project):
    return (project / ".devcontainer" / "compose.local.yaml").read_text()


def test_a_workstation(project, capsys):
    assert run(project, facts("4090")) == 0
    assert block(project) == {
        "COMPOSE_FILE": "compose.yaml:.devcontainer/compose.local.yaml",
        "COMPOSE_PATH_SEPARATOR": ":",
        "COMPOSE_PROJECT_NAME": setup.compose_project_name("my-detector", facts("4090"), project),
        "DEV_UID": "1001",
        "DEV_GID": "1002",
        "LAB_TORCH_VERSION": "2.8.0",
        "LAB_TORCHVISION_VERSION": "0.23.0",
        "LAB_TORCH_BUILD": "cu128",
        "LAB_TORCH_INDEX": "",
        "HOST_CA": "./.devcontainer/host-ca.pem",
        "TENSORBOARD_PORT": "6006",
        "JUPYTER_PORT": "8888",
        "SSH_PORT": "2222",
        "SERVE_PORT": "8000",
        "JUPYTER_TOKEN": block(project)["JUPYTER_TOKEN"],
    }
    assert local(project).endswith(GPU_FILE)
    assert (project / ".devcontainer" / "host-ca.pem").read_bytes() == b""
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == (
        "host-setup: NVIDIA GeForce RTX 4090, driver 570.86.10 -> torch 2.8.0+cu128 on the GPU (default package index)"
    )
    assert len(out) <= 12


def test_an_older_card_gets_the_build_with_its_index(project):
    assert run(project, facts("1080 Ti", driver="535.183.01")) == 0
    assert (block(project)["LAB_TORCH_BUILD"], block(project)["LAB_TORCH_INDEX"]) == (
        "cu126",
        "https://download.pytorch.org/whl/cu126",
    )


def test_a_folder_of_port_claims_that_anybody_may_change_is_told(project, capsys):
    assert run(project, facts("4090", claims=(0o041777, 4321))) == 0
    assert "yolov5-devcontainer-ports" not in capsys.readouterr().out
    assert run(project, facts("4090", claims=(0o040777, 4321))) == 0
    place = "/tmp/yolov5-devcontainer-ports"
    said = f"{place} is not sticky: everybody on this machine may remove another's claims: sudo chmod 1777 {place}"
    assert f"host-setup: {said}" in capsys.readouterr().out.splitlines()


def test_the_inference_service_gets_a_gpu_only_when_asked_to(bake):
    """It decodes strangers' pictures: without the wish it has no driver to talk to."""
    for name in ("compose.gpu.yaml", "compose.gpu-cdi.yaml"):
        text = (bake() / name).read_text()
        assert "serve" not in yaml.safe_load(text)["services"]
        services = yaml.safe_load(setup.with_devices(setup.with_serve(text), "1"))["services"]
        assert services["serve"]["deploy"] == services["dev"]["deploy"]
        assert services["serve"]["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
        assert setup.with_serve(setup.with_serve(text)) == setup.with_serve(text)
    for other in ((bake() / "compose.cpu.yaml").read_text(), "services:\n  dev: {}\n"):
        assert setup.with_serve(other) == other


def test_the_wish_for_it_reaches_compose(project, bake, capsys):
    (project / "compose.gpu.yaml").write_text((bake() / "compose.gpu.yaml").read_text())
    assert run(project, facts("4090")) == 0
    assert "serve" not in yaml.safe_load(local(project))["services"]
    env = project / ".env"
    env.write_text("ONNXRUNTIME=gpu\n" + env.read_text())
    assert run(project, facts("4090")) == 0
    assert yaml.safe_load(local(project))["services"]["serve"]["deploy"]
    assert "Rebuild Container" in capsys.readouterr().out
    env.write_text(env.read_text().replace("ONNXRUNTIME=gpu", "ONNXRUNTIME=cuda"))
    assert run(project, facts("4090")) == 2
    assert "ONNXRUNTIME=cuda is neither cpu nor gpu: correct it or remove it." in capsys.readouterr().err


def test_cards_that_are_not_served_are_hidden(project, capsys):
    assert run(project, facts("1080 Ti", "5090", driver="580.95.05")) == 0
    services = yaml.safe_load(local(project))["services"]
    for name in ("dev", "train"):
        assert services[name]["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
        assert services[name]["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert services[name]["deploy"]["resources"]["reservations"]["devices"]
    assert services["train"]["environment"]["LONG"] == "1"
    assert "GTX 1080 Ti" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("docker", "more", "accel"),
    [
        (Docker("ok", version="28.3.0", runtimes=("nvidia",)), {}, "gpu"),
        (Docker("ok", version="28.3.0", runtimes=("nvidia",)), {"cdi": ("/etc/cdi/nvidia.yaml",)}, "gpu"),
        (Docker("ok", version="28.3.0", cdi_directories=("/etc/cdi",)), {"cdi": ("/etc/cdi/nvidia.yaml",)}, "gpu-cdi"),
        (Docker("ok", version="28.3.0"), {"cdi": ("/etc/cdi/nvidia.yaml",), "toolkit": ""}, "cpu"),
        (Docker("ok", version="28.3.0", cdi=True), {}, "gpu-cdi"),
        (Docker("ok", version="5.4.0", kind="podman", rootless=True), {"cdi": ("/etc/cdi/nvidia.yaml",)}, "gpu-cdi"),
        (Docker("ok", version="5.4.0", kind="podman", rootless=True), {}, "cpu"),
        (Docker("ok", version="20.10.24"), {"toolkit": "", "cdi": ("/etc/cdi/nvidia.yaml",)}, "cpu"),
        (Docker("ok", version="28.3.0", kind="desktop"), {"toolkit": "", "system": "wsl2"}, "gpu"),
        (Docker("ok", version="28.3.0", kind="desktop"), {"toolkit": ""}, "cpu"),
        (Docker("ok", version="28.3.0"), {"toolkit": "", "hook": True}, "gpu"),
        (Docker("ok", version="28.3.0"), {"toolkit": "1.19.1"}, "gpu"),
        (Docker("ok", version="28.3.0"), {"toolkit": ""}, "cpu"),
        (Docker("missing"), {"toolkit": ""}, "cpu"),
    ],
)
def test_how_the_gpu_reaches_the_container(docker, more, accel):
    found = decision.decide(facts("4090", docker=docker, **more), Project("p", "2.8.0", "3.11"), Wishes(), CATALOGUE)
    assert found.accel == accel
    assert found.build.name == ("cpu" if accel == "cpu" else "cu128")


def test_no_toolkit_says_the_command(project, capsys):
    assert run(project, facts("4090", docker=Docker("ok", version="28.3.0"), toolkit="")) == 0
    out = capsys.readouterr().out
    assert "NVIDIA Container Toolkit is not installed" in out
    assert "nvidia-container-toolkit" in out
    assert out.splitlines()[-1] == "host-setup: torch 2.8.0+cpu on the CPU (https://download.pytorch.org/whl/cpu)"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (facts(), "no NVIDIA GPU here"),
        (facts(cards=CARD), "ubuntu-drivers install"),
        (facts(smi=Smi("hangs"), cards=CARD), "does not answer"),
        (facts(smi=Smi("mismatch")), "sudo reboot"),
        (facts("1080", driver="610.43.02"), "580 is the last branch for Pascal"),
        (facts("4090", docker=Docker("down"), toolkit=""), "daemon is not running"),
    ],
)
def test_the_cpu_is_never_chosen_in_silence(project, capsys, case, said):
    assert run(project, case) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
    assert said in capsys.readouterr().out


def test_cpu_index_on_arm_is_the_default_up_to_2_10():
    arm = facts(system="macos", machine="aarch64")
    index = {
        t: decision.decide(arm, Project("p", t, "3.11"), Wishes(), CATALOGUE).index_url for t in ("2.10.0", "2.11.0")
    }
    assert index == {"2.10.0": "", "2.11.0": "https://download.pytorch.org/whl/cpu"}


def test_auto_on_the_cpu_is_the_newest_release_with_wheels_for_this_python():
    def chosen(python):
        return decision.decide(facts(), Project("p", "auto", python), Wishes(), CATALOGUE).build.torch

    assert (chosen("3.11"), chosen("3.10"), chosen("3.8")) == ("2.15.0", "2.14.1", "2.4.1")


# .env


def test_the_users_lines_stay(project):
    own = "# mine\r\nDATA_DIR=/big/data\n\nexport WANDB_API_KEY='a b'  # secret\nDEV_UID=7"
    (project / ".env").write_bytes(own.encode())
    assert run(project, facts("4090")) == 0
    assert (project / ".env").read_bytes().startswith(own.encode() + b"\n" + BEGIN.encode())


def test_lines_below_the_block_stay_the_users(project):
    run(project, facts("4090"))
    with (project / ".env").open("a") as file:
        file.write("RUNS_DIR=/big/runs\n")
    run(project, facts("4090"))
    text = (project / ".env").read_text()
    assert text.index("RUNS_DIR") < text.index(BEGIN)
    assert text.count(BEGIN) == text.count(END) == 1


def test_a_damaged_block_costs_no_line_of_the_users(project):
    run(project, facts("4090"))
    text = (project / ".env").read_text().replace(END + "\n", "")
    (project / ".env").write_text(text + "RUNS_DIR=/big/runs\n")
    run(project, facts("4090"))
    assert "RUNS_DIR=/big/runs\n" in (project / ".env").read_text()
    assert (project / ".env").read_text().count("TORCH_BUILD") == 1


def test_same_bytes_are_not_written_again(project):
    names = [".env", ".devcontainer/compose.local.yaml", ".devcontainer/host-ca.pem"]
    run(project, facts("4090"))
    before = [((project / name).read_bytes(), (project / name).stat().st_ino) for name in names]
    run(project, facts("4090", seconds=9.9))
    assert [((project / name).read_bytes(), (project / name).stat().st_ino) for name in names] == before


def test_the_mode_of_env_is_kept(project):
    (project / ".env").write_text("TOKEN=secret\n")
    (project / ".env").chmod(0o600)
    run(project, facts("4090"))
    assert (project / ".env").stat().st_mode & 0o777 == 0o600


def test_a_linked_env_stays_a_link(project, tmp_path):
    (tmp_path / "elsewhere").write_text("A=1\n")
    (project / ".env").symlink_to(tmp_path / "elsewhere")
    run(project, facts("4090"))
    assert (project / ".env").is_symlink()
    assert (tmp_path / "elsewhere").read_text().startswith("A=1\n" + BEGIN)


LINES = st.lists(
    st.sampled_from(
        ["", "A=1", "# note", BEGIN, END, "DEV_UID=3", "TORCH_BUILD=cu126", "LAB_TORCH_BUILD=cpu", "  ", "é=ü", "X='"]
    ),
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(LINES)
def test_splitting_keeps_every_byte_and_settles(lines):
    text = "\n".join(lines) + "\n"
    own, ours = files.split_env(text)
    assert sorted(own.splitlines() + ours.splitlines()) == sorted(text.splitlines())
    assert {"A=1", "# note", "é=ü", "X='"} & set(lines) <= set(own.splitlines())
    again = own + BEGIN + "\nDEV_UID=1\n" + END + "\n"
    assert files.split_env(again)[0] == own or BEGIN in own


def test_compose_reads_no_name_that_a_shell_overrides_the_decision_with(project):
    run(project, facts("4090"))
    assert set(block(project)) & set(OVERRIDES) == {"COMPOSE_PROJECT_NAME"}
    # those only where mirrors.conf, and where NETRC, sets them
    assert set(block(project)) == set(files.KEYS) - set(mirrors.NAMES) - {"LAB_NETRC"}


def test_an_override_below_a_damaged_block_is_the_users(project):
    run(project, facts("4090"))
    text = (project / ".env").read_text().replace(END + "\n", "")
    (project / ".env").write_text(text + "TORCH_BUILD=cu126\n")
    run(project, facts("4090"))
    assert (project / ".env").read_text().startswith("TORCH_BUILD=cu126\n" + BEGIN)
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"


def test_a_line_inside_the_block_is_the_users(project):
    run(project, facts("4090"))
    text = (project / ".env").read_text()
    (project / ".env").write_text(text.replace("DEV_UID", "RUNS_DIR=/big\nDEV_UID"))
    run(project, facts("4090"))
    assert (project / ".env").read_text() == "RUNS_DIR=/big\n" + text


def test_a_byte_order_mark_hides_no_line(project):
    (project / ".env").write_bytes(b"\xef\xbb\xbfTORCH_BUILD=cu126\r\n")
    for _ in range(2):
        run(project, facts("4090"))
        assert (project / ".env").read_bytes().startswith(b"\xef\xbb\xbfTORCH_BUILD=cu126\r\n" + BEGIN.encode())
        assert block(project)["LAB_TORCH_BUILD"] == "cu126"


def test_a_byte_order_mark_before_the_block(project):
    run(project, facts("4090"))
    ours = (project / ".env").read_text(encoding="utf-8")
    (project / ".env").write_text("\ufeff" + ours, encoding="utf-8")
    assert files.split_env("\ufeff" + ours) == ("\ufeff", ours)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, make) for name in (".env", ".devcontainer/host-ca.pem") for make in (pipe, Path.mkdir)]
    + [(".env", device)],
)
def test_a_file_that_is_none_is_named_and_not_waited_for(project, capsys, name, make):
    make(project / name)
    assert run(project, facts("4090")) == 1
    err = capsys.readouterr().err
    assert err == f"host-setup: {project / name} is not a regular file: move it away.\n"
    assert sorted(path.name for path in project.iterdir() if path.name.startswith("..")) == []


# Overrides


def test_overrides_from_the_shell_come_before_those_in_env(project, monkeypatch):
    (project / ".env").write_text("TORCH_BUILD=cu126\nYOLO_ACCEL=gpu-cdi\n")
    run(project, facts("4090"))
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"
    monkeypatch.setenv("TORCH_BUILD", "cu129")
    run(project, facts("4090"))
    assert block(project)["LAB_TORCH_BUILD"] == "cu129"
    assert (project / ".env").read_text().startswith("TORCH_BUILD=cu126\nYOLO_ACCEL=gpu-cdi\n")


def test_the_last_line_wins_and_quotes_and_comments_do_not_count():
    values = files.own_values("A=1\nA = '2' # x\nB=\"c d\"\nC=a#b # c\nexport D=4\n#E=5\nF=\nG= # g\n")
    assert values == {"A": "2", "B": "c d", "C": "a#b", "D": "4", "F": "", "G": ""}


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("YOLO_ACCEL", "cpu", {"LAB_TORCH_BUILD": "cpu"}),
        ("TORCH_BUILD", "cpu", {"LAB_TORCH_BUILD": "cpu", "LAB_TORCH_INDEX": "https://download.pytorch.org/whl/cpu"}),
        (
            "TORCH_VERSION",
            "2.9.1",
            {"LAB_TORCH_VERSION": "2.9.1", "LAB_TORCHVISION_VERSION": "0.24.1", "LAB_TORCH_BUILD": "cu128"},
        ),
        ("TORCH_VERSION", "auto", {"LAB_TORCH_VERSION": "2.14.1", "LAB_TORCH_BUILD": "cu126"}),
        ("TORCH_BUILD", "cu126", {"LAB_TORCH_INDEX": "https://download.pytorch.org/whl/cu126"}),
    ],
)
def test_overrides(project, monkeypatch, name, value, result):
    monkeypatch.setenv(name, value)
    assert run(project, facts("4090")) == 0
    assert {key: block(project)[key] for key in result} == result


def test_a_mirror_of_the_pytorch_index(project, monkeypatch):
    monkeypatch.setenv("TORCH_INDEX_BASE", "https://mirror.example/pytorch-wheels/")
    run(project, facts("1080 Ti"))
    assert block(project)["LAB_TORCH_INDEX"] == "https://mirror.example/pytorch-wheels/cu126"
    run(project, facts("4090"))
    assert block(project)["LAB_TORCH_INDEX"] == ""


def test_a_project_name_of_the_users_own(project, monkeypatch):
    (project / ".env").write_text("COMPOSE_PROJECT_NAME=mine\n")
    run(project, facts("4090"))
    assert "COMPOSE_PROJECT_NAME" not in block(project)
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shell")
    run(project, facts("4090"))
    assert "COMPOSE_PROJECT_NAME" not in block(project)


def test_a_project_name_from_the_shell_is_kept_for_the_next_shell(project, monkeypatch):
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shell")
    (project / ".env").write_text("COMPOSE_PROJECT_NAME=\n")
    run(project, facts("4090"))
    assert block(project)["COMPOSE_PROJECT_NAME"] == "shell"


def test_an_asked_for_build_that_does_not_run_is_taken_with_a_warning(project, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_BUILD", "cu126")
    assert run(project, facts("5090")) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"
    assert "does not run here" in capsys.readouterr().out


def test_a_gpu_that_was_asked_for_but_is_not_there(project):
    assert run(project, facts(), "gpu") == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu128"
    assert local(project).endswith(GPU_FILE)


def test_visible_devices_are_the_question_and_the_answer(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run(project, facts("1080 Ti", "5090", driver="580.95.05"))
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"
    assert yaml.safe_load(local(project))["services"]["dev"]["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000001")
    run(project, facts("1080 Ti", "5090", driver="580.95.05"))
    assert block(project)["LAB_TORCH_BUILD"] == "cu128"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run(project, facts("1080 Ti", "5090", "1080", driver="580.95.05"))
    assert yaml.safe_load(local(project))["services"]["dev"]["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    run(project, facts("1080 Ti", "5090", driver="580.95.05"))
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("YOLO_ACCEL", "cuda"),
        ("TORCH_BUILD", "cuda12"),
        ("TORCH_BUILD", "cu134"),
        ("TORCH_VERSION", "2.8"),
        ("TORCH_VERSION", "$(reboot)"),
        ("CUDA_VISIBLE_DEVICES", "all"),
        ("CUDA_VISIBLE_DEVICES", "7"),
        ("CUDA_VISIBLE_DEVICES", '0"\n      x: "'),
        ("TORCH_INDEX_BASE", "mirror"),
        ("TORCH_INDEX_BASE", "https://m/$HOME"),
        ("EXTRA_CA_CERTS", "/nowhere"),
        ("COMPOSE_PROJECT_NAME", "My Project"),
    ],
)
def test_a_bad_override_is_one_sentence_and_nothing_is_written(project, monkeypatch, capsys, name, value):
    (project / ".env").write_text("A=1\n")
    monkeypatch.setenv(name, value)
    before = sorted((path, path.read_bytes()) for path in project.rglob("*") if path.is_file())
    assert run(project, facts("4090")) == 2
    assert name in capsys.readouterr().err
    assert sorted((path, path.read_bytes()) for path in project.rglob("*") if path.is_file()) == before


def unreadable(gpu_, driver=""):
    """A host whose nvidia-smi printed a row of which little can be read."""
    return facts(driver=driver, smi=Smi("ok", "", driver, (gpu_,)), docker=facts("4090").docker, toolkit="1.19.1")


ODD = Gpu(0, "X", "", None, "GPU-1")


@pytest.mark.parametrize(("variable", "value"), [("YOLO_ACCEL", "cpu"), ("TORCH_BUILD", "cpu"), (None, "cpu")])
@pytest.mark.parametrize(
    "case", [unreadable(ODD), unreadable(ODD, "new"), unreadable(ODD._replace(capability="8"), "580.95.05")]
)
def test_the_cpu_can_always_be_asked_for(project, monkeypatch, capsys, variable, value, case):
    if variable:
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert run(project, case, None if variable else value) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (unreadable(ODD), "the CPU, because nvidia-smi lists a GPU, but no version of its driver that can be read"),
        (unreadable(ODD, "new"), "the CPU, because no torch build can be chosen for the GPU: driver 'new' is not"),
        (unreadable(ODD._replace(capability="8"), "580.95.05"), "compute capability '8' is not of the form 8.6"),
        (facts(smi=Smi("unreadable", "\0\0oops")), "nvidia-smi answers nothing that can be read: \\x00\\x00oops"),
        (facts(smi=Smi("unreadable")), "nvidia-smi answers nothing that can be read: nothing at all"),
        (facts("4090", smi=Smi("failed", "Unknown Error")), "nvidia-smi failed: Unknown Error"),
        (facts("4090", smi=Smi("no-devices")), "but driver 570.86.10 does not list it"),
        (facts(smi=Smi("blocked")), "nvidia-smi failed"),
    ],
)
def test_what_the_host_says_is_no_bad_request(project, capsys, case, said):
    assert run(project, case) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
    out = capsys.readouterr().out
    assert said in out
    assert "no NVIDIA GPU" not in out


def test_a_gpu_that_cannot_be_judged_can_be_asked_for(project, monkeypatch, capsys):
    assert run(project, unreadable(ODD), "gpu") == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu128"
    assert "nothing vouches" in capsys.readouterr().out
    monkeypatch.setenv("TORCH_BUILD", "cu126")
    assert run(project, unreadable(ODD), "gpu") == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"


def test_a_bad_python_is_named_without_a_gpu_too(project, capsys):
    (project / ".devcontainer" / "project.json").write_text('{"slug": "p", "torch": "2.8.0", "python": "3"}')
    assert run(project, facts()) == 2
    assert "project.json: Python '3'" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(project, monkeypatch, capsys):
    case = facts("4090")
    gpu_ = case.smi.gpus[0]._replace(name="RTX\x1b]0;gone\x07\r\x9b1m \u202ePP")
    assert run(project, case._replace(smi=case.smi._replace(gpus=(gpu_,)))) == 0
    monkeypatch.setenv("YOLO_ACCEL", "\x1b[2Jcpu" + "u" * 5000)
    assert run(project, case) == 2
    said = capsys.readouterr()
    assert "RTX\\x1b]0;gone\\x07\\r\\x9b1m \\u202ePP" in said.out
    assert not set(said.out + said.err) & set("\x1b\x07\r\x9b\u202e")
    assert len(said.err) < 200


# Who the container's user is


def test_root_works_for_the_owner_of_the_project(project, capsys):
    case = facts("4090", uid=0, gid=0)
    owner = project.stat()
    assert setup.identity(project, case) == (owner.st_uid, owner.st_gid)
    run(project, case)
    assert "root" in capsys.readouterr().out


def test_root_gives_the_files_to_the_owner(project, monkeypatch):
    given_to = []
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup.os, "chown", lambda _path, uid, gid: given_to.append((uid, gid)))
    run(project, facts("4090", uid=0, gid=0))
    owner = project.stat()
    assert given_to == [(owner.st_uid, owner.st_gid)] * 4


def test_root_leaves_what_a_link_points_to_its_owner(project, tmp_path, monkeypatch):
    given_to = {}
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "_owner_of", lambda _project: (1234, 1234))
    monkeypatch.setattr(setup.os, "chown", lambda path, uid, gid: given_to.update({Path(path).parent: (uid, gid)}))
    elsewhere = tmp_path / "elsewhere" / "env"
    elsewhere.parent.mkdir()
    elsewhere.write_text("A=1\n")
    (project / ".env").symlink_to(elsewhere)
    assert run(project, facts("4090", uid=0, gid=0)) == 0
    was = elsewhere.parent.stat()
    assert given_to == {project / ".devcontainer": (1234, 1234), elsewhere.parent: (was.st_uid, was.st_gid)}


def test_a_project_that_is_not_there_is_named_for_root_too(tmp_path, host, monkeypatch, capsys):
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    assert run(tmp_path / "nowhere", facts(uid=0, gid=0)) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ({}, (1001, 1002)),
        ({"docker": Docker("ok", rootless=True)}, (0, 0)),
        ({"system": "macos"}, (1000, 1000)),
        ({"system": "windows", "uid": None, "gid": None}, (1000, 1000)),
    ],
)
def test_identity(project, change, ids):
    assert setup.identity(project, facts(**change)) == ids


@pytest.mark.parametrize(
    ("slug", "user", "name"),
    [
        ("my-detector", "ada", "my-detector-ada"),
        ("P", "DOMAIN\\Zoë Ü", "p-domain-zo"),
        ("p", "", "p-1001"),
        ("", "-x-", "project-x"),
    ],
)
def test_compose_project_name(slug, user, name):
    here = setup.compose_project_name(slug, facts(user=user), Path("/srv/one"))
    assert re.fullmatch(rf"{name}-[0-9a-f]{{6}}", here)
    assert here == setup.compose_project_name(slug, facts(user=user), Path("/srv/one"))
    assert here != setup.compose_project_name(slug, facts(user=user), Path("/srv/two"))


# Certificates


def test_certificates_of_the_site_are_collected_once(host, project, monkeypatch):
    one, two, three = (certificate(name) for name in ("one", "two", "three"))
    host.file("/usr/local/share/ca-certificates/corp/a.crt", "Subject: A\n" + one)
    host.file("/etc/pki/ca-trust/source/anchors/b.pem", one.replace("\n", "\r\n") + two)
    host.file(
        "/etc/pki/ca-trust/source/anchors/key.pem", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"
    )
    host.file("/usr/local/share/ca-certificates/notes.txt", certificate("no"))
    host.file(
        "/etc/ca-certificates/trust-source/anchors/bad", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"
    )
    extra = project / "ca"
    extra.mkdir()
    (extra / "c.pem").write_text(three)
    (project / ".env").write_text("EXTRA_CA_CERTS=ca\n")
    assert run(project, facts("4090")) == 0
    text = (project / ".devcontainer" / "host-ca.pem").read_text()
    assert text.count("BEGIN CERTIFICATE") == 3
    assert "PRIVATE" not in text
    for wanted in (one, two, three):
        assert wanted.split("\n")[1] in text.replace("\n", "")
    assert all(len(line) <= 64 for line in text.splitlines())


def test_extra_certificates_can_be_one_file(project, monkeypatch, tmp_path):
    file = tmp_path / "corp.pem"
    file.write_text(certificate("corp"))
    monkeypatch.setenv("EXTRA_CA_CERTS", str(file))
    run(project, facts("4090"))
    assert (project / ".devcontainer" / "host-ca.pem").read_text().count("BEGIN") == 1


def test_a_der_file_becomes_pem(project, monkeypatch, tmp_path):
    for name, text in (("a.cer", "one"), ("b.DER", "two"), ("c.crt", "three")):
        (tmp_path / "ca").mkdir(exist_ok=True)
        (tmp_path / "ca" / name).write_bytes(der_certificate(text))
    key = der(0x30, der(0x02, b"\0") + der(0x30, b"oid") + der(0x04, b"secret"))
    (tmp_path / "ca" / "key.der").write_bytes(key)
    monkeypatch.setenv("EXTRA_CA_CERTS", str(tmp_path / "ca"))
    assert run(project, facts("4090")) == 0
    text = (project / ".devcontainer" / "host-ca.pem").read_text().replace("\n", "")
    assert text.count("BEGIN") == 3
    assert all(base64.b64encode(der_certificate(name)).decode() in text for name in ("one", "two", "three"))


def test_a_real_certificate_is_one(tmp_path):
    program = shutil.which("openssl")
    if not program:
        pytest.skip("openssl is not installed here")
    made = tmp_path / "ca.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Corp", "-keyout", "key.pem"]
    subprocess.run([*command, "-out", made.name], cwd=tmp_path, check=True, capture_output=True)
    (found,) = certificates.certificates(made.read_bytes())
    assert certificates.certificates(found) == [found]
    assert certificates._pem(found).decode() == made.read_text()
    assert certificates.certificates((tmp_path / "key.pem").read_bytes()) == []
    subprocess.run([program, "rsa", "-in", "key.pem", "-outform", "DER", "-out", "key.der"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    assert certificates.certificates((tmp_path / "key.der").read_bytes()) == []


def cut(text):
    return pem(der_certificate(text)[:-3])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no certificate",
        pem(b"\x30\x82" + b"one" * 20),
        cut("one"),
        pem(der_certificate("one") + b"\0"),
        pem(b"\x30\x80" + b"\0\0"),
        pem(b"\x30\x00"),
        pem(b"\x30\x84\x7f"),
        pem(der_certificate("one"), "PRIVATE KEY"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_place_without_certificates_is_refused(project, monkeypatch, capsys, tmp_path, content, inside):
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "corp.pem").write_text(content)
    monkeypatch.setenv("EXTRA_CA_CERTS", str(tmp_path / "ca" if inside else tmp_path / "ca" / "corp.pem"))
    assert run(project, facts("4090")) == 2
    assert "holds no certificate" in capsys.readouterr().err
    assert not (project / ".env").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("~nosuchuser/ca.pem", "is no path on this host"),
        ("a/" * 2500, "cannot be read (File name too long)"),
        ("b" * 5000, "cannot be read (File name too long)"),
        ("/dev/zero", "holds no certificate"),
        ("/nowhere", "cannot be read (No such file or directory)"),
    ],
)
def test_a_place_that_is_none_is_a_sentence(project, monkeypatch, capsys, name, said):
    monkeypatch.setenv("EXTRA_CA_CERTS", name)
    assert run(project, facts("4090")) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 300


def test_a_file_that_cannot_be_read_counts_only_when_it_is_the_one_named(project, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "ca"
    folder.mkdir()
    for name in ("a.pem", "key.pem"):
        (folder / name).write_text(certificate(name))
    usual = certificates._beginning

    def refuse(file):
        if file.name == "key.pem":
            raise PermissionError(13, "Permission denied")
        return usual(file)

    monkeypatch.setattr(certificates, "_beginning", refuse)
    monkeypatch.setenv("EXTRA_CA_CERTS", str(folder))
    assert run(project, facts("4090")) == 0
    assert (project / ".devcontainer" / "host-ca.pem").read_text().count("BEGIN") == 1
    monkeypatch.setenv("EXTRA_CA_CERTS", str(folder / "key.pem"))
    assert run(project, facts("4090")) == 2
    assert "cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_file_that_is_too_large_is_not_read(host, project, monkeypatch, capsys, tmp_path):
    large = certificate("large") + "#" * certificates.CERTIFICATES
    host.file("/usr/local/share/ca-certificates/large.crt", large)
    (tmp_path / "large.pem").write_text(large)
    assert run(project, facts("4090")) == 0
    assert (project / ".devcontainer" / "host-ca.pem").read_bytes() == b""
    monkeypatch.setenv("EXTRA_CA_CERTS", str(tmp_path / "large.pem"))
    assert run(project, facts("4090")) == 2
    assert "larger than 4 MiB" in capsys.readouterr().err


# Writing


def test_nobody_reads_a_file_while_it_is_written(project, monkeypatch):
    (project / ".env").write_text("TOKEN=secret\n")
    (project / ".env").chmod(0o640)
    seen = []
    usual = os.fdopen

    def look(descriptor, *more, **options):
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        return usual(descriptor, *more, **options)

    monkeypatch.setattr(setup.os, "fdopen", look)
    mask = os.umask(0o027)
    try:
        run(project, facts("4090"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert seen == [0o600] * 4
    assert (project / ".env").stat().st_mode & 0o777 == 0o600
    assert (project / ".devcontainer" / "compose.local.yaml").stat().st_mode & 0o777 == 0o640


def test_names_that_yaml_forbids_do_not_reach_the_compose_file(project):
    case = facts("4090")
    odd = case.smi.gpus[0]._replace(name="Bad\x07\nservices: \udcff\u2028x", capability="8.9")
    assert run(project, case._replace(smi=case.smi._replace(gpus=(odd,)))) == 0
    assert list(yaml.safe_load(local(project))["services"]) == ["dev", "train"]


def test_a_read_only_project_that_is_prepared_is_fine(project, monkeypatch, capsys):
    run(project, facts("4090"))

    usual = os.open

    def refuse(path, flags, *more, **options):
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return usual(path, flags, *more, **options)

    monkeypatch.setattr(setup.os, "open", refuse)
    assert run(project, facts("4090")) == 0
    assert run(project, facts("1080 Ti")) == 1
    err = capsys.readouterr().err
    assert "(Read-only file system): make the project writable for you." in err
    assert err.count("\n") == 1


def test_a_write_that_fails_leaves_no_rubbish(project, monkeypatch, capsys):
    run(project, facts("4090"))
    before = sorted((path, path.read_bytes()) for path in project.rglob("*") if path.is_file())

    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert run(project, facts("1080 Ti")) == 1
    err = capsys.readouterr().err
    assert "make room" in err
    assert "writable" not in err
    assert sorted((path, path.read_bytes()) for path in project.rglob("*") if path.is_file()) == before


def test_a_missing_compose_file_is_named(project, capsys):
    (project / "compose.gpu.yaml").unlink()
    assert run(project, facts("4090")) == 1
    assert "compose.gpu.yaml" in capsys.readouterr().err


def test_a_damaged_project_file_is_named(project, capsys):
    (project / ".devcontainer" / "project.json").write_text("{")
    assert run(project, facts("4090")) == 2
    assert "git checkout -- .devcontainer/project.json." in capsys.readouterr().err


def test_opens_at_the_same_time(host, project):
    host.nvidia_smi("580.95.05", "1080 Ti", "5090")
    host.docker(ServerVersion="28.3.0", Runtimes={"nvidia": {}})
    (project / ".env").write_text("MINE=1\n")
    command = [sys.executable, "-m", "generator.hostkit", "setup", "--project", str(project)]
    environment = {**os.environ, **host.environment}
    running = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) for _ in range(6)]
    assert [process.wait(60) for process in running] == [0] * 6
    assert (project / ".env").read_text().startswith("MINE=1\n" + BEGIN)
    assert block(project)["LAB_TORCH_BUILD"] == "cu128"
    assert sorted(path.name for path in (project / ".devcontainer").iterdir()) == [
        "authorized_keys", "compose.local.yaml", "host-ca.pem", "project.json",
    ]  # fmt: skip
    assert not [path.name for path in project.iterdir() if path.name.startswith("..env")]


def test_services_in_other_shapes_get_the_devices():
    text = (
        "name: x\nservices:\n  dev:\n    image: a\n    environment:\n      A: 1\n\n"
        "  # note\n  train: {image: b}\nvolumes:\n  dev:\n"
    )
    with pytest.raises(BadRequest, match="train"):
        setup.with_devices(text, "0")
    found = yaml.safe_load(setup.with_devices(text.replace("train: {image: b}", "train:\n    image: b"), "0,2"))
    assert found["services"]["dev"]["environment"] == {
        "A": 1,
        "CUDA_VISIBLE_DEVICES": "0,2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert found["services"]["train"]["environment"]["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert found["volumes"] == {"dev": None}
    assert setup.with_devices(text, "") == text


def test_a_decision_that_changed_is_said_once(project, capsys):
    said = "host-setup: this differs from the last time"
    assert run(project, facts()) == 0
    assert said not in capsys.readouterr().out
    assert run(project, facts("4090")) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "'Rebuild Container'" in out
    assert run(project, facts("4090")) == 0
    assert said not in capsys.readouterr().out


# MIG, lost GPUs, engines with limits


def mig(*profiles, cards=("A100",), number=0):
    case = facts(*cards)
    slices = tuple(Slice(number, profile, slice_uuid(number, place)) for place, profile in enumerate(profiles))
    return case._replace(smi=case.smi._replace(mig=(number,), slices=slices))


def test_a_gpu_in_mig_mode_without_instances_trains_on_the_cpu(project, capsys):
    assert run(project, mig()) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
    assert "nvidia-smi -i 0 -mig 0" in capsys.readouterr().out


def test_mig_instances_are_used_and_named(project, capsys):
    assert run(project, mig("3g.40gb")) == 0
    assert "MIG" not in capsys.readouterr().out
    assert run(project, mig("3g.40gb", "3g.40gb")) == 0
    assert f"CUDA_VISIBLE_DEVICES={slice_uuid(0, 0)} chooses it" in capsys.readouterr().out
    (project / ".env").write_text(f"CUDA_VISIBLE_DEVICES={slice_uuid(0, 1)}\n")
    assert run(project, mig("3g.40gb", "3g.40gb")) == 0
    assert "chooses it" not in capsys.readouterr().out
    assert slice_uuid(0, 1) in (project / ".devcontainer/compose.local.yaml").read_text()


def test_mig_beside_a_card_that_is_left_out_is_named_by_uuid(project):
    case = mig("7g.80gb", cards=("A100", "K80"))
    assert run(project, case) == 0
    assert f'CUDA_VISIBLE_DEVICES: "{slice_uuid(0, 0)}"' in (project / ".devcontainer/compose.local.yaml").read_text()


def test_a_container_that_lost_its_gpu_is_said_when_it_opens(project, capsys):
    assert run(project, facts("4090", running=Running("0123456789ab", "lost"))) == 0
    assert "docker compose up --detach --force-recreate dev" in capsys.readouterr().out


def test_a_rootless_engine_that_writes_device_rules(project, capsys):
    docker = facts("4090").docker._replace(rootless=True)
    assert run(project, facts("4090", docker=docker)) == 0
    assert "no-cgroups" in capsys.readouterr().out
    assert block(project)["DEV_UID"] == "0"


def test_gpus_without_nvidia_smi(project, capsys):
    listed = tuple(one._replace(capability="", memory_mib=None) for one in (gpu("1080 Ti"),))
    case = facts("1080 Ti", smi=Smi("missing"), listed=listed, driver="535.183.01")
    assert run(project, case) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu126"
    assert "GTX 1080 Ti, driver 535.183.01" in capsys.readouterr().out


def test_a_stuck_nvidia_smi_can_be_overridden(project, capsys):
    listed = (gpu("5090")._replace(capability=""),)
    case = facts("5090", smi=Smi("hangs"), listed=listed)
    assert run(project, case) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
    assert "does not answer" in capsys.readouterr().out
    assert run(project, case, accel="gpu") == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cu128"


def test_what_the_last_time_was_is_named(project, capsys):
    assert run(project, facts("4090")) == 0
    assert run(project, facts("1080")) == 0
    assert "differs from the last time (torch 2.8.0+cu128)" in capsys.readouterr().out


def test_a_release_that_the_locked_packages_do_not_fit_is_refused(project, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_VERSION", "2.2.2")
    assert run(project, facts("4090")) == 2
    assert "TORCH_VERSION: torch 2.2.2 needs NumPy 1" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_VERSION", "2.3.0")
    assert run(project, facts("4090")) == 0


@pytest.mark.parametrize(
    ("image", "accel", "said"),
    [
        ("lab:torch2.8.0-cu128", "gpu", ""),
        ("lab:torch2.8.0-cu126", "gpu", "made for torch 2.8.0+cu126 with the GPU"),
        ("lab:torch2.8.0-cu128", "cpu", "made for torch 2.8.0+cu128 on the CPU"),
        ("vsc-lab-1234-uid", "gpu-cdi", "made for"),
        ("", "", ""),
    ],
)
def test_a_container_of_another_decision_is_said_at_every_open(project, capsys, image, accel, said):
    case = facts("4090", running=Running("0123456789ab", image=image, accel=accel))
    for _ in range(2):
        assert run(project, case) == 0
        out = capsys.readouterr().out
        assert ("Rebuild Container" in out) == bool(said)
        assert said in out


def test_what_is_ours_alone_does_not_follow_a_link(project, tmp_path):
    theirs = tmp_path / "company.pem"
    theirs.write_text("theirs")
    (project / ".devcontainer" / "host-ca.pem").symlink_to(theirs)
    assert run(project, facts("4090")) == 0
    assert theirs.read_text() == "theirs"
    assert not (project / ".devcontainer" / "host-ca.pem").is_symlink()


@pytest.mark.parametrize("user", ["corp\\_svc", "john._doe", "_x_", "--", "a" * 300, "Zo\u00eb", ""])
def test_a_project_name_also_names_an_image(project, user):
    name = setup.compose_project_name("my-detector", facts("4090", user=user), project)
    assert re.fullmatch(r"[a-z0-9]+((_|__|-+)[a-z0-9]+)*", name)  # a component of an image's name
    assert "__" not in name
    assert len(name) < 120


def test_a_file_of_another_encoding_is_not_half_understood(project, capsys):
    (project / ".env").write_bytes("YOLO_ACCEL=cpu\n".encode("utf-16"))
    assert run(project, facts("4090")) == 1
    assert "save it as UTF-8" in capsys.readouterr().err


def test_what_a_killed_open_left_is_removed(project):
    left = project / "..env.0123456789ab"
    left.write_text("SECRET=1")
    assert run(project, facts("4090")) == 0
    assert left.exists()  # perhaps another open is writing it
    os.utime(left, (0, 0))
    assert run(project, facts("4090")) == 0
    assert not left.exists()


@pytest.mark.parametrize(
    ("devices", "said"), [("0,0", "names a GPU twice"), ("GPU-0000000", "fits several GPUs"), ("7", "is not here")]
)
def test_devices_that_mean_nothing_are_refused(project, monkeypatch, capsys, devices, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert run(project, facts("4090", "3090")) == 2
    assert said in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert run(project, facts("4090")) == 0
    assert block(project)["LAB_TORCH_BUILD"] == "cpu"
