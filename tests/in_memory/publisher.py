"""A publisher whose acknowledgements can be held back and made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.publisher import Delivered, OnDelivery
from schemas import headers as h

if TYPE_CHECKING:
    from tests.in_memory.broker import InMemoryBroker


class InMemoryPublisher:
    """Satisfies runtime.publisher.PublisherPort. Acknowledges at once unless `hold` was called."""

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._holding: Callable[[str], bool] = lambda topic: False
        self._held: list[tuple[Delivered, OnDelivery | None]] = []
        self._failures: dict[str, list[Exception]] = {}

    def hold(self, topic: str | None = None) -> None:
        """From now on records (of one topic) are in the log but not acknowledged."""
        self._holding = lambda name: topic is None or name == topic

    def release(self) -> None:
        """Acknowledge everything that is held, and from now on at once."""
        with self._lock:
            held, self._held = self._held, []
            self._holding = lambda topic: False
        for where, on_delivery in held:
            if on_delivery is not None:
                on_delivery(where, None)

    @property
    def held(self) -> int:
        return len(self._held)

    def fail_next(self, topic: str, *errors: Exception) -> None:
        """The next records of a topic are not taken, each with one of these errors reported."""
        self._failures.setdefault(topic, []).extend(errors)

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        report = on_delivery or _ignore
        if self._failures.get(topic):
            report(None, self._failures[topic].pop(0))
            return
        where = self._broker.append(topic, value, key, headers or [], partition)
        if self._holding(topic):
            with self._lock:
                self._held.append((where, on_delivery))
            return
        report(where, None)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
    ) -> Delivered:
        if self._failures.get(topic):
            raise self._failures[topic].pop(0)
        return self._broker.append(topic, value, key, headers or [], partition)

    def flush(self, timeout_s: float) -> int:
        return self.held


def _ignore(where: Delivered | None, error: Exception | None) -> None:
    """Nobody waits for this record."""
