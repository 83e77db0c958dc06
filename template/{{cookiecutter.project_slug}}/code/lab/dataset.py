"""A data set in YOLOv5's layout: what its yaml file says, whether it is there, and a copy with absolute paths."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lab.errors import LabError
from lab.project import Project

# picture formats that both engines read
IMAGES = frozenset((".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp", ".pfm"))
SPLITS = ("train", "val", "test")
COPIED = ", with absolute paths"  # how the first line of our copies ends, behind the name of the original


@dataclass(frozen=True)
class Dataset:
    """A data set's yaml file, read: absolute sources by split (directories, or text files that list pictures)."""

    file: Path
    names: dict[int, str]
    sources: dict[str, list[Path]]
    extra: dict[str, Any]  # keys that are not ours, handed on

    def images(self, split: str) -> Iterator[Path]:
        """The pictures of `split`, absolute, in the order of the directories."""
        for source in self.sources.get(split, []):
            yield from listed(source) if source.suffix == ".txt" else walked(source)


def walked(directory: Path) -> Iterator[Path]:
    """Pictures below `directory`, sorted within each directory."""
    for place, directories, files in os.walk(directory, followlinks=True):
        directories.sort()
        yield from (Path(place, name) for name in sorted(files) if Path(name).suffix.lower() in IMAGES)


def listed(file: Path) -> Iterator[Path]:
    """Pictures named by the lines of `file`; a relative line counts from the file's own directory."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip():
            yield Path(os.path.normpath(file.parent / line.strip()))


def label_path(image: str) -> str:
    """Where both engines look for the labels of `image`: the last directory `images` becomes `labels`."""
    head, found, tail = image.rpartition("/images/")
    there = f"{head}/labels/{tail}" if found else image
    stem, dot, ending = there.rpartition(".")
    return f"{stem if dot and '/' not in ending else there}.txt"


def label_file(image: Path) -> Path:
    """`label_path` for a Path."""
    return Path(label_path(str(image)))


class Entry(NamedTuple):
    """A picture of a split, its label file, and its name within the source that it was found in. Paths are absolute.

    `name` is the same wherever the data set lies, as long as its sources are laid out alike.
    """

    split: str
    path: str
    label: str
    name: str


def entries(dataset: Dataset, passed_over: Callable[[str, os.DirEntry[str]], None] | None = None) -> Iterator[Entry]:
    """Every picture of every split, one at a time, in no order: memory does not grow with their number.

    `passed_over` gets the split and the files beside the pictures that are none.
    """
    for split, sources in dataset.sources.items():
        for source in sources:
            if source.suffix == ".txt":
                yield from _listed_entries(split, source)
            else:
                yield from _walked_entries(split, str(source), passed_over)


def _listed_entries(split: str, source: Path) -> Iterator[Entry]:
    base = f"{source.parent}/"
    with source.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                path = os.path.normpath(base + line.strip() if line[0] != "/" else line.strip())
                # outside the list's own directory, only what follows images/ belongs to the data set
                name = path[len(base) :] if path.startswith(base) else _after_images(path)
                yield Entry(split, path, label_path(path), name)


def _after_images(path: str) -> str:
    _, found, tail = path.rpartition("/images/")
    return tail if found else path.rpartition("/")[2]


def _walked_entries(
    split: str, source: str, passed_over: Callable[[str, os.DirEntry[str]], None] | None
) -> Iterator[Entry]:
    waiting = [source]
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    while waiting:
        directory = waiting.pop()
        status = os.stat(directory)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        labels = label_path(f"{directory}/x")[: -len("x.txt")]
        inside = f"{directory}/"[len(source) + 1 :]
        with os.scandir(directory) as found:
            for entry in found:
                name = entry.name
                stem, dot, ending = name.rpartition(".")
                if dot + ending.lower() in IMAGES and not entry.is_dir():
                    yield Entry(split, f"{directory}/{name}", f"{labels}{stem}.txt", inside + name)
                elif entry.is_dir():
                    waiting.append(f"{directory}/{name}")
                elif passed_over is not None:
                    passed_over(split, entry)


def stale_caches(dataset: Dataset) -> list[Path]:
    """Label caches of the engines that are older than a label or a picture. Costs a `stat` for each file.

    YOLOv5 knows its cache by paths and sizes alone, so labels that were edited without a change of size train as they
    were before (YOLOv5's issues 306 and 12301).
    """
    newest: dict[Path, int] = {}
    lists = [source for sources in dataset.sources.values() for source in sources if source.suffix == ".txt"]
    owner, place = "", Path()
    for entry in entries(dataset):
        directory = entry.label.rpartition("/")[0]
        if directory != owner:
            owner, place = directory, Path(directory).with_suffix(".cache")
        latest = max(_changed(entry.label), _changed(entry.path))
        for cache in (place, *(source.with_suffix(".cache") for source in lists)):
            newest[cache] = max(newest.get(cache, 0), latest)
    return sorted(cache for cache, latest in newest.items() if 0 < _changed(cache) < latest)


def _changed(path: str | Path) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def open_dataset(name: str, project: Project, need: tuple[str, ...] = ("train", "val")) -> Dataset:
    """Read the yaml file `name` and make sure that the splits in `need` have pictures, and train has labels.

    `path` inside it counts from the yaml file's own directory, then from the project's root (YOLOv5 itself would take
    its own clone, ultralytics a global setting). Raises LabError.
    """
    file = project.find(name)
    if file is None:
        hint = "make the demo data with `lab data demo`" if name == project.data else "nothing is downloaded here"
        raise LabError(f"the data file {name} does not exist: {hint}, or name another with --data")
    said = _read(file)
    dataset = Dataset(
        file=file,
        names=_names(said, file),
        sources=_sources(said, file, project, need),
        extra={key: said[key] for key in said if key not in (*SPLITS, "path", "names", "nc", "download")},
    )
    for split in need:
        _require_content(dataset, split)
    return dataset


def _read(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise LabError(f"{file} is a directory: --data wants the data set's yaml file")
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise LabError(f"{file} must hold the keys train, val and names")
    return said


def _names(said: dict[str, Any], file: Path) -> dict[int, str]:
    names = said.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise LabError(f"{file} has no names: add `names: [first class, second class]`")
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise LabError(f"{file}: names must be numbered 0 to {len(names) - 1} without a gap")
    unclear = next(
        (name for name in names.values() if not isinstance(name, (str, int, float)) or isinstance(name, bool)), ""
    )
    if unclear != "":
        raise LabError(f"{file}: yaml reads one of the names as {unclear!r}: put it in quotes, such as 'yes'")
    if "nc" in said and said["nc"] != len(names):
        raise LabError(f"{file}: nc is {said['nc']} and names has {len(names)}: delete nc, it follows from names")
    return {number: str(names[number]) for number in sorted(names)}


def _sources(said: dict[str, Any], file: Path, project: Project, need: tuple[str, ...]) -> dict[str, list[Path]]:
    sources: dict[str, list[Path]] = {}
    for split in SPLITS:
        given = said.get(split)
        if not given:
            if split in need:
                raise LabError(
                    f"{file} has no {split}: add the directory of its images, such as `{split}: images/{split}`"
                )
            continue
        entries = [str(entry) for entry in (given if isinstance(given, list) else [given])]
        found = [_locate(entry, said.get("path"), file, project) for entry in entries]
        missing = next((entry for entry, path in zip(entries, found, strict=True) if path is None), None)
        if missing is not None and split in need:
            raise LabError(f"{file}: {split} is {missing}, and that is not at {_first_place(missing, said, file)}")
        if missing is None:
            sources[split] = [path for path in found if path is not None]
    return sources


def _bases(path: Any, file: Path, project: Project) -> list[Path]:
    return [base / str(path or "") for base in (file.parent, project.root)]


def _locate(entry: str, path: Any, file: Path, project: Project) -> Path | None:
    for base in _bases(path, file, project):
        place = Path(os.path.normpath(base / entry))
        if place.is_dir() or place.is_file():
            return place
    return None


def _first_place(entry: str, said: dict[str, Any], file: Path) -> Path:
    return Path(os.path.normpath(file.parent / str(said.get("path") or "") / entry))


def _require_content(dataset: Dataset, split: str) -> None:
    where = ", ".join(str(source) for source in dataset.sources[split])
    images = dataset.images(split)
    first = next(images, None)
    if first is None:
        raise LabError(f"{dataset.file}: {split} has no pictures in {where}")
    if split == "train" and not any(label_file(image).is_file() for image in itertools.chain([first], images)):
        raise LabError(
            f"{dataset.file}: no labels for the pictures of train; {first} wants {label_file(first)} "
            "(one line a box: class x y width height, as fractions of the picture)"
        )


def write_absolute(dataset: Dataset, directory: Path) -> Path:
    """Write a copy with absolute paths and without `download:` into `directory`; returns the new yaml file.

    Lists of pictures are copied too where a line is neither absolute nor begins with ./ (YOLOv5 takes such a line
    from the current directory).
    """
    said: dict[str, Any] = {}
    for split, sources in dataset.sources.items():
        # a name for each copy: train/files.txt and val/files.txt must not become one
        copies = [directory / f"{split}-{number}-{source.name}" for number, source in enumerate(sources)]
        paths = [
            str(_absolute_list(source, copy) if source.suffix == ".txt" else source)
            for source, copy in zip(sources, copies, strict=True)
        ]
        said[split] = paths if len(paths) > 1 else paths[0]
    said["names"] = dataset.names
    file = directory / "data.yaml"
    file.write_text(
        f"# {dataset.file}{COPIED}\n" + yaml.safe_dump({**said, **dataset.extra}, sort_keys=False),
        encoding="utf-8",
    )
    return file


def original(file: Path) -> Path | None:
    """The data set's yaml file of which `file` is a copy by `write_absolute`; None when it is none."""
    try:
        first = file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return Path(first[2:].removesuffix(COPIED)) if first.startswith("# ") and first.endswith(COPIED) else None


def _absolute_list(source: Path, copy: Path) -> Path:
    lines = source.read_text(encoding="utf-8", errors="replace").split()
    if all(line.startswith(("/", "./")) for line in lines):
        return source
    copy.write_text("".join(f"{image}\n" for image in listed(source)), encoding="utf-8")
    return copy


def require_writable_images(dataset: Dataset) -> None:
    """Raises LabError when `--cache disk` could not write its arrays beside the pictures."""
    for split in ("train", "val"):
        image = next(dataset.images(split), None)
        if image is not None and not os.access(image.parent, os.W_OK):
            raise LabError(
                f"--cache disk writes beside each picture, and {image.parent} is read-only: use --cache ram, or none"
            )
