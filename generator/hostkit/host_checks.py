"""Checks of everything else on the host: disk, memory, processors, ports, certificates, who you are."""

from __future__ import annotations

import stat

from .finding import Case, Finding
from .probe import PORT_CLAIMS
from .remedies import LINKS

GIB = 1 << 30
# (warn, fail) below. A CUDA image is about 10 GiB (torch and its CUDA libraries about 7), and building it needs room
# beside it; with the CPU's build of torch it is about 3 GiB
DOCKER_ROOM, DOCKER_ROOM_CPU, PROJECT_ROOM = (25 * GIB, 10 * GIB), (8 * GIB, 4 * GIB), 2 * GIB
MEMORY = 6 * GIB  # torch with CUDA takes about 3 GiB in each training process before the first picture is loaded
SHM = 1 * GIB  # what loaders of a few workers hand over; Docker's own default is 64 MiB
USERS = 65536  # ids that a user namespace has unless somebody gave it more (subuid(5))
LARGEST_UID = 2**31 - 1  # what runc takes


def disk_space(case: Case) -> Finding:
    """Whether the image and the project's files have room."""
    facts = case.facts
    if facts.docker_free is None and facts.project_free is None:
        return Finding("disk.space", "skip", "the free space could not be read")
    enough, least = DOCKER_ROOM if case.has_gpu else DOCKER_ROOM_CPU
    built = bool(facts.running.id)  # a container that exists has its image already
    if facts.docker_free is not None and facts.docker_free < enough and not built:
        level = "fail" if facts.docker_free < least else "warn"
        cause = f"{facts.docker_free / GIB:.1f} GiB are free where Docker keeps its images ({facts.docker.root})"
        need = f"building the image takes up to {enough // GIB} GiB"
        return Finding(
            "disk.space", level, cause, need, "docker builder prune -f && docker image prune -f", LINKS["prune"]
        )
    if facts.project_free is not None and facts.project_free < PROJECT_ROOM:
        cause = f"{facts.project_free / GIB:.1f} GiB are free where the project lies"
        return Finding("disk.space", "warn", cause, "data and runs need room", "df -h .", LINKS["prune"])
    free = facts.docker_free if facts.docker_free is not None else facts.project_free or 0
    return Finding("disk.space", "ok", f"{free / GIB:.0f} GiB free")


def memory(case: Case) -> Finding:
    """Whether a training fits into the memory that containers get."""
    facts = case.facts
    total = facts.docker.memory or facts.memory
    if total is None:
        return Finding("memory", "skip", "it could not be read")
    if total >= MEMORY:
        return Finding("memory", "ok", f"{total / GIB:.0f} GiB")
    cause = f"containers have {total / GIB:.1f} GiB of memory"
    consequence = f"below {MEMORY // GIB} GiB a training is often killed while it starts"
    if facts.system == "wsl2":
        consequence += ": give WSL more (memory= below [wsl2]), then wsl.exe --shutdown"
        command = r"cmd.exe /c 'notepad %USERPROFILE%\.wslconfig'"
        return Finding("memory", "warn", cause, consequence, command, LINKS["wslconfig"])
    if facts.docker.kind == "desktop" or facts.system in {"macos", "windows"}:
        consequence += ": give Docker Desktop more (Settings, Resources)"
        return Finding("memory", "warn", cause, consequence, "", LINKS["desktop"])
    return Finding("memory", "warn", cause, consequence, "free -h", LINKS["compose-memory"])


def cpu_quota(case: Case) -> Finding:
    """Whether this user may use all processors of the machine."""
    facts = case.facts
    if facts.cpu_quota is None or facts.cpu_quota >= facts.cpus:
        return Finding("cpu.quota", "ok", f"{facts.cpus} processors" if facts.cpus else "no limit")
    return Finding(
        "cpu.quota", "warn", f"this session may use {facts.cpu_quota:g} of {facts.cpus} processors",
        "the image builds slowly; containers of a system-wide engine have limits of their own",
        "systemctl show -p CPUQuotaPerSecUSec user-$(id -u).slice", LINKS["cgroup"],
    )  # fmt: skip


def shm(case: Case) -> Finding:
    """Whether the loader's workers get shared memory, which this project asks for by SHM_SIZE."""
    facts = case.facts
    wanted = facts.shm_wanted
    if wanted is None:
        given = facts.shm_default or 64 << 20
        return Finding("shm", "skip", f"no project is looked at; the engine's default is {given >> 20} MiB")
    if wanted < SHM:
        return Finding(
            "shm", "warn", f"SHM_SIZE gives containers {wanted >> 20} MiB of shared memory",
            "loader workers die with a bus error when it is full", "sed -i 's/^SHM_SIZE=.*/SHM_SIZE=8gb/' .env",
            LINKS["shm"],
        )  # fmt: skip
    return Finding("shm", "ok", f"up to {wanted / GIB:g} GiB of shared memory")


def ports_busy(case: Case) -> Finding:
    """Whether something else listens where the project publishes a service."""
    busy = case.facts.busy_ports
    if not busy:
        return Finding("ports.busy", "ok", "no port that the project publishes is taken")
    name, port = busy[0]
    return Finding(
        "ports.busy", "warn", f"port {', '.join(str(number) for _, number in busy)} is taken on this machine",
        f"unless that is this project's own service, it does not start: {name}={port + 1} in .env moves it",
        f"docker ps --filter publish={port}; ss -ltnp 'sport = :{port}'", LINKS["ports"],
    )  # fmt: skip


def ports_claims(case: Case) -> Finding:
    """Whether the projects of this machine's users can keep their ports apart.

    The folder belongs to whoever opened the first project; its mode is that of /tmp: everybody adds, and nobody removes
    another's.
    """
    facts = case.facts
    if facts.claims is None:
        return Finding("ports.claims", "skip", "no project of this machine has chosen its ports yet")
    mode, owner = facts.claims
    mend, wanted = f"chmod 1777 {PORT_CLAIMS}", stat.S_ISVTX | stat.S_IRWXO
    if not stat.S_ISDIR(mode):
        cause = f"{PORT_CLAIMS} is no folder"
        mend = f"rm -f {PORT_CLAIMS}"
    elif mode & wanted == wanted:
        return Finding("ports.claims", "ok", f"{PORT_CLAIMS} is everybody's, and each claim its owner's")
    elif mode & stat.S_IWOTH:
        cause = f"{PORT_CLAIMS} is not sticky: everybody on this machine may remove another's claims"
    else:
        cause = f"not everybody on this machine may write {PORT_CLAIMS}"
    return Finding(
        "ports.claims", "warn", cause, "projects of different users may choose the same ports: `docker compose up` says"
        " that a port is taken", mend if owner == facts.uid else f"sudo {mend}", LINKS["ports"],
    )  # fmt: skip


def proxy_ca(case: Case) -> Finding:
    """Whether the image build can trust a proxy that opens TLS."""
    facts = case.facts
    if facts.certificates:
        count = "one CA certificate file" if facts.certificates == 1 else f"{facts.certificates} CA certificate files"
        return Finding("proxy.ca", "ok", f"{count} of this site will be handed to the image build")
    if facts.certificate_hint:
        return Finding(
            "proxy.ca", "warn", f"this site has certificates of its own ({facts.certificate_hint}), but not where the"
            " system keeps such", "behind a proxy that opens TLS, downloads in the image build fail",
            f"sed -i '1i EXTRA_CA_CERTS={facts.certificate_hint}' .env", LINKS["ca"],
        )  # fmt: skip
    if facts.proxy:
        cause = "a proxy is set; if it opens TLS, name its certificate: EXTRA_CA_CERTS=/path/to/ca.pem in .env"
        return Finding("proxy.ca", "ok", cause)
    return Finding("proxy.ca", "ok", "no proxy and no extra CA certificate")


def user_id(case: Case) -> Finding:
    """Whether the container can run as the person who opens it."""
    facts = case.facts
    if facts.uid is None or facts.system in {"macos", "windows"}:
        return Finding("user.id", "skip", "Docker Desktop maps owners by itself")
    if facts.docker.rootless:
        return Finding("user.id", "ok", "root of a rootless container is you")
    if facts.uid == 0 and facts.project_owner:
        return Finding(
            "user.id", "ok", f"root runs this; the container's user gets the owner's uid {facts.project_owner}"
        )
    if facts.uid == 0:
        return Finding(
            "user.id", "warn", "root runs this and owns the project", "inside the container you would be root as well",
            "chown -R ${SUDO_USER:-you}: .   # then open it as that user", LINKS["docker-group"],
        )  # fmt: skip
    if facts.docker.userns and facts.uid >= USERS:
        return Finding("user.id", "skip", "the daemon maps users, see docker.userns")
    if facts.uid > LARGEST_UID:
        return Finding(
            "user.id", "fail", f"your uid {facts.uid} is beyond {LARGEST_UID}, the last that a container can have",
            "the container does not start as you: open the project as another user, or ask for another uid",
            "id", LINKS["userns"],
        )  # fmt: skip
    return Finding("user.id", "ok", f"the container's user gets your uid {facts.uid}")


def selinux(case: Case) -> Finding:
    """Whether SELinux keeps containers from mounted folders and GPUs."""
    facts = case.facts
    if not facts.selinux:
        return Finding("selinux", "skip", "SELinux is not in use")
    return Finding("selinux", "ok", f"{facts.selinux}; this project's containers run with label=disable")


def overrides(case: Case) -> Finding:
    """Whether somebody's own settings decide otherwise than the host would."""
    wishes = case.wishes
    if case.wish_fault:
        return Finding(
            "overrides", "fail", case.wish_fault.rstrip("."), "the container does not open", "${EDITOR:-nano} .env",
            LINKS["env"],
        )  # fmt: skip
    if wishes is None:
        return Finding("overrides", "skip", "no project is looked at")
    named = {
        "YOLO_ACCEL": "" if wishes.accel == "auto" else wishes.accel,
        "TORCH_BUILD": wishes.build,
        "TORCH_VERSION": wishes.torch,
        "CUDA_VISIBLE_DEVICES": wishes.devices,
    }
    said = ", ".join(f"{name}={value}" for name, value in named.items() if value)
    to_cpu = [name for name, value in named.items() if value in {"cpu", "-1"}]
    if to_cpu and case.has_gpu:
        return Finding(
            "overrides", "warn", f"{said} is set, in .env or in this shell", "training runs on the CPU, though there is"
            " a GPU", f"sed -i '/^{to_cpu[0]}=/d' .env; unset {to_cpu[0]}", LINKS["env"],
        )  # fmt: skip
    return Finding("overrides", "ok", f"{said} is honoured" if said else "no setting of your own decides the build")


CHECKS = (overrides, disk_space, memory, cpu_quota, shm, ports_busy, ports_claims, proxy_ca, user_id, selinux)
