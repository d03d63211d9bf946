"""uvicorn's HTTP/1.1 with a clock and a limit on the head of each request: who says nothing, or no end, must leave."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Of a request besides its body: line, headers, marks of chunks, trailers. As much again as it has body is allowed, for
#: small chunks. What came together with a request's first byte is not counted.
MOST_HEAD_BYTES = 64 * 1024
_TOO_LARGE_TEXT = b"the head of a request may have 64 KiB"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TOO_LARGE_TEXT), _TOO_LARGE_TEXT)
)


class PatientProtocol(HttpToolsProtocol):
    """uvicorn times what is idle between two requests, and neither a first request nor one that comes byte by byte.

    Nor does it limit heads: the parser joins a header's pieces one by one, so that one of some megabytes holds up
    everybody else.
    """

    #: Seconds for a request's head. A class of its own for each server: uvicorn makes the instances.
    head_timeout_s = 20.0

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn, which knows its transport
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._start()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head_bytes -= 2 * len(body)

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
