"""One WebSocket as the protocols use it: frames in and out, a peer that is gone, a reader that does not read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ingest_api.problems import Problem, new_request_id

log = logging.getLogger(__name__)

#: A peer that takes nothing for so long is dropped.
SEND_TIMEOUT_S = 10.0
NORMAL, INTERNAL, RESTART, TRY_LATER = 1000, 1011, 1012, 1013
UNAUTHENTICATED, FORBIDDEN, IDLE = 4401, 4403, 4408

#: What sending to a peer that has left raises: TimeoutError is an OSError; RuntimeError: another task closed it.
_LOST = (OSError, RuntimeError, WebSocketDisconnect)

Handler = Callable[[WebSocket], Awaitable[None]]


class AbortingProtocol(WebSocketsSansIOProtocol):
    """uvicorn's own, but a peer that takes nothing is cut off: closing would wait for it without end.

    And an upgrade that was answered with a refusal is no fault: anybody could fill the log with them.
    """

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.writable.is_set():
            self.transport.abort()


class Gone(Exception):
    """The peer has left, or was dropped."""


class Socket:
    """An accepted connection. `receive` for one task, `send` and `close` for any."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self, timeout_s: float | None = None) -> str | bytes:
        """The next frame. Raises Gone, and TimeoutError after `timeout_s`."""
        # Not wait_for: up to Python 3.11 that loses a cancellation which meets a frame that has just come.
        async with asyncio.timeout(timeout_s):
            message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        text: str | None = message.get("text")
        return text if text is not None else message.get("bytes") or b""

    async def send(self, frame: str | bytes) -> None:
        """Raises Gone, also where the peer takes nothing within SEND_TIMEOUT_S."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                if isinstance(frame, str):
                    await self._websocket.send_text(frame)
                else:
                    await self._websocket.send_bytes(frame)
        except _LOST as error:
            raise Gone from error

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; `receive` raises Gone from then on."""
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            # The reason of a close frame has at most 123 bytes.
            async with asyncio.timeout(1.0):
                await self._websocket.close(code, reason.encode()[:120].decode(errors="ignore"))
        except _LOST:
            return


async def deny(websocket: WebSocket, problem: Problem) -> None:
    """Answer the upgrade with a problem document instead of a connection."""
    await websocket.send_denial_response(problem.response())


def guarded(handler: Handler) -> Handler:
    """A handler whose faults are logged and end its connection with 1011."""

    async def run(websocket: WebSocket) -> None:
        try:
            await handler(websocket)
        except Exception:
            log.exception("session failed", extra={"action": "internal_error", "request_id": new_request_id()})
            await Socket(websocket).close(INTERNAL, "the service failed: connect again")

    return run
