"""Passwords in addresses, and pickles that are programs: never shown, never written down, never run."""

from __future__ import annotations

import collections
import copyreg
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lab import cli, dataset, environment, pickles, record, stale, tracking, weights
from lab.credentials import hidden
from lab.errors import LabError
from lab.project import Project

SECRET = "tr0ub4dor"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"rtsp://cam:{SECRET}@10.0.0.7/stream", "rtsp://***@10.0.0.7/stream"),
        (f"fatal: 'https://{SECRET}@git.example/a.git' not found", "fatal: 'https://***@git.example/a.git' not found"),
        (f"https://u:{SECRET}@@host:8080 and http://v:{SECRET}@b/", "https://***@host:8080 and http://***@b/"),
        (f"https://host/a?x=1&access_token={SECRET}&y=2", "https://host/a?x=1&access_token=***&y=2"),
        ("ssh://git@git.example/a.git", "ssh://git@git.example/a.git"),
        ("git@git.example:a.git", "git@git.example:a.git"),
        ("https://host/@scope/package", "https://host/@scope/package"),
    ],
)
def test_what_lets_somebody_in_is_hidden(said: str, shown: str) -> None:
    assert hidden(said) == shown


def test_a_fetch_that_fails_does_not_show_the_password(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("YOLOV5_GIT_URL", f"http://user:{SECRET}@127.0.0.1:9/yolov5.git")
    monkeypatch.setattr(Project, "upstream", property(lambda _: project.root / "code" / "yolov5"))
    assert cli.main(["fetch"]) == 1
    said = capsys.readouterr().err
    assert "could not be had" in said
    assert SECRET not in said


def test_a_tracker_that_fails_does_not_show_the_password(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any) -> Any:
        raise ConnectionError(f"https://me:{SECRET}@mlflow.example refuses")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", refuse)
    with tracking.follow(Project(project.root, logger="mlflow"), project.runs, {}):
        pass
    said = capsys.readouterr().err
    assert "mlflow is not used for this run: https://***@mlflow.example refuses" in said


def test_no_variable_of_the_environment_and_no_password_is_in_a_run(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detection from a camera with a password, in a container with every token set: the run's files hold none."""
    for name in (
        "JUPYTER_TOKEN",
        "LAB_SERVE_TOKEN",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "CLEARML_API_SECRET_KEY",
    ):
        monkeypatch.setenv(name, SECRET)
    for name in ("HTTPS_PROXY", "UV_DEFAULT_INDEX", "YOLOV5_GIT_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, f"https://me:{SECRET}@example.org/")
    checkpoint = ready.root / "mine.pt"
    save(checkpoint, {"model": None})
    monkeypatch.setattr("lab.tasks.run", lambda *_: None)
    words = ["--weights", "mine.pt", "--source", f"rtsp://cam:{SECRET}@10.0.0.7/1"]
    assert cli.main(["detect", *words]) == 0
    written = [file for file in ready.runs.rglob("*") if file.is_file()]
    assert "rtsp://***@10.0.0.7/1" in json.loads((ready.runs / "detect/exp/run.json").read_text("utf-8"))["command"]
    for file in written:
        assert SECRET not in file.read_text(encoding="utf-8", errors="replace"), file


def test_a_committed_env_is_in_no_difference(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(project.root), *identity, *words], check=True, capture_output=True)

    secrets = [project.root / name for name in (".env", "deploy/prod.env", ".netrc", "tls.key")]
    (project.root / "deploy").mkdir()
    for file in secrets:
        file.write_text("A=1\n", encoding="utf-8")
    git("init", "-q")
    git("add", "--force", ".")
    git("commit", "-qm", "start")
    for file in [*secrets, project.root / "lab.yaml"]:
        file.write_text(
            f"{file.read_text(encoding='utf-8')}# {SECRET if file in secrets else 'changed'}\n", encoding="utf-8"
        )
    about = record.git(project.root, out)
    assert about is not None
    assert about["dirty"]
    difference = (out / "diff.patch").read_text(encoding="utf-8")
    assert "+# changed" in difference
    assert SECRET not in difference


# --- pickles ----------------------------------------------------------------------------------------------------------


class Attack:
    """Runs a command when it is unpickled; `by` is how it is spelled."""

    def __init__(self, command: str, by: Any = os.system) -> None:
        self.command, self.by = command, by

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.by, (self.command,)


def save(file: Path, thing: Any, protocol: int = 2) -> None:
    """As torch.save lays it out; no torch here."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(thing, protocol))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("call", [os.system, eval, getattr, __import__, subprocess.Popen, pickle.loads])
def test_a_checkpoint_that_is_a_program_is_refused(tmp_path: Path, protocol: int, call: Any) -> None:
    file = tmp_path / "best.pt"
    save(file, {"epoch": 3, "model": [Attack(f"touch {tmp_path}/ran", call)]}, protocol)
    with pytest.raises(LabError, match=r"best\.pt would call .*, which no checkpoint of the engines needs"):
        weights.require_checkpoint(file, file.name)
    assert not (tmp_path / "ran").exists()


def test_a_name_that_goes_on_from_a_module_of_the_engines_is_refused(tmp_path: Path) -> None:
    """Protocol 4 may name torch's own `os.system`, or a class that a harmless module has imported."""
    for module, name in (
        ("torch", "os.system"),
        ("torch.nn.modules.module", "Module.os"),
        ("torch.storage", "_load_from_bytes"),
        ("models.common", "DetectMultiBackend"),
        ("torch.hub", "load"),
        ("ultralytics.utils", "SettingsManager"),
    ):
        file = tmp_path / "best.pt"
        words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x04" + words + b"\x93.")
        assert pickles.strangers(file) == [f"{module}.{name}"]


@pytest.mark.parametrize("make", ["bad sum", "second member", "bare", "tar", "cut", "long"])
def test_tricks_with_the_file_are_refused(tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "best.pt"
    bad, good = pickle.dumps(Attack("true"), 2), pickle.dumps({"epoch": 1}, 2)
    if make == "bare":
        file.write_bytes(good * 3 + bad + good)
    elif make == "tar":
        (tmp_path / "\x80pickle").write_bytes(bad)
        with tarfile.open(file, "w:", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
            tar.add(tmp_path / "\x80pickle", arcname="\x80pickle")
    elif make == "long":
        monkeypatch.setattr(pickles, "LIMIT", 100)
        save(file, {"epoch": "x" * 200})
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", good if make == "second member" else bad)
            if make == "second member":
                archive.writestr("a/b/data.pkl", bad)
        content = bytearray(file.read_bytes())
        if make == "bad sum":  # we would stop at the sum, another reader may not look at it
            place = content.index(bad) + len(bad) - 2
            content[place] ^= 1
        file.write_bytes(content[: len(content) - (30 if make == "cut" else 0)])
    with pytest.raises(LabError, match=r"best\.pt (would call|is no whole checkpoint)"):
        weights.require_checkpoint(file, file.name)


EVAL = {"activation": "__import__('os').system('true')"}
LAYERS = {
    "nc": 80,
    "depth_multiple": 0.33,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]],
    "head": [[[17, 20], 1, "Detect", ["nc", "anchors"]], [-1, 1, "TorchVision", ["resnet18", True, "[1, 2]"]]],
    "activation": "nn.LeakyReLU(0.1, inplace=True)",
    "yaml_file": "/home/ada (old)/yolov5n.yaml",
}


class Call:
    """Unpickled as `function(*given)`."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.made = function, given

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names of the engines and of torch, importable so that pickles can be made of them."""
    found: dict[str, Any] = {}
    for package in ("models", "ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for module, names in {
        "models.yolo": ["DetectionModel"],
        "ultralytics.nn.tasks": ["DetectionModel"],
        "models.common": ["Conv"],
        "torch": ["Tensor"],
        "torch._tensor": ["_rebuild_from_type_v2"],
        "torch._utils": ["_rebuild_parameter"],
    }.items():
        made = types.ModuleType(module)
        for name in names:
            made.__dict__[name] = type(name, (), {"__module__": module})
            found.setdefault(name, made.__dict__[name])
            found[f"{module}.{name}"] = made.__dict__[name]
        monkeypatch.setitem(sys.modules, module, made)
    return found


def instance(kind: Any, **state: Any) -> Any:
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["models.yolo", "ultralytics.nn.tasks"])
def test_a_class_of_the_engines_may_be_made_and_not_called(
    tmp_path: Path, engine: dict[str, Any], where: str, protocol: int
) -> None:
    """Its constructor evaluates text that it is given."""
    kind = engine[f"{where}.DetectionModel"]
    file = tmp_path / "best.pt"
    for attack in (
        Call(kind, EVAL),
        {"model": [Call(kind, EVAL)]},
        Call(engine["_rebuild_from_type_v2"], kind, engine["Tensor"], (EVAL,), None),
        Call(copyreg._reconstructor, engine["Conv"], kind, EVAL),  # type: ignore[attr-defined]
        instance(kind, forward=kind),  # called by whoever runs the model
        collections.OrderedDict({0: kind}),
    ):
        save(file, attack, protocol)
        assert pickles.strangers(file) == [f"{where}.DetectionModel"]
    save(file, {"model": instance(kind, yaml=LAYERS, names={0: "a (b)"}), "ema": None}, protocol)
    assert pickles.strangers(file) == []


@pytest.mark.parametrize("content", [b"(}imodels.yolo\nDetectionModel\n.", b"(cmodels.yolo\nDetectionModel\n}o."])
def test_the_oldest_ways_to_call_are_calls(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    assert pickles.strangers(tmp_path / "best.pt") == ["models.yolo.DetectionModel"]


def test_an_object_that_is_called_is_refused(tmp_path: Path) -> None:
    """A module with hooks would run them."""
    file = tmp_path / "best.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cmodels.common\nConv\n)\x81(tR.")
    assert pickles.strangers(file) == ["models.common.Conv"]


@pytest.mark.parametrize(
    "changed",
    [
        {"activation": "__import__('os').system('true')"},
        {"activation": "[0 for nn.X.__getitem__ in [eval]]"},
        {"activation": "nn.SiLU(open('x'))"},
        {"activation": "os.system"},
        {"head": [[-1, 1, "os.system", ["'true'"]]]},
        {"head": [[-1, 1, "DetectMultiBackend", ["'x.pt'"]]]},
        {"head": [[-1, 1, "DetectionModel", [EVAL]]]},
        {"head": [[-1, 1, "Conv", [["__import__('os')"]]]]},
        {"head": [[-1, 1, "Conv", {"a": "__import__('os')"}]]},
        {"head": "__import__('os')"},
        {"backbone": [["__import__('os')"]]},
    ],
)  # fmt: skip
def test_a_model_whose_description_is_a_program_is_refused(
    tmp_path: Path, engine: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Both engines evaluate it when they train on from the checkpoint."""
    file = tmp_path / "best.pt"
    save(file, {"model": instance(engine["DetectionModel"], yaml=LAYERS | changed)})
    with pytest.raises(LabError, match=r"would call eval\("):
        weights.require_checkpoint(file, file.name)


def test_a_description_by_other_ways_is_looked_at_too(tmp_path: Path, engine: dict[str, Any]) -> None:
    file = tmp_path / "best.pt"
    for thing in (
        instance(engine["DetectionModel"], _modules=collections.OrderedDict(yaml=EVAL)),
        instance(engine["DetectionModel"], yaml=collections.OrderedDict(EVAL)),
        instance(engine["DetectionModel"], yaml="of/somebody.yaml"),
    ):
        save(file, thing)
        assert any(strange.startswith("eval(") for strange in pickles.strangers(file))
    # taken over by BUILD, then written over in the dictionary that it came from
    written = (
        b"\x80\x02cmodels.yolo\nDetectionModel\n)\x81}q\x01X\4\0\0\0yaml}X\n\0\0\0activationX\4\0\0\0f(x)ssb"
        b"h\x01X\4\0\0\0yaml}s0."
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", written)
    assert pickles.strangers(file) == ["eval('f(x)')"]


def test_a_class_with_its_source_is_a_class(tmp_path: Path) -> None:
    """As torch wrote it before its zip archives."""
    file = tmp_path / "best.pt"
    first = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    module = b"\x80\x02(\x8c\x06modulecmodels.common\nConv\nX\x01\0\0\0aX\x01\0\0\0btQ)\x81."
    file.write_bytes(first + module + pickle.dumps([], 2))
    assert pickles.strangers(file) == []


@pytest.mark.parametrize("trick", ["capitals", "none", "another", "before", "behind", "comment", "NUL", "two ends"])
def test_an_archive_in_which_torch_may_read_another_pickle_is_refused(tmp_path: Path, trick: str) -> None:
    file = tmp_path / "best.pt"
    good, bad = pickle.dumps({}, 2), pickle.dumps(Attack("true"), 2)
    members = {
        "capitals": {"archive/DATA.PKL": bad},
        "none": {"archive/version": b"3"},
        "another": {"other/version": b"3", "archive/data.pkl": good},
        "NUL": {"a": bad, "archive/data.pkl": good},
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.get(trick, {"archive/data.pkl": good}).items():
            archive.writestr(name, content)
        archive.comment = b"PK\5\6" if trick == "comment" else b""
    content = file.read_bytes()
    if trick == "NUL":
        content = content.replace(b"a" + bad, b"\0" + bad)
    if trick == "before":
        content = b"PK\3\4" + content
    if trick == "behind":
        content += content
    if trick == "two ends":
        place = content.index(b"PK\5\6")
        record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, *struct.unpack("<II", content[-10:-2]))
        locator = b"PK\6\7" + struct.pack("<IQI", 0, 0, 1)
        content = content[:place] + record + locator + content[place:]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="archive"):
        pickles.strangers(file)


def test_a_long_archive_is_read(tmp_path: Path) -> None:
    """torch writes 64-bit records always; this is such an end."""
    file = tmp_path / "best.pt"
    save(file, {"epoch": 1})
    content = file.read_bytes()
    place = content.index(b"PK\5\6")
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 2, 2, *struct.unpack("<II", content[-10:-2]))
    locator = b"PK\6\7" + struct.pack("<IQI", 0, place, 1)
    file.write_bytes(content[:place] + record + locator + content[place:])
    assert pickles.strangers(file) == []


@pytest.mark.parametrize(("said", "restricted"), [("", "true"), ("1", "false")])
def test_ultralytics_loads_by_its_own_list_too(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, restricted: str
) -> None:
    monkeypatch.setenv(weights.TRUST, said)
    monkeypatch.setattr(environment, "_dejavu", lambda: tmp_path / "font")
    assert environment.child_environment(project, tmp_path / "scratch")["ULTRALYTICS_SAFE_LOAD"] == restricted


def test_an_own_class_may_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "best.pt"
    save(file, Attack("true"))
    monkeypatch.setenv(weights.TRUST, "1")
    weights.require_checkpoint(file, file.name)


def test_what_engines_save_is_let_in(tmp_path: Path) -> None:
    """The names of real checkpoints of both engines, current and published ones."""
    lines = [
        *("models.yolo DetectionModel", "models.yolo Model", "models.common C3", "models.yolo Detect"),
        *(
            "ultralytics.nn.tasks DetectionModel",
            "ultralytics.nn.modules.block C2f",
            "ultralytics.nn.modules.head Detect",
        ),
        *("ultralytics.utils IterableSimpleNamespace", "ultralytics.utils.loss v8DetectionLoss", "torch FloatStorage"),
        *("torch HalfStorage", "torch Size", "torch float16", "torch float8_e4m3fn", "torch device"),
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.nn.modules.activation SiLU"),
        *("torch.nn.modules.container Sequential", "torch.nn.modules.upsampling Upsample", "collections OrderedDict"),
        *("__builtin__ set", "numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray _reconstruct"),
        *("_codecs encode", "pathlib PosixPath"),
    ]
    assert [line for line in lines if not pickles.CHECKPOINT.fullmatch(line)] == []


def test_a_label_cache_that_is_a_program_is_deleted(project: Project, shapes: Path) -> None:
    """Both engines load label caches as full pickles, so a data set could bring one."""
    import numpy as np

    data = dataset.open_dataset(str(shapes), project)
    ours, theirs = (shapes.parent / "labels" / f"{split}.cache" for split in ("train", "val"))
    for file, content in (
        (ours, {"version": 0.6, "a.png": [np.zeros((1, 5), np.float32), (96, 96), []]}),
        (theirs, {"version": Attack(f"touch {project.root}/ran")}),
    ):
        with file.open("wb") as opened:
            np.save(opened, np.array(content, dtype=object), allow_pickle=True)
    assert stale.drop_foreign(data) == [theirs]
    assert ours.exists()
    assert not theirs.exists()
    theirs.write_bytes(pickle.dumps(Attack("true")))  # np.load takes a bare pickle too
    assert stale.drop_foreign(data) == [theirs]
    assert not (project.root / "ran").exists()
