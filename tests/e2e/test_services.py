"""The services, really started by Compose and used by a real client: JupyterLab, TensorBoard, SSH, a training."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Opened

NAMES = ("jupyter", "tensorboard", "ssh")
BY_KERNEL = """
import glob, os, sys
from jupyter_client import BlockingKernelClient
files = glob.glob(os.path.expanduser("~/.local/share/jupyter/runtime/kernel-*.json"))
client = BlockingKernelClient(connection_file=next(file for file in files if sys.argv[1] in file))
client.load_connection_file()
client.start_channels()
client.wait_for_ready(60)
code = 'import torch, lab; open("runs/by-kernel", "w").write(torch.__version__)'
client.execute_interactive(code, timeout=120)
"""


def settings(folder: Path) -> dict[str, str]:
    """The variables of a project's .env."""
    lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def compose(opened: Opened, *words: str, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return opened.user.run("docker", "compose", *words, cwd=folder or opened.folder, env=env)


def answer(url: str, token: str | None = None, **more: str) -> tuple[int, bytes]:
    """(status, body) of a GET, or of a POST of `more`."""
    request = urllib.request.Request(url, json.dumps(more).encode() if more else None)
    if token is not None:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as said:
            return said.status, said.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until_healthy(opened: Opened, *names: str, folder: Path | None = None) -> None:
    """Wait until `docker ps` calls them healthy, by the check that compose.yaml gives them."""
    for name in names:
        number = compose(opened, "ps", "--quiet", name, folder=folder).stdout.strip()
        assert number, compose(opened, "logs", name, folder=folder).stdout
        deadline = time.monotonic() + 120
        while True:
            # asked at once, not after the first interval of 30 s
            test = json.loads(subprocess.check_output(["docker", "inspect", "--format", "{{json .Config}}", number]))
            command = test["Healthcheck"]["Test"]
            words = ["sh", "-c", command[1]] if command[0] == "CMD-SHELL" else command[1:]
            if subprocess.run(["docker", "exec", number, *words], capture_output=True, check=False).returncode == 0:
                break
            assert time.monotonic() < deadline, compose(opened, "logs", name, folder=folder).stdout
            time.sleep(1)


@pytest.fixture(scope="module")
def key(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key of the user, whose public half host-setup was told of."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client here")
    place = opened.folder / "runs" / "key"
    opened.user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place)
    named = {"SSH_AUTHORIZED_KEYS": f"{place}.pub"}
    assert opened.user.run(opened.folder / ".devcontainer/host-setup", cwd=opened.folder, env=named).returncode == 0
    return place


@pytest.fixture(scope="module")
def services(opened: Opened, key: Path) -> Iterator[dict[str, str]]:
    """All of them at once; yields the project's settings."""
    done = compose(opened, "up", "--detach", "--no-build", *NAMES)
    assert done.returncode == 0, done.stderr
    until_healthy(opened, *NAMES)
    yield settings(opened.folder)
    compose(opened, "rm", "--stop", "--force", *NAMES)


def secure_shell(opened: Opened, port: str, key: Path, *words: str, name: str = "dev", **options: str) -> list[str]:
    """An ssh command line that asks nothing and remembers nothing."""
    given = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "BatchMode": "yes", "LogLevel": "ERROR"}
    flags = [part for item in {**given, "IdentitiesOnly": "yes", **options}.items() for part in ("-o", "=".join(item))]
    return ["ssh", *flags, "-i", str(key), "-p", port, f"{name}@127.0.0.1", *words]


def test_a_notebook_kernel_answers(opened: Opened, services: dict[str, str]) -> None:
    """Through Jupyter's own API: with the token of .env a kernel starts, and it is the image's Python."""
    base, token = f"http://127.0.0.1:{services['JUPYTER_PORT']}", services["JUPYTER_TOKEN"]
    assert answer(f"{base}/api/contents")[0] == 403
    assert answer(f"{base}/api/contents", "wrong")[0] == 403
    status, contents = answer(f"{base}/api/contents", token)
    assert status == 200
    assert {"lab.yaml", "code", "notebooks"} <= {entry["name"] for entry in json.loads(contents)["content"]}
    status, kernel = answer(f"{base}/api/kernels", token, name="python3")
    assert status == 201
    done = compose(opened, "exec", "jupyter", "python", "-c", BY_KERNEL, json.loads(kernel)["id"])
    assert done.returncode == 0, done.stderr
    written = opened.folder / "runs" / "by-kernel"
    assert written.read_text(encoding="utf-8").startswith("2.8.0")
    assert written.stat().st_uid == opened.user.uid
    written.unlink()


def test_the_token_is_in_no_log(opened: Opened, services: dict[str, str]) -> None:
    token = services["JUPYTER_TOKEN"]
    assert len(token) >= 32
    assert token not in compose(opened, "logs").stdout
    assert (opened.folder / ".env").stat().st_mode & 0o007 == 0
    empty = compose(opened, "run", "--rm", "--no-deps", "jupyter", JUPYTER_TOKEN="")
    assert empty.returncode == 2
    assert "JUPYTER_TOKEN is empty" in empty.stderr


def test_ssh_with_the_key_and_nothing_else(opened: Opened, services: dict[str, str], key: Path) -> None:
    port = services["SSH_PORT"]
    done = opened.user.run(*secure_shell(opened, port, key, "id -un; which lab python; touch runs/by-ssh; lab --help"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["dev", "/usr/local/bin/lab", "/opt/venv/bin/python"]
    stranger = opened.folder / "runs" / "stranger"
    opened.user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger)
    for words in (
        secure_shell(opened, port, stranger, "id"),
        secure_shell(opened, port, key, "id", name="root"),
        secure_shell(opened, port, key, "id", PreferredAuthentications="password,keyboard-interactive"),
    ):
        refused = opened.user.run(*words)
        assert refused.returncode == 255
        assert "Permission denied (publickey)" in refused.stderr


def test_the_ssh_server_is_recognised_again(opened: Opened, services: dict[str, str]) -> None:
    def fingerprint() -> str:
        said = subprocess.check_output(["ssh-keyscan", "-t", "ed25519", "-p", services["SSH_PORT"], "127.0.0.1"])
        return said.decode().split()[-1]

    before = fingerprint()
    assert compose(opened, "up", "--detach", "--no-build", "--force-recreate", "ssh").returncode == 0
    until_healthy(opened, "ssh")
    assert fingerprint() == before


def test_nothing_answers_from_another_address(opened: Opened, services: dict[str, str]) -> None:
    others = subprocess.check_output(["hostname", "-I"], text=True).split()
    assert others
    for address in others:
        for name in ("JUPYTER_PORT", "TENSORBOARD_PORT", "SSH_PORT"):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
                client.settimeout(2)
                assert client.connect_ex((address, int(services[name]))) != 0, f"{name} answers at {address}"


def test_a_second_project_beside_it(opened: Opened, services: dict[str, str]) -> None:
    """The same folder name, another place: nothing collides, and each serves its own files."""
    place = opened.folder.parent / "second"
    ignored = shutil.ignore_patterns("yolov5*", "key*", "stranger*")
    shutil.copytree(opened.folder, place / "my-detector", ignore=ignored, symlinks=True)
    (place / "my-detector" / "second.txt").write_text("here", encoding="utf-8")
    subprocess.run(["chown", "--recursive", f"{opened.user.uid}:{opened.user.gid}", str(place)], check=True)
    folder = place / "my-detector"
    try:
        assert opened.user.run(folder / ".devcontainer/host-setup", cwd=folder).returncode == 0
        mine = settings(folder)
        names = ("JUPYTER_PORT", "TENSORBOARD_PORT", "SSH_PORT", "COMPOSE_PROJECT_NAME")
        assert not {mine[name] for name in names} & {services[name] for name in names}
        image = f"{mine['COMPOSE_PROJECT_NAME']}:torch2.8.0-cu128"
        subprocess.run(["docker", "tag", opened.image, image], check=True)  # the same files: no second build
        done = compose(opened, "up", "--detach", "--no-build", "jupyter", "tensorboard", folder=folder)
        assert done.returncode == 0, done.stderr
        until_healthy(opened, "jupyter", "tensorboard", folder=folder)
        url = "http://127.0.0.1:{}/api/contents/second.txt"
        assert answer(url.format(mine["JUPYTER_PORT"]), mine["JUPYTER_TOKEN"])[0] == 200
        assert answer(url.format(services["JUPYTER_PORT"]), services["JUPYTER_TOKEN"])[0] == 404
        assert answer(url.format(mine["JUPYTER_PORT"]), services["JUPYTER_TOKEN"])[0] in (200, 403)
    finally:
        compose(opened, "--profile", "*", "down", "--timeout", "1", "--volumes", folder=folder)
        shutil.rmtree(place, ignore_errors=True)


def test_the_gpus_of_one_container(opened: Opened) -> None:
    """GPU=… before the command reaches CUDA; without it nothing is set."""
    asked = ("run", "--rm", "--no-deps", "train", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]")
    assert compose(opened, *asked, GPU="1,3").stdout.strip() == "[1,3]"
    assert compose(opened, *asked).stdout.strip() == "[]"


def test_a_training_that_dies_goes_on(with_yolov5: Opened) -> None:
    """`train` is started again by its restart policy, and goes on in the same run instead of beginning another."""
    opened = with_yolov5
    demo = opened.run_apart("lab", "data", "demo", "--images", "16", "--size", "64", "--out", "data/again")
    assert demo.returncode == 0, demo.stderr
    words = "--weights '' --cfg yolov5n.yaml --data data/again/data.yaml --img 64 --epochs 3 --batch 8 --workers 0"
    started = compose(opened, "up", "--detach", "--no-build", "train", TRAIN=f"{words} --name again --noplots")
    assert started.returncode == 0, started.stderr
    name = compose(opened, "ps", "--all", "--quiet", "train").stdout.strip()
    try:
        run = opened.folder / "runs" / "train" / "again"
        for _ in range(240):
            if (run / "weights" / "last.pt").is_file():
                break
            time.sleep(0.5)
        subprocess.run(["docker", "exec", name, "pkill", "-9", "-f", "run_yolov5"], check=True)
        for _ in range(240):
            state = json.loads(subprocess.check_output(["docker", "inspect", "--format", "{{json .State}}", name]))
            if state["Status"] == "exited" and state["ExitCode"] == 0:
                break
            time.sleep(1)
        said = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True).stderr
        assert state["ExitCode"] == 0, said[-3000:]
        assert "this container was started again, so runs/train/again goes on" in said
        assert len((run / "results.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
        assert not list(opened.folder.glob("runs/train/again2"))
    finally:
        compose(opened, "rm", "--stop", "--force", "train")
