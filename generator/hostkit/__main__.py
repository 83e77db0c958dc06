"""`python -m hostkit setup | doctor | resolve | bundle | verify-bundle`: what a project runs on its host."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Iterable, Sequence

from . import decision, doctor, probe, report, setup
from .catalogue import BadRequest, Catalogue
from .project import CannotWrite, needs, project_settings, read_text, split_env
from .resolve import Gpu, Host, Refusal, Resolution, check_python, check_release, refusals, resolve
from .terminal import printable, quoted, tolerate
from .wishes import ACCELS, Wishes, read_wishes


def main(arguments: Sequence[str] | None = None, program: str = "hostkit") -> int:
    """Run one command; the exit status is what it says in its help."""
    parser = argparse.ArgumentParser(prog=program, description="Look at this host and prepare the project for it.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_setup(commands.add_parser("setup", help="write .env and .devcontainer/compose.local.yaml for this host"))
    add_doctor(commands.add_parser("doctor", help="check this host; exit status 0 fine, 1 a check failed, 2 no answer"))
    add_resolve(commands.add_parser("resolve", help="name the torch build for a GPU and a driver"))
    add_bundle(commands.add_parser("bundle", help="fill wheelhouse/ with all that a host without a network needs"))
    add_verify_bundle(commands.add_parser("verify-bundle", help="prove wheelhouse/: build and smoke, the network cut"))
    tolerate(sys.stdout, sys.stderr)
    options = parser.parse_args(arguments)
    if threading.current_thread() is threading.main_thread():  # so that what is asked meanwhile is stopped as well
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except BadRequest as error:
        print(printable(f"{program}: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head` has seen enough
        sys.stderr.close()
        return 0


def home() -> Path:
    """The project of this copy of hostkit (`<project>/.devcontainer/hostkit`), else the current directory."""
    folder = Path(__file__).resolve().parents[1]
    return folder.parent if (folder / "project.json").is_file() else Path()


def add_setup(parser: argparse.ArgumentParser) -> None:
    """Options of `setup`."""
    parser.add_argument("--project", type=Path, default=home(), help="the project's root (default: this one)")
    parser.add_argument("--accel", choices=ACCELS, help="gpu, gpu-cdi or cpu instead of what is found")
    parser.add_argument("--catalog", type=Path, help="another catalog.json")
    parser.set_defaults(run=lambda options: setup.run(options.project, options.accel, _catalogue(options)))


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Options of `doctor`."""
    parser.add_argument("--project", type=Path, default=home(), help="the project's root (default: this one)")
    parser.add_argument("--torch", default="", help="the release to check for (default: the project's, else auto)")
    parser.add_argument("--python", default="", help="the Python of the container, e.g. 3.11 (default: the project's)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--catalog", type=Path, help="another catalog.json")
    parser.set_defaults(run=_doctor)


def add_resolve(parser: argparse.ArgumentParser) -> None:
    """Options of `resolve`."""
    parser.add_argument(
        "--driver", help="driver version as nvidia-smi prints it, e.g. 570.86.10 (default: this host's)"
    )
    parser.add_argument(
        "--gpu", action="append", default=[], metavar="NAME,CAPABILITY,MIB",
        help='e.g. "NVIDIA GeForce RTX 5090,12.0,32607"; capability and memory may be empty; repeat for more',
    )  # fmt: skip
    parser.add_argument("--torch", default="auto", help='a release such as 2.8.0, or "auto" (default)')
    parser.add_argument("--python", default="", help="the Python of the container, e.g. 3.11 (default: any)")
    parser.add_argument("--os", default="", help="linux or wsl2 (default: linux, or this host's)")
    parser.add_argument("--machine", default="", help="x86_64 or aarch64 (default: x86_64, or this host's)")
    parser.add_argument(
        "--hosts",
        metavar="FILE|-",
        help="many hosts, a JSON object a line in and out; exit status 1 when a line was none",
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="with --hosts: instead of the answers, the release that serves most hosts and the hosts it leaves behind; "
        "--torch names another to set beside it",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--catalog", type=Path, help="another catalog.json")
    parser.set_defaults(run=_resolve)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Options of `bundle`."""
    parser.add_argument("--project", type=Path, default=home(), help="the project's root (default: this one)")
    parser.add_argument(
        "--builds",
        default="",
        help="builds of torch for the hosts without a network, e.g. cu128,cpu (default: this host's)",
    )
    parser.add_argument("--weights", default="", help="checkpoints to bring along, e.g. yolov5s.pt,runs/best.pt")
    parser.add_argument("--catalog", type=Path, help="another catalog.json")

    def run(options: argparse.Namespace) -> int:
        from . import bundle  # noqa: PLC0415 - not at each open

        return bundle.run(_project(options), options.builds, options.weights, _catalogue(options))

    parser.set_defaults(run=run)


def add_verify_bundle(parser: argparse.ArgumentParser) -> None:
    """Options of `verify-bundle`."""
    parser.add_argument("--project", type=Path, default=home(), help="the project's root (default: this one)")
    parser.add_argument("--catalog", type=Path, help="another catalog.json")

    def run(options: argparse.Namespace) -> int:
        from . import bundle_check  # noqa: PLC0415 - not at each open

        return bundle_check.run(_project(options), _catalogue(options))

    parser.set_defaults(run=run)


def _project(options: argparse.Namespace) -> Path:
    if not (options.project / "compose.yaml").is_file():
        raise BadRequest(f"--project {options.project} holds no compose.yaml: name the project's root.")
    return Path(options.project).resolve()


def _catalogue(options: argparse.Namespace) -> Catalogue:
    return Catalogue.read(options.catalog) if options.catalog else Catalogue.read()


def _doctor(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    if not options.project.is_dir():
        raise BadRequest(f"--project {options.project} is not a directory: name the project's root.")
    pinned = project_settings(options.project)
    mine, fault = _wishes(options.project)
    torch, python = options.torch or (mine.torch if mine else "") or pinned.torch, options.python or pinned.python
    try:
        check_release(torch, catalogue)
    except BadRequest as error:
        if options.torch or not (mine and mine.torch):
            raise
        fault, torch = f"TORCH_VERSION: {error}", pinned.torch
    check_python(python)
    facts = probe.probe(options.project, needs=needs(options.project))
    answer = doctor.resolution(facts, catalogue, torch, python)
    decided = ""
    if mine and not fault and (options.project / ".devcontainer" / "project.json").is_file():
        try:
            decided = decision.decide(facts, pinned._replace(torch=torch), mine, catalogue).summary
        except BadRequest as error:
            fault = str(error)
    findings = doctor.examine(facts, answer, catalogue, torch, python, mine, fault)
    if options.json:
        print(report.as_json(findings))
    else:
        print(report.as_text(doctor.grouped(findings), report.colour_wanted(sys.stdout)))
        if decided:
            print(printable(f"this project here: {decided}"))
    return doctor.exit_status(findings)


def _wishes(project: Path) -> tuple[Wishes | None, str]:
    """(the user's overrides for a project, why they cannot be read); None where there is no project."""
    if not (project / "compose.yaml").is_file():
        return None, ""
    try:
        own, _ = split_env(read_text(project / ".env"))
        return read_wishes(os.environ, own), ""
    except (BadRequest, CannotWrite) as error:
        return None, str(error)


def _resolve(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    if options.hosts:
        if options.driver or options.gpu:
            raise BadRequest("--hosts goes without --driver and --gpu: each line names its own.")
        return _fleet(options, catalogue)
    if options.summary:
        raise BadRequest("--summary is about many hosts: name their file with --hosts.")
    if bool(options.driver) != bool(options.gpu):
        raise BadRequest("--driver and --gpu go together: give both, or neither to ask about this host.")
    if options.driver:
        gpus = tuple(_gpu(index, text) for index, text in enumerate(options.gpu))
        host = Host(
            options.driver, gpus, options.os or "linux", options.machine or "x86_64", options.torch, options.python
        )
        answer = resolve(host, catalogue)
    else:
        host, answer = _here(options, catalogue)
    refused = refusals(host, answer, catalogue)
    if options.json:
        print(json.dumps({**answer.as_dict(), "refused": [one._asdict() for one in refused]}))
    else:
        print(as_text(answer, refused))
    return 0 if answer.status == "ok" else 1


def _here(options: argparse.Namespace, catalogue: Catalogue) -> tuple[Host, Resolution]:
    """This host and its answer. A driver that says nothing about its GPUs is not the same as no GPU."""
    facts = probe.probe(docker=False)
    host = facts.host(options.torch, options.python)
    if host.gpus and not host.driver:
        raise BadRequest("nvidia-smi names no version of its driver that can be read: give --driver and --gpu.")
    host = host._replace(os=options.os or host.os, machine=options.machine or host.machine)
    answer = resolve(host, catalogue)
    broken = [] if host.gpus else doctor.driver_findings(facts)
    return host, answer._replace(reasons=[f"{broken[0].cause}."]) if broken else answer


def _gpu(index: int, text: str) -> Gpu:
    name, *rest = (part.strip() for part in text.split(","))
    if not name or len(rest) > 2:
        raise BadRequest(
            f'--gpu {quoted(text)} is not NAME,CAPABILITY,MIB: write e.g. "NVIDIA GeForce RTX 4090,8.9,24564".'
        )
    compute, memory = [*rest, "", ""][:2]
    memory = re.sub(r" ?MiB$", "", memory)  # as nvidia-smi prints it without nounits
    if memory and not re.fullmatch("[0-9]{1,9}", memory):
        raise BadRequest(f"--gpu {quoted(text)}: the memory {quoted(memory)} is not a number of MiB.")
    return Gpu(index, name, compute, int(memory) if memory else None)


def _fleet(options: argparse.Namespace, catalogue: Catalogue) -> int:
    if options.hosts == "-":
        # standard input as it is: bytes that are no UTF-8 spoil one line, not the fleet
        return _answer(io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig", "replace"), catalogue, options)
    try:
        with Path(options.hosts).open(encoding="utf-8-sig", errors="replace") as lines:
            return _answer(lines, catalogue, options)
    except BrokenPipeError:  # of the answers, not of the file
        raise
    except OSError as error:
        raise BadRequest(f"--hosts {options.hosts} cannot be read: {error.strerror}.") from None


def _answer(lines: Iterable[str], catalogue: Catalogue, options: argparse.Namespace) -> int:
    from . import fleet  # noqa: PLC0415 - only for fleets

    defaults = Host("", (), options.os or "linux", options.machine or "x86_64", options.torch, options.python)
    if not options.summary:
        bad = False
        for answer in fleet.answers(lines, defaults, catalogue):
            bad = bad or "error" in answer
            sys.stdout.write(json.dumps(answer) + "\n")
        return int(bad)
    summary = fleet.summarise(lines, defaults, catalogue)
    print(json.dumps(summary.as_dict()) if options.json else fleet.as_text(summary))
    return int(bool(summary.bad))


def as_text(answer: Resolution, refused: Sequence[Refusal] = ()) -> str:
    """A resolution for a person."""
    lines = []
    if answer.build:
        where = f"from {answer.index_url}" if answer.index_url else "from the default package index"
        lines.append(f"torch {answer.torch}+{answer.build} with torchvision {answer.torchvision}, {where}")
        if answer.excluded:
            lines.append(f"on GPU {', '.join(map(str, answer.devices))} only")
    else:
        lines.append("no torch build runs on this host's GPU as asked")
    lines += [f"  because  {text}" for text in answer.reasons]
    if answer.build:
        lines += [f"  without  GPU {one['index']}: {one['reason']}" for one in answer.excluded]
    lines += [f"  refused  {text}" for text in _refused(refused)]
    lines += [f"  warning  {text}" for text in answer.warnings]
    lines += [f"  advice   {text}" for text in answer.advice]
    return "\n".join(map(printable, lines))


def _refused(refused: Sequence[Refusal]) -> list[str]:
    """One line a reason: "cu132 of torch 2.15.0 to 2.12.0; cu130 of ...: CUDA 13 needs driver 580.65.06 or newer."."""
    why: dict[str, dict[str, str]] = {}  # build, release (newest first), reason
    for one in refused:
        for name in one.build.split(", "):
            why.setdefault(name, {})[one.torch] = one.reason
    lines = []
    for reason in dict.fromkeys(one.reason for one in refused):
        spans: dict[str, list[str]] = {}
        for name, reasons in why.items():
            span = _spans([torch if said == reason else "" for torch, said in reasons.items()])
            if span:
                spans.setdefault(span, []).append(name)
        builds = [f"{', '.join(names)} of torch {span}" for span, names in spans.items()]
        lines.append(f"{'; '.join(builds)}: {reason}")
    return lines


def _spans(torches: Sequence[str]) -> str:
    """["2.15.0", "2.14.1", "2.14.0", "", "2.7.1"] -> "2.15.0 to 2.14.0, 2.7.1"."""
    found: list[str] = []
    for held, run in itertools.groupby(torches, bool):
        first, *rest = run
        found += [f"{first} to {rest[-1]}" if rest else first] if held else []
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
