"""What must be equal on the nodes of a launch, gathered without torch, and in words what is not."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import dataset, limits, upstream
from lab.doctor_facts import ask_smi
from lab.errors import FAILED, LabError
from lab.project import CODE, Project

if TYPE_CHECKING:
    from lab.engines import Call
    from lab.muster import Node

MISSING = "missing"
LARGEST_SKEW = 1.0  # seconds; more makes the newest file, or the log's first error, the wrong one
# what a node may have for itself: places, and what its own machine asks for
OWN_OPTIONS = frozenset(("--project", "--name", "--exist-ok", "--data", "--hyp", "--weights", "--cfg", "--resume"))


@dataclass(frozen=True)
class Fact:
    """Something that nodes have in common or not. `must`: else the launch fails, hangs or trains something else."""

    key: str
    words: str
    mend: str
    must: bool = True


FACTS = (
    Fact("launch", "nodes x ranks a node", "start the same command on every node"),
    Fact("options", "training options", "start the same command on every node"),
    Fact("code", "code/", "bring every node to the same commit, or mount the same project"),
    Fact("engine", "engine", "run `lab fetch` there, or mount the same code/yolov5"),
    Fact("data", "data", "copy the same data there, or mount the same disk"),
    Fact("torch", "torch", "use the same image on every node"),
    Fact("python", "Python", "use the same image on every node"),
    Fact("ultralytics", "ultralytics", "use the same image on every node"),
    Fact("gpus", "GPUs", "the slowest one sets the pace of all", must=False),
    Fact("driver", "NVIDIA driver", "it works as long as `lab doctor` finds nothing there", must=False),
    Fact("processors", "processors", "the node with the fewest may keep the others waiting for images", must=False),
    Fact("shm", "/dev/shm", "give its container a larger one: --shm-size, or an emptyDir of medium Memory", must=False),
)


def of_node(project: Project, data: str) -> dict[str, Any]:
    """This machine's facts: of its code, its packages, the data set `data`, its hardware."""
    smi = ask_smi()
    return {
        "code": code(),
        "commit": commit(project),
        "engine": source(project),
        "data": fingerprint(project, data),
        "torch": torch_version(),
        "python": platform.python_version(),
        "ultralytics": package("ultralytics"),
        "gpus": _counted([gpu.name for gpu in smi.gpus]),
        "driver": smi.gpus[0].driver if smi.gpus else "none",
        "processors": limits.processors(),
        "shm": shared_memory(),
    }


def of_training(call: Call, project: Project) -> dict[str, Any]:
    """The facts that are compared before every training: quick ones. `lab preflight` compares the data too."""
    return {
        "launch": f"{call.meeting.nodes} x {call.processes}",
        "options": _common(call.payload["arguments"]),
        "code": code(),
        "commit": commit(project),
        "engine": source(project),
        "torch": torch_version(),
    }


def require_equal(nodes: Sequence[Node]) -> None:
    """Raises LabError that names the nodes which must not differ and do."""
    found = differences(nodes)[0]
    if found:
        raise LabError("; ".join(found), FAILED)


def differences(nodes: Sequence[Node]) -> tuple[list[str], list[str]]:
    """What must not differ and does, and what merely differs: a sentence a fact, naming the odd nodes.

    The majority is right; where there is none (two nodes), node 0 is.
    """
    wrong: list[str] = []
    remarks: list[str] = []
    for fact in FACTS:
        said = {node.rank: node.facts.get(fact.key) for node in nodes}
        values = [json.dumps(value) for value in said.values() if value is not None]
        if len(set(values)) < 2:
            continue
        (usual, count), *_ = Counter(values).most_common(1)
        if 2 * count <= len(nodes) and said[nodes[0].rank] is not None:
            usual = json.dumps(said[nodes[0].rank])
        odd = [node for node in nodes if said[node.rank] is not None and json.dumps(said[node.rank]) != usual]
        parts = [f"{node} has {_shown(node, fact.key)}" for node in odd]
        usual_node = next(node for node in nodes if json.dumps(said[node.rank]) == usual)
        others = len(nodes) - len(odd)
        rest = f"the other {others} have" if others > 1 else f"{usual_node} has"
        sentence = f"{fact.words}: {', '.join(parts)}, {rest} {_shown(usual_node, fact.key)}: {fact.mend}"
        (wrong if fact.must else remarks).append(sentence)
    return wrong, remarks


def skewed(nodes: Sequence[Node]) -> list[str]:
    """A sentence for each node whose clock is off by more than LARGEST_SKEW, against the middle of all clocks."""
    middle = sorted(node.clock_s for node in nodes)[(len(nodes) - 1) // 2]
    found = []
    for node in nodes:
        ahead = node.clock_s - middle
        if abs(ahead) - node.trip_s / 2 > LARGEST_SKEW:
            way = "ahead of" if ahead > 0 else "behind"
            found.append(f"clock: {node} is {abs(ahead):.1f} s {way} the others: start chrony or timesyncd there")
    return found


def _shown(node: Node, key: str) -> str:
    value = str(node.facts[key])
    return f"{value} (commit {node.facts['commit']})" if key == "code" and node.facts.get("commit") else value


# Single facts


def code() -> str:
    """A digest of the scaffold's own code: names and contents of the Python files that run."""
    return _digest((str(file.relative_to(CODE)), file.read_bytes()) for file in _sources())


def _sources() -> list[Path]:
    return sorted([*CODE.glob("*.py"), *(CODE / "lab").rglob("*.py")])


def _digest(pairs: Any) -> str:
    whole = hashlib.sha256()
    for name, content in pairs:
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()[:12]


def commit(project: Project) -> str:
    """The project's git commit, with a + when code/ was changed since; "" outside git."""
    if shutil.which("git") is None:
        return ""
    found = _git(project, "rev-parse", "--short=8", "HEAD")
    return found and found + ("+" if _git(project, "status", "--porcelain", "--", "code") else "")


def _git(project: Project, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(project.root), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def source(project: Project) -> str:
    """The state of YOLOv5's source: its commit, with the digest of what was changed in it."""
    if not upstream.present(project.upstream):
        return MISSING if project.engine == "yolov5" else "not fetched"
    spoilt = upstream.changed(project.upstream)
    if not spoilt:
        return upstream.COMMIT[:8]
    changed = ((name, (project.upstream / name).read_bytes()) for name in spoilt if (project.upstream / name).is_file())
    return f"{upstream.COMMIT[:8]} changed in {', '.join(spoilt[:2])} ({_digest(changed)})"


def fingerprint(project: Project, data: str) -> str:
    """The content of the data set `data` in a word, `missing` when it is not here."""
    from lab.fingerprint import fingerprint as of  # noqa: PLC0415

    try:
        return str(of(dataset.open_dataset(data, project)))
    except LabError:
        return MISSING


def torch_version() -> str:
    """torch's version with its build, as its own file says it: importing it would take seconds."""
    found = util.find_spec("torch")
    if found is None or not found.origin:
        return MISSING
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return package("torch")
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda.*= '([^']+)'", text, re.MULTILINE)
    return (version[1] if version else "unknown") + (f" (CUDA {cuda[1]})" if cuda else " (no CUDA)")


def package(name: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def shared_memory() -> str:
    """The size of /dev/shm, to a tenth of a GiB."""
    try:
        return f"{shutil.disk_usage(limits.SHM).total / (1 << 30):.1f} GiB"
    except OSError:
        return MISSING


def _counted(names: list[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items()) or "none"


def _common(arguments: list[str]) -> str:
    """The arguments that all nodes must share: those that only name places are each node's own."""
    kept: list[str] = []
    skipping = False
    for word in arguments:
        if word.startswith("--"):
            skipping = word in OWN_OPTIONS or word in ("--device", "--workers")
        if not skipping:
            kept.append(word)
    return " ".join(kept)
