"""Checks of the container engine, of Compose and of the NVIDIA Container Toolkit."""

from __future__ import annotations

import re

from . import remedies
from .catalogue import version
from .finding import Case, Finding, excerpt
from .probe import Facts
from .remedies import LINKS

COMPOSE_MINIMUM = "2.17"  # below: no `additional_contexts`; the dev container tools ask for it
ASKED = "the engine could not be asked"


def docker_missing(case: Case) -> Finding:
    """Whether there is a container engine."""
    docker = case.facts.docker
    if docker.state == "skipped":
        return Finding("docker.missing", "skip", "the engine was not asked")
    if docker.state == "missing" and case.facts.desktop_installed:
        return Finding("docker.missing", "skip", "Windows has Docker Desktop, see below")
    if docker.state == "missing" and case.facts.podman:
        return Finding(
            "docker.missing", "fail", "Podman is here, but no docker command, which the dev container tools call",
            "no container can start", _PODMAN.get(remedies.linux_family(case.facts), ""), LINKS["podman"],
        )  # fmt: skip
    if docker.state == "missing":
        command, link = remedies.docker(case.facts)
        return Finding("docker.missing", "fail", "there is no docker command", "no container can start", command, link)
    name = {"desktop": "Docker Desktop", "podman": "Podman"}.get(docker.kind, "Docker")
    return Finding(
        "docker.missing", "ok", f"{name} {docker.version}".strip() + (", rootless" if docker.rootless else "")
    )


_PODMAN = {
    "ubuntu": "sudo apt-get install -y podman-docker docker-compose-v2",
    "debian": "sudo apt-get install -y podman-docker docker-compose",
    "fedora": "sudo dnf install -y podman-docker docker-compose",
    "rhel": "sudo dnf install -y podman-docker docker-compose-plugin",
    "suse": "sudo zypper install -y podman-docker docker-compose",
    "arch": "sudo pacman -S --needed podman-docker docker-compose",
}


def docker_integration(case: Case) -> Finding:
    """Whether Docker Desktop serves this WSL2 distribution."""
    facts = case.facts
    if facts.system != "wsl2":
        return Finding("docker.integration", "skip", "this is not WSL2")
    if facts.docker.state == "integration" or (facts.docker.state == "missing" and facts.desktop_installed):
        name = facts.distribution.name or "this distribution"
        return Finding(
            "docker.integration", "fail",
            f"Docker Desktop does not serve {name}: it is not running, or its WSL integration is off here",
            "no container can start: start it, then Settings, Resources, WSL integration; then in Windows",
            "wsl.exe --shutdown", LINKS["integration"],
        )  # fmt: skip
    if facts.docker.state == "ok" and facts.docker.kind == "desktop":
        return Finding("docker.integration", "ok", "Docker Desktop serves this distribution")
    return Finding("docker.integration", "skip", "Docker Desktop is not used")


def docker_down(case: Case) -> Finding:
    """Whether the daemon runs and answers."""
    docker = case.facts.docker
    if docker.state in {"down", "hangs", "failed"}:
        cause = {
            "down": "the Docker daemon is not running",
            "hangs": "the Docker daemon does not answer",
            "failed": f"docker info failed: {excerpt(docker.message) or 'it gave no reason'}",
        }[docker.state]
        if remote(case.facts):
            cause = f"the engine at {case.facts.endpoint} does not answer"
            return Finding(
                "docker.down", "fail", cause, "no container can start", "docker context ls", LINKS["context"]
            )
        command = remedies.restart_docker(case.facts)
        return Finding("docker.down", "fail", cause, "no container can start", command, LINKS["daemon"])
    if docker.state != "ok":
        return Finding("docker.down", "skip", ASKED)
    return Finding("docker.down", "ok", "the daemon answers")


def docker_permission(case: Case) -> Finding:
    """Whether this user may talk to the daemon."""
    facts = case.facts
    if facts.docker.state == "permission":
        if facts.user and facts.docker_group and facts.user in facts.docker_group and not facts.in_docker_group:
            return Finding(
                "docker.permission", "fail", f"{facts.user} is in the group docker, but only from the next login on",
                "no container can start", "newgrp docker   # in this terminal; VS Code needs a new login",
                LINKS["docker-group"],
            )  # fmt: skip
        return Finding(
            "docker.permission", "fail", "this user may not talk to the Docker daemon", "no container can start",
            "sudo usermod -aG docker $USER && newgrp docker", LINKS["docker-group"],
        )  # fmt: skip
    if facts.docker.state != "ok":
        return Finding("docker.permission", "skip", ASKED)
    return Finding("docker.permission", "ok", "this user may use the daemon")


def remote(facts: Facts) -> bool:
    """Whether the engine runs on another machine."""
    match = re.match(r"(ssh|tcp|https?)://(?:[^@/]*@)?(\[[0-9a-fA-F:]+\]|[^:/]*)", facts.endpoint)
    return match is not None and (match[1] == "ssh" or match[2] not in {"localhost", "127.0.0.1", "[::1]", ""})


def docker_remote(case: Case) -> Finding:
    """Whether the engine is this machine's, whose folders and GPUs were looked at."""
    if case.facts.docker.state != "ok":
        return Finding("docker.remote", "skip", ASKED)
    if remote(case.facts):
        return Finding(
            "docker.remote", "warn", f"the engine runs on another machine ({case.facts.endpoint})",
            "it mounts its own folders, not these, and its GPU may be another: open the project there by Remote-SSH",
            "docker context use default", LINKS["context"],
        )  # fmt: skip
    return Finding("docker.remote", "ok", "the engine is this machine's")


def docker_rootless(case: Case) -> Finding:
    """Whether a rootless engine is set up so that it can hand out a GPU."""
    facts = case.facts
    docker = facts.docker
    if docker.state != "ok" or not docker.rootless:
        return Finding("docker.rootless", "skip", ASKED if docker.state != "ok" else "the engine runs as root")
    needs = case.has_gpu and docker.kind == "docker" and "nvidia" in docker.runtimes and not has_cdi(facts)
    if needs and not facts.no_cgroups:
        return Finding(
            "docker.rootless", "fail", "a rootless engine may not write device rules, and the toolkit tries to",
            "containers with a GPU do not start",
            "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place", LINKS["rootless"],
        )  # fmt: skip
    return Finding("docker.rootless", "ok", "rootless: root of the container is you; memlock cannot be raised")


def docker_userns(case: Case) -> Finding:
    """Whether files that a container writes belong to the person outside."""
    facts = case.facts
    if facts.docker.state != "ok":
        return Finding("docker.userns", "skip", ASKED)
    if facts.docker.userns:
        return Finding(
            "docker.userns", "fail", "the daemon maps the users of containers to others (userns-remap)",
            "the container could not write into this project, unless it is let off",
            r"sed -i 's/^  init: true$/&\n  userns_mode: host/' compose.yaml", LINKS["userns"],
        )  # fmt: skip
    return Finding("docker.userns", "ok", "containers write as you")


def docker_neighbours(case: Case) -> Finding:
    """Whether a port that is published on 127.0.0.1 is out of reach for other machines.

    Before Docker 28 the rule that leads packets into the container asked for their address and not where they came
    from: a machine of the same network segment that sends them here by a route of its own is served (moby/moby#45610).
    """
    docker = case.facts.docker
    if docker.state != "ok":
        return Finding("docker.neighbours", "skip", ASKED)
    if docker.kind != "docker" or docker.rootless or case.facts.system not in {"linux", "wsl2"}:
        return Finding("docker.neighbours", "skip", "this engine publishes ports without rules of the firewall")
    if remote(case.facts):
        return Finding("docker.neighbours", "skip", "the engine runs on another machine")
    if not _major(docker.version):
        return Finding("docker.neighbours", "skip", "its version is not known")
    if _major(docker.version) >= DOCKER_LOCAL:
        return Finding("docker.neighbours", "ok", "what is published on 127.0.0.1 is reached from this machine alone")
    return Finding(
        "docker.neighbours", "warn",
        f"Docker {docker.version} lets machines of the same network segment reach ports published on 127.0.0.1",
        f"they can use TensorBoard, and `serve` without a LAB_SERVE_TOKEN; Docker {DOCKER_LOCAL} closes that (an update"
        " restarts running containers)", remedies.docker_upgrade(case.facts), LINKS["neighbours"],
    )  # fmt: skip


DOCKER_LOCAL = 28  # the first Docker whose firewall rules drop what comes to such a port from outside


def compose_old(case: Case) -> Finding:
    """Whether Compose is there and new enough."""
    facts = case.facts
    unasked = facts.docker.state in {"missing", "skipped", "integration"}
    if unasked or (facts.docker.state == "hangs" and not facts.compose):
        return Finding("compose.old", "skip", ASKED)
    command = remedies.compose(facts)
    if not facts.compose:
        cause = "there is neither `docker compose` nor `docker-compose`"
        return Finding("compose.old", "fail", cause, "no container can start", command, LINKS["compose"])
    number = tuple(map(int, re.findall("[0-9]{1,4}", facts.compose)[:2]))
    if number < (2,):
        cause = f"Compose {facts.compose} is of the retired first generation"
        return Finding("compose.old", "fail", cause, "it does not read these files", command, LINKS["compose"])
    if number < version(COMPOSE_MINIMUM):
        cause = f"Compose {facts.compose} is older than {COMPOSE_MINIMUM}"
        return Finding("compose.old", "warn", cause, "the dev container tools may refuse it", command, LINKS["compose"])
    return Finding("compose.old", "ok", f"Compose {facts.compose}")


def has_cdi(facts: Facts) -> bool:
    """Whether the engine can hand out GPUs by CDI. Docker names its CDI folders only where CDI is switched on."""
    docker = facts.docker
    if docker.kind == "podman":
        return bool(facts.cdi)
    return docker.cdi or (bool(docker.cdi_directories) and bool(facts.cdi))


def _toolkit_needed(case: Case) -> str:
    """Why the toolkit does not matter here, "" when it does."""
    facts = case.facts
    if not case.has_gpu or facts.system in {"macos", "windows"}:
        return "there is no NVIDIA GPU" if not case.has_gpu else "Docker Desktop brings its own"
    if facts.docker.kind == "desktop" and facts.system != "linux":
        return "Docker Desktop brings its own"
    if facts.docker.state != "ok":
        return ASKED
    if facts.docker.kind == "desktop":
        return "Docker Desktop on Linux hands out no GPU"
    return ""


def toolkit_missing(case: Case) -> Finding:
    """Whether the NVIDIA Container Toolkit is installed."""
    facts = case.facts
    if case.has_gpu and facts.system == "linux" and facts.docker.kind == "desktop":
        return Finding(
            "toolkit.missing", "fail", "Docker Desktop on Linux runs a virtual machine, which hands out no NVIDIA GPU",
            "containers cannot see the GPU: use the machine's own Docker Engine", "docker context use default",
            LINKS["docker"],
        )  # fmt: skip
    because = _toolkit_needed(case)
    if because:
        return Finding("toolkit.missing", "skip", because)
    switched_off = bool(facts.cdi) and _major(facts.docker.version) >= DOCKER_CDI
    if facts.toolkit or facts.hook or "nvidia" in facts.docker.runtimes or has_cdi(facts) or switched_off:
        known = facts.toolkit if facts.toolkit not in {"", "unknown"} else ""
        return Finding("toolkit.missing", "ok", f"NVIDIA Container Toolkit {known}".strip())
    cause = "the NVIDIA Container Toolkit is not installed"
    command = remedies.toolkit(facts)
    return Finding("toolkit.missing", "fail", cause, "containers cannot see the GPU", command, LINKS["toolkit"])


def toolkit_runtime(case: Case) -> Finding:
    """Whether the engine knows the toolkit."""
    facts = case.facts
    because = _toolkit_needed(case)
    if because:
        return Finding("toolkit.runtime", "skip", because)
    if "nvidia" in facts.docker.runtimes:
        return _runtime_rules(facts)
    if has_cdi(facts):
        return Finding("toolkit.runtime", "ok", "the engine hands out the GPU by CDI")
    if not facts.toolkit and not facts.hook:
        return Finding("toolkit.runtime", "skip", "the toolkit is not installed")
    if facts.cdi and toolkit_cdi_only(case).level == "fail":
        return Finding("toolkit.runtime", "skip", "the GPU would come by CDI, see below")
    link = LINKS["cdi" if facts.docker.kind == "podman" else "toolkit"]
    if facts.docker.kind == "podman":
        cause, level = "there is no CDI specification for the GPU, and Podman needs one", "fail"
    elif facts.hook:  # `--gpus` still works through the hook alone, without a registered runtime
        cause, level = "the engine does not have the nvidia runtime, only the toolkit's old hook", "warn"
    else:
        cause, level = "the toolkit is installed, but the engine does not have its runtime", "fail"
    consequence = "containers cannot see the GPU" if level == "fail" else "the GPU may be lost when systemd reloads"
    command = remedies.toolkit_setup(facts) if facts.toolkit else ""
    return Finding("toolkit.runtime", level, cause, consequence, command, link)


JIT_CDI = (1, 18)  # from here on the runtime describes devices to the engine itself, whatever no-cgroups says


def _runtime_rules(facts: Facts) -> Finding:
    """The nvidia runtime is registered: does it let containers use the device files?"""
    numbers = tuple(map(int, re.findall("[0-9]{1,4}", facts.toolkit)[:2]))
    if facts.no_cgroups and not facts.docker.rootless and numbers and numbers < JIT_CDI:
        return Finding(
            "toolkit.runtime", "fail", "no-cgroups is switched on for the toolkit, which only a rootless engine needs",
            "containers get the GPU but may not use it (NVML: Unknown Error)",
            "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups=false --in-place", LINKS["toolkit"],
        )  # fmt: skip
    return Finding("toolkit.runtime", "ok", "the engine has the nvidia runtime")


def toolkit_cdi_only(case: Case) -> Finding:
    """Whether GPUs come by CDI alone, where tools that look for a runtime see none."""
    facts = case.facts
    because = _toolkit_needed(case)
    if because:
        return Finding("toolkit.cdi-only", "skip", because)
    if "nvidia" in facts.docker.runtimes:
        return Finding("toolkit.cdi-only", "ok", "not only by CDI")
    if has_cdi(facts):
        where = facts.cdi[0] if facts.cdi else "the engine's list of devices"
        cause = f"GPUs come only by CDI ({where}); this project asks for them that way"
        return Finding("toolkit.cdi-only", "ok", cause)
    if facts.cdi and facts.docker.kind == "docker" and _major(facts.docker.version) >= DOCKER_CDI:
        return Finding(
            "toolkit.cdi-only", "fail", f"{facts.cdi[0]} names the GPU, but Docker has CDI switched off",
            "containers cannot see the GPU",
            "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled && " + remedies.restart_docker(facts),
            LINKS["cdi"],
        )  # fmt: skip
    return Finding("toolkit.cdi-only", "skip", "there is no CDI specification")


DOCKER_CDI = 25  # the first Docker that knows CDI; from 28.2 on it is switched on by default


def _major(text: str) -> int:
    match = re.match("[0-9]{1,4}", text)
    return int(match[0]) if match else 0


def toolkit_vulnerable(case: Case) -> Finding:
    """Whether the toolkit has holes that are known."""
    facts = case.facts
    if facts.toolkit in {"", "unknown"}:
        return Finding(
            "toolkit.vulnerable",
            "skip",
            "its version is not known" if facts.toolkit else _toolkit_needed(case) or "there is no toolkit",
        )
    if case.catalogue is None:
        return Finding("toolkit.vulnerable", "skip", "there is no catalogue")
    holes = case.catalogue.advisories(facts.toolkit)
    safe = case.catalogue.toolkit_safe
    if not holes:
        return Finding("toolkit.vulnerable", "ok", f"version {facts.toolkit}, {safe} is the oldest safe one")
    named = ", ".join(holes[-3:]) + (f" and {len(holes) - 3} more" if len(holes) > 3 else "")
    return Finding(
        "toolkit.vulnerable", "warn", f"the toolkit {facts.toolkit} is older than {safe}",
        f"a hostile image could leave its container ({named})",
        remedies.toolkit_upgrade(facts), LINKS["advisories"],
    )  # fmt: skip


CHECKS = (
    docker_missing, docker_integration, docker_down, docker_permission, docker_remote, docker_rootless, docker_userns,
    docker_neighbours, compose_old, toolkit_missing, toolkit_runtime, toolkit_cdi_only, toolkit_vulnerable,
)  # fmt: skip
