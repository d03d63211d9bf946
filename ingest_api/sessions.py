"""WebSocket sessions of this process, whatever their protocol: bounded, listed, and drained when it stops."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ingest_api.problems import Problem, fault
from runtime.metrics import Metrics
from schemas.codes import Code

#: Robots listed of one session: more may come by it, the last ones are named.
MOST_ROBOTS = 32
#: Sessions of one customer for each that is free, as in admission: alone it gets 8/9 of all.
_SHARE = 8
_RETRY_S = 5.0


@dataclass(slots=True, eq=False)
class Session:
    """What is known of one open connection. `owed`: requests that it waits for."""

    protocol: str
    customer_id: str
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_seen: datetime = field(default_factory=lambda: datetime.now(UTC))
    robots: dict[str, None] = field(default_factory=dict)
    owed: int = 0
    requests: int = 0
    chunks: int = 0
    errors: int = 0
    #: Called once when the process begins to stop.
    on_stop: Callable[[], None] = lambda: None

    def seen(self) -> None:
        self.last_seen = datetime.now(UTC)

    def asks(self, robot_id: str) -> None:
        """A request of this robot was sent to the log."""
        self.requests += 1
        self.robots.pop(robot_id, None)
        self.robots[robot_id] = None
        if len(self.robots) > MOST_ROBOTS:
            del self.robots[next(iter(self.robots))]

    def document(self) -> dict[str, Any]:
        return {
            "session_id": self.session_id,
            "protocol": self.protocol,
            "since": self.since,
            "last_seen": self.last_seen,
            "robots": list(self.robots),
            "in_flight": self.owed,
            "requests": self.requests,
            "chunks": self.chunks,
            "errors": self.errors,
        }


class Sessions:
    """Of the event loop's thread alone. capacity: connections at once, those without a key yet included."""

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._open: dict[Session, None] = {}
        self._by_customer: Counter[str] = Counter()
        self._guests = 0
        self._none_left = asyncio.Event()
        self.stopping = False

    def of(self, customer_id: str) -> list[Session]:
        return [session for session in self._open if session.customer_id == customer_id]

    @contextmanager
    def guest(self) -> Iterator[None]:
        """A connection whose key is not known yet. Raises Problem 503."""
        self._check_running()
        # A quarter of the room: who shows no key never keeps those out who have one.
        if self._guests >= max(self._capacity // 4, 1):
            raise _full("no room for connections without a key now: send it as a header, or come again")
        self._guests += 1
        try:
            yield
        finally:
            self._guests -= 1

    @contextmanager
    def open(self, protocol: str, customer_id: str) -> Iterator[Session]:
        """A session for as long as the `with` block. Raises Problem 429 or 503."""
        self._check_running()
        free, own = self._capacity - len(self._open), self._by_customer[customer_id]
        if free <= 0:
            raise _full(f"{self._capacity} sessions are open, which is all that may be: try again later")
        if own >= _SHARE * free:
            detail = f"{own} sessions are yours, which is your share now: close some"
            violation = fault("authorization", "customer_share", detail)
            raise Problem(Code.QUOTA, detail, violations=[violation], retry_after_s=_RETRY_S)
        session = Session(protocol, customer_id)
        self._open[session] = None
        self._by_customer[customer_id] += 1
        self._metrics.stream_sessions.labels(protocol).inc()
        try:
            yield session
        finally:
            del self._open[session]
            self._by_customer[customer_id] -= 1
            if not self._by_customer[customer_id]:
                del self._by_customer[customer_id]
            self._metrics.stream_sessions.labels(protocol).dec()
            if not self._open:
                self._none_left.set()

    async def drain(self, timeout_s: float) -> None:
        """No new session; those that are open end when they have their answers, or after the time is up."""
        self.stopping = True
        self._none_left.clear()
        for session in list(self._open):
            session.on_stop()
        if self._open:
            try:
                await asyncio.wait_for(self._none_left.wait(), timeout_s)
            except TimeoutError:
                return

    def _check_running(self) -> None:
        if self.stopping:
            raise Problem(Code.UNAVAILABLE, "this process is stopping: connect again", retry_after_s=1.0)


def _full(detail: str) -> Problem:
    violation = fault("system", "sessions_full", detail)
    return Problem(Code.OVERLOADED, detail, violations=[violation], retry_after_s=_RETRY_S)
