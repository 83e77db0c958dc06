"""A project of a plain cookiecutter run is linked: cruft checks, compares and updates it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run
from test_generation import published  # noqa: F401 - a fixture

from hooks import post_gen_project

TRUST = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}


def cruft(*arguments: str, cwd: Path) -> str:
    done = run(sys.executable, "-m", "cruft", *arguments, cwd=cwd, env=TRUST)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("origin", "committed"),
    [
        ("https://jane:ghp_SECRET@git.example/t.git", "https://git.example/t.git"),
        ("https://token@git.example/t.git", "https://git.example/t.git"),
        ("https://jane:p@ss@git.example/t.git", "https://git.example/t.git"),
        ("https://git.example/a@b.git", "https://git.example/a@b.git"),
        ("git@git.example:org/t.git", "git@git.example:org/t.git"),
        ("/srv/git/t.git", "/srv/git/t.git"),
        ("../t.git", str(ROOT.parent / "t.git")),
        ("", ""),
    ],
)
def test_no_token_and_no_relative_path_is_committed(origin: str, committed: str) -> None:
    assert post_gen_project.address(origin) == committed


@pytest.fixture
def repository(published: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A bare repository of the template that this test may change."""
    bare = tmp_path / "template.git"
    assert run("git", "clone", "-q", "--bare", published, bare).returncode == 0
    return bare


def change_the_template(repository: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert run("git", "clone", "-q", repository, work).returncode == 0
    readme = work / "template/{{cookiecutter.project_slug}}/README.md"
    readme.write_text(readme.read_text() + "\nA later version of the template.\n")
    assert run("git", "commit", "-qam", "later", cwd=work).returncode == 0
    assert run("git", "push", "-q", cwd=work).returncode == 0


def test_check_diff_and_update_after_plain_cookiecutter(repository: Path, tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "cookiecutter", f"file://{repository}", "--no-input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    project = tmp_path / "my-detector"
    link = json.loads((project / ".cruft.json").read_text())
    assert link["directory"] == "template"
    assert not [key for key in link["context"]["cookiecutter"] if key in ("_output_dir", "_repo_dir", "_checkout")]
    assert str(tmp_path / "my-detector") not in json.dumps(link)
    assert run("git", "commit", "-qam", "first", cwd=project).returncode == 0
    cruft("check", cwd=project)

    compose = project / "compose.yaml"
    compose.write_text(compose.read_text().replace("SHM_SIZE:-8gb", "SHM_SIZE:-16gb"))
    assert run("git", "commit", "-qam", "ours", cwd=project).returncode == 0
    change_the_template(repository, tmp_path)
    assert run(sys.executable, "-m", "cruft", "check", cwd=project, env=TRUST).returncode == 1
    cruft("update", "--skip-apply-ask", cwd=project)
    assert "A later version of the template." in (project / "README.md").read_text()
    assert "SHM_SIZE:-16gb" in compose.read_text()
    assert run("git", "commit", "-qam", "updated", cwd=project).returncode == 0
    difference = cruft("diff", cwd=project)
    changed = {line.split("/", 1)[1] for line in difference.splitlines() if line.startswith("+++ ")}
    assert changed == {"compose.yaml"}


def test_no_link_when_the_template_was_changed_here(repository: Path, tmp_path: Path) -> None:
    """The recorded commit would not give these files."""
    clone = tmp_path / "clone"
    assert run("git", "clone", "-q", repository, clone).returncode == 0
    (clone / "hooks" / "extra.py").write_text("")
    done = run(sys.executable, "-m", "cookiecutter", clone, "--no-input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "my-detector" / ".cruft.json").exists()


def test_cruft_create_keeps_its_own_link_and_gets_no_git(repository: Path, tmp_path: Path) -> None:
    cruft("create", f"file://{repository}", "--directory", "template", "--no-input", cwd=tmp_path)
    project = tmp_path / "my-detector"
    assert not (project / ".git").exists()
    assert json.loads((project / ".cruft.json").read_text())["directory"] == "template"


def test_no_link_when_the_template_is_a_folder_of_another_repository(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "mono" / "templates" / "yolov5"
    assert run("git", "clone", "-q", repository, clone).returncode == 0
    shutil.rmtree(clone / ".git")
    mono = tmp_path / "mono"
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "all"],
        ["remote", "add", "origin", "https://x/y"],
    ):
        assert run("git", *command, cwd=mono).returncode == 0
    (tmp_path / "out").mkdir()
    done = run(sys.executable, "-m", "cookiecutter", clone, "--no-input", cwd=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out/my-detector/.cruft.json").exists()


def test_a_git_dir_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run("git", "init", "-q", other).returncode == 0
    (tmp_path / "out").mkdir()
    done = run(
        *(sys.executable, "-m", "cookiecutter", ROOT, "--no-input"),
        cwd=tmp_path / "out",
        env={"GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/my-detector/.git/index").exists()
    assert not (other / ".git/index").exists()
