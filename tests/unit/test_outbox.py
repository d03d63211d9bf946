"""The outbox: whose turn it is, until when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import Retry, Unavailable
from runtime.kafka import DELIVERY_TIMEOUT_S
from runtime.outbox import drain
from runtime.publisher import OnDelivery
from schemas.topics import CUSTOMERS

#: librdkafka says a second later, at most, that a record's time is up; then its thread comes round.
SETTLES_S = DELIVERY_TIMEOUT_S + 2.0


class Hanging:
    """Postgres with two records in the outbox, and a producer whose broker hangs: it gives up after SETTLES_S."""

    def __init__(self, room: int = 2) -> None:
        self._room = room
        self._with_the_producer: list[OnDelivery] = []
        self._settled = 0
        #: What the producer still had when the lock was let go.
        self.left: int | None = None

    @contextmanager
    def begin(self) -> Iterator[Hanging]:
        try:
            yield self
        finally:
            self.left = len(self._with_the_producer)

    def execute(self, statement: object) -> SimpleNamespace:
        row = {"topic": CUSTOMERS, "key": "c-1", "event_type": "vla.customer.v1", "value": b""}
        rows = [SimpleNamespace(id=number, created_at=datetime.now(UTC), **row) for number in (1, 2)]
        return SimpleNamespace(scalar_one=lambda: True, all=lambda: rows)

    def publish(self, topic: str, value: bytes, *, on_delivery: OnDelivery, **more: Any) -> None:
        if not self._room:
            raise Retry("the producer's queue is full")
        self._room -= 1
        self._with_the_producer.append(on_delivery)

    def release(self) -> None:
        self._settled += 1

    def acquire(self, timeout: float) -> bool:
        """A semaphore's, with the time that passes meanwhile."""
        if not self._settled and timeout >= SETTLES_S:
            while self._with_the_producer:
                self._with_the_producer.pop()(None, Unavailable("timed out"))
        if not self._settled:
            return False
        self._settled -= 1
        return True


@pytest.mark.parametrize("room", [2, 1, 0])
def test_nobody_else_sends_before_the_producer_has_given_up_its_last_record(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    hanging = Hanging(room)
    monkeypatch.setattr("runtime.outbox.threading", SimpleNamespace(Semaphore=lambda value: hanging))
    with pytest.raises(Unavailable if room == 2 else Retry):
        drain(hanging, hanging)  # type: ignore[arg-type] # it has what is called of either
    assert hanging.left == 0
