"""Log every name look-up and connection of a Python process to the file named by $NETWORK_LOG, one line each.

Put this directory on PYTHONPATH; Python imports the module in every process it starts, children included. Lines read
`PID lookup HOST` or `PID connect ADDRESS`; loopback is marked `loopback-lookup` and `loopback-connect`, unix
sockets are not. Audit hooks see the C-level calls too, so a library cannot slip past with a reference of its own.
"""

from __future__ import annotations

import os
import sys

LOOPBACK = ("127.", "::1", "localhost")


def _log(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        kind, target = "lookup", str(arguments[0])
    elif event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):
            return  # a unix socket's address is a path, a netlink one is not the network
        kind, target = "connect", str(address[0])
    else:
        return
    if target in ("None", "", "0.0.0.0") or target.startswith(LOOPBACK):
        kind = f"loopback-{kind}"
    line = f"{os.getpid()} {kind} {target} {os.path.basename(sys.argv[0]) if hasattr(sys, 'argv') else ''}\n"  # noqa: PTH119
    with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123  no import in an audit hook
        log.write(line)


if os.environ.get("NETWORK_LOG"):
    sys.addaudithook(_log)
