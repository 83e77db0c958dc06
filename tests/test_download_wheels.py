"""docker/download-wheels: downloads that go on, content that is compared, one wheel of several, logins."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType

import pytest
from conftest import ROOT

SCRIPT = ROOT / "template" / "{{cookiecutter.project_slug}}" / "docker" / "download-wheels"
CONTENT = bytes(range(256)) * 4096
NAME = "torch-2.8.0+cu126-cp311-cp311-linux_x86_64.whl"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def script(tmp_path, monkeypatch) -> ModuleType:
    monkeypatch.setenv("WHEELHOUSE", str(tmp_path))
    spec = importlib.util.spec_from_loader("download_wheels", SourceFileLoader("download_wheels", str(SCRIPT)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """An index's host: what it was asked for, and how it misbehaves."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []  # Range, Authorization
        self.cuts = 0  # answers that end in the middle
        self.ranges = True
        self.status = 0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append((asked, self.headers.get("Authorization", "")))
            if state.status:
                self.send_error(state.status)
                return
            start = int(asked[len("bytes=") : -1]) if asked and state.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = len(CONTENT)
            if state.cuts:
                state.cuts -= 1
                end = (start + len(CONTENT)) // 2
            self.wfile.write(CONTENT[start:end])

        def log_message(self, *_: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}/{NAME}"
    yield state
    listening.shutdown()


def wheel(script, server, sha=SHA):
    return script.Wheel(NAME, server.url, len(CONTENT), sha, "torch cu126")


def test_what_was_cut_off_goes_on(script, server, tmp_path):
    server.cuts = 2
    script.fetched(wheel(script, server))
    assert (tmp_path / NAME).read_bytes() == CONTENT
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert [asked for asked, _ in server.asked] == ["", f"bytes={half}-", f"bytes={three_quarters}-"]
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert script.complete(wheel(script, server))


def test_a_server_that_cannot_go_on_begins_again(script, server, tmp_path):
    server.cuts, server.ranges = 1, False
    script.fetched(wheel(script, server))
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_an_earlier_start_is_used(script, server, tmp_path):
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT[:1000])
    script.fetched(wheel(script, server))
    assert [asked for asked, _ in server.asked] == ["bytes=1000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_other_content_than_the_index_says_is_never_kept(script, server, tmp_path):
    with pytest.raises(script.Failed, match="does not have the hash"):
        script.fetched(wheel(script, server, sha="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_not_asked_for_again(script, server):
    server.status = 404
    with pytest.raises(script.Failed, match="HTTP 404"):
        script.fetched(wheel(script, server))
    assert len(server.asked) == 1


def test_a_file_that_changed_is_fetched_again(script, server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"x")
    assert not script.complete(wheel(script, server))
    script.fetched(wheel(script, server))
    assert script.complete(wheel(script, server))


def test_a_login_of_the_netrc_goes_to_its_own_host(script, server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password p@ss\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    script.fetched(wheel(script, server))
    assert server.asked == [("", "Basic bWU6cEBzcw==")]
    assert script.login("elsewhere.example") == ""


def test_of_several_wheels_the_one_for_this_machine(script):
    any_, linux, other = ("x-1-py3-none-any.whl", "x-1-py3-none-manylinux_2_17_{}.whl", "x-1-py3-none-win32.whl")
    here = next(tag.platform for tag in script.TAGS if "manylinux" in tag.platform).rsplit("_", 2)[-2:]
    machine = "_".join(here) if here[-1] == "64" else here[-1]
    names = [any_, other, linux.format(machine)]
    assert min(names, key=script.rank) == linux.format(machine)


def test_no_room_is_said_before_anything_is_fetched(script, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESERVE", str(10**18))
    monkeypatch.setattr(script, "installer", lambda scratch: scratch)
    monkeypatch.setattr(script, "planned", lambda *_: [wheel(script, server)])
    assert script.main(["cu126="]) == 3
    assert "make room" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("wish", "builds", "locks"),
    [
        ("cpu", ["cu128="], []),
        ("gpu", ["cu128=", "cu126=https://x/cu126", "cpu=https://x/cpu"], ["onnxruntime cu12"]),
        ("gpu", ["cu128=", "cu130=", "cu118="], ["onnxruntime cu12", "onnxruntime cu13"]),
    ],
)
def test_onnxruntime_for_the_gpu_comes_along_when_asked_for(script, tmp_path, monkeypatch, wish, builds, locks):
    parts = []
    monkeypatch.setattr(script, "resolved", lambda *asked: parts.append(asked[3]) or [])
    monkeypatch.setenv("ONNXRUNTIME", wish)
    script.planned(builds, tmp_path, tmp_path)
    assert [part for part in parts if part.startswith("onnxruntime")] == locks
