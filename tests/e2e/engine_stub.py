"""An engine that only listens: what Compose asks it to create is kept, and nothing is ever created."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

# what Compose asks for before it creates a container, by the path without its version
ANSWERS: tuple[tuple[str, int, Any], ...] = (
    (r"/_ping", 200, "OK"),
    (r"/version", 200, {"Version": "28.3.0", "ApiVersion": "1.44", "Os": "linux", "Arch": "amd64"}),
    (r"/info", 200, {"OSType": "linux", "Architecture": "x86_64", "ServerVersion": "28.3.0"}),
    (r"/images/.+/json", 200, {"Id": "sha256:aa", "RepoTags": [], "Config": {}}),
    (r"/networks/create", 201, {"Id": "n1"}),
    (r"/networks/.+", 404, {"message": "no such network"}),
    (r"/volumes/create", 201, {"Name": "v1"}),
    (r"/volumes/.+", 404, {"message": "no such volume"}),
    (r"/containers/create", 201, {"Id": "c1", "Warnings": []}),
    (r"/containers/[^/]+/json", 200, {"Id": "c1", "Name": "/c1", "Config": {}, "State": {}, "HostConfig": {},
                                      "NetworkSettings": {"Networks": {}}}),
    (r".*", 200, []),  # the lists, all of them empty
)  # fmt: skip


class Engine(socketserver.ThreadingUnixStreamServer):
    """Listens on a socket while it is open as a context; `created` are the bodies of POST /containers/create."""

    daemon_threads = True

    def __init__(self, socket: Path) -> None:
        super().__init__(str(socket), _Request)
        socket.chmod(0o666)  # whoever opens the container
        self.address = f"unix://{socket}"
        self.created: list[dict[str, Any]] = []

    def __enter__(self) -> Engine:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def asked_for(self) -> dict[str, dict[str, Any]]:
        """What was asked for since the last call, by the service's name."""
        bodies, self.created = self.created, []
        return {body["Labels"]["com.docker.compose.service"]: body for body in bodies}


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        path = re.sub(r"^/v[0-9.]+(?=/)|\?.*", "", self.path)
        code, answer = next((code, answer) for pattern, code, answer in ANSWERS if re.fullmatch(pattern, path))
        body = json.dumps(answer).encode()
        self.send_response(code)
        for name, value in (("Api-Version", "1.44"), ("OSType", "linux"), ("Content-Type", "application/json"),
                            ("Content-Length", str(len(body)))):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/containers/create" in self.path:
            self.server.created.append(json.loads(body))
        self.do_GET()

    def address_string(self) -> str:
        return "socket"  # a Unix socket has no address that the base class could name

    def log_message(self, *_: object) -> None:
        pass
