"""Two people, two projects each, every service of all four at once on one engine: nothing collides or is shared."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Opened, User
from test_services import answer, compose, secure_shell, settings, until_healthy

PORTS = ("JUPYTER_PORT", "TENSORBOARD_PORT", "SSH_PORT", "SERVE_PORT")
LISTENING = ("jupyter", "tensorboard", "ssh", "serve")
TRAIN = "--engine yolov5u --weights '' --cfg yolov5n.yaml --data data/small/data.yaml --img 64 --epochs 1 --batch 8"


@dataclass(frozen=True)
class Theirs:
    """A project with all its services up, whose it is, and the key that opens its SSH."""

    opened: Opened
    settings: dict[str, str]
    key: Path


def colleague(user: User) -> User:
    """A second ordinary user of the machine, who may use Docker too."""
    name = "colleague"
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--uid", "4322", name], check=True, capture_output=True)
        entry = pwd.getpwnam(name)
    group = Path("/var/run/docker.sock").stat().st_gid
    subprocess.run(["usermod", "--append", "--groups", str(group), name], check=True, capture_output=True)
    return dataclasses.replace(
        user, name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=Path(entry.pw_dir)
    )  # fmt: skip


def prepared(opened: Opened, user: User, folder: Path, key: Path) -> Theirs:
    """A new project of `user`: its own answers, pictures and model, prepared for this host, its image built."""
    made = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(folder.parent)]
    subprocess.run(made, cwd=folder.parent, capture_output=True, check=True)
    shutil.copytree(opened.folder / "data" / "small", folder / "data" / "small")
    shutil.copyfile(opened.folder / "runs" / "made.onnx", folder / "runs" / "made.onnx")
    lines = ("TORCH_BUILD=cu128", "YOLO_ACCEL=cpu", "SERVE_WEIGHTS=runs/made.onnx", f"SSH_AUTHORIZED_KEYS={key}.pub")
    (folder / ".env").write_text("\n".join((*lines, "")), encoding="utf-8")
    subprocess.run(["chown", "--recursive", f"{user.uid}:{user.gid}", str(folder.parent)], check=True)
    own = dataclasses.replace(opened, folder=folder, user=user)
    done = user.run(folder / ".devcontainer/host-setup", cwd=folder)
    assert done.returncode == 0, done.stderr
    built = compose(own, "build", "dev")
    assert built.returncode == 0, built.stderr[-3000:]
    return Theirs(own, settings(folder), key)


@pytest.fixture(scope="module")
def everything(opened: Opened) -> Iterator[list[Theirs]]:
    """Each person's two projects, of the same name, with all profiles up."""
    if os.getuid() != 0:
        pytest.skip("only root can be two other users")
    small = opened.run("lab", "data", "demo", "--images", "16", "--size", "64", "--out", "data/small")
    assert small.returncode == 0, small.stderr
    assert opened.run("python", "code/tests/made_onnx.py", "runs/made.onnx").returncode == 0
    place = Path(tempfile.mkdtemp(prefix="e2e-users-", dir="/var/tmp"))
    place.chmod(0o755)
    projects: list[Theirs] = []
    try:
        for user in (opened.user, colleague(opened.user)):
            desk = place / user.name
            desk.mkdir(mode=0o700)
            os.chown(desk, user.uid, user.gid)
            user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", desk / "key")
            for name in ("one", "two"):
                (desk / name).mkdir()
                projects.append(prepared(opened, user, desk / name / "my-detector", desk / "key"))
        for one in projects:
            up = compose(one.opened, "--profile", "*", "up", "--detach", "--no-build", TRAIN=TRAIN)
            assert up.returncode == 0, up.stderr
        for one in projects:
            until_healthy(one.opened, *LISTENING)
        yield projects
    finally:
        for one in projects:
            compose(one.opened, "--profile", "*", "down", "--timeout", "1", "--volumes", "--rmi", "local")
        shutil.rmtree(place, ignore_errors=True)


def test_names_and_ports_are_each_ones_own(everything: list[Theirs]) -> None:
    ports = [one.settings[name] for one in everything for name in PORTS]
    assert len(set(ports)) == 4 * len(PORTS)
    assert len({one.settings["COMPOSE_PROJECT_NAME"] for one in everything}) == 4
    assert len({one.settings["JUPYTER_TOKEN"] for one in everything}) == 4
    for one in everything:
        running = compose(one.opened, "ps", "--all", "--services").stdout.split()
        assert sorted(running) == sorted((*LISTENING, "dev", "train", "val"))


def test_a_token_opens_its_own_notebooks_alone(everything: list[Theirs]) -> None:
    for one, other in itertools.product(everything, repeat=2):
        url = f"http://127.0.0.1:{one.settings['JUPYTER_PORT']}/api/contents"
        assert answer(url, other.settings["JUPYTER_TOKEN"])[0] == (200 if one is other else 403)
    for one in everything:
        for name, path in (("TENSORBOARD_PORT", "/"), ("SERVE_PORT", "/health")):
            assert answer(f"http://127.0.0.1:{one.settings[name]}{path}")[0] == 200


def test_a_key_opens_its_owners_containers_alone(everything: list[Theirs]) -> None:
    for one, other in itertools.product(everything, repeat=2):
        user = other.opened.user
        port = one.settings["SSH_PORT"]
        done = user.run(*secure_shell(one.opened, port, other.key, "id -u && touch /workspace/runs/by-ssh && env"))
        if one.key == other.key:
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[0] == str(user.uid)
            assert (one.opened.folder / "runs" / "by-ssh").stat().st_uid == user.uid
            inside = compose(one.opened, "exec", "--no-TTY", "ssh", "env").stdout.splitlines()
            kept = {line for line in inside if not line.startswith(("HOME=", "HOSTNAME=", "PWD=", "TERM="))}
            assert kept <= set(done.stdout.splitlines()), kept - set(done.stdout.splitlines())
        else:
            assert done.returncode == 255
            assert "Permission denied (publickey)" in done.stderr


def test_files_go_over_ssh_and_ports_through_it(everything: list[Theirs]) -> None:
    """What VS Code's Remote-SSH needs beside a shell: sftp, and a local port that leads into the container."""
    one = everything[0]
    words = secure_shell(one.opened, one.settings["SSH_PORT"], one.key)
    batch = one.opened.folder / "runs" / "batch"
    batch.write_text(f"put {one.opened.folder}/lab.yaml /workspace/runs/by-sftp\n", encoding="utf-8")
    port = words[words.index("-p") + 1]
    sftp = ["sftp", "-b", str(batch), "-P", port, *[w for w in words[1:-1] if w not in ("-p", port)], words[-1]]
    done = one.opened.user.run(*sftp)
    assert done.returncode == 0, done.stderr
    assert (one.opened.folder / "runs" / "by-sftp").read_bytes() == (one.opened.folder / "lab.yaml").read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    become = ["setpriv", f"--reuid={one.opened.user.uid}", f"--regid={one.opened.user.gid}", "--init-groups"]
    tunnel = subprocess.Popen([*become, *words[:1], "-N", "-L", f"127.0.0.1:{local}:127.0.0.1:2222", *words[1:]])
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as client:
                client.settimeout(5)
                if client.connect_ex(("127.0.0.1", local)) == 0:
                    assert client.recv(8).startswith(b"SSH-2.0")
                    break
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        tunnel.kill()
        tunnel.wait()


def test_nobody_reads_anothers_settings(everything: list[Theirs]) -> None:
    for one, other in itertools.product(everything, repeat=2):
        read = other.opened.user.run("cat", one.opened.folder / ".env").returncode == 0
        assert read == (one.opened.user == other.opened.user)


def test_nothing_answers_from_another_address(everything: list[Theirs]) -> None:
    others = subprocess.check_output(["hostname", "-I"], text=True).split()
    assert others
    for address, one, name in itertools.product(others, everything, PORTS):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
            client.settimeout(2)
            assert client.connect_ex((address, int(one.settings[name]))) != 0, f"{name} answers at {address}"


def test_all_train_and_are_measured(everything: list[Theirs]) -> None:
    """Beside each other, into their own runs, as their own users; and then `val` has something to measure."""
    for one in everything:
        name = compose(one.opened, "ps", "--all", "--quiet", "train").stdout.strip()
        deadline = time.monotonic() + 300
        while True:
            state = json.loads(subprocess.check_output(["docker", "inspect", "--format", "{{json .State}}", name]))
            if state["Status"] == "exited" and state["ExitCode"] == 0:
                break
            assert time.monotonic() < deadline, compose(one.opened, "logs", "train").stdout[-3000:]
            time.sleep(1)
        results = one.opened.folder / "runs" / "train" / "exp" / "results.csv"
        assert results.stat().st_uid == one.opened.user.uid
    measured = compose(everything[0].opened, "run", "--rm", "val", "lab", "val", "--weights", "best", "--data",
                       "data/small/data.yaml", "--img", "64", "--engine", "yolov5u")  # fmt: skip
    assert measured.returncode == 0, measured.stderr[-3000:]
