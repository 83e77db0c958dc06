"""`lab data split`: lists of pictures for training, validation and test. Seeded, by group, and nothing is moved."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.dataset import SPLITS, label_path, walked
from lab.errors import FAILED, LabError

OURS = "# by `lab data"  # how the yaml files begin that we wrote


@dataclass(frozen=True)
class Lists:
    """What was written: the yaml file, and pictures and groups by split."""

    file: Path
    pictures: dict[str, int]
    groups: dict[str, int]


def split(
    images: Path,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group_by: str = "",
    out: Path | None = None,
    force: bool = False,
) -> Lists:
    """Share the pictures below `images` out, and write train.txt, val.txt, test.txt and data.yaml into `out`.

    group_by: "" each picture by itself; "folder", pictures of a directory stay together; else a regular expression,
    and pictures for which it finds the same text (its first group, if it has one) stay together: the frames of a video,
    the pictures of a day, so that validation sees nothing that training has nearly seen.
    Which group goes where depends on the seed and on the groups' names, not on the order of files. Raises LabError.
    """
    if not images.is_dir():
        raise LabError(f"{images} is no directory: give the directory that holds the pictures")
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise LabError(f"--val {val} --test {test}: give shares that leave something for training, such as 0.2 and 0.1")
    place = _root(images) if out is None else out
    groups: dict[str, list[str]] = defaultdict(list)
    for picture in walked(images):
        name = os.path.relpath(picture, images)
        groups[_group(name, group_by)].append(os.path.relpath(picture, place))
    if len(groups) < 2 + (test > 0):
        what = f"groups by --group-by {group_by}" if group_by else "pictures"
        raise LabError(f"{images} holds {len(groups)} {what}: too few to share out")
    shared = {name: chosen for name, chosen in _share_out(groups, {"test": test, "val": val}, seed).items() if chosen}
    said = {"path": ".", **{name: f"{name}.txt" for name in shared}, "names": _names(images, place)}
    file = place / ("data.yaml" if force or _ours(place / "data.yaml") else "split.yaml")
    text = f"{OURS} split --seed {seed}`; paths count from this file\n"
    text += yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    _write(file, text, {name: _lines(groups, chosen) for name, chosen in shared.items()}, force)
    pictures = {name: sum(len(groups[group]) for group in chosen) for name, chosen in shared.items()}
    return Lists(file, pictures, {name: len(chosen) for name, chosen in shared.items()})


def _root(images: Path) -> Path:
    """The data set's root: what holds the directory images, else the pictures' own directory."""
    parts = images.parts
    if "images" in parts:
        return Path(*parts[: len(parts) - 1 - parts[::-1].index("images")])
    return images


def _group(name: str, group_by: str) -> str:
    if not group_by:
        return name
    if group_by == "folder":
        return os.path.dirname(name)  # noqa: PTH120
    try:
        found = re.search(group_by, name)
    except re.error as error:
        raise LabError(f"--group-by {group_by}: {error}; give `folder` or a regular expression") from error
    if found is None:
        raise LabError(f"--group-by {group_by} finds nothing in {name}: every picture must be of a group")
    return found.group(1 if found.re.groups else 0) or ""


def _share_out(groups: dict[str, list[str]], shares: dict[str, float], seed: int) -> dict[str, list[str]]:
    """Groups by split. Each split is filled up to its share, in the order of a digest of seed and name.

    A group goes where it comes closest, so a split of large groups may be a little larger or smaller than its share.
    """
    order = sorted(groups, key=lambda group: hashlib.blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest())
    total = sum(len(pictures) for pictures in groups.values())
    wanted = {name: share * total for name, share in shares.items() if share}
    shared: dict[str, list[str]] = {name: [] for name in SPLITS}
    for number, (name, most) in enumerate(wanted.items()):
        others = len(wanted) - number  # a group each for the splits that follow, train among them
        count = 0
        while len(order) > others:
            more = len(groups[order[0]])
            if shared[name] and abs(count + more - most) > abs(count - most):
                break
            shared[name].append(order.pop(0))
            count += more
    shared["train"] = order
    return shared


def _lines(groups: dict[str, list[str]], chosen: list[str]) -> str:
    # a line that begins with ./ counts from the list for both engines
    return "".join(f"./{picture}\n" for picture in sorted(p for group in chosen for p in groups[group]))


def _names(images: Path, place: Path) -> Any:
    """The classes: of a yaml file in `place` or at the data set's root, of classes.txt, else numbers, as many as the
    labels have.
    """
    bases = list(dict.fromkeys((place, _root(images))))
    for file in (file for base in bases for file in (base / "data.yaml", *sorted(base.glob("*.yaml")))):
        try:
            said = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(said, dict) and said.get("names"):
            names = said["names"]
            return dict(enumerate(names)) if isinstance(names, list) else names
    for file in (base / "classes.txt" for base in (*bases, images)):
        if file.is_file():
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            return dict(enumerate(lines))
    most = max((number for picture in walked(images) for number in _numbers(picture)), default=-1)
    if most < 0:
        raise LabError(
            f"{images}: its pictures have no labels, and no data.yaml or classes.txt in {bases[-1]} names classes"
        )
    return {number: f"class {number}" for number in range(most + 1)}


def _numbers(picture: Path) -> Iterator[int]:
    try:
        text = Path(label_path(str(picture))).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if word.isdigit():
            yield int(word)


def _ours(file: Path) -> bool:
    """Whether a yaml file is absent, or one that `lab data` wrote; a person's own stays."""
    try:
        return file.read_text(encoding="utf-8").startswith(OURS)
    except OSError:
        return True


def _write(file: Path, text: str, lists: dict[str, str], force: bool) -> None:
    there = [path for name in SPLITS if (path := file.with_name(f"{name}.txt")).exists()]
    again = file.is_file() and _ours(file)
    if not again and not force and file.is_file():
        there = [*there, file]
    if there and not again and not force:
        raise LabError(f"{there[0]} exists already: add --force to replace it, or name another directory with --out")
    if not force:
        _require_none_dropped([path for path in there if path.suffix == ".txt"], lists)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path in there:
            path.unlink(missing_ok=True)
        for name, lines in lists.items():
            file.with_name(f"{name}.txt").write_text(lines, encoding="utf-8")
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabError(f"{file.parent} cannot be written ({error.strerror})", FAILED) from error


def _require_none_dropped(there: list[Path], lists: dict[str, str]) -> None:
    """Raises LabError when a list has lines, added since we wrote it, that no new one has.

    A line whose picture is gone is dropped; a picture that a list names twice, to be seen more often, is an addition.
    """
    new = Counter(line for text in lists.values() for line in text.splitlines())
    for path in there:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise LabError(
                f"{path} cannot be read: add --force to replace it, or name another directory with --out"
            ) from None
        added = []
        for line in lines:
            named = f"./{os.path.normpath(line)}"
            if new[named] > 0:
                new[named] -= 1
            elif (path.parent / line).exists():
                added.append(line)
        if added:
            count = f"{len(added)} lines" if len(added) > 1 else "a line"
            raise LabError(
                f"{path} has {count} of yours that this split would drop, such as {added[0]}: add --force to drop "
                f"{'them' if len(added) > 1 else 'it'}, or name another directory with --out"
            )
