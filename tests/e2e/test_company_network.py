"""A project opened behind a proxy that asks for a password and opens TLS, with mirrors that ask for another one.

First without the company's certificate authority, then with it where this host keeps such. Nothing of the host, whose
owner has secrets in all the usual places, is in the image that was built.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from company_proxy import USER, Company
from conftest import ROOT, User, up
from image_files import layers

SYSTEM = Path("/usr/local/share/ca-certificates/company-e2e.crt")
LIMIT = 240  # seconds from nothing to an open container, on two processors


def made_by(*command: str | Path) -> str:
    return subprocess.check_output([str(word) for word in command], text=True, stderr=subprocess.DEVNULL)


@dataclass
class Owner:
    """Somebody with secrets, and where each of them lies."""

    user: User
    home: Path
    project: Path
    secrets: dict[str, bytes]

    def write(self, place: Path, text: str, name: str = "", secret: str = "") -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        place.chmod(0o600)
        if name:
            self.secrets[name] = secret.encode()


@pytest.fixture(scope="module")
def company(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    base = "python:3.11-slim-bookworm"
    sources = ("grep", "-rhoE", "--include=*.list", "--include=*.sources", "https?://[^ ]+/debian/?( |$)", "/etc/apt")
    debian = made_by("docker", "run", "--rm", "--entrypoint", "", base, *sources).split()[0]
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or ""
    with Company(tmp_path_factory.mktemp("company"), debian, index) as opened, pytest.MonkeyPatch.context() as shell:
        for name in ("UV_DEFAULT_INDEX", "APT_MIRROR", "TORCH_INDEX_BASE", "EXTRA_CA_CERTS", "YOLOV5_GIT_URL"):
            shell.delenv(name, raising=False)  # it would win over .env, empty as well
        yield opened


@pytest.fixture(scope="module")
def owner(user: User, company: Company) -> Iterator[Owner]:
    """A project whose .env names the company's mirrors; its owner's home is a folder of its own."""
    place = Path(tempfile.mkdtemp(prefix="e2e-company-", dir="/var/tmp"))
    place.chmod(0o755)
    made_by(sys.executable, "-m", "cookiecutter", ROOT, "--no-input", "--output-dir", place)
    one = Owner(user, place / "home", place / "my-detector", {"the proxy's password": company.password.encode()})
    random = [secrets.token_hex(20) for _ in range(4)]
    logins = [f"machine {host} login {USER} password {company.mirror_password}\n" for host in sorted(company.mirrors)]
    one.write(one.home / ".netrc", "".join(logins), "the netrc's password", company.mirror_password)
    one.write(one.home / ".git-credentials", f"https://me:{random[0]}@git.test\n", "git's password", random[0])
    one.write(one.project / ".git-credentials", f"https://me:{random[1]}@git.test\n", "the project's", random[1])
    one.write(one.project / "wheelhouse" / ".netrc", f"machine a.test login me password {random[2]}\n", "b", random[2])
    (one.home / ".ssh").mkdir()
    made_by("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", one.home / ".ssh" / "id_ed25519")
    for name in ("id_ed25519", "id_ed25519.pub"):
        text = (one.home / ".ssh" / name).read_text()
        one.secrets[f"SSH's {name}"] = (text.splitlines()[2] if "PRIVATE" in text else text.split()[1]).encode()
    one.write(
        one.project / ".env",
        f"YOLO_ACCEL=cpu\nTORCH_BUILD=cpu\nLAB_SERVE_TOKEN={random[3]}\nNETRC=~/.netrc\nYOLOV5_GIT_URL=/none\n"
        f"APT_MIRROR=https://{company.debian}/debian\nUV_DEFAULT_INDEX=https://{company.python}/simple\n"
        f"TORCH_INDEX_BASE=https://{company.torch}/whl\n",
        *("the token of .env", random[3]),
    )
    authority = company.authority.certificate.read_text(encoding="ascii")
    one.secrets["the authority, as text"] = authority.splitlines()[3].encode()
    one.secrets["the authority"] = ssl.PEM_cert_to_DER_cert(authority)[100:160]
    one.secrets |= {"the home's path": str(one.home).encode(), "the project's path": str(one.project).encode()}
    one.secrets |= {"this repository's path": f"{ROOT}/".encode(), "the owner's name": user.name.encode()}
    subprocess.run(["chown", "--recursive", f"{user.uid}:{user.gid}", str(place)], check=True)
    yield one
    subprocess.run(
        ["docker", "compose", "--profile", "*", "down", "--timeout", "1", "--volumes", "--rmi", "local"],
        cwd=one.project,
        capture_output=True,
        check=False,
    )
    shutil.rmtree(place, ignore_errors=True)


def around(company: Company, owner: Owner) -> dict[str, str]:
    """The owner's shell: the proxy for everything that is not here."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), company.url)
    nothing = dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1")
    return {**proxies, **nothing, "HOME": str(owner.home)}


def test_without_the_authority_one_sentence_with_the_mend(company: Company, owner: Owner) -> None:
    command = ("devcontainer", "up", "--workspace-folder", owner.project)
    done = owner.user.run(*command, env=around(company, owner))
    assert done.returncode != 0
    log = done.stdout + done.stderr
    said = [line.split("STOP: ", 1)[1] for line in log.splitlines() if re.match(r"#\d+ [\d.]+ STOP: ", line)]
    assert len(said) == 1, log[-3000:]
    assert said[0].startswith(f"the certificate of {company.debian} is not trusted here")
    assert "/usr/local/share/ca-certificates" in said[0]
    assert "EXTRA_CA_CERTS=/path/to/ca.pem in .env" in said[0]
    # verification was on: the proxy was asked, and not one request got through
    assert company.asked
    assert company.opened == []
    # of what the build says; the Dev Container CLI's own log has the project as Compose reads it, proxies included
    build = "\n".join(line for line in log.splitlines() if line.startswith("#"))
    assert not [name for name, value in owner.secrets.items() if value.decode("latin-1") in build]


@pytest.fixture(scope="module")
def built(company: Company, owner: Owner) -> Iterator[str]:
    """The image, with the authority where Debian's hosts have theirs, or named in .env for want of root's rights."""
    company.opened.clear()
    company.asked.clear()
    environment = around(company, owner)
    try:
        if os.getuid() == 0:
            SYSTEM.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(company.authority.certificate, SYSTEM)
        else:
            environment["EXTRA_CA_CERTS"] = str(company.authority.certificate)
        began = time.monotonic()
        outcome = up(owner.user, owner.project, env=environment)
        spent = time.monotonic() - began
    finally:
        if os.getuid() == 0:
            SYSTEM.unlink(missing_ok=True)
    print(f"`devcontainer up` behind the proxy: {spent:.0f} s, {len(company.opened)} requests")
    assert spent < LIMIT
    yield made_by("docker", "inspect", "--format", "{{.Config.Image}}", outcome["containerId"]).strip()


def test_with_the_authority_everything_comes_through_the_proxy(company: Company, owner: Owner, built: str) -> None:
    paths = {host: [path for where, path in company.opened if where == host] for host in company.mirrors}
    assert company.mirrors <= set(company.asked)
    assert any(path.endswith("InRelease") for path in paths[company.debian])  # apt
    assert "/simple/uv/" in paths[company.python]  # pip, which brings uv
    assert "/simple/onnx/" in paths[company.python]  # uv
    assert any(path.endswith(".whl") for path in paths[company.torch])
    installed = made_by("docker", "run", "--rm", "--network", "none", built, "uv", "pip", "list", "--format", "json")
    versions = {package["name"]: package["version"] for package in json.loads(installed)}
    assert versions["torch"] == "2.8.0+cpu"
    assert {"onnx", "onnxruntime", "opencv-python-headless", "jupyterlab", "torchvision"} <= set(versions)


def test_the_open_container_uses_proxy_and_authority(company: Company, owner: Owner, built: str) -> None:
    """What the build used and the image does not have: curl in `dev` reaches a mirror, and is asked who it is."""
    company.opened.clear()
    url = f"https://{company.python}/simple/"
    words = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url)
    command = ("devcontainer", "exec", "--workspace-folder", owner.project, *words)
    done = owner.user.run(*command, env=around(company, owner))
    assert done.stdout.strip() == "401", done.stdout + done.stderr
    assert company.opened == [(company.python, "/simple/")]


def test_nothing_of_the_host_is_in_the_image(company: Company, owner: Owner, built: str) -> None:
    """Its history, its configuration, and every file of every layer."""
    lines = (owner.project / ".env").read_text(encoding="utf-8").splitlines()
    token = dict(line.split("=", 1) for line in lines if "=" in line)["JUPYTER_TOKEN"]
    sought = {**owner.secrets, "Jupyter's token": token.encode()}
    assert all(len(value) >= 7 for value in sought.values()), sought
    # what programs send of a password that stands in an address
    logins = (company.password, company.mirror_password)
    sought |= {f"login {number}": base64.b64encode(f"{USER}:{one}".encode()) for number, one in enumerate(logins)}
    pattern = re.compile(b"|".join(re.escape(value) for value in sought.values()))
    names = {value: name for name, value in sought.items()}
    mirror, known = company.debian.encode(), []  # apt's sources name it, so whoever looks well finds that

    [described] = json.loads(made_by("docker", "image", "inspect", built))
    number = described["Id"]
    # the project's name on this host, in which the owner's is: Compose writes it there, and docs/security.md says so
    described["Config"]["Labels"].pop("com.docker.compose.project")
    about = made_by("docker", "history", "--no-trunc", number)
    about += json.dumps({key: value for key, value in described.items() if not key.startswith("Repo")})
    assert [names[value] for value in pattern.findall(about.encode())] == []
    assert "proxy=" not in about.lower()

    began, seen, size, found = time.monotonic(), 0, 0, []
    private = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{60}")
    kept = re.compile(
        r"(^|/)(\.git-credentials|\.netrc|\.pypirc|\.env|id_[a-z0-9]+|authorized_keys|host-ca\.pem|ssh_host_.*_key"
        r"|\.docker/config\.json)$|^(root/\.cache|run/secrets|run/build|home/dev/\.ssh)/."
    )
    for _, path, content in layers(number):
        seen, size = seen + 1, size + len(content)
        found += [f"{path}: {names[value]}" for value in {*pattern.findall(content), *pattern.findall(path.encode())}]
        if path.startswith("etc/apt/") and mirror in content:
            known.append(path)
        # packages bring published keys for their own tests, and GnuTLS those in its library
        if private.search(content) and b"\0" not in content and not path.startswith("opt/venv/"):
            found.append(f"{path}: a private key")
        if kept.search(path) and content:
            found.append(f"{path}: a file that holds secrets elsewhere")
    print(f"{seen} files of {size / 1e9:.2f} GB in {time.monotonic() - began:.0f} s")
    assert seen > 10_000
    assert known, "what is in the image is not found"
    assert company.debian in about
    assert found == []
