"""One robot's connection to `/v1/stream`, blocking: under locust's gevent a robot that waits lets the others go on."""

from __future__ import annotations

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from robot_client.stream_frames import (
    SUBPROTOCOL,
    Answer,
    Frame,
    Frames,
    GoAway,
    Resumed,
    Welcome,
    read_frame,
    write_request,
    write_resume,
)
from robot_client.websocket import stream_url
from schemas.messages import InferenceRequest

#: What opening, sending and receiving raise when the connection or the server is away.
LOST = (WebSocketException, OSError, EOFError)
_TIMEOUT_S = 10.0


class Lost(Exception):
    """The server ends the session, or said something that does not belong here."""


class Connection:
    """Opens at once. One request may be unanswered at a time. Raises LOST and Lost.

    received_bytes: of the last frame that came.
    """

    def __init__(self, host: str, key: str, frames: Frames) -> None:
        self.received_bytes = 0
        self._frames = frames
        self._socket: ClientConnection = connect(
            stream_url(host),
            additional_headers={"Authorization": f"Bearer {key}"},
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            proxy=None,
            open_timeout=_TIMEOUT_S,
            ping_interval=None,
            close_timeout=1.0,
        )
        if not isinstance(first := self._receive(_TIMEOUT_S), Welcome):
            self.close()
            raise Lost(f"the server began with {first}")

    def ask(self, request: InferenceRequest) -> None:
        self._socket.send(write_request(request, self._frames))

    def answer(self, timeout_s: float) -> Answer | None:
        """The next answer; None if none comes in time."""
        try:
            frame = self._receive(timeout_s)
        except TimeoutError:
            return None
        if isinstance(frame, GoAway):
            raise Lost(f"the server stops: come back in {frame.retry_after_s:g} s")
        return frame if isinstance(frame, Answer) else None

    def resume(self, request: InferenceRequest) -> None:
        """After a drop: have the answer come here; a request that the server does not know is sent again."""
        self._socket.send(write_resume([request.request_id]))
        frame = self._receive(_TIMEOUT_S)
        if not isinstance(frame, Resumed):
            raise Lost(f"`resume` was answered by {frame}")
        if frame.unknown:
            self.ask(request)

    def drop(self) -> None:
        """As a robot that has left the range of its network: without a goodbye."""
        self._socket.socket.close()
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def _receive(self, timeout_s: float) -> Frame:
        frame = self._socket.recv(timeout=max(timeout_s, 0.0))
        self.received_bytes = len(frame)
        return read_frame(frame)
