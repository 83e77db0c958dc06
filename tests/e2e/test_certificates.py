"""A proxy that opens TLS, as a company has one: every program in the container trusts its certificate authority.

The proxy is an HTTPS server of the test, whose certificate nobody but the test's own authority vouches for. The image
build behind one is in test_company_network.py.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from company_proxy import Authority, bridge
from conftest import Opened

NAMED = "docker/test-ca.pem"


@dataclass
class Intercepted:
    """Where the server listens, and the authority that vouches for it."""

    address: str
    authority: Path


@pytest.fixture(scope="module")
def intercepted(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intercepted]:
    """An HTTPS server that containers reach by the address of the engine's bridge."""
    address = bridge()
    company = Authority(tmp_path_factory.mktemp("authority"))

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
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

    server = http.server.ThreadingHTTPServer((address, 0), Answer)
    server.socket = company.server(address).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    authority = opened.folder / NAMED
    shutil.copyfile(company.certificate, authority)
    os.chown(authority, opened.user.uid, opened.user.gid)
    yield Intercepted(f"https://{address}:{server.server_port}", authority)
    server.shutdown()
    authority.unlink()


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
