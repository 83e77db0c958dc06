"""The command that mends something on this host, by its distribution, and where to read on."""

from __future__ import annotations

from .probe import Facts

GUIDE = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/"
LINKS = {
    "driver": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
    "debian-driver": "https://wiki.debian.org/NvidiaGraphicsDrivers",
    "secure-boot": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/secure-boot.html",
    "mig": "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/",
    "jetson": "https://docs.nvidia.com/deeplearning/frameworks/install-pytorch-jetson-platform/",
    "lost": GUIDE + "troubleshooting.html",
    "windows": "https://www.nvidia.com/en-us/drivers/",
    "wsl": "https://docs.nvidia.com/cuda/wsl-user-guide/",
    "branch": "https://www.nvidia.com/en-us/drivers/unix/",
    "xid": "https://docs.nvidia.com/deploy/xid-errors/",
    "capability": "https://developer.nvidia.com/cuda-gpus",
    "compatibility": "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
    "toolkit": GUIDE + "install-guide.html",
    "cdi": GUIDE + "cdi-support.html",
    "advisories": "https://www.nvidia.com/en-us/security/",
    "docker": "https://docs.docker.com/engine/install/",
    "desktop": "https://docs.docker.com/desktop/",
    "integration": "https://docs.docker.com/desktop/features/wsl/",
    "podman": "https://podman.io/docs/installation",
    "rootless": "https://docs.docker.com/engine/security/rootless/",
    "userns": "https://docs.docker.com/engine/security/userns-remap/",
    "context": "https://docs.docker.com/engine/manage-resources/contexts/",
    "wslconfig": "https://learn.microsoft.com/windows/wsl/wsl-config",
    "docker-group": "https://docs.docker.com/engine/install/linux-postinstall/",
    "neighbours": "https://docs.docker.com/engine/network/port-publishing/",
    "daemon": "https://docs.docker.com/engine/daemon/troubleshoot/",
    "compose": "https://docs.docker.com/compose/install/linux/",
    "compose-memory": "https://docs.docker.com/engine/containers/resource_constraints/",
    "cgroup": "https://www.freedesktop.org/software/systemd/man/latest/systemd.resource-control.html",
    "env": "https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/",
    "shm": "https://docs.docker.com/reference/compose-file/services/#shm_size",
    "ports": "https://docs.docker.com/reference/compose-file/services/#ports",
    "prune": "https://docs.docker.com/engine/manage-resources/pruning/",
    "ca": "https://docs.docker.com/build/building/secrets/",
}


def family(facts: Facts) -> str:
    """How software is installed here: ubuntu, debian, fedora, rhel, suse, arch, wsl2, macos, windows or unknown."""
    if facts.system != "linux":
        return facts.system
    return linux_family(facts)


def linux_family(facts: Facts) -> str:
    """The family of the Linux distribution, under WSL2 too, by ID and then ID_LIKE of os-release."""
    for name in (facts.distribution.id, *facts.distribution.like):
        if name in _FAMILIES:
            return _FAMILIES[name]
    return "unknown"


_FAMILIES = {
    "ubuntu": "ubuntu", "pop": "ubuntu", "linuxmint": "ubuntu", "debian": "debian",
    "fedora": "fedora",
    "rhel": "rhel", "centos": "rhel", "rocky": "rhel", "almalinux": "rhel", "ol": "rhel", "amzn": "rhel",
    "opensuse": "suse", "opensuse-leap": "suse", "opensuse-tumbleweed": "suse", "sles": "suse", "suse": "suse",
    "arch": "arch", "manjaro": "arch",
}  # fmt: skip

# Where a driver comes from: Ubuntu's archive; Debian's own (12 carries 535, 13 carries 550: both know Maxwell to Ada),
# or NVIDIA's repository where something newer is needed; RPM Fusion; NVIDIA's repository and its driver installation
# guide (RHEL); openSUSE's and Arch's own. No command restarts the machine: others may be training on it.
_CUDA = "https://developer.download.nvidia.com/compute/cuda/repos/"
_NON_FREE = (
    "sudo sed -i -E '/^(deb |Components:)/ s/ main.*/ main contrib non-free non-free-firmware/'"
    " $(ls /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null) && sudo apt-get update"
)
_RPM_FUSION = (
    "sudo dnf install -y https://mirrors.rpmfusion.org/free/fedora/rpmfusion-free-release-$(rpm -E %fedora).noarch.rpm"
    " https://mirrors.rpmfusion.org/nonfree/fedora/rpmfusion-nonfree-release-$(rpm -E %fedora).noarch.rpm"
)
_RHEL_CUDA = (
    "sudo dnf install -y https://dl.fedoraproject.org/pub/epel/epel-release-latest-$(rpm -E %rhel).noarch.rpm"
    f" && sudo dnf config-manager --add-repo {_CUDA}rhel$(rpm -E %rhel)/$(uname -m)/cuda-rhel$(rpm -E %rhel).repo"
)
_SUSE_NVIDIA = (
    "sudo zypper install -y openSUSE-repos-$(. /etc/os-release; [ $ID = opensuse-tumbleweed ] && echo Tumbleweed"
    " || echo Leap)-NVIDIA && sudo zypper --gpg-auto-import-keys refresh"
)
_DRIVER = {
    "ubuntu": "sudo ubuntu-drivers install",
    "debian": f"{_NON_FREE} && sudo apt-get install -y linux-headers-$(uname -r) nvidia-driver",
    "fedora": f"{_RPM_FUSION} && sudo dnf install -y akmod-nvidia xorg-x11-drv-nvidia-cuda && sudo akmods --force",
    "rhel": f"{_RHEL_CUDA} && sudo dnf module enable -y nvidia-driver:open-dkms && sudo dnf install -y nvidia-open",
    "rhel10": f"{_RHEL_CUDA} && sudo dnf install -y nvidia-open",
    "suse": f"{_SUSE_NVIDIA} && sudo zypper install -y nvidia-open-driver-G06-signed-kmp-meta nvidia-compute-utils-G06",
    "arch": "sudo pacman -Syu --needed linux-headers nvidia-open nvidia-utils",
}
_DRIVER_580 = {  # the last branch for Maxwell, Pascal and Volta, which the open kernel modules do not know either
    "ubuntu": "sudo apt-get update && sudo apt-get install -y nvidia-driver-580",
    "debian": _DRIVER["debian"],
    "fedora": f"{_RPM_FUSION} && sudo dnf install -y akmod-nvidia-580xx xorg-x11-drv-nvidia-580xx-cuda"
    " && sudo akmods --force",
    "rhel": f"{_RHEL_CUDA} && sudo dnf module enable -y nvidia-driver:580-dkms && sudo dnf install -y cuda-drivers",
    "rhel10": f"{_RHEL_CUDA} && sudo dnf install -y 'dnf-command(versionlock)' && sudo dnf versionlock add"
    " '*nvidia*580*' && sudo dnf install -y cuda-drivers",
    "suse": f"{_SUSE_NVIDIA} && sudo zypper install -y nvidia-driver-G06-kmp-meta nvidia-compute-utils-G06",
    "arch": "sudo pacman -S --needed linux-headers && yay -S nvidia-580xx-dkms nvidia-580xx-utils   # from the AUR",
}
_DEBIAN_NEWEST = (
    f"curl -fsSLO {_CUDA}debian$(. /etc/os-release; echo $VERSION_ID)/$(uname -m)/cuda-keyring_1.1-1_all.deb"
    " && sudo dpkg -i cuda-keyring_1.1-1_all.deb && sudo apt-get update"
    " && sudo apt-get install -y linux-headers-$(uname -r) nvidia-open"
)
_LOAD = {  # a driver that is installed: build its module for the kernel that runs, and load it
    "ubuntu": "sudo apt-get install -y linux-headers-$(uname -r) && sudo dkms autoinstall && sudo modprobe nvidia",
    "debian": "sudo apt-get install -y linux-headers-$(uname -r) && sudo dkms autoinstall && sudo modprobe nvidia",
    "fedora": "sudo akmods --force && sudo modprobe nvidia",
    "rhel": "sudo dnf install -y kernel-devel-$(uname -r) && sudo dkms autoinstall && sudo modprobe nvidia",
    "suse": "sudo modprobe nvidia",
    "arch": "sudo pacman -S --needed linux-headers && sudo modprobe nvidia",
}
_ENROL = {  # the key with which the distribution's tools sign modules that are built here
    "ubuntu": "sudo update-secureboot-policy --enroll-key",
    "debian": "sudo mokutil --import /var/lib/dkms/mok.pub",
    "fedora": "sudo kmodgenca -a && sudo mokutil --import /etc/pki/akmods/certs/public_key.der && sudo akmods --force",
    "rhel": "sudo mokutil --import /var/lib/dkms/mok.pub",
}
_SMI = {
    "ubuntu": "sudo apt-get install -y nvidia-utils-$(cut -d. -f1 /sys/module/nvidia/version)",
    "debian": "sudo apt-get install -y nvidia-smi",
    "fedora": "sudo dnf install -y xorg-x11-drv-nvidia-cuda",
    "rhel": "sudo dnf install -y nvidia-driver-cuda",
    "suse": "sudo zypper install -y nvidia-compute-utils-G06",
    "arch": "sudo pacman -S --needed nvidia-utils",
}
_INITRAMFS = {
    "ubuntu": "sudo update-initramfs -u",
    "debian": "sudo update-initramfs -u",
    "fedora": "sudo dracut --force",
    "rhel": "sudo dracut --force",
    "suse": "sudo dracut --force",
    "arch": "sudo mkinitcpio -P",
}

_REPOSITORY = "https://nvidia.github.io/libnvidia-container/"
_KEYRING = "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
_APT_TOOLKIT = (
    f"curl -fsSL {_REPOSITORY}gpgkey | sudo gpg --dearmor --yes -o {_KEYRING}"
    f" && curl -fsSL {_REPOSITORY}stable/deb/nvidia-container-toolkit.list"
    f" | sed 's#deb #deb [signed-by={_KEYRING}] #'"
    " | sudo tee /etc/apt/sources.list.d/nvidia-container-toolkit.list"
    " && sudo apt-get update && sudo apt-get install -y nvidia-container-toolkit"
)
_RPM_TOOLKIT = f"curl -fsSL {_REPOSITORY}stable/rpm/nvidia-container-toolkit.repo"
_DNF_TOOLKIT = (
    f"{_RPM_TOOLKIT} | sudo tee /etc/yum.repos.d/nvidia-container-toolkit.repo"
    " && sudo dnf install -y nvidia-container-toolkit"
)
_TOOLKIT = {
    "ubuntu": _APT_TOOLKIT,
    "debian": _APT_TOOLKIT,
    "fedora": _DNF_TOOLKIT,
    "rhel": _DNF_TOOLKIT,
    "suse": f"sudo zypper ar {_REPOSITORY}stable/rpm/nvidia-container-toolkit.repo"
    " && sudo zypper --gpg-auto-import-keys install -y nvidia-container-toolkit",
    "arch": "sudo pacman -S --needed nvidia-container-toolkit",
}
_APT_UPGRADE = (
    "sudo apt-get update && sudo apt-get install -y --only-upgrade 'nvidia-container-toolkit*' 'libnvidia-container*'"
)
_UPGRADE_TOOLKIT = {
    "ubuntu": _APT_UPGRADE,
    "debian": _APT_UPGRADE,
    "fedora": "sudo dnf upgrade -y 'nvidia-container-toolkit*' 'libnvidia-container*'",
    "rhel": "sudo dnf upgrade -y 'nvidia-container-toolkit*' 'libnvidia-container*'",
    "suse": "sudo zypper update -y nvidia-container-toolkit",
    "arch": "sudo pacman -Syu nvidia-container-toolkit",
}
_DOCKER = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker.io docker-compose-v2 docker-buildx",
    "debian": "curl -fsSL https://get.docker.com | sudo sh",
    "fedora": "sudo dnf install -y moby-engine docker-compose docker-buildx && sudo systemctl enable --now docker",
    "rhel": "sudo dnf config-manager --add-repo https://download.docker.com/linux/rhel/docker-ce.repo"
    " && sudo dnf install -y docker-ce docker-compose-plugin docker-buildx-plugin"
    " && sudo systemctl enable --now docker",
    "suse": "sudo zypper install -y docker docker-compose docker-buildx && sudo systemctl enable --now docker",
    "arch": "sudo pacman -S --needed docker docker-compose docker-buildx && sudo systemctl enable --now docker",
    "macos": "brew install --cask docker",
    "windows": "winget install Docker.DockerDesktop",
}
_UPGRADE_DOCKER = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y --only-upgrade docker.io",
    "debian": _DOCKER["debian"],  # Debian keeps the version that it was released with
    "fedora": "sudo dnf upgrade -y moby-engine docker-cli",
    "rhel": "sudo dnf upgrade -y docker-ce docker-ce-cli",
    "suse": "sudo zypper update -y docker",
    "arch": "sudo pacman -Syu docker",
}
_COMPOSE = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker-compose-v2",
    "debian": "curl -fsSL https://get.docker.com | sudo sh",  # Debian 12 has only the first generation
    "fedora": "sudo dnf install -y docker-compose",
    "rhel": "sudo dnf install -y docker-compose-plugin",
    "suse": "sudo zypper install -y docker-compose",
    "arch": "sudo pacman -S --needed docker-compose",
}


def driver(facts: Facts, legacy: bool = False, newest: bool = False) -> tuple[str, str]:
    """(command, link) that installs a driver: the last branch for old GPUs if `legacy`; `newest` asks for 570 or later.

    Under WSL2 and Windows the driver is that of Windows and is installed there, by hand.
    """
    if facts.system in {"wsl2", "windows"}:
        return ("wsl.exe --shutdown" if facts.system == "wsl2" else ""), LINKS["windows"]
    name = family(facts)
    if name == "debian" and newest and not legacy:
        return _DEBIAN_NEWEST, LINKS["driver"]
    if name == "rhel" and facts.distribution.version.partition(".")[0] == "10":
        name = "rhel10"
    link = "debian-driver" if name == "debian" else "branch" if legacy else "driver"
    return (_DRIVER_580 if legacy else _DRIVER).get(name, ""), LINKS[link]


def load_driver(facts: Facts) -> str:
    """Builds and loads the module of a driver that is installed."""
    return _LOAD.get(family(facts), "sudo modprobe nvidia")


def enrol_key(facts: Facts) -> str:
    """Lets Secure Boot accept the modules that this distribution's tools sign."""
    return _ENROL.get(family(facts), "mokutil --sb-state")


def smi_package(facts: Facts) -> str:
    """Installs nvidia-smi beside a driver that is there."""
    return _SMI.get(family(facts), "")


def without_nouveau(facts: Facts) -> str:
    """Keeps the free driver from being loaded, for a host whose NVIDIA driver is installed already."""
    rebuild = _INITRAMFS.get(family(facts))
    if not rebuild:
        return ""
    lines = r"'blacklist nouveau\noptions nouveau modeset=0\n'"
    return f"printf {lines} | sudo tee /etc/modprobe.d/no-nouveau.conf && {rebuild}"


def toolkit(facts: Facts) -> str:
    """Installs the NVIDIA Container Toolkit and makes the engine know it."""
    install = _TOOLKIT.get(linux_family(facts), "")
    return f"{install} && {toolkit_setup(facts)}" if install else ""


def toolkit_setup(facts: Facts) -> str:
    """Makes the engine know the toolkit that is installed."""
    docker = facts.docker
    if docker.kind == "podman":
        return "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    if docker.rootless:
        return (
            "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json"
            " && systemctl --user restart docker"
            " && sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place"
        )
    return "sudo nvidia-ctk runtime configure --runtime=docker && " + restart_docker(facts)


def toolkit_upgrade(facts: Facts) -> str:
    """Brings a newer toolkit."""
    return _UPGRADE_TOOLKIT.get(linux_family(facts), "")


def restart_docker(facts: Facts) -> str:
    """Restarts, or starts, the daemon."""
    if facts.system in {"macos", "windows"}:
        return {"macos": "open -a Docker", "windows": "Start-Process 'Docker Desktop'"}[facts.system]
    if facts.docker.root.startswith("/var/snap/"):
        return "sudo snap restart docker"
    if facts.docker.rootless or "/run/user/" in facts.endpoint:
        return "systemctl --user restart docker"
    if facts.system == "wsl2" and facts.desktop_installed and not facts.dockerd:
        return "'/mnt/c/Program Files/Docker/Docker/Docker Desktop.exe' &"
    # under WSL2 without systemd only `service` works, and where both work it does the same
    return "sudo service docker restart" if facts.system == "wsl2" else "sudo systemctl restart docker"


def docker(facts: Facts) -> tuple[str, str]:
    """(command, link) that installs a container engine with Compose and buildx."""
    name = linux_family(facts) if facts.system == "wsl2" else family(facts)
    return _DOCKER.get(name, ""), LINKS["desktop" if name in {"macos", "windows"} else "docker"]


def docker_upgrade(facts: Facts) -> str:
    """Brings a newer engine, from where the one that is here came from."""
    name = linux_family(facts)
    if facts.docker.root.startswith("/var/snap/"):
        return "sudo snap refresh docker"
    if facts.docker_repository and name in {"ubuntu", "debian"}:
        return "sudo apt-get update && sudo apt-get install -y --only-upgrade docker-ce docker-ce-cli"
    return _UPGRADE_DOCKER.get(name, "")


def compose(facts: Facts) -> str:
    """Installs Compose 2, from where the engine came from: Docker's own repository or the distribution's."""
    if facts.system == "macos":
        return "brew install docker-compose"
    name = linux_family(facts) if facts.system == "wsl2" else family(facts)
    if facts.docker_repository and name in {"ubuntu", "debian"}:
        return "sudo apt-get update && sudo apt-get install -y docker-compose-plugin"
    return _COMPOSE.get(name, "")
