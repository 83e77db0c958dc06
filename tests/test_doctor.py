"""Findings: the right cause and the command for the host at hand."""

import io
import json
import shlex

import pytest
from hosts import CATALOGUE, facts, gpu, slice_uuid

from generator.hostkit import doctor, engine_checks, remedies, report
from generator.hostkit.engine import Docker, Running
from generator.hostkit.finding import Finding
from generator.hostkit.nvidia import Card, Slice, Smi
from generator.hostkit.probe import Distribution
from generator.hostkit.wishes import Wishes

UBUNTU = Distribution("ubuntu", ("debian",), "24.04", "Ubuntu 24.04.3 LTS")
WSL = {"system": "wsl2", "distribution": UBUNTU, "wsl_driver": True, "module": "", "cards": ()}
CARD = (Card("0000:01:00.0", 0x2684),)
FAMILIES = {
    "ubuntu": UBUNTU,
    "debian": Distribution("debian", (), "12", "Debian GNU/Linux 12"),
    "mint": Distribution("linuxmint", ("ubuntu", "debian"), "22", "Linux Mint 22"),
    "fedora": Distribution("fedora", (), "43", "Fedora Linux 43"),
    "rocky": Distribution("rocky", ("rhel", "centos", "fedora"), "9.4", "Rocky Linux 9.4"),
    "leap": Distribution("opensuse-leap", ("suse", "opensuse"), "15.6", "openSUSE Leap 15.6"),
    "endeavour": Distribution("endeavouros", ("arch",), "", "EndeavourOS"),
}


def examine(case, torch="auto", python=""):
    return doctor.examine(case, doctor.resolution(case, CATALOGUE, torch, python), CATALOGUE, torch, python)


def failing(case, torch="auto"):
    return {finding.id: finding for finding in examine(case, torch) if finding.level in {"fail", "warn"}}


def test_a_healthy_workstation():
    findings = examine(facts("4090"))
    assert {finding.level for finding in findings} <= {"ok", "skip"}
    assert doctor.exit_status(findings) == 0
    assert len({finding.id for finding in findings}) == len(findings)


def test_a_laptop_without_a_gpu_is_no_failure():
    findings = examine(facts())
    assert doctor.exit_status(findings) == 0
    assert [finding.id for finding in findings if finding.level == "warn"] == ["gpu.none"]


def test_a_mac_is_calm():
    findings = examine(facts(system="macos", machine="aarch64", docker=Docker("ok", kind="desktop", version="28")))
    assert {finding.level for finding in findings} <= {"ok", "skip"}


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("ubuntu", "ubuntu-drivers install"),
        ("mint", "ubuntu-drivers install"),
        ("debian", "apt-get install -y linux-headers-$(uname -r) nvidia-driver"),
        ("fedora", "dnf install -y akmod-nvidia"),
        ("rocky", "dnf install -y nvidia-open"),
        ("leap", "zypper install -y nvidia-open"),
        ("endeavour", "pacman -Syu --needed linux-headers nvidia-open"),
    ],
)
def test_a_card_without_a_driver(family, command):
    case = facts(distribution=FAMILIES[family], cards=CARD)
    finding = failing(case)["driver.missing"]
    assert finding.level == "fail"
    assert "0000:01:00.0" in finding.cause
    assert command in finding.command
    assert doctor.exit_status(examine(case)) == 1


def test_an_unknown_distribution_gets_a_link_and_no_guess():
    finding = failing(facts(distribution=Distribution("plan9"), cards=CARD))["driver.missing"]
    assert (finding.command, finding.link[:8]) == ("", "https://")


def test_a_driver_without_its_tool():
    found = failing(facts(cards=CARD, module="580.95.05"))
    assert "nvidia-smi is not installed" in found["driver.missing"].cause


@pytest.mark.parametrize(
    ("state", "check", "command"),
    [
        ("hangs", "driver.hangs", "dmesg"),
        ("mismatch", "nvml.mismatch", "sudo reboot"),
        ("lost", "gpu.bus", "dmesg"),
        ("no-driver", "driver.missing", "dkms autoinstall && sudo modprobe nvidia"),
        ("permission", "driver.permission", "nvidia-modprobe"),
        ("failed", "driver.missing", "nvidia-smi"),
        ("blocked", "driver.missing", "nvidia-smi"),
        ("unreadable", "driver.unreadable", "nvidia-smi --query-gpu"),
        ("no-devices", "driver.missing", "dmesg"),
    ],
)
def test_a_broken_driver_is_one_finding(state, check, command):
    engine = facts("4090").docker
    found = failing(facts(smi=Smi(state), module="580.95.05", cards=CARD, docker=engine))
    assert [finding.id for finding in found.values() if finding.level == "fail"] == [check]
    assert command in found[check].command


@pytest.mark.parametrize("state", ["unreadable", "failed", "hangs", "blocked"])
def test_no_answer_is_not_the_answer_that_there_is_no_gpu(state):
    findings = {finding.id: finding for finding in examine(facts(smi=Smi(state, "\x1b" * 400)))}
    assert findings["gpu.none"].level == "skip"
    assert any(finding.level == "fail" and finding.id.startswith("driver") for finding in findings.values())
    assert "\x1b" not in report.as_text(doctor.grouped(list(findings.values())))
    assert all(len(finding.cause) < 300 for finding in findings.values())


def test_no_devices_and_no_card_is_calm():
    assert [finding.level for finding in examine(facts(smi=Smi("no-devices"))) if finding.level == "fail"] == []


def test_a_driver_that_names_no_version():
    case = facts("4090", driver="")
    assert doctor.resolution(case, CATALOGUE) is None
    assert list(failing(case)) == ["driver.unreadable"]
    odd = case._replace(smi=case.smi._replace(driver="580.95.05", gpus=(gpu("4090", 0, "8"),)))
    assert "'8' is not of the form 8.6" in failing(odd)["gpu.arch"].cause


@pytest.mark.parametrize(("compose", "toolkit", "docker"), [("9" * 5000, "unknown", "²8.1"), ("²", "", "9" * 5000)])
def test_versions_that_are_none_are_no_fault_of_ours(compose, toolkit, docker):
    case = facts("4090", compose=compose, toolkit=toolkit, cdi=("/etc/cdi/nvidia.yaml",))
    examine(case._replace(docker=case.docker._replace(version=docker, runtimes=())))
    assert engine_checks.has_cdi(case._replace(docker=case.docker._replace(version=docker)))


def test_names_from_the_host_are_written_out():
    odd = gpu("4090")._replace(name="RTX\x1b[31m\n\u2028")
    case = facts("4090")
    case = case._replace(smi=case.smi._replace(gpus=(odd,)))
    for text in (report.as_text(doctor.grouped(examine(case)), colour=False), "".join(summary(case))):
        assert "RTX\\x1b[31m" in text
        assert not set(text) & set("\x1b\u2028")


def test_an_old_driver():
    finding = failing(facts("3090", driver="470.256.02"), "2.8.0")["driver.too-old"]
    assert finding.level == "fail"
    assert "525.60.13" in finding.cause
    assert "ubuntu-drivers" in finding.command


def test_an_old_driver_of_an_old_card_asks_for_the_580_branch():
    finding = failing(facts("1080", driver="470.256.02"), "2.8.0")["driver.too-old"]
    assert "nvidia-driver-580" in finding.command


def test_a_driver_that_forgot_the_card():
    found = failing(facts("1080", driver="610.43.02"), "2.8.0")
    assert "nvidia-driver-580" in found["driver.too-new"].command
    assert "driver.too-old" not in found


def test_a_card_that_the_release_does_not_know():
    found = failing(facts("5090"), "2.6.0")
    assert found["gpu.arch"].level == "fail"
    assert "sm_90" in found["gpu.arch"].cause


def test_cards_that_cannot_be_served_together_are_a_warning():
    found = failing(facts("1080 Ti", "5090", driver="580.95.05"), "2.8.0")
    assert found["gpu.arch"].level == "warn"
    assert "GPU 1" in found["gpu.arch"].consequence


@pytest.mark.parametrize(
    ("docker", "check", "command"),
    [
        (Docker("missing"), "docker.missing", "docker"),
        (Docker("down"), "docker.down", "systemctl restart docker"),
        (Docker("hangs"), "docker.down", "systemctl restart docker"),
        (Docker("failed", "odd"), "docker.down", "systemctl restart docker"),
        (Docker("permission"), "docker.permission", "usermod -aG docker"),
    ],
)
def test_an_engine_that_does_not_serve(docker, check, command):
    found = failing(facts("4090", docker=docker))
    assert list(found) == [check]
    assert found[check].level == "fail"
    assert command in found[check].command


@pytest.mark.parametrize(
    ("compose", "level"),
    [
        ("", "fail"),
        ("1.29.2", "fail"),
        ("2.6.0", "warn"),
        ("2.17.0", "ok"),
        ("2.26.1-4", "ok"),
        ("5.0.1", "ok"),
        ("dev", "ok"),
    ],
)
def test_compose(compose, level):
    findings = {finding.id: finding.level for finding in examine(facts(compose=compose))}
    assert findings["compose.old"] == level or compose == "dev"


PLAIN = Docker("ok", version="28.3.0", runtimes=("runc",))


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("ubuntu", "signed-by"),
        ("fedora", "yum.repos.d"),
        ("rocky", "dnf install -y nvidia-container-toolkit"),
        ("leap", "zypper ar"),
        ("endeavour", "pacman -S"),
    ],
)
def test_no_toolkit(family, command):
    found = failing(facts("4090", docker=PLAIN, toolkit="", distribution=FAMILIES[family]))
    assert list(found) == ["toolkit.missing"]
    assert command in found["toolkit.missing"].command
    assert found["toolkit.missing"].command.endswith("systemctl restart docker")


def test_toolkit_that_the_engine_does_not_know():
    found = failing(facts("4090", docker=PLAIN))
    assert list(found) == ["toolkit.runtime"]
    assert found["toolkit.runtime"].command.startswith("sudo nvidia-ctk runtime configure --runtime=docker")
    rootless = failing(facts("4090", docker=PLAIN._replace(rootless=True)))["toolkit.runtime"]
    assert "systemctl --user restart docker" in rootless.command
    podman = failing(facts("4090", docker=PLAIN._replace(kind="podman")))["toolkit.runtime"]
    assert "nvidia-ctk cdi generate" in podman.command


def test_cdi_is_enough():
    on = PLAIN._replace(cdi_directories=("/etc/cdi",))
    assert not failing(facts("4090", docker=on, cdi=("/etc/cdi/nvidia.yaml",)))
    off = failing(facts("4090", docker=PLAIN, cdi=("/etc/cdi/nvidia.yaml",)))
    assert list(off) == ["toolkit.cdi-only"]
    assert "--cdi.enabled" in off["toolkit.cdi-only"].command


def test_cdi_files_do_not_help_an_engine_that_knows_no_cdi():
    old = PLAIN._replace(version="24.0.7")
    assert not engine_checks.has_cdi(facts("4090", docker=old, cdi=("/etc/cdi/nvidia.yaml",)))


def test_docker_desktop_needs_no_toolkit():
    desktop = PLAIN._replace(kind="desktop")
    assert not failing(facts("4090", driver="581.60", docker=desktop, toolkit="", **WSL))
    on_linux = only(facts("4090", docker=desktop, toolkit=""))
    assert "virtual machine" in on_linux.cause
    assert on_linux.command == "docker context use default"


def test_a_toolkit_with_a_known_hole():
    finding = failing(facts("4090", toolkit="1.17.8"))["toolkit.vulnerable"]
    assert (finding.level, "1.19.1" in finding.cause) == ("warn", True)
    assert "CVE-" in finding.consequence
    assert not failing(facts("4090", toolkit="unknown"))


@pytest.mark.parametrize(
    ("cards", "docker_free", "project_free", "level"),
    [
        (["4090"], 9, None, "fail"),
        (["4090"], 20, None, "warn"),
        (["4090"], 100, 1, "warn"),
        (["4090"], 100, 100, "ok"),
        (["4090"], None, 100, "ok"),
        (["4090"], None, None, "skip"),
        ([], 3, None, "fail"),
        ([], 5, None, "warn"),
        ([], 9, None, "ok"),
    ],
)
def test_disk(cards, docker_free, project_free, level):
    docker_free, project_free = (gib and gib << 30 for gib in (docker_free, project_free))
    findings = {f.id: f for f in examine(facts(*cards, docker_free=docker_free, project_free=project_free))}
    assert findings["disk.space"].level == level
    assert (
        "takes up to" not in findings["disk.space"].consequence
        or f"{25 if cards else 8} GiB" in findings["disk.space"].consequence
    )


def test_a_proxy_without_certificates():
    plain = {finding.id: finding for finding in examine(facts("4090", proxy="http://proxy:3128"))}["proxy.ca"]
    assert (plain.level, "EXTRA_CA_CERTS" in plain.cause) == ("ok", True)  # most proxies leave TLS alone
    opened = only(facts("4090", proxy="http://proxy:3128", certificate_hint="/opt/corp/ca.pem"), "warn")
    assert "EXTRA_CA_CERTS=/opt/corp/ca.pem" in opened.command
    assert not failing(facts("4090", certificate_hint="/opt/corp/ca.pem", certificates=2))


def test_wsl():
    wsl = {"system": "wsl2", "module": ""}
    assert not failing(facts("4090", driver="581.60", **wsl))
    blocked = failing(facts(**wsl, smi=Smi("blocked"), wsl_driver=True))
    assert blocked["wsl"].command == "wsl.exe --shutdown"
    assert "wsl.exe --update" in failing(facts(**wsl, wsl_driver=True))["driver.missing"].command
    old = failing(facts("4090", driver="470.05", **wsl), "2.8.0")["driver.too-old"]
    assert "in Windows" in old.consequence
    assert "apt" not in old.command


def test_everything_is_said_in_one_line_each():
    for case in (
        facts("4090"),
        facts(),
        facts("1080", driver="610.43.02"),
        facts("4090", docker=Docker("failed", "a b")),
    ):
        for finding in examine(case):
            assert "\n" not in "".join(finding)
            assert finding.level in {"ok", "warn", "fail", "skip"}
            if finding.level == "fail":
                assert finding.cause
                assert finding.consequence
                assert finding.command or finding.link


def test_text_names_every_check_once():
    findings = examine(facts("4090", docker=Docker("down")))
    lines = report.as_text(doctor.grouped(findings)).splitlines()
    for finding in findings:
        assert sum(f" {finding.id} " in f"{line} ".replace(",", " ") for line in lines) == 1
    assert lines[-1].startswith("1 failed")
    assert "\033" not in "\n".join(lines)
    assert "\033" in report.as_text(doctor.grouped(findings), colour=True)


def test_both_doctors_say_the_same_of_a_check():
    """Two copies, because the host's Python may be 3.8 and the container does not see .devcontainer everywhere."""
    from lab import doctor_finding

    assert doctor_finding.Finding._fields == Finding._fields
    assert doctor_finding.Finding.__doc__ == Finding.__doc__


def test_json_is_the_same_objects():
    findings = examine(facts("4090"))
    assert [Finding(**row) for row in json.loads(report.as_json(findings))] == findings
    assert set(json.loads(report.as_json(findings))[0]) == {"id", "level", "cause", "consequence", "command", "link"}


def test_colour(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert report.colour_wanted(Terminal())
    assert not report.colour_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not report.colour_wanted(Terminal())


def summary(case, torch="2.8.0"):
    answer = doctor.resolution(case, CATALOGUE, torch, "3.11")
    return report.summary(case, answer, doctor.examine(case, answer, CATALOGUE, torch, "3.11"))


def test_summary_for_the_end_of_a_generation():
    lines = summary(facts("4090", "4090"))
    assert lines[0] == "GPU     2x NVIDIA GeForce RTX 4090, driver 570.86.10"
    assert lines[1] == "torch   2.8.0+cu128 (default package index)"


def test_summary_says_what_fails_and_how_to_mend_it():
    lines = summary(facts("1080", driver="610.43.02", docker=Docker("missing")))
    assert any("580 is the last branch" in line for line in lines)
    assert sum(line.strip().startswith("$ sudo apt-get") for line in lines) == 2  # the 580 driver, and Docker
    assert "none found" in summary(facts())[0]


@pytest.mark.parametrize("cards", [[], ["4090"], ["1080 Ti", "5090"], ["1080", "970", "K80", "5090"]])
@pytest.mark.parametrize("docker", [Docker("missing"), Docker("skipped"), PLAIN])
def test_summary_is_short(cards, docker):
    case = facts(*cards, driver="580.95.05", docker=docker, toolkit="", compose="", docker_free=1)
    lines = summary(case)
    assert 0 < len(lines) <= 18
    assert max(map(len, lines)) <= 110


def test_summary_of_a_crowd_is_short():
    crowd = tuple(gpu("1080", number)._replace(name=f"{number} " + "W" * 96) for number in range(40))
    case = facts("1080", driver="610.43.02", docker=Docker("missing"), compose="")
    for wide in (crowd, crowd[:1]):
        lines = summary(case._replace(smi=case.smi._replace(gpus=wide)))
        assert 0 < len(lines) <= 18
        assert max(map(len, lines)) <= 110
        assert lines[0].startswith("GPU ")


COMMANDS = [
    command
    for table in (
        remedies._DRIVER, remedies._DRIVER_580, remedies._TOOLKIT, remedies._UPGRADE_TOOLKIT, remedies._DOCKER,
        remedies._COMPOSE, remedies._SMI,
    )
    for command in table.values()
]  # fmt: skip


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_a_folded_command_is_still_the_command(command):
    lines = report._folded_command(command)
    assert max(map(len, lines)) <= 110
    assert lines[0].startswith("        $ ")
    assert all(line.endswith(" \\") for line in lines[:-1])
    parts = [line.rstrip("\\").replace("        $ ", "") for line in lines]
    assert [word for part in parts for word in shlex.split(part)] == shlex.split(command)  # raises within quotes


def test_summary_leaves_out_whole_findings_and_says_so():
    case = facts(smi=Smi("unreadable", "x " * 200), docker=Docker("ok", version="1"), toolkit="", compose="1.0")
    case = case._replace(docker_free=1, cards=CARD)
    lines = summary(case)
    assert len(lines) <= 18
    full = [finding.command for finding in examine(case) if finding.level == "fail"]
    said = "\n".join(lines)
    assert lines[-1] == "more    python -m generator doctor" or all(command.split()[-1] in said for command in full)


def test_a_card_by_its_name_alone():
    case = facts("1080", driver="470.256.02")
    case = case._replace(smi=case.smi._replace(gpus=(gpu("1080", 0, ""),)))
    assert "nvidia-driver-580" in failing(case, "2.8.0")["driver.too-old"].command


# What each situation is told apart by


def only(case, level="fail", torch="auto"):
    """The one finding of that level."""
    found = [finding for finding in examine(case, torch) if finding.level == level]
    assert len(found) == 1, found
    return found[0]


def without_driver(*cards, **changes):
    """A machine with an engine and toolkit whose card has no NVIDIA driver loaded."""
    return facts("4090")._replace(**{"smi": Smi("missing"), "module": "", "cards": cards or CARD, **changes})


def test_nouveau_is_named_and_kept_away():
    held = without_driver(Card("0000:01:00.0", 0x2684, "nouveau"), nouveau=True)
    found = {finding.id: finding for finding in examine(held)}
    assert found["driver.nouveau"].level == "fail"
    assert "ubuntu-drivers" in found["driver.nouveau"].command
    installed = held._replace(smi=Smi("no-driver"), distribution=FAMILIES["fedora"])
    finding = only(installed)
    assert finding.id == "driver.nouveau"
    assert "blacklist nouveau" in finding.command
    assert "dracut --force" in finding.command


def test_a_card_set_aside_for_virtual_machines():
    finding = only(without_driver(Card("0000:01:00.0", 0x2684, "vfio-pci")))
    assert "vfio-pci" in finding.cause


def test_secure_boot_is_thought_of():
    finding = only(without_driver(smi=Smi("no-driver"), secure_boot=True))
    assert "Secure Boot" in finding.cause


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("ubuntu", "nvidia-driver-580"),
        ("debian", "nvidia-driver"),
        ("fedora", "akmod-nvidia-580xx"),
        ("rocky", "nvidia-driver:580-dkms"),
        ("leap", "nvidia-driver-G06"),
        ("endeavour", "nvidia-580xx-dkms"),
    ],
)
def test_an_old_card_without_a_driver_gets_its_last_branch(family, command):
    pascal = Card("0000:01:00.0", 0x1B06)  # GTX 1080 Ti
    finding = only(without_driver(pascal, distribution=FAMILIES[family]))
    assert finding.id == "driver.missing"
    assert command in finding.command
    assert "-open" not in finding.command  # the open kernel modules begin with Turing
    unlisted = facts("4090")._replace(smi=Smi("no-devices"), module="610.43.02", cards=(pascal,))
    assert "580" in only(unlisted).consequence


def test_rhel_10_has_no_module_streams():
    ten = Distribution("rhel", (), "10.1", "Red Hat Enterprise Linux 10.1")
    assert "module enable" not in only(without_driver(distribution=ten)).command
    legacy = only(without_driver(Card("0000:01:00.0", 0x1B06), distribution=ten)).command
    assert "versionlock" in legacy
    assert "module enable" not in legacy


def test_gpus_are_known_without_nvidia_smi():
    by_name = tuple(one._replace(capability="", memory_mib=None) for one in (gpu("4090", 0), gpu("3090", 1)))
    case = facts("4090")._replace(smi=Smi("missing"), listed=by_name)
    assert doctor.resolution(case, CATALOGUE).status == "ok"
    assert only(case, "warn").id == "driver.missing"
    assert doctor.exit_status(examine(case)) == 0


def test_mig_without_instances_is_no_gpu():
    case = facts("A100")
    bare = case._replace(smi=case.smi._replace(mig=(0,)))
    assert bare.gpus == ()
    finding = only(bare)
    assert (finding.id, "nvidia-smi -i 0 -mig 0" in finding.command) == ("gpu.mig", True)
    one = bare._replace(smi=bare.smi._replace(slices=(Slice(0, "3g.40gb", slice_uuid(0, 0)),)))
    assert [g.number for g in one.gpus] == [0]
    assert not failing(one)


def test_one_bare_gpu_beside_others_is_a_warning():
    case = facts("A100", "A100")
    case = case._replace(smi=case.smi._replace(mig=(0,)))
    assert [g.number for g in case.gpus] == [1]
    assert only(case, "warn").id == "gpu.mig"


@pytest.mark.parametrize("docker", [Docker("integration"), Docker("missing")])
def test_wsl_without_docker_desktops_integration(docker):
    finding = only(
        facts("4090", driver="581.60", **{**WSL, "docker": docker, "desktop_installed": True, "toolkit": ""})
    )
    assert finding.id == "docker.integration"
    assert "Ubuntu 24.04" in finding.cause
    assert "WSL integration" in finding.consequence


def test_wsl_with_neither_docker_nor_desktop_installs_docker():
    finding = only(facts("4090", driver="581.60", **{**WSL, "docker": Docker("missing"), "toolkit": ""}))
    assert (finding.id, "docker.io" in finding.command) == ("docker.missing", True)


def test_a_group_that_counts_from_the_next_login():
    denied = facts("4090", docker=Docker("permission"))
    assert "usermod -aG docker" in only(denied).command
    added = denied._replace(docker_group=("ada", "bob"), in_docker_group=False)
    assert "next login" in only(added).cause
    assert "usermod" not in only(added).command


@pytest.mark.parametrize(
    ("endpoint", "away"),
    [
        ("", False), ("unix:///var/run/docker.sock", False), ("npipe:////./pipe/docker_engine", False),
        ("tcp://127.0.0.1:2375", False), ("tcp://localhost:2375", False), ("tcp://[::1]:2375", False),
        ("ssh://ada@gpu1", True), ("tcp://10.0.0.7:2376", True),
    ],
)  # fmt: skip
def test_an_engine_elsewhere(endpoint, away):
    assert ("docker.remote" in failing(facts("4090", endpoint=endpoint))) == away


def test_rootless_engines():
    docker = facts("4090").docker._replace(rootless=True)
    assert only(facts("4090", docker=docker)).id == "docker.rootless"
    assert not failing(facts("4090", docker=docker, no_cgroups=True))
    assert not failing(facts("4090", docker=docker._replace(cdi=True, version="28.3.0")))


def test_mapped_users():
    docker = facts("4090").docker._replace(userns=True)
    assert set(failing(facts("4090", docker=docker))) == {"docker.userns"}
    assert set(failing(facts("4090", docker=docker, uid=70000))) == {"docker.userns"}


@pytest.mark.parametrize(
    ("uid", "owner", "level"),
    [(1001, 1001, "ok"), (10654321, 1, "ok"), (2**31, 1, "fail"), (0, 0, "warn"), (0, 7, "ok")],
)
def test_who_the_container_runs_as(uid, owner, level):
    found = {finding.id: finding for finding in examine(facts("4090", uid=uid, project_owner=owner))}
    assert found["user.id"].level == level


@pytest.mark.parametrize(
    ("engine", "cdi", "level"),
    [
        (Docker("ok", version="28.3.0", runtimes=("runc",), cdi=True), (), "ok"),
        (Docker("ok", version="28.3.0", cdi_directories=("/etc/cdi",)), ("/etc/cdi/nvidia.yaml",), "ok"),
        (Docker("ok", version="26.1.0", cdi_directories=("/etc/cdi",)), ("/etc/cdi/nvidia.yaml",), "ok"),
        (Docker("ok", version="28.3.0", runtimes=("runc",)), ("/etc/cdi/nvidia.yaml",), "fail"),
        (Docker("ok", version="26.1.0", runtimes=("runc",)), ("/etc/cdi/nvidia.yaml",), "fail"),
        (Docker("ok", version="24.0.7", runtimes=("runc",)), ("/etc/cdi/nvidia.yaml",), "skip"),
        (Docker("ok", version="26.1.0", runtimes=("runc",), cdi=True), ("/etc/cdi/nvidia.yaml",), "ok"),
        (Docker("ok", version="5.4.0", kind="podman"), ("/etc/cdi/nvidia.yaml",), "ok"),
    ],
)
def test_gpus_by_cdi_alone(engine, cdi, level):
    found = {finding.id: finding for finding in examine(facts("4090", docker=engine, cdi=cdi))}
    assert found["toolkit.cdi-only"].level == level
    assert "CDI" in found["toolkit.cdi-only"].cause
    assert sum(finding.level == "fail" for finding in found.values()) == (level in {"fail", "skip"})


@pytest.mark.parametrize(
    ("version", "changes", "level"),
    [
        ("20.10.24+dfsg1", {}, "warn"), ("27.5.1", {}, "warn"), ("28.0.0", {}, "ok"), ("29.1.2", {}, "ok"),
        ("", {}, "skip"), ("27.5.1", {"rootless": True}, "skip"), ("27.5.1", {"kind": "desktop"}, "skip"),
        ("5.4.0", {"kind": "podman"}, "skip"), ("27.5.1", {"state": "down"}, "skip"),
    ],
)  # fmt: skip
def test_what_reaches_a_port_of_127_0_0_1(version, changes, level):
    docker = facts().docker._replace(version=version, **changes)
    found = {finding.id: finding for finding in examine(facts(docker=docker))}["docker.neighbours"]
    assert found.level == level
    if level == "warn":
        assert found.cause.startswith(f"Docker {version} lets machines of the same network segment reach")
        assert "LAB_SERVE_TOKEN" in found.consequence


@pytest.mark.parametrize(
    ("family", "changes", "command"),
    [
        ("ubuntu", {}, "--only-upgrade docker.io"), ("ubuntu", {"docker_repository": True}, "--only-upgrade docker-ce"),
        ("debian", {}, "get.docker.com"), ("fedora", {}, "dnf upgrade -y moby-engine"),
    ],
)  # fmt: skip
def test_a_newer_engine_comes_from_where_the_old_one_came_from(family, changes, command):
    old = facts().docker._replace(version="26.1.3")
    found = failing(facts(docker=old, distribution=FAMILIES[family], **changes))
    assert command in found["docker.neighbours"].command
    snap = old._replace(root="/var/snap/docker/common/var-lib-docker")
    assert failing(facts(docker=snap))["docker.neighbours"].command == "sudo snap refresh docker"


@pytest.mark.parametrize(
    ("claims", "level", "cause", "command"),
    [
        (None, "skip", "", ""),
        ((0o041777, 1001), "ok", "", ""),
        ((0o041777, 4321), "ok", "", ""),  # whoever opened the first project here made it
        ((0o040777, 1001), "warn", "not sticky", "chmod 1777 /tmp/yolov5-devcontainer-ports"),
        ((0o040777, 4321), "warn", "not sticky", "sudo chmod 1777 /tmp/yolov5-devcontainer-ports"),
        ((0o040755, 4321), "warn", "not everybody", "sudo chmod 1777 /tmp/yolov5-devcontainer-ports"),
        ((0o041755, 1001), "warn", "not everybody", "chmod 1777 /tmp/yolov5-devcontainer-ports"),
        ((0o120777, 4321), "warn", "is no folder", "sudo rm -f /tmp/yolov5-devcontainer-ports"),
    ],
)
def test_who_may_change_the_claims_of_ports(claims, level, cause, command):
    found = {finding.id: finding for finding in examine(facts(claims=claims))}["ports.claims"]
    assert (found.level, found.command) == (level, command)
    assert cause in found.cause


def test_a_container_that_lost_its_gpu():
    lost = facts("4090", running=Running("0123456789ab", "lost", "Failed to initialize NVML: Unknown Error"))
    finding = only(lost)
    assert finding.id == "gpu.lost"
    assert "--force-recreate" in finding.command
    assert not failing(facts("4090", running=Running("0123456789ab", "ok")))


def test_memory():
    assert not failing(facts("4090", memory=32 << 30))
    assert "free -h" in only(facts("4090", memory=4 << 30), "warn").command
    small = Docker("ok", kind="desktop", version="28", memory=2 << 30)
    assert "Docker Desktop more" in only(facts("4090", docker=small, memory=64 << 30), "warn").consequence
    assert "wslconfig" in only(facts("4090", driver="581.60", **{**WSL, "memory": 3 << 30}), "warn").command


def test_other_limits_of_the_host():
    assert only(facts("4090", cpus=64, cpu_quota=4.0), "warn").cause == "this session may use 4 of 64 processors"
    assert only(facts("4090", shm_wanted=64 << 20), "warn").id == "shm"
    assert not failing(facts("4090", shm_wanted=8 << 30, memory=8 << 30))
    busy = only(facts("4090", busy_ports=(("TENSORBOARD_PORT", 6006),)), "warn")
    assert busy.id == "ports.busy"
    assert "TENSORBOARD_PORT=6007" in busy.consequence
    assert not failing(facts("4090", selinux="enforcing"))


def test_skipped_checks_are_told_by_their_reason():
    text = report.as_text(doctor.grouped(examine(facts())))
    assert text.count("because there is no NVIDIA GPU") == 2  # once for each group
    assert max(map(len, text.splitlines())) <= 112


# Sources of drivers, settings of one's own


def test_debian_gets_what_its_archive_lacks_from_nvidia():
    debian = FAMILIES["debian"]
    archive = only(without_driver(distribution=debian)).command
    assert "contrib non-free" in archive
    assert archive.endswith("nvidia-driver")
    blackwell = (Card("0000:01:00.0", 0x2B85),)
    assert "cuda-keyring" in only(without_driver(*blackwell, distribution=debian)).command
    old = facts("5090", distribution=debian, driver="570.86.10")
    assert "cuda-keyring" in failing(old, "2.15.0")["driver.too-old"].command
    unlisted = facts("4090", distribution=debian)._replace(smi=Smi("no-devices"), module="550.163.01", cards=blackwell)
    assert "570 or newer" in only(unlisted).consequence


def test_no_command_restarts_the_machine_but_where_nothing_else_helps():
    commands = [*COMMANDS, *remedies._LOAD.values(), *remedies._ENROL.values()]
    assert not [command for command in commands if "sudo reboot" in command]
    for state in ("hangs", "lost", "no-driver", "failed"):
        assert "reboot" not in only(facts("4090")._replace(smi=Smi(state), module="580.95.05", cards=CARD)).command
    assert only(facts("4090")._replace(smi=Smi("mismatch"), module="580.95.05", cards=CARD)).command == "sudo reboot"


def test_secure_boot_comes_before_nouveau():
    held = Card("0000:01:00.0", 0x2684, "nouveau")
    case = without_driver(held, smi=Smi("no-driver"), nouveau=True, secure_boot=True, distribution=FAMILIES["fedora"])
    finding = only(case)
    assert (finding.id, "mokutil --import" in finding.command) == ("driver.missing", True)


def test_a_linux_driver_inside_wsl_is_the_one_cause():
    case = facts(**{**WSL, "smi": Smi("no-driver"), "docker": facts("4090").docker, "toolkit": "1.20.0"})
    finding = only(case)
    assert (finding.id, "apt-get purge" in finding.command) == ("wsl", True)
    assert only(facts("4090", driver="581.60", linux_driver=True, **WSL), "warn").id == "wsl"


def test_a_jetsons_driver_counts_by_its_branch():
    thor = facts("Thor", driver="580.00", machine="aarch64", tegra=True)
    assert doctor.resolution(thor, CATALOGUE).status == "ok"
    assert "driver.too-old" not in failing(thor)
    assert "Jetson" in only(facts(tegra=True, machine="aarch64"), "warn").cause


def test_what_helps_one_gpu_is_not_said_of_the_other():
    found = failing(facts("1080", "5090", driver="570.86.10"), "2.15.0")
    assert "GTX 1080" in found["gpu.arch"].cause
    assert "use torch 2.14.1 (cu126)" in found["gpu.arch"].consequence
    assert "TORCH_VERSION=2.14.1" in found["gpu.arch"].command
    assert "RTX 5090" in found["driver.too-old"].cause
    assert "580.65.06" in found["driver.too-old"].consequence
    assert "nvidia-driver-580" not in found["driver.too-old"].command


def test_settings_of_ones_own():
    def look(fault="", **wishes):
        case = facts("4090")
        answer = doctor.resolution(case, CATALOGUE)
        found = doctor.examine(case, answer, CATALOGUE, wishes=Wishes(**wishes), wish_fault=fault)
        return next(finding for finding in found if finding.id == "overrides")

    assert look().level == "ok"
    assert look(build="cu126").cause == "TORCH_BUILD=cu126 is honoured"
    for wish in ({"accel": "cpu"}, {"build": "cpu"}, {"devices": "-1"}):
        assert look(**wish).level == "warn"
    assert "sed -i '/^YOLO_ACCEL=/d' .env" in look(accel="cpu").command
    assert look("YOLO_ACCEL=x is not one of auto, cpu.").level == "fail"


def test_no_cgroups_belongs_to_rootless_engines():
    assert only(facts("4090", toolkit="1.17.8", no_cgroups=True)).id == "toolkit.runtime"
    assert not failing(facts("4090", toolkit="1.19.1", no_cgroups=True))


def test_compose_comes_from_where_the_engine_came_from():
    case = facts("4090", compose="1.29.2")
    assert "docker-compose-v2" in only(case).command
    assert "docker-compose-plugin" in only(case._replace(docker_repository=True)).command
    snap = case.docker._replace(root="/var/snap/docker/common/var-lib-docker", state="down")
    assert only(case._replace(docker=snap, compose="2.38.1")).command == "sudo snap restart docker"


def test_podman_without_a_docker_command():
    finding = only(facts("4090", docker=Docker("missing"), podman=True, toolkit=""))
    assert "podman-docker" in finding.command
