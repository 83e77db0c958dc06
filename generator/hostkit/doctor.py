"""Facts and a resolution -> findings: what was checked, why it fails, what that costs, and the command for this host.

Every check is a function from the case at hand to one finding; `GROUPS` is their order. Nothing here looks or writes.
"""

from __future__ import annotations

from typing import Iterator

from . import engine_checks, gpu_checks, host_checks
from .catalogue import BadRequest, Catalogue
from .finding import Case, Finding, Met
from .probe import Facts
from .resolve import Resolution, changes, check_python, check_release, obstacles, resolve
from .wishes import Wishes

GROUPS = (
    ("GPU and driver", gpu_checks.CHECKS),
    ("Container engine", engine_checks.CHECKS),
    ("Host", host_checks.CHECKS),
)


def resolution(facts: Facts, catalogue: Catalogue, torch: str = "auto", python: str = "") -> Resolution | None:
    """The torch build for this host; None when there is no GPU to ask about, or nothing that can be asked of it.

    Raises BadRequest for `torch` and `python`, which are somebody's words; what the host says becomes a finding.
    """
    check_release(torch, catalogue)
    check_python(python)
    try:
        return resolve(facts.host(torch, python), catalogue) if facts.gpus else None
    except BadRequest:
        return None


def examine(
    facts: Facts,
    answer: Resolution | None,
    catalogue: Catalogue,
    torch: str = "auto",
    python: str = "",
    wishes: Wishes | None = None,
    wish_fault: str = "",
) -> list[Finding]:
    """Every check, in the order in which they are told."""
    met: tuple[Met, ...] = ()
    fault = ""
    try:
        met = tuple(_met(facts, catalogue, torch, python)) if facts.gpus else ()
    except BadRequest as error:
        fault = str(error)
    case = Case(facts, answer, met, catalogue, fault, wishes, wish_fault)
    return [check(case) for _, checks in GROUPS for check in checks]


def _met(facts: Facts, catalogue: Catalogue, torch: str, python: str) -> Iterator[Met]:
    """Each GPU's own obstacle and change: what helps one of them may not help the other."""
    host = facts.host(torch, python)
    together = obstacles(host, catalogue)
    for gpu in host.gpus:
        alone = host._replace(gpus=(gpu,))
        for obstacle in obstacles(alone, catalogue):
            if obstacle in together:
                compute = catalogue.compute(gpu.capability, gpu.name)
                legacy = compute is not None and catalogue.branch(compute) is not None
                yield Met(obstacle, next(iter(changes(alone, catalogue)), ""), legacy)


def grouped(findings: list[Finding]) -> list[tuple[str, list[Finding]]]:
    """Findings of `examine` below the titles of their groups."""
    rest = iter(findings)
    return [(title, [next(rest) for _ in checks]) for title, checks in GROUPS]


def exit_status(findings: list[Finding]) -> int:
    """0 nothing failed, 1 a check failed."""
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def driver_findings(facts: Facts) -> list[Finding]:
    """What keeps the driver from listing a GPU, without asking the catalogue; empty when there is simply none."""
    case = Case(facts, None, (), None)
    checks = (
        gpu_checks.driver_hangs, gpu_checks.driver_unreadable, gpu_checks.nvml_mismatch, gpu_checks.driver_permission,
        gpu_checks.gpu_bus, gpu_checks.driver_nouveau, gpu_checks.driver_missing, gpu_checks.gpu_mig, gpu_checks.wsl,
    )  # fmt: skip
    return [finding for finding in (check(case) for check in checks) if finding.level == "fail"]


def engine_finding(facts: Facts) -> Finding:
    """What keeps containers from the GPU of a host whose driver works."""
    case = Case(facts, None, (), None)
    checks = (
        engine_checks.docker_missing, engine_checks.docker_integration, engine_checks.docker_down,
        engine_checks.docker_permission, engine_checks.toolkit_missing, engine_checks.toolkit_runtime,
        engine_checks.toolkit_cdi_only,
    )  # fmt: skip
    for finding in (check(case) for check in checks):
        if finding.level == "fail":
            return finding
    return engine_checks.toolkit_runtime(case)


def limits(facts: Facts) -> list[str]:
    """Sentences on what may keep a container from starting with the GPU, or has taken it away from the running one."""
    case = Case(facts, None, (), None)
    checks = (engine_checks.docker_rootless, engine_checks.toolkit_cdi_only)
    found = [finding for finding in (check(case) for check in checks) if finding.level in {"warn", "fail"}]
    said = [f"{finding.cause}; if the container does not start: {finding.command}" for finding in found]
    lost = gpu_checks.gpu_lost(case)
    return said + ([f"{lost.cause}: {lost.command}"] if lost.level == "fail" else [])


def claims(facts: Facts) -> list[str]:
    """A sentence when the projects of this machine's users cannot keep their ports apart."""
    finding = host_checks.ports_claims(Case(facts, None, (), None))
    return [f"{finding.cause}: {finding.command}"] if finding.level == "warn" else []
