"""The outcomes of a run, read from the log itself: when each stage of each request began and ended."""

from __future__ import annotations

import time
from collections.abc import Collection

from confluent_kafka import TopicPartition

from runtime.kafka import build_consumer, end_positions
from runtime.settings import Settings
from schemas.messages import Outcome, StageTimes
from schemas.topics import OUTCOMES


class OutcomeLog:
    """Remembers where vla.outcomes.v1 ends when it is made."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = build_consumer(settings, "benchmark-outcomes", group=None)
        ends = end_positions(self._consumer, OUTCOMES)
        self._consumer.assign([TopicPartition(OUTCOMES, number, offset) for number, offset in ends.items()])

    def read(self, request_ids: Collection[str], timeout_s: float = 10.0) -> dict[str, StageTimes]:
        """Stage times by request id, of those that have an outcome by `timeout_s` from now. Call once."""
        found: dict[str, StageTimes] = {}
        wanted = set(request_ids)
        end = time.monotonic() + timeout_s
        while len(found) < len(wanted) and time.monotonic() < end:
            for message in self._consumer.consume(500, timeout=0.2):
                if message.error() is None:
                    outcome = Outcome.FromString(message.value() or b"")
                    if outcome.request.request_id in wanted:
                        found[outcome.request.request_id] = outcome.times
        self._consumer.close()
        return found
