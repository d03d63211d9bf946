"""Reads an outcome back from vla.outcomes.v1 at its offset: the log is the cache of first answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.errors import Retry
from runtime.kafka import check_consumed
from runtime.lifecycle import Deadline
from schemas.topics import OUTCOMES


class OutcomeLog:
    """One groupless consumer, built at the first question; questions are answered one after the other."""

    def __init__(self, build: Callable[[], Consumer], timeout_s: float = 3.0) -> None:
        self._build = build
        self._timeout_s = timeout_s
        self._consumer: Consumer | None = None
        self._lock = asyncio.Lock()

    async def read(self, partition: int, offset: int) -> bytes | None:
        """Value of the record; None where retention has taken it. Raises Retry while Kafka is away."""
        async with self._lock:
            return await asyncio.to_thread(self._read, partition, offset)

    def close(self, deadline: Deadline) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _read(self, partition: int, offset: int) -> bytes | None:
        if self._consumer is None:
            self._consumer = self._build()
        try:
            self._consumer.assign([TopicPartition(OUTCOMES, partition, offset)])
            end = time.monotonic() + self._timeout_s
            while time.monotonic() < end:
                message = self._consumer.poll(0.1)
                if message is None or not check_consumed(message):
                    continue
                # Where the offset is gone, the consumer starts at the oldest record that is left.
                return message.value() if message.offset() == offset else None
        except KafkaException as error:
            raise Retry(f"{OUTCOMES} cannot be read: {error.args[0].str()}", after_s=0.5) from error
        raise Retry(f"{OUTCOMES}/{partition}/{offset} did not come within {self._timeout_s} s", after_s=0.5)
