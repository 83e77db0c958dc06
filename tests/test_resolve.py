"""The torch build for a host: a broad table of machines, and laws that no machine may break."""

import ast
import itertools
import re
from pathlib import Path

import pytest
from hosts import CARDS, CATALOGUE, ask, gpu
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.hostkit.catalogue import BadRequest, driver_version
from generator.hostkit.names import is_virtual
from generator.hostkit.resolve import Gpu, Host, Refusal, changes, obstacles, refusals, resolve, stage

HOSTKIT = Path(__file__).parent.parent / "generator" / "hostkit"
INDEX = "https://download.pytorch.org/whl"

PINNED = [
    # driver, cards, release -> build; "" = no build
    ("535.183.01", ["1080 Ti"], "2.8.0", "cu126"),
    ("580.95.05", ["1080 Ti"], "2.8.0", "cu126"),
    ("535.183.01", ["1080 Ti"], "2.6.0", "cu124"),
    ("570.86.10", ["5090"], "2.8.0", "cu128"),
    ("580.95.05", ["5090"], "2.8.0", "cu128"),
    ("570.86.10", ["5090"], "2.6.0", ""),
    ("570.86.10", ["5090"], "2.7.1", "cu128"),
    ("525.60.13", ["H100"], "2.8.0", "cu128"),
    ("525.60.12", ["H100"], "2.8.0", ""),
    ("525.147.05", ["V100"], "2.8.0", "cu128"),
    ("525.147.05", ["V100"], "2.7.1", "cu126"),
    ("580.95.05", ["V100"], "2.11.0", "cu126"),
    ("535.183.01", ["T4"], "2.8.0", "cu128"),
    ("550.54.14", ["4090"], "2.8.0", "cu128"),
    ("550.54.14", ["4090"], "2.11.0", "cu129"),
    ("580.95.05", ["4090"], "2.11.0", "cu130"),
    ("580.95.05", ["B200"], "2.8.0", "cu128"),
    ("580.95.05", ["B300"], "2.15.0", "cu132"),
    ("470.256.02", ["3090"], "2.8.0", ""),
    ("470.256.02", ["3090"], "2.7.1", "cu118"),
    ("470.256.02", ["K80"], "2.6.0", "cu118"),
    ("525.147.05", ["K80"], "2.6.0", ""),
    ("580.95.05", ["V100", "4090"], "2.8.0", "cu128"),
    ("580.95.05", ["1080 Ti", "4090"], "2.8.0", "cu126"),
    ("580.95.05", ["970", "P100", "V100", "T4", "A100", "3090", "4090", "H100"], "2.14.1", "cu126"),
    ("580.95.05", ["V100"], "2.15.0", ""),
    ("579.99.99", ["T4"], "2.15.0", ""),
]


@pytest.mark.parametrize(("driver", "cards", "torch", "build"), PINNED)
def test_pinned_release(driver, cards, torch, build):
    answer = ask(driver, *cards, torch=torch)
    assert answer.status == ("ok" if build else "impossible")
    assert answer.build == (build or None)
    if build:
        assert answer.torch == torch
        assert answer.devices == list(range(len(cards)))
        default = CATALOGUE.releases[torch]["default"]["x86_64"]
        assert answer.index_url == (None if build == default else f"{INDEX}/{build}")
        assert answer.torchvision == CATALOGUE.releases[torch]["torchvision"]
    else:
        assert answer.reasons
        assert any("CPU" in text for text in answer.advice)


AUTO = [
    ("535.183.01", ["1080 Ti"], "2.14.1", "cu126"),
    ("570.86.10", ["5090"], "2.13.0", "cu129"),
    ("580.95.05", ["5090"], "2.15.0", "cu132"),
    ("525.60.13", ["H100"], "2.14.1", "cu126"),
    ("470.256.02", ["V100"], "2.7.1", "cu118"),
    ("450.80.02", ["T4"], "2.7.1", "cu118"),
    ("580.95.05", ["V100", "5090"], "2.10.0", "cu128"),
    ("595.71.05", ["A100"], "2.15.0", "cu132"),
]


@pytest.mark.parametrize(("driver", "cards", "torch", "build"), AUTO)
def test_newest_release(driver, cards, torch, build):
    answer = ask(driver, *cards)
    assert (answer.status, answer.torch, answer.build) == ("ok", torch, build)


def test_python_bounds_of_a_release():
    assert ask("580.95.05", "4090", python="3.10").torch == "2.14.1"
    assert ask("580.95.05", "4090", python="3.15").torch == "2.15.0"
    assert ask("580.95.05", "4090", python="3.8").torch == "2.4.1"
    answer = ask("580.95.05", "4090", torch="2.8.0", python="3.14")
    assert answer.status == "impossible"
    assert "no wheels for Python 3.14" in answer.reasons[0]
    assert "use Python 3.13." in answer.advice
    assert any(text.startswith("use torch 2.15.0") for text in answer.advice)


def test_python_3_13_of_torch_2_5_is_missing_on_arm():
    assert "3.13" in CATALOGUE.pythons("2.5.1", "x86_64")
    assert "3.13" not in CATALOGUE.pythons("2.5.1", "aarch64")


@pytest.mark.parametrize(
    ("card", "driver", "torch", "build"),
    [
        ("GB10", "580.126.09", "auto", "cu132"),
        ("GB10", "580.126.09", "2.11.0", "cu130"),
        ("GH200", "550.54.15", "auto", "cu126"),
        ("Thor", "580.126.09", "2.12.1", "cu130"),
    ],
)
def test_arm(card, driver, torch, build):
    answer = ask(driver, card, machine="aarch64", torch=torch)
    assert (answer.status, answer.build) == ("ok", build)


def test_arm_publication_that_nobody_checked_does_not_count():
    answer = ask("550.54.15", "GH200", machine="aarch64", torch="2.5.1")  # cu124 for sm_90 was built, index not seen
    assert answer.status == "impossible"
    assert "aarch64" in answer.reasons[0]
    assert any("use torch" in text for text in answer.advice)


def test_arm_index_of_the_cuda_build_is_the_default_from_2_11():
    assert ask("580.126.09", "GB10", machine="arm64", torch="2.11.0").index_url is None
    assert ask("580.126.09", "GB10", machine="aarch64", torch="2.10.0").index_url == f"{INDEX}/cu130"


def test_cards_that_no_build_serves_together():
    answer = ask("580.95.05", "1080 Ti", "5090", torch="2.8.0")
    assert (answer.status, answer.build, answer.devices) == ("partial", "cu128", [1])
    assert [one["index"] for one in answer.excluded] == [0]
    assert "sm_70" in answer.excluded[0]["reason"]
    assert any("CUDA_VISIBLE_DEVICES=1" in text for text in answer.advice)


def test_the_most_memory_wins_over_the_newest():
    answer = ask("580.95.05", "1080 Ti", "1080 Ti", "1080 Ti", "5090", torch="2.8.0")
    assert (answer.status, answer.build, answer.devices) == ("partial", "cu126", [0, 1, 2])


def test_a_release_that_serves_all_cards_is_named():
    answer = ask("580.95.05", "V100", "4090", torch="2.15.0")
    assert answer.devices == [1]
    assert "use torch 2.14.1 (cu126)." in answer.advice


def test_memory_that_the_driver_does_not_print_comes_from_the_catalogue():
    spark = Gpu(0, "NVIDIA GB10", "12.1", None)
    small = Gpu(1, "Unheard of", "9.0", 1000)
    answer = resolve(Host("550.54.15", (spark, small), machine="aarch64", torch="2.14.1"), CATALOGUE)
    assert answer.devices == [1]  # cu126, the only build for this driver, has no sm_12x
    answer = resolve(Host("580.95.05", (spark, small), machine="aarch64", torch="2.14.1"), CATALOGUE)
    assert answer.devices == [0, 1]


def test_a_driver_that_forgot_the_card():
    answer = ask("610.43.02", "1080", torch="2.8.0")
    assert answer.status == "impossible"
    assert "580 is the last branch for Pascal" in answer.reasons[0]
    assert any("580 branch" in text for text in answer.advice)
    assert obstacles(Host("610.43.02", (gpu("1080"),)), CATALOGUE)[0].kind == "driver-new"


def test_windows_drivers_of_the_580_branch_still_know_pascal():
    assert ask("582.16", "1080", os="wsl2").status == "ok"


@pytest.mark.parametrize(
    ("driver", "build"),
    [("452.39", "cu118"), ("528.32", "cu118"), ("528.33", "cu126"), ("579.99", "cu126"), ("580.88", "cu132")],
)
def test_floors_under_wsl(driver, build):
    assert ask(driver, "4090", os="wsl2").build == build


def test_linux_floor_differs_from_windows():
    assert ask("527.41", "4090", torch="2.8.0").status == "ok"
    assert ask("527.41", "4090", torch="2.8.0", os="wsl2").status == "impossible"


def test_old_driver_says_what_would_help():
    answer = ask("470.256.02", "3090", torch="2.8.0")
    assert "too old" in answer.reasons[0]
    assert "install driver 525.60.13 or newer." in answer.advice
    assert "use torch 2.7.1 (cu118)." in answer.advice


def test_two_changes_where_one_does_not_help():
    answer = ask("610.43.02", "V100", torch="2.15.0")
    assert any("580 branch" in text and "use torch 2.14.1" in text for text in answer.advice)


def test_a_newer_driver_would_allow_a_newer_release():
    assert any("580.65.06" in text and "2.15.0" in text for text in ask("535.183.01", "4090").advice)


def test_end_of_the_road():
    said = "torch 2.14.1 is the last release with kernels for NVIDIA GeForce GTX 1080 Ti (6.1)"
    assert any(said in text for text in ask("535.183.01", "1080 Ti", torch="2.8.0").advice)
    assert not any("last release" in text for text in ask("580.95.05", "T4").advice)


def test_no_wheel_at_all():
    answer = resolve(Host("550.54.14", (Gpu(0, "Tesla K40m", "3.5", 11441),)), CATALOGUE)
    assert answer.status == "impossible"
    assert any("no published x86_64 wheel has kernels" in text for text in answer.advice)


def test_capability_by_name():
    by_name = Gpu(0, "GeForce GTX 1080 Ti", "", None)
    assert resolve(Host("470.256.02", (by_name,)), CATALOGUE).build == "cu118"
    assert resolve(Host("470.256.02", (by_name._replace(capability="[N/A]"),)), CATALOGUE).build == "cu118"


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("Quadro RTX 6000", (7, 5)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA A100-SXM4-40GB", (8, 0)),
        ("NVIDIA A10", (8, 6)),
        ("Tesla V100-DGXS-32GB", (7, 0)),
        ("GeForce GTX 1060 3GB", (6, 1)),
        ("nvidia  geforce rtx 3080 laptop gpu", (8, 6)),
        ("GeForce GTX 10", None),
        ("GeForce GTX 970M", None),
        ("Voodoo 3", None),
        ("", None),
    ],
)
def test_names(name, compute):
    found = CATALOGUE.by_name(name)
    assert (found[0] if found else None) == compute


@pytest.mark.parametrize("card", [row[0] for row in CATALOGUE._names])
def test_every_known_name_finds_itself(card):
    assert CATALOGUE.by_name(card) == CATALOGUE.by_name(f"NVIDIA {card}")


def test_an_unknown_card_is_left_out_and_named():
    answer = resolve(Host("535.183.01", (Gpu(0, "Voodoo 3", "", 16), gpu("4090", 1))), CATALOGUE)
    assert (answer.status, answer.devices) == ("partial", [1])
    assert "Voodoo 3" in answer.excluded[0]["reason"]
    alone = Host("535.183.01", (Gpu(0, "Voodoo 3"),))
    answer = resolve(alone, CATALOGUE)
    assert answer.status == "impossible"
    assert any("give it with --gpu" in text for text in answer.advice)
    answer = resolve(alone._replace(driver="470.256.02"), CATALOGUE)
    assert any("driver to 510" in text for text in answer.advice)


MIG = "NVIDIA A100-SXM4-80GB MIG 3g.40gb"


@pytest.mark.parametrize(
    ("name", "compute", "gib"),
    [
        (MIG, (8, 0), 40),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", (9, 0), 10),
        ("NVIDIA A30 MIG 1c.2g.12gb", (8, 0), 12),
        ("GRID T4-16Q", (7, 5), 16),
        ("NVIDIA A40-48Q", (8, 6), 48),
        ("GRID V100D-32C", (7, 0), 32),
        ("GRID V100DX-16Q", (7, 0), 16),
        ("NVIDIA A100D-80C", (8, 0), 80),
        ("GRID A100-3-20C", (8, 0), 20),
        ("NVIDIA A100-1-5CME", (8, 0), 5),
        ("NVIDIA H100XM-80C", (9, 0), 80),
        ("GRID P40-24Q", (6, 1), 24),
        ("GRID RTX6000-24Q", (7, 5), 24),
        ("NVIDIA RTXA6000-48Q", (8, 6), 48),
        ("NVIDIA RTX6000-Ada-24Q", (8, 9), 24),
        ("Tesla V100S-PCIE-32GB", (7, 0), None),
        ("NVIDIA GeForce RTX 4090 D", (8, 9), 24),
        ("NVIDIA GeForce RTX 5090 D v2", (12, 0), 32),
        ("NVIDIA GeForce RTX 2080 with Max-Q Design", (7, 5), 8),
        ("GeForce GTX 1070 with Max-Q Design", (6, 1), 8),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", (8, 9), 8),
        ("NVIDIA RTX 5000 Ada Generation Laptop GPU", (8, 9), None),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", (12, 0), 96),
    ],
)
def test_names_of_slices_of_virtual_gpus_and_of_variants(name, compute, gib):
    found = CATALOGUE.by_name(name)
    assert found
    assert found[0] == compute
    assert gib is None or found[1] == gib << 10
    assert resolve(Host("570.86.10", (Gpu(0, name),)), CATALOGUE).status == "ok"


@pytest.mark.parametrize(
    "name",
    [
        "Voodoo 3 MIG 1g.5gb",
        "GRID M60-8Q",  # on Maxwell not every Q profile offers CUDA
        "GRID T4-2B4",  # a desktop
        "NVIDIA A40-8A",  # streamed applications
        "GRID X99-16Q",
        "NVIDIA RTX5000-Turing-8Q",
        "GRID K160Q",
        "Quadro M4000M",
        "GeForce GTX 960M",
        "NVIDIA Graphics Device",
    ],
)
def test_names_that_tell_too_little(name):
    assert CATALOGUE.by_name(name) is None


def test_a_virtual_gpu_that_is_not_recognised_is_said_to_be_one():
    assert is_virtual("GRID T4-2B4")
    assert not is_virtual("NVIDIA H20-3e")
    answer = resolve(Host("470.256.02", (Gpu(0, "GRID T4-2B4"),)), CATALOGUE)
    assert answer.status == "impossible"
    assert "virtual GPU" in answer.reasons[0]
    assert resolve(Host("470.256.02", (Gpu(0, "GRID T4-2B4", "7.5"),)), CATALOGUE).status == "ok"


def test_a_slice_counts_with_its_own_memory():
    slices = [Gpu(0, MIG), Gpu(1, "Tesla P40", "6.1", 45_000)]  # 40 GiB, not the 80 of the whole GPU
    assert resolve(Host("580.95.05", tuple(slices), torch="2.15.0"), CATALOGUE).devices == [0]
    assert resolve(Host("580.95.05", (Gpu(0, MIG), gpu("5090", 1)), torch="2.6.0"), CATALOGUE).devices == [0]
    wide = (Gpu(0, MIG), *(Gpu(place, "NVIDIA B200", "10.0", 30_000) for place in (1, 2)))
    assert resolve(Host("550.54.14", wide, torch="2.14.1"), CATALOGUE).devices == [0]
    more = (Gpu(0, MIG), Gpu(1, "Tesla P40", "6.1", 45_000), Gpu(2, "NVIDIA B200", "10.0", 1))
    assert resolve(Host("550.54.14", more, torch="2.8.0"), CATALOGUE).devices == [0, 1]


# GPUs that the catalogue does not list


@pytest.mark.parametrize("compute", ["7.3", "8.8", "9.2", "10.7", "12.4"])
def test_a_stranger_of_a_known_family_is_served_with_a_warning(compute):
    answer = resolve(Host("580.95.05", (Gpu(0, "NVIDIA Next", compute, 1000),), torch="2.8.0"), CATALOGUE)
    assert (answer.status, answer.build) == ("ok", "cu128")
    (warning,) = answer.warnings
    assert warning.startswith(f"the catalogue of {CATALOGUE.as_of} does not know NVIDIA Next ({compute})")
    assert "same major capability" in warning
    assert any("cruft update" in text for text in answer.advice)
    assert not ask("580.95.05", "4090", torch="2.8.0").warnings


def test_a_stranger_that_no_wheel_serves_may_be_newer_than_the_catalogue():
    host = Host("620.10.05", (Gpu(0, "NVIDIA Next", "14.0", 1000),), torch="2.15.0")
    answer = resolve(host, CATALOGUE)
    assert answer.status == "impossible"
    assert answer.reasons == [
        f"NVIDIA Next (14.0) may be newer than the catalogue of {CATALOGUE.as_of}, "
        "which has no wheel for it: update the template."
    ]
    assert not any("no published" in text for text in answer.advice)
    assert any("cruft update" in text for text in answer.advice)
    assert [one.kind for one in obstacles(host, CATALOGUE)] == ["arch"]


def test_a_stranger_from_before_all_wheels_is_not_newer():
    answer = resolve(Host("390.157", (Gpu(0, "GeForce GTX 460", "2.1", 1000),)), CATALOGUE)
    assert answer.status == "impossible"
    assert not any("newer than the catalogue" in text for text in answer.reasons)
    assert not any("cruft" in text for text in answer.advice)
    assert any("no published" in text for text in answer.advice)


def test_a_wheel_made_for_a_capability_makes_it_known():
    assert not ask("580.126.09", "Thor", machine="aarch64").warnings  # in no table of names, but sm_110 is built


# What was refused


def refused(driver, *names, torch="auto", **more):
    host = Host(driver, tuple(gpu(card, number) for number, card in enumerate(names)), torch=torch, **more)
    return refusals(host, resolve(host, CATALOGUE), CATALOGUE)


def test_the_other_builds_of_a_pinned_release_are_refused_with_a_reason():
    lacks = "no kernels for NVIDIA GeForce GTX 1080 Ti (6.1)."
    assert refused("535.183.01", "1080 Ti", torch="2.8.0") == [Refusal("2.8.0", "cu128, cu129", lacks)]
    (one,) = refused("580.95.05", "4090", torch="2.8.0")
    assert one.build == "cu129, cu126"
    assert "would run as well, but cu128 is what the default package index carries" in one.reason
    assert [one.reason for one in refused("470.256.02", "V100", torch="2.7.1")] == [
        "CUDA 12 needs driver 525.60.13 or newer.",
        "no kernels for Tesla V100-SXM2-16GB (7.0).",
    ]


def test_the_builds_above_the_chosen_one_are_refused_with_a_reason():
    found = refused("570.86.10", "5090")
    assert found[:3] == [
        Refusal("2.15.0", "cu132", "CUDA 13 needs driver 580.65.06 or newer."),
        Refusal("2.14.1", "cu130, cu132", "CUDA 13 needs driver 580.65.06 or newer."),
        Refusal("2.14.1", "cu126", "no kernels for NVIDIA GeForce RTX 5090 (12.0)."),
    ]
    assert {one.torch for one in found} == {"2.15.0", "2.14.1", "2.14.0", "2.13.0"}
    assert len({(one.torch, one.reason) for one in found}) == len(found)
    assert refused("580.95.05", "4090") == []
    assert refused("580.95.05", "4090", python="3.10") == [Refusal("2.15.0", "cu132", "no wheels for Python 3.10.")]
    (above, *_) = refused("590.48.01", "K80")
    assert (above.torch, "no kernels" in above.reason) == ("2.15.0", True)


def test_refused_for_mixed_gpus():
    answer = refused("580.95.05", "1080 Ti", "5090", torch="2.8.0")
    assert [one.build for one in answer] == ["cu129", "cu126"]
    assert answer[1].reason == "no kernels for NVIDIA GeForce RTX 5090 (12.0); it would serve only GPU 0."
    host = Host("580.95.05", (Gpu(0, "Voodoo 3", "", 16), gpu("4090", 1)), torch="2.8.0")
    assert all("Voodoo" not in one.reason for one in refusals(host, resolve(host, CATALOGUE), CATALOGUE))


def test_nothing_is_refused_where_there_is_no_gpu():
    assert refusals(Host("", ()), resolve(Host("", ()), CATALOGUE), CATALOGUE) == []


def test_where_nothing_runs_each_reason_is_told_once():
    found = refused("440.33.01", "T4")
    assert [one.reason for one in found] == [
        "CUDA 13 needs driver 580.65.06 or newer.",
        "CUDA 12 needs driver 525.60.13 or newer.",
        "CUDA 11 needs driver 450.80.02 or newer.",
    ]
    assert found[1].torch == "2.14.1"


def test_another_python_would_allow_a_newer_release():
    assert "use Python 3.11 to use torch 2.15.0 (cu132)." in ask("580.95.05", "4090", python="3.10").advice
    assert not ask("580.95.05", "4090", python="3.12").advice
    assert not any("Python" in text for text in ask("580.95.05", "4090", python="3.10", torch="2.8.0").advice)


def test_a_release_for_one_gpu_is_offered_where_none_runs():
    # cu118 of torch 2.7.1 serves the P100 at once; no driver serves the RTX 5090 together with it
    answer = ask("470.256.02", "P100", "5090", torch="2.10.0")
    assert answer.status == "impossible"
    assert "use torch 2.7.1 (cu118)." in answer.advice


def test_the_nearest_changes():
    host = Host("470.256.02", (gpu("3090"),), torch="2.8.0")
    assert changes(host, CATALOGUE) == ["install driver 525.60.13 or newer.", "use torch 2.7.1 (cu118)."]


def test_jetson_runs_no_code_of_its_family_before_cuda_13_2():
    orin = Gpu(0, "Orin", "8.7", 30000)
    answer = resolve(Host("580.95.05", (orin,), machine="aarch64", torch="2.14.1"), CATALOGUE)
    assert answer.build == "cu132"


def test_ptx_is_the_last_resort():
    # no card of capability 13 exists yet: a stand-in for a GPU that is newer than every wheel
    card = Gpu(0, "NVIDIA Next", "13.0", 1000)
    answer = resolve(Host("590.48.01", (card,), torch="2.10.0"), CATALOGUE)
    assert (answer.status, answer.build) == ("ok", "cu130")
    assert any("PTX" in text for text in answer.warnings)
    assert (
        resolve(Host("575.51.03", (card,), torch="2.10.0"), CATALOGUE).status == "impossible"
    )  # 12.9 update 1 is newer
    assert resolve(Host("575.57.08", (card,), torch="2.10.0"), CATALOGUE).build == "cu129"
    assert resolve(Host("590.48.01", (card,), torch="2.11.0"), CATALOGUE).build == "cu129"


def test_no_gpu():
    answer = resolve(Host("", ()), CATALOGUE)
    assert (answer.status, answer.build) == ("impossible", None)
    assert "no NVIDIA GPU" in answer.reasons[0]


def test_json_keys_are_those_of_the_contract():
    keys = "status torch torchvision build index devices excluded reasons warnings advice"
    assert list(ask("580.95.05", "4090").as_dict()) == keys.split()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.8"}, "did you mean 2.8.0?"),
        ({"torch": "9.9.9"}, "not in the catalogue"),
        ({"os": "windows"}, "linux nor wsl2"),
        ({"machine": "riscv64"}, "x86_64 or aarch64"),
        ({"python": "3"}, "form 3.11"),
        ({"driver": "new"}, "570.86.10"),
        ({"driver": ""}, "570.86.10"),
        ({"gpus": (Gpu(0, "x", "8"),)}, "form 8.6"),
    ],
)
def test_questions_that_cannot_be_asked(change, said):
    host = Host("580.95.05", (gpu("4090"),))._replace(**change)
    with pytest.raises(BadRequest, match=re.escape(said)) as caught:
        resolve(host, CATALOGUE)
    assert str(caught.value).count("\n") == 0


def test_a_bare_branch_number_is_its_newest_driver():
    assert ask("580", "4090").build == ask("580.95.05", "4090").build
    assert driver_version("580") > driver_version("580.200.1")


def test_drivers_of_one_stage_run_the_same():
    for system in ("linux", "wsl2"):
        texts = ["418.39", "450.80.01", "450.80.02", "452.38", "452.39", "509.9", "510.39.01", "525.60.12", "525.60.13",
                 "528.32", "528.33", "575.51.03", "575.57.08", "579.99", "580.0", "580.65.05", "580.65.06", "580.95.04",
                 "580.95.05", "589.99", "590.1", "590.48.01", "615"]  # fmt: skip
        for one, other in itertools.pairwise(texts):
            first, second = stage(one, system, CATALOGUE), stage(other, system, CATALOGUE)
            assert first <= second
            assert first <= driver_version(one)
            same = all(
                CATALOGUE.for_driver(machine, system, driver_version(one))
                == CATALOGUE.for_driver(machine, system, driver_version(other))
                for machine in CATALOGUE.builds
            )
            assert same or first < second


# Laws, besides those of test_grid.py

cards = st.lists(st.sampled_from(sorted(CARDS)), min_size=1, max_size=4)
drivers = st.sampled_from(
    ["440.33.01", "450.80.02", "470.256.02", "525.60.12", "525.60.13", "535.183.01", "550.54.14", "570.86.10",
     "575.57.08", "580.65.05", "580.65.06", "580.126.09", "590.48.01", "610.43.02"]
)  # fmt: skip
releases = st.sampled_from(["auto", *CATALOGUE.releases])
machines = st.sampled_from(["x86_64", "aarch64"])
systems = st.sampled_from(["linux", "wsl2"])
pythons = st.sampled_from(["", "3.8", "3.10", "3.11", "3.13", "3.14", "3.15"])


def runs(build, card, driver, system):
    """The rule of design section 5 a second time, without the catalogue's sets; none of `CARDS` is one for PTX."""
    compute = tuple(int(part) for part in CARDS[card][1].split("."))
    number = driver_version(driver)
    floors = {"linux": {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)},
              "wsl2": {11: (452, 39), 12: (528, 33), 13: (580,)}}  # fmt: skip
    if number < floors[system][build.cuda[0]]:
        return False
    if (compute[0] == 3 and number[0] >= 495) or (compute < (7, 5) and number[0] >= 590):
        return False
    return any(sm[0] == compute[0] and sm[1] <= compute[1] for sm in build.sass)


wishes = st.fixed_dictionaries({"torch": releases, "os": systems, "machine": machines, "python": pythons})


@settings(max_examples=150, deadline=None)
@given(cards, drivers, wishes)
def test_never_a_build_that_does_not_run(names, driver, wish):
    answer = ask(driver, *names, **wish)
    assert (answer.build is None) == (answer.status == "impossible")
    assert sorted(answer.devices + [one["index"] for one in answer.excluded]) == list(range(len(names)))
    assert (answer.status == "ok") == (not answer.excluded)
    fitting = [
        build
        for build in CATALOGUE.builds[wish["machine"]]
        if build.cuda and wish["torch"] in {"auto", build.torch}
        if not wish["python"] or wish["python"] in CATALOGUE.pythons(build.torch, wish["machine"])
    ]
    serves = {
        (build.torch, build.name): [
            number for number, card in enumerate(names) if runs(build, card, driver, wish["os"])
        ]
        for build in fitting
    }
    if answer.build:
        assert answer.devices == serves[answer.torch, answer.build]
    everyone = [key for key, numbers in serves.items() if len(numbers) == len(names)]
    assert (answer.status == "ok") == bool(everyone)
    if everyone:
        newest = next(torch for torch in CATALOGUE.releases if torch in {key[0] for key in everyone})
        names_of = [name for torch, name in everyone if torch == newest]
        default = CATALOGUE.releases[newest]["default"][wish["machine"]]
        assert (answer.torch, answer.build) == (newest, default if default in names_of else max(names_of))


@settings(max_examples=50, deadline=None)
@given(cards, drivers, releases)
def test_the_order_of_the_cards_does_not_matter(names, driver, torch):
    forward, backward = ask(driver, *names, torch=torch), ask(driver, *reversed(names), torch=torch)
    assert (forward.status, forward.torch, forward.build) == (backward.status, backward.torch, backward.build)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_any_text_gives_an_answer_or_one_sentence(driver, name, compute, torch):
    try:
        answer = resolve(Host(driver, (Gpu(0, name, compute, None),), torch=torch), CATALOGUE)
    except BadRequest as error:
        assert "\n" not in str(error)
    else:
        assert answer.status in {"ok", "partial", "impossible"}


# Python 3.8


@pytest.mark.parametrize("file", sorted(HOSTKIT.glob("*.py")), ids=lambda file: file.name)
def test_hostkit_parses_with_python_3_8(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    if file.name != "__init__.py":
        assert [name.name for node in imports for name in node.names] == ["annotations"]


@pytest.mark.parametrize("file", sorted(HOSTKIT.glob("*.py")), ids=lambda file: file.name)
def test_hostkit_uses_nothing_newer_than_python_3_8(file):
    newer = re.compile(
        r"removeprefix|removesuffix|zip\(.*strict=|datetime\.UTC|functools\.cache\b|is_relative_to|missing_ok"
    )
    assert not newer.search(file.read_text(encoding="utf-8"))
    tree = ast.parse(file.read_text(encoding="utf-8"))
    annotations = {id(inner) for node in ast.walk(tree) for inner in _annotation_nodes(node)}
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in {"list", "dict", "tuple", "set", "type"}, f"{file.name}:{node.lineno}"


def _annotation_nodes(node):
    for name in ("annotation", "returns"):
        annotation = getattr(node, name, None)
        if annotation is not None:
            yield from ast.walk(annotation)
