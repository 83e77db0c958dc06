"""A proxy that opens TLS, as a company has one: its certificate authority is trusted everywhere, or its lack is named.

The proxy is an HTTPS server of the test, whose certificate nobody but the test's own authority vouches for.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Opened

NAMED = "docker/test-ca.pem"


@dataclass
class Intercepted:
    """Where the server listens, the authority that vouches for it, and what it was asked for."""

    address: str
    authority: Path
    asked: list[str] = field(default_factory=list)


def openssl(place: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=place, check=True, capture_output=True)


@pytest.fixture(scope="module")
def intercepted(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intercepted]:
    """An HTTPS server that containers reach by the address of the engine's bridge."""
    network = ["docker", "network", "inspect", "bridge", "--format", "{{json (index .IPAM.Config 0)}}"]
    settings = json.loads(subprocess.check_output(network))
    # an engine that chose the network by itself names no gateway; it is the first address then
    bridge = settings.get("Gateway") or str(next(ipaddress.ip_network(settings["Subnet"]).hosts()))
    place = tmp_path_factory.mktemp("authority")
    openssl(place, "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Company -keyout ca.key -out ca.pem")
    openssl(place, "req -newkey rsa:2048 -nodes -subj /CN=server -keyout key.pem -out request.pem")
    (place / "names").write_text(f"subjectAltName=IP:{bridge}\n", encoding="utf-8")
    openssl(
        place, "x509 -req -days 2 -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem"
    )
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path == "/hello"
            body = b"hello" if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert.pem", place / "key.pem")
    server = http.server.ThreadingHTTPServer((bridge, 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    authority = opened.folder / NAMED
    shutil.copyfile(place / "ca.pem", authority)
    os.chown(authority, opened.user.uid, opened.user.gid)
    yield Intercepted(f"https://{bridge}:{server.server_port}", authority, asked)
    server.shutdown()
    authority.unlink()


def built(opened: Opened, host_ca: str, index: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOST_CA": host_ca, "UV_DEFAULT_INDEX": index}
    words = ("docker", "compose", "--progress", "plain", "build", "dev")
    return opened.user.run(*words, cwd=opened.folder, env=environment)


def test_a_build_without_the_authority_ends_in_one_sentence_with_the_mend(
    opened: Opened, intercepted: Intercepted
) -> None:
    done = built(opened, "./docker/no-host-ca.pem", f"{intercepted.address}/simple")
    assert done.returncode != 0
    log = done.stdout + done.stderr
    said = [line.split("STOP: ", 1)[1] for line in log.splitlines() if "STOP: " in line and line.startswith("#")]
    assert len(said) == 1, log[-3000:]
    place = intercepted.address.removeprefix("https://").split(":")[0]
    assert said[0].startswith(f"the certificate of {place}")
    assert "/usr/local/share/ca-certificates" in said[0]
    assert "EXTRA_CA_CERTS=/path/to/ca.pem in .env" in said[0]
    # nothing of the step comes after it, only what the engine says of every step that fails
    step = [line for line in log.splitlines() if line.startswith("#")]
    assert "STOP: " in step[-2]
    assert intercepted.asked == []  # verification was on: not one request got through


def test_a_build_with_the_authority_gets_through(opened: Opened, intercepted: Intercepted) -> None:
    """The server has no packages: the build must fail at that, and at nothing that concerns the certificate."""
    intercepted.asked.clear()
    done = built(opened, f"./{NAMED}", f"{intercepted.address}/simple")
    assert "/simple/uv/" in intercepted.asked
    assert "STOP: " not in done.stdout + done.stderr


WHEEL = "none-1.0-py3-none-any.whl"
# git, pip and uv are content with an answer of the server, that there is no such thing: they trusted it by then
PROGRAMS = {
    "curl": "curl --fail --silent {url}",
    "git": "git ls-remote {url} 2>&1 | grep -q 'not found'",
    "pip": "pip download --no-deps --no-cache-dir --dest /tmp/x {url}/{wheel} 2>&1 | grep -q 'HTTP error 404'",
    "uv": "uv pip install --no-cache --target /tmp/y 'none @ {url}/{wheel}' 2>&1 | grep -q '404 Not Found'",
    "requests": "python -c \"import requests; assert requests.get('{url}').text == 'hello'\"",
    "urllib": "python -c \"import urllib.request as u; assert u.urlopen('{url}').read() == b'hello'\"",
    "node": "node -e \"fetch('{url}').then(r => process.exit(r.ok ? 0 : 1), () => process.exit(1))\"",
}


@contextlib.contextmanager
def trusted(opened: Opened, intercepted: Intercepted) -> Iterator[None]:
    """host-setup's own way: EXTRA_CA_CERTS, as the user writes it into .env."""
    done = opened.user.run(
        ".devcontainer/host-setup", cwd=opened.folder, env={"EXTRA_CA_CERTS": str(intercepted.authority)}
    )
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        assert opened.user.run(".devcontainer/host-setup", cwd=opened.folder).returncode == 0


def asked_from_inside(opened: Opened, url: str) -> dict[str, bool]:
    """Each program asks the server from a container of its own; whether it was content."""
    script = "".join(
        f"if ( {words.format(url=url, wheel=WHEEL)} ) >/dev/null 2>&1; then echo {name} yes; else echo {name} no; fi\n"
        for name, words in PROGRAMS.items()
    )
    # VS Code brings a node of its own; here it is this host's, which the Dev Container CLI needs anyway
    node = Path(shutil.which("node") or "").resolve()
    lent = ("--volume", f"{node}:/usr/local/bin/node:ro")
    mount = ("--volume", f"{opened.folder}:/workspace")
    done = opened.user.run("docker", "run", "--rm", *mount, *lent, opened.image, "bash", "-c", script)
    return {name: answer == "yes" for name, answer in (line.split() for line in done.stdout.splitlines())}


def test_every_program_inside_trusts_it_and_none_without(opened: Opened, intercepted: Intercepted) -> None:
    url = f"{intercepted.address}/hello"
    with trusted(opened, intercepted):
        answers = asked_from_inside(opened, url)
    assert answers == dict.fromkeys(PROGRAMS, True)
    answers = asked_from_inside(opened, url)
    assert answers == dict.fromkeys(PROGRAMS, False), "something does not verify certificates"
