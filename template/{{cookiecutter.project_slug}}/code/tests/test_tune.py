"""`lab tune` on described hosts: what it prescribes, what it leaves out, what it says."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.errors import LabError
from lab.fast import bench_words, tune, tune_facts, tuner
from lab.fast.arms import Arm, Measured, Turn
from lab.fast.bench import Wish
from lab.fast.plan import DEVICE, PLAIN, STORE
from lab.fast.tune import CACHED, Candidate, Costs, Host
from lab.project import Project

GIB = 1 << 30
FAST = ("channels_last", "loss")
# 20,000 images of 240 kB, 0.69 MB decoded at 640 pixels
SERVER = Host(
    cores=16, memory_free=100 * GIB, shm_free=32 * GIB, cache_free=500 * GIB, disk_rate=2e9, cache_rate=2e9,
    images=20_000, file_bytes=20_000 * 240_000, store_bytes=20_000 * 690_000,
    unstored_bytes=21_000 * 690_000, imgsz=640, gpus=1, gpu_bytes=80 * GIB,
)  # fmt: skip
# one core of upstream makes 45 images a second from files and 280 from memory, one of ours 350; the network takes 1,500
COSTS = Costs(
    loading={PLAIN: 1 / 45, CACHED: 1 / 280, STORE: 1 / 350, DEVICE: 1 / 20_000},
    network={(64, ()): 1 / 1200, (64, FAST): 1 / 1500},
    painting=1 / 40_000,
    memory={64: 10 * GIB},
)
SHIPPED = Candidate(PLAIN, 8, 64, ())
PROCESSOR = Costs(loading={PLAIN: 1 / 45, CACHED: 1 / 280, STORE: 1 / 350}, network={(16, ()): 1 / 4.4})


def prescribed(host: Host, costs: Costs = COSTS, shipped: Candidate = SHIPPED) -> tune.Prescription:
    return tune.prescribe(host, costs, shipped)


def test_what_ships_is_predicted_as_the_slowest_stage() -> None:
    found = prescribed(SERVER)
    assert found.shipped.rate == pytest.approx(8 * 45)
    assert found.shipped.limit == "loading"


def test_a_server_is_fed_to_its_networks_speed() -> None:
    found = prescribed(SERVER)
    assert found.chosen.rate >= 0.97 * 1500
    assert found.chosen.candidate.switches == FAST
    assert "the GPU is the limit" in found.sentence


def test_a_machine_that_slows_down_is_no_cost_of_an_arm() -> None:
    def arm(name: str, *rates: float) -> Measured:
        turns = [Turn(images=100, batches=10, seconds=100 / rate, waited=0.0, processor=1.0) for rate in rates]
        return Measured(Arm(name, "", Path(), {}, "fixed"), {"device": "cpu"}, turns)

    slow_for_a_while = [arm("plain", 10, 2, 2, 10), arm("own", 20, 4, 20, 20)]
    slow_in_all = [arm("plain", 1, 1), arm("larger", 3, 3)]
    names = {"a": "plain", "b": "own", "c": "larger", "d": "never measured"}
    costs = tune_facts.network_costs(names, [slow_for_a_while, slow_in_all])
    assert {key: costs["a"] / cost for key, cost in costs.items()} == pytest.approx({"a": 1, "b": 2, "c": 3})


def test_the_simplest_of_those_that_feed_it_is_taken() -> None:
    slow = replace(COSTS, network={(64, ()): 1 / 300})
    found = prescribed(SERVER, slow)
    assert found.chosen.candidate.path == PLAIN
    assert found.chosen.candidate.switches == ()
    assert found.chosen.candidate.workers == 8  # six give 270


def test_eight_gpus_with_sixteen_processors_paint_on_the_gpus() -> None:
    found = prescribed(replace(SERVER, gpus=8, memory_free=60 * GIB))
    assert found.chosen.candidate.path == DEVICE
    assert found.chosen.rate > 8 * 1400
    by_path = {one.candidate.path: one.rate for one in found.others}
    # eight of the sixteen processors are busy with the steps
    assert by_path[STORE] == pytest.approx(8 * 350)
    assert CACHED in found.left_out  # each of the eight would hold its own copy
    assert "GiB of memory" in found.left_out[CACHED]


def test_workers_are_counted_for_each_gpu() -> None:
    host = replace(SERVER, gpus=8)
    without = replace(COSTS, loading={PLAIN: 1 / 45})
    found = prescribed(host, without)
    assert found.chosen.candidate.workers <= 2
    assert found.chosen.rate == pytest.approx(8 * 45)
    assert "16 processors are the limit" in found.sentence


def test_the_batches_of_all_gpus_share_dev_shm() -> None:
    host = replace(SERVER, cores=128, gpus=8, shm_free=GIB)
    costs = replace(COSTS, network={(16, ()): 1 / 1500}, memory={})
    for path in (PLAIN, DEVICE):
        loading = {path: COSTS.loading[path], PLAIN: 1 / 45}
        found = prescribed(host, replace(costs, loading=loading), replace(SHIPPED, batch=16))
        one = found.chosen.candidate
        # YOLOv5 validates with batches of twice the size: 6 batches of a GPU for each worker, on each GPU
        assert 8 * one.workers * 6 * one.batch * 3 * 640**2 <= GIB
    # what fits one GPU's training is what `lab.limits` says of it
    assert tune.workers_that_fit(replace(SERVER, shm_free=GIB), 16) == 9
    assert tune.workers_that_fit(host, 16) == 1


def test_several_gpus_share_the_batch_up_to_which_the_learning_is_the_same() -> None:
    host = replace(SERVER, gpus=8, cores=128)
    rates = {(2, ()): 1 / 200, (8, ()): 1 / 900, (16, ()): 1 / 1500, (64, ()): 1 / 3000}
    found = prescribed(host, replace(COSTS, network=rates, memory={}), replace(SHIPPED, batch=2))
    assert found.chosen.candidate.batch == 8
    assert tune.settings(found.chosen.candidate, 8)[0]["batch_size"] == 64
    assert tune_facts._batches(host, Wish("yolov5", "yolov5n", 640, 2)) == [2, 8]
    assert tune_facts._batches(host, Wish("yolov5", "yolov5n", 640, 16)) == [16]


def test_the_batch_is_that_of_all_gpus_as_for_lab_train() -> None:
    assert tuner.batch_of_each(64, 4) == 16
    with pytest.raises(LabError, match="--batch 30 is not a multiple of 4 GPUs, which share it: use 28"):
        tuner.batch_of_each(30, 4)
    with pytest.raises(LabError, match=r"use 4$"):
        tuner.batch_of_each(2, 4)


def test_painting_on_the_gpu_gets_the_threads_that_copy() -> None:
    painted = replace(COSTS, loading={PLAIN: 1 / 5, DEVICE: 1 / 500})
    one = prescribed(SERVER, painted).chosen
    assert one.candidate == Candidate(DEVICE, 8, 64, FAST)
    assert one.stages["loading"] == pytest.approx(8 * 500)
    options, speed = tune.settings(one.candidate, 1)
    assert (options["workers"], speed["data"]) == (8, DEVICE)
    # a thread each where there are few processors, and what /dev/shm holds for validation
    few = prescribed(replace(SERVER, cores=4), painted).chosen
    assert (few.candidate.workers, few.stages["loading"]) == (4, pytest.approx(3 * 500))
    tight = prescribed(replace(SERVER, shm_free=1200 << 20), painted).chosen
    assert (tight.candidate.workers, tight.stages["loading"]) == (2, pytest.approx(2 * 500))


def test_a_slow_disk_that_memory_cannot_hide_is_named() -> None:
    large = replace(SERVER, images=2_000_000, file_bytes=2_000_000 * 240_000, store_bytes=2_000_000 * 690_000)
    nfs = replace(large, unstored_bytes=large.store_bytes, disk_rate=60e6, cache_free=10 * GIB)
    found = prescribed(nfs)
    assert found.chosen.candidate.path == PLAIN
    assert found.chosen.limit == "disk"
    assert found.chosen.rate == pytest.approx(60e6 / (4 * 240_000))
    assert "the disk is the limit" in found.sentence
    assert "disk wanted for the store" in found.left_out[STORE]


def test_a_full_disk_that_holds_the_store_already_is_no_obstacle() -> None:
    assert STORE in prescribed(replace(SERVER, cache_free=GIB)).left_out
    assert STORE not in prescribed(replace(SERVER, cache_free=GIB, unstored_bytes=0)).left_out
    # the training images alone would fit
    between = SERVER.store_bytes + (SERVER.unstored_bytes - SERVER.store_bytes) // 2 + GIB
    assert "disk wanted for the store" in prescribed(replace(SERVER, cache_free=between)).left_out[STORE]


def test_a_prediction_that_is_far_off_is_warned_of() -> None:
    assert tune.doubt(3.1, 3.1) == tune.doubt(2.49, 2.0) == tune.doubt(1.51, 2.0) == ""
    high, low = tune.doubt(3.0, 2.0), tune.doubt(1.4, 2.0)
    assert "off by +50 %: 3.00 times as fast as it ships was predicted, 2.00 measured" in high
    assert "off by -30 %" in low
    assert "--plain" not in high
    assert tune.doubt(2.0, 0.9).endswith("`lab train --plain` is faster")


def test_what_was_tried_is_said_beside_what_was_predicted(capsys: Any) -> None:
    found = prescribed(SERVER)
    said = {
        "shipped": asdict(found.shipped), "others": [asdict(one) for one in found.others], "left_out": {},
        "seconds_an_image": {"loading": COSTS.loading, "decode": 0.003}, "sentence": found.sentence,
        "chosen": asdict(found.chosen), "predicted_on_one_device": 1500.0, "measured_on_one_device": 1000.0,
        "predicted_gain": 4.17, "measured_gain": 2.5, "warning": tune.doubt(4.17, 2.5), "file": "",
        "host": asdict(SERVER),
    }  # fmt: skip
    bench_words.tell_tuned(said)
    words = " ".join(capsys.readouterr().out.split())
    assert "2.50 times as fast as it ships, side by side; predicted were 4.17 times" in words
    assert "lab: warning: the prediction is off by +67 %" in words
    bench_words.tell_tuned({**said, "measured_gain": None, "warning": "as it ships was not done in time"})
    words = " ".join(capsys.readouterr().out.split())
    assert "side by side" not in words
    assert "lab: warning: as it ships was not done in time" in words
    assert "on each of" not in words
    bench_words.tell_tuned({**said, "host": asdict(replace(SERVER, gpus=8))})
    assert "8 workers and batch 64 on each of 8 GPUs, channels_last, loss" in " ".join(capsys.readouterr().out.split())


def test_a_slow_disk_is_left_behind_where_a_fast_one_has_room() -> None:
    large = replace(SERVER, images=200_000, file_bytes=200_000 * 240_000, store_bytes=200_000 * 690_000)
    found = prescribed(replace(large, disk_rate=60e6, memory_free=30 * GIB, cache_rate=7e9, cache_free=400 * GIB))
    assert found.chosen.candidate.path in (STORE, DEVICE)
    assert found.chosen.rate > 10 * found.shipped.rate


def test_what_stays_in_memory_needs_no_disk() -> None:
    assert "disk" not in prescribed(replace(SERVER, disk_rate=1e6)).shipped.stages


@pytest.mark.parametrize("megabytes", [0, 64, 200, 1000])
def test_a_small_shm_bounds_the_workers(megabytes: int) -> None:
    host = replace(SERVER, shm_free=megabytes << 20)
    for path in (PLAIN, STORE):
        found = prescribed(host, replace(COSTS, loading={PLAIN: 1 / 45, path: COSTS.loading[path]}))
        fits = (megabytes << 20) // (6 * 64 * 3 * 640**2)
        assert found.chosen.candidate.workers <= fits
        assert found.shipped.candidate.workers <= fits


def test_without_workers_loading_and_network_take_turns() -> None:
    host = replace(SERVER, shm_free=0)
    one = tune.predict(Candidate(PLAIN, 0, 64, ()), host, COSTS)
    assert one.rate == pytest.approx(1 / (1 / 1200 + 1 / 45))


def test_a_four_gigabyte_laptop_gets_only_what_fits() -> None:
    laptop = replace(SERVER, cores=4, memory_free=3 * GIB, shm_free=1 * GIB, cache_free=20 * GIB, gpu_bytes=4 * GIB)
    costs = Costs(
        loading=COSTS.loading, network={(16, ()): 1 / 200, (64, ()): 1 / 240}, painting=1 / 5000,
        memory={16: int(3.5 * GIB), 64: 10 * GIB},
    )  # fmt: skip
    found = prescribed(laptop, costs, replace(SHIPPED, batch=16))
    assert found.chosen.candidate.batch == 16
    assert found.chosen.candidate.path == STORE
    assert "GPU memory" in found.left_out["batch 64"]
    assert "too little to paint" in found.left_out[DEVICE]
    assert "of memory wanted" in found.left_out[CACHED]


def test_a_gpu_that_takes_no_batch_is_a_sentence() -> None:
    with pytest.raises(LabError, match=r"nothing fits this host .*batch 64: 10.0 GiB of GPU memory.*smaller --batch"):
        prescribed(replace(SERVER, gpu_bytes=4 * GIB))


def test_a_larger_batch_only_up_to_where_the_learning_is_the_same() -> None:
    costs = replace(COSTS, network={(16, ()): 1 / 500, (64, ()): 1 / 900, (128, ()): 1 / 2000}, memory={})
    assert prescribed(SERVER, costs, replace(SHIPPED, batch=16)).chosen.candidate.batch == 64
    same = replace(costs, network={(16, ()): 1 / 890, (64, ()): 1 / 900})
    assert prescribed(SERVER, same, replace(SHIPPED, batch=16)).chosen.candidate.batch == 16


def test_one_processor_without_a_gpu_is_left_alone() -> None:
    host = replace(SERVER, cores=1, gpus=0, memory_free=4 * GIB, gpu_bytes=0)
    found = prescribed(host, PROCESSOR, Candidate(PLAIN, 1, 16, ()))
    assert found.chosen.rate == pytest.approx(1 / (1 / 4.4 + 1 / found_rate(found)), rel=1e-6)
    assert found.chosen.candidate.workers == 0
    assert "the processors are the limit" in found.sentence
    assert "no GPU to paint" in found.left_out[DEVICE]
    # 45 images a second beside 4.4: a store gains 9 %, which is more than nearly nothing
    assert found.chosen.candidate.path == STORE


def found_rate(found: tune.Prescription) -> float:
    return 1 / PROCESSOR.loading[found.chosen.candidate.path]


def test_what_the_store_cannot_express_is_left_out_with_its_reason() -> None:
    found = prescribed(replace(SERVER, store_obstacle="cutmix is the engine's alone"))
    assert found.chosen.candidate.path in (PLAIN, CACHED)
    assert found.left_out[STORE] == found.left_out[DEVICE] == "cutmix is the engine's alone"


def test_nothing_prescribed_exceeds_the_host() -> None:
    for cores in (1, 2, 16, 64):
        for memory in (1, 8, 64):
            for shm in (64 << 20, 2 * GIB):
                for free in (1, 20):
                    host = replace(SERVER, cores=cores, memory_free=memory * GIB, shm_free=shm, cache_free=free * GIB)
                    one = prescribed(host).chosen.candidate
                    assert one.workers <= max(tune.workers_that_fit(host, one.batch), 0)
                    assert one.workers <= cores
                    assert one.path != CACHED or host.store_bytes * 1.5 <= host.memory_free
                    assert one.path not in (STORE, DEVICE) or host.unstored_bytes < host.cache_free


def test_the_settings_are_train_options_and_a_speed() -> None:
    cached = Candidate(CACHED, 4, 32, FAST)
    assert tune.settings(cached, 2) == (
        {"batch_size": 64, "workers": 4, "cache": "ram"},
        {"data": PLAIN, "switches": list(FAST)},
    )
    options, speed = tune.settings(Candidate(DEVICE, 0, 64, ()), 1)
    assert "cache" not in options
    assert speed["data"] == DEVICE


@pytest.mark.parametrize(
    ("words", "wants"),
    [
        (["--seconds", "5"], "30 or more"),
        (["--data", "nowhere.yaml"], "does not exist"),
        (["--batch", "0"], "1 or more"),
        (["--img", "100"], "multiple of 32"),
        (["--model", "yolov5q"], "does not exist"),
        (["--engine", "yolov9"], "yolov5 or yolov5u"),
    ],
)
def test_bad_input_is_one_sentence(ready: Project, words: list[str], wants: str, capsys: Any) -> None:
    assert cli.main(["tune", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert wants in said
    assert "\n" not in said
