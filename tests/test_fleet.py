"""Many hosts at once: an answer a line, and the release that serves most of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import CARDS, CATALOGUE, ask
from hypothesis import given, settings
from hypothesis import strategies as st

from generator import __main__ as command
from generator.hostkit import fleet
from generator.hostkit.catalogue import BadRequest
from generator.hostkit.resolve import Host, resolve

ROOT = Path(__file__).parent.parent
DEFAULTS = Host("", ())


def run(capsys, *arguments):
    status = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def line(driver, *cards, **more):
    gpus = [dict(zip(("name", "capability", "memory_mib"), CARDS[card], strict=True)) for card in cards]
    return json.dumps({"driver": driver, "gpus": gpus, **more})


def summary_of(*lines, torch="auto"):
    return fleet.summarise(lines, DEFAULTS._replace(torch=torch), CATALOGUE)


# Lines


def test_a_fleet_is_answered_in_order(capsys, tmp_path):
    hosts = [
        {
            "driver": "570.86.10",
            "gpus": [{"name": "NVIDIA GeForce RTX 5090", "capability": "12.0", "memory_mib": 32607}],
            "torch": "2.8.0",
        },
        {"driver": "610.43.02", "gpus": [{"name": "GTX 1080", "capability": "6.1"}]},
        {
            "driver": "580.126.09",
            "gpus": [{"name": "NVIDIA GB10", "capability": None, "memory_mib": None}],
            "machine": "aarch64",
        },
        {"gpus": []},
    ]
    file = tmp_path / "hosts"
    file.write_text("".join(json.dumps(host) + "\n" for host in hosts) + "\n")
    status, out, _ = run(capsys, "resolve", "--hosts", file)
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [answer["status"] for answer in answers] == ["ok", "impossible", "ok", "impossible"]
    assert answers[0] == ask("570.86.10", "5090", torch="2.8.0").as_dict()


def test_a_bad_line_is_answered_in_its_place(capsys, tmp_path):
    good = json.dumps({"driver": "580.95.05", "gpus": [{"name": "Tesla T4"}]})
    card = '{"driver": "580.1", "gpus": [{"name": "x", %s}]}'
    bad = [
        "{",
        "[]",
        "3",
        "[" * 100_000,
        '{"gpus": 1}',
        '{"gpus": [1]}',
        '{"gpu": []}',
        '{"torch": "9", "gpus": []}',
        '{"driver": 580, "gpus": []}',
        '{"driver": "x", "gpus": [{}]}',
        card % '"memory_mib": "8"',
        card % '"memory_mib": NaN',
        card % '"capability": []',
        card % '"index": true',
    ]
    file = tmp_path / "hosts"
    file.write_text("\n".join([good, *bad, good]))
    status, out, err = run(capsys, "resolve", "--hosts", file)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (1, "")
    assert [set(answer) == {"error"} for answer in answers] == [False, *[True] * len(bad), False]
    assert all("\n" not in answer["error"] for answer in answers if "error" in answer)


FIELDS = st.sampled_from(
    ["host", "driver", "gpus", "name", "capability", "memory_mib", "index", "torch", "os", "machine", "python"]
)
SCALARS = st.none() | st.booleans() | st.floats() | st.text(max_size=6) | st.sampled_from(["580.95.05", "8.6", "auto"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json_gives_an_answer_or_a_sentence(row):
    (answer,) = fleet.answers([json.dumps(row)], DEFAULTS, CATALOGUE)
    assert set(answer) & {"status", "error"}
    summary = fleet.summarise([json.dumps(row)], DEFAULTS, CATALOGUE)
    assert summary.with_gpu + summary.without_gpu + len(summary.bad) == 1
    assert bool(summary.bad) == ("error" in answer)
    json.dumps(summary.as_dict())
    assert fleet.as_text(summary).replace("\n", "").isprintable()


def test_a_fleet_from_standard_input():
    line = json.dumps({"driver": "580.95.05", "gpus": [{"name": CARDS["T4"][0], "capability": "7.5"}]}) + "\n"
    done = subprocess.run([sys.executable, "-m", "generator", "resolve", "--hosts", "-"], cwd=ROOT, input=line * 2000,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines() == [json.dumps(ask("580.95.05", "T4").as_dict())] * 2000


@pytest.mark.parametrize("module", ["generator", "generator.hostkit"])
def test_a_reader_that_has_seen_enough(module, tmp_path):
    file = tmp_path / "hosts"
    file.write_text((line("580.95.05", "T4") + "\n") * 2000)
    asked = [sys.executable, "-m", module, "resolve", "--hosts", str(file)]
    with subprocess.Popen(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_missing_fleet_file(capsys):
    status, _, err = run(capsys, "resolve", "--hosts", "/nowhere")
    assert (status, err.count("\n")) == (2, 1)


def test_a_host_is_named_in_its_answer(capsys, tmp_path):
    file = tmp_path / "hosts"
    names = ["web-01", "", None, "bad", 3, "Zoë\x1b"]
    rows = [line("580.95.05", "T4", host=name) for name in names]
    rows[3] = line("new", "T4", host="bad")
    file.write_text("\n".join(rows), encoding="utf-8")
    status, out, _ = run(capsys, "resolve", "--hosts", file)
    answers = [json.loads(one) for one in out.splitlines()]
    assert status == 1
    assert [answer.get("host") for answer in answers] == ["web-01", None, None, "bad", None, "Zoë\x1b"]
    assert next(iter(answers[0])) == next(iter(answers[3])) == "host"
    assert ["error" in answer for answer in answers] == [False, False, False, True, True, False]
    assert "as a string" in answers[4]["error"]


# The summary


def test_the_release_of_most_hosts_is_recommended():
    lines = [line("535.183.01", "1080 Ti")] * 3 + [line("570.86.10", "5090")] * 2
    summary = summary_of(*lines)
    assert (summary.with_gpu, summary.without_gpu, summary.bad) == (5, 0, [])
    assert summary.pin.torch == "2.13.0"  # the newest with both cu126 and a build for sm_120 and CUDA 12
    assert (summary.pin.hosts, summary.pin.builds, summary.pin.behind) == (5, {"cu126": 3, "cu129": 2}, [])
    assert summary.pair is None
    assert summary.automatic == {("2.14.1", "cu126"): 3, ("2.13.0", "cu129"): 2}
    assert (summary.releases["2.14.1"], summary.releases["2.15.0"]) == (3, 0)
    assert summary.other.torch == "2.14.1"
    (behind,) = summary.other.behind
    assert (behind.hosts, behind.gpus) == (2, {"NVIDIA GeForce RTX 5090": 2})
    assert "install driver 580.65.06 or newer." in behind.changes


def test_whom_a_pin_leaves_behind_and_what_would_bring_them():
    lines = [line("580.95.05", "4090", host=f"new-{n}") for n in range(20)]
    lines += [line("470.256.02", "A100", host=f"old-{n}") for n in range(12)]
    lines += [line("610.43.02", "1080", host="forgot"), line("580.95.05", "1080", "5090", host="mixed")]
    lines += [line("550.54.14", "K80", host="kepler")]
    summary = summary_of(*lines, torch="2.15.0")
    assert summary.pin.torch == "2.7.1"
    assert summary.other.torch == "2.15.0"
    found = {group.names[0]: group for group in summary.other.behind}
    assert found["old-0"].hosts == 12
    assert found["old-0"].names == [f"old-{n}" for n in range(10)]
    assert found["old-0"].changes == ["install driver 580.65.06 or newer.", "use torch 2.7.1 (cu118)."]
    assert "too old" in found["old-0"].reason
    assert "no longer knows" in found["forgot"].reason
    assert any("580 branch" in change for change in found["forgot"].changes)
    assert (found["mixed"].partly, found["mixed"].gpus) == (
        1, {"NVIDIA GeForce GTX 1080 + NVIDIA GeForce RTX 5090": 1}
    )  # fmt: skip
    together = next(group for group in summary.pin.behind if group.names == ["mixed"])
    assert "together" in together.reason
    assert sum(group.hosts for group in summary.other.behind) + summary.other.hosts == summary.with_gpu
    assert (found["old-0"].oldest_driver, found["mixed"].newest_driver) == ("470.256.02", "580.95.05")


def test_hosts_that_ask_the_same_are_answered_together():
    drivers = [f"535.{minor}.{patch:02}" for minor in range(43, 250, 9) for patch in range(9)]
    rows = [json.loads(line(driver, "T4")) for driver in drivers]
    for number, row in enumerate(rows):
        row["gpus"][0]["memory_mib"] -= number
    summary = summary_of(*map(json.dumps, rows), torch="2.15.0")
    assert (summary.with_gpu, summary.pin.torch) == (len(drivers), "2.14.1")
    (group,) = summary.other.behind
    assert (group.hosts, group.oldest_driver, group.newest_driver) == (len(drivers), drivers[0], drivers[-1])


FLEET = st.lists(
    st.tuples(
        st.sampled_from(["450.80.02", "470.256.02", "535.183.01", "575.57.08", "580.95.05", "610.43.02"]),
        st.lists(st.sampled_from(sorted(CARDS)), max_size=3),
        st.sampled_from(["x86_64", "aarch64"]),
        st.sampled_from(["", "3.9", "3.11"]),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(FLEET)
def test_the_summary_is_the_sum_of_the_answers(machines):
    lines = [line(driver, *cards, machine=machine, python=python) for driver, cards, machine, python in machines]
    summary = summary_of(*lines)
    hosts = [one.host for one in fleet.read(lines, DEFAULTS) if one.host.gpus]
    status = [resolve(host, CATALOGUE).status for host in hosts]
    assert summary.with_gpu == len(hosts)
    assert sum(summary.automatic.values()) == status.count("ok")
    assert (summary.automatic_partly, summary.automatic_not) == (status.count("partial"), status.count("impossible"))
    for torch, served in summary.releases.items():
        assert served == sum(resolve(host._replace(torch=torch), CATALOGUE).status == "ok" for host in hosts)
    assert summary.unserved == status.count("partial") + status.count("impossible")
    if summary.pin:
        assert summary.pin.hosts == max(summary.releases.values()) == sum(summary.pin.builds.values())
        newer = list(summary.releases)[: list(summary.releases).index(summary.pin.torch)]
        assert all(summary.releases[torch] < summary.pin.hosts for torch in newer)
        for pin in filter(None, (summary.pin, summary.other)):
            assert pin.hosts + sum(group.hosts for group in pin.behind) == len(hosts)
            in_part = [resolve(host._replace(torch=pin.torch), CATALOGUE).status for host in hosts].count("partial")
            assert sum(group.partly for group in pin.behind) == in_part


def test_two_pins_where_one_does_not_serve_all():
    both = summary_of(*[line("450.80.02", "T4")] * 5, line("580.126.09", "Thor", machine="aarch64"))
    assert (both.pin.torch, both.pair) == ("2.7.1", fleet.Pair(("2.15.0", "2.7.1"), 6, True))
    three = summary_of(
        line("450.80.02", "T4"), line("580.126.09", "Thor", machine="aarch64"), line("580.95.05", "T4", python="3.8")
    )
    assert three.pair.hosts == 3  # 2.4.1 and older have cu118 and Python 3.8
    four = summary_of(
        line("450.80.02", "T4", python="3.13"),
        line("580.126.09", "Thor", machine="aarch64"),
        line("580.95.05", "T4", python="3.8"),
    )
    assert (four.pair.hosts, four.pair.complete) == (2, False)


def test_what_is_no_gpu_host_is_counted_apart():
    summary = summary_of("", '{"driver": "", "gpus": []}', "{", line("x", "T4", host="odd"), line("580.1", "T4"))
    assert (summary.with_gpu, summary.without_gpu) == (1, 1)
    assert [(row["line"], row.get("host")) for row in summary.bad] == [(3, None), (4, "odd")]
    text = fleet.as_text(summary)
    assert "2 lines are no host" in text
    assert "line 3:" in text


def test_a_line_with_a_bad_release_is_bad_though_its_release_does_not_matter():
    summary = summary_of(line("580.1", "T4"), line("580.1", "T4", torch="9"), line("580.1", "T4", torch="2.0.0"))
    assert (summary.with_gpu, len(summary.bad)) == (2, 1)


@pytest.mark.parametrize("lines", [[], ['{"gpus": []}'], [line("550.54.14", "K80")]])
def test_a_fleet_that_no_release_serves(lines):
    summary = summary_of(*lines)
    assert (summary.pin, summary.other, summary.pair) == (None, None, None)
    assert summary.as_dict()["recommended"] is None
    assert "0 with a GPU" in fleet.as_text(summary) or "no release" in fleet.as_text(summary)


def test_the_summary_for_a_person(capsys, tmp_path):
    file = tmp_path / "hosts"
    rows = [line("580.95.05", "4090", host="a\x1b")] * 1500 + [line("470.256.02", "V100", host="old")]
    rows += [line("580.95.05", "1080", "5090"), line("610.43.02", "1080")]
    file.write_text("\n".join(rows))
    status, out, err = run(capsys, "resolve", "--hosts", file, "--summary")
    assert (status, err) == (0, "")
    assert "1,503 hosts, 1,503 with a GPU" in out
    assert "\x1b" not in out
    assert "Pin torch 2.7.1: 1,501 hosts, 99.9 % (cu126 on 1,500, cu118 on 1)." in out
    assert "Torch 2.15.0 instead: 1,500 hosts" in out
    assert "driver of the 580 branch" in out
    assert max(map(len, out.splitlines())) <= 120
    status, out, _ = run(capsys, "resolve", "--hosts", file, "--summary", "--json")
    told = json.loads(out)
    assert told["recommended"]["torch"] == "2.7.1"
    assert told["recommended"]["share"] == 99.9
    assert [row["torch"] for row in told["releases"]] == list(CATALOGUE.releases)
    assert told["auto"]["ok"][0] == {"torch": "2.15.0", "build": "cu132", "hosts": 1500}


def test_a_summary_needs_a_fleet_and_a_known_release(capsys, tmp_path):
    status, _, err = run(capsys, "resolve", "--summary")
    assert (status, "--hosts" in err) == (2, True)
    with pytest.raises(BadRequest, match="did you mean"):
        summary_of(line("580.1", "T4"), torch="2.8")
