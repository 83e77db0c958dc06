"""One connection of `lab serve`: uvicorn's, and no patience with those that send nothing, or read nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
READ_SECONDS = 30.0
SHARE = 2048  # connections of one address, of serve.CONNECTIONS; behind a reverse proxy all have the same


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose next request has no complete head within HEAD_SECONDS, or that reads too slowly.

    uvicorn's own limit ends when a byte comes, and begins after the first answer only. The body's time is the
    application's; what is left of a body that was refused falls under this limit too. Answers that are not read have
    no limit in uvicorn: here their buffer must shrink within READ_SECONDS of filling up, and be empty so long after the
    connection was closed.
    """

    peers: ClassVar[Counter[str]] = Counter()

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request; an address that has its share already is turned away."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.peers[self._address] += 1
        if self.peers[self._address] > SHARE:
            transport.abort()
            return
        self._wait()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The answers' buffer is full: begin to wait for their reader."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """Somebody reads."""
        if self._unread:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        for timer in (self._patience, self._unread):
            if timer:
                timer.cancel()
        self.peers[self._address] -= 1
        if not self.peers[self._address]:
            del self.peers[self._address]
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._patience:
            self._patience.cancel()
        self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # the application works, in its own time
            return
        self.transport.close()  # it sends what is in the buffer first, however long that takes
        if self.transport.get_write_buffer_size():
            self._expect_reading()

    def _expect_reading(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)
