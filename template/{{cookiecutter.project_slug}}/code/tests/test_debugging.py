"""VS Code's files mean what they say: every command in them exists, and "Debug one batch" stops inside both engines.

The second needs debugpy, which VS Code's Python extension brings along; here it is skipped where it is not installed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import queue
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest
from test_container import environment

from lab import cli, completion, upstream
from lab.options import TASKS, parse
from lab.project import CODE, ENGINES, Project

VSCODE = CODE.parent / ".vscode"
LIMIT = 600.0  # seconds for one answer: torch is imported in between, and a debugger makes that slow


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VSCODE / name).read_text(encoding="utf-8"))
    return found


def test_every_lab_command_in_them_exists() -> None:
    commands = set(completion.commands(cli.app))
    lines = [shlex.split(task["command"]) for task in read("tasks.json")["tasks"]]
    for configuration in read("launch.json")["configurations"]:
        words = configuration.get("args", [])
        if configuration.get("module") == "lab" and words != "${command:pickArgs}":
            lines.append(["lab", *(shlex.split(words) if isinstance(words, str) else words)])
    asked = [line[1:] for line in lines if line[0] == "lab"]
    assert len(asked) >= 8
    for words in asked:
        assert words[0] in commands
        if words[0] in TASKS and "${input:options}" not in words:
            parse(words[0], words[1:])


def test_inputs_and_tasks_that_are_named_exist() -> None:
    for name in ("tasks.json", "launch.json"):
        text = (VSCODE / name).read_text(encoding="utf-8")
        known = {one["id"] for one in json.loads(text)["inputs"]}
        assert set(re.findall(r"\$\{input:(\w+)\}", text)) == known
    labels = {task["label"] for task in read("tasks.json")["tasks"]}
    wanted = {c["preLaunchTask"] for c in read("launch.json")["configurations"] if "preLaunchTask" in c}
    assert wanted
    assert wanted <= labels


class Session:
    """One connection that speaks the Debug Adapter Protocol. As VS Code does, it joins every process that the one under
    debugging starts; whichever of them stops says so in `stops`."""

    def __init__(
        self, reader: IO[bytes], writer: IO[bytes], stops: queue.Queue[tuple[Session, dict[str, Any]]]
    ) -> None:
        self.writer = writer
        self.stops = stops
        self.number = 0
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.kept: list[dict[str, Any]] = []
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def _read(self, reader: IO[bytes]) -> None:
        try:
            while header := reader.readline():
                length = int(header.split(b":")[1])
                reader.readline()
                message = json.loads(reader.read(length))
                if message.get("event") == "debugpyAttach":
                    threading.Thread(target=self._join, args=(message["body"],), daemon=True).start()
                elif message.get("event") == "stopped":
                    self.stops.put((self, message["body"]))
                else:
                    self.messages.put(message)
        except (OSError, ValueError):
            return

    def _join(self, attach: dict[str, Any]) -> None:
        place = (attach["connect"]["host"], attach["connect"]["port"])
        joined = socket.create_connection(place, timeout=LIMIT)
        Session(joined.makefile("rb"), joined.makefile("wb"), self.stops).begin("attach", attach, *self.breakpoint)

    def send(self, command: str, **arguments: Any) -> None:
        self.number += 1
        body = {"seq": self.number, "type": "request", "command": command, "arguments": arguments}
        content = json.dumps(body).encode()
        self.writer.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self.writer.flush()

    def wait(self, kind: str, name: str) -> dict[str, Any]:
        """The next event, or response to a command, of that name."""
        key = "event" if kind == "event" else "command"
        until = time.monotonic() + LIMIT
        while True:
            for message in self.kept:
                if message["type"] == kind and message[key] == name:
                    self.kept.remove(message)
                    assert message.get("success", True), message
                    return message
            self.kept.append(self.messages.get(timeout=max(0.1, until - time.monotonic())))

    def begin(self, request: str, arguments: dict[str, Any], file: Path, line: int) -> None:
        """Start or join a program with one breakpoint."""
        self.breakpoint = (file, line)
        self.send("initialize", adapterID="debugpy", clientID="test", linesStartAt1=True, pathFormat="path")
        self.wait("response", "initialize")
        self.send(request, **arguments)
        self.wait("event", "initialized")
        self.send("setBreakpoints", source={"path": str(file)}, breakpoints=[{"line": line}])
        self.wait("response", "setBreakpoints")
        self.send("configurationDone")


def first_line(file: Path, function: str) -> int:
    """The first statement of a function after its docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return node.body[1 if ast.get_docstring(node) else 0].lineno
    raise AssertionError(f"{file} has no {function}")


@pytest.mark.container
@pytest.mark.parametrize("engine", ENGINES)
def test_debug_one_batch_stops_inside_the_engine(engine: str, project: Project, tmp_path: Path) -> None:
    if importlib.util.find_spec("debugpy") is None:
        pytest.skip("debugpy is not installed here")
    if engine == "yolov5" and not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    configuration = next(c for c in read("launch.json")["configurations"] if c["name"] == "Debug one batch")
    before = next(t for t in read("tasks.json")["tasks"] if t["label"] == configuration["preLaunchTask"])
    surroundings = environment(tmp_path / "log")
    made = [sys.executable, "-m", *shlex.split(before["command"])]
    subprocess.run(made, env=surroundings, cwd=project.root, check=True, capture_output=True)
    if engine == "yolov5":
        file, function = CODE / "yolov5/utils/loss.py", "build_targets"
    else:
        import ultralytics

        file, function = Path(ultralytics.__file__).parent / "models/yolo/detect/train.py", "preprocess_batch"
    line = first_line(file, function)
    launch = {
        **configuration,
        "args": [*configuration["args"], "--engine", engine],
        "cwd": str(project.root),
        "console": "internalConsole",
        "env": {name: surroundings[name] for name in ("PYTHONPATH",)},
    }
    adapter = subprocess.Popen(
        [sys.executable, "-m", "debugpy.adapter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy()
    )
    try:
        assert adapter.stdout
        assert adapter.stdin
        stops: queue.Queue[tuple[Session, dict[str, Any]]] = queue.Queue()
        Session(adapter.stdout, adapter.stdin, stops).begin("launch", launch, file, line)
        session, stopped = stops.get(timeout=LIMIT)
        session.send("stackTrace", threadId=stopped["threadId"])
        frame = session.wait("response", "stackTrace")["body"]["stackFrames"][0]
        assert (stopped["reason"], frame["line"]) == ("breakpoint", line)
        assert Path(frame["source"]["path"]) == file
        session.send("evaluate", expression="list(locals())", frameId=frame["id"], context="watch")
        assert "self" in session.wait("response", "evaluate")["body"]["result"]
    finally:
        adapter.kill()
        adapter.wait()
