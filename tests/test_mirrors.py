"""One file says where everything comes from; the build and the containers get it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import run
from hosts import DescribedHost, facts

from generator.hostkit import mirrors, setup
from generator.hostkit.catalogue import BadRequest, Catalogue
from generator.hostkit.project import BEGIN

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "template" / "{{cookiecutter.project_slug}}" / mirrors.FILE
CATALOGUE = Catalogue.read()


@pytest.fixture
def project(tmp_path, monkeypatch):
    DescribedHost(tmp_path, monkeypatch)
    folder = tmp_path / "my-detector"
    (folder / ".devcontainer").mkdir(parents=True)
    (folder / mirrors.FILE).write_text(SHIPPED.read_text())
    settings = {"slug": "my-detector", "torch": "2.8.0", "python": "3.12", "mirrors": "china"}
    (folder / ".devcontainer" / "project.json").write_text(json.dumps(settings))
    for name in ("gpu", "gpu-cdi", "cpu"):
        (folder / f"compose.{name}.yaml").write_text("services:\n  dev: {}\n")
    return folder


def block(project):
    text = (project / ".env").read_text()
    return dict(line.split("=", 1) for line in text[text.index(BEGIN) :].splitlines()[1:-1])


def test_the_answer_reaches_every_source(project):
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    written = block(project)
    assert written["PYTHON_IMAGE"] == "docker.m.daocloud.io/library/python:3.12-slim-bookworm"
    assert written["APT_MIRROR"].endswith("/debian")
    assert written["UV_DEFAULT_INDEX"].startswith("https://")
    assert written["LAB_TORCH_INDEX"] == "https://mirror.sjtu.edu.cn/pytorch-wheels/cpu"
    assert written["HF_ENDPOINT"].startswith("https://")
    assert "TORCH_INDEX_BASE" not in written


def test_a_hosts_own_lines_win(project):
    (project / ".env").write_text("APT_MIRROR=https://near.example/debian\nTORCH_INDEX_BASE=https://near.example/whl\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    assert "APT_MIRROR" not in block(project)
    assert block(project)["LAB_TORCH_INDEX"] == "https://near.example/whl/cpu"


def test_a_host_may_choose_another_section(project):
    (project / ".env").write_text("MIRRORS=default\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    assert not set(mirrors.NAMES) & set(block(project))


def test_back_to_default_leaves_nothing_behind(project, monkeypatch):
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    monkeypatch.setenv("MIRRORS", "default")
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    assert not set(mirrors.NAMES) & set(block(project))


def test_a_project_without_the_file(project):
    (project / mirrors.FILE).unlink()
    (project / ".env").write_text("MIRRORS=default\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[custom]\nAPT_MIROR = x\n", "line 2: APT_MIROR is not one of PYTHON_IMAGE, "),
        ("APT_MIRROR = x\n", "line 1: APT_MIRROR = x is neither"),
        ("[custom]\nnonsense\n", "line 2: nonsense is neither"),
        ("[custom]\nAPT_MIRROR = a b\n", "line 2: a b holds a blank or a quote"),
    ],
)
def test_a_bad_line_is_named(text, sentence):
    with pytest.raises(BadRequest) as caught:
        mirrors.sections(text)
    assert sentence in str(caught.value)


def test_a_section_that_is_not_there(project, monkeypatch, capsys):
    monkeypatch.setenv("MIRRORS", "mars")
    assert setup.run(project, None, CATALOGUE, facts()) == 2
    assert (
        "MIRRORS=mars is no section of .devcontainer/mirrors.conf, which has default, china, custom"
        in capsys.readouterr().err
    )


def test_the_sections_are_the_answers():
    answers = json.loads((ROOT / "template" / "cookiecutter.json").read_text())
    assert list(mirrors.sections(SHIPPED.read_text())) == answers["mirrors"]


# switch of .env, its argument of the image build, its variable in the containers; None where nothing asks for it there
REACH = [
    ("PYTHON_IMAGE", "PYTHON_IMAGE", None),
    ("APT_MIRROR", "APT_MIRROR", None),  # it stays in the apt sources of the image
    ("UV_DEFAULT_INDEX", "UV_DEFAULT_INDEX", "UV_DEFAULT_INDEX"),
    ("UV_DEFAULT_INDEX", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
    ("LAB_TORCH_INDEX", "TORCH_INDEX", "TORCH_INDEX"),  # what TORCH_INDEX_BASE becomes, see above
    ("HF_ENDPOINT", None, "HF_ENDPOINT"),
    ("YOLOV5_GIT_URL", None, "YOLOV5_GIT_URL"),
]


@pytest.mark.skipif(
    shutil.which("docker") is None or run("docker", "compose", "version").returncode != 0,
    reason="docker compose is not installed",
)
@pytest.mark.parametrize(("switch", "argument", "variable"), REACH)
def test_every_switch_reaches_the_build_and_the_containers(bake, monkeypatch, switch, argument, variable):
    value = "https://near.example/what"
    monkeypatch.setenv(switch, value)
    words = ("docker", "compose", "--profile", "*", "config", "--format", "json")
    services = json.loads(run(*words, cwd=bake()).stdout)["services"]
    assert len(services) >= 6
    for name, service in services.items():
        assert argument is None or service["build"]["args"][argument] == value
        # these two see only what they need, and install nothing
        assert variable is None or name in {"serve", "tensorboard"} or service["environment"][variable] == value


def test_every_argument_of_the_build_is_one_of_the_dockerfile(bake):
    project = bake()
    declared = set(re.findall(r"^ARG (\w+)=", (project / "docker/Dockerfile").read_text(), re.MULTILINE))
    assert {argument for _, argument, _ in REACH if argument} <= declared


def test_debian_packages_come_from_the_mirror_also_later(bake):
    """The sources of the image are rewritten before anything else, so that apt in a container uses the mirror too."""
    script = (bake() / "docker/install-apt").read_text()
    assert script.index("sed -i") < script.index("dpkg --status") < script.index("wheelhouse: all")


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "TORCH_INDEX_BASE", "APT_MIRROR"])
@pytest.mark.parametrize("where", [".env", "shell", mirrors.FILE])
def test_a_password_in_an_address_is_refused_and_not_repeated(project, monkeypatch, capsys, name, where):
    """It would become an argument of the image build, and `docker history` shows those."""
    address = "https://ada:tr0ub4dor@mirror.example/simple"
    if where == ".env":
        (project / ".env").write_text(f"{name}={address}\n")
    elif where == "shell":
        monkeypatch.setenv(name, address)
    else:
        (project / mirrors.FILE).write_text(f"[china]\n{name} = {address}\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 2
    said = capsys.readouterr().err
    assert f"{name} in " in said
    assert "NETRC=" in said
    assert "tr0ub4dor" not in said
    assert BEGIN not in ((project / ".env").read_text() if (project / ".env").exists() else "")


def test_a_netrc_is_named_to_the_build_and_not_copied(project, tmp_path, capsys):
    (tmp_path / "netrc").write_text("machine mirror.example login ada password tr0ub4dor\n")
    (project / ".env").write_text("NETRC=../netrc\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 0
    assert Path(block(project)["LAB_NETRC"]).samefile(tmp_path / "netrc")
    for file in project.rglob("*"):
        assert not file.is_file() or "tr0ub4dor" not in file.read_text(errors="replace")
    (project / ".env").write_text("NETRC=../gone\n")
    assert setup.run(project, None, CATALOGUE, facts()) == 2
    assert "NETRC=../gone cannot be read" in capsys.readouterr().err


def test_the_build_itself_refuses_a_password(tmp_path):
    """Where host-setup was not asked: a build that fails makes no image whose history could keep it."""
    script = SHIPPED.parents[1] / "docker" / "with-host-ca"
    for name in ("UV_DEFAULT_INDEX", "TORCH_INDEX", "APT_MIRROR"):
        done = run("sh", script, "touch", tmp_path / "ran", env={name: "https://ada:tr0ub4dor@mirror.example/x"})
        assert done.returncode == 2
        assert f"{name} holds a user or a password" in done.stderr
        assert "tr0ub4dor" not in done.stderr
    assert not (tmp_path / "ran").exists()
    done = run("sh", script, "true", env={"UV_DEFAULT_INDEX": "https://mirror.example/@x/simple"})
    assert "password" not in done.stderr


def test_every_step_of_the_build_that_downloads_gets_both_secrets():
    dockerfile = (SHIPPED.parents[1] / "docker" / "Dockerfile").read_text()
    steps = [step for step in dockerfile.split("\nRUN ") if "with-host-ca /" in step or "with-host-ca /docker" in step]
    assert len(steps) == 6
    assert all("type=secret,id=host-ca" in step and "type=secret,id=netrc" in step for step in steps)
