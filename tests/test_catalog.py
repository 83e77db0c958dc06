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
    ["container_toolkit"],
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
