import pytest

from lab.errors import LabError
from lab.options import OURS, TASKS, command_line, parse


def test_the_tutorial_command_is_understood() -> None:
    words = "--img 640 --batch 64 --epochs 10 --data custom.yaml --weights yolov5s.pt --device 0,1,2,3 --workers 8"
    assert parse("train", [*words.split(), "--cache", "ram"]).given == {
        "imgsz": 640,
        "batch_size": 64,
        "epochs": 10,
        "data": "custom.yaml",
        "weights": "yolov5s.pt",
        "device": "0,1,2,3",
        "workers": 8,
        "cache": "ram",
    }


@pytest.mark.parametrize("spelling", ["--img", "--img-size", "--imgsz", "--image-size"])
def test_every_spelling_of_the_image_size(spelling: str) -> None:
    assert parse("train", [spelling, "320"]).given == {"imgsz": 320}


def test_values_that_look_like_options_or_nothing() -> None:
    assert parse("train", ["--batch", "-1", "--weights", "", "--cache", "--resume"]).given == {
        "batch_size": -1,
        "weights": "",
        "cache": "ram",
        "resume": True,
    }
    assert parse("train", ["--freeze", "0", "1", "2"]).given == {"freeze": [0, 1, 2]}
    assert parse("export", ["--include", "onnx", "torchscript", "--imgsz=64"]).given["include"] == [
        "onnx",
        "torchscript",
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--btach 3", "did you mean --batch?"),
        ("--learning-rate 3", "no option --learning-rate"),
        ("--epochs ten", "--epochs: invalid int value: 'ten'"),
        ("--epochs", "--epochs: expected one argument"),
        ("--optimizer Lion", "'SGD', 'Adam', 'AdamW'"),
        ("yolov5s.pt", "'yolov5s.pt' belongs to no option"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_status_2(words: str, part: str) -> None:
    with pytest.raises(LabError) as caught:
        parse("train", words.split())
    assert part in caught.value.sentence
    assert "\n" not in caught.value.sentence
    assert caught.value.status == 2


@pytest.mark.parametrize("task", TASKS)
def test_what_is_parsed_can_be_written_back(task: str) -> None:
    words: list[str] = []
    for option in TASKS[task]:
        value = {"flag": [], "maybe": []}.get(option.takes, [option.choices[0] if option.choices else "3"])
        words += [option.name, *value]
    given = parse(task, words).given
    assert len(given) == len(TASKS[task])
    assert parse(task, command_line(task, given)).given == {k: v for k, v in given.items() if k not in OURS}
