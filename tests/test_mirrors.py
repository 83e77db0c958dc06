"""One file says where everything comes from; the build and the containers get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
