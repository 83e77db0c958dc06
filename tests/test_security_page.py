"""docs/security.md of a generated project says what compose.yaml, the hooks and the image do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import Bake

from generator.hostkit import mirrors, project, services
from generator.hostkit.wishes import OVERRIDES


@pytest.fixture(scope="module", params=["none", "mlflow", "wandb", "clearml"])
def made(request: pytest.FixtureRequest, bake: Bake) -> Path:
    return bake(logger=request.param)


@pytest.fixture(scope="module")
def compose(made: Path) -> dict:
    return yaml.safe_load((made / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return (made / "docs/security.md").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_service_with_its_port_and_its_binding(compose: dict, page: str) -> None:
    listed = {}
    for name, inside, published, *_ in rows(page, "What listens where"):
        listed[name.strip("`")] = (inside, published)
    expected = {}
    for name, service in compose["services"].items():
        ports = service.get("ports", [])
        assert len(ports) <= 1
        expected[name] = ("none", "nowhere")
        for port in ports:
            address, variable, usual, inside = re.fullmatch(r"([\d.]+):\$\{(\w+):-(\d+)\}:(\d+)", port).groups()
            expected[name] = (inside, f"{address}:{variable} ({usual})")
    assert listed == expected


def test_no_service_has_more_than_it_needs(compose: dict) -> None:
    for name, service in compose["services"].items():
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "user"} & set(service), name
        assert not any("docker.sock" in mount for mount in service["volumes"])


def test_what_answers_strangers_writes_nothing_and_sees_no_secret(compose: dict) -> None:
    """A fault in a picture's decoder must not reach .env, or .devcontainer, which runs on the host."""
    for name in ("serve", "tensorboard"):
        service = compose["services"][name]
        assert all(mount.endswith(":ro") for mount in service["volumes"])
        assert not [mount for mount in service["volumes"] if mount.startswith(".:")]
        assert not [key for key in service["environment"] if re.search("WANDB|MLFLOW|CLEARML|JUPYTER", key)]
    assert compose["services"]["tensorboard"]["environment"] == {}


def test_every_file_of_the_host_check_is_named(page: str) -> None:
    for name in (services.KEYS_FILE, ".devcontainer/host-ca.pem", ".devcontainer/compose.local.yaml", services.TOKEN):
        assert f"`{name}`" in page
    assert services._claims().name in page
    for name in ("NETRC", "EXTRA_CA_CERTS", services.KEYS):
        assert f"`{name}`" in page
    assert {"NETRC", "EXTRA_CA_CERTS"} <= set(OVERRIDES)


def test_every_file_it_names_exists(made: Path, page: str) -> None:
    named = set(re.findall(r"`((?:code|docker|\.devcontainer)/[\w./-]*)`", page))
    written = {services.KEYS_FILE, ".devcontainer/host-ca.pem", ".devcontainer/compose.local.yaml"}
    assert len(named) > 8
    assert [name for name in named - written if not (made / name).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (made / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", page)) <= targets


def test_what_ci_runs_in_is_named(bake: Bake) -> None:
    """By its commit or, where only a tag is known, with the mend."""
    github, gitlab = bake(ci="github"), bake(ci="gitlab")
    said = yaml.safe_load((gitlab / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    images = {said[".cpu"]["image"], *said[".cpu"]["services"]}
    trusted = (gitlab / "docs/security.md").read_text(encoding="utf-8").split("## What is trusted")[1]
    assert images == set(re.findall(r"`(docker:[\w.-]+)`", trusted))
    trusted = (github / "docs/security.md").read_text(encoding="utf-8").split("## What is trusted")[1]
    assert "The actions of `.github/workflows`: each by its commit." in trusted
    assert "docker:28" not in trusted
    assert "{%" not in trusted


def test_no_example_holds_a_secret(made: Path) -> None:
    """.env.example is committed: values that let somebody in stand there as names only."""
    text = (made / ".env.example").read_text(encoding="utf-8")
    secrets = re.findall(r"^#?\w*(?:TOKEN|KEY|PASSWORD|SECRET)\w*=([^#\n]*)", text, re.MULTILINE)
    assert [value.strip() for value in secrets if value.strip() and not value.startswith("~/")] == []
    for file in (made / ".env.example", made / mirrors.FILE):
        assert not re.search(r"://[^/\s]*@", file.read_text(encoding="utf-8"))
    ignored = (made / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/.env", f"/{services.KEYS_FILE}", "/.devcontainer/host-ca.pem"} <= set(ignored)
    assert project.BEGIN.startswith("#")
