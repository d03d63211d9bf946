"""A client of openpi's wire: msgpack over WebSocket, one request a connection at a time, over many kept connections.

The server speaks first (a map of metadata), then answers each observation with one map that holds `actions`. An error
comes as a text frame, which the server follows by closing the connection. openpi, vLLM-Omni (at
/v1/realtime/robot/openpi) and SGLang (at /openpi/policy) speak it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from runtime.errors import Fatal, Retry
from schemas.openpi_wire import unpack

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class ServerError(Exception):
    """The server failed on this observation. Its traceback is in our log, and in nobody's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is, and for how long it is waited for."""

    url: str
    api_key: str = ""
    connect_timeout_s: float = 5.0
    timeout_s: float = 10.0


class OpenpiClient:
    """Thread-safe. At most `connections` requests are with the server at once; connections are kept and reused."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int,
        is_same: Callable[[bytes], bool] = lambda metadata: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """is_same: whether a connection's metadata are those of the server that was met first."""
        self._endpoint = endpoint
        self._is_same = is_same
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[ClientConnection] = []
        self._open: set[ClientConnection] = set()
        self._closed = False
        self._failures = 0
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="openpi")

    def metadata(self) -> bytes:
        """What the server says of itself, packed as it came. Raises Retry while it is away, Fatal for good."""
        connection, metadata = self._connect()
        self._keep(connection)
        return metadata

    def probe(self) -> None:
        """Raises Retry while the server is away."""
        connection, _ = self._connect()
        self._keep(connection)

    def infer(self, observations: Sequence[bytes]) -> list[Any]:
        """An answer for each packed observation, in order, all asked at once.

        Raises Retry where the server went away or did not answer in time, ServerError where it failed, Fatal where it
        serves something else by now.
        """
        waiting = [self._pool.submit(self._exchange, packed) for packed in observations]
        answers, errors = [], list[BaseException]()
        for future in waiting:
            error = future.exception()
            if error is not None:
                errors.append(error)
            else:
                answers.append(future.result())
        if errors:
            # What cannot be mended by trying again is said first.
            raise next((error for error in errors if not isinstance(error, Retry)), errors[0])
        with self._lock:
            self._failures = 0
        return answers

    def close(self) -> None:
        """Give up what is with the server, so that nothing keeps the process from ending."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            self._drop(connection)

    def _exchange(self, packed: bytes) -> Any:
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._ask(kept, packed)
            except (WebSocketException, OSError) as error:
                # It closed while nobody looked; the observation has no effect on the server, so it may go again.
                self._drop(kept)
                if isinstance(error, TimeoutError):
                    raise self._away(error) from error
        connection, _ = self._connect()
        try:
            return self._ask(connection, packed)
        except (WebSocketException, OSError) as error:
            self._drop(connection)
            raise self._away(error) from error

    def _ask(self, connection: ClientConnection, packed: bytes) -> Any:
        connection.send(packed)
        answer = connection.recv(timeout=self._endpoint.timeout_s)
        if isinstance(answer, str):
            self._drop(connection)
            log.error("the policy server failed: %s", answer[-2000:], extra={"action": "policy_server"})
            raise ServerError("the policy server failed on an observation; its traceback is in the worker's log")
        try:
            unpacked = unpack(answer)
        except ValueError:
            self._drop(connection)
            raise
        self._keep(connection)
        return unpacked

    def _connect(self) -> tuple[ClientConnection, bytes]:
        where = self._endpoint
        if self._closed:
            raise Retry("this worker is ending")
        headers = {"Authorization": f"Api-Key {where.api_key}"} if where.api_key else None
        try:
            opening = connect(
                where.url,
                additional_headers=headers,
                compression=None,
                max_size=None,
                proxy=None,
                open_timeout=where.connect_timeout_s,
                close_timeout=1.0,
                # A server that infers in its event loop answers no ping meanwhile.
                ping_interval=None,
            )
            # Kept beyond this call: `_drop` and `close` end it.
            connection = opening.__enter__()
            self._opened(connection)
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise Fatal(f"{where.url} refuses the key ({status}): set POLICY_API_KEY") from error
            if status in (400, 404, 405):
                raise Fatal(f"{where.url} is no openpi endpoint ({status}): correct `url` in the card") from error
            raise self._away(error) from error
        except (WebSocketException, OSError) as error:
            raise self._away(error) from error
        try:
            metadata = connection.recv(timeout=where.connect_timeout_s)
        except (WebSocketException, OSError) as error:
            self._drop(connection)
            raise self._away(error) from error
        if not isinstance(metadata, bytes):
            self._drop(connection)
            raise Fatal(f"{where.url} does not begin with metadata: it does not speak openpi's protocol")
        if not self._is_same(metadata):
            self._drop(connection)
            raise Fatal(f"{where.url} serves another model than before: this worker begins anew")
        return connection, metadata

    def _opened(self, connection: ClientConnection) -> None:
        """Raises Retry where `close` has gone by meanwhile: that ends only what was open then."""
        with self._lock:
            self._open.add(connection)
            ending = self._closed
        if ending:
            self._drop(connection)
            raise Retry("this worker is ending")

    def _keep(self, connection: ClientConnection) -> None:
        with self._lock:
            self._idle.append(connection)

    def _drop(self, connection: ClientConnection) -> None:
        """Close without waiting for the other side, which may be hung."""
        with self._lock:
            self._open.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
        connection.close_socket()

    def _away(self, error: BaseException) -> Retry:
        """The server is away; the longer, the longer the pause."""
        with self._lock:
            pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
            self._failures = min(self._failures + 1, 10)
        detail = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        return Retry(f"{self._endpoint.url} is away ({detail})", after_s=pause_s)
