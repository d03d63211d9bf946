"""uvicorn's HTTP/1.1 with a clock on the head of each request: who connects and says nothing is shown out."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class PatientProtocol(HttpToolsProtocol):
    """uvicorn times what is idle between two requests, and neither a first request nor one that comes byte by byte."""

    #: Seconds for a request's head. A class of its own for each server: uvicorn makes the instances.
    head_timeout_s = 20.0

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn, which knows its transport
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        self._stop()
        super().on_headers_complete()

    def _start(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_late)

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # A pipelined head waits behind an answer that is still being made: that one goes first.
            self._start()
        elif not self.transport.is_closing():
            self.transport.close()


def protocol_with(head_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol class for a server that gives a head so many seconds."""
    members: dict[str, Any] = {"head_timeout_s": head_timeout_s}
    return type("PatientProtocol", (PatientProtocol,), members)
