"""uvicorn's HTTP/1.1 with limits: who says nothing, or no end, must leave, and at once where there is no room left."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Of a request besides its body: line, headers, marks of chunks, trailers. As much again as it has body is allowed, for
#: small chunks. What came together with a request's first byte is not counted.
MOST_HEAD_BYTES = 64 * 1024
_TOO_LARGE_TEXT = b"the head of a request may have 64 KiB"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TOO_LARGE_TEXT), _TOO_LARGE_TEXT)
)
_FULL_TEXT = b"this process has as many connections as it may have: try another one, or again later"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_FULL_TEXT), _FULL_TEXT)
)
#: Files and sockets besides the clients' connections: those to the servers, the log, libraries.
_OTHER_DESCRIPTORS = 256


class Room:
    """The connections that one server may have at once. For its event loop alone."""

    def __init__(self, most: int, on_closed: Callable[[str], None]) -> None:
        """on_closed: told of each connection closed for want of room: `silent` made way, `full` came too late."""
        self.most = most
        self.on_closed = on_closed
        #: Those whose head has not come yet, oldest first.
        self.silent: dict[PatientProtocol, None] = {}


class PatientProtocol(HttpToolsProtocol):
    """uvicorn times what is idle between two requests, and neither a first request nor one that comes byte by byte.

    Nor does it limit heads: the parser joins a header's pieces one by one, so that one of some megabytes holds up
    everybody else.
    """

    # A class of its own for each server (`protocol_with`): uvicorn makes the instances.
    #: Seconds for a request's head.
    head_timeout_s: ClassVar[float]
    room: ClassVar[Room]

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn, which knows its transport
        super().connection_made(transport)
        if len(self.connections) <= self.room.most or self._make_way():
            self._start()
        else:
            self.room.on_closed("full")
            self.transport.write(_FULL)
            self.transport.close()

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

    def leave(self) -> None:
        """Give up waiting for a head."""
        self._stop()
        self.transport.close()

    def _make_way(self) -> bool:
        """Close whoever has said nothing for the longest; False where all have said what they want."""
        oldest = next(iter(self.room.silent), None)
        if oldest is not None:
            self.room.on_closed("silent")
            oldest.leave()
        return oldest is not None

    def _start(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_late)
            self.room.silent[self] = None

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
            del self.room.silent[self]

    def _too_late(self) -> None:
        self._stop()
        if self.cycle is not None and not self.cycle.response_complete:
            # A pipelined head waits behind an answer that is still being made: that one goes first.
            self._start()
        elif not self.transport.is_closing():
            self.transport.close()


def protocol_with(head_timeout_s: float, room: Room) -> type[asyncio.Protocol]:
    """The protocol class for a server that gives a head so many seconds and has so much room."""
    return type("PatientProtocol", (PatientProtocol,), {"head_timeout_s": head_timeout_s, "room": room})


def descriptors_for(connections: int) -> int:
    """Raise this process's limit of open files for so many connections; how many it has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(connections, max(wanted - _OTHER_DESCRIPTORS, 1))
