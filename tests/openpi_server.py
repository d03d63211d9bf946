"""A small server of openpi's wire, which answers as the test says. It packs with its own lines, not with ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

Answer = Callable[[dict[str, Any]], dict[str, Any] | str | None]


def encode(value: Any) -> Any:
    """Arrays as openpi's msgpack_numpy writes them."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return value


def decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"])
    return value


class OpenpiServer:
    """`answer`: a map, a traceback (sent as text, then closed), or None to say nothing at all."""

    def __init__(self, answer: Answer, *, metadata: dict[str, Any] | None = None, key: str = "") -> None:
        self.answer = answer
        self.metadata = metadata if metadata is not None else {"model": "test"}
        self.key = key
        self.seen: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        #: Requests that were with the server at once, at most.
        self.most_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}/policy"

    def start(self) -> None:
        """On the port of before, if it ran before."""
        self._server = serve(
            self._handle, "127.0.0.1", self._port, compression=None, max_size=None, process_request=self._admit
        )
        self._port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.socket.close()
        for connection in self.connections:
            connection.close_socket()
        self._server = None

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != "/policy":
            return connection.respond(404, "nothing here\n")
        given = request.headers.get("Authorization", "")
        return connection.respond(401, "no\n") if self.key and given != f"Api-Key {self.key}" else None

    def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        connection.send(msgpack.packb(self.metadata, default=encode))
        try:
            for message in connection:
                self._serve(connection, msgpack.unpackb(message, object_hook=decode))
        except (ConnectionClosed, OSError):
            return

    def _serve(self, connection: ServerConnection, observation: dict[str, Any]) -> None:
        with self._lock:
            self.seen.append(observation)
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        try:
            answer = self.answer(observation)
        finally:
            with self._lock:
                self._inside -= 1
        if isinstance(answer, str):
            connection.send(answer)
            connection.close(1011)
        elif answer is not None:
            connection.send(msgpack.packb(answer, default=encode))


@contextmanager
def openpi_server(answer: Answer, **options: Any) -> Iterator[OpenpiServer]:
    server = OpenpiServer(answer, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def chunk_of(horizon: int, dim: int, pause_s: float = 0.0) -> Answer:
    """Actions that depend on everything that a server is sent."""

    def answer(observation: dict[str, Any]) -> dict[str, Any]:
        time.sleep(pause_s)
        flat = np.concatenate([np.ravel(value).astype(np.float64) for value in _arrays(observation)])
        seed = int(abs(flat.sum()) * 1e3) + len(observation["prompt"]) + int(observation.get("seed", 0)) * 7919
        actions = np.random.default_rng(seed % 2**32).uniform(-0.01, 0.01, (horizon, dim))
        return {"actions": actions, "server_timing": {"infer_ms": 1.0}}

    return answer


def _arrays(observation: dict[str, Any]) -> Iterator[np.ndarray]:
    for value in observation.values():
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, dict):
            yield from _arrays(value)
