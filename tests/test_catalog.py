"""The facts: complete, explained, and compiled."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator import catalog
from generator.hostkit.catalogue import BadRequest, Catalogue

DATA = catalog.load()
RELEASES = {release["torch"]: release for release in DATA["releases"]}
CATALOGUE = Catalogue.read()


def test_catalog_json_is_not_stale():
    assert catalog.COMPILED.read_text(encoding="utf-8") == catalog.compile_catalog(DATA), (
        "run: python -m generator catalog"
    )


def test_every_release_since_2_0_is_there():
    assert list(RELEASES) == [
        "2.0.0",
        "2.0.1",
        "2.1.0",
        "2.1.1",
        "2.1.2",
        "2.2.0",
        "2.2.1",
        "2.2.2",
        "2.3.0",
        "2.3.1",
        "2.4.0",
        "2.4.1",
        "2.5.0",
        "2.5.1",
        "2.6.0",
        "2.7.0",
        "2.7.1",
        "2.8.0",
        "2.9.0",
        "2.9.1",
        "2.10.0",
        "2.11.0",
        "2.12.0",
        "2.12.1",
        "2.13.0",
        "2.14.0",
        "2.14.1",
        "2.15.0",
    ]


def test_releases_pair_with_rising_torchvision_and_dates():
    pairs = [(r["date"], [int(part) for part in r["torchvision"].split(".")]) for r in DATA["releases"]]
    assert pairs == sorted(pairs)


@pytest.mark.parametrize(
    ("torch", "x86_64", "aarch64"),
    [("2.0.1", "cu117", "cpu"), ("2.6.0", "cu124", "cpu"), ("2.8.0", "cu128", "cpu"), ("2.10.0", "cu128", "cpu"),
     ("2.11.0", "cu130", "cu130"), ("2.14.1", "cu130", "cu130"), ("2.15.0", "cu132", "cu132")],
)  # fmt: skip
def test_defaults_of_the_package_index(torch, x86_64, aarch64):
    assert RELEASES[torch]["default"] == {"x86_64": x86_64, "aarch64": aarch64}


def test_only_published_builds_are_compiled():
    compiled = {row["torch"]: row for row in json.loads(catalog.compile_catalog(DATA))["releases"]}
    assert [build[:2] for build in compiled["2.15.0"]["builds"]] == [
        ["cpu", "aarch64"], ["cpu", "x86_64"], ["cu132", "aarch64"], ["cu132", "x86_64"],
    ]  # fmt: skip
    assert all("cu134" not in build for row in compiled.values() for build in row["builds"])
    assert ["cu124", "aarch64"] not in [build[:2] for build in compiled["2.5.1"]["builds"]]


def test_compiled_rows_are_one_line_each():
    lines = catalog.compile_catalog(DATA).splitlines()
    for row in json.loads("\n".join(lines))["releases"]:
        assert sum(f'{{"torch":"{row["torch"]}"' in line for line in lines) == 1


def test_source_rows_are_one_line_each():
    text = catalog.SOURCE.read_text(encoding="utf-8")
    builds = sum(len(release["builds"]) for release in DATA["releases"])
    assert len(re.findall(r"^      - \{build: .*\}(  # .*)?$", text, re.M)) == builds
    assert len(re.findall(r"^  - \{name: .*\}(  # .*)?$", text, re.M)) == len(DATA["gpus"])


def test_the_newest_update_of_a_toolkit_counts():
    packaged = {row["toolkit"]: row["linux"] for row in json.loads(catalog.compile_catalog(DATA))["toolkits"]}
    assert (packaged["12.9"], packaged["13.0"], packaged["11.8"]) == ("575.57.08", "580.95.05", "520.61.05")


def test_numpy_1_ends_with_torch_2_3():
    assert {name for name in RELEASES if CATALOGUE.numpy_1_only(name)} == {
        name for name in RELEASES if [int(part) for part in name.split(".")] < [2, 3]
    }
    assert not CATALOGUE.numpy_1_only("2.99.0")


def test_a_toolkit_still_has_what_newer_ones_mended():
    every = [row["cve"] for row in DATA["advisories"]]
    assert CATALOGUE.advisories("1.12.0") == every
    assert CATALOGUE.advisories("1.17.4") == ["CVE-2025-23266", "CVE-2025-23267", "CVE-2026-24260"]
    assert CATALOGUE.advisories("1.17.8") == ["CVE-2026-24260"]
    assert CATALOGUE.advisories("1.19.0") == ["CVE-2026-24260"]
    assert CATALOGUE.advisories(CATALOGUE.toolkit_safe) == CATALOGUE.advisories("1.20.0") == []
    with pytest.raises(ValueError, match="unknown"):
        CATALOGUE.advisories("unknown")


def test_capabilities_that_the_catalogue_knows():
    assert all(CATALOGUE.known(compute) for compute in [(3, 5), (8, 7), (10, 3), (11, 0), (12, 1)])
    assert not any(CATALOGUE.known(compute) for compute in [(2, 0), (9, 9), (13, 0)])


def test_every_gpu_by_the_name_that_nvidia_smi_prints():
    rows = CATALOGUE.gpu_names()
    assert len(rows) == len(DATA["gpus"])
    assert ("NVIDIA GeForce RTX 5090", (12, 0), 32768) in rows
    assert all(CATALOGUE.by_name(name) == (compute, mib) for name, compute, mib in rows)


def test_the_branch_of_the_first_toolkit():
    assert CATALOGUE.first_branch((12, 0), "linux") == 570
    assert CATALOGUE.first_branch((8, 6), "wsl2") == 456
    assert CATALOGUE.first_branch((11, 0), "wsl2") is None
    assert CATALOGUE.first_branch((6, 1), "linux") is None


@pytest.mark.parametrize("compute", [(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)])
def test_integrated_gpus_run_no_code_of_a_lower_minor_capability(compute):
    built = CATALOGUE.members("aarch64", CATALOGUE.with_sass("aarch64", compute))
    assert all(compute in build.sass or (compute == (8, 7) and build.cuda >= (13, 2)) for build in built)


def broken(change):
    data = copy.deepcopy(DATA)
    change(data)
    with pytest.raises(catalog.BadCatalog) as caught:
        catalog.check(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def release(data, torch="2.8.0"):
    return next(row for row in data["releases"] if row["torch"] == torch)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["gpus"][0].pop("capability"), "gpus: name Tesla K40c: capability is missing"),
        (lambda d: d["gpus"][0].update(capability=3.5), "gpus: name Tesla K40c: capability is 3.5"),
        (lambda d: d["gpus"].append(d["gpus"][0]), "gpus: Tesla K40c is there twice"),
        (lambda d: d["gpus"][0].update(colour="green"), "nobody reads 'colour'"),
        (lambda d: d["gpus"][0].update(status="sure"), "status is 'sure'"),
        (lambda d: d["gpus"][5].update(sources=["RUMOUR"]), "'RUMOUR' is not explained"),
        (lambda d: d["floors"][0].update(linux=450), "floors: cuda 11: linux is 450"),
        (lambda d: d["toolkits"].append("12.9"), "toolkits: '12.9' is not a mapping"),
        (lambda d: d.pop("releases"), "releases is missing"),
        (lambda d: release(d)["builds"][0].update(sass=["sm_90"]), "torch 2.8.0 cu126 on x86_64: sass and ptx hold"),
        (lambda d: release(d)["builds"][0].update(sass=[90, 80]), "rising"),
        (lambda d: release(d)["builds"][0].update(sass=[]), "published but sass is empty"),
        (lambda d: release(d)["builds"][0].update(published="yes"), "published is 'yes'"),
        (lambda d: release(d)["builds"][0].update(build="cu1260"), "build is 'cu1260'"),
        (lambda d: release(d)["builds"].append(release(d)["builds"][0]), "is there twice"),
        (lambda d: release(d)["builds"].append("cu126"), "'cu126' is not a mapping"),
        (lambda d: release(d).update(default={"x86_64": "cu134", "aarch64": "cpu"}), "cu134 on x86_64 has no row"),
        (lambda d: release(d).update(default={"x86_64": "cu128"}), "needs x86_64 and aarch64"),
        (lambda d: release(d).update(python=[3.9]), "python holds 3.9"),
        (lambda d: release(d).update(not_on={"aarch64": ["3.20"]}), "not_on"),
        (lambda d: d["releases"].reverse(), "oldest first"),
        (lambda d: d["floors"].pop(), "floors has no row for CUDA 13"),
        (lambda d: release(d).update(numpy=2), "torch 2.8.0: numpy is 2, expected 1"),
        (lambda d: release(d).update(numpy=True), "numpy is True"),
        (lambda d: release(d).pop("status"), "torch 2.8.0: status is missing"),
        (lambda d: release(d).update(sources=[]), "torch 2.8.0: status verified needs a source"),
        (lambda d: release(d).update(sources=["RUMOUR"]), "torch 2.8.0: source 'RUMOUR' is not explained"),
        (lambda d: d["advisories"][0].update(cve="NVIDIAScape"), "advisories: cve NVIDIAScape: cve is 'NVIDIAScape'"),
        (lambda d: d["advisories"][0].update(fixed=1.16), "advisories: cve CVE-2024-0132: fixed is 1.16"),
        (lambda d: d["advisories"][0].update(severity="high"), "severity is 'high', expected None or float"),
        (lambda d: d["advisories"][0].update(severity=90.0), "CVE-2024-0132: severity is 90.0, a CVSS score"),
        (lambda d: d["advisories"][0].pop("note"), "CVE-2024-0132: note is missing"),
        (lambda d: d["advisories"].append(d["advisories"][0]), "advisories: CVE-2024-0132 is there twice"),
        (lambda d: d["advisories"].reverse(), "CVE-2025-23267: fixed 1.17.8 comes after a newer one"),
        (lambda d: d["advisories"].clear(), "advisories is empty"),
        (lambda d: d["first_toolkits"][0].update(toolkit="12.7"), "8.0: toolkits has no 12.7 with update: 0"),
        (lambda d: d["first_toolkits"][0].update(capability="sm_80"), "is 'sm_80', expected a quoted string"),
        (lambda d: d["first_toolkits"].append(d["first_toolkits"][0]), "first_toolkits: 8.0 is there twice"),
    ],
)
def test_a_bad_row_is_explained_by_name(change, said):
    assert said in broken(change)


def test_yaml_that_is_none(tmp_path):
    file = tmp_path / "catalog.yaml"
    with pytest.raises(catalog.BadCatalog, match="cannot be read"):
        catalog.load(file)
    file.write_text("releases: [\n")
    with pytest.raises(catalog.BadCatalog, match="not YAML at line"):
        catalog.load(file)
    file.write_text("[]")
    with pytest.raises(catalog.BadCatalog, match="not a mapping"):
        catalog.load(file)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
PLACES = [
    ["gpus", 3],
    ["gpus", 3, "name"],
    ["floors", 0, "cuda"],
    ["toolkits", 2, "sources"],
    ["jetson"],
    ["advisories"],
    ["advisories", 0],
    ["advisories", 0, "severity"],
    ["advisories", 3, "fixed"],
    ["first_toolkits", 0, "toolkit"],
    ["releases", 17, "numpy"],
    ["sources"],
    ["releases", 3],
    ["releases", 17, "default"],
    ["releases", 17, "default", "x86_64"],
    ["releases", 17, "python"],
    ["releases", 17, "not_on"],
    ["releases", 17, "builds", 0],
    ["releases", 17, "builds", 0, "sass"],
    ["releases", 17, "builds", 0, "sources"],
]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_junk_is_refused_in_one_sentence_or_is_right(path, junk):
    data = copy.deepcopy(DATA)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = junk
    try:
        catalog.check(data)
    except catalog.BadCatalog as error:
        assert "\n" not in str(error)


def test_a_damaged_compiled_catalogue(tmp_path):
    file = tmp_path / "catalog.json"
    with pytest.raises(BadRequest, match="cannot be read"):
        Catalogue.read(file)
    for text in ("", "[]", "{}", '{"as_of": 1}', "\x00"):
        file.write_text(text)
        with pytest.raises(BadRequest, match="damaged"):
            Catalogue.read(file)
