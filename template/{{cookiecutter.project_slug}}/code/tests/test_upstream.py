"""Fetching, with a small stand-in for YOLOv5: `DIGEST` and `COMMIT` are set to its content."""

import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lab import upstream
from lab.errors import LabError
from lab.project import Project

FILES = {"train.py": b"print('train')\n", "models/yolov5n.yaml": b"nc: 80\n", "LINK.md": b"train.py"}


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, project: Project, tmp_path: Path) -> Project:
    monkeypatch.setattr(upstream, "DIGEST", upstream.digest(upstream.listing(FILES)))
    monkeypatch.setenv("YOLOV5_GIT_URL", str(tmp_path / "no-such-repository"))
    place = tmp_path / "code" / "yolov5"
    monkeypatch.setattr(Project, "upstream", property(lambda _: place))
    project.wheelhouse.mkdir()
    return replace(project)


def tarball(file: Path, files: dict[str, bytes], top: str = "yolov5-5081342f/") -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            if name == "LINK.md":
                member.type, member.linkname = tarfile.SYMTYPE, content.decode()
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_blob_name_is_gits() -> None:
    assert upstream.blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_an_archive_in_wheelhouse_comes_first(pinned: Project) -> None:
    tarball(pinned.wheelhouse / "yolov5-5081342f.tar.gz", FILES)
    assert "wheelhouse/yolov5-5081342f.tar.gz, verified" in upstream.fetch(pinned)
    assert (pinned.upstream / "models" / "yolov5n.yaml").read_bytes() == b"nc: 80\n"
    assert not (pinned.upstream / "LINK.md").is_symlink()
    assert upstream.changed(pinned.upstream) == []
    assert "already here" in upstream.fetch(pinned)
    assert [path.name for path in pinned.upstream.parent.iterdir()] == ["yolov5"]


def test_a_zip_without_a_top_directory_holds_the_same(pinned: Project) -> None:
    with zipfile.ZipFile(pinned.wheelhouse / "yolov5-x.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert "verified" in upstream.fetch(pinned)


def test_git_gives_the_pinned_commit_only(pinned: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    for name, content in FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "pinned")
    monkeypatch.setattr(upstream, "COMMIT", git(source, "rev-parse", "HEAD"))
    (source / "train.py").write_text("later\n", encoding="utf-8")
    git(source, "commit", "--quiet", "-am", "later")
    monkeypatch.setenv("YOLOV5_GIT_URL", str(source))
    assert "verified" in upstream.fetch(pinned)
    assert (pinned.upstream / "train.py").read_bytes() == FILES["train.py"]
    assert not (pinned.upstream / ".git").exists()


def test_changed_content_is_refused_and_leaves_nothing(pinned: Project) -> None:
    tarball(pinned.wheelhouse / "yolov5-bad.tar.gz", {**FILES, "train.py": b"import evil\n"})
    with pytest.raises(LabError, match="does not hold the pinned content") as caught:
        upstream.fetch(pinned)
    assert "YOLOV5_GIT_URL" in caught.value.sentence
    assert "wheelhouse/" in caught.value.sentence
    assert caught.value.status == 1
    assert not pinned.upstream.exists()


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py"])
def test_a_path_that_leaves_the_archive_is_refused(pinned: Project, name: str) -> None:
    archive = pinned.wheelhouse / "yolov5-x.tar.gz"
    tarball(archive, {**FILES, name: b""}, top="")
    with pytest.raises(LabError, match="refused"):
        upstream.read_archive(archive)


def test_a_broken_archive_is_a_sentence(pinned: Project) -> None:
    (pinned.wheelhouse / "yolov5-x.zip").write_bytes(b"not a zip")
    with pytest.raises(LabError, match=r"yolov5-x\.zip cannot be read"):
        upstream.fetch(pinned)


def test_an_edited_file_is_named(pinned: Project) -> None:
    tarball(pinned.wheelhouse / "yolov5-x.tar.gz", FILES)
    upstream.fetch(pinned)
    (pinned.upstream / "train.py").write_text("edited\n", encoding="utf-8")
    (pinned.upstream / "__pycache__").mkdir()
    assert upstream.changed(pinned.upstream) == ["train.py"]
    with pytest.raises(LabError, match=r"differs .* in train\.py"):
        upstream.fetch(pinned)
    (pinned.upstream / upstream.PINNED).write_text("", encoding="utf-8")
    assert upstream.changed(pinned.upstream) == [upstream.PINNED]


def test_a_directory_of_the_users_is_left_alone(pinned: Project) -> None:
    pinned.upstream.mkdir(parents=True)
    (pinned.upstream / "mine.py").write_text("", encoding="utf-8")
    with pytest.raises(LabError, match="move them away"):
        upstream.fetch(pinned)
    assert (pinned.upstream / "mine.py").exists()


@pytest.mark.parametrize("damage", ["flipped", "dot"])
def test_a_damaged_archive_is_named_and_git_is_still_asked(pinned: Project, damage: str) -> None:
    archive = pinned.wheelhouse / "yolov5-5081342f.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("." if damage == "dot" else "yolov5/train.py", b"print('train')\n" * 50)
    if damage == "flipped":
        content = bytearray(archive.read_bytes())
        content[50:60] = bytes(byte ^ 0xFF for byte in content[50:60])
        archive.write_bytes(content)
    with pytest.raises(LabError, match=r"(?s)yolov5-5081342f\.zip .*git ") as refused:
        upstream.fetch(pinned)
    assert "\n" not in refused.value.sentence


def test_an_address_is_never_an_option_of_git(pinned: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_GIT_URL", f"--upload-pack=touch {tmp_path / 'pwned'};")
    with pytest.raises(LabError):
        upstream.fetch(pinned)
    assert not (tmp_path / "pwned").exists()
