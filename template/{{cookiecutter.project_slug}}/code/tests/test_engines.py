from pathlib import Path

import pytest

from lab import weights
from lab.engines import ENGINES, LACKS, Prepared, hyper_parameters, left_out, translate
from lab.errors import LabError
from lab.options import TASKS, parse
from lab.project import CODE, Project, open_project

SMALL = CODE / "configs" / "hyp.small.yaml"


def test_yolov5_gets_its_own_options_back(project: Project) -> None:
    options = {"epochs": 3, "imgsz": 96, "noval": True, "cache": "ram"}
    prepared = Prepared("train", options, [""], "/m/yolov5n.yaml", Path("/r/train/exp2"))
    call = ENGINES["yolov5"].call(prepared, project)
    words = parse("train", call.payload["arguments"]).given
    assert words == options | {
        "weights": "",
        "cfg": "/m/yolov5n.yaml",
        "project": "/r/train",
        "name": "exp2",
        "exist_ok": True,
    }
    assert call.processes == 1


def test_yolov5_gets_a_process_for_each_gpu(project: Project) -> None:
    engine = ENGINES["yolov5"]
    options = {"device": "0,1,2,3", "batch_size": 64}
    engine.refuse("train", options)
    assert engine.call(Prepared("train", options, ["/w.pt"], None, Path("/r/e")), project).processes == 4
    engine.refuse("train", {"device": "0,1,2", "batch_size": -1})  # measured, as a multiple
    for wrong in ({"batch_size": 30}, {"evolve": 300}, {"image_weights": True}):
        with pytest.raises(LabError):
            engine.refuse("train", {"device": "0,1,2,3", **wrong})


def test_yolov5u_gets_ultralytics_names() -> None:
    words = "--img 640 --batch 64 --epochs 10 --noplots --noval --cos-lr --freeze 10 --multi-scale --seed 3 --cache"
    given = parse("train", words.split()).given
    assert translate(Prepared("train", given, [""], None, Path("/r/train/exp"))) == {
        "imgsz": 640,
        "batch": 64,
        "epochs": 10,
        "plots": False,
        "val": False,
        "cos_lr": True,
        "freeze": 10,
        "multi_scale": 0.5,
        "seed": 3,
        "cache": "ram",
        "project": "/r/train",
        "name": "exp",
        "exist_ok": True,
    }
    words = "--conf 0.4 --iou 0.5 --nosave --hide-conf --line-thickness 2 --half --img 64 96"
    given = parse("detect", words.split()).given
    assert translate(Prepared("detect", given, ["w"], None, None)) == {
        "conf": 0.4,
        "iou": 0.5,
        "save": False,
        "show_conf": False,
        "line_width": 2,
        "quantize": 16,
        "imgsz": [64, 96],
    }


@pytest.mark.parametrize("device", ["3,1", "GPU-8f2e,GPU-03c1"])
def test_both_engines_count_gpus_among_those_that_cuda_is_shown(project: Project, device: str) -> None:
    for task in ("train", "val"):
        prepared = Prepared(task, {"device": device}, ["/w.pt"], None, Path("/r/e"))
        one, other = (ENGINES[name].call(prepared, project).payload for name in ENGINES)
        assert one["gpus"] == other["gpus"] == device
        assert one["arguments"][one["arguments"].index("--device") + 1] == "0,1"
        assert other["arguments"]["device"] == "0,1"
    cpu = Prepared("train", {"device": "cpu"}, ["/w.pt"], None, Path("/r/e"))
    payload = ENGINES["yolov5u"].call(cpu, project).payload
    assert (payload["gpus"], payload["arguments"]["device"]) == ("", "cpu")


@pytest.mark.parametrize(("task", "key"), [(task, key) for task, keys in LACKS.items() for key in keys])
def test_what_yolov5u_lacks_is_refused_by_name(task: str, key: str) -> None:
    option = next(option for option in TASKS[task] if option.key == key)
    with pytest.raises(LabError, match=f"no {option.name}: "):
        ENGINES["yolov5u"].refuse(task, {key: True})


def test_yolov5u_takes_from_yolov5s_hyper_parameters_what_means_the_same(tmp_path: Path) -> None:
    taken = hyper_parameters(SMALL)
    assert taken["lr0"] == 0.02
    assert not {"obj", "anchor_t", "box", "cls"} & set(taken)
    assert {"obj", "anchor_t", "box", "cls"} <= set(left_out(SMALL))
    own = tmp_path / "own.yaml"
    own.write_text("lr0: 0.1\nbox: 7.5\ndfl: 1.5\n", encoding="utf-8")
    assert hyper_parameters(own) == {"lr0": 0.1, "box": 7.5, "dfl": 1.5}
    prepared = Prepared("train", {"hyp": str(SMALL)}, [""], None, Path("/r/e"))
    assert translate(prepared)["optimizer"] == "SGD"


def test_model_yaml_names(project: Project) -> None:
    engine = ENGINES["yolov5u"]
    assert engine.model("yolov5n.yaml", project) == "yolov5n.yaml"
    assert engine.model("yolov5su.yaml", project) == "yolov5s.yaml"
    assert engine.model("yolov5x6u.yaml", project) == "yolov5x-p6.yaml"
    with pytest.raises(LabError):
        engine.model("yolov9.yaml", project)


def test_a_key_that_lab_yaml_does_not_have(project: Project) -> None:
    (project.root / "lab.yaml").write_text("engine: yolov5u\nimage-size: 320\n", encoding="utf-8")
    with pytest.raises(LabError, match="has no key image-size: did you mean image_size"):
        open_project()


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    page = tmp_path / "best.pt"
    page.write_text("<html>not found</html>", encoding="utf-8")
    with pytest.raises(LabError, match="is no checkpoint"):
        weights.require_checkpoint(page, "best.pt")
    with pytest.raises(LabError, match="is a directory"):
        weights.require_checkpoint(tmp_path, "weights")
