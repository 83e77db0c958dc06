"""Ports, Jupyter's token and SSH's keys: chosen once for a project, kept, and nobody else's."""

from __future__ import annotations

import os
import socket

import pytest
from hosts import DescribedHost

from generator.hostkit import services
from generator.hostkit.catalogue import BadRequest

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7"


@pytest.fixture
def host(tmp_path, monkeypatch):
    found = DescribedHost(tmp_path, monkeypatch)
    (found.root / "tmp").mkdir(parents=True, exist_ok=True)
    return found


def project(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return folder


def test_two_projects_never_share_a_port(tmp_path, host):
    one = services.settings(project(tmp_path, "one"), {}, {}, "linux")
    two = services.settings(project(tmp_path, "two"), {}, {}, "linux")
    assert [one[name] for name in services.PORTS] == ["6006", "8888", "2222", "8000"]
    assert [two[name] for name in services.PORTS] == ["6007", "8889", "2223", "8001"]
    assert one["JUPYTER_TOKEN"] != two["JUPYTER_TOKEN"]


def test_what_was_chosen_stays(tmp_path, host):
    folder = project(tmp_path, "one")
    first = services.settings(folder, {}, {}, "linux")
    assert services.settings(folder, {}, first, "linux") == first
    assert len(first["JUPYTER_TOKEN"]) == 43


def test_a_copied_project_gets_its_own_ports(tmp_path, host):
    first = services.settings(project(tmp_path, "one"), {}, {}, "linux")
    copied = services.settings(project(tmp_path, "copy"), {}, first, "linux")
    assert not {first[name] for name in services.PORTS} & {copied[name] for name in services.PORTS}


def test_a_copied_project_gets_its_own_token(tmp_path, host):
    first = services.settings(project(tmp_path, "one"), {}, {}, "linux")
    copied = services.settings(project(tmp_path, "copy"), {}, first, "linux")
    assert copied["JUPYTER_TOKEN"] != first["JUPYTER_TOKEN"]
    assert services.settings(project(tmp_path, "copy"), {}, copied, "linux") == copied


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two other users")
def test_what_a_closed_home_holds_still_counts(tmp_path, host):
    """Ada's home is 0700: Bob cannot see her project, and her ports are taken all the same."""
    (host.root / "tmp" / "yolov5-devcontainer-ports").mkdir(mode=0o777)
    (host.root / "tmp" / "yolov5-devcontainer-ports").chmod(0o777)
    home = project(tmp_path, "ada")
    hers = services.settings(project(home, "detector"), {}, {}, "linux")
    home.chmod(0o700)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # Bob
        try:
            os.setuid(4322)
            os.write(
                writing, str([services.claim(int(hers[name]), tmp_path / "bob") for name in services.PORTS]).encode()
            )
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"[False, False, False, False]"


def test_a_deleted_project_frees_its_ports(tmp_path, host):
    gone = project(tmp_path, "gone")
    services.settings(gone, {}, {}, "linux")
    gone.rmdir()
    assert services.settings(project(tmp_path, "next"), {}, {}, "linux")["JUPYTER_PORT"] == "8888"


def test_a_port_that_listens_is_left_alone(tmp_path, host):
    host.file("/proc/net/tcp", "  sl\n   0: 0100007F:22B8 00000000:0000 0A 00000000\n")  # 8888
    assert services.settings(project(tmp_path, "one"), {}, {}, "linux")["JUPYTER_PORT"] == "8889"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert services._free_port(port, set(), project(tmp_path, "mac"), "macos") != port


def test_the_users_own_lines_win(tmp_path, host):
    chosen = services.settings(project(tmp_path, "one"), {"JUPYTER_PORT": "6006", "JUPYTER_TOKEN": "mine"}, {}, "linux")
    assert "JUPYTER_PORT" not in chosen
    assert "JUPYTER_TOKEN" not in chosen
    assert chosen["TENSORBOARD_PORT"] == "6007"  # 6006 is Jupyter's


@pytest.mark.parametrize("before", ["", "short", "a b" * 20, "x" * 31])
def test_a_token_is_never_empty_nor_weak(tmp_path, host, before):
    token = services.settings(project(tmp_path, "one"), {}, {"JUPYTER_TOKEN": before}, "linux")["JUPYTER_TOKEN"]
    assert len(token) == 43
    assert token != before


def test_claims_that_are_traps(tmp_path, host):
    place = host.root / "tmp" / "yolov5-devcontainer-ports"
    place.mkdir()
    os.mkfifo(place / "8888")  # nobody writes: must not be waited for
    (place / "6006").symlink_to("/etc/passwd")
    chosen = services.settings(project(tmp_path, "one"), {}, {}, "linux")
    assert chosen["TENSORBOARD_PORT"] == "6007"
    assert chosen["JUPYTER_PORT"] in {"8888", "8889"}
    assert (place / "6006").is_symlink()


def test_claims_that_lead_elsewhere_are_not_followed(tmp_path, host):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "8888").write_text("not ours")
    (host.root / "tmp" / "yolov5-devcontainer-ports").symlink_to(elsewhere)
    assert services.settings(project(tmp_path, "one"), {}, {}, "linux")["JUPYTER_PORT"] == "8888"
    assert [(file.name, file.read_text()) for file in elsewhere.iterdir()] == [("8888", "not ours")]


def test_keys_of_home_and_agent(tmp_path, host, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    host.file("/home/ada/.ssh/id_ed25519.pub", f"{ED25519} ada@laptop\n")
    host.file("/home/ada/.ssh/id_ed25519-cert.pub", "ssh-ed25519-cert-v01@openssh.com AAAA\n")
    host.file("/home/ada/.ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\n")
    host.says("ssh-add", f"{ED25519} same key\n{RSA} yubikey\n")
    keys = services.public_keys({"SSH_AUTH_SOCK": "/run/agent"}, {}, tmp_path)
    assert keys == f"{ED25519} ada@laptop\n{RSA} yubikey\n".encode()
    assert services.public_keys({}, {}, tmp_path) == f"{ED25519} ada@laptop\n".encode()


def test_keys_of_a_named_file(tmp_path, host):
    (tmp_path / "team.pub").write_text(f'# the team\n{RSA} bob\ncommand="sh" {ED25519} no\n')
    assert services.public_keys({}, {"SSH_AUTHORIZED_KEYS": "team.pub"}, tmp_path) == f"{RSA} bob\n".encode()
    with pytest.raises(BadRequest, match=r"SSH_AUTHORIZED_KEYS=nothing\.pub holds no public key"):
        services.public_keys({}, {"SSH_AUTHORIZED_KEYS": "nothing.pub"}, tmp_path)
