"""What a pickle would call when it is loaded: a checkpoint or a label cache of somebody else may be a program.

Both engines load checkpoints and label caches as full pickles, which may call anything of any module. Here the pickle
is run with a stand-in for whatever it names, so nothing of it happens. Three things are looked at, because each of them
can run a program: the names, against those that the engines' own files hold; the calls, because a constructor of a
model evaluates text that it is given; and the text in a model's description, which the engines evaluate when they train
on from it. It refuses what is known; it is no proof that a file is harmless.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

Said = tuple[str, str]  # (module, name)

LEGACY = (
    5  # pickles in a row that torch wrote before its zip archives: magic, protocol, system, the object, its storages
)
LIMIT = (
    64 << 20
)  # bytes of one pickle; those of checkpoints hold no weights, and a cache has some 200 bytes a label file
NPY = b"\x93NUMPY"
ZIP = b"PK\3\4"

_ARRAYS = (
    r"numpy(?:\._?core\.(?:multiarray|numeric|_multiarray_umath))? (?:_reconstruct|_frombuffer|scalar|ndarray|dtype)"
)
_PLAIN = r"_codecs encode|collections OrderedDict"
_CLASS = "[A-Z][A-Za-z0-9_]*"  # no dot: protocol 4 would go on from a class to what its module imports
_CALLED = (
    _ARRAYS,
    _PLAIN,
    rf"numpy\.dtypes {_CLASS}|numpy (?:bool_|(?:int|uint|float)\d+)",
    r"(?:__builtin__|builtins) (?:set|frozenset|slice|dict|list|tuple|int|float|str|bool|complex|object)",
    r"collections (?:defaultdict|deque|Counter)|copy_?reg _reconstructor",
    r"argparse Namespace|types SimpleNamespace|ultralytics\.utils IterableSimpleNamespace",
    r"pathlib(?:\._local)? (?:Pure)?(?:Posix|Windows)?Path|datetime (?:datetime|date|timedelta)",
    r"torch (?:Size|device|Generator|Tensor|[a-z]*\d+(?:_[a-z0-9]+)?)|torch\.nn\.parameter (?:Parameter|Buffer)",
    r"torch\._(?:utils|tensor) _rebuild_\w+",  # not torch.storage._load_from_bytes, which loads another pickle
)
CACHE = re.compile(f"{_ARRAYS}|{_PLAIN}")
CALLS = re.compile("|".join(_CALLED))
CHECKPOINT = re.compile(
    "|".join(
        (
            *_CALLED,
            r"torch [A-Z][A-Za-z0-9]*(?:Storage|Tensor)",
            r"torch\.(?:storage|nn\.parameter) " + _CLASS,
            r"torch\.(?:nn\.modules|optim|amp|cuda\.amp)(?:\.\w+)* " + _CLASS,
            r"torch\.nn\.functional [a-z_0-9]+|torchvision\.(?:models|ops)(?:\.\w+)* " + _CLASS,
            r"models\.(?:common|yolo|experimental) (?!DetectMultiBackend)" + _CLASS,
            r"ultralytics\.nn\.(?:modules(?:\.\w+)*|tasks) " + _CLASS,
            r"ultralytics\.utils\.(?:loss|tal) (?:v8)?" + _CLASS,
        )
    )
)
# Classes whose constructors evaluate text: a pickle makes objects of them (NEWOBJ), and has no use for them as values,
# which something else would call later.
_MODELS = re.compile(r"(?:models|ultralytics\.nn)\..*")

# A model's `yaml` is evaluated word by word: `activation`, and the layers' names and arguments.
_TORCH = r"(?:torch\.)?nn\.[A-Z]\w*|torchvision\.ops\.[A-Z]\w*"
_ATOM = r"""(?:[-+]?[\d.]+(?:e[-+]?\d+)?|[A-Za-z_]\w*|'[^'"\\]*'|"[^'"\\]*")"""
_MADE = rf"(?:{_TORCH})\((?:(?:\w+=)?{_ATOM}(?:,\s*|(?=\))))*\)"
_LAYER = re.compile(rf"{_TORCH}|(?!DetectMultiBackend|AutoShape|\w*Model$)[A-Z]\w*")
_WORD = re.compile(rf"\s*(?:{_ATOM}|\[\s*(?:{_ATOM}(?:,\s*|(?=\s*\])))*\s*\]|{_TORCH}|{_MADE})\s*|")


class _Named(type):
    """Stands for a function or a class that a pickle names; a call of it is noted, and does nothing."""

    said: Said
    reader: _Reader

    def __call__(cls, *given: Any, **more: Any) -> Any:
        cls.reader.called.add(cls.said)
        # what is handed to a call may be called by it; the class that _reconstructor makes an object of is not
        handed = given[1:] if cls.said[1] == "_reconstructor" else given
        cls.reader.called |= {one.said for one in handed if isinstance(one, _Named)}
        kind: Any = cls
        return kind.__new__(kind, *handed, **more)


class _Made:
    """Stands for an object; takes whatever a pickle does to it, keeps what it is given, and does nothing."""

    said: Said
    reader: _Reader

    def __new__(cls, *given: Any, **more: Any) -> _Made:
        made = object.__new__(cls)
        made.reader.held.append((given, more))
        return made

    def __call__(self, *_: Any, **__: Any) -> _Made:
        self.reader.driven.add(self.said)
        return self

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        # as it is now: the pickle may change the dictionary after the object has taken over what is in it
        self.reader.held.append([dict(part) if isinstance(part, dict) else part for part in parts])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.reader.held.append({key: value} if isinstance(key, str) else (key, value))

    def append(self, given: Any) -> None:
        """Of lists, sets and the like, by whatever name."""
        self.reader.held.append(given)

    def __hash__(self) -> int:
        return 0

    extend = add = append


class _Reader(pickle.Unpickler):
    """Collects what a pickle asks for, what it calls, and what it hands to whom."""

    def __init__(self, file: IO[bytes], known: re.Pattern[str]) -> None:
        super().__init__(file)
        self.known = known
        self.asked: dict[Said, _Named] = {}
        self.called: set[Said] = set()
        self.driven: set[Said] = set()  # classes of objects that are called themselves: no checkpoint does that
        # what a model could be described by; a cache knows no model, and hands out a hundred thousand arrays
        self.held: deque[Any] = deque(maxlen=0 if known is CACHE else None)

    base: type[_Made] = _Made  # of the stand-ins

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, whatever it is."""
        said = (module, name)
        if said not in self.asked:
            self.asked[said] = _Named("Stand", (self.base,), {"said": said, "reader": self})
        return self.asked[said]

    def persistent_load(self, about: Any) -> Any:
        """Storages, whose kind was asked for by name; and, in the older row of pickles, classes with their source."""
        if isinstance(about, tuple) and about[:1] == ("module",) and isinstance(about[1], _Named):
            return about[1]
        kind: Any = _Named("Stand", (_Made,), {"said": ("torch", "storage"), "reader": self})
        return kind.__new__(kind)

    def strange(self) -> set[str]:
        """What is not known, or not used as the engines do."""
        unknown = {said for said in self.asked if not self.known.fullmatch(" ".join(said))}
        called = {said for said in self.called if not CALLS.fullmatch(" ".join(said))}
        return {".".join(said) for said in unknown | called | self.driven} | set(_evaluated(self.held))


class Thing(_Made):
    """Stands for an object, and keeps what it is made of: what its maker was given, its state, and its items."""

    given: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *given: Any, **_: Any) -> Thing:
        """Keeps what its maker is given."""
        made = object.__new__(cls)
        made.given, made.state, made.items = given, None, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class _Describer(_Reader):
    base = Thing

    def persistent_load(self, about: Any) -> Any:
        kind: Any = _Named("Stand", (Thing,), {"said": ("torch", "storage"), "reader": self})
        return kind.__new__(kind, *about)


def described(file: Path) -> tuple[Any, Callable[[str, int], bytes]]:
    """What a checkpoint in torch's zip archive holds, a `Thing` for each object; nothing of it runs.

    Returned beside it: reads so many bytes of the storage with a key. Raises OSError, ValueError, and whatever a
    damaged pickle makes of itself.
    """

    def storage(key: str, size: int) -> bytes:
        with zipfile.ZipFile(file) as archive:
            home = archive.namelist()[0].partition("/")[0]
            with archive.open(f"{home}/data/{key}") as inside:
                return inside.read(size)

    with file.open("rb") as opened:
        if opened.read(len(ZIP)) != ZIP:
            raise ValueError("no archive of torch's")
        return _Describer(_archived(opened), CACHE).load(), storage


def strangers(file: Path, known: re.Pattern[str] = CHECKPOINT) -> list[str]:
    """What loading `file` would call beside the `known` ("module name"): ["os.system"]; [] for an ordinary file.

    Raises ValueError when that cannot be told to the end: what is damaged for us may be whole for another reader.
    Raises OSError.
    """
    found: set[str] = set()
    fault = ""
    with file.open("rb") as opened:
        try:
            for part in _pickles(opened):
                reader = _Reader(part, known)
                try:
                    reader.held.append(reader.load())
                finally:
                    found |= reader.strange()
        except OSError:
            raise
        except Exception as error:  # damaged pickles and archives raise whatever they like
            fault = " ".join(str(error).split())[:120] or type(error).__name__
    if fault and not found:
        raise ValueError(fault)
    return sorted(found)


def _evaluated(held: Iterable[Any]) -> Iterator[str]:
    """Classes of models that lie about as values, and text in a model's `yaml` that is more than a word of it."""
    seen: set[int] = set()
    left = list(held)
    while left:
        one = left.pop()
        if isinstance(one, _Named):
            if _MODELS.fullmatch(one.said[0]):
                yield ".".join(one.said)
        elif isinstance(one, (dict, list, tuple, set, frozenset)) and id(one) not in seen:
            seen.add(id(one))
            left += one
            if isinstance(one, dict):
                left += one.values()
                if one.get("yaml") is not None:
                    yield from _programs(one["yaml"])


def _programs(description: Any) -> Iterator[str]:
    """What is no plain word in a model's description, shortened: ["eval('...')"]."""
    if not isinstance(description, dict):
        yield f"eval({str(description)[:60]!r})"
        return
    yield from _unspoken([description.get("activation")])
    for key in ("backbone", "head"):
        rows = description.get(key, [])
        for row in rows if isinstance(rows, list) else [rows]:
            whole = isinstance(row, (list, tuple)) and len(row) >= 4  # from, number, module, arguments
            if not whole or not (isinstance(row[2], str) and _LAYER.fullmatch(row[2])):
                yield f"eval({str(row)[:60]!r})"
            else:
                yield from _unspoken(row[3:])


def _unspoken(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, dict):
            yield from _unspoken((*value, *value.values()))
        elif isinstance(value, (list, tuple)):
            yield from _unspoken(value)
        elif not isinstance(value, (int, float, type(None))) and not (
            isinstance(value, str) and _WORD.fullmatch(value)
        ):
            yield f"eval({str(value)[:60]!r})"


def _pickles(opened: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickles in a checkpoint (a zip archive, or the older row of pickles) or an .npy file. Raises ValueError."""
    begin = opened.read(len(NPY))
    opened.seek(0)
    if begin.startswith(ZIP):  # torch looks at these four bytes, too
        yield _archived(opened)
    elif begin == NPY:
        version = opened.read(8)[6]
        size = int.from_bytes(opened.read(2 if version == 1 else 4), "little")
        opened.seek(size, io.SEEK_CUR)
        yield _whole(opened)
    else:
        _refuse_tar(opened)
        row = io.BytesIO(opened.read(LIMIT))  # weights follow
        for _ in range(LEGACY):
            yield row


def _archived(opened: IO[bytes]) -> IO[bytes]:
    """The pickle in torch's zip archive. Raises ValueError for one in which torch's own reader might find another.

    That one (miniz) takes offsets as they are, the 64-bit record from where its locator points, names without regard to
    case and up to a NUL, and its archive's name from the first member. Python's does none of that. So nothing may stand
    before the archive or behind it, the records of its end lie side by side, and there is one pickle.
    """
    size = opened.seek(0, io.SEEK_END)
    opened.seek(max(0, size - 98))
    end = opened.read().rjust(98, b"\0")  # 56 bytes of the 64-bit record, 20 of its locator, 22 of the older one
    if end[76:80] != b"PK\5\6" or end[96:] != b"\0\0":
        raise ValueError("something follows its archive, or it is cut short")
    offset = int.from_bytes(end[92:96], "little")
    if end[56:60] == b"PK\6\7":
        if end[:4] != b"PK\6\6" or int.from_bytes(end[64:72], "little") != size - 98:
            raise ValueError("its archive has two ends")
        offset = int.from_bytes(end[48:56], "little")
    with zipfile.ZipFile(opened) as archive:
        if archive.start_dir != offset:
            raise ValueError("something stands before its archive")
        names = [member.orig_filename for member in archive.infolist()]
        home = names[0].partition("/")[0] if names else ""
        found = [name for name in names if name.lower().endswith(".pkl")]
        if found != [f"{home}/data.pkl"] or not all(name.startswith(f"{home}/") and "\0" not in name for name in names):
            raise ValueError(f"its archive is not laid out as torch's, with one {home[:40]}/data.pkl")
        with archive.open(found[0]) as inside:
            return _whole(inside)


def _whole(stream: IO[bytes]) -> IO[bytes]:
    content = stream.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError(f"its pickle has more than {LIMIT >> 20} MiB")
    return io.BytesIO(content)


def _refuse_tar(opened: IO[bytes]) -> None:
    """torch still reads the tar archives of its first year, whatever their first bytes are."""
    try:
        tarfile.open(fileobj=opened, mode="r:").close()
    except tarfile.TarError:
        opened.seek(0)
        return
    raise ValueError("a tar archive, as torch wrote before 2017")
