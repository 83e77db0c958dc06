"""A company's network on this machine: a proxy that asks for a password and opens TLS, and mirrors behind it.

The mirrors' names end in `.test`, which no name server knows (RFC 2606): what comes from there came through the proxy.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import ipaddress
import json
import re
import secrets
import socketserver
import ssl
import subprocess
import threading
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from pip._internal.models.index import PyPI  # where pip looks when nobody names a place

USER = "me"
# of one connection and not of the message (RFC 9110, 7.6.1), and what the mirrors' own login is
OWN = {"authorization", "connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te",
       "transfer-encoding", "upgrade"}  # fmt: skip


def bridge() -> str:
    """The address of this machine that containers and builds reach."""
    network = ["docker", "network", "inspect", "bridge", "--format", "{{json (index .IPAM.Config 0)}}"]
    settings = json.loads(subprocess.check_output(network))
    # an engine that chose the network by itself names no gateway; it is the first address then
    return settings.get("Gateway") or str(next(ipaddress.ip_network(settings["Subnet"]).hosts()))


class Authority:
    """A certificate authority that nobody trusts yet; `certificate` is its PEM file."""

    def __init__(self, place: Path) -> None:
        self.place, self.certificate = place, place / "ca.pem"
        self._lock, self._contexts = threading.Lock(), dict[str, ssl.SSLContext]()
        self._openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Company -keyout ca.key -out ca.pem")
        self._openssl("req -newkey rsa:2048 -nodes -subj /CN=server -keyout key.pem -out request.pem")

    def _openssl(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.place, check=True, capture_output=True)

    def server(self, host: str) -> ssl.SSLContext:
        """The server's side of TLS, with a certificate for a host name or an address."""
        with self._lock:
            if host not in self._contexts:
                kind = "IP" if re.fullmatch(r"[\d.]+", host) else "DNS"
                (self.place / "names").write_text(f"subjectAltName={kind}:{host}\n", encoding="utf-8")
                signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names"
                self._openssl(f"x509 -req -days 2 -in request.pem {signed} -out {host}.pem")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.place / f"{host}.pem", self.place / "key.pem")
                self._contexts[host] = context
            return self._contexts[host]


def _wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel that holds its own description and nothing else."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}\n")
    files[f"{about}/RECORD"] = "".join([*rows, f"{about}/RECORD,,\n"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


class Company(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The proxy, listening while it is open as a context.

    `asked` are the hosts that a client named; `opened` the requests that were read inside TLS, as (host, path): whoever
    does not trust the authority sends none. `debian` is where the base image gets Debian's packages.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, place: Path, debian: str, index: str = "") -> None:
        super().__init__((bridge(), 0), _Proxy)
        self.authority = Authority(place)
        self.password, self.mirror_password = secrets.token_hex(16), secrets.token_hex(16)
        self.url = f"http://{USER}:{self.password}@{self.server_address[0]}:{self.server_port}"
        # a name of its own each time, so that nothing comes from the cache of an earlier build
        mark = secrets.token_hex(4)
        self.debian, self.python, self.torch = (f"{name}-{mark}.company.test" for name in ("debian", "python", "torch"))
        self._behind = {self.debian: (debian, "/debian"), self.python: (index or PyPI.simple_url, "/simple")}
        # torch is gigabytes, and what it is made of is not the question here
        self.wheels = {wheel.name: wheel for wheel in self._torch(place)}
        self.asked: list[str] = []
        self.opened: list[tuple[str, str]] = []

    @staticmethod
    def _torch(place: Path) -> Iterable[Path]:
        yield _wheel(place, "torch", "2.8.0+cpu")
        yield _wheel(place, "torchvision", "0.23.0+cpu")

    @property
    def mirrors(self) -> set[str]:
        return {self.debian, self.python, self.torch}

    def upstream(self, host: str, path: str) -> str:
        """Where the network has what a client asked for."""
        base, prefix = self._behind.get(host, (f"https://{host}", ""))
        return base.rstrip("/") + path.removeprefix(prefix)

    def __enter__(self) -> Company:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _login(password: str) -> str:
    return "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Company

    def refuse(self, status: int, header: str, value: str) -> None:
        self.send_response(status)
        self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Proxy(_Quiet):
    """What a client says to the proxy itself."""

    def do_CONNECT(self) -> None:
        host = self.path.rpartition(":")[0]
        if self.headers.get("Proxy-Authorization") != _login(self.server.password):
            self.refuse(407, "Proxy-Authenticate", 'Basic realm="company"')
            return
        self.server.asked.append(host)
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            with self.server.authority.server(host).wrap_socket(self.connection, server_side=True) as inside:
                _Inside(inside, self.client_address, self.server)
        except OSError:  # the client did not trust us, or went away
            pass


class _AsItIs(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """The client follows by itself."""


class _Inside(_Quiet):
    """What it says to a server, once TLS is open."""

    fetch = urllib.request.build_opener(_AsItIs).open

    def do_GET(self) -> None:
        company, host = self.server, self.headers["Host"].partition(":")[0]
        company.opened.append((host, self.path))
        if host in company.mirrors and self.headers.get("Authorization") != _login(company.mirror_password):
            self.refuse(401, "WWW-Authenticate", 'Basic realm="mirror"')
        elif host == company.torch:
            self._own()
        else:
            self._passed_on(company.upstream(host, self.path))

    do_HEAD = do_GET

    def _own(self) -> None:
        name = urlsplit(self.path).path.replace("%2B", "+").rpartition("/")[2]
        if name in self.server.wheels:
            body = self.server.wheels[name].read_bytes()
        else:  # the page of a package lists its files
            package = self.path.strip("/").rpartition("/")[2]
            found = [wheel for wheel in self.server.wheels if wheel.startswith(f"{package}-")]
            if not found:
                self.send_error(404)
                return
            links = "".join(f'<a href="../{wheel.replace("+", "%2B")}">{wheel}</a>\n' for wheel in found)
            body = f"<!DOCTYPE html><html><body>\n{links}</body></html>\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if name in self.server.wheels else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _passed_on(self, url: str) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
        try:
            answer = type(self).fetch(urllib.request.Request(url, headers=headers, method=self.command), timeout=120)
        except HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, str(error)[:100])
            return
        with answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in OWN:
                    self.send_header(name, value)
            # a body of unknown length ends with the connection
            self.close_connection = "Content-Length" not in answer.headers
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            while self.command != "HEAD" and (part := answer.read(1 << 18)):
                self.wfile.write(part)
