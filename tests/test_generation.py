"""Projects made by cookiecutter: every pair of choices, hostile answers, every way in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from allpairspy import AllPairs
from conftest import ROOT, Bake, run
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from hosts import DescribedHost

from generator import answers
from hooks import pre_gen_project
from hooks.pre_gen_project import python_bounds

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")

CHOICES = {key: value for key, value in answers.questions().items() if isinstance(value, list)}
# Two sizes, so that the size takes part in the pairs too.
CHOICES["image_size"] = ["640", "1280"]
del CHOICES["host_check"]  # strict depends on the host at hand: see the described ones below


def works(row: list[str]) -> bool:
    """Whether this row, or the part of it chosen so far, holds no pair that pre_gen refuses."""
    chosen = dict(zip(CHOICES, row, strict=False))
    torch, python = chosen.get("torch_version", "auto"), chosen.get("python_version")
    return torch == "auto" or python is None or python in python_bounds()[torch]


PAIRS = [dict(zip(CHOICES, row, strict=True)) for row in AllPairs(list(CHOICES.values()), filter_func=works)]


def texts(project: Path) -> dict[Path, str]:
    """Every text file of a project except what git keeps for itself."""
    files = [path for path in project.rglob("*") if path.is_file() and ".git" not in path.relative_to(project).parts]
    return {path: path.read_bytes().decode("utf-8") for path in files}


@pytest.mark.parametrize("chosen", PAIRS, ids=lambda chosen: "-".join(chosen.values()))
def test_every_pair_of_choices(bake: Bake, chosen: dict[str, str]) -> None:
    project = bake(**chosen)
    for path, text in texts(project).items():
        inside = path.relative_to(project)
        assert "\r" not in text or path.suffix == ".cmd", inside
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"trailing blanks in {inside}"
        assert text == "" or text.endswith("\n"), f"no newline at the end of {inside}"
        assert not text.endswith("\n\n"), f"blank lines at the end of {inside}"
        if inside.parts[0] != "code" and path.parent.name != "workflows":
            assert "{{" not in re.sub(r"\{\{(json )?\.[A-Za-z.]*\}\}", "", text), inside  # docker's own templates
            assert "{%" not in text, inside
    settings = yaml.safe_load((project / "lab.yaml").read_text())
    assert settings["engine"] == chosen["engine"]
    assert settings["model"] == chosen["model"]
    assert (project / ".github").exists() == (chosen["ci"] == "github")
    assert (project / ".gitlab-ci.yml").exists() == (chosen["ci"] == "gitlab")
    # git knows every file: nothing a user needs is ignored by the project's own .gitignore
    tracked = set(run("git", "ls-files", cwd=project).stdout.splitlines())
    assert tracked == {str(path.relative_to(project)) for path in texts(project)}


def test_the_pairs_cover_every_choice() -> None:
    for question, offered in CHOICES.items():
        assert {row[question] for row in PAIRS} == set(offered)


HOSTILE = [
    'O\'Connor "Bob"',
    "C:\\new\\x41\\",
    "$(touch pwned) `touch pwned`",
    "'; touch pwned; '",
    '"); import os; os.system("touch pwned") #',
    "😀 naïve 猫",
    "a: b # c",
    "- x",
    "%s ${HOME} $HOME",
    "<b>&amp;</b>",
    "null",
    "'''\"\"\"",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_arrive_unchanged_and_never_run(tmp_path: Path, text: str) -> None:
    project = Path(
        cookiecutter(
            str(ROOT / "template"),
            no_input=True,
            extra_context={
                "project_name": text,
                "project_slug": "odd",
                "description": text,
                "author_name": text,
                "class_names": f"first, {text.replace(',', ' ')}",
                "licence": "MIT",
            },
            output_dir=str(tmp_path),
        )
    )
    assert (project / "README.md").read_text(encoding="utf-8").startswith(f"# {text}\n\n{text}.\n")
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["description"] == text
    assert metadata["authors"] == [{"name": text}]
    names = yaml.safe_load((project / "code/configs/own.yaml").read_text(encoding="utf-8"))["names"]
    assert names == {0: "first", 1: text.replace(",", " ").strip()}
    assert f"Copyright (c) {text}\n" in (project / "LICENSE").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "answer",
    [
        {"project_slug": "../escaped"},
        {"project_slug": "con"},
        {"project_slug": "a;b"},
        {"project_slug": "x" * 200},  # from 256 on the file system refuses before any hook runs
        {"description": "two\nlines"},
        {"description": "x" * 300},
        {"image_size": "641"},
        {"torch_version": "2.15.0", "python_version": "3.10"},
    ],
)
def test_refused_answers_leave_nothing(
    tmp_path: Path, answer: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "inside" / "deep"
    output.mkdir(parents=True)
    with pytest.raises(FailedHookException):
        cookiecutter(str(ROOT / "template"), no_input=True, extra_context=answer, output_dir=str(output))
    assert [path for path in tmp_path.rglob("*") if path not in (output, output.parent)] == []
    said = capfd.readouterr().err
    assert "No project was made:" in said
    assert "Traceback" not in said


def test_typed_jinja_is_refused_and_never_rendered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cookiecutter", str(ROOT), "--output-dir", str(tmp_path)]
    typed = (
        "\n".join(["", "{{ cookiecutter.__class__.__mro__ }}", "safe", *[""] * 20]) + "\n"
    )  # and return for each question after it
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "project_name: '{{ cookiecutter.__class__.__mro__ }}' holds template marks" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- every way in ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as others get it: a bare clone that holds the working tree's present state."""
    place = tmp_path_factory.mktemp("published")
    work = place / "work"
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "state"]):
        assert run("git", *command, cwd=work).returncode == 0
    bare = place / "yolov5-devcontainer.git"
    assert run("git", "clone", "-q", "--bare", work, bare).returncode == 0
    return bare


def made_by_command(tmp_path: Path, template: str | Path, *options: str, cwd: Path | None = None) -> Path:
    done = run(
        sys.executable,
        "-m",
        "cookiecutter",
        template,
        "--no-input",
        "--output-dir",
        tmp_path,
        *options,
        cwd=cwd or tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"My Detector is in {tmp_path}/my-detector/" in done.stdout
    assert len(done.stdout.strip().splitlines()) <= 25
    project = tmp_path / "my-detector"
    assert (project / ".devcontainer/hostkit/__main__.py").is_file()
    return project


def test_from_the_folder_itself(tmp_path: Path) -> None:
    made_by_command(tmp_path, ".", cwd=ROOT)


def test_the_next_command_leads_into_the_project(tmp_path: Path) -> None:
    for folder, options in (("", []), ("my projects", ["--output-dir", "my projects"])):
        shell = {"PWD": str(tmp_path)}
        done = run(sys.executable, "-m", "cookiecutter", ROOT, "--no-input", *options, cwd=tmp_path, env=shell)
        assert done.returncode == 0, done.stderr
        (command,) = [line.strip() for line in done.stdout.splitlines() if line.startswith("  cd ")]
        assert run("bash", "-c", f"{command} && ls compose.yaml", cwd=tmp_path).returncode == 0
        assert command == (f"cd '{folder}/my-detector'" if folder else "cd my-detector")


def test_with_directory_template(tmp_path: Path) -> None:
    made_by_command(tmp_path, ROOT, "--directory", "template")


def test_from_git_twice_in_a_row(tmp_path: Path, published: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        project = made_by_command(tmp_path / folder, f"file://{published}")
        assert json.loads((project / ".cruft.json").read_text())["template"] == f"file://{published}"
    again = run(sys.executable, "-m", "cookiecutter", f"file://{published}", "--no-input", cwd=tmp_path / "two")
    assert again.returncode == 1
    assert "already exists" in again.stderr + again.stdout
    over = made_by_command(tmp_path / "two", f"file://{published}", "--overwrite-if-exists")
    assert (over / "compose.yaml").is_file()


def test_from_a_zip(tmp_path: Path, published: Path) -> None:
    archive = tmp_path / "main.zip"
    assert run("git", "archive", "--format=zip", "--prefix=repo/", "-o", archive, "HEAD", cwd=published).returncode == 0
    assert zipfile.is_zipfile(archive)
    project = made_by_command(tmp_path, archive)
    assert not (project / ".cruft.json").exists()


def test_from_a_clone_whose_path_has_a_quote_and_a_blank(tmp_path: Path, published: Path) -> None:
    clone = tmp_path / 'it\'s a "clone"'
    assert run("git", "clone", "-q", published, clone).returncode == 0
    (tmp_path / "out").mkdir()
    made_by_command(tmp_path / "out", clone)


def test_a_stray_module_in_the_temporary_folder_is_not_imported(tmp_path: Path) -> None:
    stray = tmp_path / "tmp"
    stray.mkdir()
    (stray / "json.py").write_text(f"open({str(tmp_path / 'hijacked')!r}, 'w')\n")
    done = run(sys.executable, "-m", "cookiecutter", ROOT, "--no-input", cwd=tmp_path, env={"TMPDIR": str(stray)})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "hijacked").exists()


def test_inside_another_repository_no_second_one_is_made(tmp_path: Path) -> None:
    assert run("git", "init", "-q", cwd=tmp_path).returncode == 0
    project = made_by_command(tmp_path, ROOT)
    assert not (project / ".git").exists()


def test_without_git_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    project_folder = tmp_path / "out"
    project_folder.mkdir()
    done = run(
        sys.executable,
        *("-m", "cookiecutter", ROOT, "--no-input", "--output-dir", project_folder),
        env={"PATH": str(tmp_path / "bin")},
    )
    assert done.returncode == 0, done.stderr
    assert (project_folder / "my-detector" / "compose.yaml").is_file()


def test_a_fault_in_the_host_check_costs_no_project(tmp_path: Path, published: Path) -> None:
    clone = tmp_path / "clone"
    assert run("git", "clone", "-q", published, clone).returncode == 0
    (clone / "generator/hostkit/doctor.py").write_text("raise RuntimeError('a bug of ours')\n")
    done = run(sys.executable, "-m", "cookiecutter", clone, "--no-input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "could not be checked (RuntimeError: a bug of ours)" in done.stdout


def test_executables_stay_executable(bake: Bake) -> None:
    project = bake()
    for name in (".devcontainer/host-setup", "docker/lock", "docker/install-torch", "docker/with-host-ca"):
        assert os.access(project / name, os.X_OK), name


def test_compiled_files_beside_the_template_stay_behind(tmp_path: Path, published: Path) -> None:
    clone = tmp_path / "clone"
    assert run("git", "clone", "-q", published, clone).returncode == 0
    compiled = clone / "template/{{cookiecutter.project_slug}}/code/__pycache__"
    compiled.mkdir()
    (compiled / "train.cpython-311.pyc").write_bytes(b"\xa7\r\r\n\x00")
    done = run(sys.executable, "-m", "cookiecutter", clone, "--no-input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "my-detector").rglob("__pycache__"))


def test_a_terminal_without_the_characters_and_a_reader_that_leaves(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cookiecutter '{ROOT}' --no-input project_name='猫 Detector' | true"
    done = run("bash", "-o", "pipefail", "-c", command, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mao-detector/.devcontainer/hostkit/__main__.py").is_file()


DEFAULTS = {
    **{key: value[0] if isinstance(value, list) else value for key, value in answers.questions().items()},
    "project_slug": "my-detector",
}


def engine(host: DescribedHost) -> None:
    host.docker(ServerVersion="28.3.0", Runtimes={"runc": {}, "nvidia": {}}, OperatingSystem="Ubuntu 24.04")
    host.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.20.0\n")


@pytest.mark.parametrize("folder", [ROOT, ROOT / "template"])
def test_a_strict_host_check_makes_no_project_that_cannot_run(tmp_path, monkeypatch, capfd, folder):
    host = DescribedHost(tmp_path, monkeypatch)
    host.nvidia_smi("470.256.02", "5090")
    engine(host)
    strict = {"host_check": "strict"}
    with pytest.raises(FailedHookException):
        cookiecutter(str(folder), no_input=True, extra_context=strict, output_dir=str(tmp_path / "out"))
    said = capfd.readouterr().err
    assert "host_check is strict" in said
    assert "driver 470.256.02 is too old for torch 2.8.0" in said
    assert not list((tmp_path / "out").iterdir())
    made = cookiecutter(str(folder), no_input=True, extra_context={}, output_dir=str(tmp_path / "out"))
    assert Path(made, "compose.yaml").exists()


def test_a_refusal_leaves_a_folder_that_was_there_as_it_is(tmp_path, monkeypatch):
    made = Path(cookiecutter(str(ROOT), no_input=True, output_dir=str(tmp_path)))
    (made / "README.md").write_text("mine\n")
    (made / "data" / "own" / "empty").mkdir(parents=True)
    before = sorted(made.rglob("*"))
    folder = tmp_path / "host"
    folder.mkdir()
    host = DescribedHost(folder, monkeypatch)
    host.nvidia_smi("470.256.02", "5090")
    options = {"no_input": True, "output_dir": str(tmp_path), "overwrite_if_exists": True}
    with pytest.raises(FailedHookException):
        cookiecutter(str(ROOT), extra_context={"host_check": "strict"}, **options)
    assert (made / "README.md").read_text() == "mine\n"
    assert sorted(made.rglob("*")) == before


def test_overwriting_keeps_what_is_not_the_templates(tmp_path):
    made = Path(cookiecutter(str(ROOT), no_input=True, output_dir=str(tmp_path)))
    own = [made / name for name in ("data/own/empty", "code/yolov5/.git/refs", "notes/__pycache__", "runs/exp/empty")]
    for folder in own:
        folder.mkdir(parents=True)
    (own[2] / "kept.pyc").write_text("")
    mine = [
        made / name for name in ("data/own/1.jpg", "runs/exp/best.pt", "code/tests/test_ours.py", "code/lab/ours.py")
    ]
    for file in mine:
        file.write_text("mine")
    (made / "link").symlink_to(own[0])
    cookiecutter(str(ROOT), no_input=True, output_dir=str(tmp_path), overwrite_if_exists=True)
    assert all(folder.is_dir() for folder in own)
    assert (own[2] / "kept.pyc").exists()
    assert all(file.read_text() == "mine" for file in mine)
    assert (made / "link").is_symlink()


def test_an_update_is_made_on_any_machine(tmp_path, monkeypatch):
    host = DescribedHost(tmp_path, monkeypatch)
    host.nvidia_smi("470.256.02", "5090")
    made = {**json.loads((ROOT / "template" / "cookiecutter.json").read_text()), **DEFAULTS}
    with pytest.raises(SystemExit, match="too old"):
        pre_gen_project.main({**made, "host_check": "strict"})
    pre_gen_project.main({**made, "host_check": "strict", "_commit": "0" * 40})  # as cruft renders


@pytest.mark.parametrize("cards", [("5090",), ()])
def test_a_strict_host_check_lets_a_fit_host_go_on(tmp_path, monkeypatch, cards):
    host = DescribedHost(tmp_path, monkeypatch)
    if cards:
        host.nvidia_smi("580.95.05", *cards)
    engine(host)
    made = cookiecutter(str(ROOT), no_input=True, extra_context={"host_check": "strict"}, output_dir=str(tmp_path))
    assert Path(made, ".devcontainer", "hostkit", "probe.py").exists()


def test_a_strict_host_check_asks_the_engine_too(tmp_path, monkeypatch, capfd):
    host = DescribedHost(tmp_path, monkeypatch)
    host.nvidia_smi("580.95.05", "5090")
    host.docker(ServerErrors=["Cannot connect to the Docker daemon at unix:///var/run/docker.sock."])
    with pytest.raises(FailedHookException):
        cookiecutter(str(ROOT), no_input=True, extra_context={"host_check": "strict"}, output_dir=str(tmp_path / "out"))
    assert "systemctl restart docker" in capfd.readouterr().err
