"""Facts, a project's settings and the user's overrides -> how its containers run on this host. Pure."""

from __future__ import annotations

from typing import NamedTuple

from . import doctor
from .catalogue import BadRequest, Build, Catalogue
from .engine_checks import has_cdi
from .finding import counted
from .probe import Facts
from .project import Project
from .resolve import Gpu, Host, Resolution, check_python, check_release, resolve
from .terminal import shortened
from .wishes import Wishes


class Decision(NamedTuple):
    """How the containers of a project run on this host."""

    accel: str  # gpu, gpu-cdi, cpu
    build: Build
    index_url: str  # "" is the default package index
    devices: str  # for CUDA_VISIBLE_DEVICES, "" shows every GPU
    notes: tuple[str, ...]  # why, one sentence each
    summary: str  # the decision itself


def decide(facts: Facts, project: Project, wishes: Wishes, catalogue: Catalogue) -> Decision:
    """How this project runs on this host. Pure. Raises BadRequest for a wish that nothing fits."""
    torch = wishes.torch or project.torch or "auto"
    _check(torch, project, wishes, catalogue)
    on_cpu = wishes.accel == "cpu" or (wishes.accel == "auto" and wishes.build == "cpu")
    here = facts.gpus
    if not here and wishes.accel in {
        "gpu",
        "gpu-cdi",
    }:  # nvidia-smi is stuck, say: what the kernel module knows will do
        here = facts.listed
    gpus = () if on_cpu else visible(here, wishes.devices)  # the CPU works whatever the GPUs are
    host = facts.host(torch, project.python)._replace(gpus=gpus)
    answer, fault = _asked(host, catalogue)
    if fault:  # there is a GPU, but nothing can be asked about it
        host = host._replace(gpus=())
    accel, notes = _accel(facts, wishes, answer, gpus, fault)
    if wishes.build and wishes.build != "cpu":
        build = _wished_build(wishes.build, host, catalogue)
        if host.gpus and not _runs(build, host, catalogue):
            notes.append(f"TORCH_BUILD={wishes.build} was asked for, but {build.torch}+{build.name} does not run here.")
    elif wishes.build == "cpu" or accel == "cpu":
        build = _cpu_build(host, catalogue)
    elif answer and answer.build:
        build = _named(catalogue, host.machine, str(answer.torch), answer.build)
        notes += _remarks(answer)
    else:  # a GPU was asked for that the resolver cannot vouch for: what a plain install would take
        build = _plain_build(host, catalogue)
        notes.append(f"nothing vouches for torch {build.torch}+{build.name} on this host's GPU, but it was asked for.")
    devices = "" if accel == "cpu" else wishes.devices
    if accel != "cpu" and answer and answer.status == "partial" and not wishes.build:
        devices = _served(facts, answer.devices)
    if accel != "cpu":
        notes += _limits(facts, devices)
    index = catalogue.index(build) or ""
    if wishes.index_base:
        index = index.replace(catalogue.index_base, wishes.index_base, 1)
    decision = Decision(accel, build, index, devices, tuple(notes), "")
    return decision._replace(summary=_summary(facts, gpus, decision))


def _check(torch: str, project: Project, wishes: Wishes, catalogue: Catalogue) -> None:
    """Raise BadRequest for a release or a Python that this project cannot use."""
    where = "TORCH_VERSION" if wishes.torch else "project.json"
    try:
        check_release(torch, catalogue)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None
    if catalogue.numpy_1_only(torch):
        why = f"torch {torch} needs NumPy 1, and this project's packages are locked with NumPy 2"
        raise BadRequest(f"{where}: {why}: use 2.3.0 or newer.")
    try:
        check_python(project.python)
    except BadRequest as error:
        raise BadRequest(f"project.json: {error}") from None


def _served(facts: Facts, devices: list[int]) -> str:
    """CUDA_VISIBLE_DEVICES for GPUs by number; where one of them is in MIG mode all by UUID, as CUDA wants it there."""
    if not set(devices) & set(facts.smi.mig):
        return ",".join(map(str, devices))
    names = []
    for gpu in facts.gpus:
        if gpu.number in devices:
            slices = [one.uuid for one in facts.smi.slices if one.gpu == gpu.number]
            names += slices if gpu.number in facts.smi.mig else [gpu.uuid or str(gpu.number)]
    return ",".join(names)


def _limits(facts: Facts, devices: str) -> list[str]:
    """What a person has to know before the container starts with the GPU."""
    said = []
    if len(facts.smi.slices) > 1 and not devices.startswith("MIG-"):
        profiles = ", ".join(counted([one.profile for one in facts.smi.slices]))
        first = facts.smi.slices[0].uuid
        said.append(f"MIG instances {profiles}: a training uses one; CUDA_VISIBLE_DEVICES={first} chooses it.")
    said += doctor.limits(facts)
    return said


def visible(gpus: tuple[Gpu, ...], devices: str) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; parts of a GPU (MIG) cannot be told apart here and leave all.

    Raises BadRequest when it names one that is not here.
    """
    if not devices or not gpus or devices.startswith("MIG-"):
        return gpus
    if devices == "-1":
        return ()
    chosen = []
    for device in devices.split(","):
        fitting = [
            g for g in gpus if str(g.number) == device or (device.startswith("GPU-") and g.uuid.startswith(device))
        ]
        if len(fitting) > 1:
            raise BadRequest(f"CUDA_VISIBLE_DEVICES={shortened(device)} fits several GPUs: give the whole UUID.")
        if not fitting:
            there = ", ".join(str(gpu.number) for gpu in gpus)
            named = f"CUDA_VISIBLE_DEVICES={shortened(devices)}"
            raise BadRequest(f"{named} names a GPU that is not here (there is {there}): correct it.")
        chosen += fitting
    return tuple(dict.fromkeys(chosen))


def _asked(host: Host, catalogue: Catalogue) -> tuple[Resolution | None, str]:
    """(the resolver's answer, None without a GPU; why it could not be asked). The release and Python are checked."""
    if not host.gpus:
        return None, ""
    try:
        return resolve(_machine(host, catalogue), catalogue), ""
    except BadRequest as error:
        return None, str(error)


def _accel(
    facts: Facts, wishes: Wishes, answer: Resolution | None, gpus: tuple[Gpu, ...], fault: str
) -> tuple[str, list[str]]:
    """gpu, gpu-cdi or cpu, and the sentences that say why."""
    if wishes.accel != "auto":
        return wishes.accel, [f"accelerator {wishes.accel}, as asked for."]
    if wishes.build == "cpu":
        return "cpu", ["the CPU, because TORCH_BUILD=cpu was asked for."]
    if facts.gpus and not gpus:
        return "cpu", [f"the CPU, because CUDA_VISIBLE_DEVICES={wishes.devices} hides every GPU."]
    if answer is None:
        return "cpu", [_no_gpu(facts, fault)]
    if answer.status == "impossible" and not wishes.build:
        return "cpu", [
            f"the CPU, because {answer.reasons[0]}",
            *(f"to use the GPU: {text}" for text in answer.advice[:1]),
        ]
    engine = facts.docker
    if "nvidia" in engine.runtimes:
        return "gpu", []
    if has_cdi(facts):
        return "gpu-cdi", ["the engine hands out the GPU by CDI."]
    if engine.kind == "podman":  # it has no runtimes to fall back on
        return "cpu", _no_toolkit(facts)
    if engine.kind == "desktop" and facts.system == "linux":
        return "cpu", _no_toolkit(facts)
    if engine.kind == "desktop" or facts.hook:
        return "gpu", []
    if facts.toolkit:  # it may be set up for an engine that could not be asked; if not, the container will not start
        finding = doctor.engine_finding(facts)
        return "gpu", [f"{finding.cause}; if the container does not start: {finding.command}"]
    return "cpu", _no_toolkit(facts)


def _no_gpu(facts: Facts, fault: str) -> str:
    """Why no GPU can be asked about: a broken driver is named, a machine without one is left in peace."""
    findings = doctor.driver_findings(facts)
    if findings:
        command = f": {findings[0].command}" if findings[0].command else "."
        return f"the CPU, because {findings[0].cause}{command}"
    if fault:
        return f"the CPU, because no torch build can be chosen for the GPU: {fault}"
    if facts.smi.state not in {"missing", "no-devices"}:
        return "the CPU, because nvidia-smi lists no GPU: see what it says."
    return "no NVIDIA GPU here: the CPU trains."


def _no_toolkit(facts: Facts) -> list[str]:
    finding = doctor.engine_finding(facts)
    said = [f"the CPU, because {finding.cause}: {finding.consequence}."]
    return said + ([f"to use the GPU: {finding.command}"] if finding.command else [])


def _remarks(answer: Resolution) -> list[str]:
    return [*answer.warnings, *(str(one["reason"]) for one in answer.excluded)]


def _named(catalogue: Catalogue, machine: str, torch: str, name: str) -> Build:
    return next(build for build in catalogue.builds[machine] if (build.torch, build.name) == (torch, name))


def _machine(host: Host, catalogue: Catalogue) -> Host:
    if host.machine not in catalogue.builds:
        raise BadRequest(f"there are no torch wheels for Linux containers on {host.machine}: use x86_64 or aarch64.")
    return host


def _cpu_build(host: Host, catalogue: Catalogue) -> Build:
    torch = host.torch if host.torch != "auto" else catalogue.newest(_machine(host, catalogue).machine, host.python)
    if torch is None:
        raise BadRequest(
            f"no torch release has wheels for Python {host.python}: choose another Python for the project."
        )
    return catalogue.cpu_build(torch, _machine(host, catalogue).machine)


def _wished_build(name: str, host: Host, catalogue: Catalogue) -> Build:
    """The build of that name: the newest release that has it and runs here, else simply the newest."""
    machine = _machine(host, catalogue).machine
    fits = catalogue.of_release(machine, host.torch) & catalogue.for_python(machine, host.python)
    builds = [build for build in catalogue.members(machine, fits) if build.name == name]
    if not builds:
        known = sorted({build.name for build in catalogue.members(machine, fits)})
        there = f"it has {', '.join(known)} and cpu" if known else "it has cpu"
        what = f"torch {host.torch}" if host.torch != "auto" else "torch"
        raise BadRequest(f"TORCH_BUILD={name} is not published for {what} on {machine}: {there}.")
    if host.gpus:
        return next((build for build in builds if _runs(build, host, catalogue)), builds[0])
    return builds[0]


def _runs(build: Build, host: Host, catalogue: Catalogue) -> bool:
    return catalogue.runs(build, host.machine, host.os, host.driver, [(g.capability, g.name) for g in host.gpus])


def _plain_build(host: Host, catalogue: Catalogue) -> Build:
    machine = _machine(host, catalogue).machine
    fits = catalogue.of_release(machine, host.torch) & catalogue.for_python(machine, host.python)
    return catalogue.best(machine, fits) if fits else _cpu_build(host, catalogue)


def _summary(facts: Facts, gpus: tuple[Gpu, ...], decision: Decision) -> str:
    where = decision.index_url or "default package index"
    what = f"torch {decision.build.torch}+{decision.build.name}"
    if decision.accel == "cpu":
        return f"{what} on the CPU ({where})"
    if not gpus:
        return f"{what} on the GPU ({where})"
    names = ", ".join(counted([gpu.name for gpu in gpus]))
    only = f", CUDA_VISIBLE_DEVICES={decision.devices}" if decision.devices else ""
    return f"{names}, driver {facts.driver or 'unknown'} -> {what} on the GPU{only} ({where})"
