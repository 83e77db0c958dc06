"""Passwords and tokens in addresses: used as they are given, and neither shown nor written down."""

from __future__ import annotations

import re

# https://user:password@host, rtsp://…; the name alone may be a token. ssh://git@host holds no secret.
_USERINFO = re.compile(r"(?<!ssh)://[^\s/'\"]*@")
_QUERY = re.compile(r"([?&][\w.-]*(?:token|key|password|passwd|pwd|secret|signature)=)[^&\s'\"]+", re.IGNORECASE)


def hidden(text: str) -> str:
    """`text` with *** for what lets somebody in, in each address that it holds."""
    return _QUERY.sub(r"\1***", _USERINFO.sub("://***@", text))
