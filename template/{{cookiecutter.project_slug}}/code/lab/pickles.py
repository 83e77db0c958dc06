"""What a pickle would call when it is loaded: a checkpoint or a label cache of somebody else may be a program.

Both engines load checkpoints and label caches as full pickles, which may name any function of any module. Here the
pickle is run with a stand-in for whatever it names, so nothing of it happens, and the names are compared with those
that the engines' own files hold. It refuses the usual attacks; it is no proof that a file is harmless.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Names = set[tuple[str, str]]  # (module, name)

LEGACY = (
    5  # pickles in a row that torch wrote before its zip archives: magic, protocol, system, the object, its storages
)
LIMIT = (
    64 << 20
)  # bytes of one pickle; those of checkpoints hold no weights, and a cache has some 200 bytes a label file
NPY = b"\x93NUMPY"

_ARRAYS = (
    r"numpy(?:\._?core\.(?:multiarray|numeric|_multiarray_umath))? (?:_reconstruct|_frombuffer|scalar|ndarray|dtype)"
)
_PLAIN = r"_codecs encode|collections OrderedDict"
_CLASS = "[A-Z][A-Za-z0-9_]*"  # no dot: protocol 4 would go on from a class to what its module imports
CACHE = re.compile(f"{_ARRAYS}|{_PLAIN}")
CHECKPOINT = re.compile(
    "|".join(
        (
            _ARRAYS,
            _PLAIN,
            rf"numpy\.dtypes {_CLASS}|numpy (?:bool_|(?:int|uint|float)\d+)",
            r"(?:__builtin__|builtins) (?:set|frozenset|slice|dict|list|tuple|int|float|str|bool|complex|object)",
            r"collections (?:defaultdict|deque|Counter)|copyreg _reconstructor",
            r"argparse Namespace|types SimpleNamespace",
            r"pathlib(?:\._local)? (?:Pure)?(?:Posix|Windows)?Path|datetime (?:datetime|date|timedelta)",
            r"torch (?:Size|device|Generator|[a-z]*\d+(?:_[a-z0-9]+)?|[A-Z][A-Za-z0-9]*(?:Storage|Tensor))",
            r"torch\._(?:utils|tensor) _rebuild_\w+",  # not torch.storage._load_from_bytes, which loads another pickle
            r"torch\.(?:storage|nn\.parameter) " + _CLASS,
            r"torch\.(?:nn\.modules|optim|amp|cuda\.amp)(?:\.\w+)* " + _CLASS,
            r"torch\.nn\.functional [a-z_0-9]+|torchvision\.(?:models|ops)(?:\.\w+)* " + _CLASS,
            r"models\.(?:common|yolo|experimental) (?!DetectMultiBackend)" + _CLASS,
            r"ultralytics\.nn\.(?:modules(?:\.\w+)*|tasks) " + _CLASS,
            r"ultralytics\.utils\.(?:loss|tal) (?:v8)?" + _CLASS,
            r"ultralytics\.utils IterableSimpleNamespace",
        )
    )
)


class _Anything:
    """Stands for a class, a function and what they make; takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Anything:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0

    append = extend = add = update = __call__


class _Reader(pickle.Unpickler):
    """Collects the names that a pickle asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.asked: Names = set()

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, whatever it is."""
        self.asked.add((module, name))
        return _Anything

    def persistent_load(self, _: Any) -> Any:
        """Storages of a checkpoint; their kind was asked for by name."""
        return _Anything()


def strangers(file: Path, known: re.Pattern[str] = CHECKPOINT) -> list[str]:
    """What loading `file` would call beside the `known` ("module name"): ["os.system"]; [] for an ordinary file.

    Raises ValueError when that cannot be told to the end: what is damaged for us may be whole for another reader.
    Raises OSError.
    """
    found: Names = set()
    fault = ""
    with file.open("rb") as opened:
        try:
            for part in _pickles(opened):
                reader = _Reader(part)
                try:
                    reader.load()
                finally:
                    found |= reader.asked
        except OSError:
            raise
        except Exception as error:  # damaged pickles and archives raise whatever they like
            fault = " ".join(str(error).split())[:120] or type(error).__name__
    strange = sorted(f"{module}.{name}" for module, name in found if not known.fullmatch(f"{module} {name}"))
    if fault and not strange:
        raise ValueError(fault)
    return strange


def _pickles(opened: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickles in a checkpoint (a zip archive, or the older row of pickles) or an .npy file. Raises ValueError."""
    begin = opened.read(len(NPY))
    opened.seek(0)
    if begin.startswith(b"PK"):
        with zipfile.ZipFile(opened) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    with archive.open(member) as inside:
                        yield _whole(inside)
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
