"""The CA certificates that a site adds to its hosts, for the image build."""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import re
import stat
from pathlib import Path

from .catalogue import BadRequest
from .probe import CERTIFICATE_SUFFIXES, certificate_files
from .terminal import shortened

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
ENTRIES = 5_000  # of a directory that is named; /etc/ssl/certs has some 400
CERTIFICATES = 4 << 20  # bytes of a file that is read: the bundle of every public CA has a quarter of a MiB


def collect_certificates(extra: str, project: Path) -> bytes:
    """The CA certificates that this site adds, as PEM, each once; b"" when there are none.

    `extra` is a file or a directory that the user names, relative to the project. Raises BadRequest when it is neither,
    and when nothing in it is a certificate: to go on without would only fail later, in the middle of a download.
    """
    found: dict[bytes, None] = {}
    for file in certificate_files():
        with contextlib.suppress(OSError):
            found.update(dict.fromkeys(certificates(_beginning(file))))
    if extra:
        found.update(dict.fromkeys(_named_certificates(extra, project)))
    return b"".join(_pem(der) for der in found)


def _named_certificates(extra: str, project: Path) -> list[bytes]:
    named = f"EXTRA_CA_CERTS={shortened(extra)}"
    found: list[bytes] = []
    try:
        files = _named_files(project / Path(extra).expanduser())
        if len(files) == 1 and files[0].stat().st_size > CERTIFICATES:
            raise BadRequest(f"{named} is larger than {CERTIFICATES >> 20} MiB: name a file of CA certificates.")
        for file in files:
            try:
                found += certificates(_beginning(file))
            except OSError:  # beside others it may be somebody's private key
                if len(files) == 1:
                    raise
    except BadRequest:
        raise
    except OSError as error:
        raise BadRequest(f"{named} cannot be read ({error.strerror}): correct it or remove it.") from None
    except (RuntimeError, ValueError):  # ~somebody who is not there; a byte that no path can hold
        raise BadRequest(f"{named} is no path on this host: correct it or remove it.") from None
    if not found:
        raise BadRequest(f"{named} holds no certificate: name a PEM or DER file of a CA, or a directory of such files.")
    return found


def _named_files(place: Path) -> list[Path]:
    """The file, or what in the directory is called like a certificate; nothing else (a pipe, a device) is opened."""
    if stat.S_ISDIR(place.stat().st_mode):
        every = list(itertools.islice(place.rglob("*"), ENTRIES + 1))
        if len(every) > ENTRIES:
            raise BadRequest(f"EXTRA_CA_CERTS={place} holds more than {ENTRIES} files: name the file or its directory.")
        return [path for path in sorted(every) if path.suffix.lower() in CERTIFICATE_SUFFIXES and path.is_file()]
    return [place] if place.is_file() else []


def _beginning(file: Path) -> bytes:
    """A file's content, b"" when it is too large to be certificates."""
    with file.open("rb") as opened:
        content = opened.read(CERTIFICATES + 1)
    return content if len(content) <= CERTIFICATES else b""


def certificates(content: bytes) -> list[bytes]:
    """The certificates in a PEM file, or the one that a DER file is, as DER."""
    if _is_der_certificate(content):
        return [content]
    found = []
    for body in _PEM.findall(content):
        with contextlib.suppress(binascii.Error, ValueError):
            der = base64.b64decode(b"".join(body.split()), validate=True)
            if _sequence(der):
                found.append(der)
    return found


def _is_der_certificate(content: bytes) -> bool:
    """Whether bytes are SEQUENCE { SEQUENCE, SEQUENCE, BIT STRING } (RFC 5280, 4.1), which no private key is."""
    return [tag for tag, _ in _parts(_sequence(content))] == [0x30, 0x30, 0x03]


def _sequence(content: bytes) -> bytes:
    """What an ASN.1 SEQUENCE holds; b"" when the bytes are none, or more or fewer than its length says."""
    parts = _parts(content) if content[:1] == b"\x30" else []
    return parts[0][1] if len(parts) == 1 else b""


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """The ASN.1 elements (tag, content) that follow each other in DER; none when the lengths do not fit the bytes."""
    parts = []
    place = 0
    while place < len(content):
        head = content[place : place + 2]
        if len(head) < 2 or head[1] in {0x80, 0xFF}:
            return []
        start, size = place + 2, head[1]
        if size & 0x80:  # the long form: so many bytes of length follow
            start += size & 0x7F
            size = int.from_bytes(content[place + 2 : start], "big")
        place = start + size
        if place > len(content) or start > len(content):
            return []
        parts.append((head[0], content[start:place]))
    return parts


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"
