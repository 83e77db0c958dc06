"""python -m generator and python -m hostkit, as a person calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import DescribedHost, ask

from generator import __main__ as command
from generator import catalog
from generator.hostkit.catalogue import BadRequest

ROOT = Path(__file__).parent.parent
RTX_5090 = "NVIDIA GeForce RTX 5090,12.0,32607"


def run(capsys, *arguments):
    status = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# resolve


def test_resolve_prints_json(capsys):
    status, out, _ = run(capsys, "resolve", "--driver", "570.86.10", "--gpu", RTX_5090, "--torch", "2.8.0", "--json")
    assert status == 0
    answer = json.loads(out)
    refused = answer.pop("refused")
    assert answer == ask("570.86.10", "5090", torch="2.8.0").as_dict()
    assert [(one["torch"], one["build"]) for one in refused] == [("2.8.0", "cu129"), ("2.8.0", "cu126")]


def test_resolve_speaks(capsys):
    status, out, _ = run(
        capsys, "resolve", "--driver", "535.183.01", "--gpu", "NVIDIA GeForce GTX 1080 Ti,,11264", "--torch", "2.8.0"
    )
    assert status == 0
    assert "torch 2.8.0+cu126 with torchvision 0.23.0, from https://download.pytorch.org/whl/cu126" in out
    assert "because" in out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--gpu", RTX_5090, "--gpu", "NVIDIA GeForce GTX 1080 Ti,6.1,11264"], 1),
        (["--gpu", RTX_5090, "--torch", "2.6.0"], 1),
        (["--gpu", "NVIDIA GeForce RTX 5090"], 0),
        (["--gpu", "NVIDIA GB10,12.1,", "--machine", "aarch64"], 0),
        (["--gpu", RTX_5090, "--os", "wsl2"], 0),
        ([], 2),
        (["--gpu", "a,b,c,d"], 2),
        (["--gpu", ",,"], 2),
        (["--gpu", "x,8.6,much"], 2),
        (["--gpu", "x,8,1"], 2),
        (["--gpu", "X,8.9,²"], 2),
        (["--gpu", "X,٨.٩,1"], 2),
        (["--gpu", "X,8.9," + "9" * 5000], 2),
        (["--gpu", "X," + "9" * 5000], 2),
        (["--gpu", "X", "--driver", "5" * 5000], 2),
        (["--gpu", "X", "--driver", "٥٨٠.1"], 2),
        (["--gpu", RTX_5090, "--torch", "3"], 2),
        (["--gpu", RTX_5090, "--os", "bsd"], 2),
        (["--gpu", RTX_5090, "--machine", "mips"], 2),
        (["--gpu", RTX_5090, "--python", "eleven"], 2),
        (["--hosts", "-"], 2),
    ],
)
def test_resolve_exit_status(capsys, arguments, status):
    result, _, err = run(capsys, "resolve", "--driver", "580.95.05", *arguments)
    assert result == status
    assert err.count("\n") == (1 if status == 2 else 0)
    assert len(err) < 400


def test_resolve_about_this_host(capsys, tmp_path, monkeypatch):
    DescribedHost(tmp_path, monkeypatch).nvidia_smi("580.95.05", "4090")
    status, out, _ = run(capsys, "resolve", "--json", "--machine", "x86_64")
    assert (status, json.loads(out)["build"]) == (0, "cu132")


def test_resolve_does_not_take_a_broken_driver_for_no_gpu(capsys, tmp_path, monkeypatch):
    host = DescribedHost(tmp_path, monkeypatch)
    host.says("nvidia-smi", "oops\n")
    status, out, _ = run(capsys, "resolve", "--json", "--machine", "x86_64")
    assert (status, json.loads(out)["reasons"]) == (1, ["nvidia-smi answers nothing that can be read: oops."])
    host.says("nvidia-smi", "0, X, GPU-1, [N/A], [N/A], [N/A], [N/A]\n")
    status, _, err = run(capsys, "resolve")
    assert (status, err.count("\n"), "give --driver and --gpu" in err) == (2, 1, True)


@pytest.mark.parametrize("module", ["generator", "generator.hostkit"])
def test_what_is_printed_is_fit_for_any_terminal(module):
    odd = "Zoë\x1b[31m Ω"
    command_line = [sys.executable, "-m", module, "resolve", "--driver", "580.95.05", "--gpu", f"{odd},8.9,1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Zo\\xeb\\x1b[31m \\u03a9" in done.stdout
    done = subprocess.run(
        [*command_line, "--os", "\x1b[2J"], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, b"\x1b" in done.stderr) == (2, False)


# doctor


def test_doctor(capsys, tmp_path, monkeypatch):
    host = DescribedHost(tmp_path, monkeypatch)
    host.nvidia_smi("580.95.05", "4090")
    host.docker(ServerVersion="28.3.0", Runtimes={"nvidia": {}})
    host.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.19.1")
    status, out, _ = run(capsys, "doctor", "--json", "--project", tmp_path)
    levels = {row["id"]: row["level"] for row in json.loads(out)}
    assert levels["gpu.none"] == levels["toolkit.runtime"] == "ok"
    assert status == (1 if "fail" in levels.values() else 0)
    host.says("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch\n", code=18)
    status, out, _ = run(capsys, "doctor", "--project", tmp_path)
    assert status == 1
    assert "sudo reboot" in out
    assert run(capsys, "doctor", "--torch", "1")[0] == 2


def test_doctor_refuses_a_python_without_a_gpu_too(capsys, tmp_path, monkeypatch):
    DescribedHost(tmp_path, monkeypatch)
    status, out, err = run(capsys, "doctor", "--python", "abc", "--project", tmp_path)
    assert (status, out, err) == (2, "", "generator: Python 'abc' is not of the form 3.11: give major and minor.\n")


# catalog, options


def test_catalog_check(capsys, tmp_path, monkeypatch):
    assert run(capsys, "catalog", "--check")[0] == 0
    monkeypatch.setattr(catalog, "COMPILED", tmp_path / "catalog.json")
    status, _, err = run(capsys, "catalog", "--check")
    assert (status, "stale" in err) == (1, True)
    assert not (tmp_path / "catalog.json").exists()
    assert run(capsys, "catalog")[0] == 0
    assert run(capsys, "catalog", "--check")[0] == 0


def test_options_lists_every_question(capsys):
    status, out, _ = run(capsys, "options")
    rows = out.splitlines()
    assert status == 0
    assert [row.split("`")[1] for row in rows[2:]] == list(command.questions())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_options_table():
    template = {"name": "{{ a | b }}", "size": ["s", "m"], "_private": 1,
                "__prompts__": {"name": "A name", "size": {"__prompt__": "How big", "s": "s - small"}}}  # fmt: skip
    assert command.options_table(template).splitlines()[2:] == [
        "| `name` | from the answers above | any text | A name |",
        "| `size` | `s` | `s` - small<br>`m` | How big |",
    ]


# new

QUESTIONS = {"project_name": "My Detector", "engine": ["yolov5", "yolov5u"]}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("project_nme=x", "did you mean project_name?"),
        ("zzz=1", "see `python -m generator options`"),
        ("project_name", "is not key=value"),
        ("project_name={{ 7 * 7 }}", "holds Jinja"),
        ("project_name={% raw %}", "holds Jinja"),
        ("project_name={# x", "holds Jinja"),
        ("engine=yolov5uu", "did you mean yolov5u?"),
        ("engine=resnet", "choose from yolov5, yolov5u."),
        ("_extensions=x", "no question"),
    ],
)
def test_answers_that_are_refused(pair, said):
    with pytest.raises(BadRequest) as caught:
        command.checked_answers([pair], QUESTIONS)
    assert said in str(caught.value)


def test_answers_are_taken_as_they_are():
    assert command.checked_answers(["project_name=a=b $x {y}", "engine=yolov5u"], QUESTIONS) == {
        "project_name": "a=b $x {y}",
        "engine": "yolov5u",
    }


def test_new_refuses_in_one_sentence(capsys, tmp_path):
    status, out, err = run(capsys, "new", "--output", tmp_path, "torch_versoin=2.8.0")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a template of one file, as `new` finds it."""
    folder = tmp_path / "repository"
    inside = folder / "template" / "{{cookiecutter.project_slug}}"
    inside.mkdir(parents=True)
    (folder / "cookiecutter.json").write_text(
        '{"templates": {"a": {"path": "./template", "title": "A", "description": "a"}}}'
    )
    (folder / "template" / "cookiecutter.json").write_text('{"project_slug": "thing", "note": "", "size": ["s", "m"]}')
    (inside / "note").write_text("{{cookiecutter.note}}:{{cookiecutter.size}}")
    monkeypatch.setattr(command, "ROOT", folder)
    monkeypatch.setattr(command, "QUESTIONS", folder / "template" / "cookiecutter.json")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COOKIECUTTER_CONFIG", str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text(f"replay_dir: {tmp_path}/replay\ncookiecutters_dir: {tmp_path}/cc\n")
    return folder


def test_new(capsys, repository, tmp_path):
    out = tmp_path / "out"
    assert run(capsys, "new", "--output", out, "note=it's $5 {x}", "size=m") == (0, "", "")
    assert (out / "thing" / "note").read_text() == "it's $5 {x}:m"
    status, _, err = run(capsys, "new", "--output", out)
    assert (status, "already exists" in err, err.count("\n")) == (2, True, 1)


def test_new_says_why_it_cannot_write(capsys, repository, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for output, reason in ((file, "Not a directory"), (file / "sub", "Not a directory")):
        status, _, err = run(capsys, "new", "--output", output)
        assert (status, err) == (
            2,
            f"generator: {output} cannot be written ({reason}): name another folder with --output.\n",
        )


def test_new_when_a_hook_refuses(capsys, repository, tmp_path):
    hooks = repository / "template" / "hooks"
    hooks.mkdir()
    (hooks / "pre_gen_project.py").write_text("raise SystemExit(1)")
    status, _, err = run(capsys, "new", "--output", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "out" / "thing").exists()


def test_doctor_honours_the_projects_own_settings(tmp_path, monkeypatch, capsys):
    host = DescribedHost(tmp_path, monkeypatch)
    host.nvidia_smi("570.86.10", "4090")
    host.docker(ServerVersion="28.3.0", Runtimes={"nvidia": {}})
    host.says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.20.0\n")
    project = tmp_path / "p"
    (project / ".devcontainer").mkdir(parents=True)
    (project / "compose.yaml").write_text("services: {}\n")
    (project / ".devcontainer" / "project.json").write_text('{"slug": "p", "torch": "2.8.0", "python": "3.11"}')
    status, out, _ = run(capsys, "doctor", "--project", project)
    assert (status, out.splitlines()[-1][:44]) == (0, "this project here: NVIDIA GeForce RTX 4090, ")
    (project / ".env").write_text("TORCH_VERSION=2.15.0\n")
    status, out, _ = run(capsys, "doctor", "--project", project)
    assert status == 1
    assert "driver 570.86.10 is too old for torch 2.15.0" in out
    (project / ".env").write_text("TORCH_VERSION=2.8.7\n")
    status, out, _ = run(capsys, "doctor", "--project", project)
    assert "overrides           TORCH_VERSION: torch '2.8.7' is not in the catalogue" in out
    (project / ".env").write_text("YOLO_ACCEL=cpu\n")
    status, out, _ = run(capsys, "doctor", "--project", project)
    assert (status, out.splitlines()[-1]) == (0, "this project here: torch 2.8.0+cpu on the CPU"
                                              " (https://download.pytorch.org/whl/cpu)")  # fmt: skip
    assert run(capsys, "doctor", "--project", tmp_path / "nowhere")[0] == 2
